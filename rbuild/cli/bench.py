"""``rbuild bench``: time the ways of building against each other."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rbuild import environment, export, kernel, profile
from rbuild.cli import App
from rbuild.cli.options import (
    RUNTIMES,
    Output,
    limit_options,
    mode_options,
    profile_option,
    runtime_named,
    session,
    timeout_option,
)
from rbuild.cli.size import Count
from rbuild.cli.typo import Choice
from rbuild.console import about
from rbuild.errors import BecameSlower, Damaged, HostLacks, Interruption, RbuildError, UsageError
from rbuild.folders import remove_tree
from rbuild.process import LINE_MOST
from rbuild.profile import IN_KERNEL, Driver, Profile

if TYPE_CHECKING:
    from rbuild.bench.compare import Comparison
    from rbuild.bench.machine import Moment
    from rbuild.bench.plan import Mode, Plan, Target
    from rbuild.bench.result import Report
    from rbuild.bench.run import Ground
    from rbuild.session import Session

SCENARIOS = ("clean", "incremental", "incremental-c", "incremental-rust", "noop")
PICTURES = (".svg", ".png")
LOG_LINES = 40
"""How many of the log's last lines a report keeps."""

EPILOG = """\b
Examples:
  rbuild bench
  rbuild bench --env cross --env hybrid
  rbuild bench --env cross --env chroot --driver c --runs 3
  rbuild bench --kind kernel --scenario clean --scenario incremental -j 1 -j 2
  rbuild bench --export-json new.json --compare old.json --fail-above 10%
  rbuild bench --from new.json --plot bench.svg --html bench.html
"""


@dataclass(frozen=True)
class Outputs:
    """The files that a report is written to."""

    json: Path | None
    csv: Path | None
    markdown: Path | None
    plot: Path | None
    html: Path | None

    def check(self) -> None:
        """Refuse a bad file name before an hour of measuring, not after it."""
        if self.plot is not None and self.plot.suffix not in PICTURES:
            raise click.UsageError(f"--plot: {self.plot} must end in {' or '.join(PICTURES)}.")
        if self.plot is not None or self.html is not None:
            from rbuild.bench import plot  # noqa: PLC0415 - matplotlib is slow to import

            plot.require()

    def write(self, report: Report, compared: Comparison | None) -> None:
        """Write every file that was asked for."""
        from rbuild.bench import report as words  # noqa: PLC0415

        if self.json is not None:
            export.write(self.json, report.model_dump_json(indent=1) + "\n")
        if self.csv is not None:
            export.write(self.csv, words.csv(report))
        if self.markdown is not None:
            export.write(self.markdown, words.markdown(report))
        if self.plot is not None:
            from rbuild.bench import plot  # noqa: PLC0415

            plot.write(report, self.plot)
        if self.html is not None:
            from rbuild.bench import html  # noqa: PLC0415

            export.write(self.html, html.page(report, compared))


def _file(name: str, text: str) -> Callable[..., Any]:
    return click.option(name, type=Output(), metavar="F", help=text)


