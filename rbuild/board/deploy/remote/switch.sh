# Bring into place what was uploaded aside, config.txt last.  Arguments: the lock's holder, the
# deployment's id, the boot folder, config.txt's SHA-256 as it is and its new content in base64
# (both empty if it stays), how many backups to keep; then four for each part: kind, where it is
# aside, where it belongs, its list for sha256sum.  Kinds:
#   file     a file that takes another's place by a rename
#   tree     a folder that takes another's place
#   remove   a file that goes away (neither aside nor list)
#   depmod   modules of a release (the third argument) are to be listed anew
#
# First all is verified, then all that goes away is saved and written down, then it is done.

main() {
    begin "$1"
    id=$2 boot=$3 before=$4 config=$5 keep=$6
    shift 6
    backup=$state/backups/$id
    verify "$@"
    [ ! -e "$backup" ] || fail "$backup is there already"
    mkdir -p "$backup/files" || fail "$backup can't be made"
    if ! save "$@"; then
        rm -rf "$backup"
        rm -f "$ROOT$boot/config.txt.rbuild-$id" "$ROOT$boot/config.txt.rbuild-new"
        fail "the backup can't be written"
    fi
    remember pending || fail "$backup can't be written"
    if ! apply "$@"; then
        undo "$id" "" || fail "neither done nor undone: the next deployment will try again"
        fail "it failed, and was undone"
    fi
    sync
    remember "done" || fail "$backup can't be written"
    say "backup ${backup#"$ROOT"}"
    rm -rf "$ROOT$modules/$upload-$id" "$ROOT$boot/$upload-$id"
    prune
}

verify() {
    while [ $# -ge 4 ]; do
        case $1 in
        file | tree)
            folder=$ROOT$2
            [ "$1" = tree ] || folder=$(dirname "$folder")
            (cd "$folder" && printf '%s\n' "$4" | sha256sum -c --quiet --strict) ||
                fail "what was uploaded for $3 is damaged"
            ;;
        esac
        shift 4
    done
    [ -z "$config" ] || [ "$(sum "$ROOT$boot/config.txt")" = "$before" ] ||
        fail "$boot/config.txt was changed meanwhile"
}

# Keep what is replaced, and write down all that will be done.
save() {
    number=0
    : >"$backup/manifest"
    while [ $# -ge 4 ]; do
        number=$((number + 1))
        kind=$1 how=created
        [ ! -e "$ROOT$3" ] || how=replaced
        case $kind in
        file | remove)
            if [ $how = replaced ]; then
                cp -p "$ROOT$3" "$backup/files/$number" || return 1
            fi
            folder=$(dirname "$3")
            [ -d "$ROOT$folder" ] || note folder "$folder" created 0 || return 1
            note file "$3" $how $number || return 1
            ;;
        tree)
            printf '%s\n' "$id" >"$ROOT$2/$mark" || return 1
            flush "$ROOT$2"
            note tree "$3" $how $number || return 1
            ;;
        depmod) note depmod "$3" listed 0 || return 1 ;;
        esac
        shift 4
    done
    if [ -n "$config" ]; then
        cp -p "$ROOT$boot/config.txt" "$ROOT$boot/config.txt.rbuild-$id" || return 1
        printf '%s' "$config" | base64 -d >"$ROOT$boot/config.txt.rbuild-new" || return 1
        note config "$boot/config.txt" "$(sum "$ROOT$boot/config.txt.rbuild-new")" 0 || return 1
        flush "$ROOT$boot"
    fi
    flush "$backup"
}

note() { printf '%s\t%s\t%s\t%s\n' "$@" >>"$backup/manifest"; }

apply() {
    while [ $# -ge 4 ]; do
        case $1 in
        file)
            mkdir -p "$(dirname "$ROOT$3")" && mv -f "$ROOT$2" "$ROOT$3" || return 1
            flush "$ROOT$3"
            ;;
        remove) rm -f "$ROOT$3" || return 1 ;;
        tree) apply_tree "$ROOT$2" "$ROOT$3" || return 1 ;;
        depmod) depmod -b "$ROOT/" "$3" || return 1 ;;
        esac
        shift 4
    done
    if [ -n "$config" ]; then
        # All that the new config.txt names must be on the card before it is.
        sync
        mv -f "$ROOT$boot/config.txt.rbuild-new" "$ROOT$boot/config.txt" || return 1
        flush "$ROOT$boot"
    fi
}

apply_tree() {
    if [ -e "$2" ]; then
        aside=$(dirname "$2")/$old-$id
        mv -T "$1" "$aside" && exchange "$aside" "$2" || return 1
    else
        mv -T "$1" "$2" || return 1
    fi
    flush "$2"
}

# Remove all but the newest backups, and kernels that neither config.txt, nor a file that it may
# include, nor a backup of it names.
prune() {
    for folder in "$state/backups/"*/; do
        folder=${folder%/}
        gone=${folder##*/}
        [ "$(ls "$state/backups" | wc -l)" -gt "$keep" ] || break
        rm -rf "$ROOT$modules/$old-$gone" "$ROOT$boot/$old-$gone" "$folder"
        rm -f "$ROOT$boot/config.txt.rbuild-$gone"
        say "pruned $gone"
    done
    for folder in "$ROOT$boot/rbuild-"*/; do
        folder=${folder%/}
        if [ -f "$folder/$mark" ] &&
            ! grep -qsF "=${folder##*/}/" "$ROOT$boot/"*.txt "$ROOT$boot/config.txt.rbuild-"*; then
            rm -rf "$folder"
            say "pruned ${folder#"$ROOT"}"
        fi
    done
}
