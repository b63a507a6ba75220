// `agent-relay fleet serve` as published, on our broker, against the embedded engine.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { Fleet } from './fleet.js';

const LIMIT = { timeout: 60_000 };

describe('fleet serve', () => {
  let fleet;
  let builder;
  before(async () => {
    fleet = await Fleet.start('serve');
    builder = await fleet.serve('builder', 'builder.js');
  }, LIMIT);
  after(() => fleet?.stop(), LIMIT);

  const row = async (name) => (await fleet.relay.nodes.list({ name }))[0];
  const names = (node) => node.capabilities.map((c) => c.name).sort();

  test('registers what the file declares', LIMIT, async () => {
    const node = await row('builder');
    assert.deepEqual([node.status, node.live, node.handlersLive, node.maxAgents, node.tags], ['online', true, true, 4, ['linux']]);
    assert.deepEqual(node.capabilities.map(({ name, kind }) => [name, kind]).sort(),
      [['deploy', 'action'], ['spawn:reader', 'spawn'], ['sum', 'action']]);
    assert.match(node.id, /^node_[0-9a-f]{32}$/);
    const triggers = await fleet.until('the trigger is there', async () => {
      const found = await fleet.relay.triggers.list();
      return found.length > 0 && found;
    });
    assert.deepEqual(triggers.map((t) => [t.channel, t.pattern, t.actionName]), [['#general', '^[Ss]hip ', 'deploy']]);
  });

  test('is shown by fleet status', LIMIT, async () => {
    const { broker, sidecar } = await fleet.json('builder', ['fleet', 'status']);
    assert.deepEqual([broker.running, broker.workspaceKey, broker.protocolVersion], [true, fleet.key, 2]);
    assert.deepEqual([sidecar.node, sidecar.connected, sidecar.alive, sidecar.pid], ['builder', true, true, builder.served.pid]);
  });

  test('answers an invoke, also with an error', LIMIT, async () => {
    const good = await fleet.invoke('sum', { a: 2, b: 3 });
    assert.deepEqual([good.status, good.output.sum, good.output.node, good.dispatchedNodeId], ['completed', 5, 'builder', builder.id]);
    const bad = await fleet.invoke('sum', { a: 'two' });
    assert.deepEqual([bad.status, bad.error], ['failed', 'a and b must be numbers']);
  });

  test('runs an action for a message that pulls its trigger', LIMIT, async () => {
    await fleet.bob.send('general', 'friendship 1.0');
    await fleet.bob.send('general', 'Ship 1.1');
    const deployed = await fleet.until('the action runs', () => fleet.seen('deployed').then((text) => text || false));
    assert.equal(deployed, 'Ship 1.1\n');
    const said = await fleet.until('the action answers in the channel', async () =>
      (await fleet.bob.messages('general')).find((m) => m.text.startsWith('deployed')));
    assert.equal(said.text, 'deployed: Ship 1.1');
  });

  test('spawns through its handler, and the agent gets messages', LIMIT, async () => {
    // No program is called "reader": only the handler knows what to run.
    assert.equal(await fleet.spawn({ name: 'r1', cli: 'reader' }), builder.id);
    assert.equal(await fleet.seen('r1.lives'), 'builder\n');
    await fleet.bob.dm('r1', 'hello r1');
    await fleet.reads('r1', 'hello r1');
    const bound = await fleet.relay.nodes.listAgents('builder');
    assert.ok(bound.some((b) => b.agentName === 'r1'), JSON.stringify(bound));
    const released = await fleet.release('r1');
    assert.equal(released.status, 'completed', JSON.stringify(released));
    assert.equal((await fleet.relay.agents.get('r1')).status, 'offline');
  });

  test('a second node on this host gets what is addressed to it', LIMIT, async () => {
    const packer = await fleet.serve('packer', 'packer.js');
    assert.notEqual(packer.id, builder.id);
    assert.deepEqual(names(await row('packer')), ['spawn:crate', 'weigh']);
    assert.deepEqual(names(await row('builder')), ['deploy', 'spawn:reader', 'sum'], 'the first one is as it was');
    const weighed = await fleet.invoke('weigh', { grams: 1500 });
    assert.deepEqual([weighed.output.kilograms, weighed.output.node, weighed.dispatchedNodeId], [1.5, 'packer', packer.id]);
    assert.equal(await fleet.spawn({ name: 'c1', cli: 'crate' }), packer.id);
    await fleet.bob.dm('c1', 'hello c1');
    await fleet.reads('c1', 'hello c1');
    assert.equal((await fleet.invoke('sum', { a: 1, b: 1 })).dispatchedNodeId, builder.id);
  });

  test('survives the end of its broker', LIMIT, async () => {
    const before = (await fleet.invoke('sum', { a: 0, b: 0 })).output.pid;
    const startAgain = await fleet.killBroker(builder);
    await fleet.until('the engine notices', async () => !(await row('builder')).live);
    startAgain();
    await fleet.ready(builder);
    assert.equal((await row('builder')).id, builder.id);
    const answer = await fleet.invoke('sum', { a: 20, b: 22 });
    assert.deepEqual([answer.output.sum, answer.output.pid], [42, before], 'the sidecar that was there has registered again');
    assert.equal(await fleet.spawn({ name: 'r2', cli: 'reader' }), builder.id);
    await fleet.bob.dm('r2', 'hello r2');
    await fleet.reads('r2', 'hello r2');
    assert.equal((await row('packer')).live, true);
  });

  test('is started again by its broker when it dies', LIMIT, async () => {
    const packer = fleet.nodes.find((node) => node.name === 'packer');
    const before = (await fleet.invoke('weigh', { grams: 1 })).output.pid;
    assert.equal(before, packer.served.pid);
    process.kill(before, 'SIGKILL');
    await fleet.until('the engine hears that the handlers are gone', async () => !(await row('packer')).handlersLive);
    await fleet.ready(packer);
    const answer = await fleet.invoke('weigh', { grams: 2000 });
    assert.equal(answer.output.kilograms, 2);
    assert.notEqual(answer.output.pid, before);
    await fleet.bob.dm('c1', 'still there?');
    await fleet.reads('c1', 'still there?');
  });

  test('takes back what it declared when it is told to stop', LIMIT, async () => {
    process.kill(builder.served.pid, 'SIGTERM');
    await fleet.until('nothing is declared any more', async () => names(await row('builder')).length === 0);
    const node = await row('builder');
    assert.deepEqual([node.live, node.handlersLive], [true, false], 'the broker is still there');
    await fleet.bob.dm('r2', 'and you?');
    await fleet.reads('r2', 'and you?');
    await assert.rejects(fleet.bob.actions.invoke('sum', { a: 1, b: 1 }), { rawCode: 'action_not_found' });
  });
});
