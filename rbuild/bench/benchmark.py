"""A benchmark from its plan to its report: what is prepared when, and what can't be measured."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from rbuild.bench import machine
from rbuild.bench import report as words
from rbuild.bench.build_report import RunMetadata, build_report
from rbuild.bench.machine import Moment
from rbuild.bench.plan import Mode, Plan, Target, only
from rbuild.bench.result import Report, Unmeasured
from rbuild.bench.run import PreparedKernel, execute, for_profile
from rbuild.cache.directory import CorruptEntry
from rbuild.errors import MissingDependency, RbuildError, UsageError
from rbuild.kernel import kdir
from rbuild.kernel.identity import Kernel
from rbuild.kernel.prepare import prepare
from rbuild.provision.prepare import checked_runtime, prepare_environment
from rbuild.provision.rootfs import entry_of
from rbuild.sandbox.context import BuildContext
from rbuild.source.fetch import obtain
from rbuild.specs import environment
from rbuild.specs.profile import Profile
from rbuild.ui.format import about
from rbuild.util.folders import remove_tree
from rbuild.util.process import MAX_LINE

LOG_LINES = 40
"""How many of the log's last lines a report keeps."""

ENVIRONMENTS = ("cross", "hybrid", "chroot")
"""What is compared unless asked otherwise."""


def default_environments(found: Profile, targets: Sequence[Target]) -> list[str]:
    """Return those of ``ENVIRONMENTS`` that build the profile's kernels on this host.

    Where a kernel is to be built, the emulated ones aren't among them: that takes hours.
    """
    names = []
    for name in ENVIRONMENTS:
        try:
            here = environment.load_for(name, found.architecture)
        except UsageError:
            continue
        if not (here.emulated and Target.KERNEL in targets):
            names.append(name)
    return names or list(ENVIRONMENTS[:1])


SLOWNESS = 12
"""How many times as long an emulated build takes, about (docs/bench.md)."""


@dataclass
class Benchmark:
    """A benchmark under way: what is ready to be measured, and what can't be, and why.

    ``command`` is what was typed.  With ``optional``, environments that the host lacks something
    for are left out, but the first.
    """

    plan: Plan
    profile: Profile
    context: BuildContext
    optional: bool
    before: Moment
    command: str
    started: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))
    clock: float = field(default_factory=time.monotonic)
    grounds: dict[str, PreparedKernel] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)

    @property
    def first(self) -> dict[str, Mode]:
        """A mode of each environment, by the environment's name in reports."""
        return {mode.where: mode for mode in reversed(self.plan.modes)}

    def prepare(self, names: Iterable[str]) -> None:
        """Provision environments, and make their KDIRs if a module is built there."""
        for name in names:
            try:
                self.grounds[name] = _ground(
                    self.first[name], self.profile, self.context, with_kdir=self.needs_kdir(name)
                )
            except MissingDependency as error:
                if not (self.optional and self.grounds):
                    raise
                self.context.console.warn(f"{name} is left out: {error.message}")
                self.unmeasured[name] = error.message

    def needs_kdir(self, name: str) -> bool:
        """Tell whether a module is built in an environment."""
        return any(one.where == name and one.target is not Target.KERNEL for one in self.plan.modes)

    def measure(self) -> Report:
        """Measure all environments that are ready, in turns."""
        made = self.context
        plan = only(self.plan, self.grounds)
        grounds = {mode.where: self.grounds[mode.where] for mode in plan.modes}
        folder = made.run_folder / "bench"
        folder.mkdir()
        try:
            findings = execute(plan, grounds, folder, made)
            occasion = RunMetadata(
                self.command,
                self.started.isoformat(timespec="seconds"),
                time.monotonic() - self.clock,
                machine.describe(self.before, machine.moment(), made.cache.root),
                made.ccache,
                _log_tail(made),
            )
            return self.complete(build_report(plan, self.profile, grounds, findings, occasion))
        finally:
            with suppress(OSError):
                remove_tree(folder)

    def complete(self, report: Report) -> Report:
        """Return a report that says what wasn't measured."""
        missing = [
            Unmeasured(environment=name, reason=why) for name, why in self.unmeasured.items()
        ]
        return report.model_copy(update={"unmeasured": tuple(missing)})


