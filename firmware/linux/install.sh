# A Python environment of its own. $1: the base, $2: the environment's id, $3: "look" (is it
# there?), "wheels" (make it from what was sent to envs/.wheels-<id>) or "internet", then what pip
# is to install. The system's Python is only called. `.complete` is written last: without it the
# environment is made anew. Of the others one is kept, the one that was used last.
set -eu
umask 022
fail() {
    printf 'edgekiln: %s\n' "$1" >&2
    exit 1
}
mkdir -p -- "$1/envs" || fail "its disk is full or cannot be written"
cd -- "$1/envs"
case $2 in
'' | *[!0-9a-f]*) fail "not the id of an environment" ;;
esac
id=$2
source=$3
shift 3
wanted=$*
if [ "$source" = look ]; then
    [ ! -f "$id/.complete" ] || { touch "$id/.complete"; echo there; }
    exit 0
fi
if command -v flock >/dev/null; then
    # Whose deploy was killed may still be installing.
    exec 9>>busy
    flock -w 900 9 || fail "another deploy has been installing for long"
fi
if [ -f "$id/.complete" ]; then
    rm -rf ".wheels-$id"
    echo there
    exit 0
fi
for other in * .wheels-*; do
    case $other in
    lock | busy | ".wheels-$id") ;;
    .wheels-*) [ -z "$(find "$other" -maxdepth 0 -mmin +1440 2>/dev/null)" ] || rm -rf "$other" ;;
    *) [ -f "$other/.complete" ] || rm -rf "$other" ;; # its making was killed
    esac
done

# What fails leaves no half of an environment: the disk may be full.
trap 'rm -rf "$id" ".wheels-$id"' EXIT
pip=
if [ "$source" = wheels ]; then
    for wheel in ".wheels-$id"/pip-*.whl; do
        # pip as it was sent along: neither has it to be unpacked, nor python3-venv to be there.
        [ ! -f "$wheel" ] || pip=$PWD/$wheel/pip
    done
    set -- --no-index --find-links ".wheels-$id" "$@"
fi
python3 -m venv ${pip:+--without-pip} "$id" >/dev/null 2>&1 ||
    fail "no environment can be made there: sudo apt-get install python3-venv"
set -- --isolated --disable-pip-version-check --no-input install --quiet --no-cache-dir \
    --no-compile --only-binary :all: "$@"
if [ -n "$pip" ]; then
    set -- "$pip" "$@"
else
    set -- -m pip "$@"
fi
"$id/bin/python" -I "$@" >&2 || fail "pip cannot install: $wanted"
rm -rf ".wheels-$id"
sync -f "$id" 2>/dev/null || sync
: >"$id/.complete"
trap - EXIT
kept=$(ls -t ./*/.complete | head -n 2)
for other in */; do
    case $kept in
    *"./${other}.complete"*) ;;
    *) rm -rf "$other" ;;
    esac
done
echo made
