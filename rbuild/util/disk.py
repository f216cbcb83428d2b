"""File systems: whether one is full or mounted noexec, and what to say of a copy that failed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from rbuild.errors import FREE_SPACE, InfrastructureError, ProcessFailed
from rbuild.util.walk import walk

MIN_INODES = 16

MIN_BYTES = 1 << 20
"""Fewer than this: what was begun has been removed again, and freed some, when it is looked at."""


def full(path: Path) -> str:
    """Return what a file system that has no space left has none of: its inodes, or its bytes."""
    with suppress(OSError):
        if _few_inodes(os.statvfs(path)):
            return "the file system has no inodes left, as many files as it has"
    return "the disk is full"


def is_noexec(path: Path) -> bool:
    """Tell whether a file system is mounted such that no program in it can run (mount(8))."""
    return bool(os.statvfs(path).f_flag & os.ST_NOEXEC)


def is_full(path: Path) -> bool:
    """Tell whether a file system has next to nothing left, of bytes or of inodes."""
    status = os.statvfs(path)
    return _few_inodes(status) or status.f_bavail * status.f_frsize < MIN_BYTES


def _few_inodes(status: os.statvfs_result) -> bool:
    # A file system that makes them as it goes (Btrfs) counts none.
    return bool(status.f_files) and status.f_favail < MIN_INODES


def not_copied(error: ProcessFailed, source: Path, target: Path) -> InfrastructureError:
    """Return what to say of a cp(1) that failed; ``target``'s folder tells whether it is full."""
    detail = "\n".join(error.tail[-5:])
    if "No space left on device" not in error.detail:
        return InfrastructureError(f"{source} can't be copied.", detail=detail)
    return InfrastructureError(
        f"{source} can't be copied: {full(target.parent)}.",
        detail=detail,
        hint=FREE_SPACE,
    )


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
