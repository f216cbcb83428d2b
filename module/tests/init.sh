#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0
#
# The first process of a guest that tests a module: makes a system of busybox,
# runs the tests, shows the kernel's log, and powers off. What is said to
# rbuild, which reads the console, begins with "rbuild: ".
#
# arguments (what follows -- on the kernel's command line): those of guest.sh

/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ TERM=dumb
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1

echo "rbuild: up after $(cut -d ' ' -f 1 /proc/uptime) s"
# What the tests provoke would be printed amid their results; what is critical
# is, and all of the log at the end.
dmesg -n 3

for module in /modules/needed/*.ko; do
	[ ! -e "$module" ] || insmod "$module"
done

driver=$1
shift
sh /guest.sh "$driver" /modules "$@"
echo "rbuild: tests ended with $?"

echo "rbuild: log begins"
dmesg
echo "rbuild: log ends"
sync
poweroff -f
