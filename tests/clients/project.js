// Directories in which the published CLI is used as a person would, and terminals to sit at.
import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { HarnessDriverClient } from '@agent-relay/harness-driver';
import { within } from './engine.js';
import { CLI, Fleet, HERE, PATIENCE, freePort } from './fleet.js';

/** Rows and columns of a terminal: nothing that a test looks for is wrapped. */
export const SIZE = [30, 160];

export class Desk extends Fleet {
  /** A command of the CLI in a directory, run to its end. */
  async ask(place, args, env = {}) {
    const asked = this.cli(place, args, { RELAY_BASE_URL: this.engine.url, ...env });
    await within(PATIENCE, asked.what, asked.ended).catch(async (error) => {
      throw new Error(`${error.message}\n${await this.report()}`);
    });
    return { code: asked.child.exitCode, output: asked.output };
  }

  /** As `ask`, for a command that must succeed. */
  async does(place, args, env) {
    const { code, output } = await this.ask(place, args, env);
    assert.equal(code, 0, `agent-relay ${args.join(' ')} printed ${output}`);
    return output;
  }

  /** As `does`, for what prints JSON. */
  async gives(place, args, env) {
    const output = await this.does(place, args, env);
    try {
      return JSON.parse(output);
    } catch (error) {
      throw new Error(`agent-relay ${args.join(' ')} printed ${output}`, { cause: error });
    }
  }

  /** `agent-relay local up` in the foreground; gives it when the API answers. */
  async up(place, args = [], env = {}) {
    const started = this.cli(place, ['local', 'up', '--workspace-key', this.key, ...args], await this.upEnv(env));
    await this.until(`${place} is up`, () => /^Broker started\.$/m.test(started.output));
    return started;
  }

  /** What `up` needs to find our engine and a port that no other test has. */
  async upEnv(env = {}) {
    // The CLI looks for a free port above this one.
    return { RELAY_BASE_URL: this.engine.url, AGENT_RELAY_BROKER_PORT: String(await freePort() - 1), ...env };
  }

  where(place) {
    return { state: join(this.dir, place, '.agentworkforce/relay') };
  }

  /** The local API of the broker of a directory. */
  async driver(place) {
    const { url, api_key: apiKey } = await this.connection(this.where(place));
    return new HarnessDriverClient({ baseUrl: url, apiKey });
  }
}

/** A broker of ours as a row of terminals, for what wants to sit at one. */
export class Stage {
  #count = 0;

  static async open(desk) {
    const stage = new Stage();
    stage.desk = desk;
    const cwd = join(desk.dir, 'stage');
    mkdirSync(cwd);
    const env = { ...desk.env('stage'), RELAY_BASE_URL: desk.engine.url };
    stage.driver = await HarnessDriverClient.spawn({
      cwd, env, binaryPath: env.BROKER_BINARY_PATH, brokerName: 'stage', workspaceKey: desk.key,
    });
    desk.watch(stage.driver.brokerPid);
    return stage;
  }

  /** The CLI at a terminal of its own, in a directory of the desk. */
  async sit(place, args, env = {}) {
    mkdirSync(join(this.desk.dir, place, '.agentworkforce/relay'), { recursive: true });
    const name = `terminal-${this.#count += 1}`;
    await this.driver.spawnPty({
      name, cli: join(HERE, 'nodes/stage.sh'), cwd: join(this.desk.dir, place), skipRelayPrompt: true,
      args: ['env', ...Object.entries(env).map((entry) => entry.join('=')), process.execPath, CLI, ...args],
    });
    const terminal = new Terminal(this, name, `agent-relay ${args.join(' ')}`);
    await terminal.resize(...SIZE);
    await terminal.keys('\r');
    return terminal;
  }

  close() {
    return this.driver.shutdown();
  }
}

class Terminal {
  constructor(stage, name, what) {
    Object.assign(this, { stage, name, what });
  }

  async screen() {
    return (await this.stage.driver.snapshot(this.name, 'plain')).screen;
  }

  /** Waits until the screen has `text`, or what matches it. */
  shows(text) {
    return this.stage.desk.until(`${this.what} shows ${text}`, async () => {
      const screen = await this.screen();
      assert.ok(text instanceof RegExp ? text.test(screen) : screen.includes(text), `its terminal shows\n${screen}`);
      return screen;
    });
  }

  keys(text) {
    return this.stage.driver.sendInput(this.name, text);
  }

  resize(rows, cols) {
    return this.stage.driver.resizePty(this.name, rows, cols);
  }

  /** Waits until the command has ended; gives its exit code. */
  async ended() {
    return Number(/^ended with (\d+)$/m.exec(await this.shows(/^ended with \d+$/m))[1]);
  }
}
