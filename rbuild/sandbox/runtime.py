"""What runs inside an environment, whatever the runtime that enters it.

A Sandbox is data: a read-only root, a native layer bound over it, variables.  A Runtime turns it
and a command into a process.  No other module knows how a command gets into an environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from rbuild.util.process import NO_LIMITS, Completed, Limits

SRC = "/src"
KDIR = "/kdir"
MODULE = "/module"
"""Where the kernel tree, the KDIR and a module are, in every sandbox on every machine."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Bind:
    """A file or folder of the host's seen at ``target`` in the sandbox; read-only by default."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True)
class Sandbox:
    """An environment that is provisioned and ready to be entered.

    ``interpreter`` is a line for binfmt_misc: an emulator that this sandbox brings along.  With
    ``scratch``, an empty folder, all of it can be written, and what was is gone when the last
    process in it ends.
    """

    name: str
    root: Path
    layer: tuple[Bind, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    interpreter: str | None = None
    scratch: Path | None = None


@dataclass(frozen=True)
class Job:
    """A command and what it needs of a sandbox beyond the environment itself.

    ``network`` is off for every build; only fetching a source package turns it on.
    """

    argv: Sequence[str]
    binds: Sequence[Bind] = ()
    cwd: str = "/"
    variables: Mapping[str, str] = field(default_factory=dict)
    network: bool = False


class Runtime(Protocol):
    """What enters a sandbox."""

    @property
    def name(self) -> str:
        """The word that chooses it on the command line."""
        ...

    def argv(self, sandbox: Sandbox, job: Job) -> list[str]:
        """Return a command line that runs a job in the same way, from any shell."""
        ...

    def prepare(self, sandbox: Sandbox) -> None:
        """Make what it needs to enter a sandbox, if it isn't there."""
        ...

    def run(
        self,
        sandbox: Sandbox,
        job: Job,
        *,
        on_line: Callable[[str], None] | None = None,
        log: IO[str] | None = None,
        check: bool = True,
        limits: Limits = NO_LIMITS,
    ) -> Completed:
        """Run a job to its end; raises as ``process.run`` does."""
        ...

    def interactive(self, sandbox: Sandbox, job: Job) -> int:
        """Run a job on the user's terminal; return its exit status."""
        ...


def variables_for(sandbox: Sandbox, job: Job) -> dict[str, str]:
    """Return the whole environment of a job: nothing of the caller's gets in."""
    return {
        "PATH": PATH,
        "HOME": "/tmp",  # noqa: S108 - the sandbox's own, a tmpfs
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        **sandbox.variables,
        **job.variables,
    }


OUT = "/tmp/out"  # noqa: S108 - the sandbox's own, a tmpfs
"""Where a folder that a sandboxed command fills is seen in the sandbox."""
