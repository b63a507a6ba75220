// The handles of agents that the published harness-driver gives: waiting for their end, their silence, their results.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { Driven, LIMIT } from './driven.js';
import { HERE, PATIENCE } from './fleet.js';

describe('the handle of an agent', () => {
  let driven;
  let driver;
  let fleet;
  before(async () => {
    driven = await Driven.start('handles');
    ({ driver, fleet } = driven);
  }, LIMIT);
  after(() => driven?.stop(), LIMIT);

  const settled = (agent) => driven.event(`${agent.name} has exited`, ({ kind, name }) => kind === 'agent_exited' && name === agent.name);

  test('waits for the exit and knows its code', LIMIT, async () => {
    const agent = await driven.sh('ends', 'read line; exit 3');
    assert.equal(agent.exit, undefined);
    assert.deepEqual(await agent.waitForExit(50), { reason: 'timeout' });
    const exit = agent.waitForExit(PATIENCE);
    const idle = agent.waitForIdle(PATIENCE);
    await driver.sendInput('ends', 'go\r');
    assert.equal((await exit).reason, 'exited');
    const silence = await idle;
    assert.deepEqual([silence.reason, silence.exit.reason], ['exited', 'exited']);
    await settled(agent);
    assert.deepEqual([agent.exitCode, agent.exitSignal ?? null], [3, null]);
    assert.equal((await agent.waitForExit()).code, 3, 'also afterwards');
    assert.equal((await agent.waitForResult()).reason, 'exited');
    assert.deepEqual(await driver.listAgents(), []);
    await fleet.until('the engine knows', async () => (await fleet.relay.agents.get('ends')).status === 'offline');
    assert.equal((await agent.release()).name, 'ends', 'nothing is left to release');
  });

  test('knows the signal', LIMIT, async () => {
    const agent = await driven.sh('killed', 'exec sleep 1000');
    process.kill(agent.pid, 'SIGKILL');
    assert.equal((await agent.waitForExit(PATIENCE)).reason, 'exited');
    const exited = await settled(agent);
    assert.deepEqual([exited.code, agent.exitSignal, typeof exited.reason], [null, '9', 'string']);
    const kinds = driven.events.filter(({ name }) => name === 'killed').map(({ kind }) => kind);
    assert.deepEqual(kinds.slice(-2), ['agent_exit', 'agent_exited']);
  });

  test('tells an end that the agent asked for', LIMIT, async () => {
    const agent = await driven.sh('asks', `read line; echo /exit; exec sleep 1000`);
    await driver.sendInput('asks', 'go\r');
    assert.equal((await agent.waitForExit(PATIENCE)).reason, 'exited');
    assert.equal((await settled(agent)).reason, 'agent_requested');
  });

  test('counts crashes, and only them', LIMIT, async () => {
    const clean = await driven.sh('clean', 'exit 0');
    await settled(clean);
    const insights = await driver.getCrashInsights();
    const told = insights.recent.map(({ agent_name: name, exit_code: code, signal, category }) => [name, code, signal, category]);
    assert.deepEqual(told.slice(0, 2), [['ends', 3, null, 'error'], ['killed', null, '9', 'oom']]);
    assert.ok(!told.some(([name]) => name === 'clean'));
    assert.equal(insights.total_crashes, told.length);
    assert.equal(insights.health_score, 100 - 10 * told.length);
    assert.ok(insights.patterns.some(({ category, agents }) => category === 'oom' && agents.includes('killed')), JSON.stringify(insights));
    assert.equal((await driver.getMetrics()).broker.total_crashes, told.length);
  });

  test('waits for silence', LIMIT, async () => {
    const agent = await driven.sh('idles', 'echo hello; while read line; do echo "$line"; done', { idleThresholdSecs: 1 });
    const idle = await agent.waitForIdle(PATIENCE);
    assert.equal(idle.reason, 'idle');
    assert.ok(idle.idleSecs >= 1, JSON.stringify(idle));
    const row = (await driver.listAgents()).find(({ name }) => name === 'idles');
    assert.equal(row.current_state, 'idle');
    // Once per silence: it must speak first.
    assert.equal((await agent.waitForIdle(1_500)).reason, 'timeout');
    const again = agent.waitForIdle(PATIENCE);
    await driver.sendInput('idles', 'still here\r');
    assert.equal((await again).reason, 'idle');
    // A message on its way is no silence, and silence is told once it is through.
    await driver.sendMessage({ to: 'idles', text: 'something to\nread' });
    await driven.event('it is confirmed', ({ kind, name }) => kind === 'message_delivery_confirmed' && name === 'idles');
    assert.equal((await agent.waitForIdle(PATIENCE)).reason, 'idle');
    await agent.release('rest');
    const never = await driven.sh('restless', 'echo hello; exec sleep 1000', { idleThresholdSecs: 0 });
    assert.equal((await never.waitForIdle(1_500)).reason, 'timeout');
    await never.release();
  });

  test('waits for results by their schema', LIMIT, async () => {
    const schema = { type: 'object', properties: { answer: { type: 'number' } } };
    const reporter = (name, options) => driver.spawnCli({ name, cli: process.execPath, args: [join(HERE, 'nodes/reporter.js')], ...options });
    const agent = await reporter('reports', { agentResultSchema: schema });
    const first = await agent.waitForResult(PATIENCE);
    assert.deepEqual([first.reason, first.data, first.final], ['result', { part: 1 }, false]);
    assert.match(first.resultId, /^ar_[0-9a-f]{32}$/);
    const last = await driven.event('the last result', ({ kind, name, final }) => kind === 'agent_result' && name === 'reports' && final);
    assert.deepEqual([last.data, last.metadata], [{ answer: 42, schema }, { took: 7 }]);
    assert.deepEqual(driver.queryEvents({ kind: 'agent_result', name: 'reports' }).map(({ final }) => final), [false, true]);
    await agent.release();
    const quiet = await driven.sh('quiet', 'echo "[$AGENT_RELAY_RESULT_TOKEN]"; exec sleep 1000');
    await driven.shows('quiet', '[]');
    assert.deepEqual(await quiet.waitForResult(50), { reason: 'timeout' });
    const waiting = quiet.waitForResult(PATIENCE);
    process.kill(quiet.pid, 'SIGTERM');
    assert.equal((await waiting).reason, 'exited');
  });
});
