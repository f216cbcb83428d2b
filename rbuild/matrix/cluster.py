"""A matrix on several machines, each a worker of a Dask cluster.

No more builds are handed out than there are machines, so that each goes to one that is free, and
a machine that is lost takes no build with it but its own.  Imported only where Dask is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from distributed import Client, Future

from rbuild.errors import InfrastructureError
from rbuild.matrix.bundle import pack
from rbuild.matrix.identity import PREFIX, identity
from rbuild.matrix.local import keep_log
from rbuild.matrix.plan import Build, Plan
from rbuild.matrix.remote import TaskId, build, decline, greet
from rbuild.matrix.report import Attempt, Row
from rbuild.matrix.scheduler import Scheduler
from rbuild.matrix.task import Outcome, Task, task_of
from rbuild.sandbox.context import BuildContext
from rbuild.ui.console import Console
from rbuild.ui.format import duration

MAX_LOST = 2
"""A build that was on this many machines when they were lost is not given to one more."""
TRIES = 2
"""How many machines may try a build that it was no fault of the build's not to be made."""
TICK_S = 0.2
LOOK_S = 1.0
"""How often the scheduler is asked for its workers."""
CLOSE_S = 5.0


@dataclass
class Job:
    """A build under way.  ``at`` is the machine that has it, ``future`` Dask's handle of it."""

    number: int
    build: Build
    task: Task
    attempts: list[Attempt] = field(default_factory=list)
    future: Future[Outcome] | None = None
    at: str | None = None
    started: float = 0.0

    def ended(self, code: int | None) -> None:
        """Note how it ended on the machine that has it; None: that was lost."""
        if self.at is not None:
            self.attempts.append(Attempt(self.at, code))
        self.at = None

    @property
    def losses(self) -> list[str]:
        """The machines that were lost while they had it."""
        return [one.machine for one in self.attempts if one.ended is None]

    @property
    def tried(self) -> list[str]:
        """The machines that couldn't make it."""
        return [one.machine for one in self.attempts if one.ended is not None]


def execute(
    plan: Plan, context: BuildContext, scheduler: Scheduler, wait_s: float
) -> Iterator[Row]:
    """Yield each build's end as it comes.

    With no machine for ``wait_s`` seconds, what is left is not run.  When the caller stops, or is
    interrupted, the builds under way are ended.  Raises InfrastructureError if the scheduler
    can't be reached, or no machine is there to begin with.
    """
    bundle = {one.profile.name: pack(one.profile) for one in plan.builds}
    jobs = [
        Job(number, one, task_of(one, bundle[one.profile.name], plan.options))
        for number, one in enumerate(plan.builds, 1)
    ]
    client = _client(scheduler, context.console)
    try:
        _check(client, scheduler)
        run = _Run(client, context, scheduler, wait_s, jobs)
        run.wait_for_machines()
        yield from run.rows()
    finally:
        _close(client, [job.future for job in jobs if job.future is not None])


