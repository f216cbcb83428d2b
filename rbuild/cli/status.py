"""``rbuild status``: what is provisioned and built."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from rbuild.cli import App
from rbuild.console import Step, duration, several, size, visible
from rbuild.errors import InfrastructureError
from rbuild.folders import DiskUse
from rbuild.kept import created_s
from rbuild.seal import Seal, damage
from rbuild.store import SEALED, Entry, Room, Store

EPILOG = """\b
Examples:
  rbuild status
  rbuild --json status
  rbuild status --verify
"""


@click.command(epilog=EPILOG)
@click.option(
    "--verify",
    is_flag=True,
    help="Read all that was sealed, and compare it with its checksums; exit with 1 for damage.",
)
@click.pass_obj
def command(app: App, verify: bool) -> int:
    """Show what the cache directory holds: environments, trees, KDIRs and runs.

    What --verify finds damaged is not used any more: the next run that needs it makes it anew.
    """
    entries = [entry for room in Room for entry in app.store.entries(room)]
    checked = _verified(entries, app.store) if verify else {}
    # What `rbuild clean` removes meanwhile is nothing to tell of.
    entries = [entry for entry in entries if entry.path.is_dir()]
    use = DiskUse()
    rows = [_row(entry, use) | checked.get(entry.path, {}) for entry in entries]
    rows += _leftovers(app.store, use)
    rows += _of_the_engine(app.store)
    table = app.console.table(
        "",
        ["entry", "kind", "state", "size", "age"],
        [
            [
                row["name"],
                row["room"],
                row["state"],
                size(row["size_bytes"]),
                duration(row["age_s"]),
            ]
            for row in rows
        ],
    )
    text = (
        f"{table}\n{visible(f'{size(use.total)} in {app.store.root}')}"
        if rows
        else (f"Nothing is provisioned in {app.store.root} yet; `rbuild setup` does it.")
    )
    damaged = [row for row in rows if row.get("damage")]
    for row in damaged:
        app.console.warn(f"{row['name']} is damaged: {row['damage']}.")
    unread = [row for row in rows if row.get("unread")]
    for row in unread:
        app.console.warn(f"{row['name']} wasn't verified: {row['unread']}.")
    if verify:
        count = sum("damage" in row for row in rows)
        text += f"\n{count} entries were verified, {len(damaged)} are damaged."
        if unread:
            text += f" {len(unread)} can't be read."
    data = {"root": str(app.store.root), "size_bytes": use.total, "entries": rows}
    app.console.result(text, data)
    if damaged:
        return 1
    return InfrastructureError.exit_code if unread else 0


def _verified(entries: list[Entry], store: Store) -> dict[Path, dict[str, Any]]:
    """Read what is sealed of entries; mark those that are damaged, and tell what is wrong."""
    found: dict[Path, dict[str, Any]] = {}
    sealed = [(entry, entry.seal) for entry in entries if entry.room in SEALED]
    whole = sum(seal.files for _, seal in sealed if seal is not None)
    done = 0
    with store.console.step("Verifying what is sealed", total=whole) as step:
        for entry, seal in sealed:
            before = _identity(entry)
            try:
                if seal is not None:
                    faults = damage(entry.path, seal, partial(_tell, step, entry.name, done))
                    done += seal.files
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
                _mark(entry, before, several(faults), store)
    return found


def _identity(entry: Entry) -> tuple[int, Seal | None] | None:
    """Return what tells an entry from another in its place; None if it isn't there."""
    try:
        return entry.path.stat().st_ino, entry.seal
    except OSError:
        return None


def _mark(entry: Entry, before: tuple[int, Seal | None], faults: str, store: Store) -> None:
    """Write into a damaged entry that it is, unless it was removed or mended meanwhile.

    In somebody else's cache directory it is only told.
    """
    if entry.metadata is None:
        return
    with suppress(InfrastructureError, PermissionError), store.lock(entry):
        if _identity(entry) == before:
            store.update(entry, damage=faults)


def _tell(step: Step, name: str, before: int, done: int) -> None:
    step.update(name, done=before + done)


def _leftovers(store: Store, use: DiskUse) -> list[dict[str, Any]]:
    """Return a row for each entry that isn't finished, or isn't removed yet."""
    rows = []
    for room in Room:
        for entry, path in store.leftovers(room):
            at_work = store.is_locked(entry) or store.in_use(Entry(room, path.name, path))
            with suppress(FileNotFoundError):
                rows.append(
                    {
                        "name": path.name,
                        "room": room.value,
                        "state": "at work" if at_work else "unfinished",
                        "size_bytes": use.add(path),
                        "age_s": max(0.0, time.time() - path.stat().st_mtime),
                        "path": str(path),
                    }
                )
    return rows


def _of_the_engine(store: Store) -> list[dict[str, Any]]:
    """Return a row for each image and volume on the Docker engine, if one was ever used."""
    from rbuild.sandbox import image, volumes  # noqa: PLC0415 - not where no engine was used
    from rbuild.sandbox.docker import engine_of  # noqa: PLC0415

    client = engine_of(store)
    if client is None:
        return []
    images = [
        {
            "name": (one.get("RepoTags") or [one["Id"]])[0],
            "room": "image",
            "state": (one.get("Labels") or {}).get(image.PLATFORM_LABEL, ""),
            "size_bytes": one["Size"],
            "age_s": max(0.0, time.time() - one["Created"]),
            "path": one["Id"],
        }
        for one in image.images(client)
    ]
    return images + [
        {
            "name": one.volume,
            "room": "volume",
            "state": one.entry,
            "size_bytes": one.size_bytes,
            "age_s": max(0.0, time.time() - _moment(one.created)),
            "path": one.volume,
        }
        for one in volumes.held(client, store)
    ]


def _moment(text: str) -> float:
    """Return the seconds since the epoch of an engine's moment (RFC 3339); now, if it has none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return time.time()


def _row(entry: Entry, use: DiskUse) -> dict[str, Any]:
    metadata = entry.metadata or {}
    known = [metadata.get(name) for name in ("stage", "version", "architecture")]
    state = next((one for one in known if one and isinstance(one, str)), "")
    if entry.room is not Room.RUNS and not metadata:
        state = "newer" if entry.is_newer else "damaged" if entry.raw.get("damage") else "unusable"
        state = "cut off" if entry.was_cut_off else state
    return {
        "name": entry.name,
        "room": entry.room.value,
        "state": state,
        "size_bytes": use.add(entry.path),
        "age_s": max(0.0, time.time() - created_s(entry)),
        "path": str(entry.path),
    }
