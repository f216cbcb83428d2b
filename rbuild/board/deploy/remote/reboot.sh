# Reboot once this connection has ended.

main() {
    (sleep 1 && reboot) </dev/null >/dev/null 2>&1 &
    say "rebooting"
}
