"""Boots: a built kernel started in QEMU, with modules and tests that the guest runs by itself.

The guest's first process (``module/tests/init.sh``) prints TAP on the console and powers off, so
that nothing has to be typed; here its console is read, and judged without trust: tests that fail
or are missing, a splat in the kernel's log, a panic, a hang, or an end without a goodbye.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from rbuild import process, tap
from rbuild.architecture import Machine
from rbuild.console import Step
from rbuild.elf import module_info
from rbuild.errors import GuestFailed, InfrastructureError, ProcessFailed, TimedOut
from rbuild.guest import initramfs, userland
from rbuild.kernel import Kdir, Stage
from rbuild.module import Built, with_own_paths
from rbuild.process import Limits, Usage
from rbuild.reproduce import SCRIPT, guest
from rbuild.session import Phase, Session
from rbuild.store import digest, sha256_file
from rbuild.trace import readable

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

CONSOLE_MOST = 64 << 20
"""The characters that a guest may write: all tests of all suites are 1 MiB, with a splat each 4."""

KEPT_MOST = 1000
"""How many splats, and failures of the kernel's own tests, are kept of an endless console."""

PANICKED = re.compile(r"panicked at .*:[0-9]+:$")
"""How a panic of Rust's begins; the next line says why."""

NOT_THE_KERNELS = ("#", "ok ", "not ok ", "rbuild: ")
REPORT_MOST = 80
"""The lines of a report that are kept: an Oops with all registers and a deep stack has sixty."""
REPORTS_MOST = 3

SPLATS_SHOWN = 5
CONSOLE_SHOWN = 20
"""How many of the console's last lines a failure shows; fewer after a report."""
AFTER_REPORT = 8

DIAGNOSTICS_SHOWN = 20
LINE_SHOWN = 300
"""How many lines of a failed test are shown, and how much of each; the TAP file has all."""


class Suite(StrEnum):
    """The groups of tests that ``module/tests/guest.sh`` has."""

    FUNCTIONAL = "functional"
    SOAK = "soak"
    LOAD = "load"


