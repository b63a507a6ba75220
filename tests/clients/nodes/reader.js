// What the nodes here share: where they note things, and the harness of all their spawners, a shell script that reads.
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { definePtyHarness } from '@agent-relay/harnesses';

export const seen = (name) => join(process.env.FLEET_SEEN, name);

export const reader = definePtyHarness({
  runtime: 'pty',
  command: fileURLToPath(new URL('reader.sh', import.meta.url)),
});
