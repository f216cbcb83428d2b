"""A matrix on this machine: one build at a time."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

from rbuild.matrix.plan import Plan
from rbuild.matrix.report import Attempt, Row
from rbuild.matrix.task import RBUILD, Outcome, Place, perform, task_of
from rbuild.matrix.travel import pack
from rbuild.session import Session
from rbuild.store import digest


def execute(plan: Plan, session: Session, rbuild: tuple[str, ...] = RBUILD) -> Iterator[Row]:
    """Yield each build's end as it comes; one that fails doesn't keep the others from theirs."""
    console = session.console
    here = Place(socket.gethostname(), session.store.root, session.run_folder, rbuild)
    packed = {one.profile.name: pack(one.profile) for one in plan.builds}
    for number, build in enumerate(plan.builds, 1):
        task = task_of(build, packed[build.profile.name], plan.options)
        title = f"[{number}/{len(plan.builds)}] {build}"
        with console.step(title, key=digest(task)) as step:
            outcome = perform(task, here, console.teller(step))
            step.failed = outcome.exit_code != 0
        attempt = Attempt(here.machine, outcome.exit_code)
        log = keep_log(f"{number:03d} {build}", outcome, session)
        yield Row(build, outcome, (attempt,), log=str(log))


def keep_log(name: str, outcome: Outcome, session: Session) -> Path:
    """Write what a build said to a file in the run's folder; return its path."""
    path = session.run_folder / f"{name.replace(', ', '-').replace(' ', '-').replace('/', '_')}.log"
    path.write_text(outcome.log, encoding="utf-8", errors="replace")
    return path
