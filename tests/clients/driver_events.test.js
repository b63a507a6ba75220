// Events through the published harness-driver: nothing missed and nothing twice, whatever happens to the line; their order.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { Driven, durable, LIMIT, Line, noted, READER } from './driven.js';

describe('the events', () => {
  let driven;
  let driver;
  let fleet;
  before(async () => {
    driven = await Driven.start('events');
    ({ driver, fleet } = driven);
    await driver.spawnPty({ name: 'al', cli: READER, channels: ['general'] });
  }, LIMIT);
  after(() => driven?.stop(), LIMIT);

  /** Ends when both clients have seen the newest durable event, which must be the same for both. */
  const level = (events) => fleet.until('both have seen the same', () => {
    const [here, there] = [driven.events, events].map((seen) => durable(seen).at(-1)?.seq);
    assert.equal(there, here);
    return true;
  });

  const follows = (events, from) => {
    const seqs = durable(events).map(({ seq }) => seq);
    assert.deepEqual(seqs, Array.from(seqs, (_, n) => from + n), 'no gap, nothing twice');
  };

  test('go on without a gap or a repetition when the line is cut', LIMIT, async (t) => {
    const line = await Line.to(driver.baseUrl);
    const client = driven.another(line);
    t.after(() => {
      client.disconnect();
      return line.stop();
    });
    const events = noted(client);
    client.connectEvents();
    let sent = 0;
    const talk = async (count) => {
      for (const end = sent + count; sent < end; sent += 1) await driver.sendMessage({ to: 'al', from: 'me', text: `word ${sent}` });
    };
    await talk(3);
    await level(events);
    for (const cut of ['between two events', 'in the middle of one']) {
      const before_ = durable(events).length;
      if (cut === 'between two events') {
        line.cut();
        await talk(10);
      } else {
        const torn = line.cutInTheMiddle();
        await Promise.all([talk(10), torn]);
      }
      // The client comes back after 2 s, by its last number.
      await talk(5);
      await level(events);
      assert.ok(durable(events).length >= before_ + 15, cut);
    }
    await fleet.reads('al', `word ${sent - 1}`);
    await level(events);
    follows(events, 1);
    assert.ok(!events.some(({ kind }) => kind === 'replay_gap'));
    const firsts = durable(driven.events).slice(0, durable(events).length);
    assert.deepEqual(durable(events), firsts, 'every client is told the same');
    assert.equal(events.filter(({ kind }) => kind === 'relay_inbound').length, sent);
  });

  test('are replayed from the number that is asked for, and no further back', LIMIT, async (t) => {
    const newest = durable(driven.events).at(-1).seq;
    const client = driven.another();
    t.after(() => client.disconnect());
    const events = noted(client);
    client.connectEvents(newest - 4);
    await driven.event('the replay is over', ({ seq }) => seq >= newest, events);
    follows(events, newest - 3);
    assert.deepEqual(client.queryEvents({ limit: 1 }), [events.at(-1)]);
    assert.equal(client.queryEvents({ kind: 'agent_spawned' }).length, 0);
    client.disconnectEvents();
    await driver.sendMessage({ to: 'al', text: 'while nobody listens' });
    client.connectEvents();
    await driven.event('what was missed', ({ body }) => body === 'while nobody listens', events);
    follows(events, newest - 3);
  });

  test('say what is lost to a client that comes too late', LIMIT, async (t) => {
    while (durable(driven.events).at(-1).seq < 1_010) {
      const next = durable(driven.events).at(-1).seq;
      for (const mode of ['manual_flush', 'auto_inject']) await driver.setInboundDeliveryMode('al', mode);
      await driven.event('the change is told', ({ seq }) => seq >= next + 2);
    }
    const late = driven.another();
    t.after(() => late.disconnect());
    const events = noted(late);
    late.connectEvents();
    await level(events);
    const gap = events[0];
    assert.deepEqual([gap.kind, gap.requestedSinceSeq, gap.seq], ['replay_gap', 0, gap.oldestAvailable - 1]);
    assert.ok(gap.droppedCount > 0 && gap.droppedCount === gap.oldestAvailable - 1, JSON.stringify(gap));
    follows(events, gap.seq);
    assert.equal(events.length, 1_001);
    const intime = driven.another();
    t.after(() => intime.disconnect());
    const seen = noted(intime);
    intime.connectEvents(gap.seq);
    await level(seen);
    assert.notEqual(seen[0].kind, 'replay_gap', 'who missed nothing is told of nothing');
    follows(seen, gap.seq + 1);
  });

  test('tell the life of a message in order', LIMIT, async () => {
    await driver.spawnPty({ name: 'bo', cli: READER, channels: [] });
    await driven.event('bo is ready', ({ kind, name }) => kind === 'worker_ready' && name === 'bo');
    const { event_id: id } = await driver.sendMessage({ to: 'bo', from: 'me', text: 'one life' });
    await driven.event('the end of it', ({ kind, event_id }) => kind === 'delivery_verified' && event_id === id);
    const life = durable(driven.events).filter(({ event_id }) => event_id === id);
    // What the program has read is told by us alone, before or after its echo.
    assert.deepEqual(life.map(({ kind }) => kind).filter((kind) => kind !== 'delivery_read'), [
      'relay_inbound', 'delivery_queued', 'delivery_injected', 'delivery_ack', 'message_delivery_confirmed', 'delivery_read_ack', 'delivery_verified',
    ]);
    assert.ok(life.filter(({ kind }) => kind !== 'relay_inbound').every(({ name }) => name === 'bo'));
    assert.equal(new Set(life.map(({ delivery_id }) => delivery_id).filter(Boolean)).size, 1);
    const inbound = driver.queryEvents({ kind: 'relay_inbound' }).at(-1);
    assert.deepEqual([inbound.from, inbound.target, inbound.body, inbound.event_id], ['me', 'bo', 'one life', id]);
    assert.equal(driver.getLastEvent('delivery_injected', 'bo').event_id, id);
    assert.ok(driver.queryEvents({ kind: 'delivery_injected', name: 'bo', since: Date.now() - 60_000, limit: 5 }).length === 1);
    assert.equal(driver.getLastEvent('delivery_injected', 'nobody'), undefined);
  });

  test('tell the life of an agent in order', LIMIT, async () => {
    await driver.spawnPty({ name: 'cy', cli: READER, channels: [], model: 'm2' });
    await driven.event('cy is ready', ({ kind, name }) => kind === 'worker_ready' && name === 'cy');
    await driver.setInboundDeliveryMode('cy', 'manual_flush');
    await driver.sendMessage({ to: 'cy', from: 'me', text: 'never read' });
    await driver.release('cy');
    await driven.event('cy is released', ({ kind, name }) => kind === 'agent_released' && name === 'cy');
    const life = durable(driven.events).filter(({ name }) => name === 'cy');
    assert.deepEqual(life.map(({ kind }) => kind).filter((kind) => kind !== 'dead_letter_added'), [
      'agent_spawned', 'worker_ready', 'agent_inbound_delivery_mode_changed', 'delivery_queued', 'delivery_dropped', 'message_delivery_failed', 'agent_released',
    ]);
    const [spawned, ready] = life;
    assert.deepEqual(
      [spawned.runtime, spawned.cli, spawned.model, spawned.source, spawned.pre_registered, typeof spawned.pid],
      ['pty', READER, 'm2', 'http_api', true, 'number'],
    );
    assert.deepEqual([ready.runtime, ready.cli, ready.model, ready.pid], ['pty', READER, 'm2', spawned.pid]);
    const [, , , held, dropped, failed] = life.filter(({ kind }) => kind !== 'dead_letter_added');
    assert.deepEqual([held.reason, held.from, held.target, held.delivery_id], ['inbound_delivery_manual_flush', 'me', 'cy', undefined]);
    assert.deepEqual([dropped.count, dropped.reason], [1, 'agent_released']);
    assert.deepEqual([failed.from, failed.to, failed.event_id, failed.lastError !== undefined], ['me', 'cy', held.event_id, true]);
  });

  test('end with the broker, in good order', LIMIT, async () => {
    const line = await Line.to(driver.baseUrl);
    const client = driven.another(line);
    const closed = new Promise((resolve) => {
      client.connectEvents();
      // The client hides its socket; the code of the close is what counts here.
      client.transport.ws.on('close', resolve);
    });
    const events = noted(client);
    await driven.event('it is fed', ({ kind }) => kind === 'agent_released', events);
    await driver.shutdown();
    assert.equal(await closed, 1000);
    client.disconnect();
    await line.stop();
    assert.ok(driver.queryEvents({ kind: 'agent_released', name: 'bo' }).length <= 1);
  });
});
