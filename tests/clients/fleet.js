// A fleet on this machine: an engine, and nodes that are the published `agent-relay fleet serve` with our broker under it.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, readFile, readlink, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { RelayCast } from '@relaycast/sdk';
import { eventually, startEngine, within } from './engine.js';

export const HERE = dirname(fileURLToPath(import.meta.url));
export const CLI = join(HERE, 'node_modules/agent-relay/dist/cli/index.js');
const BIN = process.env.BROKER_BIN;
/** For one step of the fleet on two slow cores. */
export const PATIENCE = 20_000;
const LOG_KEPT = 4_000;

/** Whether it runs; what waits to be reaped does not. */
function alive(pid) {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return !'ZX'.includes(stat.slice(stat.lastIndexOf(')') + 2)[0]);
  } catch {
    return false;
  }
}

/** A port that was free a moment ago. */
export async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}

/** A child whose last output is kept for the report. */
function run(what, command, args, options) {
  const child = spawn(command, args, { ...options, stdio: ['ignore', 'pipe', 'pipe'] });
  const process_ = { what, child, pid: child.pid, output: '', ended: once(child, 'close') };
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text) => { process_.output = (process_.output + text).slice(-LOG_KEPT); });
  }
  return process_;
}

export class Fleet {
  nodes = [];
  /** Everything that was started, for the report; and the brokers, whose starters may be gone. */
  #processes = [];
  #brokers = new Set();

  static async start(name) {
    const fleet = new this();
    fleet.dir = await mkdtemp(join(tmpdir(), 'fleet-'));
    for (const part of ['home', 'seen']) mkdirSync(join(fleet.dir, part));
    fleet.engine = await startEngine();
    const { apiKey } = await RelayCast.createWorkspace(name, fleet.engine.url);
    fleet.key = apiKey;
    fleet.relay = new RelayCast({ apiKey, baseUrl: fleet.engine.url, retryPolicy: { maxRetries: 0 } });
    fleet.bob = await fleet.agent('bob');
    return fleet;
  }

  /** An agent without a node, as a client of the SDK. */
  async agent(name) {
    return this.as((await this.relay.agents.register({ name })).token);
  }

  as(token) {
    return this.relay.as(token, { autoHeartbeatMs: false });
  }

  /** Nothing of whoever runs the tests reaches a node: a home, a path, and where things are. */
  env(node) {
    const home = join(this.dir, 'home');
    return {
      PATH: process.env.PATH, HOME: home, XDG_DATA_HOME: join(home, 'data'), TMPDIR: this.dir, LANG: 'C.UTF-8',
      BROKER_BINARY_PATH: BIN,
      AGENT_RELAY_TELEMETRY_DISABLED: '1', DO_NOT_TRACK: '1', AGENT_RELAY_SKIP_UPDATE_CHECK: '1',
      FLEET_NODE: node, FLEET_SEEN: join(this.dir, 'seen'),
    };
  }

  /** The published CLI in a directory of its own. */
  cli(name, args, env = {}) {
    const cwd = join(this.dir, name);
    mkdirSync(join(cwd, '.agentworkforce/relay'), { recursive: true });
    const ran = run(`agent-relay ${args.join(' ')}`, process.execPath, [CLI, ...args],
      { cwd, env: { ...this.env(name), ...env } });
    this.#processes.push(ran);
    return ran;
  }

  /** What a command of the CLI prints. */
  async json(name, args) {
    const asked = this.cli(name, args);
    await within(PATIENCE, asked.what, asked.ended);
    try {
      return JSON.parse(asked.output);
    } catch (error) {
      throw new Error(`${asked.what} printed ${asked.output}`, { cause: error });
    }
  }

  /** `agent-relay fleet serve`: starts a broker and its sidecar. */
  async begin(name, file, env = {}) {
    const port = await freePort();
    const args = ['fleet', 'serve', join(HERE, 'nodes', file), '--workspace', this.key, '--base-url', this.engine.url];
    // The CLI looks for a free port above this one.
    const served = this.cli(name, args, { AGENT_RELAY_BROKER_PORT: String(port - 1), ...env });
    const node = { name, served, state: join(this.dir, name, '.agentworkforce/relay') };
    this.nodes.push(node);
    return node;
  }

  /** As `begin`, and waits until the engine sees the handlers. */
  async serve(name, file) {
    const node = await this.begin(name, file);
    const row = await this.until(`${name} is served`, async () => this.#ready(name));
    node.id = row.id;
    await this.connection(node);
    return node;
  }

  async #ready(name) {
    const row = (await this.relay.nodes.list({ name }))[0];
    assert.ok(row?.live && row.handlersLive, `the roster says ${JSON.stringify(row)}`);
    return row;
  }

