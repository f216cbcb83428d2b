"""How a job's container is locked down: file systems, devices, system calls, its first process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TMPFS = {"/tmp": "rw,exec,nosuid,nodev,mode=1777"}  # noqa: S108 - the sandbox's own

FILTER = r"""
use POSIX ();
my $filter = pack 'H*', shift @ARGV;
my %prctl = (x86_64 => 157, aarch64 => 167, armv7l => 172, armv8l => 172);
my $set = $prctl{(POSIX::uname())[4]};
syscall($set, 22, 2, pack('S x![L!] P', length($filter) / 8, $filter), 0, 0) if defined $set;
"""
"""Filters system calls by its first argument, from here on (PR_SET_SECCOMP), besides the engine's
own profile.  QEMU refuses that to emulated programs: they have the engine's profile only."""

PLAIN = (
    FILTER
    + r"""
exec {$ARGV[0]} @ARGV;
print STDERR "$ARGV[0]: $!\n";
POSIX::_exit(127);
"""
)
"""PID 1 of a container on the user's terminal: becomes its arguments."""

INIT = (
    """
my $mark = shift @ARGV;
"""
    + FILTER
    + r"""
open STDERR, '>&', \*STDOUT;
my $watch = fork // die;
if (!$watch) {
    close STDOUT;
    close STDERR;
    1 while sysread STDIN, my $byte, 1;
    kill 'KILL', -1;
    POSIX::_exit(0);
}
my $child = fork // die;
if (!$child) {
    delete $ENV{HOSTNAME};
    open STDIN, '<', '/dev/null';
    exec {$ARGV[0]} @ARGV;
    print "$ARGV[0]: $!\n";
    POSIX::_exit(127);
}
my $status = 0;
# Orphans come to PID 1, and count against the container's bound until somebody waits for them.
while ((my $ended = wait) != -1) {
    next if $ended != $child;
    $status = $?;
    last;
}
my %number = (x86_64 => 98, aarch64 => 165, armv7l => 77, armv8l => 77);
my $machine = (POSIX::uname())[4];
my $length = length pack 'l!', 0;
my $usage = "\0" x 256;
my @used = (0) x 5;
my $asked = $number{$machine};
@used = unpack 'l!5', $usage if defined $asked && $length == ($asked == 77 ? 4 : 8)
    && syscall($asked, -1, $usage) == 0;
syswrite STDOUT, "\0$mark $status @used\n";
POSIX::_exit(0);
"""
)
"""PID 1 of a container: runs its arguments, with stdout and stderr in one stream, and says at the
end how they ended and what they used (getrusage(2) of its children).  Once its own input ends,
since rbuild did, so does the container."""


def mount_option(mount: Mapping[str, Any]) -> str:
    """Return what docker(1) has behind --mount for one of the API's mounts."""
    words = [f"type={mount['Type']}", f"source={mount['Source']}", f"target={mount['Target']}"]
    if mount.get("ReadOnly"):
        words.append("readonly")
    if (mount.get("VolumeOptions") or {}).get("NoCopy"):
        words.append("volume-nocopy")
    return ",".join(words)
