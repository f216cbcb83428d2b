"""Files that the user names: written where they are asked for, and nowhere else.

A file is written aside and renamed, so that what was there stays until the new one is whole.  A
link to a file is replaced, never followed.  A pipe or a character device is written to only where
it is named itself (``--tap /dev/stdout``), not where it stands in a folder that was named.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rbuild.errors import UsageError
from rbuild.util.files import written

DESCRIPTORS = {"/dev/stdout": 1, "/dev/stderr": 2}
DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/([0-9]{1,4})")
"""The names of a process's own open files, such as a shell's ``>(program)`` gives."""

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
STREAMS = {stat.S_IFCHR, stat.S_IFIFO}
"""The kinds that take what is written to them, and keep nothing."""


def write(path: Path, content: str | bytes) -> None:
    """Write a file, or to a stream, that the user names.

    Raises UsageError where something else is in the way, and OSError.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    descriptor = _descriptor(path)
    if descriptor is None:
        must_be_writable(path)
        if _kind(path) not in STREAMS:
            with _replaced(path) as file:
                file.write(data)
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NOCTTY | os.O_APPEND)
    else:
        sys.stdout.flush()
        descriptor = os.dup(descriptor)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)


def copy(sources: Iterable[Path], folder: Path) -> list[Path]:
    """Copy files, with their times, into a folder that the user names; return the copies' paths.

    Raises UsageError, before anything is copied, where something else is in the way.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder} is not a folder.") from error
    places = {source: folder / source.name for source in sources}
    for place in places.values():
        must_be_writable(place, named=False)
    for source, place in places.items():
        with source.open("rb") as content, _replaced(place) as file:
            shutil.copyfileobj(content, file)
            file.flush()
            status = os.fstat(content.fileno())
            os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
    return list(places.values())


@contextmanager
def _replaced(path: Path) -> Iterator[IO[bytes]]:
    """Write a file as ``written`` does; a file that was there keeps its mode and its owner."""
    with written(path) as file:
        with suppress(OSError):
            old = path.lstat()
            if stat.S_ISREG(old.st_mode):
                os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode) & 0o777)
                os.fchown(file.fileno(), old.st_uid, old.st_gid)
        yield file


def must_be_writable(path: Path, *, named: bool = True) -> None:
    """Raise UsageError unless a file of that name can be written, or replaced.

    ``named`` says that the user named the file itself, not only its folder.
    """
    if _descriptor(path) is not None:
        return
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder.")
    kind = _kind(path)
    if kind in STREAMS and named:
        _must_be_trusted(path)
        return
    if kind in KINDS:
        raise UsageError(f"{path} is {KINDS[kind]}, where a file is to be written.")
    target = _kind(path, follow=True)
    if kind == stat.S_IFLNK and target in KINDS:
        raise UsageError(
            f"{path} is a link to {KINDS[target]}, where a file is to be written.",
            hint=f"Name {path.readlink()} itself, or another file.",
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{folder} can't be written, and so {path.name} can't be put there.")


def must_be_outside(path: Path, cache: Path) -> None:
    """Raise UsageError if a file or folder of the user's would be in the cache directory."""
    # Whether a link itself is replaced or followed, its folder is what counts or where it leads.
    inside = os.path.realpath(cache)
    places = (os.path.realpath(path), os.path.realpath(path.parent))
    if any(Path(place).is_relative_to(inside) for place in places):
        raise UsageError(
            f"{path} is in the cache directory {cache}.",
            hint="What is there is verified, replaced and removed by rbuild: name a place outside.",
        )


def _must_be_trusted(path: Path) -> None:
    """Refuse a pipe that another user has put into a folder where others may write."""
    status = path.lstat()
    if stat.S_ISFIFO(status.st_mode) and status.st_uid not in {
        os.geteuid(),
        path.parent.stat().st_uid,
    }:
        raise UsageError(f"{path} is another user's pipe, where a file is to be written.")


def _descriptor(path: Path) -> int | None:
    """Return the number of the open file that a path names; None if it names another thing."""
    match = DESCRIPTOR.fullmatch(str(path))
    return int(match[1]) if match else DESCRIPTORS.get(str(path))


def _kind(path: Path, *, follow: bool = False) -> int | None:
    """Return what a path is (``stat.S_IFMT``); None if nothing is there."""
    try:
        return stat.S_IFMT(path.stat(follow_symlinks=follow).st_mode)
    except (OSError, RuntimeError):
        return None
