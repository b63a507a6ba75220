// Agents that our broker has started use the published MCP server with what the broker has given them.
import assert from 'node:assert/strict';
import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { HERE } from './fleet.js';
import { Mcp } from './mcp.js';
import { Desk } from './project.js';

const LIMIT = { timeout: 120_000 };
const READER = join(HERE, 'nodes/reader.sh');

describe("an agent's MCP server", () => {
  let desk;
  let driver;
  let al;
  let bea;
  before(async () => {
    desk = await Desk.start('mcp');
    // A CLI that the MCP server knows by name, and that is a reader.
    const bin = join(desk.dir, 'bin');
    await mkdir(bin);
    await symlink(READER, join(bin, 'goose'));
    const { state } = desk.where('project');
    await mkdir(state, { recursive: true });
    const team = { team: 'birds', agents: [{ name: 'gander', cli: 'goose', task: 'lead the flock' }] };
    await writeFile(join(state, 'teams.json'), JSON.stringify(team));
    await desk.up('project', ['--spawn'], { PATH: `${bin}:${process.env.PATH}` });
    driver = await desk.driver('project');
    for (const name of ['al', 'bea']) await driver.spawnPty({ name, cli: READER, channels: ['general'] });
    [al, bea] = await Promise.all(['al', 'bea'].map((name) => Mcp.start(desk, name)));
  }, LIMIT);
  after(async () => {
    driver?.disconnect();
    await desk?.stop();
  }, LIMIT);

  test('acts as the agent, and can do nothing that was not asked for', LIMIT, async () => {
    assert.equal(al.server.name, 'agent-relay');
    assert.equal(al.env.RELAY_AGENT_NAME, 'al');
    assert.match(al.env.RELAY_AGENT_TOKEN, /^at_live_/);
    assert.equal(al.env.RELAY_BROKER_API_KEY, undefined);
    const tools = await al.tools();
    for (const tool of ['post_message', 'send_dm', 'check_inbox', 'spawn']) assert.ok(tools.includes(tool), tools.join(' '));
    assert.ok(!tools.includes('submit_result'), 'no result was asked for');
    const { agents } = JSON.parse(await al.call('list_agents', { status: 'online' }));
    for (const name of ['al', 'bea']) assert.ok(agents.some((agent) => agent.name === name), JSON.stringify(agents));
    // A strict name stays what it is.
    assert.equal(JSON.parse(await al.call('register_agent', { name: 'mallory' })).name, 'al');
  });

  test('posts to a channel, and the others read it in their terminals', LIMIT, async () => {
    await al.call('post_message', { channel: 'general', text: 'good morning, channel' });
    assert.match(await desk.reads('bea', 'good morning, channel'), /Relay message from al in #general .*good morning, channel/);
    const [post] = await desk.bob.messages('general', { limit: 1 });
    assert.deepEqual([post.text, post.agentName], ['good morning, channel', 'al']);
    await bea.call('reply_to_thread', { message_id: post.id, text: 'a thread of good mornings' });
    assert.match(await desk.reads('al', 'a thread of good mornings'), /from bea /);
    assert.ok(!(await desk.seen('al.read')).includes('good morning, channel'), 'al does not read itself');
  });

  test('sends to an agent, who answers by its own', LIMIT, async () => {
    await al.call('send_dm', { to: 'bea', text: 'only for bea' });
    assert.match(await desk.reads('bea', 'only for bea'), /Relay message from al \[.*only for bea/);
    await bea.call('send_dm', { to: 'al', text: 'only for al' });
    assert.match(await desk.reads('al', 'only for al'), /Relay message from bea \[.*only for al/);
    await al.call('send_dm', { to: 'bob', text: 'for bob without a node' });
    const inbox = await desk.bob.inbox();
    assert.ok(JSON.stringify(inbox).includes('al'), JSON.stringify(inbox));
  });

  test('joins a channel, and its agent reads what is said there', LIMIT, async () => {
    await al.call('create_channel', { name: 'ops', topic: 'what runs' });
    await bea.call('join_channel', { channel: 'ops' });
    await al.call('post_message', { channel: 'ops', text: 'all is quiet' });
    assert.match(await desk.reads('bea', 'all is quiet'), /in #ops/);
    await bea.call('leave_channel', { channel: 'ops' });
    await al.call('post_message', { channel: 'ops', text: 'still quiet' });
    await al.call('post_message', { channel: 'general', text: 'said after it' });
    assert.ok(!(await desk.reads('bea', 'said after it')).includes('still quiet'));
  });

  test('spawns an agent as the team can, and removes it', LIMIT, async () => {
    await desk.reads('gander', 'lead the flock');
    await desk.until('the sidecar of the CLI can spawn', async () => {
      const nodes = JSON.parse(await al.call('query_nodes', { capability: 'spawn:goose' })).nodes;
      assert.deepEqual(nodes.map((node) => [node.name, node.live, node.handlersLive]), [['project', true, true]]);
      return true;
    });
    await al.call('spawn', { name: 'gus', cli: 'goose', channel: 'general', task: 'look around' });
    await desk.reads('gus', 'look around');
    await al.call('send_dm', { to: 'gus', text: 'hello gus' });
    await desk.reads('gus', 'hello gus');
    await al.call('remove_agent', { name: 'gus' });
    await desk.until('gus is gone', async () => (await driver.listAgents()).every(({ name }) => name !== 'gus'));
  });

  test('submits the result that was asked for, until the agent is gone', LIMIT, async () => {
    const schema = { type: 'object', properties: { answer: { type: 'number' } }, required: ['answer'] };
    const results = [];
    driver.connectEvents();
    driver.onEvent((event) => { if (event.kind === 'agent_result') results.push(event); });
    await driver.spawnPty({ name: 'rex', cli: READER, agentResultSchema: schema });
    const rex = await Mcp.start(desk, 'rex');
    assert.deepEqual(JSON.parse(rex.env.AGENT_RELAY_RESULT_SCHEMA), schema);
    assert.ok((await rex.tools()).includes('submit_result'));
    const part = JSON.parse(await rex.call('submit_result', { data: { answer: 41 }, final: false, metadata: { sure: false } }));
    const whole = JSON.parse(await rex.call('submit_result', { data: { answer: 42 } }));
    await desk.until('the results come', () => results.length === 2);
    assert.deepEqual(results.map(({ name, result_id, data, final, metadata }) => [name, result_id, data, final, metadata ?? null]), [
      ['rex', part.result_id, { answer: 41 }, false, { sure: false }],
      ['rex', whole.result_id, { answer: 42 }, true, null],
    ]);
    await rex.call('post_message', { channel: 'general', text: 'rex was here' });
    await driver.release('rex');
    await rex.ended();
    // Whoever kept the tokens has nothing any more.
    const late = await fetch(rex.env.AGENT_RELAY_RESULT_URL, {
      method: 'POST', body: '{"data":43}',
      headers: { authorization: `Bearer ${rex.env.AGENT_RELAY_RESULT_TOKEN}`, 'content-type': 'application/json' },
    });
    assert.equal(late.status, 401);
    await assert.rejects(desk.as(rex.env.RELAY_AGENT_TOKEN).send('general', 'rex is a ghost'), { statusCode: 401 });
    const said = (await desk.bob.messages('general')).map(({ text }) => text);
    assert.deepEqual([said.includes('rex was here'), said.includes('rex is a ghost')], [true, false]);
    assert.equal(results.length, 2);
  });
});
