# Tell which parts are there already, unchanged, and which would replace something.  Arguments, four
# a part: its number, where it belongs, the folder of its files, their list for sha256sum.

main() {
    while [ $# -ge 4 ]; do
        if [ -e "$ROOT$2" ]; then say "there $1"; fi
        if (cd "$ROOT$3" && printf '%s\n' "$4" | sha256sum -c --status --strict) 2>/dev/null; then
            say "same $1"
        fi
        shift 4
    done
}
