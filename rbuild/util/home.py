"""A user's home: what ``~`` stands for, and where the user's files are (XDG Base Directories)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from rbuild.errors import MissingDependency, UsageError


def at_home(name: str | Path, where: str) -> Path:
    """Return a path with its ``~`` filled in; raises UsageError naming ``where``."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{where}: {name} is the home of a user that isn't known.") from error


def user_path(kind: str, hint: str) -> Path:
    """Return the user's folder of a kind, such as ``cache``.

    Raises MissingDependency with a hint if the user has no home, as one has none whose id isn't in
    passwd(5) and for whom HOME isn't set.
    """
    import platformdirs  # noqa: PLC0415 - not needed to show help

    # Where there is no home, it raises an error, or leaves the tilde, by its version.
    with suppress(RuntimeError):
        path: Path = getattr(platformdirs, f"user_{kind}_path")()
        if path.is_absolute():
            return path
    raise MissingDependency(
        f"User id {os.getuid()} has no home directory: HOME is not set, and passwd has no entry.",
        hint=hint,
    )