@click.command(epilog=EPILOG)
@mode_options(
    env_default="cross, hybrid, and chroot unless a kernel is built",
    kind_default="out-of-tree",
    driver_default="rust if the profile has it, c",
)
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    default=("clean",),
    type=Choice(SCENARIOS),
    show_default=True,
    help="What a run starts from; may be repeated.",
)
@click.option(
    "--runs",
    type=Count(min=1),
    envvar="RBUILD_RUNS",
    default=5,
    show_default=True,
    metavar="N",
    help="Counted runs of each mode.",
)
@click.option(
    "--warmup",
    type=Count(min=0),
    envvar="RBUILD_WARMUP",
    default=1,
    show_default=True,
    metavar="N",
    help="Runs of each mode before those.",
)
@click.option(
    "-j",
    "--jobs",
    "jobs",
    multiple=True,
    type=Count(min=1),
    metavar="N",
    help="How many commands make runs at once; may be repeated [default: one a processor].",
)
@click.option("--ccache", is_flag=True, help="Let C be compiled through ccache [default: no].")
@_file("--export-json", "Write everything, each single run too.")
@_file("--export-csv", "Write each run as a line of CSV.")
@_file("--export-markdown", "Write the tables as Markdown.")
@_file("--plot", "Draw the times, as .svg or .png.")
@_file("--html", "Write one self-contained page with tables and plots.")
@click.option(
    "--compare",
    "old",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="OLD.json",
    help="Show what became slower or faster since a result written by --export-json.",
)
@click.option(
    "--fail-above",
    metavar="P%",
    help="With --compare: exit with 1 if anything became slower by more than this.",
)
@click.option(
    "--from",
    "source",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="F",
    help="Measure nothing: show, export or compare an earlier result.",
)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of --export-json.")
@profile_option
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    type=Choice(RUNTIMES),
    default=RUNTIMES[:1],
    show_default=True,
    envvar="RBUILD_RUNTIME",
    help="What enters the environments; may be repeated.",
)
@limit_options
@timeout_option
@click.pass_obj
def command(
    app: App,
    envs: tuple[str, ...],
    kinds: tuple[str, ...],
    drivers: tuple[str, ...],
    scenarios: tuple[str, ...],
    runs: int,
    warmup: int,
    jobs: tuple[int, ...],
    ccache: bool,
    export_json: Path | None,
    export_csv: Path | None,
    export_markdown: Path | None,
    plot: Path | None,
    html: Path | None,
    old: Path | None,
    fail_above: str | None,
    source: Path | None,
    schema: bool,
    profile_name: str,
    runtimes: tuple[str, ...],
) -> None:
    """Build in each mode (environment x kind x driver), and compare the times.

    Provisions what is missing first.  The modes take turns, after a warm-up, so that a machine
    that becomes slower is unfair to none of them; ratios are to the first environment, entered by
    the first runtime.

    An emulated environment that isn't prepared yet, which takes minutes, comes last: the others'
    figures are shown before.  Ctrl-C then ends with those.
    """
    # The statistics and their models are slow to import: nobody else waits for them.
    from rbuild.bench import compare  # noqa: PLC0415
    from rbuild.bench import report as words  # noqa: PLC0415

    if schema:
        published = words.schema()
        app.console.result(json.dumps(published, indent=2), published)
        return
    outputs = Outputs(export_json, export_csv, export_markdown, plot, html)
    outputs.check()
    threshold = None if fail_above is None else compare.parse_threshold(fail_above)
    if threshold is not None and old is None:
        raise click.UsageError("--fail-above needs --compare.")
    earlier = None if old is None else compare.load(old)
    failure: BaseException | None = None
    if source is not None:
        report = compare.load(source)
    else:
        found = profile.load(profile_name)
        made = session(app, "bench", runtimes[0], None)
        made.ccache = ccache
        plan = _plan(found, envs, kinds, drivers, scenarios, runs, warmup, jobs, runtimes)
        made.settled.update(
            envs=tuple(dict.fromkeys(mode.environment for mode in plan.modes)),
            kinds=tuple(dict.fromkeys(mode.target for mode in plan.modes)),
            drivers=tuple(
                dict.fromkeys(mode.driver for mode in plan.modes if mode.driver is not None)
            ),
            jobs=tuple(dict.fromkeys(mode.jobs for mode in plan.modes)),
        )
        report, failure = _measured(plan, found, made, optional=not envs)
    compared = None if earlier is None else compare.compare(earlier, report)
    outputs.write(report, compared)
    text = words.tables(report, app.console)
    data: dict[str, Any] = report.model_dump(mode="json")
    if compared is not None:
        text += "\n\n" + compare.table(compared, app.console)
        data["comparison"] = compared.as_json()
    if failure is not None:
        raise _with_result(failure, app, text, data)
    if compared is not None and threshold is not None:
        _must_not_be_slower(app, compared, threshold, text, data)
    app.console.result(text, data)


def _with_result(
    failure: BaseException, app: App, text: str, data: dict[str, Any]
) -> BaseException:
    """Show what was measured before a failure; return the failure, which has it for --json."""
    if not app.console.json:
        app.console.result(text)
    if isinstance(failure, RbuildError):
        failure.result = {**data, **failure.result}
        return failure
    return Interruption(data)


