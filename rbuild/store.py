"""The Store: rbuild's cache directory, whose entries appear whole or not at all.

An entry is a folder ``<room>/<label>-<key>``, named by the hash of what went into it, with a
``metadata.json``.  It is built aside, in ``<room>/.<label>-<key>.partial``, and published by
rename(2) under a lock, so that a reader sees all of it or none.  Locks are flock(2) locks: they
die with their process.  What an entry holds is sealed when it is published (see ``seal``), so that
one that was damaged since is found before it is used.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rbuild.console import Console, several, size
from rbuild.errors import (
    FREE_SPACE,
    Damaged,
    HostLacks,
    InfrastructureError,
    NewerFormat,
    ProcessFailed,
    ended_by_itself,
)
from rbuild.folders import VANISHED, walk
from rbuild.folders import freed_size as freed_size  # noqa: PLC0414
from rbuild.folders import remove_tree as remove_tree  # noqa: PLC0414
from rbuild.folders import tree_size as tree_size  # noqa: PLC0414

if TYPE_CHECKING:
    from rbuild.seal import Seal

METADATA = "metadata.json"
FORMAT = 2
"""The version of the metadata's layout.

What an older rbuild made is sealed when it is first used (format 1 had no seals); what a newer one
made is left alone.
"""
OLDEST = 1


class Room(StrEnum):
    """The kinds of entry that the Store has."""

    ROOTFS = "rootfs"
    TREES = "trees"
    KDIRS = "kdirs"
    GUESTS = "guests"
    EMULATORS = "emulators"
    CCACHE = "ccache"
    RUNS = "runs"


SEALED = {
    Room.ROOTFS: "root",
    Room.TREES: "src",
    Room.KDIRS: "build",
    Room.GUESTS: ".",
    Room.EMULATORS: ".",
}
"""Which folder of an entry is sealed; a ccache has checksums of its own, and a run's logs grow."""


def digest(value: Any) -> str:  # noqa: ANN401 - anything that JSON can hold
    """Return 12 hexadecimal digits that name ``value``, the same for equal values."""
    text = json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


def boot_id() -> str:
    """Return what names the time since the machine was started (random(4)).

    What was written before that and not synced may be lost, by a power cut or a crash.
    """
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"


def machine_id() -> str:
    """Return what names this machine without telling its machine-id(5), which is a secret.

    It is empty where there is none, such as in many a container.
    """
    for path in MACHINE_IDS:
        try:
            secret = path.read_bytes().strip()
        except OSError:
            continue
        if secret and secret != b"uninitialized":
            return hashlib.sha256(b"rbuild:" + secret).hexdigest()[:16]
    return ""


def sync_path(path: Path) -> None:
    """Bring a file's content, or the names in a folder, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sync_below(folder: Path) -> None:
    """Bring all that was written below a folder to the disk.

    That is one syncfs(2) of its file system: fsync(2) of each of a tree's 90 000 files takes
    minutes.  Raises InfrastructureError if the disk fails.
    """
    from rbuild import process  # noqa: PLC0415 - not needed to show help

    try:
        process.run(["sync", "--file-system", folder])
    except ProcessFailed as error:
        raise InfrastructureError(
            f"Syncing {folder} to disk failed.",
            detail=error.detail,
            hint="Check the disk and dmesg.",
        ) from error


ABANDONED_S = 60.0
"""After how long a file is taken for abandoned that a process of another machine, or of another
container, writes aside: whether that still runs can't be seen from here."""

ASIDE = re.compile(r"\.rbuild-([0-9a-f]{12})-([0-9]{1,9})-[0-9a-f]{16}")
"""The name of a file that is written aside: where its process runs (``realm``), and its number."""


