"""Folders that somebody else fills or changes: walked, written and removed by descriptors.

Each step is taken from an open folder to a name in it, and never through a link, so that neither
the depth of a folder, nor the length of its path, nor a folder that is swapped for a link
meanwhile leads out of it or ends the walk.  What vanishes meanwhile is left out.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rbuild.util.walk import OPEN, VANISHED, Place, must_be_name, open_below, open_folder

GONE = re.compile(": No such file or directory$")
"""What find(1) says of a thing that vanishes while it looks, in the C locale."""


ASIDE = ".tmp_rbuild"
"""The name of a file in its folder while it is written."""

MAX_RETRIES = 100
"""How often a folder is emptied again that somebody fills meanwhile."""


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """Have a folder open while the body runs."""
    descriptor = os.open(folder, OPEN)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def parent_of(folder: int, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
    """Open the folder that a path below ``folder`` is in; have it, and the path's last name.

    Raises OSError, ValueError for a path that could lead out of the folder.
    """
    *steps, last = name.split("/")
    for step in (*steps, last):
        must_be_name(step)
    parent = open_below(folder, steps, make=make)
    try:
        yield parent, last
    finally:
        os.close(parent)


def remove_below(folder: int, name: str) -> None:
    """Remove a file or link by its path below an open folder; what isn't there is no error.

    Raises ValueError for a path that could lead out of the folder.
    """
    try:
        with parent_of(folder, name) as (parent, last):
            os.unlink(last, dir_fd=parent)
    except IsADirectoryError:
        pass
    except OSError as error:
        if error.errno not in VANISHED:
            raise


def remove_tree(path: Path) -> None:
    """Remove a folder, also one whose subfolders forbid it; one that isn't there is no error."""
    with suppress(FileNotFoundError), opened(path.parent) as parent:
        try:
            remove_tree_below(parent, path.name)
        except OSError as error:
            # The kernel knows its name in its folder only.
            error.filename = str(path / str(error.filename or ""))
            raise


def remove_tree_below(parent: int, name: str) -> None:
    """Remove a folder of an open folder, and all that is in it; raise as ``parent_of`` does."""
    must_be_name(name)
    for retry in range(MAX_RETRIES + 1):
        try:
            top = open_folder(parent, name, unlock=True)
        except FileNotFoundError:
            return
        with Place(top) as place:
            _empty(place)
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or retry == MAX_RETRIES:
                raise
        else:
            return


def _empty(place: Place) -> None:
    """Remove all that is in a folder, but for what somebody puts there meanwhile."""
    pending = [_remove_files(place)]
    while True:
        if pending[-1]:
            if place.enter(pending[-1].pop(), unlock=True):
                pending.append(_remove_files(place))
            continue
        pending.pop()
        if not pending:
            return
        name = place.steps[-1]
        if not place.leave():
            pending[-1].clear()
            continue
        try:
            os.rmdir(name, dir_fd=place.descriptor)
        except OSError as error:
            # Not empty: the caller begins again.
            if error.errno not in VANISHED | {errno.ENOTEMPTY}:
                raise


def _remove_files(place: Place) -> list[str]:
    """Remove what is in a folder and is no folder; return the names of those that are."""
    place.unlock()
    folders: list[str] = []
    with os.scandir(place.descriptor) as found:
        entries = list(found)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            folders.append(entry.name)
            continue
        try:
            os.unlink(entry.name, dir_fd=place.descriptor)
        except FileNotFoundError:
            continue
        except IsADirectoryError:
            folders.append(entry.name)
    return folders


def empty(folder: Path) -> None:
    """Remove all that is in a folder, which stays."""
    with opened(folder) as descriptor:
        for name in os.listdir(descriptor):  # noqa: PTH208 - by its descriptor
            try:
                os.unlink(name, dir_fd=descriptor)
            except IsADirectoryError:
                remove_tree_below(descriptor, name)


def read_below(folder: int, name: str) -> tuple[bytes, int] | None:
    """Return a file's content and mode by its path below an open folder; None if none is there.

    A link, a pipe or a device is none, nor is what can't be read.  Raises as ``parent_of`` does.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with parent_of(folder, name) as (parent, last):
            file = os.open(last, flags, dir_fd=parent)
        with os.fdopen(file, "rb") as stream:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                return None
            return stream.read(), stat.S_IMODE(status.st_mode)
    except OSError as error:
        if error.errno not in VANISHED | {errno.ENXIO, errno.EISDIR, errno.EACCES}:
            raise
        return None


def write_below(folder: int, name: str, content: bytes, mode: int) -> None:
    """Write a file by its path below an open folder: aside, then renamed.

    Anything in the way, above it or in its place, is removed: the caller says what is there.
    """
    with parent_of(folder, name, make=True) as (parent, last):
        try:
            os.unlink(ASIDE, dir_fd=parent)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            remove_tree_below(parent, ASIDE)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(ASIDE, flags, 0o600, dir_fd=parent), "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
        try:
            os.replace(ASIDE, last, src_dir_fd=parent, dst_dir_fd=parent)
        except IsADirectoryError:
            remove_tree_below(parent, last)
            os.replace(ASIDE, last, src_dir_fd=parent, dst_dir_fd=parent)


def names_of(record: Any) -> frozenset[str] | None:  # noqa: ANN401 - what a file had
    """Return the names of a list that was kept; None if it is none, or one could lead out."""
    if not isinstance(record, list) or not all(isinstance(one, str) for one in record):
        return None
    with suppress(ValueError):
        for name in record:
            for step in name.split("/"):
                must_be_name(step)
        return frozenset(record)
    return None
