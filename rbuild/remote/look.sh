# Tell what is there; change nothing.  Arguments: the boot folder, or nothing to look for it; the
# kernel's release, or nothing for the one that runs.

look() {
    say "uid $(id -u)"
    release=${2:-$(uname -r)}
    say "release $release"
    say "machine $(uname -m)"
    if [ -n "${SUDO_UID-}" ]; then say "sudo yes"; fi
    for program in rsync flock sha256sum base64 tac depmod; do
        command -v "$program" >/dev/null || say "lacks $program"
    done
    boot=$1
    if [ -z "$boot" ]; then
        for folder in /boot/firmware /boot; do
            if [ -f "$ROOT$folder/config.txt" ]; then
                boot=$folder
                break
            fi
        done
    fi
    if [ -n "$boot" ] && [ -f "$ROOT$boot/config.txt" ]; then
        say "boot $boot"
        say "config $(base64 <"$ROOT$boot/config.txt" | tr -d '\n')"
        say "boot_free $(room "$ROOT$boot")"
        for readme in "$ROOT$boot/"*overlays/README "$ROOT$boot/"*/overlays/README; do
            if [ -f "$readme" ]; then
                folder=${readme%README}
                say "overlays ${folder#"$ROOT$boot/"}"
            fi
        done
    fi
    say "modules_free $(room "$ROOT$modules")"
    for folder in "$ROOT$modules/"*/; do
        if [ -d "$folder" ]; then say "modules $(basename "$folder")"; fi
    done
    own=$ROOT$modules/$release
    for one in "$own/"updates/*.ko; do
        if [ -f "$one" ]; then say "update $(basename "$one")"; fi
    done
    for one in "$own/kernel/"*/*.ko* "$own/kernel/"*/*/*.ko* "$own/kernel/"*/*/*/*.ko*; do
        if [ -f "$one" ] && magic=$(modinfo -F vermagic "$one" 2>/dev/null); then
            say "vermagic $magic"
            break
        fi
    done
    for folder in "$state/backups/"*/; do
        if [ -f "$folder/state" ]; then
            say "backup $(basename "$folder") $(cat "$folder/state")"
        elif [ -d "$folder" ]; then
            say "backup $(basename "$folder") pending"
        fi
    done
    for folder in "$ROOT$modules/$upload"-* "$ROOT$boot/$upload"-*; do
        if [ -d "$folder" ]; then say "left ${folder#"$ROOT"}"; fi
    done
}

# Bytes that can be written where a folder is.
room() {
    free=$(df -Pk "$1" 2>/dev/null | tail -n 1 | tr -s ' ' | cut -d ' ' -f 4)
    echo "$((${free:-0} * 1024))"
}

main() { look "$1" "$2"; }
