#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Tests an MFRC522 driver against the simulated device, as root, in a machine
# that may be lost: meant for busybox in a virtual one. Prints TAP.
#
# usage: guest.sh DRIVER [DIRECTORY [TEST...]]
#   DRIVER     name of the driver's module: mfrc522, mfrc522_rust ...
#   DIRECTORY  where DRIVER.ko and mfrc522_sim.ko are; default: the script's
#   TEST       a test (the names below, without test_), or a suite:
#              functional (the default), soak, or load, for any module

functional="aliases loading versions memory malformed random_ids answers sysfs
	debug registers unbinding unbinding_in_use stuck_commands dead_bus
	wrong_version failing_transfers fifo_lies failing_self_test
	failing_probe concurrent_users two_readers"
soak="concurrent_writers binding_often loading_often"
load="module"

driver=$1
directory=${2:-$(dirname "$0")}
if [ -z "$driver" ]; then
	echo "usage: $0 DRIVER [DIRECTORY [TEST...]]" >&2
	exit 2
fi
shift
[ $# -eq 0 ] || shift

tests=
for name in "${@:-functional}"; do
	case $name in
	functional) tests="$tests $functional" ;;
	soak) tests="$tests $soak" ;;
	load) tests="$tests $load" ;;
	*) tests="$tests $name" ;;
	esac
done

parameters=/sys/module/mfrc522_sim/parameters
devices=/sys/bus/spi/devices
debugfs=/sys/kernel/debug
zeroes=00000000000000000000000000000000000000000000000000
alphabet=ab:defghi::lmnopqrstuvwx:

# --- TAP ---

count=0
failures=0

report() { # RESULT DESCRIPTION
	count=$((count + 1))
	[ "$1" = ok ] || failures=$((failures + 1))
	echo "$1 $count - $2"
}

is() { # GOT EXPECTED DESCRIPTION
	if [ "$1" = "$2" ]; then
		report ok "$3"
	else
		report "not ok" "$3"
		# Each may have several lines.
		echo "     got: $1" | sed 's/^/# /'
		echo "expected: $2" | sed 's/^/# /'
	fi
}

isnt() { # GOT UNEXPECTED DESCRIPTION
	if [ "$1" != "$2" ]; then
		report ok "$3"
	else
		report "not ok" "$3"
		echo "got: $1" | sed 's/^/# /'
	fi
}

succeeds() { # DESCRIPTION COMMAND...
	description=$1
	shift
	if output=$("$@" 2>&1); then
		report ok "$description"
	else
		report "not ok" "$description"
		echo "$output" | sed 's/^/# /'
	fi
}

fails() { # DESCRIPTION COMMAND...
	description=$1
	shift
	if "$@" >/dev/null 2>&1; then
		report "not ok" "$description"
	else
		report ok "$description"
	fi
}

skip() { # DESCRIPTION REASON
	report ok "$1 # SKIP $2"
}

# --- The device node, open as 3 (and others, as 4) ---

errno_name() { # WORDS
	case $1 in
	*"Invalid argument"*) echo EINVAL ;;
	*"Input/output error"* | *"I/O error"*) echo EIO ;;
	*"No such device"*) echo ENODEV ;;
	*"timed out"*) echo ETIMEDOUT ;;
	*"error"* | *"can't"* | *"cannot"*) echo "$1" ;;
	esac
}

# Every command is one write, which is what echo and dd make of it. A process
# takes its time in an emulated machine: so there are as few of them as can be.
give() { # COMMAND [FD]; sets $error
	error=
	{ echo "$1" >&"${2:-3}"; } 2>/tmp/error ||
		error=$(errno_name "$(cat /tmp/error)")
}

send() { # COMMAND [FD]; prints the error, if any
	give "$@"
	echo "$error"
}

send_bytes() { # COMMAND, with printf's escapes, and nothing added
	printf "$1" >/tmp/command
	errno_name "$(dd if=/tmp/command bs=512 2>&1 >&3)"
}

hex() {
	hexdump -ve '1/1 "%02x"'
}

receive_hex() { # [FD [COUNT]]; all that is left, or so many bytes
	if [ -n "$2" ]; then
		dd bs="$2" count=1 <&"$1" 2>/dev/null | hex
	else
		hex <&"${1:-3}" 2>/dev/null
	fi
}

receive_text() { # [FD]
	text=
	IFS= read -r text <&"${1:-3}"
	echo "$text"
}

receive_error() {
	errno_name "$(dd bs=64 count=1 <&3 2>&1 >/dev/null)"
}

