// `agent-relay local up`, `down`, `status` and `agent` as published, on our broker.
import assert from 'node:assert/strict';
import { readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { HERE, freePort } from './fleet.js';
import { Desk } from './project.js';

/** Some run the CLI a dozen times, and each start of it may take seconds on two cores that others use. */
const LIMIT = { timeout: 150_000 };
const READER = join(HERE, 'nodes/reader.sh');

// Each test has a directory of its own, and most of the time goes to the start of the CLI.
describe('the CLI', { concurrency: 2 }, () => {
  let desk;
  before(async () => { desk = await Desk.start('cli'); }, LIMIT);
  after(() => desk?.stop(), LIMIT);

  const pidOf = async (place) => (await desk.connection(desk.where(place))).pid;
  const file = (place) => join(desk.where(place).state, 'connection.json');
  const isThere = (path) => stat(path).then(() => true, () => false);
  const gone = (pid) => desk.until(`process ${pid} is gone`, () => !desk.runs(pid));

  test('starts a broker in the foreground, shows it, and stops it with itself', LIMIT, async () => {
    assert.match(await desk.does('front', ['local', 'status']), /^Status: STOPPED$/m);
    assert.match(await desk.does('front', ['local', 'down']), /^Not running$/m);
    const up = await desk.up('front');
    assert.match(up.output, new RegExp(`^Workspace Key: ${desk.key}$`, 'm'));
    const pid = await pidOf('front');
    const [local, waited, composite, metrics] = await Promise.all([
      desk.does('front', ['local', 'status']), desk.does('front', ['local', 'status', '--wait-for', '10']),
      desk.does('front', ['status']), desk.gives('front', ['local', 'metrics']),
    ]);
    for (const status of [local, waited]) {
      assert.match(status, /^Status: RUNNING$/m);
      assert.match(status, new RegExp(`^PID: ${pid}$`, 'm'));
      assert.match(status, /^Agents: 0$/m);
      assert.match(status, new RegExp(`^Workspace Key: ${desk.key}$`, 'm'));
    }
    assert.match(composite, /^Local broker: running \(http:\/\/127\.0\.0\.1:\d+\)$/m);
    assert.deepEqual([metrics.agents, metrics.broker.active_agents], [[], 0]);
    process.kill(up.pid, 'SIGINT');
    await up.ended;
    assert.equal(up.child.exitCode, 0, up.output);
    await gone(pid);
    assert.equal(await isThere(file('front')), false);
  });

  const agent = (...args) => ['local', 'agent', ...args];

  test('spawns, lists and releases agents', LIMIT, async () => {
    await desk.up('agents');
    const spawn = agent('spawn', READER, '--name', 'al', '--channels', 'general', 'ops', '--task', 'read this');
    assert.match(await desk.does('agents', spawn), /^Spawned al /m);
    const [al] = await desk.gives('agents', agent('list'));
    assert.deepEqual([al.name, al.runtime, al.cli, al.channels], ['al', 'pty', READER, ['general', 'ops']]);
    await desk.reads('al', 'read this');
    const metrics = await desk.gives('agents', ['local', 'metrics', '--agent', 'al']);
    assert.deepEqual([metrics.agents.map(({ name }) => name), metrics.broker.total_agents_spawned], [['al'], 1]);
    assert.equal((await desk.relay.agents.get('al')).status, 'online');
    assert.match(await desk.does('agents', agent('release', 'al')), /^Released al\.$/m);
    assert.equal((await desk.relay.agents.get('al')).status, 'offline');
    const refused = await desk.ask('agents', agent('spawn', '/no/such/program', '--name', 'bad'));
    assert.deepEqual([refused.code, refused.output.includes('/no/such/program')], [1, true], refused.output);
    assert.deepEqual(await desk.gives('agents', agent('list')), []);
  });

  test('holds and flushes what comes for an agent, and types its model', LIMIT, async () => {
    await desk.up('held');
    const driver = await desk.driver('held');
    await driver.spawnPty({ name: 'di', cli: READER });
    assert.equal((await desk.gives('held', agent('message', 'hold', 'di'))).mode, 'manual_flush');
    await desk.bob.dm('di', 'held for now');
    await desk.until('it is pending', async () => (await driver.getPending('di')).length === 1);
    assert.equal((await desk.gives('held', agent('message', 'flush', 'di'))).flushed, 1);
    await desk.reads('di', 'held for now');
    assert.deepEqual(await desk.gives('held', agent('message', 'auto', 'di')), { name: 'di', mode: 'auto_inject', flushed: 0 });
    assert.match(await desk.does('held', agent('set-model', 'di', 'bigger')), /^Sent `\/model bigger` to di/m);
    await desk.reads('di', '/model bigger');
    for (const args of [agent('message', 'hold', 'nobody'), ['local', 'metrics', '--agent', 'nobody']]) {
      const refused = await desk.ask('held', args);
      assert.equal(refused.code, 1, refused.output);
      assert.match(refused.output, /no worker named 'nobody'|unknown worker 'nobody'/);
    }
  });

  test('streams events and the output of one agent', LIMIT, async () => {
    await desk.up('tail', [], { AGENT_RELAY_DISABLE_IMPLICIT_FLEET_NODE: '1' });
    const driver = await desk.driver('tail');
    await driver.spawnPty({ name: 'cy', cli: READER });
    const all = desk.cli('tail', ['local', 'tail']);
    const one = desk.cli('tail', ['local', 'tail', '--agent', 'cy']);
    await desk.until('both listen', async () => {
      // `up` listens too.
      assert.equal((await driver.healthCheck()).wsConnections, 3);
      return true;
    });
    await driver.sendInput('cy', 'seen by both\r');
    await desk.until('the output comes', () => one.output.includes('seen by both') && all.output.includes('seen by both'));
    await driver.release('cy');
    await desk.until('the release comes', () => /"kind":"agent_(released|exited)"/.test(all.output));
    process.kill(all.pid, 'SIGINT');
    await all.ended;
    assert.equal(all.child.exitCode, 0, all.output);
    process.kill(one.pid, 'SIGTERM');
    await one.ended;
  });

  test('starts a broker in the background, refuses a second one, and stops it', LIMIT, async () => {
    const up = ['local', 'up', '--workspace-key', desk.key];
    const started = await desk.does('back', [...up, '--background'], await desk.upEnv());
    const pid = await pidOf('back');
    assert.match(started, new RegExp(`^Broker PID: ${pid}$`, 'm'));
    for (const args of [up, [...up, '--background'], [...up, '--broker-name', 'other']]) {
      const again = await desk.ask('back', args, await desk.upEnv());
      assert.equal(again.code, 1, again.output);
      assert.match(again.output, new RegExp(`Broker already running for this project \\(pid: ${pid}\\)`));
    }
    assert.equal(await pidOf('back'), pid);
    assert.match(await desk.does('back', ['local', 'down']), /^Stopped$/m);
    assert.ok(!desk.runs(pid), 'down waits for the end');
    assert.match(await desk.does('back', ['local', 'status']), /^Status: STOPPED$/m);
    assert.match(await desk.does('back', ['local', 'down', '--force']), /^Cleaned up \(was not running\)$/m);
  });

  test('refuses a second broker even when the connection file is lost', LIMIT, async () => {
    await desk.up('lost');
    const pid = await pidOf('lost');
    await rm(file('lost'));
    const again = await desk.ask('lost', ['local', 'up', '--workspace-key', desk.key], await desk.upEnv());
    assert.equal(again.code, 1, again.output);
    assert.match(again.output, /Broker already running for this project \(lock: .*\.agentworkforce\/relay\)\./);
    assert.ok(desk.runs(pid));
  });

  test('has two brokers in one directory under two names', LIMIT, async () => {
    const other = join(desk.dir, 'other-state');
    const first = await desk.up('twice');
    await desk.up('twice', ['--broker-name', 'second', '--state-dir', other]);
    const there = JSON.parse(await readFile(join(other, 'connection.json'), 'utf8'));
    desk.watch(there.pid);
    const pid = await pidOf('twice');
    assert.notEqual(there.pid, pid);
    const states = await Promise.all([['local', 'status'], ['local', 'status', '--state-dir', other]].map((args) => desk.does('twice', args)));
    assert.match(states[0], new RegExp(`^PID: ${pid}$`, 'm'));
    assert.match(states[1], new RegExp(`^PID: ${there.pid}$`, 'm'));
    process.kill(first.pid, 'SIGTERM');
    await first.ended;
    assert.equal(first.child.exitCode, 0, first.output);
    await gone(pid);
    assert.match(await desk.does('twice', ['local', 'status', '--state-dir', other]), /^Status: RUNNING$/m);
    assert.match(await desk.does('twice', ['local', 'down', '--state-dir', other]), /^Stopped$/m);
  });

  test('starts again where a broker has died', LIMIT, async () => {
    await desk.up('stale');
    const dead = await pidOf('stale');
    const left = await readFile(file('stale'), 'utf8');
    process.kill(dead, 'SIGKILL');
    await gone(dead);
    assert.ok(await isThere(file('stale')));
    const list = await desk.ask('stale', ['local', 'agent', 'list']);
    assert.deepEqual([list.code, list.output.includes(`dead pid ${dead}`)], [1, true], list.output);
    assert.match(await desk.does('stale', ['local', 'status']), /^Status: STOPPED$/m);
    await writeFile(file('stale'), left);
    assert.match(await desk.does('stale', ['local', 'down']), /^Cleaned up stale state \(process was not running\)$/m);
    await writeFile(file('stale'), left);
    await desk.up('stale');
    assert.notEqual(await pidOf('stale'), dead);
    assert.match(await desk.does('stale', ['local', 'down']), /^Stopped$/m);
  });

  test('ends one that hangs by force, and only by force', LIMIT, async () => {
    await desk.up('stuck');
    const stuck = await pidOf('stuck');
    await desk.pauseBroker(desk.where('stuck'));
    const down = ['local', 'down', '--timeout', '300'];
    assert.match(await desk.does('stuck', down), /^Graceful shutdown timed out after 300ms\. Use --force to kill\.$/m);
    assert.ok(desk.runs(stuck));
    assert.match(await desk.does('stuck', [...down, '--force']), /forcing\.\.\.\nStopped$/m);
    assert.ok(!desk.runs(stuck));
    await desk.up('stuck');
    assert.match(await desk.does('stuck', ['local', 'down', '--force']), /\)\.\.\.\nStopped$/m);
  });

  test('says why it cannot start, and leaves nothing behind', LIMIT, async () => {
    const up = ['local', 'up', '--workspace-key'];
    const asked = await Promise.all([
      desk.ask('far', [...up, desk.key], await desk.upEnv({ RELAY_BASE_URL: `http://127.0.0.1:${await freePort()}` })),
      desk.ask('wrong', [...up, 'rk_live_00000000000000000000000000000000'], await desk.upEnv()),
    ]);
    assert.deepEqual(asked.map(({ code }) => code), [1, 1], JSON.stringify(asked));
    assert.match(asked[0].output, /Failed to start broker: [^]*failed to initialize relaycast session/);
    assert.match(asked[1].output, /explicit workspace key from [A-Z_]+ was rejected/);
    for (const place of ['far', 'wrong']) assert.equal(await isThere(file(place)), false);
  });
});
