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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
BELOW = OPEN | os.O_NOFOLLOW

VANISHED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""What the kernel says of a folder that is gone, or another thing by now."""

GONE = re.compile(": No such file or directory$")
"""What find(1) says of a thing that vanishes while it looks, in the C locale."""

MAX_DEPTH = 100
"""Levels of folders that sources have, and that a build may leave; a kernel's has about ten."""

MAX_PATH_BYTES = 2048
"""The longest path in such a folder: half of PATH_MAX, so that programs can name its files."""

ASIDE = ".tmp_rbuild"
"""The name of a file in its folder while it is written."""

MAX_RETRIES = 100
"""How often a folder is emptied again that somebody fills meanwhile."""


TOO_DEEP = (
    f"nested deeper than {MAX_DEPTH} levels, or with a path longer than {MAX_PATH_BYTES} bytes"
)


def is_too_deep(path: str) -> bool:
    """Tell whether a folder, by its relative path, is deeper than any of sources or outputs is."""
    return path.count("/") >= MAX_DEPTH or len(os.fsencode(path)) > MAX_PATH_BYTES


@dataclass(frozen=True)
class Visit:
    """One folder of a walk, open while the walk stands there.

    ``steps`` lead to it from the top.  A caller may remove names from ``folders``: the walk goes
    into those that are left.  ``files`` are all things that are no folders, links included; their
    ``stat`` works until the walk goes on.
    """

    descriptor: int
    steps: Sequence[str]
    folders: list[str]
    files: list[os.DirEntry[str]]

    def path(self, name: str = "") -> str:
        """Return the path of a thing in this folder, relative to the walk's top."""
        return "/".join([*self.steps, name] if name else self.steps)

    def status(self, entry: os.DirEntry[str]) -> os.stat_result | None:
        """Return what lstat(2) says of one of ``files``; None if it has gone meanwhile."""
        try:
            return entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None


def walk(
    top: Path, *, unlock: bool = False, failed: Callable[[str, OSError], None] | None = None
) -> Iterator[Visit]:
    """Visit a folder and all folders below, each before those in it; nothing if it isn't there.

    With ``unlock`` folders are made accessible to their owner.  ``failed`` gets the path, relative
    to the top, of each folder that can't be read, which is otherwise left out.
    """
    try:
        place = _Place(os.open(top, OPEN))
    except OSError as error:
        if error.errno not in VANISHED and failed is not None:
            failed("", error)
        return
    with place:
        pending: list[list[str]] = [[]]
        arrived = True
        while True:
            if arrived:
                visit = _visit(place, unlock=unlock, failed=failed)
                yield visit
                pending[-1] = visit.folders[::-1]
                arrived = False
            elif pending[-1]:
                name = pending[-1].pop()
                try:
                    arrived = place.enter(name, unlock=unlock)
                except OSError as error:
                    if failed is not None:
                        failed("/".join([*place.steps, name]), error)
                if arrived:
                    pending.append([])
            else:
                pending.pop()
                if not pending:
                    return
                if not place.leave():
                    pending[-1].clear()


def _visit(place: _Place, *, unlock: bool, failed: Callable[[str, OSError], None] | None) -> Visit:
    folders: list[str] = []
    files: list[os.DirEntry[str]] = []
    try:
        if unlock:
            place.unlock()
        with os.scandir(place.descriptor) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                else:
                    files.append(entry)
    except OSError as error:
        if error.errno not in VANISHED and failed is not None:
            failed("/".join(place.steps), error)
    return Visit(place.descriptor, tuple(place.steps), folders, files)