  ready(node) {
    return this.until(`${node.name} is ready`, () => this.#ready(node.name));
  }

  /** A broker that somebody else started, to be ended with the rest. */
  watch(pid) {
    this.#brokers.add(pid);
  }

  /** Where the node's broker listens, its key and its process. */
  async connection(node) {
    const found = JSON.parse(await readFile(join(node.state, 'connection.json'), 'utf8'));
    this.#brokers.add(found.pid);
    return found;
  }

  runs(pid) {
    return alive(pid);
  }

  /** The broker stands still until the result is called. */
  async pauseBroker(node) {
    const { pid } = await this.connection(node);
    process.kill(pid, 'SIGSTOP');
    return () => process.kill(pid, 'SIGCONT');
  }

  /** Kills the node's broker; the result starts it again as it was. */
  async killBroker(node) {
    const { pid } = await this.connection(node);
    const [command, environment, cwd] = await Promise.all([
      readFile(`/proc/${pid}/cmdline`, 'utf8'), readFile(`/proc/${pid}/environ`, 'utf8'), readlink(`/proc/${pid}/cwd`),
    ]);
    process.kill(pid, 'SIGKILL');
    const [, ...args] = command.split('\0').slice(0, -1);
    const env = Object.fromEntries(environment.split('\0').filter(Boolean).map((entry) => {
      const at = entry.indexOf('=');
      return [entry.slice(0, at), entry.slice(at + 1)];
    }));
    return () => {
      const started = run(`${node.name}'s broker`, BIN, args, { cwd, env });
      this.#processes.push(started);
      this.#brokers.add(started.pid);
      return started;
    };
  }

  seen(name) {
    return readFile(join(this.dir, 'seen', name), 'utf8').catch(() => '');
  }

  path(name) {
    return join(this.dir, 'seen', name);
  }

  /** As `eventually`, with what the processes said when it fails. */
  async until(what, probe, ms = PATIENCE) {
    try {
      return await eventually(ms, what, probe);
    } catch (error) {
      error.message += `\n${await this.report()}`;
      throw error;
    }
  }

  /** The finished invocation. */
  done(action, ack) {
    return this.until(`${action} is finished`, async () => {
      const view = await this.bob.actions.getInvocation(action, ack.invocationId);
      assert.ok(['completed', 'failed'].includes(view.status), `it is ${JSON.stringify(view)}`);
      return view;
    });
  }

  async invoke(action, input) {
    return this.done(action, await this.bob.actions.invoke(action, input));
  }

  /** Spawns, waits until the agent runs, and gives the node that it runs on. */
  async spawn(input) {
    const ack = await this.bob.actions.invoke('spawn', input);
    const view = await this.done('spawn', ack);
    assert.equal(view.status, 'completed', `${JSON.stringify(view)}\n${await this.report()}`);
    await this.until(`${input.name} runs`, async () => {
      assert.equal((await this.relay.agents.get(input.name)).status, 'online');
      return this.seen(`${input.name}.lives`);
    });
    return view.dispatchedNodeId;
  }

  async release(name) {
    const ack = await this.relay.agents.release({ name });
    return this.done('release', ack);
  }

  /** Waits until the agent has read `text` in its terminal. */
  reads(name, text) {
    return this.until(`${name} reads "${text}"`, async () => {
      const read = await this.seen(`${name}.read`);
      assert.ok(read.includes(text), `it has read ${JSON.stringify(read.slice(-LOG_KEPT))}`);
      return read;
    });
  }

  async report() {
    const parts = this.#processes.map(({ what, child, output }) =>
      `-- ${what} (exit ${child.exitCode ?? child.signalCode ?? 'none'}):\n${output}`);
    for (const node of this.nodes) {
      const health = await this.connection(node)
        .then(({ url }) => fetch(`${url}/health`, { signal: AbortSignal.timeout(1_000) }))
        .then((answer) => answer.text())
        .catch((error) => String(error.cause ?? error));
      parts.push(`-- health of ${node.name}: ${health}`);
    }
    return parts.join('\n');
  }

  /** Every process that has our environment. */
  #ours() {
    return readdirSync('/proc').filter((entry) => /^\d+$/.test(entry)).map(Number).filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/environ`, 'utf8').includes(`FLEET_SEEN=${this.dir}/`);
      } catch {
        return false;
      }
    });
  }

  async #end(pids) {
    for (const [signal, ms] of [['SIGTERM', 8_000], ['SIGKILL', 5_000]]) {
      const left = pids.filter(alive);
      // One that a failed test left paused could not hear the other.
      for (const each of [signal, 'SIGCONT']) left.filter(alive).forEach((pid) => process.kill(pid, each));
      const ended = await eventually(ms, 'processes end', () => !left.some(alive)).catch(() => false);
      if (ended) return;
    }
  }

  async stop() {
    for (const node of this.nodes) await this.connection(node).catch(() => {});
    await this.#end([...this.#processes.map((started) => started.pid), ...this.#brokers]);
    // What detached itself, and what was supervised by a broker that was killed, is nobody's.
    await this.#end(this.#ours());
    await this.engine.stop();
    await rm(this.dir, { recursive: true, force: true });
  }
}
