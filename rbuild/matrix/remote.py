"""A machine of a cluster: a Dask worker that makes one build at a time, each an rbuild of its own.

Imported only where Dask is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distributed import Reschedule, Worker, WorkerPlugin, get_worker
from distributed.comm.core import connect
from distributed.core import Status

from rbuild.errors import Cancelled, InfrastructureError, RbuildError
from rbuild.matrix.identity import identity
from rbuild.matrix.scheduler import Scheduler
from rbuild.matrix.task import Outcome, Place, Task, failure, run_task
from rbuild.ui.console import Console
from rbuild.util.hashes import digest

AT_WORK = {Status.running, Status.paused}
EXECUTING = "executing"
"""Dask's word for a task that runs, and whose result is awaited."""
PROBE_S = 10.0
"""How long the scheduler may take to answer."""
END_S = 15.0
"""How long a build that is given up may take to end."""


class Host(WorkerPlugin):
    """What a task finds at the worker that runs it."""

    name = "rbuild"

    def __init__(self, place: Place, console: Console) -> None:
        self.place = place
        self.console = console
        self.idle = threading.Event()
        self.idle.set()
        self.leaving = threading.Event()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Mark that a build is under way while the body runs."""
        self.idle.clear()
        try:
            yield
        finally:
            self.idle.set()


@dataclass(frozen=True)
class TaskId:
    """What names a build to whoever waits for it: the topic of his events, and what it is.

    ``identity`` is the rbuild that has to make it.
    """

    topic: str
    title: str
    identity: str


@dataclass(frozen=True)
class Contact:
    """A scheduler that answers: its numeric address, and this machine's own on the way to it.

    What was checked is the numeric address: a name might stand for another one the next time.
    ``local`` has no port.
    """

    address: str
    local: str


class ChangedError(InfrastructureError):
    """This machine's files are no longer those that its worker was started with."""


def build(task: Task, ticket: TaskId) -> Outcome:
    """Make a build on this worker; Dask calls it.

    Dask itself can't end what runs already: the build ends itself when the worker no longer has
    its task, as after Ctrl-C at the client or when that is lost, or when the worker ends.
    """
    worker = get_worker()
    key = worker.get_current_task()
    host = worker.plugins[Host.name]
    assert isinstance(host, Host)

    def say(what: str) -> None:
        event = {"event": what, "key": str(key), "machine": host.place.machine}
        worker.log_event(ticket.topic, event)

    def ends() -> bool:
        return host.leaving.is_set() or worker.status not in AT_WORK

    def unwanted() -> bool:
        known = worker.state.tasks.get(key)
        return ends() or known is None or known.state != EXECUTING

    say("start")
    with host.busy(), host.console.step(ticket.title, key=digest(task)) as step:
        try:
            _must_be(ticket.identity)
            outcome = run_task(task, host.place, host.console.teller(step), unwanted)
        except Cancelled:
            step.failed = True
            if not ends():
                raise
            # Another machine takes it, which is no fault of the build's.
            say("left")
            raise Reschedule from None
        except (RbuildError, OSError) as error:
            if isinstance(error, ChangedError):
                host.console.warn(error.message)
            outcome = failure(error, host.place)
        step.failed = outcome.exit_code != 0
    return outcome


def decline(other: str, dask_worker: Worker | None = None) -> None:
    """Say at a worker that a matrix of another rbuild gives it no builds; the client calls it."""
    host = None if dask_worker is None else dask_worker.plugins.get(Host.name)
    if isinstance(host, Host):
        host.console.warn(
            f"{host.place.machine} gets no builds: a matrix has another rbuild ({other}, "
            f"here {identity()}). Install the same here, and start the worker again."
        )


def _must_be(wanted: str) -> None:
    """Raise ChangedError if this machine's files are no longer those it joined with."""
    if (found := identity()) != wanted:
        raise ChangedError(
            f"This machine's rbuild was changed ({found}, not {wanted}): its worker is to be "
            "started anew."
        )


def serve(scheduler: Scheduler, place: Place, console: Console) -> None:
    """Take builds from the scheduler until SIGINT, SIGTERM or SIGHUP.

    Raises InfrastructureError if the scheduler doesn't answer, refuses this machine, or is lost.
    """
    asyncio.run(_serve(scheduler, place, console))


async def _serve(scheduler: Scheduler, place: Place, console: Console) -> None:
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, told.set)
    contact = await greet(scheduler, console)
    host = Host(place, console)
    worker = await _join(scheduler, contact, host)
    console.note(f"{place.machine} takes builds of {identity()} from {scheduler.address}")
    lost, ended = asyncio.ensure_future(worker.finished()), asyncio.ensure_future(told.wait())
    await asyncio.wait({lost, ended}, return_when=asyncio.FIRST_COMPLETED)
    by_choice = told.is_set()
    if by_choice:
        # First the build leaves, and says so; a worker that is paused gets no other.
        host.leaving.set()
        worker.status = Status.paused
        await asyncio.to_thread(host.idle.wait, END_S)
    await worker.close(timeout=END_S, reason="told to end")
    for waiting in (lost, ended):
        waiting.cancel()
    await asyncio.to_thread(host.idle.wait, END_S)
    if not by_choice:
        raise InfrastructureError(f"The scheduler at {scheduler.address} is gone.")
    console.note(f"{place.machine} takes no more builds")


async def greet(scheduler: Scheduler, console: Console) -> Contact:
    """Return which of the scheduler's addresses answers.

    Raises InfrastructureError if none does, UsageError as ``Meeting.resolve`` does: nothing is
    said to one that isn't to be trusted.
    """
    addresses = await asyncio.to_thread(scheduler.resolve, console.warn)
    arguments: dict[str, Any] = scheduler.security().get_connection_args("client")
    attempts = [
        asyncio.ensure_future(connect(address, timeout=PROBE_S, **arguments))
        for address in addresses
    ]
    reason = ""
    try:
        for attempt in asyncio.as_completed(attempts):
            try:
                comm = await attempt
            except OSError as error:
                reason = _reason(error)
                continue
            await comm.close()
            return Contact(comm.peer_address, comm.local_address.rpartition(":")[0])
    finally:
        for one in attempts:
            one.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)
    raise InfrastructureError(
        f"No scheduler answers at {scheduler.address}: {reason}.",
        hint="`dask scheduler` starts one; docs/how-to/matrix.md has all of it.",
    )


async def _join(scheduler: Scheduler, contact: Contact, host: Host) -> Worker:
    """Start a worker that is known to the scheduler, and listens on the way to it alone."""
    worker = Worker(
        contact.address,
        host=contact.local,
        nthreads=1,
        name=host.place.machine,
        resources={identity(): 1},
        security=scheduler.security(),
        plugins=(host,),
        local_directory=str(host.place.folder),
        # What takes memory is a child's: this process needs next to none.
        memory_limit=0,
        dashboard=False,
        # It has an HTTP server nevertheless.
        dashboard_address="127.0.0.1:0",
        death_timeout=PROBE_S,
    )
    try:
        await worker
    except (ValueError, OSError, RuntimeError, TimeoutError) as error:
        reason = _reason(error)
        if "name taken" in reason:
            raise InfrastructureError(
                f"The scheduler has a worker named {host.place.machine} already.",
                hint="Give this one another name with --name.",
            ) from error
        raise InfrastructureError(
            f"{host.place.machine} can't be a worker of {scheduler.address}: {reason}."
        ) from error
    return worker


def _reason(error: BaseException) -> str:
    """Return the words of what an error began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).rstrip(".")
