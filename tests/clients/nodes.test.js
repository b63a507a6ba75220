// Two nodes as the published @relaycast/sdk sees them. The nodes are sockets in this process: what they say is chosen
// here, so each rule of placement is seen alone. The same fleet with real brokers: fleet.test.js.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { RelayCast } from '@relaycast/sdk';
import { eventually, openNode, startEngine, startNode } from './engine.js';

const LIMIT = { timeout: 20_000 };
const CAT = [{ name: 'spawn:cat', kind: 'spawn' }];

describe('two nodes', () => {
  let engine;
  before(async () => { engine = await startEngine(); }, LIMIT);
  after(() => engine.stop(), LIMIT);

  async function world(name) {
    const made = await RelayCast.createWorkspace(name, engine.url);
    const relay = new RelayCast({ apiKey: made.apiKey, baseUrl: engine.url, retryPolicy: { maxRetries: 0 } });
    const bob = await relay.agents.register({ name: 'bob' });
    return { name, relay, key: made.apiKey, bob: relay.as(bob.token, { autoHeartbeatMs: false }) };
  }
  const node = (w, name, capabilities, options) => startNode(engine.url, w.key, name, capabilities, null, { id: `node_${w.name}_${name}`, ...options });
  const seen = (what, probe) => eventually(5_000, what, probe);
  const done = (w, action, ack) => seen(`${action} is finished`, async () => {
    const view = await w.bob.actions.getInvocation(action, ack.invocationId);
    return ['completed', 'failed'].includes(view.status) && view;
  });
  const invoked = (n, ack) => seen('the node is asked', () => n.invokes.find((f) => f.invocation_id === ack.invocationId));

  test('registration and capability query', LIMIT, async () => {
    const w = await world('roster');
    const one = await node(w, 'one', CAT, { maxAgents: 4 });
    const two = await node(w, 'two', [{ name: 'greet' }]);
    one.beat({ load: 0.5, active_agents: 2 });
    const row = await seen('the load arrives', async () => {
      const known = await w.relay.nodes.get('one');
      return known.load === 0.5 && known;
    });
    assert.deepEqual([row.live, row.handlersLive, row.activeAgents, row.maxAgents], [true, true, 2, 4]);
    assert.deepEqual((await w.relay.nodes.list()).map((n) => n.name).sort(), ['one', 'two']);
    assert.deepEqual((await w.relay.nodes.list({ capability: 'spawn:cat' })).map((n) => n.name), ['one']);
    assert.deepEqual(await w.relay.nodes.list({ capability: 'spawn' }), []);
    one.close();
    two.close();
  });

  test('a bad token is never online', LIMIT, async () => {
    const w = await world('tokens');
    const minted = await w.relay.nodes.create({ name: 'one', nodeId: 'node_tokens_one' });
    await w.relay.nodes.create({ name: 'one', nodeId: 'node_tokens_one' });
    for (const token of ['nt_live_wrong', minted.token]) {
      await assert.rejects(openNode(engine.url, token), /refused/, 'a wrong token, and one that was replaced');
    }
    const row = await w.relay.nodes.get('one');
    assert.deepEqual([row.live, row.lastHeartbeatAt], [false, null]);
  });

  test('a spawn goes by capability, by target, by load and by room', LIMIT, async () => {
    const w = await world('placement');
    const one = await node(w, 'one', CAT, { maxAgents: 2 });
    const two = await node(w, 'two', CAT, { maxAgents: 2 });
    one.beat({ load: 0.5, active_agents: 1 });
    await seen('the load arrives', async () => (await w.relay.nodes.get('one')).load === 0.5);
    const spawn = (input) => w.bob.actions.invoke('spawn', input);
    const to = async (input) => (await spawn(input)).dispatchedNodeId;
    assert.equal(await to({ name: 'a', cli: 'cat' }), two.id, 'the less loaded one');
    assert.equal(await to({ name: 'b', cli: 'cat', node: 'one' }), one.id, 'the named one');
    await assert.rejects(to({ name: 'c', cli: 'cat', node: 'one' }), { rawCode: 'handler_unavailable' });
    assert.equal(await to({ name: 'c', cli: 'cat' }), two.id, 'the other one is full');
    await assert.rejects(to({ name: 'd', cli: 'cat' }), { rawCode: 'handler_unavailable' });
    await assert.rejects(to({ name: 'd', cli: 'dog' }), { rawCode: 'handler_unavailable' });
    await assert.rejects(to({ name: 'd', cli: 'dog', node: 'one' }), { rawCode: 'capability_mismatch', statusCode: 409 });
    one.close();
    two.close();
  });

  test('a session is resumed at its origin', LIMIT, async () => {
    const w = await world('resume');
    const one = await node(w, 'one', CAT);
    const two = await node(w, 'two', CAT);
    const { data } = await two.ask({ type: 'agent.register', name: 'al', session_ref: 's-1', resumable: true });
    two.send({ type: 'agent.deregister', agent_id: data.agent_id });
    two.beat({ load: 0.9, active_agents: 5 });
    await seen('the load arrives', async () => (await w.relay.nodes.get('two')).load === 0.9);
    const ack = await w.bob.actions.invoke('spawn', { name: 'al', cli: 'cat', session_ref: 's-1' });
    assert.equal(ack.dispatchedNodeId, two.id, 'although the other one is idle');
    assert.equal((await invoked(two, ack)).input.session_ref, 's-1');
    one.close();
    two.close();
  });

  test('what a dead node had moves, and it does not get it back', LIMIT, async () => {
    const w = await world('death');
    const one = await node(w, 'one', [{ name: 'work' }]);
    const two = await node(w, 'two', [{ name: 'work' }]);
    const ack = await w.bob.actions.invoke('work', { k: 1 });
    await invoked(one, ack);
    one.close();
    assert.deepEqual((await invoked(two, ack)).input, { k: 1 });
    const again = await node(w, 'one', [{ name: 'work' }]);
    again.send({ type: 'action.result', invocation_id: ack.invocationId, output: 'late' });
    assert.equal((await again.ask({ type: 'inventory.sync', agents: [] })).ok, true, 'it was heard after the result');
    assert.equal((await w.bob.actions.getInvocation('work', ack.invocationId)).status, 'dispatched');
    assert.deepEqual(again.invokes, []);
    two.send({ type: 'action.result', invocation_id: ack.invocationId, output: { by: 'two' } });
    assert.deepEqual((await done(w, 'work', ack)).output, { by: 'two' });
    again.close();
    two.close();
  });

  test('seq goes on over release and re-homing', LIMIT, async () => {
    const w = await world('seq');
    const one = await node(w, 'one', []);
    const two = await node(w, 'two', []);
    const { data } = await one.ask({ type: 'agent.register', name: 'al' });
    await w.bob.dm('al', 'first');
    await seen('the first', () => one.deliveries.at(-1)?.seq === 1);
    one.send({ type: 'delivery.ack', agent: 'al', up_to_seq: 1 });
    one.send({ type: 'agent.deregister', agent_id: data.agent_id });
    await seen('al is released', async () => (await w.relay.agents.get('al')).status === 'offline');
    await w.bob.dm('al', 'second');
    const moved = await two.ask({ type: 'agent.register', name: 'al' });
    assert.equal(moved.data.agent_id, data.agent_id);
    await w.bob.dm('al', 'third');
    await seen('both', () => two.deliveries.length === 2);
    assert.deepEqual(two.deliveries.map((f) => [f.seq, f.payload.data.text]), [[2, 'second'], [3, 'third']]);
    assert.deepEqual(one.deliveries.map((f) => f.seq), [1]);
    one.close();
    two.close();
  });

  test('an expired mailbox tells the sender', LIMIT, async () => {
    const w = await world('expiry');
    const one = await node(w, 'one', []);
    await one.ask({ type: 'agent.register', name: 'al' });
    const gone = await node(w, 'two', []);
    await gone.ask({ type: 'agent.register', name: 'cy' });
    gone.close();
    await seen('the node is gone', async () => !(await w.relay.nodes.get('two')).live);
    const al = w.relay.as((await w.relay.agents.rotateToken('al')).token, { autoHeartbeatMs: false });
    const sent = await al.dm('cy', 'are you there?');
    assert.equal((await engine.expire()) > 0, true);
    const told = await seen('al is told', () => one.deliveries.find((f) => f.payload.data.from_name === 'relaycast'));
    assert.equal(told.agent, 'al');
    assert.match(told.payload.data.text, new RegExp(`${sent.message.id} to cy .*are you there\\?`));
    one.close();
  });

  test('triggers invoke the action of a node', LIMIT, async () => {
    const w = await world('triggers');
    const one = await node(w, 'one', [{ name: 'deploy' }]);
    const made = await w.relay.triggers.create({ channel: '#general', pattern: '[Ss]hip', actionName: 'deploy' });
    assert.deepEqual([made.channel, made.pattern, made.mention, made.actionName, made.enabled, made.lastTriggeredAt],
      ['#general', '[Ss]hip', null, 'deploy', true, null]);
    await w.bob.send('general', 'wait');
    await w.bob.send('general', 'Ship it');
    const frame = await seen('the node is asked', () => one.invokes[0]);
    assert.deepEqual([frame.action, frame.input.message.text, frame.input.message.agent_name], ['deploy', 'Ship it', 'bob']);
    assert.match((await w.relay.triggers.get(made.id)).lastTriggeredAt, /^20/);
    const changed = await w.relay.triggers.update(made.id, { pattern: null, enabled: false });
    assert.deepEqual([changed.pattern, changed.enabled], [null, false]);
    assert.deepEqual((await w.relay.triggers.list()).map((t) => t.id), [made.id]);
    await w.relay.triggers.delete(made.id);
    assert.deepEqual(await w.relay.triggers.list(), []);
    await assert.rejects(w.relay.triggers.create({ actionName: 'deploy', pattern: '(' }), { statusCode: 400 });
    one.close();
  });
});
