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
    // Notes who asked, and answers as soon as no file says that it is stuck.
    hold: action({}, async (_, { invocationId }) => {
      appendFileSync(seen(`${me}.holds`), `${invocationId}\n`);
      while (existsSync(seen(`${me}.stuck`))) await new Promise((resolve) => setTimeout(resolve, 20));
      appendFileSync(seen(`${me}.answers`), `${invocationId}\n`);
      return { by: me };
    }),
    'spawn:reader': spawn(reader),
    [`spawn:${me}`]: spawn(reader),
  },
});