def realm() -> str:
    """Return what names this machine's run and PID namespace, in which a PID means something."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return digest([boot_id(), namespace])


def write_text(path: Path, text: str, *, synced: bool = False) -> None:
    """Write a text as ``written`` writes a file."""
    with written(path, synced=synced) as file:
        file.write(text.encode("utf-8"))


@contextmanager
def written(path: Path, *, synced: bool = False) -> Iterator[IO[bytes]]:
    """Have a new file to write to while the body runs, which is then renamed to ``path``.

    A reader never sees half of it, and what had the name stays if it can't be written; with
    ``synced`` that holds after a power cut as well.  A link there is replaced, not followed; its
    mode is the umask's.  What processes that were killed meanwhile have left aside is removed.
    Raises OSError, which names ``path``.
    """
    # By its descriptor: another may be put in the folder's place, where others may write.
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    aside = f".rbuild-{realm()}-{os.getpid()}-{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        _remove_abandoned(path.parent, folder)
        with os.fdopen(os.open(aside, flags, 0o666, dir_fd=folder), "wb") as file:
            yield file
            if synced:
                file.flush()
                os.fsync(file.fileno())
        os.replace(aside, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        if synced:
            sync_path(path.parent)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(aside, dir_fd=folder)
        if isinstance(error, OSError) and error.filename in {None, aside}:
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        os.close(folder)


def _remove_abandoned(path: Path, folder: int) -> None:
    """Remove what killed processes have left aside in a folder, as far as that is allowed."""
    here = realm()
    with suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            match = ASIDE.fullmatch(entry.name)
            if match is None:
                continue
            with suppress(OSError):
                if match[1] == here:
                    is_abandoned = not _is_alive(int(match[2]))
                else:
                    age_s = time.time() - entry.stat(follow_symlinks=False).st_mtime
                    is_abandoned = age_s > ABANDONED_S
                if is_abandoned:
                    os.unlink(entry.name, dir_fd=folder)


def _is_alive(number: int) -> bool:
    """Tell whether this host has a process of that number."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def write_json(path: Path, data: Any, *, synced: bool = False) -> None:  # noqa: ANN401
    """Write JSON as ``write_text`` writes a text."""
    text = json.dumps(data, indent=2, sort_keys=True, default=str) + "\n"
    write_text(path, text, synced=synced)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if it isn't there or isn't one.

    Raises OSError if it can't be read.
    """
    try:
        data = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return None
    except OSError as error:
        if error.errno in VANISHED | {errno.EISDIR, errno.ENAMETOOLONG}:
            return None
        raise
    return data if isinstance(data, dict) else None


def _cut_off(metadata: Mapping[str, Any]) -> bool:
    opened = metadata.get("open")
    return opened is not None and opened != boot_id()


@dataclass(frozen=True)
class Entry:
    """A place in the Store: where it is, or would be."""

    room: Room
    name: str
    path: Path

    @property
    def raw(self) -> dict[str, Any]:
        """What is in the entry's metadata, of whatever format; {} if nothing is."""
        return read_json(self.path / METADATA) or {}

    @property
    def is_newer(self) -> bool:
        """Whether a newer rbuild made it, in a format that this one can't read."""
        found = self.raw.get("format")
        return type(found) is int and found > FORMAT

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The entry's metadata, or None if the entry isn't there or can't be used.

        It can't be if it is known to be damaged, has another entry's name, or an invalid seal,
        or if the machine went down while it was written to.
        """
        data = self.raw
        if _cut_off(data):
            return None
        if data.get("format") == FORMAT and self._lacks_seal(data):
            return None
        if data.get("format") not in range(OLDEST, FORMAT + 1) or data.get("damage"):
            return None
        return data if data.get("entry", self.name) == self.name else None

    @property
    def is_open(self) -> bool:
        """Whether somebody writes to it (see ``Store.open``), or was killed while writing."""
        return self.raw.get("open") is not None

    @property
    def is_mended(self) -> bool:
        """Whether its writer makes anew what an earlier one, which was killed, has left there."""
        return bool(self.raw.get("mended"))

    @property
    def was_cut_off(self) -> bool:
        """Whether the machine was started again while somebody wrote to it: see ``boot_id``."""
        return _cut_off(self.raw)

    def _lacks_seal(self, data: dict[str, Any]) -> bool:
        from rbuild.seal import Seal  # noqa: PLC0415 - not needed to show help

        found = data.get("seal")
        # A KDIR has none while it is written to.
        must_have = self.room in {Room.ROOTFS, Room.TREES}
        return (found is not None or must_have) and Seal.from_json(found) is None

    @property
    def seal(self) -> Seal | None:
        """What was sealed of the entry; None if it isn't sealed."""
        from rbuild.seal import Seal  # noqa: PLC0415 - not needed to show help

        return Seal.from_json(self.raw.get("seal"))


