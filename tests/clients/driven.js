// A broker started by the published @agent-relay/harness-driver, and what its tests need: scripted programs in terminals,
// everything the events say, and a line to the broker that can be slow and can be cut.
import { mkdirSync, readFileSync } from 'node:fs';
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { HarnessDriverClient } from '@agent-relay/harness-driver';
import { Fleet, HERE } from './fleet.js';

export const LIMIT = { timeout: 120_000 };
export const READER = join(HERE, 'nodes/reader.sh');

// The driver hands its own environment on.
for (const name of Object.keys(process.env)) if (/^(AGENT_)?RELAY/.test(name)) delete process.env[name];

/** Notes every event of a client. */
export function noted(client) {
  const events = [];
  client.onEvent((event) => events.push(event));
  return events;
}

export const durable = (events) => events.filter((event) => event.seq !== undefined);

export class Driven {
  static async start(name, { env = {}, ...options } = {}) {
    const driven = new Driven();
    driven.fleet = await Fleet.start(name);
    driven.cwd = join(driven.fleet.dir, 'project');
    mkdirSync(driven.cwd);
    driven.env = { ...driven.fleet.env(name), RELAY_BASE_URL: driven.fleet.engine.url, ...env };
    driven.driver = await HarnessDriverClient.spawn({
      cwd: driven.cwd, env: driven.env, binaryPath: driven.env.BROKER_BINARY_PATH, brokerName: name,
      workspaceKey: driven.fleet.key, binaryArgs: { persist: true }, ...options,
    });
    driven.fleet.watch(driven.driver.brokerPid);
    driven.events = noted(driven.driver);
    return driven;
  }

  /** The file by which others find this broker. */
  get connectionPath() {
    return join(this.cwd, '.agentworkforce/relay/connection.json');
  }

  connection() {
    return JSON.parse(readFileSync(this.connectionPath, 'utf8'));
  }

  /** A second client, by way of `line` if there is one. */
  another(line) {
    const { url, api_key: apiKey } = this.connection();
    return new HarnessDriverClient({ baseUrl: line ? line.url : url, apiKey });
  }

  /** An agent that is a shell script. */
  sh(name, script, options = {}) {
    return this.driver.spawnPty({ name, cli: 'sh', args: ['-c', script], channels: ['general'], ...options });
  }

  /** Waits for an event, and says which came instead. */
  event(what, is, events = this.events) {
    return this.fleet.until(what, () => {
      const found = events.find(is);
      if (!found) throw new Error(`the last events are ${JSON.stringify(events.slice(-10))}`);
      return found;
    });
  }

  /** Waits until the agent's screen shows `text`. */
  shows(name, text) {
    return this.fleet.until(`${name} shows ${text}`, async () => {
      const { screen } = await this.driver.snapshot(name);
      if (!screen.includes(text)) throw new Error(`it shows ${JSON.stringify(screen)}`);
      return screen;
    });
  }

  stop() {
    this.driver?.disconnect();
    return this.fleet?.stop();
  }
}

/** A line to the broker that can be slow and can be cut, as one over a bad network. */
export class Line {
  #pairs = new Set();
  #delay = 0;
  #after;

  static async to(url, { delay = 0 } = {}) {
    const line = new Line();
    const { port, hostname } = new URL(url);
    line.#delay = delay;
    line.server = createServer((near) => line.#join(near, connect(Number(port), hostname)));
    line.server.listen(0, '127.0.0.1');
    await once(line.server, 'listening');
    line.url = `http://127.0.0.1:${line.server.address().port}`;
    return line;
  }

  #join(near, far) {
    const pair = [near, far];
    this.#pairs.add(pair);
    for (const [from, to] of [[near, far], [far, near]]) {
      from.setNoDelay(true);
      from.on('data', (bytes) => {
        if (from === far && this.#after) return this.#cutWithin(bytes, to);
        if (!this.#delay) return to.write(bytes);
        setTimeout(() => to.writable && to.write(bytes), this.#delay);
      });
      from.on('error', () => {});
      from.on('close', () => {
        this.#pairs.delete(pair);
        setTimeout(() => to.destroy(), this.#delay);
      });
    }
  }

  /** The first half of what comes now still gets through. */
  #cutWithin(bytes, to) {
    const done = this.#after;
    this.#after = undefined;
    to.write(bytes.subarray(0, bytes.length >> 1), () => {
      this.cut();
      done();
    });
  }

  /** Ends every connection. */
  cut() {
    for (const pair of this.#pairs) pair.forEach((socket) => socket.destroy());
  }

  /** Cuts in the middle of the next thing that the broker says; resolves when that has happened. */
  cutInTheMiddle() {
    return new Promise((resolve) => { this.#after = resolve; });
  }

  stop() {
    this.cut();
    return new Promise((resolve) => this.server.close(resolve));
  }
}
