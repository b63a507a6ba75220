// One of two like nodes; FLEET_NODE is its name.
import { appendFileSync, existsSync } from 'node:fs';
import { action, defineNode, spawn } from '@agent-relay/fleet';
import { reader, seen } from './reader.js';

const me = process.env.FLEET_NODE;

export default defineNode({
  name: me,
  maxAgents: 3,
  capabilities: {
    [`only-${me}`]: action({}, (input) => ({ by: me, input })),
    // Notes who asked; stays unanswered where a file says so.
    hold: action({}, (_, { invocationId }) => {
      appendFileSync(seen(`${me}.holds`), `${invocationId}\n`);
      return existsSync(seen(`${me}.stuck`)) ? new Promise(() => {}) : { by: me };
    }),
    'spawn:reader': spawn(reader),
    [`spawn:${me}`]: spawn(reader),
  },
});
