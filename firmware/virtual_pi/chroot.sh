# A Debian of another architecture, with sshd, as a chroot under qemu-user. Runs as root and as the
# first process of mount, PID, UTS and IPC namespaces of its own, so all of it ends with them.
#
#   sh chroot.sh <root> <scratch> <cpu> <binfmt line or ''> <disk bytes or ''>
#
# The root is never written to: what changes lies in <scratch>/disk. The binfmt line is registered
# in a user namespace of its own, where the system's table stays as it is; with '' the system has
# one already. There is no /sys: ai-edge-litert and onnxruntime crash under qemu-user with this
# machine's, and so does what they read in this machine's /proc/cpuinfo.
set -eu
root=$1 scratch=$2 cpu=$3 binfmt=$4 disk=$5

mount --make-rprivate /
# Relative names below: overlayfs has its own opinion of commas and colons.
cd "$scratch"
mkdir -p disk lower new binfmt
[ -z "$disk" ] || mountpoint -q disk || mount -t tmpfs -o "size=$disk,mode=755" disk disk
mkdir -p disk/files disk/work
mount --bind "$root" lower
mount -t overlay -o lowerdir=lower,upperdir=disk/files,workdir=disk/work pi new

mount -t proc proc new/proc
mount --bind cpuinfo new/proc/cpuinfo
mount -t tmpfs -o mode=755 run new/run
mount -t tmpfs -o mode=755 dev new/dev
for name in null zero full random urandom tty; do
    : >new/dev/$name
    mount --bind /dev/$name new/dev/$name
done
mkdir new/dev/pts new/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts new/dev/pts
mount -t tmpfs -o mode=1777 shm new/dev/shm
ln -s pts/ptmx new/dev/ptmx
ln -s /proc/self/fd new/dev/fd
ln -s fd/0 new/dev/stdin
ln -s fd/1 new/dev/stdout
ln -s fd/2 new/dev/stderr
hostname raspberrypi
mkdir -p new/run/sshd new/run/edgekiln
cp -- etc/* new/run/edgekiln/
chmod 600 new/run/edgekiln/ssh_host_ed25519_key

export QEMU_CPU="$cpu"
unset LD_LIBRARY_PATH LD_PRELOAD
serve='exec chroot "$0/new" /usr/sbin/sshd -D -e -f /run/edgekiln/sshd_config'
if [ -z "$binfmt" ]; then
    sh -c "$serve" "$scratch" &
else
    mkfifo go
    # A new user namespace has no users until somebody outside it writes its maps.
    unshare --user --mount sh -euc '
        read -r _ <"$0/go"
        mount -t binfmt_misc binfmt "$0/binfmt"
        printf %s "$1" >"$0/binfmt/register"
        '"$serve" "$scratch" "$binfmt" &
    outside=$(readlink /proc/self/ns/user)
    until inside=$(readlink /proc/$!/ns/user) && [ "$inside" != "$outside" ]; do
        kill -0 $!
        sleep 0.01
    done
    echo 0 0 4294967295 >/proc/$!/uid_map
    echo 0 0 4294967295 >/proc/$!/gid_map
    echo go >go
    rm go
fi
wait $! # and reap what is orphaned: this is process 1
