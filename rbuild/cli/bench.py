"""``rbuild bench``: time the ways of building against each other."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click

from rbuild import profile
from rbuild.bench import machine, report
from rbuild.bench.plan import Scenario, modes
from rbuild.bench.run import Plan, execute
from rbuild.cli import App
from rbuild.cli.options import (
    ENVIRONMENT,
    jobs_option,
    kdir_for,
    profile_option,
    runtime_option,
    session,
)
from rbuild.console import duration
from rbuild.kernel import Kdir
from rbuild.profile import IN_KERNEL, Driver, Kind

EPILOG = """\b
Examples:
  rbuild bench
  rbuild bench --env cross --env chroot --driver c --runs 3
  rbuild bench --scenario incremental --export-json bench.json
"""


@click.command(epilog=EPILOG)
@click.option(
    "--env",
    "envs",
    multiple=True,
    type=ENVIRONMENT,
    metavar="E",
    help="An environment; may be repeated [default: cross, hybrid].",
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice([kind.value for kind in Kind]),
    help="A kind of build; may be repeated [default: both].",
)
@click.option(
    "--driver",
    "drivers",
    multiple=True,
    type=click.Choice([driver.value for driver in Driver]),
    help="A driver; may be repeated [default: rust, c].",
)
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    default=(Scenario.CLEAN.value,),
    type=click.Choice([one.value for one in Scenario]),
    show_default=True,
    help="What a run starts from; may be repeated.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="Counted runs of each mode.",
)
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    help="Runs of each mode before those.",
)
@click.option(
    "--export-json",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="F",
    help="Write everything, each single run too.",
)
@profile_option
@jobs_option
@runtime_option
@click.pass_obj
def command(
    app: App,
    envs: tuple[str, ...],
    kinds: tuple[str, ...],
    drivers: tuple[str, ...],
    scenarios: tuple[str, ...],
    runs: int,
    warmup: int,
    export_json: Path | None,
    profile_name: str,
    jobs: int | None,
    runtime: str,
) -> None:
    """Build the driver in each mode (environment x kind x driver), and compare the times.

    Provisions what is missing first.  The modes take turns, after a warm-up, so that a machine
    that becomes slower is unfair to none of them; ratios are to the first mode.
    """
    made = session(app, "bench", runtime, jobs)
    names = list(dict.fromkeys(envs)) or ["cross", "hybrid"]
    chosen = modes(
        names,
        [Kind(kind) for kind in dict.fromkeys(kinds)] or list(Kind),
        [Driver(driver) for driver in dict.fromkeys(drivers)] or list(IN_KERNEL),
    )
    plan = Plan(tuple(chosen), tuple(s for s in Scenario if s.value in scenarios), runs, warmup)
    if export_json is not None:
        _must_be_writable(export_json)
    before = machine.describe()
    found = profile.load(profile_name)
    kdirs: dict[str, Kdir] = {name: kdir_for(found, name, made) for name in names}
    if all(phase.cached for kdir in kdirs.values() for phase in kdir.phases) and machine.busy(
        before
    ):
        app.console.warn(f"The machine is busy (load {before['load_1min']}): expect wide ranges.")
    measured = execute(plan, kdirs.__getitem__, made)
    line = shlex.join(["rbuild", *sys.argv[1:]])
    rows = report.rows(plan, measured)
    data = report.as_json(plan, measured, rows, before, kdirs, line)
    if export_json is not None:
        export_json.write_text(json.dumps(data, indent=2) + "\n")
    text = [
        *report.header(before, kdirs, line),
        app.console.table("", report.COLUMNS, [row.cells() for row in rows]),
        "wall, user, system: medians of whole builds; peak RSS: the largest single process; "
        "ratio: of medians, to the first mode, (range) by rounds",
        *report.identical(rows),
        *[
            f"{name}: KDIR made once in {duration(sum(p.usage.wall_s for p in kdir.phases))} "
            f"({', '.join(f'{p.name} {duration(p.usage.wall_s)}' for p in kdir.phases)})"
            for name, kdir in kdirs.items()
        ],
    ]
    app.console.result("\n".join(text), data)


def _must_be_writable(path: Path) -> None:
    """Refuse a bad file name before an hour of measuring, not after it."""
    if not path.parent.is_dir():
        raise click.UsageError(f"--export-json: {path.parent} is not a folder.")
