// `agent-relay local agent attach` as published, at a real terminal: another broker of ours holds it.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { HERE } from './fleet.js';
import { Desk, SIZE, Stage } from './project.js';

const LIMIT = { timeout: 120_000 };
const DETACH = '\x03';
const MODES = ['view', 'drive', 'passthrough'];
const NO_SIDECAR = { AGENT_RELAY_DISABLE_IMPLICIT_FLEET_NODE: '1' };
const READER = join(HERE, 'nodes/reader.sh');

// The stage's driver hands its own environment on.
for (const name of Object.keys(process.env)) if (/^(AGENT_)?RELAY/.test(name)) delete process.env[name];

describe('the CLI at a terminal', () => {
  let desk;
  let stage;
  let driver;
  before(async () => {
    desk = await Desk.start('attach');
    [stage] = await Promise.all([Stage.open(desk), desk.up('project', [], NO_SIDECAR)]);
    driver = await desk.driver('project');
    await driver.spawnPty({ name: 'al', cli: READER, channels: ['general'] });
    await desk.until('al runs', () => desk.seen('al.lives').then(Boolean));
  }, LIMIT);
  after(() => desk?.stop(), LIMIT);

  const attach = (name, mode) => stage.sit('project', ['local', 'agent', 'attach', name, '--mode', mode]);
  const mode = () => driver.getInboundDeliveryMode('al');
  /** Runs `attach`, and waits until it has opened the websockets that it wants; besides them `up` has its own. */
  const opened = async (broker, wanted, attach) => {
    const are = (count) => desk.until(`${count} websockets are open`, async () => {
      assert.equal((await broker.healthCheck()).wsConnections, count);
      return true;
    });
    await are(1);
    const attached = await attach();
    await are(1 + wanted);
    return attached;
  };

  test('views the screen as it is and what comes later, and types nothing', LIMIT, async () => {
    await driver.sendInput('al', 'written before\r');
    await desk.reads('al', 'written before');
    const view = await opened(driver, 1, () => attach('al', 'view'));
    await view.shows('written before');
    await driver.sendInput('al', 'written later\r');
    await view.shows('written later');
    await view.keys('not for al\r');
    await driver.sendInput('al', 'and after\r');
    await desk.reads('al', 'and after');
    assert.ok(!(await desk.seen('al.read')).includes('not for al'));
    await view.keys(DETACH);
    assert.equal(await view.ended(), 0);
    assert.deepEqual((await driver.listAgents()).map(({ name }) => name), ['al']);
  });

  test('drives: holds what comes in, types what is typed, and gives back what it took', LIMIT, async () => {
    assert.equal(await mode(), 'auto_inject');
    const drive = await attach('al', 'drive');
    await drive.shows('[drive al | delivery=manual_flush | pending=0 | Ctrl+C detach]');
    assert.equal(await mode(), 'manual_flush');
    await desk.bob.dm('al', 'the first to wait');
    await drive.shows('pending=1');
    await desk.bob.dm('al', 'the second to wait');
    await drive.shows('pending=2');
    // What is typed too early waits in the terminal.
    await drive.keys('typed by häñd\r');
    await desk.reads('al', 'typed by häñd');
    await drive.shows('typed by häñd');
    assert.ok(!(await desk.seen('al.read')).includes('to wait'));
    assert.equal((await desk.gives('project', ['local', 'agent', 'message', 'flush', 'al'])).flushed, 2);
    await drive.shows('pending=0');
    const read = await desk.reads('al', 'the second to wait');
    assert.ok(read.indexOf('the first to wait') < read.indexOf('the second to wait'), read);
    assert.equal(await mode(), 'manual_flush');
    await drive.keys(DETACH);
    assert.equal(await drive.ended(), 0);
    assert.equal(await mode(), 'auto_inject');
  });

  test('drives one that was held, and leaves it held, at the size of the terminal', LIMIT, async () => {
    await desk.gives('project', ['local', 'agent', 'message', 'hold', 'al']);
    await desk.bob.dm('al', 'waits before');
    await desk.until('it waits', async () => (await driver.getPending('al')).length === 1);
    const drive = await attach('al', 'drive');
    await drive.shows('pending=1');
    await drive.keys('it listens\r');
    await desk.reads('al', 'it listens');
    const hasSize = (rows, cols) => desk.until(`al has ${rows} rows and ${cols} columns`, async () => {
      const seen = await driver.snapshot('al', 'plain');
      assert.deepEqual([seen.rows, seen.cols], [rows, cols]);
      return true;
    });
    await hasSize(...SIZE);
    await drive.resize(40, 120);
    await hasSize(40, 120);
    await drive.shows(/(\n.*){38}\n\[drive al .*\n$/);
    await drive.keys(DETACH);
    assert.equal(await drive.ended(), 0);
    assert.equal(await mode(), 'manual_flush');
    assert.equal((await desk.gives('project', ['local', 'agent', 'message', 'auto', 'al'])).flushed, 1);
    await desk.reads('al', 'waits before');
  });

  test('passes through: types what is typed while messages come in', LIMIT, async () => {
    await driver.setInboundDeliveryMode('al', 'manual_flush');
    const pass = await opened(driver, 2, () => attach('al', 'passthrough'));
    await pass.shows('[passthrough al | delivery=auto_inject | Ctrl+C detach]');
    assert.equal(await mode(), 'auto_inject');
    await desk.bob.dm('al', 'comes in between');
    await desk.reads('al', 'comes in between');
    await pass.shows('comes in between');
    await pass.keys('typed as well\r');
    await desk.reads('al', 'typed as well');
    await pass.keys(DETACH);
    assert.equal(await pass.ended(), 0);
    assert.equal(await mode(), 'manual_flush');
    await driver.setInboundDeliveryMode('al', 'auto_inject');
  });

  test('spawns an agent and drives it', LIMIT, async () => {
    const drive = await opened(driver, 2, () => stage.sit('project', ['local', 'agent', 'new', READER, '--name', 'ned']));
    await drive.shows('[drive ned | delivery=manual_flush');
    await desk.until('ned runs', () => desk.seen('ned.lives').then(Boolean));
    await drive.keys(DETACH);
    assert.equal(await drive.ended(), 0);
    await driver.release('ned');
  });

  test('says that there is no such agent, in every mode', LIMIT, async () => {
    await Promise.all(MODES.map(async (each) => {
      const asked = await desk.ask('project', ['local', 'agent', 'attach', 'nobody', '--mode', each]);
      assert.equal(asked.code, 1, asked.output);
      assert.match(asked.output, /no agent named 'nobody'/);
    }));
  });

  test('leaves in order when the broker stops in order, and its starter at the press of a key', LIMIT, async () => {
    const up = await stage.sit('other', ['local', 'up', '--workspace-key', desk.key], await desk.upEnv(NO_SIDECAR));
    await up.shows('Broker started.');
    const there = await desk.driver('other');
    await there.spawnPty({ name: 'cy', cli: READER });
    const attached = await opened(there, 5, () => Promise.all(MODES.map((each) =>
      stage.sit('other', ['local', 'agent', 'attach', 'cy', '--mode', each]))));
    await there.sendInput('cy', 'everybody sees this\r');
    await Promise.all(attached.map((each) => each.shows('everybody sees this')));
    await up.keys(DETACH);
    const all = [up, ...attached];
    const codes = await Promise.all(all.map((each) => each.ended()));
    assert.deepEqual(codes, [0, 0, 0, 0], (await Promise.all(all.map((each) => each.screen()))).join('\n'));
    await assert.rejects(there.getSession());
  });

  test('leaves with an error when the broker dies', LIMIT, async () => {
    const attached = await opened(driver, 5, () => Promise.all(MODES.map((each) => attach('al', each))));
    await driver.sendInput('al', 'for the last time\r');
    await Promise.all(attached.map((each) => each.shows('for the last time')));
    const { pid } = await desk.connection(desk.where('project'));
    process.kill(pid, 'SIGKILL');
    const codes = await Promise.all(attached.map((each) => each.ended()));
    assert.deepEqual(codes, [1, 1, 1]);
  });
});
