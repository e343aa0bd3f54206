# Prints what is known of this board, one "key value" a line. A value that cannot be found out is
# left out. $1: the directory that releases will be below; it need not exist.
say() { [ -z "$2" ] || printf '%s %s\n' "$1" "$2"; }
first() { head -n 1 "$1" 2>/dev/null | tr -d '\000'; }

base=$1
while [ ! -d "$base" ]; do
    case $base in
    */*) base=${base%/*} ;;
    *) base=. ;;
    esac
    [ -n "$base" ] || base=/
done

say model "$(first /proc/device-tree/model || true)"
[ -s /proc/device-tree/model ] || say model "$(sed -n 's/^Model[[:space:]]*: //p' /proc/cpuinfo | head -n 1)"
# What edgekiln's virtual Pis hold, and what QEMU's machine `virt` calls itself.
if [ -e /etc/edgekiln-virtual-pi ] || [ "$(first /proc/device-tree/model || true)" = linux,dummy-virt ]; then
    say emulated yes
fi
say os "$(sed -n 's/^PRETTY_NAME="\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' /etc/os-release 2>/dev/null)"
say kernel "$(uname -r)"
say machine "$(uname -m)"
say bits "$(getconf LONG_BIT 2>/dev/null)"
say glibc "$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/^glibc //')"
say features "$(sed -n 's/^Features[[:space:]]*: //p' /proc/cpuinfo | head -n 1)"
say part "$(sed -n 's/^CPU part[[:space:]]*: //p' /proc/cpuinfo | head -n 1)"
say cores "$(nproc 2>/dev/null)"
say memory_kb "$(sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo 2>/dev/null)"
say free_memory_kb "$(sed -n 's/^MemAvailable: *\([0-9]*\) kB$/\1/p' /proc/meminfo 2>/dev/null)"
say free_disk_kb "$(df -Pk -- "$base" 2>/dev/null | awk 'NR == 2 { print $4 }')"
say governor "$(first /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor)"
say temperature_mc "$(first /sys/class/thermal/thermal_zone0/temp)"
say throttled "$(vcgencmd get_throttled 2>/dev/null | sed -n 's/^throttled=//p')"
say rsync "$(command -v rsync)"
say flock "$(command -v flock)"
XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}
export XDG_RUNTIME_DIR
say systemd "$(systemctl --user show-environment >/dev/null 2>&1 && echo user)"
say compiler "$(command -v cc)"
python=$(command -v python3)
say python_path "$python"
[ -z "$python" ] || "$python" -I -c '
import importlib.util, struct, sys
print("python", "%d.%d.%d" % sys.version_info[:3])
print("python_bits", struct.calcsize("P") * 8)
for name in ("ai_edge_litert", "tflite_runtime", "onnxruntime", "numpy", "venv", "ensurepip"):
    if importlib.util.find_spec(name):
        print("has", name)
' 2>/dev/null
exit 0
