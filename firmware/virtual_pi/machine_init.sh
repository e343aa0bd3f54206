#!/bin/busybox sh
# The first process of a machine: first from the initial RAM disk, then, with the argument
# "second", from the root file system, where it stays and runs sshd. The kernel's command line says
# where the root is (pi_root=) and what time it is (pi_time=).
box=/run/edgekiln/busybox

first() {
    /bin/busybox mkdir -p /proc /sys /dev /new
    /bin/busybox --install -s /bin
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    mount -t devtmpfs dev /dev
    for word in $(cat /proc/cmdline); do
        case $word in
            pi_root=*) root=${word#*=} ;;
            pi_time=*) date -s "@${word#*=}" >/dev/null ;;
        esac
    done
    for module in /modules/*; do
        insmod "$module" || echo "insmod $module failed"
    done
    tries=0
    until [ -b "$root" ] || [ $tries = 300 ]; do
        sleep 0.2
        tries=$((tries + 1))
    done
    mount -t ext4 -o noatime "$root" /new || fail "no root file system on $root"
    mount -t tmpfs -o mode=755 run /new/run
    mkdir /new/run/edgekiln /new/run/sshd
    cp /pi/* /new/run/edgekiln/
    cp /init /bin/busybox /new/run/edgekiln/
    chmod 600 /new/run/edgekiln/ssh_host_ed25519_key
    for directory in proc sys dev; do
        mount --move /$directory /new/$directory
    done
    exec switch_root /new $box sh /run/edgekiln/init second
}

second() {
    $box mkdir -p /dev/pts /dev/shm
    $box mount -t devpts -o ptmxmode=0666,mode=0620,gid=5 devpts /dev/pts
    $box mount -t tmpfs -o mode=1777 shm /dev/shm
    $box hostname raspberrypi
    $box chown 1000:1000 /home/pi # the image may have been made without root
    $box ifconfig lo 127.0.0.1 up
    tries=0
    until interface=$(find_interface) || [ $tries = 300 ]; do
        $box sleep 0.2
        tries=$((tries + 1))
    done
    $box ifconfig "$interface" 10.0.2.15 netmask 255.255.255.0 up || fail "no network"
    $box route add default gw 10.0.2.2
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    /usr/sbin/sshd -D -e -f /run/edgekiln/sshd_config &
    sshd=$!
    while kill -0 $sshd 2>/dev/null; do
        wait $sshd # and reap what is orphaned
    done
    fail "sshd has ended"
}

find_interface() {
    for interface in eth0 usb0; do
        [ ! -e /sys/class/net/$interface ] || { echo $interface; return 0; }
    done
    return 1
}

fail() {
    echo "edgekiln: $1"
    sync
    poweroff -f || $box poweroff -f
}

if [ "${1:-}" = second ]; then second; else first; fi
