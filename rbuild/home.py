"""A user's home in a path: what ``~`` stands for."""

from __future__ import annotations

from pathlib import Path

from rbuild.errors import UsageError


def at_home(name: str | Path, where: str) -> Path:
    """Return a path with its ``~`` filled in; raises UsageError naming ``where``."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{where}: {name} is the home of a user that isn't known.") from error
