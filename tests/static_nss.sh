#!/usr/bin/env bash
# Does the static binary look names up on a machine whose nsswitch.conf names modules of another libc?
#
#   tests/static_nss.sh path/to/agent-relay-broker
#
# A static glibc still loads the modules that nsswitch.conf names, and dies in them on many systems (SIGFPE, SIGSEGV).
# The broker therefore pins its look-ups to the built-in services. Here `hosts` and `passwd` name a module that kills
# whatever loads it, in a mount namespace of our own. A control program without the pin must die of it: so the trap is
# known to spring on this machine. Nothing leaves the machine: the name server is a closed port of the loopback.
set -euo pipefail

[[ $# -eq 1 && -x $1 ]] || { echo "usage: tests/static_nss.sh path/to/agent-relay-broker (make static builds it)" >&2; exit 2; }
binary=$(realpath "$1")
need() { command -v "$1" >/dev/null || { echo "missing: $1 (Debian package: $2)" >&2; exit 2; }; }
need unshare util-linux
need mount mount
need readelf binutils
need timeout coreutils
compiler=${CC:-cc}
need "$compiler" gcc

# First run: only enters a mount namespace (with a user namespace unless we are root) and starts over there.
if [[ -z ${STATIC_NSS_INSIDE:-} ]]; then
    enter=(unshare --mount)
    [[ $(id -u) -eq 0 ]] || enter=(unshare --user --map-root-user --mount)
    "${enter[@]}" true 2>/dev/null || {
        echo "cannot make a mount namespace with '${enter[*]}': run this as root, or allow user namespaces" >&2
        exit 2
    }
    STATIC_NSS_INSIDE=1 exec "${enter[@]}" -- bash "$0" "$binary"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0
verdict() { # name, what must be true, what was seen
    if [[ $2 -eq 0 ]]; then
        passed=$((passed + 1))
        echo "ok      $1"
    else
        failed=$((failed + 1))
        printf 'FAILED  %s\n%s\n' "$1" "$3" | sed '2,$s/^/        /'
    fi
}
holds() { if "$@"; then echo 0; else echo 1; fi; }

cat >"$work/trap.c" <<'C'
__attribute__((constructor)) static void spring(void) { __builtin_trap(); }
C
cat >"$work/control.c" <<'C'
#include <netdb.h>
#include <pwd.h>
#include <stdio.h>
int main(int argc, char **argv) {
    struct addrinfo *found = 0;
    if (argc > 1) printf("getaddrinfo: %d\n", getaddrinfo(argv[1], "80", 0, &found));
    else printf("getpwuid: %p\n", (void *)getpwuid(12345));
    return 0;
}
C
# The linker warns that a static program with look-ups loads modules at run time: that is the point here.
{
    "$compiler" -shared -nostdlib -fPIC -o "$work/libnss_trap.so.2" "$work/trap.c" &&
        "$compiler" -static -o "$work/control" "$work/control.c"
} 2>"$work/err" || { echo "cannot compile the trap and its control:" >&2; cat "$work/err" >&2; exit 2; }
printf 'hosts: files trap dns\npasswd: files trap\ngroup: files trap\n' >"$work/nsswitch.conf"
printf '127.0.0.1 localhost\n' >"$work/hosts"
printf 'nameserver 127.0.0.1\noptions timeout:1 attempts:1\n' >"$work/resolv.conf"
: >"$work/passwd"
for file in nsswitch.conf hosts resolv.conf passwd; do
    target=$(realpath -m "/etc/$file") # resolv.conf is often a link
    [[ -e $target ]] || { echo "/etc/$file is missing: nothing to mount the test's own over" >&2; exit 2; }
    mount --bind "$work/$file" "$target"
done
export LD_LIBRARY_PATH=$work

seen=$(readelf --program-headers --wide "$binary" | grep -i interp || true)
verdict "the binary needs no dynamic loader" "$(holds test -z "$seen")" "$seen"

died() { [[ $1 -gt 128 && $1 -ne 137 ]]; }
for argument in no-such-host.invalid ''; do
    status=0
    timeout -s KILL 20 "$work/control" ${argument:+"$argument"} >"$work/out" 2>&1 || status=$?
    verdict "the trap springs in a program without the pin (${argument:-user 12345})" "$(holds died "$status")" \
        "exit $status: $(cat "$work/out"); so the tests below would prove nothing"
done 2>/dev/null

# name of the case, variables of the environment
broker() {
    local name=$1 status=0 dir
    shift
    dir=$(mktemp -d "$work/run.XXXXXX")
    (cd "$dir" && exec env -i PATH="$PATH" LD_LIBRARY_PATH="$work" TMPDIR="$dir" AGENT_RELAY_BROKER_LOG=off "$@" \
        timeout -s KILL 40 "$binary" init --state-dir "$dir/state") >"$work/out" 2>"$work/err" || status=$?
    verdict "$name: exit code 1" "$(holds test "$status" -eq 1)" "exit $status: $(cat "$work/out" "$work/err")"
    verdict "$name: a clear error" "$(holds grep -q '^Error: ' "$work/err")" "$(cat "$work/out" "$work/err")"
}
key=RELAY_WORKSPACE_KEY=rk_live_00000000000000000000000000000000
broker "a host name that only a module could know" HOME="$work" "$key" RELAYCAST_BASE_URL=http://no-such-host.invalid:1
broker "the machine's own name" HOME="$work" "$key" RELAYCAST_BASE_URL="http://$(uname -n):1"
broker "a user that only a module could know, without HOME" "$key" RELAYCAST_BASE_URL=http://no-such-host.invalid:1
broker "a name in the hosts file, nobody listening" HOME="$work" "$key" RELAYCAST_BASE_URL=http://localhost:1

echo
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
