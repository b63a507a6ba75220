// Starts the real binary as an engine and ends it again. BROKER_BIN names it.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';

const BIN = process.env.BROKER_BIN;
assert.ok(BIN, 'BROKER_BIN must name the agent-relay-broker binary');

/** Ends `promise` with an error that says what was waited for. */
export function within(ms, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Asks again until `probe` gives something that is neither undefined nor false; one that throws says what it saw. */
export async function eventually(ms, what, probe) {
  const deadline = Date.now() + ms;
  let last = '';
  do {
    try {
      const seen = await probe();
      if (seen !== undefined && seen !== false) return seen;
    } catch (error) {
      last = `: ${error.message}`;
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  } while (Date.now() < deadline);
  assert.fail(`${what}: not within ${ms} ms${last}`);
}

export async function startEngine(...args) {
  const child = spawn(BIN, ['engine', '--listen', '127.0.0.1:0', '--faults', ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const lines = createInterface({ input: child.stdout });
  const [line] = await within(10_000, 'the engine says where it listens', once(lines, 'line'));
  const match = /^\[relaycast-engine\] listening on (http:\/\/127\.0\.0\.1:\d+)$/.exec(line);
  assert.ok(match, `unexpected first line: ${line}`);
  const gone = once(child, 'exit');
  return {
    url: match[1],
    async faults(...rules) {
      const answer = await fetch(`${match[1]}/__faults`, { method: 'POST', body: JSON.stringify({ rules }) });
      assert.equal(answer.status, 200, await answer.text());
    },
    /** Lets everything expire that nobody has acknowledged yet; gives the number. */
    async expire() {
      const answer = await fetch(`${match[1]}/__faults/expire`, { method: 'POST' });
      assert.equal(answer.status, 200);
      return (await answer.json()).data.expired;
    },
    /** Cuts every node socket. */
    async drop() {
      const answer = await fetch(`${match[1]}/__faults/drop`, { method: 'POST' });
      assert.equal(answer.status, 200);
    },
    async stop() {
      child.kill('SIGTERM');
      const [code, signal] = await within(10_000, 'the engine ends', gone);
      assert.deepEqual([code, signal], [0, null]);
    },
    async kill() {
      child.kill('SIGKILL');
      await within(10_000, 'the engine is killed', gone);
    },
  };
}

/** An open node socket. */
export async function openNode(url, token) {
  const socket = new WebSocket(`${url.replace('http', 'ws')}/v1/node/ws?token=${token}`);
  await within(5_000, 'the node socket opens', new Promise((resolve, reject) => {
    socket.onopen = resolve;
    socket.onerror = () => reject(new Error('the node socket was refused'));
  }));
  return socket;
}

/**
 * A node of the engine in a few lines: what a broker does on the wire, without a broker. `onInvoke` gives the result of
 * an invoke; without it the invokes are only noted.
 */
export async function startNode(url, workspaceKey, name, capabilities, onInvoke, { maxAgents = 0, id = `node_${name}` } = {}) {
  const minted = await fetch(`${url}/v1/nodes`, {
    method: 'POST',
    headers: { authorization: `Bearer ${workspaceKey}`, 'content-type': 'application/json' },
    body: JSON.stringify({ node_id: id, name, kind: 'ws', role: 'broker', version: 'test/1' }),
  });
  assert.equal(minted.status, 201);
  const { data } = await minted.json();
  const socket = await openNode(url, data.token);
  const replies = new Map();
  const deliveries = [];
  const invokes = [];
  const send = (frame) => socket.send(JSON.stringify({ v: 1, ...frame }));
  socket.onmessage = ({ data: text }) => {
    const frame = JSON.parse(text);
    if (frame.type === 'reply' || frame.type === 'error') replies.get(frame.id)?.(frame);
    if (frame.type === 'deliver') deliveries.push(frame);
    if (frame.type === 'action.invoke') {
      invokes.push(frame);
      if (onInvoke) send({ type: 'action.result', invocation_id: frame.invocation_id, ...onInvoke(frame) });
    }
  };
  const ask = (frame) =>
    within(5_000, `a reply to ${frame.type}`, new Promise((resolve) => {
      const request = crypto.randomUUID();
      replies.set(request, resolve);
      send({ id: request, ...frame });
    }));
  const registered = await ask({
    type: 'node.register', name, node_id: data.id, capabilities, max_agents: maxAgents, tags: [], version: 'test/1',
    resume_cursor: null,
  });
  assert.equal(registered.ok, true, JSON.stringify(registered));
  const beat = (state) => send({ type: 'node.heartbeat', load: 0, active_agents: 0, handlers_live: true, ...state });
  beat();
  return { id: data.id, ask, send, beat, deliveries, invokes, close: () => socket.close() };
}
