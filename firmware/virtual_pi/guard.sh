# Runs a command for as long as somebody holds the other end of standard input.
#
#   sh guard.sh <scratch directory or ''> <command> <argument>...
#
# A line on standard input kills the command. The end of the input, which comes too when whoever
# held it is killed, kills the command and removes the scratch directory. Should this shell be
# killed, the kernel kills the command.
scratch=$1
shift
end=
trap 'end=cut' USR1
trap 'end=gone' USR2
exec 3<&0 </dev/null

setpriv --pdeathsig KILL "$@" 3<&- &
command=$!
{
    signal=USR2
    read -r _ <&3 && signal=USR1
    # More than once: the first may come just before the shell begins to wait.
    while kill -$signal $$; do sleep 0.1; done
} >/dev/null 2>&1 &
watcher=$!
exec 3<&-

[ -n "$end" ] || wait $command 2>/dev/null
code=$?
kill $watcher 2>/dev/null
wait $watcher 2>/dev/null
[ -n "$end" ] || exit $code

# `unshare --fork` waits for its child, and the first process of a PID namespace has ended only
# when all others there have.
read -r child 2>/dev/null <"/proc/$command/task/$command/children"
kill -KILL ${child:-$command} 2>/dev/null
while kill -0 $command 2>/dev/null; do
    wait $command 2>/dev/null
done
[ "$end" = cut ] || [ -z "$scratch" ] || rm -rf -- "$scratch"
exit 137
