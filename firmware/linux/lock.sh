# Holds a lock of the kernel's while bytes keep coming, at least one in 30 s. $1: its file, $2: who,
# $3: for how many seconds to wait for it.
set -eu
LC_ALL=C
export LC_ALL
umask 022
fail() {
    printf 'edgekiln: %s\n' "$1" >&2
    exit "${2:-1}"
}
holder() { tr -dc 'A-Za-z0-9 .:@_-' <"$1" | head -c 100; }

command -v flock >/dev/null || fail "flock is not installed there: sudo apt-get install util-linux"
mkdir -p -- "${1%/*}"
exec 9>>"$1"
if ! flock -n 9; then
    [ "$3" -gt 0 ] || fail "another deploy is going on: $(holder "$1")" 75
    printf 'waiting %s\n' "$(holder "$1")"
    flock -w "$3" 9 || fail "another deploy has been going on for long: $(holder "$1")" 75
fi
printf '%s\n' "$2" >"$1" || fail "its disk is full or cannot be written"
echo locked
while [ "$(timeout 30 dd bs=1 count=1 2>/dev/null | wc -c)" -eq 1 ]; do :; done
