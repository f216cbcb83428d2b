"""The Store: rbuild's cache directory, whose entries appear whole or not at all.

An entry is a folder ``<room>/<label>-<key>``, named by the hash of what went into it, with a
``metadata.json``.  It is built aside, in ``<room>/.<label>-<key>.partial``, and published by
rename(2) under a lock, so that a reader sees all of it or none.  Locks are flock(2) locks: they
die with their process.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from rbuild.console import Console, size
from rbuild.errors import InfrastructureError

METADATA = "metadata.json"
FORMAT = 1
"""The version of the metadata's layout; a Store entry with another one is rebuilt."""


class Room(StrEnum):
    """The kinds of entry that the Store has."""

    ROOTFS = "rootfs"
    TREES = "trees"
    KDIRS = "kdirs"
    GUESTS = "guests"
    EMULATORS = "emulators"
    CCACHE = "ccache"
    RUNS = "runs"


def digest(value: Any) -> str:  # noqa: ANN401 - anything that JSON can hold
    """Return 12 hexadecimal digits that name ``value``, the same for equal values."""
    text = json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file by writing aside and renaming, so that a reader never sees half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def write_json(path: Path, data: Any) -> None:  # noqa: ANN401
    """Write JSON as ``write_text`` writes a text."""
    write_text(path, json.dumps(data, indent=2, sort_keys=True, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if it isn't there or isn't one."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


@dataclass(frozen=True)
class Entry:
    """A place in the Store: where it is, or would be."""

    room: Room
    name: str
    path: Path

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The entry's metadata, or None if the entry isn't there or can't be used."""
        data = read_json(self.path / METADATA)
        return data if data is not None and data.get("format") == FORMAT else None


@dataclass(frozen=True)
class Store:
    """The cache directory.  Nothing is created until something is stored."""

    root: Path
    console: Console

    def entry(self, room: Room, label: str, key: str) -> Entry:
        """Return the entry for what hashes to ``key``; it need not exist.

        A colon in the label, as of ``hybrid:compilers``, would end a path in many a variable.
        """
        name = f"{label.replace(':', '-')}-{key}"
        return Entry(room, name, self.root / room / name)

    def entries(self, room: Room) -> list[Entry]:
        """Return the published entries of a room, in order of name."""
        folder = self.root / room
        if not folder.is_dir():
            return []
        return [
            Entry(room, path.name, path)
            for path in sorted(folder.iterdir())
            if path.is_dir() and not path.name.startswith(".")
        ]

    @contextmanager
    def lock(self, entry: Entry) -> Iterator[None]:
        """Hold the entry's lock; say so while waiting for another rbuild."""
        with self.lock_within(entry, 0.2) as held:
            if held:
                yield
                return
        self.console.note(f"Waiting for another rbuild that works on {entry.name} ...")
        with self.lock_within(entry, None):
            yield

    @contextmanager
    def lock_within(self, entry: Entry, seconds: float | None) -> Iterator[bool]:
        """Hold the entry's lock if it can be had in so many seconds; say whether it is held."""
        from filelock import FileLock, Timeout  # noqa: PLC0415 - not needed to show help

        self._make_room(entry.room)
        lock = FileLock(entry.path.with_name(f".{entry.name}.lock"))
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def partial(self, entry: Entry, *, keep: bool = False) -> Path:
        """Return the folder in which the entry is built; the caller holds its lock.

        What an interrupted run left there is removed, or, with ``keep``, continued.
        """
        path = entry.path.with_name(f".{entry.name}.partial")
        if path.exists() and not keep:
            remove_tree(path)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, entry: Entry, partial: Path, metadata: dict[str, Any]) -> None:
        """Make a finished folder the entry, in one rename; an older one is moved out of the way."""
        write_json(partial / METADATA, {"format": FORMAT, "created": time.time(), **metadata})
        if entry.path.exists():
            self.remove(entry)
        partial.rename(entry.path)

    def update(self, entry: Entry, **changes: Any) -> None:  # noqa: ANN401
        """Change fields of a published entry's metadata."""
        write_json(entry.path / METADATA, {**(entry.metadata or {}), **changes})

    def remove(self, entry: Entry) -> None:
        """Remove an entry: out of sight at once, then from the disk."""
        trash = entry.path.with_name(f".{entry.name}.trash-{os.getpid()}")
        entry.path.rename(trash)
        remove_tree(trash)

    def need_space(self, count: int, purpose: str) -> None:
        """Raise InfrastructureError unless ``count`` bytes are free where the Store is."""
        self._make_root()
        free = shutil.disk_usage(self.root).free
        if free < count:
            raise InfrastructureError(
                f"{purpose} needs about {size(count)} in {self.root}, where {size(free)} are free.",
                hint="Free some space (`rbuild clean`), or name another place with --cache-dir.",
            )

    def new_run(self, command: str) -> Path:
        """Create and return the folder for the logs and results of one run."""
        self._make_room(Room.RUNS)
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{command}-{os.getpid()}"
        path = self.root / Room.RUNS / name
        # Within a second, a program that calls rbuild's functions may begin more than one run.
        number = 1
        while True:
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
                path = path.with_name(f"{name}-{number}")
            else:
                return path

    @contextmanager
    def use(self, folder: Path) -> Iterator[None]:
        """Keep a folder, such as a run's, from being removed while it is used."""
        held = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems lock no folders
                fcntl.flock(held, fcntl.LOCK_SH)
            yield
        finally:
            os.close(held)

    def in_use(self, entry: Entry) -> bool:
        """Tell, without waiting, whether somebody uses the entry's folder (see ``use``)."""
        with suppress(FileNotFoundError):
            folder = os.open(entry.path, os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:
                return False
            finally:
                os.close(folder)
        return False

    def _make_root(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InfrastructureError(
                f"The cache directory {self.root} can't be made: {error.strerror}.",
                hint="Name another place with --cache-dir or RBUILD_CACHE_DIR.",
            ) from error

    def _make_room(self, room: Room) -> None:
        self._make_root()
        try:
            (self.root / room).mkdir(exist_ok=True)
        except OSError as error:
            raise InfrastructureError(
                f"{self.root} can't be written: {error.strerror}.",
                hint="Name another place with --cache-dir or RBUILD_CACHE_DIR.",
            ) from error


def remove_tree(path: Path) -> None:
    """Remove a folder, also one whose subfolders forbid writing."""

    def allow(function: Any, name: str, _: Any) -> None:  # noqa: ANN401
        parent = Path(name).parent
        parent.chmod(0o700)
        Path(name).chmod(0o700)
        function(name)

    shutil.rmtree(path, onerror=allow)


def tree_size(path: Path) -> int:
    """Return the bytes that a folder's files occupy on the disk, hard links counted once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                status = os.lstat(os.path.join(folder, name))  # noqa: PTH118 - a hot loop
            except FileNotFoundError:
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total