ask() { # COMMAND [FD]; prints the error, or the answer
	give "$@"
	if [ -n "$error" ]; then
		echo "$error"
	else
		receive_text "$2"
	fi
}

ask_hex() { # COMMAND [FD]
	give "$@"
	if [ -n "$error" ]; then
		echo "$error"
	else
		receive_hex "$2"
	fi
}

padded_hex() { # TEXT; as the device's memory shows it
	printf '%.50s' "$(printf %s "$1" | hex)$zeroes"
}

fresh=$(padded_hex fresh)

# --- Modules, bindings, faults ---

load_simulator() { # [PARAMETER...]
	insmod "$directory/mfrc522_sim.ko" "$@"
}

load_driver() {
	insmod "$directory/$driver.ko"
}

load() { # [PARAMETER...]
	load_simulator "$@" && load_driver
}

unload() {
	rmmod "$driver"
	rmmod mfrc522_sim
}

# Name of the simulated reader on a chip select, such as spi0.0
reader() { # [CHIP_SELECT]
	for path in "$devices"/*."${1:-0}"; do
		case $(readlink -f "$path") in
		*/mfrc522_sim*) basename "$path" ;;
		esac
	done
}

driver_path() { # needs a bound reader
	readlink -f "$devices/$(reader "$1")/driver"
}

is_bound() { # [CHIP_SELECT]
	[ -e "$devices/$(reader "$1")/driver" ]
}

# As kmod prints the errno of a failed probe, so does a write to bind.
write_to() { # FILE TEXT; prints the error, if any
	errno_name "$( (echo "$2" >"$1") 2>&1)"
}

fault() { # PARAMETER VALUE
	echo "$2" >"$parameters/$1"
}

times_done() { # TIMES COMMAND; prints how many succeeded before one failed
	done=0
	while [ $done -lt "$1" ] && $2 >/dev/null 2>&1; do
		done=$((done + 1))
	done
	echo $done
}

works() { # DESCRIPTION; the device does what it should
	give mem_write:5:fresh
	is "$(ask_hex mem_read)" "$fresh" "$1"
}

# --- Tests: each begins with nothing loaded, and leaves it so ---

test_loading() {
	succeeds "the simulator loads" load_simulator
	fails "nothing is bound without a driver" is_bound
	succeeds "the driver loads" load_driver
	succeeds "the driver is bound to the simulated device" is_bound
	succeeds "there is a device node" test -c /dev/mfrc522
	fails "the driver doesn't load twice" load_driver
	rmmod "$driver"
	fails "no device node stays behind" test -e /dev/mfrc522
	fails "no driver stays bound" is_bound
	succeeds "the driver loads again" load_driver
	succeeds "the driver is bound again" is_bound
	rmmod mfrc522_sim
	fails "the device node goes with the device" test -e /dev/mfrc522
	succeeds "the device may appear after the driver" load_simulator
	succeeds "the driver is bound to the new device" is_bound
	unload

	is "$(times_done 8 load_use_unload)" 8 \
		"loading and unloading can be repeated"

	load modalias=other
	fails "a device of another name is left alone" is_bound
	unload
}

works_once() {
	[ -c /dev/mfrc522 ] &&
		{ [ "$(ask version 5)" = 145 ]; } 5<>/dev/mfrc522
}

load_use_unload() {
	load && works_once && unload
}

test_aliases() {
	for alias in spi:mfrc522 'of:N\*T\*Cmfrc522' 'of:N\*T\*Cnxp,mfrc522'; do
		succeeds "the module has the alias $alias" \
			grep -q "alias=$alias" "$directory/$driver.ko"
	done
}

test_versions() {
	load_driver
	for version in 0x91:145 0x92:146; do
		load_simulator version="${version%:*}"
		exec 3<>/dev/mfrc522
		is "$(ask get_version)" "${version#*:}" \
			"get_version with version ${version%:*}"
		is "$(ask version)" "${version#*:}" \
			"version with version ${version%:*}"
		is "$(ask self_test)" ok "self_test with version ${version%:*}"
		works "the device works after self_test with ${version%:*}"
		exec 3>&-
		rmmod mfrc522_sim
	done

	for version in 0x00 0x12 0x88 0x90 0x93 0xff; do
		load_simulator version=$version
		fails "version $version is refused" is_bound
		fails "version $version has no device node" \
			test -e /dev/mfrc522
		rmmod mfrc522_sim
	done
	rmmod "$driver"
}

