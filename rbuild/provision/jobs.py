"""Jobs in a prepared environment: checked, limited, logged, their outputs sanitised.

Everything that makes something in an environment goes through ``run_job``, so that what SECURITY.md
promises of builds holds for overlays, packages, initramfs and Kconfig as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rbuild.errors import FREE_SPACE, BuildFailed, InfrastructureError, ProcessFailed, TimedOut
from rbuild.provision.prepared import PreparedEnvironment
from rbuild.sandbox import oom, outputs
from rbuild.sandbox.build_output import Words, compiler_words
from rbuild.sandbox.cgroup import max_tasks
from rbuild.sandbox.context import BuildContext
from rbuild.sandbox.runtime import Job
from rbuild.ui.format import several
from rbuild.util.disk import full, is_full
from rbuild.util.process import Completed, Limits


def run_job(
    job: Job,
    ready: PreparedEnvironment,
    context: BuildContext,
    title: str,
    *,
    on_line: Callable[[str], None] | None = None,
    unread: re.Pattern[str] | None = None,
    beside: bool = False,
    check: bool = True,
    limits: Limits | None = None,
    at: Callable[[], str] = str,
    scratch: Collection[Path] = (),
) -> Completed:
    """Run a job to its end, within the context's limits, with its output in the context's log.

    Every cache entry that the context uses is verified before, or while it runs (``beside``),
    except for parts whose name matches ``unread``.  ``on_line`` gets each line of the output;
    ``at`` names what the job is at, for a message.  Without ``check`` a job may fail.  What the job
    leaves is sanitised, except in ``scratch``: folders that are removed, from which nothing is
    taken.  Raises BuildFailed with the compiler's words, InfrastructureError if memory or the disk
    ran out.
    """
    words = Words()
    kills = oom.kills()

    def watch(line: str) -> None:
        context.console.verbose(line)
        words.add(line)
        if on_line is not None:
            on_line(line)

    if not beside:
        context.cache.check(unread)
    verified = context.cache.checking(unread) if beside else nullcontext()
    with verified, context.log() as log:
        try:
            with _sanitised(job, title, context.log_path, scratch):
                return ready.runtime.run(
                    ready.sandbox,
                    job,
                    on_line=watch,
                    log=log,
                    check=check,
                    limits=context.limits if limits is None else limits,
                )
        except ProcessFailed as error:
            ran_out = oom.kills() > kills
            raise explain(error, title, context.log_path, ran_out=ran_out, words=words) from error
        except TimedOut as error:
            raise _hung(error, title, at(), context.log_path) from error


@contextmanager
def _sanitised(job: Job, title: str, log: Path, scratch: Collection[Path]) -> Iterator[None]:
    """Look at what the body leaves where a job may write, however it ends.

    Raises BuildFailed if it is what no build needs to leave.
    """
    faults: list[str] = []
    try:
        yield
    finally:
        for bind in job.binds:
            if bind.writable and bind.source.is_dir() and bind.source not in scratch:
                skipped = {one.name for one in scratch if one.parent == bind.source}
                faults += outputs.sanitise(bind.source, skipped)
    if faults:
        raise BuildFailed(
            f"{title} left what isn't taken from a build: {several(faults)}.",
            log=log,
            hint="It was removed, or made harmless. Look at what the Makefile does.",
        )


def _hung(error: TimedOut, title: str, last: str, log: Path) -> BuildFailed:
    """Say what a build was at when it had to be ended."""
    what = "wrote nothing" if error.silent else "was not done"
    at = f" The last that it began: {last}." if last else ""
    return BuildFailed(
        f"{title} {what} for {error.seconds:g} s, and was ended.{at}",
        log=log,
        hint="--timeout says how many seconds it may take; under emulation some programs hang.",
    )


NO_FORK = re.compile(
    r"(?i)(fork|spawn|thread|clone)[^\n]*resource temporarily unavailable|cannot fork"
)
"""What programs say that can't start a process or thread (EAGAIN, fork(2)), rustc and QEMU too."""

UNWRITTEN = re.compile(r"^\*\*\* Error (during|while) .*configuration", re.M)
"""What Kconfig says when it can't write what it made."""


def explain(
    error: ProcessFailed,
    title: str,
    log: Path,
    *,
    ran_out: bool = False,
    words: Words | None = None,
) -> BuildFailed | InfrastructureError:
    """Turn a failed make into an error that ends in the compiler's own words.

    ``words`` has heard all of its output, of which the error has only the end.  With ``ran_out``
    the kernel has killed a process for want of memory meanwhile.
    """
    first = [] if words is None else words.lines
    output = [*first, *error.tail]
    detail = "\n".join(first or compiler_words(error.tail))
    if found := oom.killed(output, ran_out=ran_out):
        return InfrastructureError(
            f"{title}: memory ran out, and the kernel killed {found}.",
            detail=detail,
            log=log,
            hint="Fewer jobs at once (-j) need less; --memory sets a container's limit.",
        )
    # Kconfig doesn't say why it can't write (scripts/kconfig/conf.c).
    silent = UNWRITTEN.search(detail) is not None and is_full(log.parent)
    if silent or "No space left on device" in detail:
        return InfrastructureError(
            f"{title}: {full(log.parent)}.",
            detail=detail,
            log=log,
            hint=FREE_SPACE,
        )
    hint = None
    if NO_FORK.search("\n".join(output)):
        hint = (
            f"A process or thread couldn't be started (limit: {max_tasks()} per build). Reduce -j."
        )
    if error.returncode < 0:
        hint = f"It was ended by signal {-error.returncode}; 9 may mean that memory ran out."
    return BuildFailed(f"{title} failed.", detail=detail, log=log, hint=hint)
