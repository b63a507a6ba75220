// A node of two actions, one spawner and one trigger.
import { appendFileSync } from 'node:fs';
import { action, defineNode, onMessage, spawn } from '@agent-relay/fleet';
import { reader, seen } from './reader.js';

const numbers = {
  safeParse: (input) =>
    Number.isFinite(input?.a) && Number.isFinite(input?.b)
      ? { success: true, data: input }
      : { success: false, error: new Error('a and b must be numbers') },
};

export default defineNode({
  name: 'builder',
  maxAgents: 4,
  tags: ['linux'],
  capabilities: {
    sum: action({ input: numbers }, ({ a, b }, ctx) => ({ sum: a + b, node: ctx.node.name, pid: process.pid })),
    deploy: action({}, async ({ channel, message }, ctx) => {
      appendFileSync(seen('deployed'), `${message.text}\n`);
      await ctx.relay.sendMessage({ to: `#${channel}`, text: `deployed: ${message.text}` });
    }),
    'spawn:reader': spawn(reader),
  },
  triggers: [onMessage({ channel: '#general', match: /^[Ss]hip / }, 'deploy')],
});