test_memory() {
	load
	exec 3<>/dev/mfrc522

	for length in $(seq 0 25); do
		data=$(printf %s "$alphabet" | cut -c "1-$length")
		[ "$length" -gt 0 ] || data=
		is "$(send "mem_write:$length:$data")" "" \
			"mem_write of $length bytes"
		is "$(ask_hex mem_read)" "$(padded_hex "$data")" \
			"mem_read after mem_write of $length bytes"
	done

	is "$(send_bytes 'mem_write:7:\000\n\001\377::\r')" "" \
		"mem_write of any bytes"
	is "$(ask_hex mem_read | cut -c 1-16)" 000a01ff3a3a0d00 \
		"mem_read of any bytes"

	is "$(send_bytes 'mem_write:3:abc')" "" "mem_write without a newline"
	is "$(send_bytes mem_read)" "" "mem_read without a newline"
	is "$(receive_hex)" "$(padded_hex abc)" "its answer"
	is "$(send_bytes 'mem_write:3:ab\n\n')" "" \
		"mem_write of data that ends in a newline, and a newline"
	is "$(ask_hex mem_read | cut -c 1-8)" 61620a00 \
		"only the last newline is dropped"

	exec 3>&-
	unload
}

test_malformed() {
	load
	exec 3<>/dev/mfrc522
	send mem_write:4:keep >/dev/null

	for command in '' ' ' : unknown mem mem_ mem_rea mem_readx MEM_READ \
		' mem_read' 'mem_read ' mem_read: mem_read:1 mem_read:25:x \
		get_version: get_version:1 version:1 versions gen_rand_id: \
		gen_rand_id:10 self_test: self_test:1 debug debug: debug:1 \
		debug:ON debug:on: debug:onn debug:off:off mem_write \
		mem_write: mem_write:: mem_write::abc mem_write:3 \
		mem_write:3: mem_write:3:ab mem_write:3:abcd mem_write:0:a \
		mem_write:-1: mem_write:-1:a mem_write:+3:abc \
		'mem_write: 3:abc' 'mem_write:3 :abc' mem_write:0x3:abc \
		mem_write:3.:abc mem_write:a:abc mem_write:abc:3 \
		mem_write:26:"${alphabet}z" mem_write:25:"${alphabet}z" \
		mem_write:27:"${alphabet}" mem_write:256: \
		mem_write:4294967296: mem_write:4294967299:abc \
		mem_write:18446744073709551616: \
		mem_write:18446744073709551619:abc \
		mem_write:64:"$alphabet$alphabet$alphabet" \
		"$(printf '%0500d' 0)"; do
		is "$(send "$command")" EINVAL \
			"malformed: '$(printf %s "$command" | cut -c 1-40)'"
	done
	is "$(send_bytes 'mem_read\n\n')" EINVAL "malformed: two newlines"
	is "$(send_bytes 'mem_read\r\n')" EINVAL "malformed: carriage return"
	is "$(send_bytes 'mem_read\000')" EINVAL "malformed: NUL"
	is "$(send_bytes '\000mem_read')" EINVAL "malformed: NUL before"
	is "$(send_bytes 'mem_read\nmem_read\n')" EINVAL \
		"malformed: two commands"
	is "$(send_bytes 'mem_write:6:hello\n')" EINVAL \
		"malformed: a trailing newline isn't data"

	is "$(ask_hex mem_read)" "$(padded_hex keep)" \
		"the memory is as before the malformed commands"
	exec 3>&-
	unload
}

test_random_ids() {
	load
	exec 3<>/dev/mfrc522
	first=$(ask_hex gen_rand_id)
	second=$(ask_hex gen_rand_id)
	is "${#first}" 20 "a random ID has 10 bytes"
	is "${#second}" 20 "another random ID has 10 bytes"
	isnt "$first" "$second" "random IDs differ"
	is "$(ask_hex mem_read | cut -c 1-20)" "$second" \
		"a random ID is left in the device's memory"
	exec 3>&-
	unload
}

