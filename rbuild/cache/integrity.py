"""Integrity: what an entry of the cache holds, by which damage to it is found.

A published entry has a ``manifest`` with a record for each file, link and folder: its SHA-256 (a
file's content, a link's target), kind, mode, size and time of change.  Its metadata has the record
itself: the manifest's own SHA-256, and a digest of the records of each *part*, without the content.
A part is a folder at the top (``src/drivers``), so that a build can look at what it reads only.

Two questions can be asked: ``verify_quick`` reads no file's content and takes a fraction of a
second; ``verify_deep`` reads all, and so finds a bit that the disk has turned, too.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from rbuild.cache.entry import METADATA, IntegrityRecord
from rbuild.errors import ProcessFailed
from rbuild.util import process
from rbuild.util.folders import GONE
from rbuild.util.hashes import sha256_file
from rbuild.util.walk import VANISHED

MANIFEST = "manifest"
OWN = (MANIFEST, METADATA, "reproduce.sh")
"""What rbuild itself keeps at the top of an entry: no part of what is verified."""

TWO_DEEP = ("usr", "arch")
"""Folders whose own folders are parts: nearly all of a rootfs is in one."""

THREADS = 4

UNREAD = hashlib.sha256(b"").hexdigest().encode()
"""The content, in a manifest, of a file that was empty or unreadable when it was recorded."""

EMPTY_FILE = re.compile(rb"f \S+ 0 ")

FORM = (
    *("(", "-type", "f", "-printf", r"f %m %s %T@ %p\0", ")"),
    *("-o", "(", "-type", "l", "-printf", r"l %s %T@ %p\0", ")"),
    *("-o", "-printf", r"%y %m %p\0"),
)
"""What find(1) prints: no times and sizes of folders, which are the file system's own matter."""


RECORD = re.compile(rb"(?:f [0-7]+ [0-9]+ \S+|l [0-9]+ \S+|[a-zA-Z?] [0-7]+) \./.", re.DOTALL)
"""How each begins."""


def record(entry: Path, folder: str) -> IntegrityRecord:
    """Write the manifest of a folder of an entry (``.``: all of it) into the entry."""
    records = _records(entry / folder, ())
    sums = dict(_sealed(entry / folder, records))
    manifest = b"".join(sums[one] + b" " + one + b"\0" for one in records)
    (entry / MANIFEST).write_bytes(manifest)
    return IntegrityRecord(
        folder,
        hashlib.sha256(manifest).hexdigest(),
        _digests(records),
        len(records),
        sum(int(one.split(b" ", 3)[2]) for one in records if one.startswith(b"f ")),
    )


def verify_quick(
    entry: Path, found: IntegrityRecord, without: re.Pattern[str] | None = None
) -> list[str]:
    """Return what is not as it was recorded, by names, sizes, times and modes; [] if all is.

    Parts whose whole name matches ``without`` are not looked at.  Raises OSError for what can't
    be read.
    """
    skipped = {name for name in found.parts if without is not None and without.fullmatch(name)}
    now = _records(entry / found.folder, skipped)
    wanted = {name: one for name, one in found.parts.items() if name not in skipped}
    if _digests(now) == wanted:
        return []
    then = _read(entry, found)
    if then is None:
        return ["its manifest is gone, or isn't the one that was recorded"]
    known = {one for _, one in then if _part(_name(one)) not in skipped}
    return _named(known, set(now)) or ["its parts are not those that were recorded"]


def verify_deep(
    entry: Path, found: IntegrityRecord, tell: Callable[[int], None] = lambda _: None
) -> list[str]:
    """Return what is not as it was recorded, by its content, too; [] if all is.

    ``tell`` is called with the number of files that were read so far.  Raises OSError for
    what can't be read, unless something else is wrong.
    """
    then = _read(entry, found)
    if then is None:
        return ["its manifest is gone, or isn't the one that was recorded"]
    now = _records(entry / found.folder, ())
    faults = _named({one for _, one in then}, set(now))
    same = set(now)
    wanted = {one: content for content, one in then if one in same}
    unread = []
    for number, (one, content) in enumerate(_sums(entry / found.folder, wanted), 1):
        if isinstance(content, OSError):
            if content.errno in VANISHED:
                faults.append(f"{_shown(one)} is missing")
            elif wanted[one] != UNREAD:
                unread.append(content)
        elif content != wanted[one] and (wanted[one] != UNREAD or EMPTY_FILE.match(one)):
            faults.append(f"{_shown(one)} has another content than was recorded")
        if number % 1000 == 0:
            tell(number)
    if unread and not faults:
        raise unread[0]
    return faults


