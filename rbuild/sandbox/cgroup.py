"""A control group for a build: a bound on its processes, and a measured run's figures.

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
OWN = Path("/proc/self/cgroup")

MIN_TASKS, TASKS_PER_CPU = 4096, 64

JOIN = 'for group; do [ "$group" = -- ] && break; echo 0 >"$group/cgroup.procs"; done'
ENTER = f'{JOIN}; while [ "$1" != -- ]; do shift; done; shift; exec "$@"'
"""Joins the groups named before ``--``, then becomes the command behind it."""

NAME = re.compile(r"rbuild-([0-9]+)-[0-9]+")
"""A group's name: of which process it is, and its number there."""

INSIDE = "inside"
"""The group within a bounded one in which its processes are: all that they could reach by a cgroup
namespace of their own, and so not the bound."""

LIMITS = {
    **dict.fromkeys(("memory.max", "memory.high", "memory.swap.max", "cpu.max", "pids.max"), "max"),
    **dict.fromkeys(("cpuset.cpus", "cpuset.mems", "io.max"), ""),
}
"""Files of a group of cgroup v2, and the first word of each where it sets no limit."""

TRIES, PAUSE_S = 20, 0.05

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Cgroup:
    """The folders of one group: of cgroup v2 one, of v1 one for each controller."""

    folders: tuple[Path, ...]

    def prefix(self) -> list[str]:
        """Return what to put before a command so that it and its children are in the group."""
        inner = [folder / INSIDE for folder in self.folders]
        entered = [
            one if one.is_dir() else folder for one, folder in zip(inner, self.folders, strict=True)
        ]
        return ["sh", "-c", ENTER, "enter", *map(str, entered), "--"]

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


def max_tasks() -> int:
    """Return how many processes and threads a build may have.

    Each of make's jobs has some ten, emulated ones with QEMU's threads, and the linker starts a
    thread for each processor.
    """
    return MIN_TASKS + TASKS_PER_CPU * (os.cpu_count() or 1)


def is_exempt(uid_map: Path = Path("/proc/self/uid_map")) -> bool:
    """Tell whether this process is root itself, of which the kernel asks no RLIMIT_NPROC."""
    first = (_read(uid_map) or "0 0").split()
    return os.geteuid() == 0 and first[:2] == ["0", "0"]


@contextlib.contextmanager
def cgroup(root: Path = ROOT) -> Iterator[Cgroup | None]:
    """Make a group that counts, and remove it at the end; None where that isn't allowed.

    What runs that were killed have left is removed, too.
    """
    with _made(_parents(root)) as group:
        yield group


@contextlib.contextmanager
def bounded(root: Path = ROOT, own: Path = OWN) -> Iterator[Cgroup | None]:
    """Make a group with at most ``max_tasks`` and remove it at the end; None where none is."""
    parent = _bounding(root, own)
    with _made([] if parent is None else [parent]) as group:
        yield group if group and all((one / INSIDE).is_dir() for one in group.folders) else None


@contextlib.contextmanager
def _made(parents: list[Path]) -> Iterator[Cgroup | None]:
    """Make a group below each of these folders, bounded where processes can be."""
    _sweep(parents)
    name = f"rbuild-{os.getpid()}-{next(_numbers)}"
    made: list[Path] = []
    try:
        for parent in parents:
            try:
                (parent / name).mkdir()
            except OSError:
                continue
            made.append(parent / name)
            _bound(parent / name)
        yield Cgroup(tuple(made)) if made else None
    finally:
        for folder in made:
            _remove(folder)


def _bound(folder: Path) -> None:
    """Bound a group's processes and threads, where it has that controller."""
    limit = folder / "pids.max"
    if limit.exists():
        with contextlib.suppress(OSError):
            limit.write_text(f"{max_tasks()}\n")
            (folder / INSIDE).mkdir()


def _bounding(root: Path, own: Path) -> Path | None:
    """Return where a group that bounds processes can be made; None if nowhere.

    Of cgroup v1 that is below this process's own.  Of v2 a group with processes has no groups
    below it with limits, so it is beside: but not where this process's own has limits, which the
    build would leave.
    """
    if os.geteuid() != 0:
        return None
    places = {}
    for line in (_read(own) or "").splitlines():
        _, controllers, place = line.split(":", 2)
        places[controllers] = place.lstrip("/")
    if (root / "cgroup.controllers").exists():
        folder = root / places.get("", "")
        if folder == root:
            return root
        limits = [(_read(folder / name) or word, word) for name, word in LIMITS.items()]
        is_free = all(text.split()[:1] == word.split() for text, word in limits)
        return folder.parent if is_free else None
    folder = root / "pids" / places.get("pids", "")
    return folder if folder.is_dir() else None


def _remove(folder: Path) -> None:
    """Remove a group, once its last processes, of a run that was interrupted, have ended."""
    if (folder / INSIDE).is_dir():
        _remove(folder / INSIDE)
    for _ in range(TRIES):
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                return
            time.sleep(PAUSE_S)
        else:
            return


def _sweep(parents: list[Path]) -> None:
    """Remove the groups whose rbuild is gone; one that somebody is in can't be removed."""
    for parent in parents:
        for folder in parent.glob("rbuild-*"):
            found = NAME.fullmatch(folder.name)
            if found and not Path("/proc", found[1]).exists():
                for one in (folder / INSIDE, folder):
                    with contextlib.suppress(OSError):
                        one.rmdir()


def _parents(root: Path) -> list[Path]:
    """Return where groups are made: the v2 hierarchy, or the v1 controllers that count."""
    if (root / "cgroup.controllers").exists():
        return [root]
    return [root / name for name in ("cpuacct", "memory", "pids") if (root / name).is_dir()]


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
