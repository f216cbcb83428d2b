"""A control group for one measured run: the figures of all its processes together.

wait4(2) gives a tree's CPU time, and the memory of its largest process only; a cgroup counts
what they use at the same time (Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/).  Making
one needs root; where it can't be made, these figures are simply not there.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")

JOIN = 'for group; do [ "$group" = -- ] && break; echo 0 >"$group/cgroup.procs"; done'
ENTER = f'{JOIN}; while [ "$1" != -- ]; do shift; done; shift; exec "$@"'
"""Joins the groups named before ``--``, then becomes the command behind it."""

NAME = re.compile(r"rbuild-([0-9]+)-[0-9]+")
"""A group's name: of which process it is, and its number there."""

TRIES, PAUSE_S = 20, 0.05

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Cgroup:
    """The folders of one group: of cgroup v2 one, of v1 one for each controller."""

    folders: tuple[Path, ...]

    def prefix(self) -> list[str]:
        """Return what to put before a command so that it and its children are in the group."""
        return ["sh", "-c", ENTER, "enter", *map(str, self.folders), "--"]

    def cpu_s(self) -> float | None:
        """Return the CPU time of all processes so far, in seconds."""
        for folder in self.folders:
            if (text := _read(folder / "cpuacct.usage")) is not None:
                return int(text) / 1e9
            if (text := _read(folder / "cpu.stat")) is not None:
                for line in text.splitlines():
                    if line.startswith("usage_usec "):
                        return int(line.split()[1]) / 1e6
        return None

    def peak_bytes(self) -> int | None:
        """Return the most memory that all used at one time, page cache included."""
        for folder in self.folders:
            for name in ("memory.peak", "memory.max_usage_in_bytes"):
                if (text := _read(folder / name)) is not None:
                    return int(text)
        return None


@contextlib.contextmanager
def cgroup(root: Path = ROOT) -> Iterator[Cgroup | None]:
    """Make a group, and remove it at the end; None where that isn't allowed.

    What runs that were killed have left is removed, too.
    """
    _sweep(root)
    name = f"rbuild-{os.getpid()}-{next(_numbers)}"
    made: list[Path] = []
    try:
        for parent in _parents(root):
            try:
                (parent / name).mkdir()
            except OSError:
                continue
            made.append(parent / name)
        yield Cgroup(tuple(made)) if made else None
    finally:
        for folder in made:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a group, once its last processes, of a run that was interrupted, have ended."""
    for _ in range(TRIES):
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                return
            time.sleep(PAUSE_S)
        else:
            return


def _sweep(root: Path) -> None:
    """Remove the groups whose rbuild is gone; one that somebody is in can't be removed."""
    for parent in _parents(root):
        for folder in parent.glob("rbuild-*"):
            found = NAME.fullmatch(folder.name)
            if found and not Path("/proc", found[1]).exists():
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _parents(root: Path) -> list[Path]:
    """Return where groups are made: the v2 hierarchy, or the v1 controllers that count."""
    if (root / "cgroup.controllers").exists():
        return [root]
    return [root / name for name in ("cpuacct", "memory") if (root / name).is_dir()]


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
