// The published @agent-relay/harness-driver starts, drives and ends our broker. Its terminals: driver_terminal.test.js; its
// events: driver_events.test.js; its agents' handles: driver_handles.test.js.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import {
  BrokerDriver, HarnessDriverClient, HarnessDriverProtocolError, registerDriverActions,
} from '@agent-relay/harness-driver';
import { Driven, LIMIT, READER } from './driven.js';
import { HERE } from './fleet.js';

test('every public method of the client is driven here', () => {
  const files = readdirSync(HERE).filter((name) => /^driver.*\.test\.js$|^driven\.js$/.test(name));
  const text = files.map((name) => readFileSync(join(HERE, name), 'utf8')).join('\n');
  const inner = ['constructor', 'runBeforeSpawn', 'spawnCliWithContext', 'emitAfterSpawn', 'notifyBrokerExit', 'installManagedBrokerExitHandler'];
  const methods = [HarnessDriverClient.prototype, HarnessDriverClient]
    .flatMap((place) => Object.getOwnPropertyNames(place))
    .filter((name) => !inner.includes(name) && !['length', 'name', 'prototype'].includes(name));
  assert.ok(methods.length >= 40, methods.join());
  assert.deepEqual(methods.filter((name) => !text.includes(`.${name}`)), []);
});

