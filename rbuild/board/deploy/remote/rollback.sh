# Undo a deployment.  Arguments: the lock's holder, its id, config.txt's SHA-256 as it is, its new
# content in base64 (both empty if it stays), the boot folder.

main() {
    begin "$1"
    [ -z "$4" ] || [ "$(sum "$ROOT$5/config.txt")" = "$3" ] ||
        fail "$5/config.txt was changed meanwhile"
    undo "$2" "$4" || fail "not all of it could be undone: the next deployment will go on with it"
}
