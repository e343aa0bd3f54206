# The board's side of a deploy. $1: what to do; $2: the application's directory; then arguments.
#
#   <directory>/releases/<id>/     complete releases; their names never begin with a dot
#   <directory>/releases/.incoming a release on its way
#   <directory>/current            a link to releases/<id>, replaced by one rename
#   <directory>/history            ids in the order in which they became current
#   <directory>/lock               held by whoever deploys (lock.sh); says who
#   <directory>/busy               held by this script while it changes something
#
# A release becomes visible by the rename of a checked directory, and current by the rename of a
# link. Every command is such that killing this script before or after it leaves `current` on a
# complete release; what is left over is cleaned by the next `prepare`.
set -eu
LC_ALL=C
export LC_ALL
umask 022

fail() {
    printf 'edgekiln: %s\n' "$1" >&2
    exit "${2:-1}"
}

# An id is hexadecimal digits and perhaps a number: safe in any place of a script.
check_id() {
    case $1 in
    '' | *[!0-9a-f-]* | -*) fail "not the id of a release" ;;
    esac
}

current_id() {
    id=$(readlink current 2>/dev/null || true)
    id=${id#releases/}
    case $id in
    '' | *[!0-9a-f-]* | -*) id= ;;
    esac
    [ -z "$id" ] || [ ! -d "releases/$id" ] || printf '%s\n' "$id"
}

# Ids that became current, each once, the last one first; then releases that never did.
by_age() {
    {
        current_id
        [ ! -f history ] || sed '1!G;h;$!d' history
        ls releases 2>/dev/null || true
    } | awk '/^[0-9a-f][0-9a-f-]*$/ && !seen[$0]++' | while read -r id; do
        [ ! -d "releases/$id" ] || printf '%s\n' "$id"
    done
}

write_history() {
    cat >.history.new
    sync .history.new 2>/dev/null || sync
    mv -f .history.new history
}

# Tells whether the directory $1 holds what its manifest says, and nothing else.
is_whole() {
    (
        cd "$1" 2>/dev/null || exit 1
        [ -s manifest.sha256 ] || exit 1
        files=$(wc -l <manifest.sha256)
        # Not by its options: that of busybox has none of them.
        [ "$(sha256sum -c manifest.sha256 2>/dev/null | grep -c ': OK$')" -eq "$files" ] || exit 1
        [ "$(find . ! -type d ! -type f | wc -l)" -eq 0 ] || exit 1
        [ "$(find . -type f | wc -l)" -eq "$((files + 1))" ]
    )
}

# Whoever deploys holds the lock through another channel; $1 is what it wrote there. A script whose
# deploy was killed may still be running: what would change something waits for its end.
check_lock() {
    exec 8>>busy
    flock 8
    [ "$(cat lock 2>/dev/null)" = "$1" ] || fail "another deploy has taken over" 75
}

switch_to() {
    rm -f .current.new
    ln -s "releases/$1" .current.new
    mv -fT .current.new current
    sync . 2>/dev/null || sync
}

# Keeps what is current and the $1 - 1 before it.
prune() {
    by_age | tail -n "+$(($1 + 1))" | while read -r id; do
        mv -T "releases/$id" "releases/.old-$id"
        rm -rf "releases/.old-$id"
    done
}

action=$1
directory=$2
shift 2
cd -- "$directory" 2>/dev/null || exit 0

case $action in
prepare) # $1: who, $2: the release's hash. Cleans up; says what is there.
    check_lock "$1"
    check_id "$2"
    mkdir -p releases
    rm -rf .current.new .history.new releases/.old-* releases/.damaged-*
    for incoming in releases/.incoming*; do
        # What came in for the same release spares sending it again.
        [ "$incoming" = "releases/.incoming-$2" ] || rm -rf "$incoming"
    done
    now=$(current_id)
    if [ -n "$now" ] && [ "$(tail -n 1 history 2>/dev/null)" != "$now" ]; then
        { cat history 2>/dev/null || true; printf '%s\n' "$now"; } | write_history
    fi
    [ -z "$now" ] || printf 'current %s\n' "$now"
    for there in "releases/$2" "releases/$2"-*; do
        if is_whole "$there"; then
            printf 'whole %s\n' "${there#releases/}"
            exit 0
        fi
    done
    # What is equal in the newest release need not be sent. rsync's --copy-dest would do the same;
    # that of Debian 12 (3.2.7) cannot when the directory's name begins with "..".
    like=$(by_age | head -n 1)
    if [ ! -d "releases/.incoming-$2" ] && [ -n "$like" ]; then
        cp -R "releases/$like" "releases/.incoming-$2"
    fi
    mkdir -p "releases/.incoming-$2"
    ;;
