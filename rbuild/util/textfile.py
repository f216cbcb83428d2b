"""Small files that somebody else may have written: only regular ones, and only up to a size.

What isn't a regular file is never opened: a FIFO would make the reader wait, a device may act.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from rbuild.errors import RbuildError, UsageError

CHUNK = 1 << 20

Lookup = Callable[[Path], bytes | None]
"""Returns the content that counts for an absolute path; None: what is on the disk."""

_LOOKUP: ContextVar[Lookup | None] = ContextVar("rbuild.textfile.lookup", default=None)

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def pinned(lookup: Lookup) -> Iterator[None]:
    """Let files that ``lookup`` knows be read as it says, regardless of later changes on disk."""
    token = _LOOKUP.set(lookup)
    try:
        yield
    finally:
        _LOOKUP.reset(token)


def read_text(
    path: Path,
    *,
    limit: int,
    where: str = "",
    decoding: str = "strict",
    error: type[RbuildError] = UsageError,
    check: Callable[[Path], None] | None = None,
) -> str:
    """Return the text of a UTF-8 file of at most ``limit`` bytes.

    Raises ``error`` naming ``where`` (such as ``tiny.yaml: config.base``), the file and the
    reason: it can't be opened, isn't a regular file, is larger, or isn't UTF-8.  ``decoding`` is
    the handler of characters that can't be decoded (see ``bytes.decode``), ``check`` that of
    ``open_regular``.
    """
    content = read_bytes(path, limit=limit, where=where, error=error, check=check)
    try:
        text = content.decode("utf-8", decoding)
    except UnicodeDecodeError as fault:
        raise _unreadable(path, where, str(fault), error) from fault
    # As Python's own text files do.
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_bytes(
    path: Path,
    *,
    limit: int,
    where: str = "",
    error: type[RbuildError] = UsageError,
    check: Callable[[Path], None] | None = None,
) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes; raise as ``read_text``.

    What is ``pinned`` is returned as it is.
    """
    lookup = _LOOKUP.get()
    try:
        if lookup is not None and (content := lookup(path.absolute())) is not None:
            return content
        with open_regular(path, check) as file:
            return read_all(file, limit)
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)
        raise _unreadable(path, where, reason, error) from fault


def open_regular(path: Path, check: Callable[[Path], None] | None = None) -> BinaryIO:
    """Open a regular file to be read; raise OSError for anything else without opening it.

    ``check`` is called with the path of the very file that will be read, all links resolved: a
    link that is replaced meanwhile changes nothing.
    """
    held = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        kind = stat.S_IFMT(os.fstat(held).st_mode)
        if kind != stat.S_IFREG:
            raise OSError(f"it is {KINDS.get(kind, 'a special file')}, not a regular file")
        name = f"/proc/self/fd/{held}"
        if check is not None:
            check(Path(os.readlink(name)))  # noqa: PTH115 - as it is, also if it is gone
        # Some files of /proc and /sys wait for what will come: these fail instead.
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(held)
    return os.fdopen(file, "rb")


def read_all(file: BinaryIO, limit: int) -> bytes:
    """Return all of an open file; raise OSError if it has more than ``limit`` bytes."""
    content = bytearray()
    size = os.fstat(file.fileno()).st_size
    if size > limit:
        raise OSError(f"it is {size} bytes; the limit is {limit}")
    # What has no size, such as a file of /proc, is counted as it comes.
    while len(content) <= limit:
        part = file.read(min(CHUNK, limit + 1 - len(content)))
        if not part:  # None: /proc/kmsg has nothing yet
            return bytes(content)
        content += part
    raise OSError(f"it is larger than the limit of {limit} bytes")


def _unreadable(path: Path, where: str, reason: str, error: type[RbuildError]) -> RbuildError:
    return error(f"{where}{': ' if where else ''}{path} can't be read: {reason}.")
