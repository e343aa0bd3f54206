# Prints the state of the processor, one "key value" a line; what is not known is left out.
first() { head -n 1 "$1" 2>/dev/null | tr -d '\000'; }
say() { [ -z "$2" ] || printf '%s %s\n' "$1" "$2"; }

cpu=/sys/devices/system/cpu/cpu0/cpufreq
say governor "$(first $cpu/scaling_governor)"
say frequency_khz "$(first $cpu/scaling_cur_freq)"
say temperature_mc "$(first /sys/class/thermal/thermal_zone0/temp)"
say throttled "$(vcgencmd get_throttled 2>/dev/null | sed -n 's/^throttled=//p')"
exit 0