describe('the driver', () => {
  let driven;
  let driver;
  let fleet;
  before(async () => {
    driven = await Driven.start('driven');
    ({ driver, fleet } = driven);
  }, LIMIT);
  after(() => driven?.stop(), LIMIT);

  const gone = (name) => ({ name: 'HarnessDriverProtocolError', code: 'agent_not_found', status: 404, message: new RegExp(name) });
  const listed = async (name) => (await driver.listAgents()).find((agent) => agent.name === name);

  test('knows its session', LIMIT, async () => {
    const session = await driver.getSession();
    assert.deepEqual(
      [session.workspace_key, session.relay_base_url, session.mode, session.protocol_version, session.broker_version],
      [fleet.key, fleet.engine.url, 'persist', 2, '9.1.6'],
    );
    assert.equal(driver.workspaceKey, fleet.key);
    assert.equal((await driver.healthCheck()).service, 'agent-relay-listen');
    assert.equal((await driver.getConfig()).workspaceKey, fleet.key);
    const renewed = await driver.renewLease();
    assert.deepEqual([renewed.renewed, renewed.expires_in_secs], [true, 0], 'a persistent broker has no lease');
    assert.deepEqual(await driver.preflight([{ name: 'p1', cli: 'claude' }, { name: 'p2', cli: 'codex' }]), { queued: 2 });
    assert.deepEqual((await fleet.relay.agents.list()).filter(({ name }) => /^p\d$/.test(name)), [], 'nobody is registered');
  });

  test('another client connects by connection.json and leaves the broker alone', LIMIT, async () => {
    const other = HarnessDriverClient.connect({ cwd: driven.cwd });
    assert.equal(other.baseUrl, driver.baseUrl);
    assert.equal(driven.connection().pid, driver.brokerPid);
    assert.equal((await other.getSession()).workspace_key, fleet.key);
    assert.equal(HarnessDriverClient.connect({ connectionPath: driven.connectionPath }).brokerPid, undefined);
    await other.shutdown();
    other.disconnect();
    assert.equal((await driver.healthCheck()).status, 'ok', 'it is not its own to end');
    assert.throws(() => HarnessDriverClient.connect({ cwd: fleet.dir }), /No running broker found/);
    const wrong = new HarnessDriverClient({ baseUrl: driver.baseUrl, apiKey: 'br_wrong' });
    await assert.rejects(wrong.getSession(), { status: 401, code: 'unauthorized' });
  });

  test('spawns, lists and releases', LIMIT, async () => {
    const agent = await driver.spawnPty({ name: 'al', cli: READER, channels: ['general'], team: 'red', model: 'm1' });
    assert.deepEqual([agent.name, agent.runtime, typeof agent.pid], ['al', 'pty', 'number']);
    const row = await listed('al');
    assert.deepEqual(
      [row.runtime, row.cli, row.model, row.team, row.channels, row.parent, row.pid, row.current_state],
      ['pty', READER, 'm1', 'red', ['general'], 'Dashboard', agent.pid, 'working'],
    );
    const status = await driver.getStatus();
    assert.deepEqual([status.agent_count, status.agents[0].name, status.auth.authenticated], [1, 'al', true]);
    assert.equal((await fleet.relay.agents.get('al')).status, 'online');
    await assert.rejects(driver.spawnPty({ name: 'al', cli: READER }), { status: 500, message: /already exists/ });
    await assert.rejects(driver.spawnPty({ name: 'nobody', cli: '/no/such/program' }), { status: 500, message: /no\/such\/program/ });
    await assert.rejects(driver.spawnPty({ name: 'a/b', cli: READER }), { status: 400 });
    await assert.rejects(driver.spawnPty({ name: 'moody', cli: READER, spawnMode: 'sometimes' }), { status: 400, message: /unsupported spawnMode/ });
    assert.deepEqual((await driver.listAgents()).map(({ name }) => name), ['al']);
    assert.equal((await driver.release('al', 'enough')).name, 'al');
    assert.deepEqual(await driver.listAgents(), []);
    assert.equal((await driver.release('al')).name, 'al', 'again');
    await driven.event('al is released', ({ kind, name }) => kind === 'agent_released' && name === 'al');
    await fleet.until('the engine knows', async () => (await fleet.relay.agents.get('al')).status === 'offline');
  });

  test('listeners may change a spawn and hear of every step', LIMIT, async () => {
    const heard = [];
    const offs = [
      driver.addListener('beforeAgentSpawn', ({ kind, input }) => {
        heard.push(['before', kind, input.name]);
        return { channels: ['patched'], task: 'the task of the listener' };
      }),
      driver.addListener('afterAgentSpawn', ({ result, error }) => heard.push(['after', result?.name ?? error.status])),
      driver.addListener('beforeAgentRelease', ({ name, reason }) => heard.push(['releasing', name, reason])),
    ];
    const released = ({ name }) => heard.push(['released', name]);
    driver.addListener('afterAgentRelease', released);
    const agent = await driver.spawnCli({ name: 'patched', cli: READER, channels: ['general'] });
    assert.deepEqual((await listed('patched')).channels, ['patched']);
    await fleet.reads('patched', 'the task of the listener');
    await agent.release('over');
    await assert.rejects(driver.spawnCli({ name: ' ', cli: READER }), { status: 400 });
    offs.forEach((off) => off());
    driver.removeListener('afterAgentRelease', released);
    await driver.release('patched');
    assert.deepEqual(heard, [
      ['before', 'cli', 'patched'], ['after', 'patched'], ['releasing', 'patched', 'over'], ['released', 'patched'],
      ['before', 'cli', ' '], ['after', 400],
    ]);
  });

  test('messages come from near and far, to one and to a channel', LIMIT, async () => {
    await Promise.all(['a1', 'a2'].map((name) => driver.spawnPty({ name, cli: READER, channels: ['general'] })));
    const sent = await driver.sendMessage({ to: 'a1', from: 'me', text: 'from near', priority: 1, data: { ignored: true } });
    assert.match(sent.event_id, /^http_[0-9a-f]{32}$/);
    assert.deepEqual(sent.targets, ['a1']);
    assert.match(await fleet.reads('a1', 'from near'), /from me/);
    assert.deepEqual((await driver.sendMessage({ to: '@A1', from: 'a2', text: 'from a2' })).targets, ['a1']);
    await fleet.reads('a1', 'from a2');
    await fleet.bob.dm('a1', 'from far');
    await fleet.reads('a1', 'from far');
    const both = await driver.sendMessage({ to: '#general', text: 'to all', threadId: 't1', mode: 'steer' });
    assert.deepEqual(both.targets.sort(), ['a1', 'a2']);
    await Promise.all(['a1', 'a2'].map((name) => fleet.reads(name, 'to all')));
    const own = await driver.sendMessage({ to: '#general', from: 'a1', text: 'not to myself' });
    assert.deepEqual(own.targets, ['a2']);
    await fleet.reads('a2', 'not to myself');
    assert.ok(!(await fleet.seen('a1.read')).includes('not to myself'));
    const far = await driver.sendMessage({ to: 'bob', text: 'to far' });
    assert.match(far.event_id, /^http_/);
    await fleet.until('bob has it', async () => {
      const [talk] = await fleet.bob.dms.conversations();
      const messages = await fleet.bob.dms.messages(talk.id);
      assert.ok(messages.some(({ text }) => text === 'to far'), JSON.stringify(messages));
      return true;
    });
    await assert.rejects(driver.sendMessage({ to: 'nobody-at-all', text: 'x' }), { status: 404, message: /nobody-at-all/ });
    await assert.rejects(driver.sendMessage({ to: '', text: 'x' }), { status: 400, message: 'Missing required fields: to, message' });
    await assert.rejects(driver.sendMessage({ to: 'a1', text: 'x', workspaceId: 'ws_other' }), { status: 400, message: /not attached/ });
  });

  test('channels come and go', LIMIT, async () => {
    await fleet.bob.channels.create({ name: 'dev' });
    await driver.subscribeChannels('a1', ['dev', 'GENERAL']);
    assert.deepEqual((await listed('a1')).channels, ['general', 'dev'], 'the first spelling stays');
    await driven.event('the change', ({ kind, name }) => kind === 'channel_subscribed' && name === 'a1');
    assert.deepEqual((await driver.sendMessage({ to: '#dev', text: 'for developers' })).targets, ['a1']);
    await fleet.reads('a1', 'for developers');
    await fleet.until('the engine knows', async () =>
      (await fleet.bob.channels.members('dev')).some(({ agentName }) => agentName === 'a1'));
    await fleet.bob.send('dev', 'developers from far');
    await fleet.reads('a1', 'developers from far');
    await driver.unsubscribeChannels('a1', ['dev']);
    assert.deepEqual((await listed('a1')).channels, ['general']);
    await driven.event('the change', ({ kind, name }) => kind === 'channel_unsubscribed' && name === 'a1');
    await fleet.until('the engine knows', async () =>
      !(await fleet.bob.channels.members('dev')).some(({ agentName }) => agentName === 'a1'));
    await assert.rejects(driver.subscribeChannels('nobody', ['x']), gone('nobody'));
    await assert.rejects(driver.unsubscribeChannels('nobody', ['x']), gone('nobody'));
  });

  test('messages are held until they are flushed', LIMIT, async () => {
    const pending = async (count) => fleet.until(`${count} are pending`, async () => {
      const held = await driver.getPending('a1');
      assert.equal(held.length, count, JSON.stringify(held));
      return held;
    });
    const unread = async (...texts) => {
      const read = await fleet.seen('a1.read');
      assert.deepEqual(texts.filter((text) => read.includes(text)), []);
    };
    assert.equal(await driver.getInboundDeliveryMode('a1'), 'auto_inject');
    assert.deepEqual(await driver.setInboundDeliveryMode('a1', 'manual_flush'), { mode: 'manual_flush', flushed: 0 });
    assert.equal(await driver.getInboundDeliveryMode('a1'), 'manual_flush');
    await driver.sendMessage({ to: 'a1', from: 'me', text: 'held near', threadId: 't7' });
    await pending(1);
    await fleet.bob.dm('a1', 'held far');
    const [near, far] = await pending(2);
    assert.deepEqual([near.from, near.body, near.target, near.mode, near.priority, near.thread_id], ['me', 'held near', 'a1', 'wait', 2, 't7']);
    assert.match(near.event_id, /^http_/);
    assert.ok(near.queued_at_ms <= far.queued_at_ms);
    assert.deepEqual([far.from, far.body], ['bob', 'held far']);
    await unread('held near', 'held far');
    assert.deepEqual(await driver.flushPending('a1'), { flushed: 2 });
    const read = await fleet.reads('a1', 'held far');
    assert.ok(read.indexOf('held near') < read.indexOf('held far'), read);
    await pending(0);
    assert.equal(await driver.getInboundDeliveryMode('a1'), 'manual_flush', 'a flush leaves the mode');
    await driver.sendMessage({ to: 'a1', text: 'held again' });
    await pending(1);
    await unread('held again');
    assert.deepEqual(await driver.setInboundDeliveryMode('a1', 'auto_inject'), { mode: 'auto_inject', flushed: 1 });
    await fleet.reads('a1', 'held again');
    assert.deepEqual(await driver.flushPending('a1'), { flushed: 0 });
    const drained = driven.events.filter(({ kind }) => kind === 'agent_pending_drained').map(({ name, count, reason }) => [name, count, reason]);
    assert.deepEqual(drained, [['a1', 2, 'explicit_flush'], ['a1', 1, 'delivery_mode_transition']]);
    for (const call of ['getInboundDeliveryMode', 'getPending', 'flushPending']) await assert.rejects(driver[call]('nobody'), gone('nobody'));
    await assert.rejects(driver.setInboundDeliveryMode('nobody', 'manual_flush'), gone('nobody'));
    await assert.rejects(driver.setInboundDeliveryMode('a1', 'later'), { status: 400, code: 'invalid_mode' });
  });

  test('the figures are true', LIMIT, async () => {
    const metrics = await driver.getMetrics();
    assert.deepEqual(metrics.agents.map(({ name }) => name), ['a1', 'a2']);
    assert.ok(metrics.agents.every(({ pid, memory_bytes: bytes }) => pid > 0 && bytes > 10_000), JSON.stringify(metrics));
    assert.equal(metrics.broker.active_agents, 2);
    assert.ok(metrics.broker.total_agents_spawned >= 4, JSON.stringify(metrics));
    const one = await driver.getMetrics('a2');
    assert.deepEqual(one.agents.map(({ name, pid }) => [name, pid]), [['a2', (await listed('a2')).pid]]);
    await assert.rejects(driver.getMetrics('nobody'), { status: 404, message: "unknown worker 'nobody'" });
  });

  test('its broker driver and its actions work on the same broker', LIMIT, async () => {
    const broker = new BrokerDriver({ client: driver });
    const runtime = await broker.spawn({ name: 'managed', cli: READER, task: 'be managed' });
    assert.deepEqual(runtime.delivery, { mode: 'managed' });
    await fleet.reads('managed', 'be managed');
    assert.equal(await runtime.status(), 'busy');
    await runtime.release('done');
    assert.equal(await broker.status('managed'), 'offline');
    const actions = new Map();
    const registry = { register: (action) => { actions.set(action.name, action); return { unregister: () => actions.delete(action.name) }; } };
    const { unregister } = registerDriverActions(registry, broker);
    const act = (name, input) => actions.get(`agent.${name}`).handler(input);
    assert.equal((await act('create', { name: 'acted', cli: READER })).agent.name, 'acted');
    assert.deepEqual(await act('status', { name: 'acted' }), { name: 'acted', status: 'busy' });
    assert.deepEqual(await act('release', { name: 'acted' }), { name: 'acted', released: true });
    assert.deepEqual(await act('status', { name: 'acted' }), { name: 'acted', status: 'offline' });
    unregister();
    await broker.release('acted');
  });

  test('ends the broker in time and without a trace', LIMIT, async () => {
    const { pid } = await listed('a1');
    const ended = new Promise((resolve) => { driver.onBrokerExit(resolve); });
    const begun = performance.now();
    await driver.shutdown();
    const { code, signal, pid: broker } = await ended;
    assert.deepEqual([code, signal], [0, null]);
    assert.ok(performance.now() - begun < 5_000, `${performance.now() - begun} ms`);
    assert.ok(!existsSync(driven.connectionPath));
    for (const one of [pid, broker]) assert.throws(() => process.kill(one, 0), { code: 'ESRCH' });
    await fleet.until('the engine knows', async () => (await fleet.relay.nodes.list()).every((node) => !node.live));
    await assert.rejects(driver.getSession(), (error) => !(error instanceof HarnessDriverProtocolError));
    assert.equal((await new Promise((resolve) => { driver.onBrokerExit(resolve); })).code, 0, 'who asks late is told too');
  });
});