class _Run:
    """The builds of a matrix on their way through a cluster."""

    def __init__(
        self,
        client: Client,
        context: BuildContext,
        scheduler: Scheduler,
        wait_s: float,
        jobs: Sequence[Job],
    ) -> None:
        self.client = client
        self.context = context
        self.console = context.console
        self.scheduler = scheduler
        self.wait_s = wait_s
        self.total = len(jobs)
        self.waiting = list(jobs)
        self.running: list[Job] = []
        self.own = identity()
        self.topic = f"rbuild-{uuid4().hex}"
        self.events: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self.machines: dict[str, str] = {}
        self.seen = time.monotonic()
        self.strangers: set[str] = set()
        client.subscribe_topic(self.topic, lambda event: self.events.put(event[1]))

    def wait_for_machines(self) -> None:
        """Return when the first machine is there; raise InfrastructureError if none comes."""
        self.look()
        if not self.machines:
            self.console.note(f"Waiting for a machine at {self.scheduler.address} ...")
        while not self.machines:
            if self.deserted:
                raise InfrastructureError(
                    f"No machine with this rbuild ({self.own}) is at {self.scheduler.address}.",
                    hint=f"On each: rbuild worker --scheduler {self.scheduler.address}",
                )
            time.sleep(LOOK_S)
            self.look()
        self.console.note(f"Machines: {', '.join(sorted(self.machines.values()))}")

    def rows(self) -> Iterator[Row]:
        """Yield each build's end as it comes."""
        looked = time.monotonic()
        while self.waiting or self.running:
            self.hand_out()
            yield from self.handle_events()
            for job in list(self.running):
                row = self.ended(job)
                if row is not None:
                    self.running.remove(job)
                    yield row
            if time.monotonic() - looked > LOOK_S:
                self.look()
                looked = time.monotonic()
            if self.client.status not in {"running", "connecting"}:
                yield from self.give_up(f"The scheduler at {self.scheduler.address} is gone.")
            elif self.deserted:
                yield from self.give_up(
                    f"No machine was at {self.scheduler.address} for {duration(self.wait_s)}."
                )

    @property
    def deserted(self) -> bool:
        """Whether no machine has been there for too long."""
        return not self.machines and time.monotonic() - self.seen > self.wait_s

    def look(self) -> None:
        """See which machines there are; warn of those whose rbuild is another."""
        workers = self.client.scheduler_info(n_workers=-1).get("workers", {})
        self.machines = {
            address: str(one["name"])
            for address, one in workers.items()
            if self.own in one["resources"] and one["status"] == "running"
        }
        if self.machines:
            self.seen = time.monotonic()
        for address, one in workers.items():
            other = [name for name in one["resources"] if name.startswith(PREFIX)]
            if other and self.own not in other and address not in self.strangers:
                self.strangers.add(address)
                self.console.warn(
                    f"{one['name']} has another rbuild ({other[0]}, here {self.own}): "
                    "it gets no builds."
                )
                # It is said there, too; nobody waits for a machine that doesn't answer.
                threading.Thread(target=self.decline, args=(address,), daemon=True).start()

    def decline(self, address: str) -> None:
        """Tell a worker whose rbuild is another that it gets no builds."""
        with contextlib.suppress(Exception):
            self.client.run(decline, self.own, workers=[address], on_error="ignore")

    def hand_out(self) -> None:
        """Submit as many builds as there are machines for."""
        while self.waiting and len(self.running) < len(self.machines):
            job = self.waiting.pop(0)
            title = f"[{job.number}/{self.total}] {job.build}"
            others = [address for address, name in self.machines.items() if name not in job.tried]
            job.future = self.client.submit(
                build,
                job.task,
                TaskId(self.topic, title, self.own),
                key=f"{self.topic}-{job.number}-{len(job.attempts)}",
                pure=False,
                resources={self.own: 1},
                workers=others if job.tried else None,
                allow_other_workers=bool(job.tried),
                retries=0,
            )
            self.running.append(job)

    def handle_events(self) -> Iterator[Row]:
        """Heed what the machines say of their builds, for a little while."""
        try:
            event = self.events.get(timeout=TICK_S)
        except queue.Empty:
            return
        for job in list(self.running):
            if job.future is None or job.future.key != event["key"]:
                continue
            if event["event"] == "left":
                self.console.note(f"  {job.at} ends, and leaves {job.build} to another")
                job.at = None
            elif event["event"] == "start":
                if job.at is not None:
                    self.console.warn(f"{job.at} was lost while it built {job.build}.")
                    job.ended(None)
                job.at, job.started = event["machine"], time.monotonic()
                if len(job.losses) >= MAX_LOST:
                    self.running.remove(job)
                    job.at = None
                    self.client.cancel([job.future], force=True)
                    yield self.not_run(
                        job, f"{' and '.join(job.losses)} were lost while they built it."
                    )
                else:
                    self.console.note(f"==> [{job.number}/{self.total}] {job.build}, on {job.at}")

    def ended(self, job: Job) -> Row | None:
        """Return the end of a build, or None: it goes on, or is to be tried elsewhere."""
        assert job.future is not None
        if job.future.status not in {"finished", "error", "cancelled"}:
            return None
        try:
            outcome = job.future.result(timeout=CLOSE_S)
        except TimeoutError:
            return None  # its machine was lost before its result was fetched
        except CancelledError:
            return self.not_run(job, f"The scheduler at {self.scheduler.address} is gone.")
        except Exception as error:  # noqa: BLE001 - whatever a machine raised, or Dask
            return self.not_run(job, f"{type(error).__name__}: {' '.join(str(error).split())}")
        assert isinstance(outcome, Outcome)
        if job.at is not None and job.at != outcome.machine:
            job.ended(None)
        job.at = outcome.machine
        job.ended(outcome.exit_code)
        job.future = None
        took = duration(time.monotonic() - job.started)
        word = "ok" if outcome.exit_code == 0 else "failed"
        self.console.note(f"  {word} {job.build}, on {outcome.machine} ({took})")
        others = [name for name in self.machines.values() if name not in job.tried]
        if not outcome.is_final and len(job.tried) < TRIES and others:
            self.console.warn(f"{outcome.machine}: {outcome.error} Another machine tries it.")
            self.waiting.insert(0, job)
            self.running.remove(job)
            return None
        log = keep_log(f"{job.number:03d} {job.build}", outcome, self.context)
        return Row(job.build, outcome, tuple(job.attempts), log=str(log))

    def give_up(self, reason: str) -> Iterator[Row]:
        """Yield what is left as not run."""
        for job in [*self.running, *self.waiting]:
            job.ended(None)
            yield self.not_run(job, reason)
        self.running, self.waiting = [], []

    def not_run(self, job: Job, reason: str) -> Row:
        """Return a build that came to no end."""
        self.console.warn(f"{job.build}: {reason}")
        return Row(job.build, None, tuple(job.attempts), error=reason)


def _client(scheduler: Scheduler, console: Console) -> Client:
    """Return a client that is connected; raise as ``greet`` does if it can't be."""
    contact = asyncio.run(greet(scheduler, console))
    try:
        return Client(
            contact.address,
            security=scheduler.security(),
            set_as_default=False,
            name="rbuild-matrix",
        )
    except (OSError, ValueError) as error:
        raise InfrastructureError(
            f"{scheduler.address} is no scheduler of Dask's: {error}."
        ) from error


def _check(client: Client, scheduler: Scheduler) -> None:
    """Raise InfrastructureError if the scheduler, which reads what it passes on, has no rbuild."""
    try:
        client.run_on_scheduler(identity)
    except Exception as error:
        raise InfrastructureError(
            f"The scheduler at {scheduler.address} can't import rbuild: {error}.",
            hint="Start `dask scheduler` from the environment that rbuild is installed in.",
        ) from error


def _close(client: Client, futures: Sequence[Future[Outcome]]) -> None:
    """End what is under way, and leave the cluster."""
    if client.status == "running" and futures:
        client.cancel(list(futures), force=True)
    client.close(timeout=CLOSE_S)
