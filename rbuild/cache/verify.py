"""Verifying the cache: all that was recorded is read and compared with its checksums."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rbuild.cache.directory import Cache
from rbuild.cache.entry import VERIFIED_FOLDERS, Entry, IntegrityRecord
from rbuild.cache.integrity import verify_deep
from rbuild.errors import InfrastructureError
from rbuild.ui.format import several
from rbuild.ui.step import Step


def verify(entries: list[Entry], cache: Cache) -> dict[Path, dict[str, Any]]:
    """Read what entries hold; mark those that are damaged, and tell what is wrong."""
    found: dict[Path, dict[str, Any]] = {}
    recorded = [(entry, entry.integrity) for entry in entries if entry.kind in VERIFIED_FOLDERS]
    whole = sum(record.files for _, record in recorded if record is not None)
    done = 0
    with cache.console.step("Verifying the cache", total=whole) as step:
        for entry, record in recorded:
            before = _identity(entry)
            try:
                if record is not None:
                    faults = verify_deep(entry.path, record, partial(_tell, step, entry.name, done))
                    done += record.files
                elif entry.metadata is not None or entry.is_newer or entry.was_cut_off:
                    continue  # one that is or was written to, or of another rbuild
                else:
                    faults = ["it isn't an entry that rbuild made"]
            except OSError as error:
                fault = f"{error.filename} can't be read: {error.strerror}"
                found[entry.path] = {"unread": fault, "state": "unreadable"}
                continue
            # Whoever works on it meanwhile has opened it, or it was removed.
            if before is None or before != _identity(entry):
                continue
            found[entry.path] = {"damage": several(faults)} if faults else {"damage": None}
            if faults:
                found[entry.path]["state"] = "damaged"
                _mark(entry, before, several(faults), cache)
    return found


def _identity(entry: Entry) -> tuple[int, IntegrityRecord | None] | None:
    """Return what tells an entry from another in its place; None if it isn't there."""
    try:
        return entry.path.stat().st_ino, entry.integrity
    except OSError:
        return None


def _mark(
    entry: Entry, before: tuple[int, IntegrityRecord | None], faults: str, cache: Cache
) -> None:
    """Write into a damaged entry that it is, unless it was removed or mended meanwhile.

    In somebody else's cache directory it is only told.
    """
    if entry.metadata is None:
        return
    with suppress(InfrastructureError, PermissionError), cache.lock(entry):
        if _identity(entry) == before:
            cache.update(entry, damage=faults)


def _tell(step: Step, name: str, before: int, done: int) -> None:
    step.update(name, done=before + done)