verify) # $1: who, $2: the hash. Checks what has come in.
    check_lock "$1"
    check_id "$2"
    is_whole "releases/.incoming-$2" || fail "what arrived is not what was sent: files are damaged" 65
    ;;
selftest) # $1: who, $2: the directory in releases, $3: seconds, then the command.
    check_lock "$1"
    exec 8>&- # this changes nothing
    cd "releases/$2"
    seconds=$3
    shift 3
    timeout "$seconds" "$@" </dev/null && exit 0
    code=$?
    case $code in
    124) fail "the self-test was not done within $seconds s" 70 ;;
    126 | 127) fail "the self-test cannot be run: made for another architecture, or lacking a library" 70 ;;
    *) fail "the self-test failed with code $code" 70 ;;
    esac
    ;;
activate) # $1: who, $2: the hash, $3: an id that is there whole or nothing, $4: how many to keep.
    check_lock "$1"
    check_id "$2"
    check_id "$4"
    id=$3
    if [ -z "$id" ]; then
        id=$2
        number=2
        # A damaged release of the same content stays until nothing points to it.
        while [ -e "releases/$id" ]; do
            id=$2-$number
            number=$((number + 1))
        done
        sync -f "releases/.incoming-$2" 2>/dev/null || sync
        mv -T "releases/.incoming-$2" "releases/$id"
        sync releases 2>/dev/null || sync
    else
        check_id "$id"
        [ -d "releases/$id" ] || fail "the release has gone"
        rm -rf "releases/.incoming-$2"
    fi
    if [ "$(current_id)" != "$id" ]; then
        switch_to "$id"
    fi
    if [ "$(tail -n 1 history 2>/dev/null)" != "$id" ]; then
        { cat history 2>/dev/null || true; printf '%s\n' "$id"; } | tail -n 50 | write_history
    fi
    prune "$4"
    printf 'current %s\n' "$id"
    ;;
discard) # $1: who, $2: the hash. Throws away what has come in.
    check_lock "$1"
    check_id "$2"
    rm -rf "releases/.incoming-$2"
    ;;
previous) # $1: who. Says which release a rollback would go to: the one before, if it is whole.
    check_lock "$1"
    now=$(current_id)
    [ -n "$now" ] || fail "nothing has been deployed there" 66
    [ -f history ] || fail "there is no earlier release" 66
    sed '1!G;h;$!d' history | awk -v now="$now" 'found && $0 != now && !seen[$0]++; $0 == now { found = 1 }' |
        while read -r id; do
            case $id in
            '' | *[!0-9a-f-]*) continue ;;
            esac
            if is_whole "releases/$id"; then
                printf 'previous %s\n' "$id"
                break
            fi
        done
    ;;
rollback) # $1: who, $2: the id that `previous` said.
    check_lock "$1"
    check_id "$2"
    is_whole "releases/$2" || fail "the earlier release is damaged" 65
    switch_to "$2"
    awk -v id="$2" '{ line[NR] = $0; if ($0 == id) last = NR }
        END { for (i = 1; i <= last; i++) print line[i] }' history | write_history
    printf 'current %s\n' "$2"
    ;;
list)
    now=$(current_id)
    by_age | while read -r id; do
        state=damaged
        ! is_whole "releases/$id" || state=whole
        mark=other
        [ "$id" != "$now" ] || mark=current
        printf 'release %s %s %s %s\n' "$id" "$mark" "$state" "$(du -sk "releases/$id" | cut -f 1)"
    done
    ;;
*) fail "nothing of this name can be done" 64 ;;
esac
