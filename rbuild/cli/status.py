"""``rbuild status``: what is provisioned and built."""

from __future__ import annotations

import time
from typing import Any

import click

from rbuild.cli import App
from rbuild.console import duration, size
from rbuild.kept import created_s
from rbuild.store import Entry, Room, Store, tree_size


@click.command(epilog="\b\nExamples:\n  rbuild status\n  rbuild --json status")
@click.pass_obj
def command(app: App) -> None:
    """Show what the cache directory holds: environments, trees, KDIRs and runs."""
    rows = [_row(entry) for room in Room for entry in app.store.entries(room)]
    rows += _images(app.store)
    total = sum(row["size_bytes"] for row in rows if row["room"] != "image")
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
        f"{table}\n{size(total)} in {app.store.root}"
        if rows
        else (f"Nothing is provisioned in {app.store.root} yet; `rbuild setup` does it.")
    )
    app.console.result(text, {"root": str(app.store.root), "size_bytes": total, "entries": rows})


def _images(store: Store) -> list[dict[str, Any]]:
    """Return a row for each of rbuild's images on the Docker engine, if one was ever used."""
    from rbuild.sandbox import image  # noqa: PLC0415 - not where no engine was used
    from rbuild.sandbox.docker import engine_of  # noqa: PLC0415

    client = engine_of(store)
    if client is None:
        return []
    return [
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


def _row(entry: Entry) -> dict[str, Any]:
    metadata = entry.metadata or {}
    known = [metadata.get(name) for name in ("stage", "version", "architecture")]
    state = next((one for one in known if one and isinstance(one, str)), "")
    if entry.room is not Room.RUNS and not metadata:
        state = "unusable"
    return {
        "name": entry.name,
        "room": entry.room.value,
        "state": state,
        "size_bytes": tree_size(entry.path),
        "age_s": max(0.0, time.time() - created_s(entry)),
        "path": str(entry.path),
    }
