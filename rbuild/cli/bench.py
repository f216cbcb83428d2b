"""``rbuild bench``: time the ways of building against each other."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rbuild import environment, export, profile
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
from rbuild.errors import BecameSlower
from rbuild.folders import remove_tree
from rbuild.process import LINE_MOST
from rbuild.profile import IN_KERNEL, Driver, Profile

if TYPE_CHECKING:
    from rbuild.bench.compare import Comparison
    from rbuild.bench.plan import Mode, Plan
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
@mode_options
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
    if source is not None:
        report = compare.load(source)
    else:
        made = session(app, "bench", runtimes[0], None)
        made.ccache = ccache
        plan = _plan(envs, kinds, drivers, scenarios, runs, warmup, jobs, runtimes)
        made.settled.update(
            envs=tuple(dict.fromkeys(mode.environment for mode in plan.modes)),
            kinds=tuple(dict.fromkeys(mode.target for mode in plan.modes)),
            drivers=tuple(
                dict.fromkeys(mode.driver for mode in plan.modes if mode.driver is not None)
            ),
            jobs=tuple(dict.fromkeys(mode.jobs for mode in plan.modes)),
        )
        report = _measured(plan, profile.load(profile_name), made)
    compared = None if earlier is None else compare.compare(earlier, report)
    outputs.write(report, compared)
    text = words.tables(report, app.console)
    data: dict[str, Any] = report.model_dump(mode="json")
    if compared is not None:
        text += "\n\n" + compare.table(compared, app.console)
        data["comparison"] = compared.as_json()
    if compared is not None and threshold is not None:
        _must_not_be_slower(app, compared, threshold, text, data)
    app.console.result(text, data)


def _plan(
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
    from rbuild.bench.plan import Plan, Scenario, Target, modes  # noqa: PLC0415

    targets = [Target(kind) for kind in dict.fromkeys(kinds)]
    chosen = modes(
        list(dict.fromkeys(envs)) or ["cross", "hybrid"],
        targets or [Target.OUT_OF_TREE, Target.IN_TREE],
        [Driver(driver) for driver in dict.fromkeys(drivers)] or list(IN_KERNEL),
        list(dict.fromkeys(jobs)) or [cores()],
        list(dict.fromkeys(runtimes)),
    )
    asked = tuple(Scenario(one) for one in dict.fromkeys(scenarios))
    kept = tuple(mode for mode in chosen if mode.scenarios(asked))
    if not kept:
        raise click.UsageError(
            f"--scenario {', '.join(asked)}: there is no such scenario of "
            f"{', '.join(targets) or 'a module'}."
        )
    return Plan(kept, asked, runs, warmup)


def _measured(plan: Plan, found: Profile, made: Session) -> Report:
    """Provision, measure and report."""
    from rbuild.bench import machine  # noqa: PLC0415
    from rbuild.bench.assemble import Occasion, assemble  # noqa: PLC0415
    from rbuild.bench.plan import Target  # noqa: PLC0415
    from rbuild.bench.run import execute, for_profile  # noqa: PLC0415

    plan = for_profile(plan, found)
    before, started = machine.moment(), datetime.datetime.now(datetime.UTC)
    clock = time.monotonic()
    if machine.busy(before):
        made.console.warn(f"The machine is busy (load {before.load}): expect wide intervals.")
    grounds = {
        where: _ground(
            mode,
            found,
            made,
            with_kdir=any(
                one.where == where and one.target is not Target.KERNEL for one in plan.modes
            ),
        )
        for where, mode in {mode.where: mode for mode in plan.modes}.items()
    }
    folder = made.run_folder / "bench"
    folder.mkdir()
    try:
        findings = execute(plan, found, grounds, folder, made)
        occasion = Occasion(
            shlex.join(["rbuild", *sys.argv[1:]]),
            started.isoformat(timespec="seconds"),
            time.monotonic() - clock,
            machine.describe(before, machine.moment(), made.store.root),
            made.ccache,
            _log_tail(made),
        )
        return assemble(plan, found, grounds, findings, occasion)
    finally:
        with suppress(OSError):
            remove_tree(folder)


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