def _records(folder: Path, without: Collection[str]) -> list[bytes]:
    """Return a record for each thing below a folder, in order; none of the parts in ``without``."""
    starts = [f"./{name}" for name in _tops(folder) if name not in without]
    if not starts:
        return []
    try:
        found = process.output(["find", *starts, *FORM], cwd=folder, excused=GONE)
    except FileNotFoundError:
        return []
    except ProcessFailed as error:
        denied = errno.EACCES if "Permission denied" in error.detail else errno.EIO
        raise OSError(denied, os.strerror(denied), str(folder)) from error
    *records, rest = found.split(b"\0")
    if rest or not all(RECORD.match(one) for one in records):
        # What find(1) has printed says nothing of the folder.
        raise OSError(errno.EBADMSG, "find(1) printed what it wasn't asked for", str(folder))
    return sorted(records)


def _tops(folder: Path) -> list[str]:
    """Return the names of a folder's parts, as they are now."""
    found: list[str] = []
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        if error.errno in VANISHED:
            return found
        raise
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in paths:
            if path.name in OWN:
                continue
            if path.name in TWO_DEEP and path.is_dir() and not path.is_symlink():
                found += [f"{path.name}/{one.name}" for one in path.iterdir()]
            else:
                found.append(path.name)
    return found


def _name(record: bytes) -> bytes:
    """Return the path in a record."""
    words_before = {b"f": 4, b"l": 3}.get(record[:1], 2)
    return record.split(b" ", words_before)[-1].removeprefix(b"./")


def _part(name: bytes) -> str:
    steps = os.fsdecode(name).split("/")
    return "/".join(steps[: 2 if steps[0] in TWO_DEEP else 1])


def _digests(records: Iterable[bytes]) -> dict[str, str]:
    """Return a digest for each part of what records (in order) say."""
    parts: dict[str, Any] = {}
    for one in records:
        part = _part(_name(one))
        if part not in parts:
            parts[part] = hashlib.sha256()
        parts[part].update(one + b"\0")
    return {name: found.hexdigest()[:32] for name, found in sorted(parts.items())}


def _sealed(folder: Path, records: Iterable[bytes]) -> Iterable[tuple[bytes, bytes]]:
    """Yield what ``_sums`` does; what can't be read counts as empty.

    A rootfs has such files, to an ordinary user.
    """
    for record, content in _sums(folder, records):
        if isinstance(content, OSError) and not isinstance(content, PermissionError):
            raise content
        yield record, UNREAD if isinstance(content, OSError) else content


def _sums(folder: Path, records: Iterable[bytes]) -> Iterable[tuple[bytes, bytes | OSError]]:
    """Yield each record with the SHA-256 of the file's content, or of the record where it's none.

    Where it can't be read, that is the error.
    """

    def content(record: bytes) -> tuple[bytes, bytes | OSError]:
        path = folder / os.fsdecode(_name(record))
        try:
            if record.startswith(b"f "):
                return record, sha256_file(path).encode()
            text = os.fsencode(path.readlink()) if record.startswith(b"l ") else record
        except OSError as error:
            return record, error
        return record, hashlib.sha256(text).hexdigest().encode()

    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(content, records, chunksize=64)


def _read(entry: Path, found: IntegrityRecord) -> list[tuple[bytes, bytes]] | None:
    """Return (SHA-256, record) of each line of the manifest; None if it isn't what was recorded.

    Raises OSError if it can't be read.
    """
    try:
        text = (entry / MANIFEST).read_bytes()
    except OSError as error:
        if error.errno in VANISHED | {errno.EISDIR}:
            return None
        raise
    if hashlib.sha256(text).hexdigest() != found.manifest:
        return None
    lines = (line.split(b" ", 1) for line in text.split(b"\0")[:-1])
    return [(line[0], line[1]) for line in lines]


def _named(then: set[bytes], now: set[bytes]) -> list[str]:
    """Return what differs between two sets of records, a line for each path."""
    before = {_name(one): one for one in then - now}
    after = {_name(one): one for one in now - then}
    return [
        _difference(name, before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
    ]


def _difference(name: bytes, before: bytes | None, after: bytes | None) -> str:
    path = _text(name)
    if after is None:
        return f"{path} is missing"
    if before is None:
        return f"{path} was not there"
    if before[:2] != b"f " or after[:2] != b"f ":
        return f"{path} is another thing than it was"
    _, mode, size, _, _ = before.split(b" ", 4)
    _, new_mode, new_size, _, _ = after.split(b" ", 4)
    if size != new_size:
        return f"{path} has {new_size.decode()} bytes instead of {size.decode()}"
    if mode != new_mode:
        return f"{path} has the mode {new_mode.decode()} instead of {mode.decode()}"
    return f"{path} was written to"


def _shown(record: bytes) -> str:
    return _text(_name(record))


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace").encode("unicode_escape").decode()
