"""Manifests: what is in a folder, so that two of them can be compared without their content.

A file is taken for unchanged if its size, its mode and its time of modification, to the
nanosecond, are: what make goes by, too.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rbuild.errors import InfrastructureError
from rbuild.util.walk import walk

NANO = 1_000_000_000


class Type(StrEnum):
    """What an item is, as find(1) writes it; whatever else a folder holds isn't carried."""

    FILE = "f"
    FOLDER = "d"
    LINK = "l"


@dataclass(frozen=True)
class Item:
    """A file, folder or symbolic link: its permissions, and what tells whether it changed.

    ``mtime_ns`` is nanoseconds since the epoch.  It counts for files alone: a folder's and a
    link's say nothing to make.
    """

    type: Type
    mode: int = 0
    size: int = 0
    mtime_ns: int = 0
    target: str = ""


Manifest = Mapping[str, Item]
"""Each item below a folder by its path from there; names that aren't UTF-8 by surrogates."""

FIND = (
    r"\( -type f -printf 'f %#m %s %T@ %P//\0' \) -o "
    r"\( -type d -printf 'd %#m 0 0 %P//\0' \) -o -type l -printf 'l 0 0 0 %P//%l\0'"
)
"""What find(1) is to print, as words of a shell script; ``//`` ends a path, and is in none."""


@dataclass(frozen=True)
class Difference:
    """What must be written and what removed to make one manifest the other, in that order."""

    written: tuple[str, ...]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.written or self.removed)


def scan(folder: Path) -> dict[str, Item]:
    """Return the manifest of a folder of the host's, each folder before what is in it.

    What vanishes meanwhile, a lock or an editor's file, is left out.  Raises OSError for a folder
    that can't be read.
    """

    def denied(_: str, error: OSError) -> None:
        raise error

    found = {}
    for visit in walk(folder, failed=denied):
        visit.folders.sort()
        for name in visit.folders:
            with suppress(FileNotFoundError):
                status = os.lstat(name, dir_fd=visit.descriptor)
                found[visit.path(name)] = Item(Type.FOLDER, stat.S_IMODE(status.st_mode) & 0o777)
        for entry in visit.files:
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if item := item_of(entry.name, status, folder=visit.descriptor):
                    found[visit.path(entry.name)] = item
    return found


def item_of(path: str | Path, status: os.stat_result, *, folder: int | None = None) -> Item | None:
    """Return what lstat(2) says of a path, from an open folder, as an item; None if it is none."""
    mode = stat.S_IMODE(status.st_mode) & 0o777
    if stat.S_ISREG(status.st_mode):
        return Item(Type.FILE, mode, status.st_size, status.st_mtime_ns)
    if stat.S_ISDIR(status.st_mode):
        return Item(Type.FOLDER, mode)
    if stat.S_ISLNK(status.st_mode):
        return Item(Type.LINK, target=os.readlink(path, dir_fd=folder))
    return None


def parse(listed: bytes) -> dict[str, Item]:
    """Return the manifest that find(1) printed as FIND has it.

    Raises InfrastructureError if it is none.
    """
    found = {}
    try:
        for record in listed.decode("utf-8", "surrogateescape").split("\0")[:-1]:
            letter, mode, size, when, rest = record.split(" ", 4)
            name, _, target = rest.partition("//")
            permissions = int(mode, 8) & 0o777
            found[name] = Item(Type(letter), permissions, int(size), nanoseconds(when), target)
    except ValueError as error:
        raise InfrastructureError(f"The engine's list of files can't be read: {error}.") from error
    return found


def listed(manifest: Manifest) -> bytes:
    """Return a manifest as find(1) would print it."""
    text = []
    for name, item in manifest.items():
        seconds, rest = divmod(item.mtime_ns, NANO)
        when = f"{seconds}.{rest:09d}0" if item.type is Type.FILE else "0"
        mode = "0" if item.type is Type.LINK else f"0{item.mode:o}"
        text.append(f"{item.type} {mode} {item.size} {when} {name}//{item.target}\0")
    return "".join(text).encode("utf-8", "surrogateescape")


def nanoseconds(text: str) -> int:
    """Return a time that is written as decimal seconds, in whole nanoseconds.

    A float would round it.  Raises ValueError if it is no number.
    """
    whole, _, part = text.partition(".")
    ns = int((part + "0" * 9)[:9])
    return int(whole) * NANO + (-ns if whole.startswith("-") else ns)


def difference(wanted: Manifest, there: Manifest) -> Difference:
    """Return what makes ``there`` into ``wanted``.

    What changes its type is removed first, with all that is below it.
    """
    written = tuple(name for name, item in wanted.items() if there.get(name) != item)
    removed = [
        name
        for name, item in there.items()
        if name not in wanted or wanted[name].type is not item.type
    ]
    # Before a folder goes, what is in it.
    return Difference(written, tuple(sorted(removed, reverse=True)))


def topmost(names: Iterable[str]) -> list[str]:
    """Return those of some names that are below none of the others."""
    found: list[str] = []
    for name in sorted(names, key=lambda name: name.split("/")):
        if not found or not name.startswith(f"{found[-1]}/"):
            found.append(name)
    return found


def fingerprint(manifest: Manifest) -> str:
    """Return a SHA-256 in hexadecimal that is the same for equal manifests."""
    hashed = hashlib.sha256()
    for name, item in sorted(manifest.items()):
        words = (name, item.type, item.mode, item.size, item.mtime_ns, item.target)
        hashed.update("\0".join(map(str, words)).encode("utf-8", "surrogateescape") + b"\0\0")
    return hashed.hexdigest()
