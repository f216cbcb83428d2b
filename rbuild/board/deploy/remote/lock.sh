# Hold the lock until rbuild lets go of it or is gone.  Argument: a word that names the holder.
#
# The lock is the kernel's, on an open file: it can't outlive this process.  This process ends when
# its input does, and, where the network died without a word, when nothing has come for a while.

main() {
    exec 9>>"$ROOT/run/rbuild-deploy.lock" || fail "$ROOT/run can't be written"
    flock -n 9 || fail "busy"
    printf '%s\n' "$1" >"$ROOT/run/rbuild-deploy.lock"
    say "locked"
    while [ -n "$(timeout 90 dd bs=512 count=1 2>/dev/null 9>&-)" ]; do :; done
}