class _Place:
    """Where a walk stands: an open folder, and the identities of those above it.

    One descriptor is open for it and one for the top, however deep it is.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self.descriptor = os.dup(top)
        self.steps: list[str] = []
        self._above: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
        os.close(self._top)

    def enter(self, name: str, *, unlock: bool = False) -> bool:
        """Go into a folder; return False if it has gone, or is another thing by now."""
        try:
            below = _open_below(self.descriptor, name, unlock=unlock)
        except OSError as error:
            if error.errno in VANISHED:
                return False
            raise
        self._above.append(_identity(self.descriptor))
        self.steps.append(name)
        self._stand(below)
        return True

    def leave(self) -> bool:
        """Go up again; return False if the folder that it was entered from has gone meanwhile."""
        self.steps.pop()
        wanted = self._above.pop()
        for steps in ([".."], None):
            above = None
            with suppress(OSError):
                above = os.open("..", BELOW, dir_fd=self.descriptor) if steps else self._again()
            if above is not None and _identity(above) == wanted:
                self._stand(above)
                return True
            if above is not None:
                os.close(above)
        return False

    def unlock(self) -> None:
        """Let the folder's owner read, change and search it."""
        mode = stat.S_IMODE(os.fstat(self.descriptor).st_mode)
        if mode & 0o700 != 0o700:
            with suppress(PermissionError):
                os.fchmod(self.descriptor, mode | 0o700)

    def _again(self) -> int:
        """Open the folder from the top by its steps, when `..` doesn't lead there."""
        return open_below(self._top, self.steps)

    def _stand(self, descriptor: int) -> None:
        os.close(self.descriptor)
        self.descriptor = descriptor


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _open_below(folder: int, name: str, *, unlock: bool) -> int:
    try:
        return os.open(name, BELOW, dir_fd=folder)
    except PermissionError:
        if not unlock:
            raise
    chmod(folder, name, 0o700)
    return os.open(name, BELOW, dir_fd=folder)


def chmod(folder: int, name: str, mode: int) -> None:
    """Change the mode of a thing in an open folder, but not through a link.

    chmod(2) would follow one, and fchmod(2) needs a thing that can be opened.
    """
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if not stat.S_ISLNK(os.fstat(handle).st_mode):
            os.chmod(f"/proc/self/fd/{handle}", mode)  # noqa: PTH101
    finally:
        os.close(handle)


def open_below(folder: int, steps: Iterable[str], *, make: bool = False) -> int:
    """Open a folder below an open one; the caller closes it.

    With ``make``, a folder that lacks is made, and what stands in its place, a link or a file, is
    removed first.  Raises OSError.
    """
    here = os.dup(folder)
    try:
        for name in steps:
            if make:
                _make(here, name)
            below = os.open(name, BELOW, dir_fd=here)
            os.close(here)
            here = below
    except BaseException:
        os.close(here)
        raise
    return here


def _make(folder: int, name: str) -> None:
    try:
        if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
            return
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=folder)


def _must_be_name(name: str) -> None:
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise ValueError(f"{name!a} is no name in a folder")


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
        _must_be_name(step)
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
    _must_be_name(name)
    for retry in range(MAX_RETRIES + 1):
        try:
            top = _open_below(parent, name, unlock=True)
        except FileNotFoundError:
            return
        with _Place(top) as place:
            _empty(place)
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or retry == MAX_RETRIES:
                raise
        else:
            return


def _empty(place: _Place) -> None:
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


def _remove_files(place: _Place) -> list[str]:
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


class DiskUse:
    """The bytes that folders occupy on the disk, as du(1) counts: a file of two links once."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()
        self.total = 0

    def add(self, path: Path) -> int:
        """Return what a folder's files occupy; the total grows by what no other has, too."""
        size = 0
        for inode, (blocks, _, _) in _inodes(path).items():
            size += blocks * 512
            if inode not in self._seen:
                self._seen.add(inode)
                self.total += blocks * 512
        return size


def tree_size(path: Path) -> int:
    """Return the bytes that a folder's files occupy on the disk, hard links counted once."""
    return DiskUse().add(path)


def freed_size(path: Path) -> int:
    """Return the bytes that removing a folder gives: not those that are linked from elsewhere."""
    found = _inodes(path).values()
    return sum(blocks for blocks, links, seen in found if links == seen) * 512


def _inodes(path: Path) -> dict[tuple[int, int], tuple[int, int, int]]:
    """Return of each file's inode its blocks, its links, and those of them that are in a folder."""
    found: dict[tuple[int, int], tuple[int, int, int]] = {}
    for visit in walk(path):
        for entry in visit.files:
            status = visit.status(entry)
            if status is None:
                continue
            key = (status.st_dev, status.st_ino)
            seen = found[key][2] if key in found else 0
            found[key] = (status.st_blocks, status.st_nlink, seen + 1)
    return found


def names_of(record: Any) -> frozenset[str] | None:  # noqa: ANN401 - what a file had
    """Return the names of a list that was kept; None if it is none, or one could lead out."""
    if not isinstance(record, list) or not all(isinstance(one, str) for one in record):
        return None
    with suppress(ValueError):
        for name in record:
            for step in name.split("/"):
                _must_be_name(step)
        return frozenset(record)
    return None
