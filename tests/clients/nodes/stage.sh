#!/bin/sh
# Runs what it is given as somebody at this terminal would, shows how it ended, and keeps the terminal open.
# The key that interrupts is for the command alone.
trap : INT
# The terminal gets its size first.
read -r _
"$@"
printf '\n\033[2Kended with %s\n' "$?"
exec cat