ENVIRONMENTS = ("cross", "hybrid", "chroot")
"""What is compared unless asked otherwise."""


def _environments(found: Profile, targets: Sequence[Target]) -> list[str]:
    """Return those of ``ENVIRONMENTS`` that build the profile's kernels on this host.

    Where a kernel is to be built, the emulated ones aren't among them: that takes hours.
    """
    from rbuild.bench.plan import Target  # noqa: PLC0415

    names = []
    for name in ENVIRONMENTS:
        try:
            here = environment.load_for(name, found.architecture)
        except UsageError:
            continue
        if not (here.emulated and Target.KERNEL in targets):
            names.append(name)
    return names or list(ENVIRONMENTS[:1])


def _plan(
    found: Profile,
    envs: tuple[str, ...],
    kinds: tuple[str, ...],
    drivers: tuple[str, ...],
    scenarios: tuple[str, ...],
    runs: int,
    warmup: int,
    jobs: tuple[int, ...],
    runtimes: tuple[str, ...],
) -> Plan:
    from rbuild.bench.machine import cores  # noqa: PLC0415
    from rbuild.bench.places import has_rust  # noqa: PLC0415
    from rbuild.bench.plan import Plan, Scenario, Target, modes  # noqa: PLC0415

    targets = [Target(kind) for kind in dict.fromkeys(kinds)] or [Target.OUT_OF_TREE]
    usual = [one for one in IN_KERNEL if one is not Driver.RUST or has_rust(found)]
    chosen = modes(
        list(dict.fromkeys(envs)) or _environments(found, targets),
        targets,
        [Driver(driver) for driver in dict.fromkeys(drivers)] or usual,
        list(dict.fromkeys(jobs)) or [cores()],
        list(dict.fromkeys(runtimes)),
    )
    asked = tuple(Scenario(one) for one in dict.fromkeys(scenarios))
    kept = tuple(mode for mode in chosen if mode.scenarios(asked))
    if not kept:
        raise click.UsageError(
            f"--scenario {', '.join(asked)}: there is no such scenario of {', '.join(targets)}."
        )
    return Plan(kept, asked, runs, warmup)


SLOWNESS = 12
"""How many times as long an emulated build takes, about (docs/bench.md)."""


@dataclass
class _Benchmark:
    """A benchmark under way: what is ready to be measured, and what can't be, and why.

    With ``optional``, environments that the host lacks something for are left out, but the first.
    """

    plan: Plan
    profile: Profile
    session: Session
    optional: bool
    before: Moment
    started: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))
    clock: float = field(default_factory=time.monotonic)
    grounds: dict[str, Ground] = field(default_factory=dict)
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
                    self.first[name], self.profile, self.session, with_kdir=self.needs_kdir(name)
                )
            except HostLacks as error:
                if not (self.optional and self.grounds):
                    raise
                self.session.console.warn(f"{name} is left out: {error.message}")
                self.unmeasured[name] = error.message

    def needs_kdir(self, name: str) -> bool:
        """Tell whether a module is built in an environment."""
        from rbuild.bench.plan import Target  # noqa: PLC0415

        return any(one.where == name and one.target is not Target.KERNEL for one in self.plan.modes)

    def measure(self) -> Report:
        """Measure all environments that are ready, in turns."""
        from rbuild.bench import machine  # noqa: PLC0415
        from rbuild.bench.assemble import Occasion, assemble  # noqa: PLC0415
        from rbuild.bench.plan import only  # noqa: PLC0415
        from rbuild.bench.run import execute  # noqa: PLC0415

        made = self.session
        plan = only(self.plan, self.grounds)
        grounds = {mode.where: self.grounds[mode.where] for mode in plan.modes}
        folder = made.run_folder / "bench"
        folder.mkdir()
        try:
            findings = execute(plan, self.profile, grounds, folder, made)
            occasion = Occasion(
                shlex.join(["rbuild", *sys.argv[1:]]),
                self.started.isoformat(timespec="seconds"),
                time.monotonic() - self.clock,
                machine.describe(self.before, machine.moment(), made.store.root),
                made.ccache,
                _log_tail(made),
            )
            return self.complete(assemble(plan, self.profile, grounds, findings, occasion))
        finally:
            with suppress(OSError):
                remove_tree(folder)

    def complete(self, report: Report) -> Report:
        """Return a report that says what wasn't measured."""
        from rbuild.bench.result import Unmeasured  # noqa: PLC0415

        missing = [
            Unmeasured(environment=name, reason=why) for name, why in self.unmeasured.items()
        ]
        return report.model_copy(update={"unmeasured": tuple(missing)})


