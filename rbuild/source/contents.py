"""The content of a large folder of the user's, read again only where it may have changed.

As git's index does, an index remembers of each file what lstat(2) said when it was hashed.  It
compares the time of change (st_ctime) too, which no program can set: an edit that keeps a file's
size and puts its time of modification back is noticed.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rbuild.errors import InfrastructureError, ProcessFailed, UsageError
from rbuild.util import process
from rbuild.util.folders import GONE
from rbuild.util.hashes import sha256_file
from rbuild.util.walk import MAX_DEPTH, TOO_DEEP, VANISHED, is_too_deep

THREADS = 4

SETTLES_S = 2.0
"""A file that changed so shortly before it was hashed may change again at the same time stamp."""

NOT_CONTENT = "./.git"
"""What at the top of a folder is no part of its content."""

FORM = r"%p\0%y %m\0%l\0%s %T@ %C@ %i %D\0"
"""What find(1) prints: path, kind and mode, a link's target, and what changes with the content."""

STATUS = re.compile(rb"[0-9]+(?: -?[0-9.]+){2} [0-9]+ [0-9]+")
KIND = re.compile(rb"[a-zA-Z?] [0-7]+")

FIELDS_IN_FORM, FIELDS_IN_INDEX = 4, 3

OWN_SUM = hashlib.sha256().digest_size
"""How many bytes an index ends with that are its own SHA-256."""


@dataclass(frozen=True)
class Record:
    """One thing in a folder; ``status`` changes whenever a file's content does."""

    path: bytes
    kind: bytes
    target: bytes
    status: bytes

    @property
    def kept(self) -> bytes:
        """Kind and mode as a copy has them: cp(1) drops set-user-ID and sticky bits of others'."""
        letter, mode = self.kind.split()
        return letter + b" %o" % (int(mode, 8) & 0o777)

    @property
    def is_well_formed(self) -> bool:
        """Whether it is what find(1) was asked to print."""
        is_below = self.path.startswith(b"./")
        return is_below and bool(KIND.fullmatch(self.kind) and STATUS.fullmatch(self.status))

    @property
    def is_file(self) -> bool:
        """Whether it has a content."""
        return self.kind.startswith(b"f")

    @property
    def changed_s(self) -> float:
        """When it was last changed, in seconds since the epoch."""
        return float(self.status.split(b" ")[2])


def content(folder: Path, index: Path | None = None) -> str:
    """Return what identifies a folder's content: names, kinds, modes, link targets and bytes.

    With ``index``, a file of this function's own, only what may have changed since is read.
    What goes while it is looked at is left out.  Raises UsageError for a file that can't be read.
    """
    now = time.time()
    records = _records(folder)
    known = {} if index is None else _read(index)
    sums = {
        record.path: known[record.path][1]
        for record in records
        if record.is_file and known.get(record.path, (None,))[0] == record.status
    }
    if changed := [one for one in records if one.is_file and one.path not in sums]:
        sums |= _sums(folder, changed)
        records = [one for one in records if not one.is_file or one.path in sums]
    if index is not None and (changed or len(sums) != len(known)):
        _write(index, [one for one in records if one.is_file], sums, now)
    whole = hashlib.sha256()
    for record in records:
        fields = (record.path, record.kept, record.target, sums.get(record.path, b""))
        whole.update(b"\0".join(fields) + b"\0")
    return whole.hexdigest()


def _records(folder: Path) -> list[Record]:
    argv = ["find", ".", "-mindepth", "1", "-path", NOT_CONTENT, "-prune", "-o", "-printf", FORM]
    try:
        raw = process.output(argv, cwd=folder, excused=GONE)
    except ProcessFailed as error:
        raise UsageError(f"{folder} can't be read.", detail=error.detail) from error
    *fields, rest = raw.split(b"\0")
    rows = zip(*[iter(fields)] * FIELDS_IN_FORM, strict=False)
    records = sorted((Record(*row) for row in rows), key=lambda record: record.path)
    if rest or len(fields) % FIELDS_IN_FORM or not all(one.is_well_formed for one in records):
        raise InfrastructureError(f"find(1) printed what it wasn't asked for, of {folder}.")
    long = (one.path for one in records if len(one.path) > MAX_DEPTH)
    if any(is_too_deep(os.fsdecode(path)) for path in long):
        raise UsageError(f"{folder} has files or folders {TOO_DEEP}.")
    return records


def _sums(folder: Path, records: list[Record]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the path and the SHA-256 of each file; nothing for one that has gone meanwhile."""

    def read(record: Record) -> tuple[bytes, bytes] | None:
        path = folder / os.fsdecode(record.path)
        try:
            return record.path, sha256_file(path).encode()
        except OSError as error:
            if error.errno in VANISHED:
                return None
            raise UsageError(f"{path} can't be read: {error.strerror}.") from error

    with ThreadPoolExecutor(THREADS) as pool:
        yield from filter(None, pool.map(read, records, chunksize=64))


def _read(index: Path) -> dict[bytes, tuple[bytes, bytes]]:
    """Return (status, SHA-256) by path; nothing where the index isn't there or isn't whole."""
    try:
        whole = index.read_bytes()
    except OSError:
        return {}
    body, own = whole[:-OWN_SUM], whole[-OWN_SUM:]
    if hashlib.sha256(body).digest() != own:
        return {}
    rows = zip(*[iter(body.split(b"\0")[:-1])] * FIELDS_IN_INDEX, strict=True)
    return {path: (status, found) for path, status, found in rows}


def _write(index: Path, files: list[Record], sums: dict[bytes, bytes], now: float) -> None:
    """Write an index; a file that may change unnoticed is in it without its status."""
    rows = []
    for one in files:
        status = one.status if one.changed_s < now - SETTLES_S else b""
        rows.append(b"\0".join((one.path, status, sums[one.path])) + b"\0")
    body = b"".join(rows)
    aside = index.with_name(f"{index.name}.{os.getpid()}")
    aside.write_bytes(body + hashlib.sha256(body).digest())
    aside.replace(index)
