// The published @relaycast/sdk, unchanged, against the embedded engine.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { RelayCast, RelayError } from '@relaycast/sdk';
import { eventually, startEngine, startNode, within } from './engine.js';

const LIMIT = { timeout: 20_000 };
const quick = { maxRetries: 2, backoffMs: 5, jitter: false };

async function workspace(engine, name) {
  const made = await RelayCast.createWorkspace(name, engine.url);
  return { ...made, relay: new RelayCast({ apiKey: made.apiKey, baseUrl: engine.url, retryPolicy: quick }) };
}

async function agents(relay, ...names) {
  const made = [];
  for (const name of names) {
    const row = await relay.agents.register({ name });
    made.push(Object.assign(relay.as(row.token, { autoHeartbeatMs: false }), { row }));
  }
  return made;
}

/** The first event of that type on an agent's socket. */
const nextEvent = (agent, type, wanted = () => true) =>
  within(5_000, `event ${type}`, new Promise((resolve) => {
    const stop = agent.on.any((event) => {
      if (event.type === type && wanted(event)) {
        stop();
        resolve(event);
      }
    });
  }));

async function connected(relay, agent) {
  agent.connect();
  await within(5_000, 'the agent is connected', new Promise((resolve) => agent.on.connected(resolve)));
  // The socket is open; deliveries begin when the engine has taken node.register.
  await eventually(5_000, 'the direct node is live', async () =>
    (await relay.nodes.list()).some((n) => n.id === `node_direct_${agent.row.id}` && n.live));
}

