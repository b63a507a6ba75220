// The published @agent-relay/harness-driver starts, drives and ends our broker.
import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { HarnessDriverClient } from '@agent-relay/harness-driver';
import { Fleet, HERE } from './fleet.js';

const LIMIT = { timeout: 60_000 };

// The driver hands its own environment on.
for (const name of Object.keys(process.env)) if (/^(AGENT_)?RELAY/.test(name)) delete process.env[name];

describe('the driver', () => {
  let fleet;
  let driver;
  before(async () => {
    fleet = await Fleet.start('driver');
    const cwd = join(fleet.dir, 'project');
    mkdirSync(cwd);
    const env = { ...fleet.env('driven'), RELAY_BASE_URL: fleet.engine.url };
    driver = await HarnessDriverClient.spawn({
      cwd, env, binaryPath: env.BROKER_BINARY_PATH, brokerName: 'driven', workspaceKey: fleet.key,
    });
    fleet.watch(driver.brokerPid);
  }, LIMIT);
  after(() => fleet?.stop(), LIMIT);

  test('spawns an agent, which gets messages from near and far', LIMIT, async () => {
    assert.equal((await driver.getSession()).workspace_key, fleet.key);
    const agent = await driver.spawnPty({ name: 'al', cli: join(HERE, 'nodes/reader.sh'), channels: ['general'] });
    assert.equal(agent.name, 'al');
    assert.deepEqual((await driver.listAgents()).map(({ name }) => name), ['al']);
    await driver.sendMessage({ to: 'al', from: 'me', text: 'from near' });
    await fleet.reads('al', 'from near');
    await fleet.bob.dm('al', 'from far');
    await fleet.reads('al', 'from far');
  });

  test('holds messages for an agent until they are flushed', LIMIT, async () => {
    await driver.setInboundDeliveryMode('al', 'manual_flush');
    await fleet.bob.dm('al', 'not yet');
    const pending = await fleet.until('it is pending', async () => {
      const held = await driver.getPending('al');
      return held.length > 0 && held;
    });
    assert.equal(pending.length, 1, JSON.stringify(pending));
    assert.ok(!(await fleet.seen('al.read')).includes('not yet'));
    await driver.flushPending('al');
    await fleet.reads('al', 'not yet');
  });

  test('releases the agent and ends the broker', LIMIT, async () => {
    const exits = [];
    driver.onEvent((event) => { if (event.kind === 'agent_exited' || event.kind === 'agent_released') exits.push(event); });
    await driver.release('al');
    await fleet.until('the event comes', () => exits.some((event) => event.name === 'al'));
    assert.deepEqual(await driver.listAgents(), []);
    const ended = new Promise((resolve) => { driver.onBrokerExit(resolve); });
    await driver.shutdown();
    const { code, signal } = await ended;
    assert.deepEqual([code, signal], [0, null]);
    await fleet.until('the engine knows', async () => (await fleet.relay.nodes.list()).every((node) => !node.live));
  });
});
