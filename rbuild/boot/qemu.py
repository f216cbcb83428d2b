"""Boots: a built kernel started in QEMU, with modules and tests that the guest runs by itself.

The guest's first process (``module/tests/init.sh``) prints TAP on the console and powers off, so
that nothing has to be typed; here its console is read, and judged without trust: tests that fail
or are missing, a splat in the kernel's log, a panic, a hang, or an end without a goodbye.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from rbuild.boot import tap
from rbuild.boot.console import AFTER_REPORT, MAX_CONSOLE, Listener, _failed, _TooMuch
from rbuild.boot.initramfs import initramfs, userland
from rbuild.boot.trace import readable
from rbuild.errors import GuestFailed, InfrastructureError, ProcessFailed, TimedOut
from rbuild.kernel.kdir import Kdir, Stage
from rbuild.module.check import BuiltModule
from rbuild.module.workplace import with_own_paths
from rbuild.sandbox.context import BuildContext, Phase
from rbuild.sandbox.reproducer import SCRIPT, guest
from rbuild.specs.architecture import Machine
from rbuild.util import process
from rbuild.util.elf import module_info
from rbuild.util.hashes import digest, sha256_file
from rbuild.util.process import Limits, Usage

CONSOLE_SHOWN = 20
"""How many of the console's last lines a failure shows; fewer after a report."""

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
    from its first line, with the names of functions as they are in the source.  ``script`` is its
    reproducer.
    """

    report: tap.Report
    problems: tuple[str, ...]
    up_s: float | None
    usage: Usage | None
    console: Path
    tap: Path
    initramfs: Path
    reports: tuple[tuple[str, ...], ...] = ()
    script: Path | None = None

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


def boot(
    kdir: Kdir,
    modules: Sequence[BuiltModule],
    driver: str,
    tests: Sequence[str],
    limits: Limits,
    context: BuildContext,
    machine: Machine,
    origin: Path | None = None,
) -> Booted:
    """Boot the kernel of a built KDIR, and run ``tests`` (or suites) on the module ``driver``.

    ``modules`` are what the guest has besides; ``origin`` is the folder that the driver was built
    from, by which its files are named.  The kernel must have what ``guest.must_boot``
    asks for.  A guest that fails is a result, not an error.  Raises MissingDependency where QEMU
    isn't there, InfrastructureError where busybox can't be had or QEMU doesn't start.
    """
    assert kdir.stage is Stage.BUILT
    needed = needed_modules(modules, kdir)
    archive = initramfs(userland(kdir.ready, context), modules, needed, kdir, context)
    program = program_for(kdir)
    argv = command_line(kdir, archive, [driver, *tests], machine)
    console = context.run_folder / "console.log"
    title = f"Testing {driver} on {kdir.release} in QEMU"
    script = guest(argv, title, context.line(), context.run_folder / SCRIPT)
    listener = Listener()
    usage = None
    key = digest([kdir.entry.name, str(origin), machine.model, machine.processors, *tests])
    with context.console.step(title, key=key) as step, console.open("w", encoding="utf-8") as log:
        heard = 0

        def hear(line: str) -> None:
            nonlocal heard
            heard += len(line) + 1
            if heard > MAX_CONSOLE:
                raise _TooMuch
            context.console.verbose(line)
            listener.hear(line, step)

        try:
            usage = process.run(argv, on_line=hear, log=log, limits=limits).usage
        except TimedOut as error:
            listener.problems.append(_hung(error))
        except _TooMuch:
            listener.problems.append(
                f"it wrote more than {MAX_CONSOLE >> 20} MiB to its console and was stopped"
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
    problems, shown = _translated(problems, reports, files, origin, kdir, context)
    written = context.run_folder / "boot.tap"
    written.write_text(tap.write(report))
    return Booted(report, problems, listener.up_s, usage, console, written, archive, shown, script)


def _translated(
    problems: Sequence[str],
    reports: Iterable[Sequence[str]],
    modules: Sequence[Path],
    origin: Path | None,
    kdir: Kdir,
    context: BuildContext,
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return problems and the kernel's reports with names and places as they are in the source."""
    found = [tuple(report) for report in reports]
    if not found:
        return tuple(problems), ()
    texts = [*problems, *(line for report in found for line in report)]
    translated = readable(texts, modules, kdir, context)
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


def needed_modules(modules: Sequence[BuiltModule], kdir: Kdir) -> list[Path]:
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


def _hung(error: TimedOut) -> str:
    if error.silent:
        return f"it wrote nothing for {error.seconds:g} s and was ended"
    return f"it was not done after {error.seconds:g} s and was ended"