describe('the SDK', () => {
  let engine;
  before(async () => { engine = await startEngine(); }, LIMIT);
  after(() => engine.stop(), LIMIT);

  test('creates and finds workspaces', LIMIT, async () => {
    const made = await RelayCast.createWorkspaceWithStatus('acme', engine.url);
    assert.equal(made.statusCode, 201);
    assert.match(made.data.apiKey, /^rk_live_[0-9a-f]{32}$/);
    assert.match(made.data.workspaceId, /^\d{18,19}$/);
    const again = await RelayCast.ensureWorkspace('acme', { baseUrl: engine.url, apiKey: made.data.apiKey });
    assert.deepEqual([again.existed, again.workspaceId], [true, made.data.workspaceId]);
    const other = await RelayCast.ensureWorkspace('acme', engine.url);
    assert.deepEqual([other.existed, other.workspaceId !== made.data.workspaceId], [false, true]);
    assert.equal((await RelayCast.lookupWorkspace('acme', engine.url)).id, other.workspaceId);
    assert.equal(await RelayCast.lookupWorkspace('nobody', engine.url), null);
    const relay = new RelayCast({ apiKey: made.data.apiKey, baseUrl: engine.url });
    const info = await relay.workspace.info();
    assert.deepEqual([info.id, info.name, info.plan], [made.data.workspaceId, 'acme', 'free']);
    assert.equal((await relay.workspace.update({ systemPrompt: 'be brief' })).systemPrompt, 'be brief');
    assert.deepEqual(await relay.systemPrompt.get(), { prompt: 'be brief', isDefault: false });
  });

  test('registers agents, conflicts, rotates', LIMIT, async () => {
    const { relay, workspaceId } = await workspace(engine, 'names');
    const first = await relay.agents.register({ name: 'al', type: 'human', metadata: { cli: 'claude' } });
    assert.match(first.token, /^at_live_[0-9a-f]{32}$/);
    assert.equal(first.status, 'online');
    assert.deepEqual(await relay.resolveIdentity(), { agentId: first.id, name: 'al', workspaceId });
    await assert.rejects(relay.agents.register({ name: 'al' }), (error) => {
      assert.ok(error instanceof RelayError);
      assert.deepEqual([error.code, error.rawCode, error.statusCode], ['name_conflict', 'agent_already_exists', 409]);
      return true;
    });
    const rotated = await relay.registerOrRotate({ name: 'al' });
    assert.equal(rotated.id, first.id);
    assert.notEqual(rotated.token, first.token);
    await assert.rejects(relay.as(first.token).me(), { code: 'agent_token_invalid', statusCode: 401 });
    const me = await relay.as(rotated.token).me();
    assert.deepEqual([me.name, me.type, me.metadata.cli], ['al', 'human', 'claude']);
    assert.deepEqual(me.channels.map((c) => c.name), ['general']);
    const suffixed = await relay.registerAgent({ name: 'al' });
    assert.match(suffixed.name, /^al-[0-9a-f]{4}$/);
    assert.deepEqual((await relay.agents.list()).map((a) => a.name), ['al', suffixed.name]);
    await relay.as(rotated.token).presence.markOffline();
    assert.deepEqual((await relay.agents.list({ status: 'offline' })).map((a) => a.name), ['al']);
    await relay.as(rotated.token).presence.markOnline();
    assert.deepEqual((await relay.agents.presence()).map((a) => a.status), ['online', 'online']);
    assert.equal((await relay.agents.update('al', { persona: 'terse' })).persona, 'terse');
    await relay.agents.delete(suffixed.name);
    await assert.rejects(relay.agents.get(suffixed.name), { code: 'not_found' });
    await assert.rejects(relay.as('rk_live_nonsense').me(), { code: 'unauthorized' });
  });

  test('channels: create, join, post, history, members', LIMIT, async () => {
    const { relay } = await workspace(engine, 'channels');
    const [al, bo] = await agents(relay, 'al', 'bo');
    const made = await al.channels.create({ name: 'dev', topic: 'work' });
    assert.deepEqual([made.name, made.topic, made.createdBy, made.memberCount], ['dev', 'work', al.row.id, 1]);
    await assert.rejects(al.channels.create({ name: 'dev' }), { rawCode: 'channel_already_exists' });
    await assert.rejects(al.channels.create({ name: 'Dev' }), { rawCode: 'invalid_channel_name' });
    assert.deepEqual(await bo.channels.join('dev'), { channel: 'dev', agentId: bo.row.id, alreadyMember: false });
    assert.equal((await bo.channels.join('dev')).alreadyMember, true);
    await assert.rejects(bo.channels.join('nope'), { rawCode: 'channel_not_found' });
    const one = await al.send('#dev', 'hello @bo');
    assert.deepEqual(
      [one.agentName, one.text, one.mentions, one.replyCount, one.injectionMode, one.threadId],
      ['al', 'hello @bo', ['bo'], 0, 'wait', null],
    );
    const two = await bo.post('dev', 'steered', { mode: 'steer' });
    assert.equal(two.injectionMode, 'steer');
    assert.deepEqual((await al.messages('dev')).map((m) => m.text), ['steered', 'hello @bo']);
    assert.deepEqual((await al.messages('dev', { before: two.id })).map((m) => m.id), [one.id]);
    assert.deepEqual((await al.messages('dev', { after: one.id, limit: 5 })).map((m) => m.id), [two.id]);
    assert.deepEqual((await relay.messages.list('#dev', { limit: 1 })).map((m) => m.id), [two.id]);
    assert.equal((await relay.messages.get(one.id)).text, 'hello @bo');
    assert.deepEqual((await al.channels.members('dev')).map((m) => [m.agentName, m.role]), [['al', 'owner'], ['bo', 'member']]);
    assert.equal((await al.channels.setTopic('dev', 'play')).topic, 'play');
    assert.deepEqual((await al.search('HELLO', { channel: 'dev' })).map((m) => m.id), [one.id]);
    await bo.channels.leave('dev');
    assert.equal((await relay.channels.get('dev')).members.length, 1);
    await al.channels.invite('dev', 'bo');
    await al.channels.archive('dev');
    assert.deepEqual((await relay.channels.list()).map((c) => c.name), ['general']);
    assert.deepEqual((await relay.channels.list({ includeArchived: true })).map((c) => c.name), ['general', 'dev']);
    await assert.rejects(al.send('dev', 'late'), { rawCode: 'channel_archived' });
  });

  test('threads, reactions, read marks', LIMIT, async () => {
    const { relay } = await workspace(engine, 'threads');
    const [al, bo] = await agents(relay, 'al', 'bo');
    const root = await al.send('general', 'question');
    const reply = await bo.reply(root.id, 'answer');
    assert.deepEqual([reply.threadId, reply.text], [root.id, 'answer']);
    const nested = await al.reply(reply.id, 'thanks');
    assert.equal(nested.threadId, root.id);
    const thread = await al.thread(reply.id);
    assert.equal(thread.parent.id, root.id);
    assert.equal(thread.parent.replyCount, 2);
    assert.deepEqual(thread.replies.map((m) => m.text), ['answer', 'thanks']);
    assert.deepEqual((await al.messages('general')).map((m) => m.id), [root.id]);
    await assert.rejects(al.reply('1', 'x'), { rawCode: 'message_not_found' });
    const reaction = await bo.react(root.id, '👍');
    assert.deepEqual([reaction.messageId, reaction.agentName, reaction.emoji], [root.id, 'bo', '👍']);
    assert.deepEqual(await al.reactions(root.id), [{ emoji: '👍', count: 1, agents: ['bo'] }]);
    assert.equal((await al.inbox()).recentReactions[0].emoji, '👍');
    await bo.unreact(root.id, '👍');
    assert.deepEqual(await al.reactions(root.id), []);
    const read = await bo.markRead(root.id);
    assert.deepEqual([read.messageId, read.agentId], [root.id, bo.row.id]);
    assert.deepEqual((await al.readers(root.id)).map((r) => r.agentName), ['bo']);
    const status = await al.readStatus('general');
    assert.equal(status.find((s) => s.agentName === 'bo').lastReadId, root.id);
  });

  test('direct messages, groups and the inbox', LIMIT, async () => {
    const { relay } = await workspace(engine, 'dms');
    const [al, bo, cy] = await agents(relay, 'al', 'bo', 'cy');
    const sent = await al.dm('bo', 'psst');
    assert.deepEqual([sent.message.agentName, sent.message.text], ['al', 'psst']);
    assert.equal((await bo.dm('al', 'what?')).conversationId, sent.conversationId);
    await assert.rejects(al.dm('nobody', 'x'), { rawCode: 'agent_not_found' });
    assert.deepEqual((await bo.dms.messages(sent.conversationId)).map((m) => m.text), ['what?', 'psst']);
    await assert.rejects(cy.dms.messages(sent.conversationId), { statusCode: 403 });
    const group = await al.dms.createGroup({ participants: ['bo'], name: 'plan' });
    assert.deepEqual([group.dmType, group.name, group.participants.length], ['group', 'plan', 2]);
    assert.equal((await al.dms.addParticipant(group.id, 'cy')).alreadyMember, false);
    const posted = await al.dms.sendMessage(group.id, 'all of you');
    assert.equal(posted.conversationId, group.id);
    const mine = await cy.dms.conversations();
    assert.deepEqual([mine.length, mine[0].type, mine[0].unreadCount, mine[0].lastMessage.text], [1, 'group', 1, 'all of you']);
    assert.deepEqual(mine[0].participants.map((p) => p.agentName), ['al', 'bo', 'cy']);
    await al.send('general', 'hey @bo');
    const inbox = await bo.inbox();
    assert.deepEqual(inbox.unreadChannels, [{ channelName: 'general', unreadCount: 1 }]);
    assert.deepEqual(inbox.mentions.map((m) => [m.channelName, m.agentName, m.text]), [['general', 'al', 'hey @bo']]);
    assert.deepEqual(
      inbox.unreadDms.map((d) => [d.from, d.unreadCount, d.lastMessage.text]),
      [['al', 1, 'psst'], ['al', 1, 'all of you']],
    );
    await bo.markRead(inbox.mentions[0].id);
    assert.deepEqual((await bo.inbox()).mentions, []);
    const all = await relay.allDmConversations();
    assert.deepEqual(all.map((c) => [c.type, c.messageCount, c.participants.length]), [['group', 1, 3], ['1:1', 2, 2]]);
    assert.deepEqual((await relay.dmMessages(group.id, { limit: 1 })).map((m) => m.text), ['all of you']);
    await al.dms.removeParticipant(group.id, 'cy');
    await assert.rejects(cy.dms.sendMessage(group.id, 'still here'), { statusCode: 403 });
    assert.deepEqual((await relay.activity(1)).map((i) => [i.type, i.text]), [['message', 'hey @bo']]);
  });

  test('mail waits for an agent and comes in order when it connects', LIMIT, async () => {
    const { relay } = await workspace(engine, 'mail');
    const [al, bo] = await agents(relay, 'al', 'bo');
    const texts = ['one', 'two', 'three'];
    for (const text of texts) await al.dm('bo', text);
    const waiting = await bo.deliveries();
    assert.deepEqual(waiting.map((d) => [d.seq, d.status, d.message.text]), texts.map((t, i) => [i + 1, 'queued', t]));
    const got = [];
    bo.connect();
    const all = within(5_000, 'three messages', new Promise((resolve) => {
      bo.on.dmReceived((event) => got.push(event.message.text) === 3 && resolve());
    }));
    await all;
    assert.deepEqual(got, texts);
    await eventually(5_000, 'everything is acknowledged', async () => (await bo.deliveries()).length === 0);
    assert.equal((await bo.deliveries({ status: 'acked' })).length, 3);
    assert.deepEqual((await bo.inbox()).unreadDms, []);
    await bo.disconnect();
  });

  test('events of a connected agent', LIMIT, async () => {
    const { relay } = await workspace(engine, 'events');
    const [al, bo] = await agents(relay, 'al', 'bo');
    await connected(relay, bo);
    const created = nextEvent(bo, 'message.created');
    const message = await al.send('general', 'hi all');
    assert.deepEqual(
      (({ channel, message: { id, agentName, text, attachments } }) => [channel, id, agentName, text, attachments])(await created),
      ['general', message.id, 'al', 'hi all', []],
    );
    const threaded = nextEvent(bo, 'thread.reply');
    await al.reply(message.id, 'more');
    assert.deepEqual((({ parentId, message: { text } }) => [parentId, text])(await threaded), [message.id, 'more']);
    const grouped = nextEvent(bo, 'group_dm.received');
    const group = await al.dms.createGroup({ participants: ['bo'] });
    await al.dms.sendMessage(group.id, 'us', { mode: 'steer' });
    assert.deepEqual((({ conversationId, message: m }) => [conversationId, m.text, m.injectionMode])(await grouped), [group.id, 'us', 'steer']);
    const own = await bo.send('general', 'mine');
    const reacted = nextEvent(bo, 'message.reacted');
    await al.react(own.id, 'ok');
    assert.deepEqual((({ messageId, agentName, action }) => [messageId, agentName, action])(await reacted), [own.id, 'al', 'added']);
    const read = nextEvent(bo, 'message.read');
    await al.markRead(own.id);
    assert.equal((await read).agentName, 'al');
    await bo.disconnect();
    assert.equal((await relay.agents.get('bo')).status, 'offline');
  });

  test('an action hosted by an SDK agent', LIMIT, async () => {
    const { relay } = await workspace(engine, 'actions');
    const [al, bo] = await agents(relay, 'al', 'bo');
    await Promise.all([connected(relay, al), connected(relay, bo)]);
    const made = await relay.actions.register({ name: 'add', description: 'adds', handlerAgent: 'bo', availableTo: ['al'] });
    assert.deepEqual([made.handlerAgent, made.availableTo, made.isActive], ['bo', ['al'], true]);
    assert.deepEqual((await relay.actions.list()).map((a) => a.name), ['add']);
    bo.on.actionInvoked(async (event) => {
      const { a, b } = event.input;
      const data = a === 0 ? { error: 'no zero' } : { output: { sum: a + b }, durationMs: 3 };
      await bo.actions.completeInvocation('add', event.invocationId, data);
    });
    const completed = nextEvent(al, 'action.completed');
    const invoked = await al.actions.invoke('add', { a: 2, b: 3 });
    assert.deepEqual([invoked.actionName, invoked.handlerAgentId, invoked.status], ['add', bo.row.id, 'dispatched']);
    const event = await completed;
    assert.deepEqual([event.invocationId, event.output, event.error], [invoked.invocationId, { sum: 5 }, null]);
    const view = await al.actions.getInvocation('add', invoked.invocationId);
    assert.deepEqual([view.status, view.output, view.durationMs, view.callerName], ['completed', { sum: 5 }, 3, 'al']);
    const failed = nextEvent(al, 'action.failed');
    await al.actions.invoke('add', { a: 0, b: 1 });
    assert.equal((await failed).error, 'no zero');
    await assert.rejects(bo.actions.invoke('add', {}), { rawCode: 'action_denied', statusCode: 403 });
    await assert.rejects(al.actions.invoke('nope', {}), { rawCode: 'action_not_found' });
    await relay.actions.delete('add');
    assert.deepEqual(await relay.actions.list(), []);
    await Promise.all([al.disconnect(), bo.disconnect()]);
  });

  test('a node runs actions, spawns and releases', LIMIT, async () => {
    const { relay, apiKey } = await workspace(engine, 'nodes');
    const [al] = await agents(relay, 'al');
    const invokes = [];
    const node = await startNode(engine.url, apiKey, 'sidecar', [{ name: 'greet' }, { name: 'spawn:codex', kind: 'spawn' }], (frame) => {
      invokes.push(frame);
      return { output: frame.action === 'release' ? { released: true } : { hello: frame.input.name } };
    });
    const roster = await eventually(5_000, 'handlers are live', async () => {
      const row = await relay.nodes.get('sidecar');
      return row.handlersLive && row;
    });
    assert.deepEqual([roster.status, roster.live, roster.capabilities.map((c) => c.name)], ['online', true, ['greet', 'spawn:codex']]);
    assert.deepEqual((await relay.nodes.list({ capability: 'greet' })).map((n) => n.name), ['sidecar']);
    const done = async (name, id) =>
      eventually(5_000, `${name} is done`, async () => {
        const view = await al.actions.getInvocation(name, id);
        return view.status === 'completed' && view;
      });
    const greeting = await al.actions.invoke('greet', { name: 'al' });
    assert.deepEqual((await done('greet', greeting.invocationId)).output, { hello: 'al' });
    const spawned = await relay.agents.spawn({ name: 'w1', cli: 'codex', task: 'work' });
    assert.deepEqual([spawned.status, spawned.dispatchedNodeId], ['dispatched', 'node_sidecar']);
    await done('spawn', spawned.invocationId);
    assert.deepEqual([invokes[1].action, invokes[1].input.task], ['spawn:codex', 'work']);
    const { data } = await node.ask({ type: 'agent.register', name: 'w1' });
    await al.dm('w1', 'welcome');
    const frame = await eventually(5_000, 'the delivery', () => node.deliveries[0]);
    assert.deepEqual([frame.agent, frame.agent_id, frame.seq, frame.payload.type], ['w1', data.agent_id, 1, 'dm.received']);
    assert.deepEqual((await relay.nodes.listAgents('sidecar')).map((b) => b.agentName), ['w1']);
    await relay.nodes.bindAgent('sidecar', { agentName: 'al' });
    assert.deepEqual((await relay.nodes.listAgents('sidecar')).map((b) => b.agentName), ['al', 'w1']);
    await relay.nodes.unbindAgent('sidecar', 'al');
    const released = await relay.agents.release({ name: 'w1', reason: 'done' });
    await done('release', released.invocationId);
    assert.deepEqual(invokes.at(-1).input, { name: 'w1', reason: 'done' });
    await assert.rejects(relay.as(data.token).me(), { code: 'agent_token_invalid' });
    assert.equal((await relay.agents.get('w1')).status, 'offline');
    await assert.rejects(relay.agents.release({ name: 'al' }), { rawCode: 'agent_not_node_bound' });
    await assert.rejects(relay.agents.spawn({ name: 'w2', cli: 'gemini', task: '' }), { rawCode: 'handler_unavailable' });
    node.close();
    await eventually(5_000, 'the node is gone', async () => (await relay.nodes.get('sidecar')).live === false);
  });

  test('one message per idempotency key, also when the answer is lost', LIMIT, async () => {
    const { relay } = await workspace(engine, 'once');
    const [al] = await agents(relay, 'al');
    const first = await al.send('general', 'hi', { idempotencyKey: 'k1' });
    assert.equal((await al.send('general', 'hi', { idempotencyKey: 'k1' })).id, first.id);
    await assert.rejects(al.send('general', 'other', { idempotencyKey: 'k1' }), { rawCode: 'idempotency_key_reused' });
    const path = '/v1/channels/:name/messages';
    await engine.faults({ route: path, method: 'POST', kind: 'lose_answer' });
    const repeated = await al.send('general', 'lost', { idempotencyKey: 'k2' });
    await engine.faults({ route: path, method: 'POST', kind: 'status', status: 503, count: 1 });
    await al.send('general', 'late');
    await engine.faults();
    assert.deepEqual((await al.messages('general')).map((m) => m.text), ['late', 'lost', 'hi']);
    assert.equal((await al.messages('general'))[1].id, repeated.id);
  });

  test('faults reach the client as they are', LIMIT, async () => {
    const { relay } = await workspace(engine, 'faults');
    const unwearied = new RelayCast({ apiKey: relay.client.apiKey, baseUrl: engine.url, retryPolicy: { maxRetries: 0 } });
    const route = '/v1/agents';
    await engine.faults({ route, kind: 'status', status: 429, code: 'rate_limit_exceeded', retry_after: 7 });
    await assert.rejects(unwearied.agents.list(), { code: 'rate_limited', statusCode: 429, retryable: true });
    await engine.faults({ route, kind: 'garbage' });
    await assert.rejects(unwearied.agents.list(), { code: 'transport_error', statusCode: 200 });
    await engine.faults({ route, kind: 'cut' });
    await assert.rejects(unwearied.agents.list(), { code: 'transport_error' });
    await engine.faults({ route, kind: 'delay', ms: 120 });
    const begun = Date.now();
    assert.deepEqual(await unwearied.agents.list(), []);
    assert.ok(Date.now() - begun >= 115, `${Date.now() - begun} ms`);
    await engine.faults();
  });
});

test('what was accepted survives kill -9', LIMIT, async () => {
  const dir = await mkdtemp(join(tmpdir(), 'engine-'));
  let engine = await startEngine('--data', dir);
  const { relay, apiKey } = await workspace(engine, 'durable');
  const [al, bo] = await agents(relay, 'al', 'bo');
  const sent = [];
  for (let i = 0; i < 20; i += 1) sent.push((await al.dm('bo', `m${i}`)).message.id);
  await engine.kill();
  engine = await startEngine('--data', dir);
  const later = new RelayCast({ apiKey, baseUrl: engine.url });
  const back = later.as(bo.client.apiKey, { autoHeartbeatMs: false });
  assert.deepEqual((await back.deliveries()).map((d) => d.messageId), sent);
  assert.equal((await later.agents.list()).length, 2);
  const more = await later.as(al.client.apiKey).dm('bo', 'after');
  assert.ok(BigInt(more.message.id) > BigInt(sent.at(-1)));
  assert.equal((await back.deliveries()).at(-1).seq, 21);
  await engine.stop();
  await rm(dir, { recursive: true });
});
