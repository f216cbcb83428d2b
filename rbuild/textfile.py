"""Small files that somebody else may have written: only regular ones, and only up to a size."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from rbuild.errors import UsageError

FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def read_text(path: Path, *, limit: int, where: str = "") -> str:
    """Return the text of a regular file of at most ``limit`` bytes of UTF-8.

    ``where`` is what names the file (`profile.yaml: config.fragments`), for the message.  Raises
    UsageError that names the file and the reason; nothing but a regular file is opened.
    """
    content = read_bytes(path, limit=limit, where=where)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(path, where, str(error)) from error


def read_bytes(path: Path, *, limit: int, where: str = "") -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes; raise as ``read_text``."""
    try:
        # Opening a device may already do something: look first, and again at what was opened.
        _check(path.stat(), path, limit, where)
        descriptor = os.open(path, FLAGS)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
            _check(os.fstat(descriptor), path, limit, where)
            # A file of /proc has a size of 0, and any other may grow meanwhile.
            content = file.read(limit + 1) or b""  # None: /proc/kmsg has nothing yet
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise _unreadable(path, where, reason) from error
    if len(content) > limit:
        raise _too_large(path, where, f"more than {limit}", limit)
    return content


def _check(status: os.stat_result, path: Path, limit: int, where: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise _unreadable(path, where, f"it is {kind}, not a regular file")
    if status.st_size > limit:
        raise _too_large(path, where, str(status.st_size), limit)


def _too_large(path: Path, where: str, size: str, limit: int) -> UsageError:
    return _unreadable(path, where, f"it has {size} bytes, and may have {limit}")


def _unreadable(path: Path, where: str, reason: str) -> UsageError:
    return UsageError(f"{where}{': ' if where else ''}{path} can't be read: {reason}.")
