#!/usr/bin/env bash
# Everything that `make test` runs, each part with its time; the last line counts all tests.
# A missing tool is an error that names it; nothing is skipped.
set -uo pipefail
cd "$(dirname "$0")/.."

missing=0
need() {
    command -v "$1" >/dev/null && return
    echo "missing: $1 ($2)" >&2
    missing=1
}
need cargo "Rust 1.89 or newer, with rustfmt and clippy"
need cc "a C compiler; Debian: apt-get install gcc libc6-dev"
need readelf "Debian: apt-get install binutils"
need unshare "Debian: apt-get install util-linux"
need mount "Debian: apt-get install mount"
need node "Node.js 20 or newer, for the published clients; Debian: apt-get install nodejs"
need npm "Debian: apt-get install npm"
cargo fmt --version >/dev/null 2>&1 || { echo "missing: cargo fmt (rustup component add rustfmt)" >&2; missing=1; }
cargo clippy --version >/dev/null 2>&1 || { echo "missing: cargo clippy (rustup component add clippy)" >&2; missing=1; }
[[ $missing -eq 0 ]] || { echo "0 passed, 1 failed"; exit 2; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT
broken=()
part() { # name, command
    local name=$1 began=$SECONDS
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    if "$@" 2>&1 | tee -a "$log"; then
        printf '== %s: ok, %d s\n' "$name" $((SECONDS - began))
    else
        printf '== %s: FAILED after %d s\n' "$name" $((SECONDS - began))
        broken+=("$name")
    fi
}

part format cargo fmt --check
part lints cargo clippy --locked --all-targets -- -D warnings
part unit make --no-print-directory unit
part integration make --no-print-directory integration
part static make --no-print-directory nss
part demo make --no-print-directory demo-once
part clients make --no-print-directory clients

# cargo: "test result: ok. 12 passed; 0 failed"; node: "# pass 12", "# fail 0"; our scripts: "12 passed, 0 failed".
count() { sed 's/\x1b\[[0-9;]*m//g' "$log" | sed -nE "$1" | awk '{ sum += $1 } END { print sum + 0 }'; }
passed=$(count 's/^test result: .* ([0-9]+) passed; .*/\1/p; s/^(# |ℹ )pass ([0-9]+)$/\2/p; s/^([0-9]+) passed, [0-9]+ failed$/\1/p')
failed=$(count 's/^test result: .* ([0-9]+) failed; .*/\1/p; s/^(# |ℹ )fail ([0-9]+)$/\2/p; s/^[0-9]+ passed, ([0-9]+) failed$/\1/p')
echo
if [[ ${#broken[@]} -gt 0 ]]; then
    echo "failed parts: ${broken[*]}"
    # A part that fails before its first test must not look like a success.
    [[ $failed -gt 0 ]] || failed=${#broken[@]}
fi
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
