"""Source trees: extracted, patched, from then on immutable."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rbuild.cache.directory import Cache
from rbuild.cache.entry import Entry, EntryKind
from rbuild.cache.records import Moment, Record, Text, Texts
from rbuild.errors import UsageError
from rbuild.util import textfile

IN_TREE_FOLDER = "drivers/misc/mfrc522"
"""Where ``module/`` is bound for an in-tree build; a patch of ours makes the folder."""


@dataclass(frozen=True)
class Tree:
    """An extracted, patched kernel source.

    ``version`` is the kernel's own (6.12.117), ``date`` that of its source, from which builds
    take their time stamp; ``patches`` the names of those applied.
    """

    path: Path
    key: str
    source: str
    version: str
    date: datetime
    patches: tuple[str, ...]
    cached: bool
    is_debian: bool = False

    @property
    def has_in_tree_folder(self) -> bool:
        """Whether the driver can be built as a part of this tree."""
        return (self.path / IN_TREE_FOLDER).is_dir()


def entry_of(tree: Tree) -> Entry:
    """Return the place of a tree in the cache."""
    return Entry(EntryKind.TREES, tree.key, tree.path.parent)


def find(entry: Entry, look: Callable[[Entry], dict[str, Any] | None]) -> Tree | None:
    """Return the tree in an entry, whose metadata ``look`` returns; None if it isn't usable."""
    record = TreeRecord.read(look(entry))
    if record is None:
        return None
    return Tree(
        entry.path / "src",
        entry.name,
        record.source,
        record.version,
        record.date,
        record.patches,
        cached=True,
        is_debian=record.is_debian,
    )


class TreeRecord(Record):
    """What a tree's metadata says of it."""

    source: Text
    version: Text
    date: Moment
    patches: Texts
    is_debian: bool = False


def publish(
    tree: Tree,
    entry: Entry,
    partial: Path,
    cache: Cache,
    **more: Any,  # noqa: ANN401
) -> None:
    """Publish a tree that is in ``partial``, with more fields of metadata."""
    cache.publish(
        entry,
        partial,
        {
            "source": tree.source,
            "version": tree.version,
            "date": tree.date.isoformat(),
            "patches": tree.patches,
            "is_debian": tree.is_debian,
            **more,
        },
    )


VERSION = re.compile(r"([0-9]{1,5}\.){2}[0-9]{1,5}[A-Za-z0-9.+~_-]{0,63}")
"""A kernel's version: of it, names in the cache are made."""


def kernel_version(tree: Path) -> str:
    """Return a tree's version, such as 6.12.117 or 7.3.0-rc1, from its top Makefile.

    Raises UsageError if that isn't a kernel's.
    """
    try:
        with textfile.open_regular(tree / "Makefile") as file:
            head = file.read(2000).decode(errors="replace")
    except OSError as error:
        raise UsageError(f"{tree} is not a kernel tree: it has no Makefile.") from error
    fields = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*)", head, re.M))
    if "VERSION" not in fields or "PATCHLEVEL" not in fields:
        raise UsageError(f"{tree} is not a kernel tree: its Makefile names no VERSION.")
    sublevel = fields.get("SUBLEVEL") or "0"
    found = f"{fields['VERSION']}.{fields['PATCHLEVEL']}.{sublevel}{fields.get('EXTRAVERSION', '')}"
    if not VERSION.fullmatch(found):
        raise UsageError(f"{tree} is not a kernel tree: its version can't be {found[:100]!r}.")
    return found
