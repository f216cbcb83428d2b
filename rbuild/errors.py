"""The errors that rbuild raises on purpose, each with the exit code that it ends in.

A user's mistake, a failed build, a host that lacks something and a broken infrastructure are
different to whoever reads the message and to a script that reads the exit code, so each is a
class of its own.  Nothing below the command line ever calls ``sys.exit``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    pass

FREE_SPACE = "Free some space (`rbuild clean`), or name another place with --cache-dir."
"""The hint of every error that says that the cache's disk is full."""


class RbuildError(Exception):
    """An error with a message for the user and, where there is one, a hint at the remedy.

    ``detail`` is shown before the message: the words of the program that failed.  ``result`` is
    what --json shows besides: all that was found out before it failed.  ``script`` is a reproducer
    of what failed, if there is one.
    """

    exit_code: ClassVar[int] = 4

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        detail: str = "",
        log: Path | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail
        self.log = log
        self.result = result or {}
        self.script: Path | None = None


KILLED = 128
"""A shell, bubblewrap and the engines add a signal's number to this (bash(1), EXIT STATUS)."""


class BuildFailed(RbuildError):  # noqa: N818 - reads as what happened
    """The build itself failed: compiler, linker, modpost, or rbuild's check of the result."""

    exit_code = 1


class GuestFailed(RbuildError):  # noqa: N818
    """What was built doesn't work: a test in the guest failed, or the guest itself did."""

    exit_code = 1


class RegressionError(RbuildError):
    """A benchmark shows that something takes longer than it did, by more than was allowed."""

    exit_code = 1


class UsageError(RbuildError):
    """Wrong usage, or a profile or a definition that is wrong."""

    exit_code = 2


class RefusedFileError(UsageError):
    """A file isn't read because of its owner or its link target; nothing of it is shown."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"Not reading {path}: it {reason}.")
        self.reason = reason


class KconfigError(UsageError):
    """Kconfig refused what a profile asks for; the .config that it made instead is there."""


class MissingDependency(RbuildError):  # noqa: N818
    """The host lacks a program or a capability; ``rbuild doctor`` says which and how to get it."""

    exit_code = 3


class InfrastructureError(RbuildError):
    """The mirror, the disk or the engine failed: trying again later may help."""

    exit_code = 4


class NewerFormat(InfrastructureError):  # noqa: N818
    """An entry of the cache was made by a newer rbuild, which this one can't read."""


INTERRUPTED = 130
"""Exit code after Ctrl-C, SIGTERM or SIGHUP."""


class Interruption(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP; ``result`` is what --json shows besides, as an error's."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        super().__init__()
        self.result = result


class TimedOut(RbuildError):  # noqa: N818
    """A program was ended since it took too long, or was ``silent`` for too long."""

    def __init__(self, seconds: float, *, silent: bool) -> None:
        what = "wrote nothing" if silent else "was not done"
        super().__init__(f"It {what} for {seconds:g} s, and was ended.")
        self.seconds = seconds
        self.silent = silent


class Cancelled(RbuildError):  # noqa: N818
    """A program was ended since nobody wants its result any more."""

    def __init__(self) -> None:
        super().__init__("It was ended, since its result is no longer wanted.")


class ProcessFailed(RbuildError):  # noqa: N818
    """A program ended with a status other than 0; callers say what that means to the user."""

    def __init__(self, argv: tuple[str, ...], returncode: int, tail: tuple[str, ...]) -> None:
        super().__init__(f"{argv[0]} ended with status {returncode}", detail="\n".join(tail))
        self.argv = argv
        self.returncode = returncode
        self.tail = tail


def ended_by_itself(error: BaseException) -> bool:
    """Tell whether a build failed because its program ended with an error, and wasn't killed.

    make then has removed the targets that it had begun; a killed one leaves them half written.
    """
    cause = error.__cause__
    return (
        isinstance(error, BuildFailed)
        and isinstance(cause, ProcessFailed)
        and 0 < cause.returncode < KILLED
    )
