"""``rbuild matrix``: build every combination, here or on several machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rbuild import profile
from rbuild.cli import App
from rbuild.cli.options import ENVIRONMENT, PROFILE, session
from rbuild.profile import IN_KERNEL, Driver

if TYPE_CHECKING:
    from rbuild.matrix.plan import Plan
    from rbuild.matrix.report import Report, Row
    from rbuild.session import Session

TARGETS = ("out-of-tree", "in-tree", "kernel")

EPILOG = """\b
Examples:
  rbuild matrix
  rbuild matrix --profile slim --profile slim-debug --env cross --env hybrid
  rbuild matrix --kind kernel --env cross --env chroot --export-json matrix.json
"""


@click.command(epilog=EPILOG)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    type=PROFILE,
    metavar="P",
    help="A profile: a name, or a YAML file's path; may be repeated [default: slim].",
)
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
    type=click.Choice(TARGETS),
    help="What is built; may be repeated [default: out-of-tree, in-tree].",
)
@click.option(
    "--driver",
    "drivers",
    multiple=True,
    type=click.Choice([driver.value for driver in Driver]),
    help="A driver; may be repeated [default: rust, c].",
)
@click.option(
    "--export-json",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="F",
    help="Write the report there, too.",
)
@click.pass_obj
def command(
    app: App,
    profiles: tuple[str, ...],
    envs: tuple[str, ...],
    kinds: tuple[str, ...],
    drivers: tuple[str, ...],
    export_json: Path | None,
) -> int:
    """Build every combination (profile x environment x kind x driver), one after another.

    What can't be, such as the Rust driver of a kernel without Rust, is skipped, and the report
    says why; it also says whether the bytes agree.  A build that fails doesn't stop the others:
    the exit code is then 1, or 4 if it was no build's own fault.
    """
    from rbuild.matrix.report import Report  # noqa: PLC0415 - its models are slow to import

    if export_json is not None and not export_json.parent.is_dir():
        raise click.UsageError(f"--export-json: {export_json.parent} is not a folder.")
    plan = _plan(profiles, envs, kinds, drivers)
    made = session(app, "matrix", "bwrap", None)
    report = Report(plan, tuple(_rows(plan, made)))
    return _show(report, app, export_json)


def _plan(
    profiles: tuple[str, ...],
    envs: tuple[str, ...],
    kinds: tuple[str, ...],
    drivers: tuple[str, ...],
) -> Plan:
    from rbuild.bench.plan import Target  # noqa: PLC0415
    from rbuild.matrix.plan import combine  # noqa: PLC0415

    return combine(
        [profile.load(name) for name in dict.fromkeys(profiles or ("slim",))],
        list(dict.fromkeys(envs)) or ["cross", "hybrid"],
        [Target(kind) for kind in dict.fromkeys(kinds)] or [Target.OUT_OF_TREE, Target.IN_TREE],
        [Driver(driver) for driver in dict.fromkeys(drivers)] or list(IN_KERNEL),
    )


def _rows(plan: Plan, made: Session) -> Iterator[Row]:
    from rbuild.matrix import local  # noqa: PLC0415

    return local.execute(plan, made)


def _show(report: Report, app: App, export_json: Path | None) -> int:
    """Print and write the report; return the exit code."""
    data = report.as_json()
    if export_json is not None:
        export_json.write_text(json.dumps(data, indent=1, default=str) + "\n", encoding="utf-8")
    app.console.result("" if app.console.json else report.text(app.console.table), data)
    return report.exit_code
