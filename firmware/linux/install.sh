# Makes a Python environment of its own. $1: the base, $2: the environment's id, $3: "wheels"
# (from what was sent to envs/.wheels-<id>) or "internet", then what pip is to install. The
# system's Python is only called. `.complete` is written last: without it the environment is
# made anew.
set -eu
fail() {
    printf 'edgekiln: %s\n' "$1" >&2
    exit 1
}
cd -- "$1"
case $2 in
'' | *[!0-9a-f]*) fail "not the id of an environment" ;;
esac
id=$2
source=$3
shift 3
if [ "$source" = look ]; then
    [ ! -f "envs/$id/.complete" ] || echo there
    exit 0
fi
rm -rf "envs/$id"
python3 -m venv "envs/$id" >/dev/null 2>&1 ||
    fail "no environment can be made there: sudo apt-get install python3-venv"
if [ "$source" = wheels ]; then
    set -- --no-index --find-links "envs/.wheels-$id" "$@"
fi
"envs/$id/bin/python" -I -m pip --isolated --disable-pip-version-check --no-input install \
    --quiet --no-cache-dir --only-binary :all: "$@" >&2 || fail "pip cannot install: $(echo "$*" | head -c 200)"
rm -rf "envs/.wheels-$id"
sync -f "envs/$id" 2>/dev/null || sync
: >"envs/$id/.complete"
echo made
