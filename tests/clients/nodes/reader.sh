#!/bin/sh
# An agent that reads its terminal line by line. What it saw is in $FLEET_SEEN/<its name>.*
seen="$FLEET_SEEN/$RELAY_AGENT_NAME"
env -0 > "$seen.env"
printf '%s' "$RELAY_AGENT_TOKEN" > "$seen.token"
printf '%s\n' "$FLEET_NODE" >> "$seen.lives"
echo '->pty:ready'
while IFS= read -r line; do printf '%s\n' "$line" >> "$seen.read"; done