describe('a broker without --persist', () => {
  let driven;
  const bin = () => join(driven.fleet.dir, 'bin');
  before(async () => {
    driven = await Driven.start('brief', { binaryArgs: {} });
  }, LIMIT);
  after(() => driven?.stop(), LIMIT);

  test('has a lease, which is renewed', LIMIT, async () => {
    const { driver } = driven;
    assert.equal((await driver.getSession()).mode, 'ephemeral');
    const renewed = await driver.renewLease();
    assert.deepEqual([renewed.renewed, renewed.expires_in_secs], [true, 120]);
    assert.ok(!existsSync(driven.connectionPath), 'its state is nowhere near the project');
  });

  test('starts the known programs by name', LIMIT, async () => {
    const { driver, fleet } = driven;
    mkdirSync(bin());
    for (const name of ['claude', 'opencode']) {
      writeFileSync(join(bin(), name), `#!/bin/sh\nprintf '%s\\n' "$0" "$@" > "$FLEET_SEEN/$RELAY_AGENT_NAME.argv"\nexec ${READER}\n`, { mode: 0o755 });
    }
    const harnessConfig = (name) => ({ runtime: 'pty', command: join(bin(), name), args: [] });
    const claude = await driver.spawnClaude({ name: 'cl', harnessConfig: harnessConfig('claude') });
    const code = await driver.spawnOpencode({ name: 'oc', harnessConfig: harnessConfig('opencode') });
    assert.deepEqual([claude.runtime, code.runtime], ['pty', 'pty']);
    for (const [name, cli] of [['cl', 'claude'], ['oc', 'opencode']]) {
      await fleet.until(`${name} runs`, async () => (await fleet.seen(`${name}.argv`)).includes(`/${cli}`));
    }
    assert.deepEqual((await driver.listAgents()).map(({ name, cli }) => [name, cli]).sort(), [['cl', 'claude'], ['oc', 'opencode']]);
    await assert.rejects(driver.spawnHeadless({ name: 'h', cli: 'codex' }), /does not support headless transport/);
    await Promise.all(['cl', 'oc'].map((name) => driver.release(name)));
  });

  test('is ended by a signal as well', LIMIT, async () => {
    const { driver, fleet } = driven;
    const ended = new Promise((resolve) => { driver.onBrokerExit(resolve); });
    const off = driver.onBrokerExit(() => assert.fail('it was taken back'));
    off();
    process.kill(driver.brokerPid, 'SIGTERM');
    assert.deepEqual([(await ended).code, (await ended).signal], [0, null]);
    assert.equal(driver.brokerPid, undefined);
    const left = readdirSync(fleet.dir, { recursive: true }).filter((path) => path.endsWith('connection.json'));
    assert.deepEqual(left, []);
  });
});
