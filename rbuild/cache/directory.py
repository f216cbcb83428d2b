"""The cache: rbuild's cache directory, whose entries appear whole or not at all.

An entry is a folder ``<room>/<label>-<key>``, named by the hash of what went into it, with a
``metadata.json``.  It is built aside, in ``<room>/.<label>-<key>.partial``, and published by
rename(2) under a lock, so that a reader sees all of it or none.  Locks are flock(2) locks: they
die with their process.  What an entry holds is recorded when it is published (``integrity``), so
that one that was damaged since is found before it is used.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rbuild.cache.entry import FORMAT, METADATA, VERIFIED_FOLDERS, Entry, EntryKind
from rbuild.cache.locks import in_use, lock_file, use
from rbuild.cache.ownership import reason
from rbuild.errors import (
    FREE_SPACE,
    InfrastructureError,
    MissingDependency,
    NewerFormat,
    ended_by_itself,
)
from rbuild.ui.console import Console
from rbuild.ui.format import several, size
from rbuild.util.disk import is_noexec
from rbuild.util.files import sync_below, sync_path, write_json
from rbuild.util.folders import remove_tree
from rbuild.util.host import boot_id

if TYPE_CHECKING:
    from rbuild.cache.entry import IntegrityRecord

Result = TypeVar("Result")


MIGRATES_WITHIN_S = 0.2

SOON_READ = 16 * 1024**2
"""An entry of fewer bytes is read whole before it is used."""


@dataclass(frozen=True)
class Cache:
    """The cache directory.  Nothing is created until something is stored."""

    root: Path
    console: Console
    _used: dict[Path, Entry] = field(default_factory=dict, repr=False, compare=False)
    _held: dict[Path, int] = field(default_factory=dict, repr=False, compare=False)
    _checked: set[tuple[Path, re.Pattern[str] | None]] = field(
        default_factory=set, repr=False, compare=False
    )

    def entry(self, kind: EntryKind, label: str, key: str) -> Entry:
        """Return the entry for what hashes to ``key``; it need not exist.

        A colon in the label, as of ``hybrid:compilers``, would end a path in many a variable.
        """
        name = f"{label.replace(':', '-')}-{key}"
        return Entry(kind, name, self.root / kind / name)

    def entries(self, kind: EntryKind) -> list[Entry]:
        """Return the published entries of a room, in order of name."""
        folder = self.root / kind
        if not folder.is_dir():
            return []
        return [
            Entry(kind, path.name, path)
            for path in sorted(folder.iterdir())
            if path.is_dir() and not path.name.startswith(".")
        ]

    def leftovers(self, kind: EntryKind) -> list[tuple[Entry, Path]]:
        """Return what is unfinished or half removed in a room: each with the entry that it is of.

        Somebody may work on it: who does holds the entry's lock, or uses the folder.
        """
        folder = self.root / kind
        if not folder.is_dir():
            return []
        hidden = sorted(
            one for one in folder.iterdir() if one.name.startswith(".") and one.is_dir()
        )
        names = [(one.name[1:].rsplit(".", 1)[0], one) for one in hidden]
        return [(Entry(kind, name, folder / name), path) for name, path in names]

    @contextmanager
    def lock(self, entry: Entry) -> Iterator[None]:
        """Hold the entry's lock; say once for whom it has to be waited."""
        with self.lock_within(entry, 0.2) as held:
            if held:
                self._sweep(entry)
                yield
                return
        self._say_wait(f"another rbuild that works on {entry.name}", lock_file(entry))
        with self.lock_within(entry, None):
            self._sweep(entry)
            yield

    def _say_wait(self, what: str, lock: Path) -> None:
        from rbuild.cache.holder import holder  # noqa: PLC0415 - only where it is waited

        other = holder(lock)
        self.console.note(f"Waiting for {what}{'' if other is None else f': {other}'} ...")

    @contextmanager
    def reading(self, entry: Entry, folder: Path) -> Iterator[None]:
        """Hold the lock of a folder in an entry, for work there that only reads the entry's rest.

        What is made in other folders isn't waited for, nor is the entry's writer, unless it mends
        what an earlier one has left half written.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            use(folder.parent),
            self.lock(Entry(entry.kind, folder.name, folder)),
            self.lock(entry) if entry.is_mended else nullcontext(),
        ):
            yield

    @contextmanager
    def without_readers(self, folder: Path) -> Iterator[None]:
        """Wait for those who work in a folder's folders (see ``reading``); have no new ones."""
        if not folder.is_dir():
            yield
            return
        held = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say_wait(f"another rbuild that works in {folder}", folder)
                fcntl.flock(held, fcntl.LOCK_EX)
            except OSError:  # some network file systems lock no folders
                pass
            yield
        finally:
            os.close(held)

    def _sweep(self, entry: Entry) -> None:
        """Remove what was moved out of sight, by a rbuild that was killed before it was gone, too.

        What somebody still uses stays; it is swept another time.
        """
        for path in (self.root / entry.kind).glob(f".{entry.name}.trash-*"):
            if not in_use(path):
                remove_tree(path)

    @contextmanager
    def lock_within(self, entry: Entry, seconds: float | None) -> Iterator[bool]:
        """Hold the entry's lock if it can be had in so many seconds; say whether it is held."""
        from filelock import FileLock, Timeout  # noqa: PLC0415 - not needed to show help

        self._make_room(entry.kind)
        lock = FileLock(lock_file(entry))
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

    def get_or_make(
        self, entry: Entry, get: Callable[[], Result | None], make: Callable[[], Result]
    ) -> Result:
        """Return what ``get`` finds of an entry, else what ``make`` makes under the entry's lock.

        While the lock was waited for, another rbuild may have made it: ``get`` is asked again.
        """
        if (found := get()) is not None:
            return found
        with self.lock(entry):
            return found if (found := get()) is not None else make()

    def publish(
        self, entry: Entry, partial: Path, metadata: dict[str, Any], *, final: bool = True
    ) -> dict[str, Any]:
        """Make a finished folder the entry, in one rename; an older one is moved out of the way.

        An entry that is written to from now on can't be ``final``.  Returns its metadata.
        """
        data = {"format": FORMAT, "created": time.time(), "entry": entry.name, **metadata}
        if final:
            data["integrity"] = _record_integrity(entry.kind, partial)
        write_json(partial / METADATA, data)
        # What can be seen after a power cut is whole.
        sync_below(partial)
        if entry.path.exists():
            self.remove(entry)
        partial.rename(entry.path)
        sync_path(entry.path.parent)
        # Before the lock is let go, so that no `clean` comes between.
        self._hold(entry)
        return data

    def update(self, entry: Entry, /, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
        """Change fields of a published entry's metadata; return all of it."""
        metadata = {**entry.raw, **changes}
        write_json(entry.path / METADATA, metadata, synced=True)
        return metadata

    def open(self, entry: Entry) -> bool:
        """Open an entry, since it is going to be written to; the caller holds its lock.

        Returns whether it was open already, since its last writer was killed: then any file may
        be half written.
        """
        was_open = entry.is_open
        self._used.pop(entry.path, None)
        self._checked.difference_update([one for one in self._checked if one[0] == entry.path])
        self.update(entry, integrity=None, open=boot_id(), mended=was_open)
        return was_open

    def close(self, entry: Entry, /, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
        """Record what an opened entry holds, change fields of its metadata, return all of it."""
        found = _record_integrity(entry.kind, entry.path)
        sync_below(entry.path)
        return self.update(entry, integrity=found, open=None, mended=False, **changes)

    def rest(self, entry: Entry) -> None:
        """Record that the writer of an entry is done; what it holds isn't recorded."""
        sync_below(entry.path)
        self.update(entry, open=None, mended=False)

    @contextmanager
    def writing(self, entry: Entry) -> Iterator[bool]:
        """Write to an entry while the body runs; recorded or not, it is so again afterwards.

        The body is given what ``open`` returns.  If it was ended instead of coming to its end, or
        an earlier writer was, the entry stays open.
        """
        self.check()
        was_final = entry.integrity is not None
        was_open = self.open(entry)
        has_ended = True
        try:
            yield was_open
        except BaseException as error:
            has_ended = ended_by_itself(error)
            raise
        finally:
            if has_ended and entry.path.exists() and not was_open:
                if was_final:
                    self.close(entry)
                else:
                    self.rest(entry)

    def use(self, entry: Entry) -> dict[str, Any] | None:
        """Find an entry that is going to be read: ``check`` looks whether it is intact."""
        metadata = self.find(entry)
        if metadata is not None:
            self._used[entry.path] = entry
        return metadata

    def find(self, entry: Entry) -> dict[str, Any] | None:
        """Return the metadata of an entry; None if it isn't there, or can't be used.

        From now on nobody removes it, until ``release``.  Raises NewerFormat if a newer rbuild
        made it.
        """
        self._hold(entry)
        if entry.is_newer:
            raise NewerFormat(
                f"{entry.name} in {self.root} was made by a newer rbuild: its metadata has the "
                f"format {entry.raw['format']}, and this rbuild knows up to {FORMAT}.",
                hint="Use the newer rbuild, or name another place with --cache-dir; `rbuild clean "
                f"--what {entry.kind}` removes what was made.",
            )
        metadata = entry.metadata
        if metadata is None:
            return None
        return self._migrated(entry) if metadata["format"] < FORMAT else metadata

    def _hold(self, entry: Entry) -> None:
        """Hold a shared lock on an entry's folder, and remember by its time that it is used."""
        while entry.path not in self._held:
            try:
                held = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                return
            with suppress(OSError):  # some network file systems lock no folders
                fcntl.flock(held, fcntl.LOCK_SH)
            with suppress(OSError):  # another user's cache
                os.utime(held)
            self._held[entry.path] = held
        held = self._held[entry.path]
        # It may have been removed, or replaced, meanwhile.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(held), entry.path.stat()):
                return
        self._let_go(entry)
        self._hold(entry)

    def _let_go(self, entry: Entry) -> None:
        self._used.pop(entry.path, None)
        self._checked.difference_update([one for one in self._checked if one[0] == entry.path])
        held = self._held.pop(entry.path, None)
        if held is not None:
            os.close(held)

    def release(self) -> None:
        """Rely on no entry any longer."""
        for entry in list(self._used.values()):
            self._let_go(entry)
        for held in self._held.values():
            os.close(held)
        self._held.clear()

    def check(self, without: re.Pattern[str] | None = None) -> None:
        """Verify that what is used is as it was recorded, by names, sizes, times and modes.

        Parts whose name matches ``without`` are not looked at, nor is anything twice.  Raises
        CorruptEntry.
        """
        for path, entry in list(self._used.items()):
            if (path, without) in self._checked or (path, None) in self._checked:
                continue
            found = entry.integrity
            faults = [] if found is None else _faults(path, found, without)
            # Whoever works on it meanwhile has opened it, or it was removed.
            if faults and entry.integrity == found:
                raise CorruptEntry(self, entry, several(faults))
            self._checked.add((path, without))

    @contextmanager
    def checking(self, without: re.Pattern[str] | None = None) -> Iterator[None]:
        """Check while the body runs, whose results count for nothing if this raises CorruptEntry.

        What the body raises may come of the damage: then it isn't told.
        """
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - where work is begun

        with ThreadPoolExecutor(1) as pool:
            checked = pool.submit(self.check, without)
            try:
                yield
            except Exception:
                checked.result()
                raise
            checked.result()

    def discard(self, damaged: CorruptEntry) -> None:
        """Remove a damaged entry, unless another rbuild has made it anew meanwhile."""
        entry = damaged.entry
        with self.lock(entry):
            if entry.path.exists() and entry.raw.get("created") == damaged.created:
                self.remove(entry)
        self._let_go(entry)

    def _migrated(self, entry: Entry) -> dict[str, Any] | None:
        """Record what an older rbuild's entry holds; return its metadata.

        While somebody works on it, the caller perhaps, it is used as it is.
        """
        with self.lock_within(entry, MIGRATES_WITHIN_S) as held:
            metadata = entry.metadata
            if not held or metadata is None or metadata["format"] == FORMAT:
                return metadata
            changes: dict[str, Any] = {"format": FORMAT, "entry": entry.name}
            if entry.kind in VERIFIED_FOLDERS and not entry.name.rsplit("-", 1)[0].endswith(
                "-in-tree"
            ):
                self.console.note(f"{entry.name} is of an older rbuild: recording what it holds.")
                changes["integrity"] = _record_integrity(entry.kind, entry.path)
            self.update(entry, **changes)
        return entry.metadata

    def remove(self, entry: Entry) -> None:
        """Remove an entry: out of sight at once, and from the disk once nobody uses it.

        The caller holds its lock.
        """
        self._let_go(entry)
        trash = entry.path.with_name(f".{entry.name}.trash-{os.getpid()}-{time.monotonic_ns()}")
        entry.path.rename(trash)
        self._sweep(entry)

    def need_programs(self) -> None:
        """Raise MissingDependency unless programs in the cache can run, such as compilers."""
        self._make_root()
        if is_noexec(self.root):
            raise MissingDependency(
                f"{self.root} is on a file system that is mounted noexec: no program of an "
                "environment can run there.",
                hint="Mount it with exec, or name another place with --cache-dir.",
            )

    def need_space(self, count: int, purpose: str) -> None:
        """Raise InfrastructureError unless ``count`` bytes are free where the cache is."""
        self._make_root()
        free = shutil.disk_usage(self.root).free
        if free < count:
            raise InfrastructureError(
                f"{purpose} needs about {size(count)} in {self.root}, where {size(free)} are free.",
                hint=FREE_SPACE,
            )

    def new_run(self, command: str) -> Path:
        """Create and return the folder for the logs and results of one run."""
        self._make_room(EntryKind.RUNS)
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{command}-{os.getpid()}"
        path = self.root / EntryKind.RUNS / name
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
    def scratch(self, purpose: str) -> Iterator[Path]:
        """Have an empty folder while the body runs; what a killed rbuild left of such is removed.

        It is among the runs, hidden, so that `rbuild clean` removes it as well.
        """
        kind = self.root / EntryKind.RUNS
        folder = kind / f".{purpose}-{os.getpid()}-{time.monotonic_ns()}.partial"
        with ExitStack() as held:
            with self.lock(Entry(EntryKind.RUNS, purpose, kind / purpose)):
                for old in kind.glob(f".{purpose}-*.partial"):
                    if not in_use(old):
                        remove_tree(old)
                folder.mkdir()
                held.enter_context(use(folder))
                held.callback(remove_tree, folder)
            yield folder

    def _make_root(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InfrastructureError(
                f"The cache directory {self.root} can't be made: {error.strerror}.",
                hint="Name another place with --cache-dir or RBUILD_CACHE_DIR.",
            ) from error

    def _make_room(self, kind: EntryKind) -> None:
        self._make_root()
        try:
            (self.root / kind).mkdir(exist_ok=True)
            if not os.access(self.root / kind, os.W_OK | os.X_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))  # noqa: TRY301
        except OSError as error:
            raise InfrastructureError(
                f"{self.root} can't be written: {reason(self.root, error)}.",
                hint="Name another place with --cache-dir or RBUILD_CACHE_DIR.",
            ) from error


def _faults(path: Path, found: IntegrityRecord, without: re.Pattern[str] | None) -> list[str]:
    """Return what is wrong with an entry: by its content, too, if that is soon read."""
    from rbuild.cache import integrity  # noqa: PLC0415

    if found.size_bytes < SOON_READ:
        return integrity.verify_deep(path, found)
    return integrity.verify_quick(path, found, without)


def _record_integrity(kind: EntryKind, folder: Path) -> dict[str, Any] | None:
    """Record what an entry of a kind holds in ``folder``; return that for the metadata."""
    from rbuild.cache import integrity  # noqa: PLC0415 - not needed to show help

    name = VERIFIED_FOLDERS.get(kind)
    return None if name is None else integrity.record(folder, name).as_json()


class CorruptEntry(InfrastructureError):  # noqa: N818
    """An entry of the cache isn't what it was; the command line removes it and begins again."""

    def __init__(self, cache: Cache, entry: Entry, faults: str) -> None:
        super().__init__(
            f"{entry.name} was damaged since it was made: {faults}.",
            hint=f"`rbuild clean --what {entry.kind}` removes it, and what is like it.",
        )
        self.cache = cache
        self.entry = entry
        self.created = entry.raw.get("created")
