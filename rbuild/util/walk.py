"""Walking folders that somebody else fills or changes, by descriptors."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

BELOW = OPEN | os.O_NOFOLLOW

VANISHED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""What the kernel says of a folder that is gone, or another thing by now."""

MAX_DEPTH = 100
"""Levels of folders that sources have, and that a build may leave; a kernel's has about ten."""

MAX_PATH_BYTES = 2048
"""The longest path in such a folder: half of PATH_MAX, so that programs can name its files."""

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
        place = Place(os.open(top, OPEN))
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


def _visit(place: Place, *, unlock: bool, failed: Callable[[str, OSError], None] | None) -> Visit:
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


class Place:
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
            below = open_folder(self.descriptor, name, unlock=unlock)
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


def open_folder(folder: int, name: str, *, unlock: bool) -> int:
    """Open a folder by its name in an open one; with ``unlock`` made accessible first."""
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


def must_be_name(name: str) -> None:
    """Raise ValueError unless a text is the name of something in a folder."""
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise ValueError(f"{name!a} is no name in a folder")