test_answers() {
	load
	exec 3<>/dev/mfrc522

	is "$(receive_hex)" "" "no answer before the first command"
	send mem_write:5:hello >/dev/null
	is "$(receive_hex)" "" "mem_write has no answer"
	send debug:off >/dev/null
	is "$(receive_hex)" "" "debug:off has no answer"

	send mem_read >/dev/null
	is "$(receive_hex 3 2)" 6865 "an answer may be read in parts: first"
	is "$(receive_hex 3 3)" 6c6c6f "an answer may be read in parts: more"
	is "$(receive_hex)" "$(printf %s "$zeroes" | cut -c 1-40)" \
		"an answer may be read in parts: rest"
	is "$(receive_hex)" "" "an answer is read once"
	is "$(receive_hex)" "" "the end of an answer stays"

	send mem_read >/dev/null
	is "$(ask version)" 145 "an answer replaces one not read"
	is "$(receive_hex)" "" "nothing is left of the answer not read"
	send mem_read >/dev/null
	receive_hex 3 2 >/dev/null
	is "$(ask version)" 145 "an answer replaces one read in part"
	send mem_read >/dev/null
	send mem_write:2:hi >/dev/null
	is "$(receive_hex)" "" "a command without answer drops one not read"
	send mem_read >/dev/null
	send unknown >/dev/null
	is "$(receive_hex)" "" "a malformed command drops an answer not read"

	exec 4<>/dev/mfrc522
	send version 3 >/dev/null
	is "$(receive_hex 4)" "" "an answer isn't another open file's"
	send mem_read 4 >/dev/null
	is "$(receive_text 3)" 145 "the first of two open files"
	is "$(receive_hex 4)" "$(padded_hex hi)" "the second of two open files"
	exec 4>&-
	works "one of two open files is closed, the other works"
	exec 3>&-

	echo version >/dev/mfrc522
	is "$(cat /dev/mfrc522)" "" "an answer doesn't outlive its open file"
	unload
}

# With CONFIG_PM, the kernel's own autosuspend_delay_ms says EIO for every device that isn't
# suspended by itself (drivers/base/power/sysfs.c).
read_all() { # DIRECTORY; reads every readable file below
	find "$1" -type f -perm -400 ! -name autosuspend_delay_ms >/tmp/files
	while read -r file; do
		cat "$file" >/dev/null 2>&1 || echo "$file"
	done </tmp/files
}

test_sysfs() {
	load
	device=$(readlink -f "$devices/$(reader)")
	name=$(basename "$(driver_path)")

	is "$(grep DRIVER= "$device/uevent")" "DRIVER=$name" \
		"uevent tells the driver"
	is "$(grep MODALIAS= "$device/uevent")" MODALIAS=spi:mfrc522 \
		"uevent tells the modalias"
	is "$(write_to "$device/uevent" change)" "" "uevent can be triggered"
	is "$(grep DEVNAME= /sys/class/misc/mfrc522/uevent)" DEVNAME=mfrc522 \
		"the device node's uevent tells its name"
	is "$(read_all "$device")" "" "all attributes of the device are read"
	is "$(read_all "$(driver_path)")" "" \
		"all attributes of the driver are read"
	is "$(read_all /sys/class/misc/mfrc522/)" "" \
		"all attributes of the device node are read"
	is "$(read_all "/sys/module/$driver")" "" \
		"all attributes of the module are read"

	statistics=/sys/class/misc/mfrc522
	is "$(cat $statistics/bytes_read)" 0 "no bytes read yet"
	is "$(cat $statistics/bytes_written)" 0 "no bytes written yet"
	exec 3<>/dev/mfrc522
	send mem_read >/dev/null
	is "$(cat $statistics/bytes_written)" 9 "bytes written are counted"
	is "$(cat $statistics/bytes_read)" 0 "bytes not read aren't counted"
	receive_hex 3 20 >/dev/null
	is "$(cat $statistics/bytes_read)" 20 "bytes read are counted"
	receive_hex >/dev/null
	receive_hex >/dev/null
	is "$(cat $statistics/bytes_read)" 25 "more bytes read are counted"
	send unknown >/dev/null
	is "$(cat $statistics/bytes_written)" 9 \
		"malformed commands aren't counted"
	exec 3>&-
	unload
}

messages() {
	dmesg | grep -c -i -E 'mfrc522|spi[0-9]'
}

test_debug() {
	load
	exec 3<>/dev/mfrc522
	before=$(messages)
	send mem_read >/dev/null
	is "$(messages)" "$before" "transfers aren't logged unless asked for"
	is "$(send debug:on)" "" "debug:on"
	before=$(messages)
	send mem_read >/dev/null
	isnt "$(messages)" "$before" "debug:on logs transfers"
	is "$(send debug:off)" "" "debug:off"
	before=$(messages)
	send mem_read >/dev/null
	is "$(messages)" "$before" "debug:off logs them no longer"
	exec 3>&-
	unload
}