def _measured(
    plan: Plan, found: Profile, made: Session, *, optional: bool
) -> tuple[Report, BaseException | None]:
    """Provision, measure and report; return the report, and what has ended it early, if anything.

    An emulated environment whose KDIR has to be made, which takes minutes, comes last: the others
    are measured and shown before, and once more with it, in turns.
    """
    from rbuild.bench import machine  # noqa: PLC0415
    from rbuild.bench.run import for_profile  # noqa: PLC0415

    plan = for_profile(plan, found)
    before = machine.moment()
    if machine.busy(before):
        made.console.warn(f"The machine is busy (load {before.load}): expect wide intervals.")
    benchmark = _Benchmark(plan, found, made, optional, before)
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
    except Damaged:  # what is damaged is removed, and all is run again
        raise
    except (RbuildError, KeyboardInterrupt) as error:
        why = error.message if isinstance(error, RbuildError) else "interrupted"
        benchmark.unmeasured |= {name: why for name in late if name not in benchmark.unmeasured}
        return benchmark.complete(report), error


def _is_late(benchmark: _Benchmark, name: str) -> bool:
    """Tell whether an environment has to be prepared for modules under emulation."""
    found, mode = benchmark.profile, benchmark.first[name]
    here = environment.load_for(mode.environment, found.architecture)
    prepared = kernel.was_prepared(found, here.name, benchmark.session.store)
    return here.emulated and benchmark.needs_kdir(name) and not prepared


def _tell(benchmark: _Benchmark) -> None:
    """Say what is going to be measured, and what has to be provisioned for it."""
    plan, made = benchmark.plan, benchmark.session

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
        if not part.entry(made.store).path.exists()
    }
    if missing:
        made.console.note(f"Provisioning first: {several(missing)}.")


def _show_first(benchmark: _Benchmark, report: Report, late: Sequence[str]) -> None:
    """Show the figures of what is measured so far, and say what the rest is going to take."""
    from rbuild.bench import report as words  # noqa: PLC0415

    console, plan = benchmark.session.console, benchmark.plan
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


def _log_tail(made: Session) -> tuple[str, ...]:
    """Return the log's last lines, without where this user's cache directory is."""
    with made.log_path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_LINES * LINE_MOST))
        text = file.read().decode(errors="replace")
    lines = text.splitlines()[-LOG_LINES:]
    return tuple(line.replace(str(made.store.root), "$RBUILD_CACHE_DIR") for line in lines)


def _ground(mode: Mode, found: Profile, made: Session, *, with_kdir: bool) -> Ground:
    from rbuild.bench.run import Ground  # noqa: PLC0415
    from rbuild.kernel import prepare  # noqa: PLC0415
    from rbuild.provision import make_ready  # noqa: PLC0415
    from rbuild.source import obtain  # noqa: PLC0415

    runtime = made.runtime
    if mode.runtime != runtime.name:
        runtime = runtime_named(mode.runtime, made.store)
    ready = make_ready(
        environment.load_for(mode.environment, found.architecture), made.store, runtime
    )
    tree = obtain(found, ready, made.store)
    return Ground(ready, tree, prepare(found, tree, ready, made) if with_kdir else None)


def _must_not_be_slower(
    app: App, compared: Comparison, threshold: float, text: str, data: dict[str, Any]
) -> None:
    """Raise BecameSlower if something is, with all of the result for whoever reads JSON."""
    from rbuild.bench import compare  # noqa: PLC0415

    slower = compare.failures(compared, threshold)
    if not slower:
        return
    if not app.console.json:
        app.console.result(text)
    raise BecameSlower(
        f"{len(slower)} of {len(compared.rows)} became slower by more than {threshold:.0%}: "
        f"{'; '.join(slower)}.",
        result=data,
    )
