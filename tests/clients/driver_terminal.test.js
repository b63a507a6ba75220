// Terminals through the published harness-driver: keystrokes and their acks, predictive echo, pictures, sizes, output.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { Driven, LIMIT, Line, noted } from './driven.js';
// The CLI's own screen and prediction, which its package does not export.
import { createPredictiveEcho, createXtermScreenModel } from './node_modules/agent-relay/dist/cli/lib/predictive-echo-screen.js';

const KEYS = 300;
/** From here on the client takes an echo for slow and predicts it. */
const SLOW_MS = 30;
/** One way, on a slow line. */
const DELAY = 50;

const median = (samples) => samples.toSorted((a, b) => a - b)[samples.length >> 1];
/** A program that reads its terminal raw into a file and shows nothing. */
const silent = (name) => `stty raw -echo; echo ready; exec cat > "$FLEET_SEEN/${name}.raw"`;
/** One that shows what it reads, as an editor would. */
const ECHOING = "stty raw -echo; printf 'ask> '; exec cat";

describe('a terminal', () => {
  let driven;
  let driver;
  let fleet;
  before(async () => {
    driven = await Driven.start('terminal');
    ({ driver, fleet } = driven);
  }, LIMIT);
  after(() => driven?.stop(), LIMIT);

  const raw = (name, text) => fleet.until(`${name} has read it all`, async () => {
    const read = await fleet.seen(`${name}.raw`);
    assert.equal(read, text);
    return true;
  });
  const missing = { code: 'agent_not_found', status: 404 };

  test('takes input by request', LIMIT, async () => {
    await driven.sh('typed', silent('typed'));
    await driven.shows('typed', 'ready');
    assert.deepEqual(await driver.sendInput('typed', 'grüße\r'), { name: 'typed', bytes_written: 8 });
    assert.deepEqual(await driver.sendInput('typed', ''), { name: 'typed', bytes_written: 0 });
    assert.deepEqual(await driver.sendInput('typed', '\x1b[A'), { name: 'typed', bytes_written: 3 });
    await raw('typed', 'grüße\r\x1b[A');
    await assert.rejects(driver.sendInput('nobody', 'x'), { ...missing, message: "agent_not_found: no worker named 'nobody'" });
  });

  test('acknowledges pipelined keystrokes first in first out, whatever the program does', LIMIT, async () => {
    await driven.sh('piped', silent('piped'));
    await driven.shows('piped', 'ready');
    const stream = driver.openInputStream('piped');
    await stream.waitUntilOpen();
    const keys = Array.from({ length: KEYS }, (_, n) => 'ä'.repeat(n % 7) + String(n));
    const order = [];
    // All are on their way before the first ack; the lengths tell one from another.
    const acks = await Promise.all(keys.map(async (key, n) => {
      const ack = await stream.send(key);
      order.push(n);
      return ack;
    }));
    assert.deepEqual(acks, keys.map((key) => ({ name: 'piped', bytes_written: Buffer.byteLength(key) })));
    assert.deepEqual(order, keys.map((_, n) => n));
    assert.equal(stream.bufferedAmountBytes, 0);
    await raw('piped', keys.join(''));
    stream.close();
    await assert.rejects(stream.send('x'), { code: 'input_stream_closed' });
  });

  test('acknowledges at once although nobody reads or answers', LIMIT, async () => {
    await driven.sh('deaf', 'stty raw -echo; echo ready; exec sleep 1000');
    await driven.shows('deaf', 'ready');
    const stream = driver.openInputStream('deaf');
    await stream.waitUntilOpen();
    const times = [];
    for (let n = 0; n < 60; n += 1) {
      const begun = performance.now();
      assert.equal((await stream.send('k')).bytes_written, 1);
      times.push(performance.now() - begun);
    }
    assert.ok(median(times) < SLOW_MS, `a local broker needs no prediction: ${median(times)} ms`);
    assert.notEqual(stream.srttMs, null);
    stream.close();
  });

  test('serves several streams and requests frame by frame', LIMIT, async () => {
    await driven.sh('shared', silent('shared'));
    await driven.shows('shared', 'ready');
    const streams = [driver.openInputStream('shared'), driver.openInputStream('shared')];
    const frames = (mark) => Array.from({ length: 40 }, (_, n) => `<${mark}${n}>`);
    await Promise.all([
      ...streams.flatMap((stream, at) => frames('ab'[at]).map((frame) => stream.send(frame))),
      ...frames('c').map((frame) => driver.sendInput('shared', frame)),
    ]);
    const read = await fleet.until('all is read', async () => {
      const text = await fleet.seen('shared.raw');
      return [...text.matchAll(/<\w+>/g)].length === 120 && text;
    });
    assert.equal(read.replaceAll(/<[abc]\d+>/g, ''), '', 'no frame is torn');
    for (const mark of 'ab') assert.deepEqual([...read.matchAll(new RegExp(`<${mark}\\d+>`, 'g'))].map(String), frames(mark));
    streams.forEach((stream) => stream.close());
  });

  test('ends the stream of who is not here, and of who goes', LIMIT, async () => {
    const nobody = driver.openInputStream('nobody', { openTimeoutMs: 20_000 });
    await assert.rejects(nobody.waitUntilOpen(), missing);
    assert.equal(nobody.closed, true);
    const agent = await driven.sh('going', silent('going'));
    const stream = driver.openInputStream('going', { highWaterMarkBytes: 10 });
    await stream.waitUntilOpen();
    await assert.rejects(stream.send('x'.repeat(11)), { code: 'input_backpressure' });
    await agent.release();
    await fleet.until('the stream ends', () => stream.closed);
  });

  test('shows the echo at once on a slow line, and in the end what the program shows', LIMIT, async (t) => {
    await driven.sh('slow', ECHOING);
    await driven.shows('slow', 'ask>');
    const line = await Line.to(driver.baseUrl, { delay: DELAY });
    const client = driven.another(line);
    const stream = client.openInputStream('slow');
    t.after(() => {
      client.disconnect();
      stream.close();
      return line.stop();
    });
    await stream.waitUntilOpen();
    for (let n = 0; n < 3; n += 1) await stream.send('');
    assert.ok(stream.srttMs >= 2 * DELAY - SLOW_MS, `${stream.srttMs} ms`);

    // What stands before the human: the picture first, then whatever the engine writes.
    const screen = createXtermScreenModel({ cols: 80, rows: 24 });
    const write = (data) => { screen.write(data); };
    const row = () => screen.rowText(screen.cursor().row);
    const painted = () => screen.write('');
    const echo = createPredictiveEcho({ cols: 80, rows: 24, write, getInputSrtt: () => stream.srttMs });
    const picture = await client.snapshot('slow', 'ansi');
    const seed = Buffer.from(picture.screen, 'base64').toString('utf8');
    await screen.write(seed);
    await echo.seed(seed);
    let shown = 0;
    client.onEvent((event) => {
      if (event.kind !== 'worker_stream' || event.name !== 'slow') return;
      shown += event.chunk.length;
      echo.onServerOutput(event.chunk);
    });
    client.connectEvents();
    await driven.event('the events come', ({ kind }) => kind === 'agent_spawned', noted(client));

    const typed = 'echo "hello, world"; ls -l /tmp';
    const sent = [];
    for (const key of typed) {
      echo.onUserInput(key);
      sent.push(stream.send(key));
    }
    await painted();
    assert.equal(row(), `ask> ${typed}`, 'it is on the screen before anything came back');
    assert.equal(shown, 0);
    assert.equal(echo.hasPredictions, true);
    await Promise.all(sent);
    await fleet.until('the echo is whole', () => shown === typed.length);
    await fleet.until('nothing is predicted any more', () => !echo.hasPredictions);
    await painted();
    assert.equal(row(), `ask> ${typed}`);
    assert.ok(echo.echoLatencyMs >= 2 * DELAY - SLOW_MS, `it was measured: ${echo.echoLatencyMs} ms`);
    const truth = await client.snapshot('slow');
    assert.equal(truth.screen.split('\n')[0].trimEnd(), row());
    assert.deepEqual(truth.cursor, [screen.cursor().row + 1, screen.cursor().col + 1]);

    // What the program does with a key need not be what was predicted: its word is the last.
    echo.onUserInput('abc');
    await stream.send('\r\nnew> ');
    await fleet.until('the new line is there', async () => (await painted(), row() === 'new> '));
    await fleet.until('what was predicted is dropped', () => !echo.hasPredictions);
    assert.ok(!(await driver.snapshot('slow')).screen.includes('abc'));
    const whole = Array.from({ length: 24 }, (_, at) => screen.rowText(at));
    assert.equal(whole.join('\n').trimEnd(), (await driver.snapshot('slow')).screen.split('\n').map((text) => text.trimEnd()).join('\n').trimEnd());
  });

  test('has a picture, plain and ansi', LIMIT, async () => {
    await driven.sh('drawn', String.raw`stty -echo; printf '\033[2J\033[3;5Hhere \033[1;31mred\033[0m\033[10;20H'; exec sleep 1000`);
    await driven.shows('drawn', 'red');
    const plain = await driver.snapshot('drawn');
    assert.deepEqual([plain.format, plain.rows, plain.cols, plain.cursor], ['plain', 24, 80, [10, 20]]);
    assert.equal(plain.screen.split('\n')[2].trimEnd(), '    here red');
    const ansi = await driver.snapshot('drawn', 'ansi');
    assert.deepEqual([ansi.format, ansi.cursor], ['ansi', [10, 20]]);
    const screen = createXtermScreenModel({ cols: 80, rows: 24 });
    await screen.write(Buffer.from(ansi.screen, 'base64').toString('utf8'));
    assert.equal(screen.rowText(2), '    here red');
    assert.deepEqual(screen.cursor(), { row: 9, col: 19 });
    const cell = screen.term.buffer.active.getLine(2).getCell(9);
    assert.deepEqual([cell.getChars(), cell.getFgColor(), Boolean(cell.isBold())], ['r', 1, true]);
    assert.equal((await driver.snapshot('drawn', 'TEXT')).format, 'plain');
    await assert.rejects(driver.snapshot('drawn', 'jpeg'), { status: 400, code: 'invalid_format' });
    await assert.rejects(driver.snapshot('nobody'), missing);
  });

  test('changes its size under the program', LIMIT, async () => {
    await driven.sh('sized', `trap 'stty size' WINCH; stty size; while :; do sleep 0.1; done`);
    await driven.shows('sized', '24 80');
    assert.deepEqual(await driver.resizePty('sized', 40, 132), { name: 'sized', rows: 40, cols: 132 });
    await driven.shows('sized', '40 132');
    const { rows, cols } = await driver.snapshot('sized');
    assert.deepEqual([rows, cols], [40, 132]);
    await assert.rejects(driver.resizePty('sized', 0, 80), { status: 400, code: 'invalid_request', message: /invalid_dimensions/ });
    await assert.rejects(driver.resizePty('nobody', 24, 80), missing);
  });

  test('gets the command that changes the model', LIMIT, async () => {
    await driven.sh('modelled', silent('modelled'));
    await driven.shows('modelled', 'ready');
    assert.deepEqual(await driver.setModel('modelled', 'opus', { timeoutMs: 5_000 }), { name: 'modelled', model: 'opus', success: true });
    await raw('modelled', '/model opus\r');
    await assert.rejects(driver.setModel('modelled', ' '), { status: 400 });
    await assert.rejects(driver.setModel('nobody', 'opus'), { status: 500, message: "unknown worker 'nobody'" });
  });

  test('streams all that it shows, whole characters in order', LIMIT, async (t) => {
    const client = driven.another();
    t.after(() => client.disconnectEvents());
    const chunks = client.subscribeWorkerStream('loud', { stream: 'stdout' })[Symbol.asyncIterator]();
    const events = noted(client);
    await driven.event('the events come', ({ kind }) => kind === 'agent_spawned', events);
    // Written byte by byte and in lumps: characters are torn on the way in, never on the way out.
    await driven.sh('loud', String.raw`stty -opost -echo
      printf '\342'; sleep 0.1; printf '\202\254'; i=0
      while [ $i -lt 3000 ]; do printf '%d €äö𝄞\n' $i; i=$((i+1)); done; printf 'end'; exec sleep 1000`);
    const expected = `€${Array.from({ length: 3000 }, (_, n) => `${n} €äö𝄞\n`).join('')}end`;
    let text = '';
    while (!text.endsWith('end')) {
      const { value } = await chunks.next();
      text += value;
      assert.ok(expected.startsWith(text), `after ${text.length}: ${JSON.stringify(value)}`);
    }
    assert.equal(text, expected);
    assert.ok(!text.includes('\ufffd'));
    assert.equal((await chunks.return()).done, true);
    const streams = events.filter(({ kind, name }) => kind === 'worker_stream' && name === 'loud');
    assert.ok(streams.every((event) => event.seq === undefined && event.stream === 'stdout'));
  });
});
