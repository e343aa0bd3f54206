# Runs a command for as long as somebody holds the other end of standard input.
#
#   sh guard.sh <scratch directory or ''> <command> <argument>...
#
# A line on standard input kills the command. The end of the input, which comes too when whoever
# held it is killed, kills the command and removes the scratch directory. Should this shell be
# killed, the kernel kills the command.
scratch=$1
shift
exec 3<&0 </dev/null
setpriv --pdeathsig KILL "$@" 3<&- &
command=$!
{
    if read -r _ <&3; then keep=yes; else keep=; fi
    # `unshare --fork` waits for its child, and the first process of a PID namespace has ended
    # only when all others there have.
    read -r child <"/proc/$command/task/$command/children"
    kill -KILL ${child:-$command}
    while kill -0 $command; do sleep 0.02; done
    [ -n "$keep" ] || [ -z "$scratch" ] || rm -rf -- "$scratch"
} >/dev/null 2>&1 &
watcher=$!
exec 3<&-
wait $command 2>/dev/null
code=$?
# Killed: by the watcher, which may have more to do.
[ $code != 137 ] || wait $watcher
exit $code
