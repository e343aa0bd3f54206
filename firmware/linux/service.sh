# A service of the user. $1: install (and start), refresh (start anew if it runs) or remove, $2: the
# unit's name. The unit's text comes by stdin.
set -eu
XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}
export XDG_RUNTIME_DIR
if ! command -v systemctl >/dev/null; then
    echo 'edgekiln: systemd is not installed there' >&2
    exit 1
fi
directory=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user
if [ "$1" = remove ]; then
    systemctl --user disable --quiet --now "$2" || true
    rm -f "$directory/$2"
    systemctl --user daemon-reload
    exit 0
fi
if [ "$1" = refresh ]; then
    [ -f "$directory/$2" ] || exit 0
    systemctl --user is-active --quiet "$2" || systemctl --user is-failed --quiet "$2" || exit 0
    systemctl --user restart "$2"
    echo refreshed
    exit 0
fi
mkdir -p "$directory"
cat >"$directory/.$2.new"
mv -f "$directory/.$2.new" "$directory/$2"
systemctl --user daemon-reload
systemctl --user enable --quiet "$2"
systemctl --user restart "$2"
# So that it runs while nobody is logged in; not every system lets a user ask for that.
loginctl enable-linger 2>/dev/null || true
echo "linger=$(loginctl show-user "$(id -un)" --property=Linger --value 2>/dev/null)"
