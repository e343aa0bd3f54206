# A service of the user. $1: install (and start), refresh (start anew if it runs) or remove, $2: the
# unit's name. The unit's text comes by stdin. Exit code 70: it does not start.
set -eu
XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}
export XDG_RUNTIME_DIR
directory=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user
fail() {
    printf 'edgekiln: %s\n' "$1" >&2
    exit "${2:-1}"
}
# Returns once it answers: its unit has Type=notify.
start() {
    systemctl --user reset-failed "$1" 2>/dev/null || true # however often it has failed before
    systemctl --user restart "$1" >/dev/null 2>&1 && return
    said=$(journalctl --user --quiet --lines 1 --output cat --unit "$1" 2>/dev/null || true)
    fail "the service does not start${said:+: $said}" 70
}
if [ "$1" != install ] && [ ! -f "$directory/$2" ]; then
    exit 0
fi
command -v systemctl >/dev/null || fail "systemd is not installed there"
case $1 in
remove)
    systemctl --user disable --quiet --now "$2" || true
    rm -f "$directory/$2"
    systemctl --user daemon-reload
    ;;
refresh)
    case $(systemctl --user show --property=ActiveState --value "$2") in
    inactive | deactivating) exit 0 ;;
    '') fail "its systemd does not answer, so the service may be that of the release before" ;;
    esac
    start "$2"
    echo refreshed
    ;;
install)
    # So that it runs while nobody is logged in; not every system lets a user ask for that.
    loginctl enable-linger 2>/dev/null || true
    mkdir -p "$directory"
    cat >"$directory/.$2.new"
    mv -f "$directory/.$2.new" "$directory/$2"
    systemctl --user daemon-reload
    systemctl --user enable --quiet "$2"
    start "$2"
    echo "linger=$(loginctl show-user "$(id -un)" --property=Linger --value 2>/dev/null)"
    ;;
esac
