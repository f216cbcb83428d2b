# Tell what undoing a deployment means.  Arguments: its id, the boot folder.

main() {
    backup=$state/backups/$1
    while IFS=$tab read -r kind path how _; do
        say "entry $kind $how $path"
    done <"$backup/manifest"
    if [ -f "$ROOT$2/config.txt.rbuild-$1" ]; then
        say "config $(base64 <"$ROOT$2/config.txt.rbuild-$1" | tr -d '\n')"
    fi
}
