# Load a module anew, and tell what the kernel says to it.  Arguments: the module, then all that
# must be unloaded before.

main() {
    new=$1
    shift
    for one in "$@"; do
        if [ -d "/sys/module/$one" ]; then
            modprobe -r "$one" || fail "$one can't be unloaded"
        fi
    done
    lines=$(dmesg | wc -l)
    modprobe "$new" || trouble="$new can't be loaded"
    sleep 1
    dmesg | tail -n "+$((lines + 1))" | while read -r line; do say "dmesg $line"; done
    [ -z "${trouble-}" ] || fail "$trouble"
    say "loaded $new"
}
