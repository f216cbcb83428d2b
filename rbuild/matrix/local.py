"""A matrix on this machine: one build at a time."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

from rbuild.matrix.bundle import pack
from rbuild.matrix.plan import Plan
from rbuild.matrix.report import Attempt, Row
from rbuild.matrix.task import RBUILD, Outcome, Place, run_task, task_of
from rbuild.sandbox.context import BuildContext
from rbuild.util.hashes import digest


def execute(plan: Plan, context: BuildContext, rbuild: tuple[str, ...] = RBUILD) -> Iterator[Row]:
    """Yield each build's end as it comes; one that fails doesn't keep the others from theirs."""
    console = context.console
    here = Place(socket.gethostname(), context.cache.root, context.run_folder, rbuild)
    bundle = {one.profile.name: pack(one.profile) for one in plan.builds}
    for number, build in enumerate(plan.builds, 1):
        task = task_of(build, bundle[build.profile.name], plan.options)
        title = f"[{number}/{len(plan.builds)}] {build}"
        with console.step(title, key=digest(task)) as step:
            outcome = run_task(task, here, console.teller(step))
            step.failed = outcome.exit_code != 0
        attempt = Attempt(here.machine, outcome.exit_code)
        log = keep_log(f"{number:03d} {build}", outcome, context)
        yield Row(build, outcome, (attempt,), log=str(log))


def keep_log(name: str, outcome: Outcome, context: BuildContext) -> Path:
    """Write what a build said to a file in the run's folder; return its path."""
    path = context.run_folder / f"{name.replace(', ', '-').replace(' ', '-').replace('/', '_')}.log"
    path.write_text(outcome.log, encoding="utf-8", errors="replace")
    return path
