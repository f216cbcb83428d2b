"""``rbuild bench``: time the ways of building against each other."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rbuild.cli.main import App
from rbuild.cli.options import (
    RUNTIMES,
    Output,
    build_context,
    grouped,
    limit_options,
    mode_options,
    profile_option,
    resolve_options,
    timeout_option,
)
from rbuild.cli.size import Count
from rbuild.cli.suggest import Choice
from rbuild.errors import Interruption, RbuildError, RegressionError
from rbuild.specs import profile
from rbuild.specs.profile import IN_KERNEL, Driver, Profile
from rbuild.util import export

if TYPE_CHECKING:
    from rbuild.bench.compare import Comparison
    from rbuild.bench.plan import Plan
    from rbuild.bench.result import Report

SCENARIOS = ("clean", "incremental", "incremental-c", "incremental-rust", "noop")
PICTURES = (".svg", ".png")

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

    export_json: Path | None
    export_csv: Path | None
    export_markdown: Path | None
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

        if self.export_json is not None:
            export.write(self.export_json, report.model_dump_json(indent=1) + "\n")
        if self.export_csv is not None:
            export.write(self.export_csv, words.csv(report))
        if self.export_markdown is not None:
            export.write(self.export_markdown, words.markdown(report))
        if self.plot is not None:
            from rbuild.bench import plot  # noqa: PLC0415

            plot.write(report, self.plot)
        if self.html is not None:
            from rbuild.bench import html  # noqa: PLC0415

            export.write(self.html, html.page(report, compared))


@dataclass(frozen=True)
class Runs:
    """Which modes are measured, and how often; ``plan`` turns it into a plan of runs."""

    envs: tuple[str, ...]
    kinds: tuple[str, ...]
    drivers: tuple[str, ...]
    scenarios: tuple[str, ...]
    runs: int
    warmup: int
    jobs: tuple[int, ...]
    runtimes: tuple[str, ...]

    def plan(self, found: Profile) -> Plan:
        """Return the plan for a profile's kernel; raise click.UsageError for an empty one."""
        from rbuild.bench.benchmark import default_environments  # noqa: PLC0415
        from rbuild.bench.machine import cores  # noqa: PLC0415
        from rbuild.bench.places import has_rust  # noqa: PLC0415
        from rbuild.bench.plan import Plan, Scenario, Target, modes  # noqa: PLC0415

        targets = [Target(kind) for kind in dict.fromkeys(self.kinds)] or [Target.OUT_OF_TREE]
        usual = [one for one in IN_KERNEL if one is not Driver.RUST or has_rust(found)]
        chosen = modes(
            list(dict.fromkeys(self.envs)) or default_environments(found, targets),
            targets,
            [Driver(driver) for driver in dict.fromkeys(self.drivers)] or usual,
            list(dict.fromkeys(self.jobs)) or [cores()],
            list(dict.fromkeys(self.runtimes)),
        )
        asked = tuple(Scenario(one) for one in dict.fromkeys(self.scenarios))
        some = tuple(mode for mode in chosen if mode.scenarios(asked))
        if not some:
            raise click.UsageError(
                f"--scenario {', '.join(asked)}: there is no such scenario of {', '.join(targets)}."
            )
        return Plan(some, asked, self.runs, self.warmup)


@dataclass(frozen=True)
class Baseline:
    """An earlier result, and by how much nothing may have become slower since."""

    old: Path | None
    fail_above: str | None

    def load(self) -> tuple[Report | None, float | None]:
        """Return the result and the threshold as a factor, each None if not asked for."""
        from rbuild.bench import compare  # noqa: PLC0415

        threshold = None if self.fail_above is None else compare.parse_threshold(self.fail_above)
        if threshold is not None and self.old is None:
            raise click.UsageError("--fail-above needs --compare.")
        return None if self.old is None else compare.load(self.old), threshold


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
@grouped("baseline", Baseline)
@grouped("outputs", Outputs)
@grouped("modes", Runs)
@click.pass_obj
def command(
    app: App,
    modes: Runs,
    outputs: Outputs,
    baseline: Baseline,
    ccache: bool,
    source: Path | None,
    schema: bool,
    profile_name: str,
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
    from rbuild.bench.benchmark import run_benchmark  # noqa: PLC0415

    if schema:
        published = words.schema()
        app.console.result(json.dumps(published, indent=2), published)
        return
    outputs.check()
    earlier, threshold = baseline.load()
    failure: BaseException | None = None
    if source is not None:
        report = compare.load(source)
    else:
        found = profile.load(profile_name)
        made = build_context(app, "bench", modes.runtimes[0], None, ccache=ccache)
        plan = modes.plan(found)
        resolve_options(
            envs=tuple(dict.fromkeys(mode.environment for mode in plan.modes)),
            kinds=tuple(dict.fromkeys(mode.target for mode in plan.modes)),
            drivers=tuple(
                dict.fromkeys(mode.driver for mode in plan.modes if mode.driver is not None)
            ),
            jobs=tuple(dict.fromkeys(mode.jobs for mode in plan.modes)),
        )
        report, failure = run_benchmark(
            plan, found, made, shlex.join(["rbuild", *sys.argv[1:]]), optional=not modes.envs
        )
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


def _must_not_be_slower(
    app: App, compared: Comparison, threshold: float, text: str, data: dict[str, Any]
) -> None:
    """Raise RegressionError if something is, with all of the result for whoever reads JSON."""
    from rbuild.bench import compare  # noqa: PLC0415

    slower = compare.failures(compared, threshold)
    if not slower:
        return
    if not app.console.json:
        app.console.result(text)
    raise RegressionError(
        f"{len(slower)} of {len(compared.rows)} became slower by more than {threshold:.0%}: "
        f"{'; '.join(slower)}.",
        result=data,
    )