def run_benchmark(
    plan: Plan, found: Profile, made: BuildContext, command: str, *, optional: bool
) -> tuple[Report, BaseException | None]:
    """Provision, measure and report; return the report, and what has ended it early, if anything.

    An emulated environment whose KDIR has to be made, which takes minutes, comes last: the others
    are measured and shown before, and once more with it, in turns.
    """
    plan = for_profile(plan, found)
    before = machine.moment()
    if machine.busy(before):
        made.console.warn(f"The machine is busy (load {before.load}): expect wide intervals.")
    benchmark = Benchmark(plan, found, made, optional, before, command)
    _tell(benchmark)
    names = list(dict.fromkeys(mode.where for mode in plan.modes))
    late = [name for name in names if _is_late(benchmark, name)]
    benchmark.prepare(name for name in names if name not in late)
    if not (late and benchmark.grounds):
        benchmark.prepare(late)
        return benchmark.measure(), None
    report = benchmark.measure()
    _show_first(benchmark, report, late)
    try:
        benchmark.prepare(late)
        if set(late) <= benchmark.unmeasured.keys():
            return benchmark.complete(report), None
        return benchmark.measure(), None
    except CorruptEntry:  # what is damaged is removed, and all is run again
        raise
    except (RbuildError, KeyboardInterrupt) as error:
        why = error.message if isinstance(error, RbuildError) else "interrupted"
        benchmark.unmeasured |= {name: why for name in late if name not in benchmark.unmeasured}
        return benchmark.complete(report), error


def _is_late(benchmark: Benchmark, name: str) -> bool:
    """Tell whether an environment has to be prepared for modules under emulation."""
    found, mode = benchmark.profile, benchmark.first[name]
    here = environment.load_for(mode.environment, found.architecture)
    prepared = kdir.was_prepared(found, here.name, benchmark.context.cache)
    return here.emulated and benchmark.needs_kdir(name) and not prepared


def _tell(benchmark: Benchmark) -> None:
    """Say what is going to be measured, and what has to be provisioned for it."""
    plan, made = benchmark.plan, benchmark.context

    def several(words: Iterable[str]) -> str:
        return ", ".join(dict.fromkeys(words))

    drivers = several(mode.driver for mode in plan.modes if mode.driver is not None)
    warm = f" after {plan.warmup} to warm up" if plan.warmup else ""
    made.console.note(
        f"Measuring {several(mode.where for mode in plan.modes)}: "
        f"{several(mode.target for mode in plan.modes)}, {drivers}{', ' if drivers else ''}"
        f"{several(plan.scenarios)}; runs of each: {plan.runs}{warm}."
    )
    loaded = [
        environment.load_for(mode.environment, benchmark.profile.architecture)
        for mode in plan.modes
    ]
    missing = {
        part.definition.name: None
        for one in loaded
        for part in one.rootfses
        if not entry_of(part, made.cache).path.exists()
    }
    if missing:
        made.console.note(f"Provisioning first: {several(missing)}.")


def _show_first(benchmark: Benchmark, report: Report, late: Sequence[str]) -> None:
    """Show the figures of what is measured so far, and say what the rest is going to take."""
    console, plan = benchmark.context.console, benchmark.plan
    for line in console.table("", *words.fitting(report, console.width)).splitlines():
        console.note(line)
    reference = report.rows[0].environment
    round_s = sum(row.wall_s.median for row in report.rows if row.environment == reference)
    prepare_s = sum(one.wall_s for one in report.environments[0].phases if one.name == "prepare")
    left_s = SLOWNESS * len(late) * (prepare_s + round_s * (plan.runs + plan.warmup))
    names = ", ".join(late)
    console.note(
        f"Now {names}, which is emulated: some {about(left_s)} if it takes {SLOWNESS} times "
        f"as long as {reference}. Then all are measured in turns. "
        "Ctrl-C ends with the figures so far."
    )


def _log_tail(made: BuildContext) -> tuple[str, ...]:
    """Return the log's last lines, without where this user's cache directory is."""
    with made.log_path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_LINES * MAX_LINE))
        text = file.read().decode(errors="replace")
    lines = text.splitlines()[-LOG_LINES:]
    return tuple(line.replace(str(made.cache.root), "$RBUILD_CACHE_DIR") for line in lines)


def _ground(mode: Mode, found: Profile, made: BuildContext, *, with_kdir: bool) -> PreparedKernel:
    runtime = made.runtime
    if mode.runtime != runtime.name:
        runtime = checked_runtime(mode.runtime, made.cache, made.memory_bytes, made.cpus)
    ready = prepare_environment(
        environment.load_for(mode.environment, found.architecture), made.cache, runtime
    )
    kernel = Kernel(found, obtain(found, ready, made.cache), ready, made)
    return PreparedKernel(kernel, prepare(kernel) if with_kdir else None)
