"""What the cache holds, as rows: name, kind, state, size, age and path of each entry."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from rbuild.cache.directory import Cache
from rbuild.cache.entry import Entry, EntryKind
from rbuild.cache.gc import age_s
from rbuild.cache.locks import in_use, is_locked
from rbuild.util.disk import DiskUse


def row_of(entry: Entry, use: DiskUse) -> dict[str, Any]:
    """Return the row of an entry; ``use`` counts a file of several links once."""
    metadata = entry.metadata or {}
    known = [metadata.get(name) for name in ("stage", "version", "architecture")]
    state = next((one for one in known if one and isinstance(one, str)), "")
    if entry.kind is not EntryKind.RUNS and not metadata:
        state = "newer" if entry.is_newer else "damaged" if entry.raw.get("damage") else "unusable"
        state = "cut off" if entry.was_cut_off else state
    return {
        "name": entry.name,
        "room": entry.kind.value,
        "state": state,
        "size_bytes": use.add(entry.path),
        "age_s": age_s(entry),
        "path": str(entry.path),
    }


def leftover_rows(cache: Cache, use: DiskUse) -> list[dict[str, Any]]:
    """Return a row for each entry that isn't finished, or isn't removed yet."""
    rows = []
    for kind in EntryKind:
        for entry, path in cache.leftovers(kind):
            at_work = is_locked(entry) or in_use(path)
            with suppress(FileNotFoundError):
                rows.append(
                    {
                        "name": path.name,
                        "room": kind.value,
                        "state": "at work" if at_work else "unfinished",
                        "size_bytes": use.add(path),
                        "age_s": max(0.0, time.time() - path.stat().st_mtime),
                        "path": str(path),
                    }
                )
    return rows
