# What all steps on the board share.  rbuild sends this, then a step's own file, then a call of its
# `main` within braces, on the standard input of `sh -s`: a shell that gets only a part of that
# (the connection was cut) finds no end of the braces, and runs nothing.
#
# Needed there: a POSIX shell, GNU coreutils, util-linux's flock, and rsync.  ROOT is where the
# board's file system begins: empty for the system that runs, else where a card is mounted.  Paths
# in arguments and manifests don't have it.

set -u
LC_ALL=C
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export LC_ALL PATH
umask 022
# A step that has begun goes on to its end, whether or not anybody still listens.
trap '' HUP PIPE

state=$ROOT/var/lib/rbuild
modules=/lib/modules
upload=.rbuild-upload
old=.rbuild-backup
mark=.rbuild
tab=$(printf '\t')

# Tell rbuild something: a word, then its value to the end of the line.
say() { printf 'rbuild: %s\n' "$*" 2>/dev/null || :; }

fail() {
    say "error $*"
    exit 1
}

# Bring a file system's changes to the card.
flush() { sync -f "$1" 2>/dev/null || sync; }

sum() { sha256sum <"$1" | cut -d ' ' -f 1; }

# A deployment's state: pending once it may have changed something, done at its end.
remember() {
    echo "$1" >"$backup/state.new" && flush "$backup" &&
        mv -f "$backup/state.new" "$backup/state" && flush "$backup"
}

# Only who holds the lock may change anything, one step at a time.  The lock's file names its
# holder; a step of a holder that was cut off may still be at work, hence a lock of its own.
begin() {
    exec 8>>"$ROOT/run/rbuild-step.lock" || fail "$ROOT/run can't be written"
    flock -n 8 || fail "busy"
    if flock -n "$ROOT/run/rbuild-deploy.lock" true ||
        [ "$(cat "$ROOT/run/rbuild-deploy.lock")" != "$1" ]; then
        fail "lost"
    fi
}

# Exchange two folders of one file system: at once where the kernel and mv can do that (coreutils
# 9.5), else by three renames, which `undo_tree` can tell apart and put right.
exchange() {
    mv --exchange -T "$1" "$2" 2>/dev/null && return
    mv -T "$2" "$1.old" && mv -T "$1" "$2" && mv -T "$1.old" "$1"
}

# Put config.txt back: to CONFIG (base64) if that is given, else to its copy, unless somebody has
# edited it since.
undo_config() {
    path=$ROOT$1 copy=$ROOT$1.rbuild-$id
    if [ -n "$config" ]; then
        printf '%s' "$config" | base64 -d >"$path.rbuild-new" || return 1
    elif [ -f "$copy" ] && [ "$(sum "$path")" = "$2" ]; then
        cp "$copy" "$path.rbuild-new" || return 1
    else
        rm -f "$path.rbuild-new"
        return 0
    fi
    flush "$path.rbuild-new"
    mv -f "$path.rbuild-new" "$path" || return 1
    flush "$path"
    say "restored $1"
}

undo_file() {
    path=$ROOT$1 copy=$backup/files/$3
    if [ "$2" = created ]; then
        rm -f "$path" || return 1
        say "removed $1"
    elif ! cmp -s "$copy" "$path"; then
        cp -p "$copy" "$path.rbuild-new" && flush "$path.rbuild-new" &&
            mv -f "$path.rbuild-new" "$path" || return 1
        say "restored $1"
    fi
}

# A folder that this deployment brought has its id in a file; so it is known which of two is new.
undo_tree() {
    path=$ROOT$1 aside=$(dirname "$ROOT$1")/$old-$id
    if [ -e "$aside.old" ]; then
        if [ -e "$path" ]; then
            mv -T "$aside.old" "$aside" || return 1
        else
            mv -T "$aside.old" "$path" || return 1
        fi
    fi
    if [ "$(cat "$path/$mark" 2>/dev/null)" = "$id" ]; then
        if [ -e "$aside" ]; then
            exchange "$aside" "$path" || return 1
            say "restored $1"
        elif [ "$2" != created ]; then
            fail "the backup of $1 is gone"
        elif [ -z "$ROOT" ] && [ "$1" = "$modules/$(uname -r)" ]; then
            # The kernel that runs still needs it.
            say "kept $1"
        elif grep -qsF "=${1##*/}/" "$(dirname "$path")/"*.txt; then
            # Somebody's config.txt, or a file that it includes, boots from it.
            say "kept $1"
        else
            mv -T "$path" "$aside" || return 1
            say "removed $1"
        fi
    fi
    rm -rf "$aside"
}

# Undo a deployment, whole or begun, by its manifest; the last first.  An undoing that is
# interrupted is finished by the next step that calls this.
undo() {
    id=$1 config=$2
    backup=$state/backups/$id
    remember pending || return 1
    tac "$backup/manifest" >"$backup/reversed" || return 1
    while IFS=$tab read -r kind path how more; do
        case $kind in
        config) undo_config "$path" "$how" || return 1 ;;
        file) undo_file "$path" "$how" "$more" || return 1 ;;
        tree) undo_tree "$path" "$how" || return 1 ;;
        folder) rmdir "$ROOT$path" 2>/dev/null || : ;;
        esac
    done <"$backup/reversed"
    while IFS=$tab read -r kind path _; do
        if [ "$kind" = depmod ] && [ -d "$ROOT$modules/$path" ]; then
            depmod -b "$ROOT/" "$path" || return 1
        fi
    done <"$backup/manifest"
    sync
    while IFS=$tab read -r kind path _; do
        if [ "$kind" = config ]; then rm -f "$ROOT$path.rbuild-$id"; fi
    done <"$backup/manifest"
    rm -f "$backup/state" && flush "$backup"
    rm -rf "$backup"
}
