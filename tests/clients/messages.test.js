// `agent-relay agent`, `channel` and `message` as published, against the embedded engine.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { createProgram } from './node_modules/agent-relay/dist/cli/bootstrap.js';
import { Desk } from './project.js';

const LIMIT = { timeout: 60_000 };

describe('the CLI at an engine', () => {
  let desk;
  let ann;
  before(async () => {
    desk = await Desk.start('messages');
    ann = (await by(null, 'agent', 'register', 'ann', '--type', 'agent', '--persona', 'a tester')).token;
  }, LIMIT);
  after(() => desk?.stop(), LIMIT);

  /** What a command prints. Its program runs in here: to start a process for each would take longer than all the rest. */
  const says = async (token, ...args) => {
    const lines = [];
    const { log, error } = console;
    console.log = console.error = (...words) => lines.push(words.join(' '));
    try {
      const as = token ? ['--token', token] : [];
      await createProgram().parseAsync(['node', 'agent-relay', ...args, '--workspace-key', desk.key, '--base-url', desk.engine.url, ...as]);
    } catch (cause) {
      throw new Error(`${args.join(' ')}: ${lines.join('\n')}`, { cause });
    } finally {
      Object.assign(console, { log, error });
    }
    return lines.join('\n');
  };
  const by = async (token, ...args) => {
    const said = await says(token, ...args);
    try { return JSON.parse(said); } catch (cause) { throw new Error(`${args.join(' ')} printed ${said}`, { cause }); }
  };

  const names = (rows) => rows.map(({ name }) => name).sort();

  test('manages agents', LIMIT, async () => {
    assert.match(ann, /^at_live_[0-9a-f]{32}$/);
    await by(null, 'agent', 'add', 'cat', '--type', 'agent');
    assert.deepEqual(names(await by(null, 'agent', 'list', '--status', 'online')), ['ann', 'bob', 'cat']);
    assert.equal((await by(null, 'agent', 'list')).find(({ name }) => name === 'ann').persona, 'a tester');
    assert.equal(await says(null, 'agent', 'remove', 'cat'), 'Removed agent cat.');
    assert.deepEqual(names(await by(null, 'agent', 'list')), ['ann', 'bob']);
  });

  test('manages channels', LIMIT, async () => {
    assert.equal((await by(ann, 'channel', 'create', 'ops', '--topic', 'what runs')).topic, 'what runs');
    assert.deepEqual(names(await by(ann, 'channel', 'list')), ['general', 'ops']);
    assert.equal(await says(ann, 'channel', 'invite', 'ops', 'bob'), 'Invited bob to ops.');
    const { members } = await desk.bob.channels.get('ops');
    assert.deepEqual(members.map(({ agentName }) => agentName).sort(), ['ann', 'bob']);
    assert.equal((await by(ann, 'channel', 'set_topic', 'ops', 'what hangs')).topic, 'what hangs');
    assert.equal(await says(ann, 'channel', 'leave', 'ops'), 'Left ops.');
    assert.equal(await says(ann, 'channel', 'join', 'ops'), 'Joined ops.');
    assert.equal(await says(ann, 'channel', 'archive', 'ops'), 'Archived ops.');
    assert.deepEqual(names(await by(ann, 'channel', 'list')), ['general']);
    assert.deepEqual(names(await by(ann, 'channel', 'list', '--archived')), ['general', 'ops']);
  });

  test('posts, replies, finds and marks what is said in a channel', LIMIT, async () => {
    const post = await by(ann, 'message', 'post', 'general', 'anybody there?');
    assert.deepEqual([post.kind, post.from.name, post.channel.name], ['channel', 'ann', 'general']);
    const reply = await by(ann, 'message', 'reply', post.id, 'nobody');
    assert.deepEqual([reply.kind, reply.threadId], ['thread_reply', post.id]);
    assert.deepEqual((await by(ann, 'message', 'list', 'general', '--limit', '1')).map(({ id, replyCount }) => [id, replyCount]), [[post.id, 1]]);
    const thread = await by(ann, 'message', 'get_thread', post.id);
    assert.deepEqual([thread.parent.text, thread.replies.map(({ text }) => text)], ['anybody there?', ['nobody']]);
    const found = await by(ann, 'message', 'search', 'anybody', '--channel', 'general', '--from', 'ann', '--limit', '3');
    assert.deepEqual(found.map(({ id }) => id), [post.id]);
    assert.deepEqual(await by(ann, 'message', 'search', 'anybody', '--from', 'bob'), []);

    await by(ann, 'message', 'reaction', 'add', post.id, 'rocket');
    assert.deepEqual((await desk.bob.reactions(post.id)).map(({ emoji, count }) => [emoji, count]), [['rocket', 1]]);
    assert.equal(await says(ann, 'message', 'reaction', 'remove', post.id, 'rocket'), `Removed :rocket: from ${post.id}.`);
    assert.deepEqual(await desk.bob.reactions(post.id), []);

    const { id } = await desk.bob.send('general', 'here, @ann');
    const inbox = await by(ann, 'message', 'inbox', 'check');
    assert.deepEqual(inbox.mentions.map((mention) => mention.id), [id]);
    assert.equal((await by(ann, 'message', 'inbox', 'mark_read', id)).messageId, id);
    assert.deepEqual((await by(ann, 'message', 'inbox', 'get_readers', id)).map(({ agentName }) => agentName), ['ann']);
  });

  test('sends to one and to several', LIMIT, async () => {
    const dan = await by(null, 'agent', 'register', 'dan');
    const dm = await by(ann, 'message', 'dm', 'send', 'bob', 'only you');
    assert.deepEqual([dm.kind, dm.from.name, dm.text], ['dm', 'ann', 'only you']);
    assert.deepEqual((await by(ann, 'message', 'dm', 'list', dm.conversationId)).map(({ text }) => text), ['only you']);
    const group = await by(ann, 'message', 'dm', 'send_group', 'both of you', '--to', 'bob', 'dan');
    assert.equal(group.kind, 'group_dm');
    for (const one of [desk.bob, desk.as(dan.token)]) {
      const { unreadDms } = await one.inbox();
      assert.ok(unreadDms.some(({ conversationId }) => conversationId === group.conversationId), JSON.stringify(unreadDms));
    }
  });

  test('says what is wrong, and exits with 1', LIMIT, async () => {
    const token = { RELAY_WORKSPACE_KEY: desk.key, RELAY_AGENT_TOKEN: ann };
    const asked = await Promise.all([
      desk.ask('here', ['message', 'post', 'general', 'from a process of its own'], token),
      desk.ask('here', ['message', 'post', 'nowhere', 'lost'], token),
      desk.ask('here', ['message', 'post', 'general', 'not me'], { ...token, RELAY_AGENT_TOKEN: 'at_live_wrong' }),
    ]);
    assert.deepEqual(asked.map(({ code }) => code), [0, 1, 1], JSON.stringify(asked));
    assert.equal(JSON.parse(asked[0].output).text, 'from a process of its own');
    assert.match(asked[1].output, /nowhere/);
  });
});
