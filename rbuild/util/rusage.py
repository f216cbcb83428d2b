"""What a program and its descendants have used, without what they inherit from rbuild.

The peak of a process's resident set outlives fork(2) and execve(2) (getrusage(2)): a program that
rbuild starts itself shows at least rbuild's own.  So another process of a few MiB starts it, and
tells what its children have used.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

GETRUSAGE = {"x86_64": 98, "aarch64": 165, "armv7l": 77, "armv8l": 77}
"""The number of the system call, by machine."""

STARTER = r"""
my ($report, $number) = splice @ARGV, 0, 2;
open my $out, '>&=', $report or die;
fcntl $out, 2, 1;                               # F_SETFD, FD_CLOEXEC: for nobody else
my $child = fork // die;
if (!$child) {
    exec { $ARGV[0] } @ARGV;
    print STDERR "$ARGV[0]: $!\n";
    exit 127;
}
waitpid $child, 0;
my $status = $?;
my $usage = "\0" x 256;
if (syscall($number + 0, -1, $usage) == 0) {    # RUSAGE_CHILDREN
    my @used = unpack 'l!5', $usage;
    syswrite $out, "@used\n";
}
kill $status & 127, $$ if $status & 127;
exit $status >> 8;
"""
"""Runs its arguments, after the descriptor to report to and the system call's number."""


@dataclass(frozen=True)
class Used:
    """The CPU times in seconds, and the largest resident set of any single process in bytes."""

    user_s: float
    system_s: float
    max_rss_bytes: int


class Reporter:
    """A command line whose process tells what its children have used, where that can be had.

    ``argv`` ends as the given one does, and with its parent; it needs the ``descriptors``.
    """

    def __init__(self, argv: Sequence[str], *, is_wanted: bool = True) -> None:
        self.argv = list(argv)
        self.descriptors: tuple[int, ...] = ()
        self._read: int | None = None
        number = GETRUSAGE.get(os.uname().machine)
        needed = ("perl", "setpriv", self.argv[0])
        if is_wanted and number is not None and all(map(shutil.which, needed)):
            self._read, told = os.pipe()
            os.set_blocking(self._read, False)
            self.descriptors = (told,)
            alive = ["setpriv", "--pdeathsig", "KILL", "--"]
            self.argv = [*alive, "perl", "-e", STARTER, str(told), str(number), *self.argv]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in (*self.descriptors, self._read):
            if one is not None:
                os.close(one)

    def used(self) -> Used | None:
        """Return what was told, once the process has ended; None where nothing was."""
        if self._read is None:
            return None
        try:
            fields = os.read(self._read, 4096).split()
        except BlockingIOError:  # it was killed
            return None
        if len(fields) != 5 or not all(one.isdigit() for one in fields):
            return None
        user_s, user_us, system_s, system_us, peak_kib = map(int, fields)
        return Used(user_s + user_us / 1e6, system_s + system_us / 1e6, peak_kib * 1024)
