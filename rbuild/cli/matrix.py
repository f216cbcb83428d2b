"""``rbuild matrix``: build every combination, here or on several machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rbuild.cli.complete.types import PROFILE
from rbuild.cli.main import App
from rbuild.cli.options import (
    LIMITS,
    Output,
    build_context,
    ccache_option,
    cluster_options,
    grouped,
    jobs_option,
    mode_options,
    runtime_option,
    was_typed,
)
from rbuild.cli.size import Number
from rbuild.provision.prepare import runtime_for
from rbuild.specs import profile
from rbuild.specs.profile import IN_KERNEL, Driver
from rbuild.util import export

if TYPE_CHECKING:
    from rbuild.matrix.plan import Plan
    from rbuild.matrix.report import Report, Row
    from rbuild.matrix.scheduler import Scheduler
    from rbuild.sandbox.context import BuildContext

EPILOG = """\b
Examples:
  rbuild matrix
  rbuild matrix --profile slim --profile slim-debug --env cross --env hybrid
  rbuild matrix --kind kernel --env cross --env chroot --export-json m.json
  rbuild matrix --scheduler tcp://127.0.0.1:8786
"""


@dataclass(frozen=True)
class Combinations:
    """What is combined: each profile, environment, kind and driver."""

    profiles: tuple[str, ...]
    envs: tuple[str, ...]
    kinds: tuple[str, ...]
    drivers: tuple[str, ...]

    def plan(self) -> Plan:
        """Return all combinations that can be."""
        from rbuild.bench.plan import Target  # noqa: PLC0415
        from rbuild.matrix.plan import combine  # noqa: PLC0415

        kinds = [Target(kind) for kind in dict.fromkeys(self.kinds)]
        return combine(
            [profile.load(name) for name in dict.fromkeys(self.profiles or ("slim",))],
            list(dict.fromkeys(self.envs)) or ["cross", "hybrid"],
            kinds or [Target.OUT_OF_TREE, Target.IN_TREE],
            [Driver(driver) for driver in dict.fromkeys(self.drivers)] or list(IN_KERNEL),
        )


@dataclass(frozen=True)
class Cluster:
    """The scheduler that hands out builds, and what TLS needs."""

    scheduler: str | None
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    insecure: bool

    def resolve(self) -> Scheduler | None:
        """Return where client and workers meet; None for this machine alone."""
        from rbuild.matrix.scheduler import require, scheduler_at  # noqa: PLC0415

        if self.scheduler is None:
            if any(was_typed(f"tls_{name}") for name in ("ca", "cert", "key")):
                raise click.UsageError("--tls-* go with --scheduler.")
            if self.insecure:
                raise click.UsageError("--insecure needs --scheduler.")
            return None
        found = scheduler_at(
            self.scheduler, self.tls_ca, self.tls_cert, self.tls_key, insecure=self.insecure
        )
        require()
        return found


@click.command(epilog=EPILOG)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    type=PROFILE,
    metavar="P",
    help="A profile: a name, or a YAML file's path; may be repeated [default: slim].",
)
@mode_options(
    env_default="cross, hybrid",
    kind_default="out-of-tree, in-tree",
    driver_default="rust, c",
)
@click.option(
    "--export-json",
    type=Output(),
    metavar="F",
    help="Write the report there, too.",
)
@jobs_option
@runtime_option
@ccache_option
@cluster_options(required=False)
@click.option(
    "--wait",
    "wait_s",
    type=Number(min=0),
    default=60,
    show_default=True,
    metavar="S",
    help="With --scheduler: how long to wait, in seconds, where no machine is left.",
)
@grouped("cluster", Cluster)
@grouped("combinations", Combinations)
@click.pass_obj
def command(
    app: App,
    combinations: Combinations,
    cluster: Cluster,
    export_json: Path | None,
    jobs: int | None,
    runtime: str,
    ccache: bool,
    wait_s: float,
) -> int:
    """Build every combination (profile x environment x kind x driver).

    On this machine, one after another; with --scheduler on all that run `rbuild worker`, one at
    a time each.

    What can't be, such as the Rust driver of a kernel without Rust, is skipped, and the report
    says why; it also says whether the bytes agree.  A build that fails doesn't stop the others:
    the exit code is then 1, or 4 if it was no build's own fault.
    """
    from rbuild.matrix.report import Report  # noqa: PLC0415 - its models are slow to import

    found = cluster.resolve()
    if found is not None:
        _must_travel(combinations.envs)
    options = _options(jobs=jobs, runtime=runtime, ccache=ccache)
    plan = replace(combinations.plan(), options=options)
    # Each build has a runtime of its own; here the limits are only looked at.
    limits = click.get_current_context().meta.get(LIMITS, {})
    runtime_for(runtime, app.cache, memory_bytes=limits.get("memory"), cpus=limits.get("cpus"))
    made = build_context(app, "matrix", runtime_for("bwrap", app.cache), None)
    rows = sorted(_rows(plan, made, found, wait_s), key=lambda row: plan.builds.index(row.build))
    report = Report(plan, tuple(rows), None if found is None else found.address)
    return _show(report, app, export_json)


def _options(*, jobs: int | None, runtime: str, ccache: bool) -> tuple[str, ...]:
    """Return for each build's own command line what was said on this one.

    What a variable or a file says is each machine's own affair.
    """
    limits = click.get_current_context().meta.get(LIMITS, {})
    said = {"jobs": jobs, "runtime": runtime, **limits}
    words = [
        word
        for name, value in said.items()
        if was_typed(name)
        for word in (f"--{name}", str(value))
    ]
    if was_typed("ccache"):
        words.append("--ccache" if ccache else "--no-ccache")
    return tuple(words)


def _must_travel(envs: tuple[str, ...]) -> None:
    """Refuse an environment that other machines don't have."""
    for env in envs:
        if "/" in env or env.endswith((".yaml", ".yml")):
            raise click.UsageError(
                f"--env {env}: a definition in a file of its own doesn't travel; in the folder "
                "rootfs/ of every machine's rbuild, it is one by name."
            )


def _rows(plan: Plan, made: BuildContext, found: Scheduler | None, wait_s: float) -> Iterator[Row]:
    if found is None:
        from rbuild.matrix import local  # noqa: PLC0415

        return local.execute(plan, made)
    from rbuild.matrix import cluster  # noqa: PLC0415 - it needs Dask

    return cluster.execute(plan, made, found, wait_s)


def _show(report: Report, app: App, export_json: Path | None) -> int:
    """Print and write the report; return the exit code."""
    data = report.as_json()
    if export_json is not None:
        export.write(export_json, json.dumps(data, indent=1, default=str) + "\n")
    app.console.result("" if app.console.json else report.text(app.console.table), data)
    return report.exit_code