test_registers() {
	load
	state=$debugfs/mfrc522_sim/0
	if [ ! -d "$state" ]; then
		skip "the device's registers" "no debugfs"
		unload
		return
	fi
	exec 3<>/dev/mfrc522
	for command in mem_write:2:hi mem_read gen_rand_id self_test; do
		send "$command" >/dev/null
		is $(($(cat "$state/command") & 0x3f)) 32 \
			"after $command, the device is idle, its receiver off"
		is "$(cat "$state/error")" 0x00 "after $command, no error is set"
		is $(($(cat "$state/auto_test") & 0x0f)) 0 \
			"after $command, the test mode is off"
	done
	send mem_write:2:hi >/dev/null
	is "$(hex <"$state/buffer")" "$(padded_hex hi)" \
		"mem_write fills the whole buffer"
	exec 3>&-
	unload
}

unbind_bind_use() {
	echo "$device" >"$path/unbind" && ! is_bound &&
		[ ! -e /dev/mfrc522 ] &&
		echo "$device" >"$path/bind" && is_bound && works_once
}

test_unbinding() {
	load
	path=$(driver_path)
	device=$(reader)

	is "$(times_done 5 unbind_bind_use)" 5 \
		"unbinding and binding can be repeated"

	exec 3<>/dev/mfrc522
	send version >/dev/null
	is "$(write_to "$path/unbind" "$device")" "" "unbinding with a file open"
	is "$(receive_error)" ENODEV "reading from a device unbound"
	for command in version mem_read mem_write:2:hi gen_rand_id self_test \
		debug:on; do
		is "$(send "$command")" ENODEV "$command to a device unbound"
	done
	fails "no device node stays when unbound" test -e /dev/mfrc522
	is "$(write_to "$path/bind" "$device")" "" "binding again"
	is "$(send version)" ENODEV "the old file is of the old binding"
	exec 4<>/dev/mfrc522
	is "$(ask version 4)" 145 "a new file is of the new one"
	exec 3>&-
	is "$(ask version 4)" 145 "closing the old file harms not the new one"
	fails "a driver in use isn't unloaded" rmmod "$driver"
	is "$(ask version 4)" 145 "nor harmed by trying"
	exec 4>&-

	exec 3<>/dev/mfrc522
	rmmod mfrc522_sim
	is "$(send mem_read)" ENODEV "the device is removed with a file open"
	load_simulator
	is "$(send mem_read)" ENODEV "the device is replaced with a file open"
	exec 3>&-
	exec 3<>/dev/mfrc522
	works "a file opened on the new device"
	exec 3>&-
	unload
}

unbind_and_bind() {
	echo "$device" >"$path/unbind" && echo "$device" >"$path/bind"
}

# Prints how many answers there were; none while the device is away.
use_until() { # NODE FILE
	answers=0
	while [ ! -e "$2" ]; do
		[ "$(ask version 5)" = 145 ] && answers=$((answers + 1))
	done 2>/dev/null 5<>"$1"
	echo $answers
}

# A node of our own, since opening the other in its absence creates a file
use_anew_until() { # NODE FILE
	answers=0
	while [ ! -e "$2" ]; do
		{ [ "$(ask version 5)" = 145 ]; } 5<>"$1" &&
			answers=$((answers + 1))
	done 2>/dev/null
	echo $answers
}

test_unbinding_in_use() {
	load
	path=$(driver_path)
	device=$(reader)
	numbers=$(cat /sys/class/misc/mfrc522/dev)
	rm -f /tmp/stop /tmp/reader
	mknod /tmp/reader c "${numbers%:*}" "${numbers#*:}"

	use_until /tmp/reader /tmp/stop >/tmp/count1 &
	first=$!
	use_anew_until /tmp/reader /tmp/stop >/tmp/count2 &
	second=$!
	sleep 0.5
	is "$(times_done 50 unbind_and_bind)" 50 \
		"unbinding and binding while in use"
	sleep 0.5
	touch /tmp/stop
	wait $first $second
	isnt "$(cat /tmp/count1)" 0 "it was used through an open file"
	isnt "$(cat /tmp/count2)" 0 "it was used through new files"
	exec 3<>/dev/mfrc522
	works "the device works after that"
	exec 3>&-
	unload
}

uptime_s() {
	IFS=. read -r seconds rest </proc/uptime
	echo "$seconds"
}