@dataclass(frozen=True)
class Booted:
    """What a guest did, passed or not.

    ``up_s`` is the guest's own time from its kernel's start to its first process, ``usage`` what
    QEMU used from its start to its end.  ``reports`` are what the kernel printed of faults, each
    from its first line, with the names of functions as they are in the source.
    """

    report: tap.Report
    problems: tuple[str, ...]
    up_s: float | None
    usage: Usage | None
    console: Path
    tap: Path
    initramfs: Path
    reports: tuple[tuple[str, ...], ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all went well."""
        return not self.problems

    @property
    def phase(self) -> Phase:
        """The boot as a phase of the command."""
        return Phase("boot", self.usage or Usage(0, 0, 0, 0))

    def as_json(self) -> dict[str, Any]:
        """Return the outcome for --json."""
        tests = self.report.tests
        return {
            "passed": self.passed,
            "problems": list(self.problems),
            "reports": [list(report) for report in self.reports],
            "planned": self.report.planned,
            "ok": sum(test.passed and test.skipped is None for test in tests),
            "failed": len(self.report.failed),
            "skipped": len(self.report.skipped),
            "up_s": self.up_s,
            "console": str(self.console),
            "tap": str(self.tap),
            "initramfs": {"path": str(self.initramfs), "sha256": sha256_file(self.initramfs)},
            "tests": [
                {
                    "number": test.number,
                    "group": test.group,
                    "name": test.name,
                    "ok": test.passed,
                    "skipped": test.skipped,
                    "diagnostics": list(test.diagnostics),
                }
                for test in tests
            ],
        }


class _TooMuch(Exception):  # noqa: N818 - a message between two functions here
    """A guest exceeded its console output limit."""


def boot(
    kdir: Kdir,
    modules: Sequence[Built],
    driver: str,
    tests: Sequence[str],
    limits: Limits,
    session: Session,
    machine: Machine,
    origin: Path | None = None,
) -> Booted:
    """Boot the kernel of a built KDIR, and run ``tests`` (or suites) on the module ``driver``.

    ``modules`` are what the guest has besides; ``origin`` is the folder that the driver was built
    from, by which its files are named.  The kernel must have what ``guest.must_boot``
    asks for.  A guest that fails is a result, not an error.  Raises HostLacks where QEMU isn't
    there, InfrastructureError where busybox can't be had or QEMU doesn't start.
    """
    assert kdir.stage is Stage.BUILT
    needed = needed_modules(modules, kdir)
    archive = initramfs(userland(kdir.ready, session.store), modules, needed, kdir, session)
    program = program_for(kdir)
    argv = command_line(kdir, archive, [driver, *tests], machine)
    console = session.run_folder / "console.log"
    title = f"Testing {driver} on {kdir.release} in QEMU"
    session.script = guest(argv, title, session.line(), session.run_folder / SCRIPT)
    listener = Listener()
    usage = None
    key = digest([kdir.entry.name, str(origin), machine.model, machine.processors, *tests])
    with session.console.step(title, key=key) as step, console.open("w", encoding="utf-8") as log:
        heard = 0

        def hear(line: str) -> None:
            nonlocal heard
            heard += len(line) + 1
            if heard > CONSOLE_MOST:
                raise _TooMuch
            session.console.verbose(line)
            listener.hear(line, step)

        try:
            usage = process.run(argv, on_line=hear, log=log, limits=limits).usage
        except TimedOut as error:
            listener.problems.append(_hung(error))
        except _TooMuch:
            listener.problems.append(
                f"it wrote more than {CONSOLE_MOST >> 20} MiB to its console and was stopped"
            )
        except ProcessFailed as error:
            if listener.up_s is None:
                raise InfrastructureError(
                    f"{program} ended with status {error.returncode} before the guest was up.",
                    detail="\n".join(error.tail[-CONSOLE_SHOWN:]),
                ) from error
            listener.problems.append(f"{program} ended with status {error.returncode}")
        listener.end()
        report = listener.tap.report()
        problems = (*listener.verdict(), *_failed(report))
        step.failed = bool(problems)
    files = [*(one.path for one in modules), *needed]
    reports = listener.reports.values()
    problems, shown = _translated(problems, reports, files, origin, kdir, session)
    written = session.run_folder / "boot.tap"
    written.write_text(tap.write(report))
    return Booted(report, problems, listener.up_s, usage, console, written, archive, shown)


def _translated(
    problems: Sequence[str],
    reports: Iterable[Sequence[str]],
    modules: Sequence[Path],
    origin: Path | None,
    kdir: Kdir,
    session: Session,
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return problems and the kernel's reports with names and places as they are in the source."""
    found = [tuple(report) for report in reports]
    if not found:
        return tuple(problems), ()
    texts = [*problems, *(line for report in found for line in report)]
    translated = readable(texts, modules, kdir, session)
    if origin is not None:
        translated = [with_own_paths(line, origin) for line in translated]
    lines = iter(translated)
    return (
        tuple(next(lines) for _ in problems),
        tuple(tuple(next(lines) for _ in report) for report in found),
    )


def must_pass(booted: Booted, data: Mapping[str, Any]) -> None:
    """Raise GuestFailed, with the console's last lines and ``data``, unless all went well."""
    if booted.passed:
        return
    lines = booted.console.read_text(encoding="utf-8").splitlines()
    last = lines[-(AFTER_REPORT if booted.reports else CONSOLE_SHOWN) :]
    shown = [f"    {_shortened(line)}" for line in last]
    raise GuestFailed(
        f"The guest failed: {booted.problems[0]}.",
        detail="\n".join([*_details(booted), "", "The console's last lines:", *shown]),
        log=booted.console,
        result=data,
    )


def _details(booted: Booted) -> list[str]:
    lines = []
    for test in booted.report.failed[:CONSOLE_SHOWN]:
        lines.append(f"not ok {test.number} - {test}")
        lines += [f"    {line}" for line in _diagnostics(test.diagnostics)]
    lines += booted.problems
    for report in booted.reports:
        lines += ["", "The kernel's report:", *(f"    {_shortened(line)}" for line in report)]
    return lines


def _diagnostics(lines: Sequence[str]) -> list[str]:
    """Return a failed test's lines as far as they are shown: the first and the last of many."""
    shown = [_shortened(line) for line in lines]
    if len(shown) > DIAGNOSTICS_SHOWN:
        half = DIAGNOSTICS_SHOWN // 2
        shown[half:-half] = [f"... ({len(shown) - 2 * half} more lines)"]
    return shown


def _shortened(line: str) -> str:
    """Return a line as it is shown; of a very long one its beginning and its end."""
    if len(line) <= LINE_SHOWN:
        return line
    end = LINE_SHOWN // 4
    left = len(line) - LINE_SHOWN
    return f"{line[: LINE_SHOWN - end]}... ({left} more characters) ...{line[-end:]}"


def command_line(
    kdir: Kdir, archive: Path, arguments: Sequence[str], machine: Machine
) -> list[str]:
    """Return QEMU's command line: no network, no disk, the console on stdout, QEMU confined."""
    words = f"console={machine.console} rdinit=/init.sh oops=panic panic=-1 log_buf_len=4M"
    argv = [program_for(kdir), *("-machine", machine.model)]
    if machine.cpu is not None:
        argv += ["-cpu", machine.cpu]
    if machine.device_tree is not None:
        argv += ["-dtb", str(kdir.device_trees / machine.device_tree)]
    for _ in range(machine.serial_port):
        argv += ["-serial", "null"]
    argv += [
        *("-smp", str(machine.processors)),
        *("-m", str(machine.memory_mib)),
        *("-nic", "none"),
        *("-display", "none"),
        *("-monitor", "none"),
        *("-serial", "stdio"),
        "-no-reboot",
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"),
        *("-kernel", str(kdir.image)),
        *("-initrd", str(archive)),
        *("-append", " ".join(filter(None, [words, machine.arguments, "--", *arguments]))),
    ]
    return process.dies_with_parent(argv)


def program_for(kdir: Kdir) -> str:
    """Return the QEMU that can run a KDIR's kernel."""
    return f"qemu-system-{kdir.ready.environment.target.qemu}"


def needed_modules(modules: Sequence[Built], kdir: Kdir) -> list[Path]:
    """Return the kernel's own modules that ``modules`` depend on, each after what it needs."""
    own = {
        Path(one["path"]).stem.replace("-", "_"): kdir.path / one["path"]
        for one in kdir.artefacts
        if one["path"].endswith(".ko")
    }
    found: list[Path] = []

    def add(depends: str) -> None:
        for name in filter(None, depends.split(",")):
            path = own.get(name.replace("-", "_"))
            if path is not None and path not in found:
                add(module_info(path).field("depends"))
                found.append(path)

    for one in modules:
        add(one.depends)
    return found


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
            if len(self.problems) < KEPT_MOST:
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
        elif is_splat and len(self.splats) < KEPT_MOST:
            self.splats.append(line)
        self._has_panicked = bool(is_splat and PANICKED.search(line))
        if self._report is not None:
            if not line.startswith(NOT_THE_KERNELS):
                self._report.append(line)
            if line.startswith((*NOT_THE_KERNELS, "---[ end ")) or len(self._report) >= REPORT_MOST:
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
        if len(report) > len(had or ()) and (had or len(self.reports) < REPORTS_MOST):
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


def _hung(error: TimedOut) -> str:
    if error.silent:
        return f"it wrote nothing for {error.seconds:g} s and was ended"
    return f"it was not done after {error.seconds:g} s and was ended"
