# Tell the configuration of a release's kernel, compressed by gzip, where the board has it.
# Argument: the release.

main() {
    if [ -z "$ROOT" ] && [ "$(uname -r)" = "$1" ] && [ -f /proc/config.gz ]; then
        say "kconfig $(base64 </proc/config.gz | tr -d '\n')"
    elif [ -f "$ROOT/boot/config-$1" ]; then
        say "kconfig $(gzip -c <"$ROOT/boot/config-$1" | base64 | tr -d '\n')"
    fi
}