test_stuck_commands() {
	load
	exec 3<>/dev/mfrc522
	for stuck in 1:mem_read 1:mem_write:2:hi 1:gen_rand_id 1:self_test \
		2:gen_rand_id 3:self_test; do
		fault stuck "${stuck%%:*}"
		before=$(uptime_s)
		is "$(send "${stuck#*:}")" ETIMEDOUT \
			"${stuck#*:} when command ${stuck%%:*} doesn't finish"
		succeeds "it is given up in time" \
			test $(($(uptime_s) - before)) -le 4
		is "$(receive_hex)" "" "it has no answer"
		fault stuck 0
		works "the next command works"
	done
	exec 3>&-
	unload
}

test_dead_bus() {
	load
	exec 3<>/dev/mfrc522
	for miso in 0 255; do
		for command in version mem_read mem_write:2:hi gen_rand_id \
			self_test; do
			fault miso $miso
			is "$(send $command)" EIO "$command when MISO is $miso"
			is "$(receive_hex)" "" "it has no answer"
			fault miso -1
			works "the next command works"
		done
	done
	exec 3>&-
	unload
}

test_wrong_version() {
	load
	exec 3<>/dev/mfrc522
	fault version 0x93
	is "$(send version)" EIO "the version becomes a wrong one"
	fault version 0x91
	works "the next command works"
	exec 3>&-
	unload
}

test_failing_transfers() {
	load
	exec 3<>/dev/mfrc522
	for command in version mem_read mem_write:2:hi gen_rand_id self_test; do
		failed=0
		unexpected=
		for transfer in $(seq 1 200); do
			fault fail_transfer "$transfer"
			error=$(send $command)
			IFS=, read -r left rest <$parameters/fail_transfer
			[ "$left" = 0 ] || break
			failed=$((failed + 1))
			[ "$error" = EIO ] ||
				unexpected="$unexpected $transfer:$error"
			[ "$(ask version)" = 145 ] ||
				unexpected="$unexpected $transfer:after"
		done
		fault fail_transfer 0
		isnt $failed 0 "$command fails if a transfer does"
		is "$unexpected" "" "$command: EIO for each of its transfers"
		works "the next command works"
	done
	exec 3>&-
	unload
}

test_fifo_lies() {
	load
	exec 3<>/dev/mfrc522
	for level in 0 1 24 26 64 65 128 255; do
		fault fifo_level $level
		is "$(send mem_read)" EIO "mem_read when FIFOLevel is $level"
		is "$(receive_hex)" "" "it has no answer"
		fault fifo_level -1
		works "the next command works"
		fault fifo_level $level
		is "$(send gen_rand_id)" EIO "gen_rand_id when FIFOLevel is $level"
		fault fifo_level -1
		works "the next command works"
	done
	for level in 65 128 255; do
		fault fifo_level $level
		is "$(send self_test)" EIO "self_test when FIFOLevel is $level"
		fault fifo_level -1
		works "the next command works"
	done
	exec 3>&-
	unload
}

test_failing_self_test() {
	load
	exec 3<>/dev/mfrc522
	fault bad_self_test 1
	is "$(ask self_test)" failed "self_test of a faulty device"
	fault bad_self_test 0
	is "$(ask self_test)" ok "self_test of a device faulty no longer"
	exec 3>&-
	unload
}

# PARAMETER VALUE NORMAL ERRNO
try_probe_with() {
	fault "$1" "$2"
	is "$(write_to "$path/bind" "$device")" "$4" \
		"probing with $1=$2 fails with $4"
	fault "$1" "$3"
	fails "after that, no driver is bound" is_bound
	fails "after that, there is no device node" test -e /dev/mfrc522
}

test_failing_probe() {
	load
	path=$(driver_path)
	device=$(reader)
	echo "$device" >"$path/unbind"
	try_probe_with version 0x93 0x91 ENODEV
	try_probe_with miso 0 -1 ENODEV
	try_probe_with miso 255 -1 ENODEV
	try_probe_with fail_transfer 1 0 EIO
	# The driver core negates what it gets, and so hides it from bind.
	is "$(dmesg | grep 'failed with error [1-9]')" "" \
		"no probe failed with a positive errno"
	is "$(write_to "$path/bind" "$device")" "" "probing without faults"
	exec 3<>/dev/mfrc522
	works "the device works after failed probes"
	exec 3>&-
	unload

	load_simulator miso=0
	succeeds "the driver loads though its device fails" load_driver
	fails "but isn't bound" is_bound
	succeeds "and unloads" rmmod "$driver"
	rmmod mfrc522_sim
}

count_answers() { # NODE TIMES COMMAND LENGTH
	good=0
	for cycle in $(seq "$2"); do
		answer=$(ask_hex "$3" 5)
		[ "${#answer}" = "$4" ] && good=$((good + 1))
	done 5<>"$1"
	echo $good
}

test_concurrent_users() {
	load
	count_answers /dev/mfrc522 20 mem_read 50 >/tmp/count1 &
	first=$!
	count_answers /dev/mfrc522 20 gen_rand_id 20 >/tmp/count2 &
	second=$!
	count_answers /dev/mfrc522 20 version 6 >/tmp/count3
	wait $first $second
	is "$(cat /tmp/count1)" 20 "three users at once: mem_read"
	is "$(cat /tmp/count2)" 20 "three users at once: gen_rand_id"
	is "$(cat /tmp/count3)" 20 "three users at once: version"
	unload
}

test_two_readers() {
	load readers=2 version=0x91,0x92
	succeeds "the first reader is bound" is_bound 0
	succeeds "the second reader is bound" is_bound 1
	succeeds "the first reader has a device node" test -c /dev/mfrc522
	succeeds "the second reader has a device node" test -c /dev/mfrc522-1

	exec 3<>/dev/mfrc522 4<>/dev/mfrc522-1
	is "$(ask version 3)" 145 "the first reader's version"
	is "$(ask version 4)" 146 "the second reader's version"
	send mem_write:3:one 3 >/dev/null
	send mem_write:3:two 4 >/dev/null
	send mem_read 3 >/dev/null
	send mem_read 4 >/dev/null
	is "$(receive_hex 3)" "$(padded_hex one)" "the first reader's memory"
	is "$(receive_hex 4)" "$(padded_hex two)" "the second reader's memory"
	is "$(ask self_test 3)" ok "the first reader's self_test"
	is "$(ask self_test 4)" ok "the second reader's self_test"

	fault stuck 1
	is "$(send mem_read 3)" ETIMEDOUT "the first reader is faulty"
	is "$(ask version 4)" 146 "the second isn't"
	is "$(send mem_write:3:two 4)" "" "the second's memory is written"
	fault stuck 0

	count_answers /dev/mfrc522 20 gen_rand_id 20 >/tmp/count1 &
	first=$!
	count_answers /dev/mfrc522-1 20 mem_read 50 >/tmp/count2
	wait $first
	is "$(cat /tmp/count1)" 20 "both readers at once: the first"
	is "$(cat /tmp/count2)" 20 "both readers at once: the second"

	path=$(driver_path 0)
	device=$(reader 0)
	echo "$device" >"$path/unbind"
	is "$(send version 3)" ENODEV "the first reader is unbound"
	is "$(ask_hex mem_read 4)" "$(padded_hex two)" "the second one works"
	echo "$device" >"$path/bind"
	exec 3>&-
	exec 3<>/dev/mfrc522
	is "$(ask version 3)" 145 "the first reader is back, under its name"
	exec 3>&- 4>&-
	unload
}

# --- The soak: what takes longer ---

write_and_read_until() { # LETTER FILE; one of several that do so
	good=0
	pattern=$(printf '%25s' '' | tr ' ' "$1")
	while [ ! -e "$2" ]; do
		send "mem_write:25:$pattern" 5
		answer=$(ask mem_read 5)
		# Somebody else's data, perhaps, but never a mixture
		case $answer in
		aaaaaaaaaaaaaaaaaaaaaaaaa | bbbbbbbbbbbbbbbbbbbbbbbbb | \
			ccccccccccccccccccccccccc | ddddddddddddddddddddddddd)
			good=$((good + 1))
			;;
		*) echo "$answer" ;;
		esac
	done 5<>/dev/mfrc522
	[ $good -gt 0 ] || echo "nothing read"
}

