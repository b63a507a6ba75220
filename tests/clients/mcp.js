// An agent's own MCP server, started as its harness would: the command, the directory and the environment are the agent's.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { within } from './engine.js';
import { PATIENCE } from './fleet.js';

const PROTOCOL = '2025-03-26';

/** The environment that a reader has noted. */
async function environment(desk, name) {
  await desk.until(`${name} runs`, () => desk.seen(`${name}.lives`).then(Boolean));
  const text = await desk.seen(`${name}.env`);
  return Object.fromEntries(text.split('\0').filter(Boolean).map((entry) => {
    const at = entry.indexOf('=');
    return [entry.slice(0, at), entry.slice(at + 1)];
  }));
}

export class Mcp {
  #replies = new Map();
  #last = 0;

  static async start(desk, name) {
    const mcp = new Mcp();
    mcp.name = name;
    mcp.env = await environment(desk, name);
    // Words without quotes: the path of node and the path of a script.
    const [command, ...args] = mcp.env.AGENT_RELAY_MCP_COMMAND.split(' ');
    mcp.child = spawn(command, args, { cwd: mcp.env.PWD, env: mcp.env, stdio: ['pipe', 'pipe', 'inherit'] });
    mcp.gone = once(mcp.child, 'close');
    createInterface({ input: mcp.child.stdout }).on('line', (line) => {
      const message = JSON.parse(line);
      mcp.#replies.get(message.id)?.(message);
    });
    const hello = { protocolVersion: PROTOCOL, capabilities: {}, clientInfo: { name: 'test', version: '1' } };
    mcp.server = (await mcp.ask('initialize', hello)).serverInfo;
    mcp.#write({ method: 'notifications/initialized' });
    return mcp;
  }

  #write(message) {
    this.child.stdin.write(`${JSON.stringify({ jsonrpc: '2.0', ...message })}\n`);
  }

  async ask(method, params = {}) {
    const id = this.#last += 1;
    const reply = new Promise((resolve) => { this.#replies.set(id, resolve); });
    this.#write({ id, method, params });
    const { result, error } = await within(PATIENCE, `${this.name}'s MCP server answers ${method}`, reply);
    if (error) throw new Error(`${method}: ${JSON.stringify(error)}`);
    return result;
  }

  async tools() {
    return (await this.ask('tools/list')).tools.map(({ name }) => name);
  }

  /** Calls a tool; gives what it answers, or throws what it says. */
  async call(name, args) {
    const { content, isError } = await this.ask('tools/call', { name, arguments: args });
    const text = content.map((part) => part.text).join('\n');
    if (isError) throw new Error(`${name}: ${text}`);
    return text;
  }

  /** Waits until it is gone, as everything that has an agent's environment is when the agent is released. */
  async ended() {
    await within(PATIENCE, `${this.name}'s MCP server ends`, this.gone);
  }
}
