// Another node, for the same host: one action, one spawner.
import { action, defineNode, spawn } from '@agent-relay/fleet';
import { reader } from './reader.js';

export default defineNode({
  name: 'packer',
  capabilities: {
    weigh: action({}, ({ grams }, ctx) => ({ kilograms: grams / 1000, node: ctx.node.name, pid: process.pid })),
    'spawn:crate': spawn(reader),
  },
});
