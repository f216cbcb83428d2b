# Tell what is there; change nothing.  Arguments: the boot folder, or nothing to look for it; the
# kernel's release, or nothing for the one that runs.

probe() {
    say "uid $(id -u)"
    release=${2:-$(uname -r)}
    say "release $release"
    say "machine $(uname -m)"
    programs
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
        included
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

# Tell what the programs there are: the bits of a pointer, and of a system that runs the size of a
# page and what its device tree calls the board; of a card's, the first bytes of one (elf(5)).
programs() {
    if [ -z "$ROOT" ]; then
        say "bits $(getconf LONG_BIT 2>/dev/null)"
        say "page_size $(getconf PAGESIZE 2>/dev/null)"
        if [ -f /proc/device-tree/compatible ]; then
            say "compatible $(tr '\0' ' ' </proc/device-tree/compatible)"
        fi
        return
    fi
    for one in usr/lib/systemd/systemd lib/systemd/systemd bin/dash bin/bash bin/busybox; do
        if [ -f "$ROOT/$one" ] && [ ! -L "$ROOT/$one" ]; then
            say "elf $(od -An -v -tx1 -N 20 "$ROOT/$one" | tr -d ' \n')"
            return
        fi
    done
}

# Tell the files that config.txt includes, each once; they may include others.
included() {
    queue=$(includes "$ROOT$boot/config.txt") number=0 seen=
    while [ -n "$queue" ] && [ "$number" -lt 64 ]; do
        number=$((number + 1))
        one=$(printf '%s\n' "$queue" | head -n 1)
        queue=$(printf '%s\n' "$queue" | tail -n +2)
        case "/$one/$seen" in */../* | *"//$one//"*) continue ;; esac
        seen="$seen//$one//"
        file=$ROOT$boot/$one
        if [ -f "$file" ] && [ "$(wc -c <"$file")" -le 262144 ]; then
            say "include $(base64 <"$file" | tr -d '\n') $one"
            queue=$(printf '%s\n%s' "$(includes "$file")" "$queue" | sed '/^$/d')
        fi
    done
}

# The names after `include` in a file.
includes() {
    tr -d '\r' <"$1" | sed -n "s/^[ $tab]*include[ $tab]\{1,\}//p" | sed "s/[ $tab]*\$//"
}

# Bytes that can be written where a folder is.
room() {
    free=$(df -Pk "$1" 2>/dev/null | tail -n 1 | tr -s ' ' | cut -d ' ' -f 4)
    echo "$((${free:-0} * 1024))"
}

main() { probe "$1" "$2"; }
