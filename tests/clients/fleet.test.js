// A fleet of two of our brokers, each with its own directory, served by the published CLI.
import assert from 'node:assert/strict';
import { rm, writeFile } from 'node:fs/promises';
import { after, before, describe, test } from 'node:test';
import { HarnessDriverClient } from '@agent-relay/harness-driver';
import { Fleet } from './fleet.js';

const LIMIT = { timeout: 60_000 };

describe('two nodes', () => {
  let fleet;
  let one;
  let two;
  before(async () => {
    fleet = await Fleet.start('two');
    [one, two] = await Promise.all([fleet.serve('one', 'worker.js'), fleet.serve('two', 'worker.js')]);
  }, LIMIT);
  after(() => fleet?.stop(), LIMIT);

  const row = async (node) => (await fleet.relay.nodes.list({ name: node.name }))[0];
  const load = (node, agents) => fleet.until(`${node.name} has ${agents} agents`, async () => {
    const { activeAgents } = await row(node);
    assert.equal(activeAgents, agents);
    return true;
  });
  const refused = (input, code) => assert.rejects(fleet.bob.actions.invoke('spawn', input), { rawCode: code });

  test('registration', LIMIT, async () => {
    assert.notEqual(one.id, two.id);
    for (const node of [one, two]) {
      const known = await row(node);
      assert.deepEqual([known.id, known.live, known.handlersLive, known.maxAgents, known.activeAgents, known.load],
        [node.id, true, true, 3, 0, 0]);
      assert.match(known.version, /^relay-broker\//);
    }
  });

  test('a bad token is never online', LIMIT, async () => {
    const known = (await fleet.relay.nodes.list()).length;
    const three = await fleet.begin('three', 'worker.js', { RELAY_NODE_TOKEN: 'nt_live_wrong' });
    await fleet.until('its broker says that it was refused', async () => {
      const { url } = await fleet.connection(three);
      const health = await (await fetch(`${url}/health`)).json();
      assert.equal(health.nodeState, 'auth_rejected');
      return true;
    });
    const roster = await fleet.relay.nodes.list();
    assert.deepEqual([roster.length, roster.filter((n) => n.live).map((n) => n.name).sort()], [known, ['one', 'two']]);
  });

  test('capability query', LIMIT, async () => {
    const having = async (capability) => (await fleet.relay.nodes.list({ capability })).map((n) => n.name).sort();
    assert.deepEqual(await having('spawn:reader'), ['one', 'two']);
    assert.deepEqual(await having('only-two'), ['two']);
    assert.deepEqual(await having('spawn'), []);
    const asked = await fleet.json('one', ['fleet', 'nodes', '--capability', 'spawn:two', '--workspace-key', fleet.key,
      '--base-url', fleet.engine.url]);
    assert.deepEqual(asked.nodes.map((n) => n.name), ['two']);
  });

  test('cross-node dispatch', LIMIT, async () => {
    for (const [node, other] of [[one, two], [two, one]]) {
      const answer = await fleet.invoke(`only-${node.name}`, { for: other.name });
      assert.deepEqual([answer.output, answer.dispatchedNodeId], [{ by: node.name, input: { for: other.name } }, node.id]);
    }
  });

  test('spawn placement by capability', LIMIT, async () => {
    assert.equal(await fleet.spawn({ name: 'c2', cli: 'two' }), two.id);
    assert.equal(await fleet.seen('c2.lives'), 'two\n');
    await load(two, 1);
  });

  test('spawn placement by load', LIMIT, async () => {
    assert.equal(await fleet.spawn({ name: 'l1', cli: 'reader' }), one.id, 'the other one has an agent');
    await load(one, 1);
  });

  test('spawn placement by target', LIMIT, async () => {
    assert.equal(await fleet.spawn({ name: 't2', cli: 'reader', node: 'two' }), two.id, 'although it has more agents');
    await load(two, 2);
  });

  test('a full node is skipped', LIMIT, async () => {
    assert.equal(await fleet.spawn({ name: 'f2', cli: 'reader', node: 'two' }), two.id);
    await load(two, 3);
    await refused({ name: 'f3', cli: 'reader', node: 'two' }, 'handler_unavailable');
    await refused({ name: 'f3', cli: 'two' }, 'handler_unavailable');
    await fleet.release('f2');
    await load(two, 2);
  });

  test('capability mismatch', LIMIT, async () => {
    await refused({ name: 'm1', cli: 'two', node: 'one' }, 'capability_mismatch');
    await refused({ name: 'm1', cli: 'nothing' }, 'handler_unavailable');
    await assert.rejects(fleet.relay.agents.get('m1'), { code: 'not_found' });
  });

  test('messages between agents of two nodes', LIMIT, async () => {
    const l1 = fleet.as(await fleet.seen('l1.token'));
    const c2 = fleet.as(await fleet.seen('c2.token'));
    await l1.dm('c2', 'from one to two');
    await fleet.reads('c2', 'from one to two');
    await c2.dm('l1', 'and back');
    await fleet.reads('l1', 'and back');
    const { url, api_key: apiKey } = await fleet.connection(one);
    const driver = new HarnessDriverClient({ baseUrl: url, apiKey });
    assert.deepEqual((await driver.listAgents()).map((agent) => agent.name), ['l1']);
    await driver.sendMessage({ to: 't2', from: 'l1', text: 'through the broker' });
    await fleet.reads('t2', 'through the broker');
  });

  test('resume to the origin node', LIMIT, async () => {
    assert.equal(await fleet.spawn({ name: 's2', cli: 'reader', node: 'two', session_ref: 'session-7' }), two.id);
    await fleet.until('the session is known', async () =>
      (await fleet.relay.nodes.listAgents('two')).some((b) => b.sessionRef === 'session-7'));
    await fleet.release('s2');
    await load(two, 2);
    assert.equal((await row(one)).activeAgents, 1);
    assert.equal(await fleet.spawn({ name: 's2', cli: 'reader', session_ref: 'session-7' }), two.id,
      'although the other one has fewer agents');
    assert.equal(await fleet.seen('s2.lives'), 'two\ntwo\n');
    await fleet.release('s2');
    await load(two, 2);
  });

  test('monotonic agent_seq over release, absence and another node', LIMIT, async () => {
    await fleet.bob.dm('t2', 'first');
    await fleet.reads('t2', 'first');
    await fleet.release('t2');
    await fleet.bob.dm('t2', 'second');
    assert.equal(await fleet.spawn({ name: 't2', cli: 'reader', node: 'one' }), one.id);
    await fleet.bob.dm('t2', 'third');
    await fleet.reads('t2', 'third');
    const read = await fleet.seen('t2.read');
    const places = ['first', 'second', 'third'].map((text) => read.indexOf(text));
    assert.ok(places.every((at, i) => at >= 0 && (i === 0 || at > places[i - 1])), read);
    const t2 = fleet.as(await fleet.seen('t2.token'));
    const seqs = await fleet.until('everything is acknowledged', async () => {
      assert.deepEqual((await t2.deliveries()).map((d) => d.seq), []);
      return (await t2.deliveries({ status: 'acked', limit: 100 })).map((d) => d.seq);
    });
    assert.deepEqual(seqs, seqs.map((_, i) => i + 1), 'no number twice, none left out');
    assert.ok(seqs.length >= 4, `${seqs}`);
  });

  test('mailbox expiry tells the sender', LIMIT, async () => {
    await fleet.release('c2');
    const l1 = fleet.as(await fleet.seen('l1.token'));
    const sent = await l1.dm('c2', 'nobody will read this');
    assert.equal(await fleet.engine.expire() > 0, true);
    const read = await fleet.reads('l1', 'has expired');
    assert.match(read, new RegExp(`${sent.message.id} to c2 .*nobody will read this`));
    assert.equal(await fleet.spawn({ name: 'c2', cli: 'two' }), two.id);
    await fleet.bob.dm('c2', 'but this');
    const seen = await fleet.reads('c2', 'but this');
    assert.ok(!seen.includes('nobody will read this'), seen);
  });

  const holds = async (node, what = 'holds') =>
    (await fleet.seen(`${node.name}.${what}`)).split('\n').filter(Boolean);

  /** An invocation of `hold` that is stuck at one node; the other one would answer. */
  async function heldByOne() {
    for (const node of [one, two]) {
      await writeFile(fleet.path(`${node.name}.stuck`), '');
      for (const what of ['holds', 'answers']) await rm(fleet.path(`${node.name}.${what}`), { force: true });
    }
    const ack = await fleet.bob.actions.invoke('hold', {});
    const [first, second] = ack.dispatchedNodeId === one.id ? [one, two] : [two, one];
    await fleet.until(`${first.name} has it`, async () => (await holds(first)).length > 0);
    await rm(fleet.path(`${second.name}.stuck`));
    return { ack, first, second };
  }

  /** Both have had it once, the second one's answer counts and goes on counting. */
  async function belongsTo({ ack, first, second }, answer) {
    // Whatever the first one had to say about it was said before this answer.
    assert.equal((await fleet.invoke(`only-${first.name}`, {})).output.by, first.name);
    assert.deepEqual([await holds(first), await holds(second)], [[ack.invocationId], [ack.invocationId]]);
    assert.deepEqual(await fleet.bob.actions.getInvocation('hold', ack.invocationId), answer);
  }

  test('re-dispatch when a node dies, and no re-claim after', LIMIT, async () => {
    const held = await heldByOne();
    const startAgain = await fleet.killBroker(held.first);
    const answer = await fleet.done('hold', held.ack);
    assert.deepEqual([answer.status, answer.output, answer.dispatchedNodeId],
      ['completed', { by: held.second.name }, held.second.id]);
    startAgain();
    await fleet.ready(held.first);
    await belongsTo(held, answer);
  });

  test('a spawn of a node that was given up runs at the other one alone', LIMIT, async () => {
    for (const { agentName } of [...await fleet.relay.nodes.listAgents('one'), ...await fleet.relay.nodes.listAgents('two')]) {
      if ((await fleet.relay.agents.get(agentName)).status === 'online') await fleet.release(agentName);
    }
    await load(one, 0);
    await load(two, 0);
    const ack = await fleet.bob.actions.invoke('spawn', { name: 'x', cli: 'reader', task: 'start' });
    await fleet.done('spawn', ack);
    await fleet.until('x runs', () => fleet.seen('x.lives').then((text) => text || false));
    const [busy, idle] = ack.dispatchedNodeId === one.id ? [one, two] : [two, one];
    await load(busy, 1);
    const goOn = await fleet.pauseBroker(idle);
    const moved = await fleet.bob.actions.invoke('spawn', { name: 'y', cli: 'reader' });
    assert.equal(moved.dispatchedNodeId, idle.id);
    await fleet.engine.drop();
    assert.equal((await fleet.done('spawn', moved)).dispatchedNodeId, busy.id);
    await fleet.until('y runs', () => fleet.seen('y.lives').then((text) => text || false));
    goOn();
    await fleet.ready(idle);
    await fleet.bob.dm('y', 'where are you?');
    await fleet.reads('y', 'where are you?');
    assert.equal((await fleet.invoke(`only-${idle.name}`, {})).output.by, idle.name);
    assert.equal(await fleet.seen('y.lives'), `${busy.name}\n`);
    assert.equal((await fleet.as(await fleet.seen('y.token')).me()).nodeId, busy.id);
    await load(idle, 0);
    await load(busy, 2);
  });

  test('the late answer of a node that was given up does not count', LIMIT, async () => {
    const held = await heldByOne();
    // The second one is stuck as well, so that the invocation is still open when the first one answers.
    await writeFile(fleet.path(`${held.second.name}.stuck`), '');
    const goOn = await fleet.pauseBroker(held.first);
    await fleet.engine.drop();
    await fleet.until('the other one has it', async () => (await holds(held.second)).length > 0);
    goOn();
    await fleet.ready(held.first);
    await rm(fleet.path(`${held.first.name}.stuck`));
    await fleet.until('the first one answers', async () => (await holds(held.first, 'answers')).includes(held.ack.invocationId));
    const open = await fleet.bob.actions.getInvocation('hold', held.ack.invocationId);
    await belongsTo(held, open);
    assert.deepEqual([open.status, open.dispatchedNodeId], ['dispatched', held.second.id]);
    await rm(fleet.path(`${held.second.name}.stuck`));
    const answer = await fleet.done('hold', held.ack);
    assert.deepEqual(answer.output, { by: held.second.name });
  });
});