test_concurrent_writers() {
	load
	rm -f /tmp/stop
	writers=
	for letter in a b c d; do
		write_and_read_until $letter /tmp/stop >/tmp/writer-$letter &
		writers="$writers $!"
	done
	sleep 5
	touch /tmp/stop
	wait $writers
	for letter in a b c d; do
		is "$(cat /tmp/writer-$letter)" "" \
			"one of four concurrent writers: $letter"
	done
	exec 3<>/dev/mfrc522
	works "the device works after that"
	exec 3>&-
	unload
}

# Bytes that the kernel has allocated for itself
kernel_bytes() {
	awk '/^(SUnreclaim|VmallocUsed|Percpu):/ { sum += $2 }
		END { print sum * 1024 }' /proc/meminfo
}

kmemleak=$debugfs/kmemleak

# What kmemleak finds; it takes nothing for lost that is younger than 5 s.
leaks() {
	sleep 6
	echo scan >$kmemleak
	echo scan >$kmemleak
	cat $kmemleak
}

hundred_times() { # COMMAND; prints how many succeeded, and says on stderr how far it is
	total=0
	while [ $total -lt 100 ]; do
		ten=$(times_done 10 "$1")
		total=$((total + ten))
		[ "$ten" -eq 10 ] || break
		echo "# $total times" >&2
	done
	echo $total
}

