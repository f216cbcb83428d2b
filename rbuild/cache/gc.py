"""Garbage collection: entries of the cache removed by kind, age, last use, or the cache's size.

What another rbuild uses stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rbuild.cache.directory import Cache
from rbuild.cache.entry import Entry, EntryKind
from rbuild.cache.locks import in_use
from rbuild.cache.records import created_s
from rbuild.ui.format import size
from rbuild.util.disk import freed_size, tree_size
from rbuild.util.folders import remove_tree

LOCK_S = 0.2
"""How long the lock of something unfinished is tried: somebody may work on it for an hour."""


def choose(
    cache: Cache, kinds: Iterable[EntryKind], *, older_than_s: float | None, keep_last: int | None
) -> list[Entry]:
    """Return the entries of some kinds, but for the ``keep_last`` of each that were used last."""
    return [
        entry
        for kind in kinds
        for entry in _beyond(cache.entries(kind), keep_last)
        if older_than_s is None or age_s(entry) >= older_than_s
    ]


@dataclass
class GarbageCollector:
    """Removes entries, and counts what that gives."""

    cache: Cache
    removed: list[str] = field(default_factory=list)
    in_use: list[str] = field(default_factory=list)
    freed: int = 0

    def remove(self, entries: Iterable[Entry]) -> None:
        """Remove entries, but not those that somebody uses."""
        for entry in entries:
            self._remove(entry)

    def shrink(self, entries: Sequence[Entry], most: int) -> None:
        """Remove entries until the whole cache takes no more than ``most``.

        What was used longest ago goes first.
        """
        left = tree_size(self.cache.root)
        for entry in sorted(entries, key=_used_at):
            if left <= most:
                return
            before = self.freed
            self._remove(entry)
            left -= self.freed - before
        if left > most:
            self.cache.console.warn(
                f"{self.cache.root} still takes {size(left)}: the rest is in use, or wasn't chosen."
            )

    def leftovers(self, kind: EntryKind) -> None:
        """Remove unfinished and half-removed entries that no rbuild is working on."""
        for entry, path in self.cache.leftovers(kind):
            with self.cache.lock_within(entry, LOCK_S) as held:
                if not held or in_use(path):
                    self.in_use.append(path.name)
                elif path.exists():
                    self.freed += freed_size(path)
                    remove_tree(path)
                    self.removed.append(path.name)

    def _remove(self, entry: Entry) -> None:
        if in_use(entry.path):
            self.in_use.append(entry.name)
            return
        taken = freed_size(entry.path)
        with self.cache.lock(entry):
            if not entry.path.exists():
                return
            # Whoever came to use it while the lock was waited for.
            if in_use(entry.path):
                self.in_use.append(entry.name)
                return
            self.cache.remove(entry)
        self.freed += taken
        self.removed.append(entry.name)


def _beyond(entries: list[Entry], keep: int | None) -> list[Entry]:
    """Return the entries but for the ``keep`` that were used last."""
    newest = sorted(entries, key=_used_at, reverse=True)[: keep or 0]
    return [entry for entry in entries if entry not in newest]


def _used_at(entry: Entry) -> float:
    """Return when an entry was last used: its folder's time, which whoever relies on it sets."""
    try:
        return entry.path.stat().st_mtime
    except OSError:
        return 0.0


def age_s(entry: Entry) -> float:
    """Return how long ago an entry was made, in seconds."""
    return max(0.0, time.time() - created_s(entry))
