# Undo a switch that was interrupted, remove what unfinished uploads left, then probe.  Arguments:
# the lock's holder, the boot folder, a release as for looking.

main() {
    begin "$1"
    for folder in "$state/backups/"*/; do
        folder=${folder%/}
        [ -d "$folder" ] || continue
        case $(cat "$folder/state" 2>/dev/null) in
        done) ;;
        pending)
            undo "${folder##*/}" "" || fail "$folder can't be undone"
            say "undone ${folder##*/}"
            ;;
        *)
            # It had not begun to change anything.
            rm -rf "$folder" "$ROOT$2/config.txt.rbuild-${folder##*/}"
            ;;
        esac
    done
    rm -f "$ROOT$2/config.txt.rbuild-new"
    for folder in "$ROOT$modules/$upload"-* "$ROOT$2/$upload"-*; do
        if [ -d "$folder" ]; then
            rm -rf "$folder" || fail "${folder#"$ROOT"} can't be removed"
            say "cleaned ${folder#"$ROOT"}"
        fi
    done
    probe "$2" "$3"
}