# Does something a hundred times, and looks whether memory is lost by that: with
# kmemleak where there is one, since it takes memory itself, as other checkers
# do. Else the kernel's memory is looked at. Other things take and give back some
# 100 KB of it meanwhile; so if there is less of it than before, it's done again:
# a leak takes as much each time, a cache of the kernel's may grow once.
often() { # COMMAND DESCRIPTION [ROUNDS], at least; in one alone a leak may be hidden
	times_done 10 "$1" >/dev/null
	before=$(kernel_bytes)
	is "$(hundred_times "$1")" 100 "$2 100 times"
	if [ -e $kmemleak ]; then
		is "$(leaks)" "" "$2 loses no memory"
		return
	fi
	lost=$(($(kernel_bytes) - before))
	most=$lost
	round=1
	while [ $round -lt "${3:-1}" ] || { grew && [ $round -lt 5 ]; }; do
		hundred_times "$1" >/dev/null
		step=$(($(kernel_bytes) - before - lost))
		lost=$((lost + step))
		[ $step -le $most ] || most=$step
		round=$((round + 1))
	done
	echo "# $lost bytes more after $round hundred times, $most of them in one"
	fails "$2 loses no memory" grew
}

# Whether memory has grown by 16 KiB each hundred times, also without the time it grew most
grew() {
	[ $lost -ge $((round * 16384)) ] &&
		[ $((lost - most)) -ge $(((round - 1) * 16384)) ]
}

test_binding_often() {
	load
	path=$(driver_path)
	device=$(reader)
	often unbind_and_bind "unbinding and binding" 3
	exec 3<>/dev/mfrc522
	works "the device works after that"
	exec 3>&-
	unload
}

test_loading_often() {
	often load_use_unload "loading, using and unloading"
}

# --- Any module ---

test_module() {
	loaded=$(echo "$driver" | tr - _)
	succeeds "the module loads" load_driver
	succeeds "it is among the modules that are loaded" \
		grep -q "^$loaded " /proc/modules
	is "$(read_all "/sys/module/$loaded")" "" \
		"all attributes of the module are read"
	succeeds "the module unloads" rmmod "$loaded"
	succeeds "the module loads again" load_driver
	succeeds "the module unloads again" rmmod "$loaded"
}

test_kernel_log() {
	# The guest has no firmware files, which a kernel with WLAN looks for.
	dmesg | grep -E "$troubles" | grep -v 'regulatory\.db' >/tmp/troubles
	is "$(cat /tmp/troubles)" "" "the kernel has nothing to complain about"
	[ ! -e $kmemleak ] || is "$(leaks)" "" "no memory was lost"
}

# --- The machine ---

troubles='BUG:|WARNING:|Oops|Kernel panic|Unable to handle|Call trace|UBSAN|KASAN|'
troubles="${troubles}refcount_t|sysfs: cannot create|possible recursive|"
troubles="${troubles}not DMA-safe|failed to load|should not be sleeping|"
troubles="${troubles}possible circular|inconsistent lock|blocked for more than|"
troubles="${troubles}detected stall|list_add corruption|list_del corruption"

mount_missing() { # TYPE DIRECTORY
	grep -q " $2 $1 " /proc/mounts || mount -t "$1" "$1" "$2" 2>/dev/null
}

mkdir -p /proc /sys /dev /tmp
[ -e /proc/mounts ] || mount -t proc proc /proc
mount_missing sysfs /sys
mount_missing devtmpfs /dev
[ ! -d $debugfs ] || mount_missing debugfs $debugfs
# What the kernel lost before is none of the driver's.
[ ! -e $kmemleak ] || echo clear >$kmemleak

for name in $tests kernel_log; do
	echo "# Group: $name"
	if [ "$(type "test_$name" 2>/dev/null)" ]; then
		"test_$name"
	else
		report "not ok" "there is no test $name"
	fi
done

echo "1..$count"
echo "# $((count - failures)) of $count passed"
[ $failures -eq 0 ]
