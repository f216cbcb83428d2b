"""A guest's console: its test results, and the kernel's reports of faults."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from rbuild.boot import tap
from rbuild.ui.step import Step

SPLAT = re.compile(
    r"BUG: |WARNING: |Kernel panic|Internal error: |Oops\b|Unable to handle kernel|kernel BUG at |"
    r"rust_kernel: panicked at |"
    r"KASAN: |KFENCE: |KCSAN: |UBSAN: |refcount_t: |unreferenced object|"
    r"(circular|recursive) locking|inconsistent lock state|suspicious RCU usage|"
    r"INFO: task .{1,100} blocked for more than|detected stalls|list_(add|del) corruption|"
    r"ODEBUG: |DEBUG_LOCKS_WARN_ON|scheduling while atomic"
)
"""What a kernel's log says when something went wrong that no test may have noticed."""

PRINTK = re.compile(r"^\[ *[0-9.]+\](?:\[ *[TC][0-9]+\])? ?")
"""What the kernel prints before a line: the time, and who printed it."""

UP = re.compile(r"rbuild: up after ([0-9]{1,9}(?:\.[0-9]{1,9})?) s")

ENDED = re.compile(r"rbuild: tests ended with ([0-9]{1,9})")
"""What the guest's first process says of itself."""

MAX_CONSOLE = 64 << 20
"""The characters that a guest may write: all tests of all suites are 1 MiB, with a splat each 4."""

MAX_KEPT = 1000
"""How many splats, and failures of the kernel's own tests, are kept of an endless console."""

PANICKED = re.compile(r"panicked at .*:[0-9]+:$")
"""How a panic of Rust's begins; the next line says why."""

NOT_THE_KERNELS = ("#", "ok ", "not ok ", "rbuild: ")

MAX_REPORT_LINES = 80
"""The lines of a report that are kept: an Oops with all registers and a deep stack has sixty."""

MAX_REPORTS = 3

AFTER_REPORT = 8


class _TooMuch(Exception):  # noqa: N818 - a message between two functions here
    """A guest exceeded its console output limit."""


@dataclass
class Listener:
    """Makes sense of a guest's console, line by line.

    A kernel with KUnit prints TAP, too, before the guest's first process and once more in its log:
    of that, only what failed counts.
    """

    tap: tap.Reader = field(default_factory=tap.Reader)
    up_s: float | None = None
    status: int | None = None
    in_log: bool = False
    log_ended: bool = False
    splats: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    reports: dict[str, list[str]] = field(default_factory=dict)
    """What was printed of faults, by the first line; the longer one of what is there twice."""
    _report: list[str] | None = None
    _has_panicked: bool = False

    def hear(self, line: str, step: Step | None = None) -> None:
        """Take one line."""
        test = self.tap.take(line) if self.up_s is not None and not self.in_log else None
        if test is not None and step is not None:
            step.update(str(test), done=test.number)
        if found := UP.fullmatch(line):
            self.up_s = float(found[1])
        elif found := ENDED.fullmatch(line):
            self.status = int(found[1])
        elif self.up_s is None and (
            found := re.fullmatch(r"(?:\[ *[0-9.]+\] )?not ok \d+ (.*)", line)
        ):
            if len(self.problems) < MAX_KEPT:
                self.problems.append(f"the kernel's own test {found[1]} failed")
        elif line == "rbuild: log begins":
            self.in_log = True
        elif line == "rbuild: log ends":
            self.log_ended = True
        self._hear_kernel(PRINTK.sub("", line))

    def _hear_kernel(self, line: str) -> None:
        """Take a line that may be of the kernel's report of a fault."""
        # A test's own words may name what it looks for.
        is_splat = SPLAT.search(line) and not line.startswith(NOT_THE_KERNELS)
        if self._has_panicked and self.splats:
            self.splats[-1] += f" {line}"
        elif is_splat and len(self.splats) < MAX_KEPT:
            self.splats.append(line)
        self._has_panicked = bool(is_splat and PANICKED.search(line))
        if self._report is not None:
            if not line.startswith(NOT_THE_KERNELS):
                self._report.append(line)
            if (
                line.startswith((*NOT_THE_KERNELS, "---[ end "))
                or len(self._report) >= MAX_REPORT_LINES
            ):
                self._keep_report(self._report)
                self._report = None
        elif is_splat and not (self.reports and line.startswith("Kernel panic")):
            self._report = [line]

    def end(self) -> None:
        """Take it that no more lines come."""
        if self._report is not None:
            self._keep_report(self._report)
        self._report = None

    def _keep_report(self, report: list[str]) -> None:
        had = self.reports.get(report[0])
        if len(report) > len(had or ()) and (had or len(self.reports) < MAX_REPORTS):
            self.reports[report[0]] = report

    def verdict(self) -> list[str]:
        """Return what is wrong with the guest as a whole, the likeliest cause first."""
        splats = list(dict.fromkeys(self.splats))[:SPLATS_SHOWN]
        found = [f"the kernel said `{splat}`" for splat in splats] + self.problems
        if self.up_s is None:
            found.append("it didn't come as far as its first process")
        elif self.status is None:
            found.append("it ended amid the tests")
        elif not self.log_ended:
            found.append("it ended before all of its log was seen")
        if self.up_s is not None:
            found += self.tap.report().problems()
        if self.status not in {None, 0} and not self.tap.report().failed:
            found.append(f"the test script ended with status {self.status}")
        return found


def _failed(report: tap.Report) -> list[str]:
    failed = report.failed
    if not failed:
        return []
    count = "one test" if len(failed) == 1 else f"{len(failed)} tests"
    return [f"{count} of {len(report.tests)} failed, the first: {failed[0]}"]


SPLATS_SHOWN = 5