FEW_INODES = 16
FEW_BYTES = 1 << 20
"""Fewer than this: what was begun has been removed again, and freed some, when it is looked at."""

MIGRATES_WITHIN_S = 0.2

SOON_READ = 16 * 1024**2
"""An entry of fewer bytes is read whole before it is used."""


@dataclass(frozen=True)
class Store:
    """The cache directory.  Nothing is created until something is stored."""

    root: Path
    console: Console
    _relied: dict[Path, Entry] = field(default_factory=dict, repr=False, compare=False)
    _held: dict[Path, int] = field(default_factory=dict, repr=False, compare=False)
    _checked: set[tuple[Path, re.Pattern[str] | None]] = field(
        default_factory=set, repr=False, compare=False
    )

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

    def leftovers(self, room: Room) -> list[tuple[Entry, Path]]:
        """Return what is unfinished or half removed in a room: each with the entry that it is of.

        Somebody may work on it: who does holds the entry's lock, or uses the folder.
        """
        folder = self.root / room
        if not folder.is_dir():
            return []
        hidden = sorted(
            one for one in folder.iterdir() if one.name.startswith(".") and one.is_dir()
        )
        names = [(one.name[1:].rsplit(".", 1)[0], one) for one in hidden]
        return [(Entry(room, name, folder / name), path) for name, path in names]

    def is_locked(self, entry: Entry) -> bool:
        """Tell, without waiting or writing, whether somebody holds the entry's lock."""
        try:
            file = os.open(_lock_file(entry), os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(file)
        return False

    @contextmanager
    def lock(self, entry: Entry) -> Iterator[None]:
        """Hold the entry's lock; say once for whom it has to be waited."""
        with self.lock_within(entry, 0.2) as held:
            if held:
                self._sweep(entry)
                yield
                return
        self._say_wait(f"another rbuild that works on {entry.name}", _lock_file(entry))
        with self.lock_within(entry, None):
            self._sweep(entry)
            yield

    def _say_wait(self, what: str, lock: Path) -> None:
        from rbuild.holder import holder  # noqa: PLC0415 - only where it is waited

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
            self.use(folder.parent),
            self.lock(Entry(entry.room, folder.name, folder)),
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
        for path in (self.root / entry.room).glob(f".{entry.name}.trash-*"):
            if not self.in_use(Entry(entry.room, path.name, path)):
                remove_tree(path)

    @contextmanager
    def lock_within(self, entry: Entry, seconds: float | None) -> Iterator[bool]:
        """Hold the entry's lock if it can be had in so many seconds; say whether it is held."""
        from filelock import FileLock, Timeout  # noqa: PLC0415 - not needed to show help

        self._make_room(entry.room)
        lock = FileLock(_lock_file(entry))
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

    def publish(
        self, entry: Entry, partial: Path, metadata: dict[str, Any], *, sealed: bool = True
    ) -> None:
        """Make a finished folder the entry, in one rename; an older one is moved out of the way.

        An entry that is written to from now on can't be ``sealed``.
        """
        data = {"format": FORMAT, "created": time.time(), "entry": entry.name, **metadata}
        if sealed:
            data["seal"] = _seal(entry.room, partial)
        write_json(partial / METADATA, data)
        # What can be seen after a power cut is whole.
        sync_below(partial)
        if entry.path.exists():
            self.remove(entry)
        partial.rename(entry.path)
        sync_path(entry.path.parent)
        # Before the lock is let go, so that no `clean` comes between.
        self._hold(entry)

    def update(self, entry: Entry, /, **changes: Any) -> None:  # noqa: ANN401
        """Change fields of a published entry's metadata."""
        write_json(entry.path / METADATA, {**entry.raw, **changes}, synced=True)

    def open(self, entry: Entry) -> bool:
        """Break an entry's seal, since it is going to be written to; the caller holds its lock.

        Returns whether it was open already, since its last writer was killed: then any file may
        be half written.
        """
        was_open = entry.is_open
        self._relied.pop(entry.path, None)
        self._checked.difference_update([one for one in self._checked if one[0] == entry.path])
        self.update(entry, seal=None, open=boot_id(), mended=was_open)
        return was_open

    def close(self, entry: Entry, /, **changes: Any) -> None:  # noqa: ANN401
        """Seal an entry that was opened, and change fields of its metadata."""
        found = _seal(entry.room, entry.path)
        sync_below(entry.path)
        self.update(entry, seal=found, open=None, mended=False, **changes)

    def rest(self, entry: Entry) -> None:
        """Record that the writer of an entry is done; it stays unsealed."""
        sync_below(entry.path)
        self.update(entry, open=None, mended=False)

    @contextmanager
    def writing(self, entry: Entry) -> Iterator[bool]:
        """Write to an entry while the body runs; sealed or not, it is as it was afterwards.

        The body is given what ``open`` returns.  If it was ended instead of coming to its end, or
        an earlier writer was, the entry stays open.
        """
        self.check()
        was_sealed = entry.seal is not None
        was_open = self.open(entry)
        has_ended = True
        try:
            yield was_open
        except BaseException as error:
            has_ended = ended_by_itself(error)
            raise
        finally:
            if has_ended and entry.path.exists() and not was_open:
                if was_sealed:
                    self.close(entry)
                else:
                    self.rest(entry)

    def rely(self, entry: Entry) -> dict[str, Any] | None:
        """Find an entry that is going to be read: ``check`` looks whether it is intact."""
        metadata = self.find(entry)
        if metadata is not None:
            self._relied[entry.path] = entry
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
                f"--what {entry.room}` removes what was made.",
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
            with suppress(OSError):  # another user's Store
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
        self._relied.pop(entry.path, None)
        self._checked.difference_update([one for one in self._checked if one[0] == entry.path])
        held = self._held.pop(entry.path, None)
        if held is not None:
            os.close(held)

    def release(self) -> None:
        """Rely on no entry any longer."""
        for entry in list(self._relied.values()):
            self._let_go(entry)
        for held in self._held.values():
            os.close(held)
        self._held.clear()

    def check(self, without: re.Pattern[str] | None = None) -> None:
        """Look whether what is relied on is as it was sealed, by names, sizes, times and modes.

        Parts whose name matches ``without`` are not looked at, nor is anything twice.  Raises
        Damaged.
        """
        for path, entry in list(self._relied.items()):
            if (path, without) in self._checked or (path, None) in self._checked:
                continue
            found = entry.seal
            faults = [] if found is None else _faults(path, found, without)
            # Whoever works on it meanwhile has opened it, or it was removed.
            if faults and entry.seal == found:
                raise Damaged(self, entry, several(faults))
            self._checked.add((path, without))

    @contextmanager
    def checking(self, without: re.Pattern[str] | None = None) -> Iterator[None]:
        """Check while the body runs, whose results count for nothing if this raises Damaged.

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

    def discard(self, damaged: Damaged) -> None:
        """Remove a damaged entry, unless another rbuild has made it anew meanwhile."""
        entry = damaged.entry
        with self.lock(entry):
            if entry.path.exists() and entry.raw.get("created") == damaged.created:
                self.remove(entry)
        self._let_go(entry)

    def _migrated(self, entry: Entry) -> dict[str, Any] | None:
        """Seal an entry that a rbuild made which knew no seals; return its metadata.

        While somebody works on it, the caller perhaps, it is used as it is.
        """
        with self.lock_within(entry, MIGRATES_WITHIN_S) as held:
            metadata = entry.metadata
            if not held or metadata is None or metadata["format"] == FORMAT:
                return metadata
            changes: dict[str, Any] = {"format": FORMAT, "entry": entry.name}
            if entry.room in SEALED and not entry.name.rsplit("-", 1)[0].endswith("-in-tree"):
                self.console.note(f"{entry.name} is of an older rbuild: sealing what it holds.")
                changes["seal"] = _seal(entry.room, entry.path)
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
        """Raise HostLacks unless programs in the Store can run: compilers, and what they make."""
        self._make_root()
        if is_noexec(self.root):
            raise HostLacks(
                f"{self.root} is on a file system that is mounted noexec: no program of an "
                "environment can run there.",
                hint="Mount it with exec, or name another place with --cache-dir.",
            )

    def need_space(self, count: int, purpose: str) -> None:
        """Raise InfrastructureError unless ``count`` bytes are free where the Store is."""
        self._make_root()
        free = shutil.disk_usage(self.root).free
        if free < count:
            raise InfrastructureError(
                f"{purpose} needs about {size(count)} in {self.root}, where {size(free)} are free.",
                hint=FREE_SPACE,
            )

    def denied(self, error: PermissionError) -> InfrastructureError | None:
        """Return what to say of something of the Store's that this user may not read or write.

        None if the error isn't of something in the Store.
        """
        path = Path(os.path.abspath(error.filename or self.root))  # noqa: PTH100 - no links
        if not path.is_relative_to(self.root):
            return None
        name = _user(os.geteuid())
        strange = _of_another(self.root, path)
        own = f"sudo chown -R {shlex.quote(f'{name}:')} {shlex.quote(str(self.root))}"
        if strange is None:
            return InfrastructureError(
                f"{path} can't be read or written: {error.strerror}.",
                hint=f"Run `{own} && chmod -R u+rwX {shlex.quote(str(self.root))}`, "
                "or choose another directory with --cache-dir.",
            )
        return InfrastructureError(
            f"{strange} belongs to {_owner(strange)}, so {path} can't be read or written: a cache "
            "directory is for one user.",
            hint=f"Run `{own}`, or choose another directory with --cache-dir or RBUILD_CACHE_DIR.",
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
    def scratch(self, purpose: str) -> Iterator[Path]:
        """Have an empty folder while the body runs; what a killed rbuild left of such is removed.

        It is among the runs, hidden, so that `rbuild clean` removes it as well.
        """
        room = self.root / Room.RUNS
        folder = room / f".{purpose}-{os.getpid()}-{time.monotonic_ns()}.partial"
        with ExitStack() as held:
            with self.lock(Entry(Room.RUNS, purpose, room / purpose)):
                for old in room.glob(f".{purpose}-*.partial"):
                    if not self.in_use(Entry(Room.RUNS, old.name, old)):
                        remove_tree(old)
                folder.mkdir()
                held.enter_context(self.use(folder))
                held.callback(remove_tree, folder)
            yield folder

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
            if not os.access(self.root / room, os.W_OK | os.X_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))  # noqa: TRY301
        except OSError as error:
            raise InfrastructureError(
                f"{self.root} can't be written: {_why(self.root, error)}.",
                hint="Name another place with --cache-dir or RBUILD_CACHE_DIR.",
            ) from error


def _lock_file(entry: Entry) -> Path:
    return entry.path.with_name(f".{entry.name}.lock")


def _faults(path: Path, found: Seal, without: re.Pattern[str] | None) -> list[str]:
    """Return what is wrong with an entry: by its content, too, if that is soon read."""
    from rbuild import seal  # noqa: PLC0415

    if found.size_bytes < SOON_READ:
        return seal.damage(path, found)
    return seal.changed(path, found, without)


def _why(folder: Path, error: OSError) -> str:
    """Return why a folder can't be written, with whose it is if that is why."""
    reason = error.strerror or str(error)
    if os.access(folder, os.W_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        return "the file system is read-only" if error.errno == errno.EROFS else reason
    return f"{reason}, and it belongs to {_owner(folder)}"


def _owner(path: Path) -> str:
    name = _user(path.lstat().st_uid)
    return f"the user {name}" if name.isdecimal() else name


def _user(number: int) -> str:
    """Return a user's name; the number itself if nobody here has it."""
    import pwd  # noqa: PLC0415 - for an error only

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _of_another(root: Path, path: Path) -> Path | None:
    """Return the first thing from ``root`` to ``path``, or below it, that is another user's."""
    above = [one for one in reversed(path.parents) if one.is_relative_to(root)]
    below = (
        path / visit.path(name)
        for visit in walk(path)
        for name in sorted([*visit.folders, *(entry.name for entry in visit.files)])
    )
    for one in chain(above, [path], below):
        with suppress(OSError):
            if one.lstat().st_uid != os.geteuid():
                return one
    return None


def _seal(room: Room, folder: Path) -> dict[str, Any] | None:
    """Seal what a room's entries hold in ``folder``; return the seal for the metadata."""
    from rbuild import seal  # noqa: PLC0415 - not needed to show help

    name = SEALED.get(room)
    return None if name is None else seal.seal(folder, name).as_json()


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
    return _few_inodes(status) or status.f_bavail * status.f_frsize < FEW_BYTES


def _few_inodes(status: os.statvfs_result) -> bool:
    # A file system that makes them as it goes (Btrfs) counts none.
    return bool(status.f_files) and status.f_favail < FEW_INODES


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
