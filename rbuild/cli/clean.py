"""``rbuild clean``: remove what the cache directory holds."""

from __future__ import annotations

import time

import click

from rbuild.cli import App
from rbuild.console import size
from rbuild.errors import RbuildError
from rbuild.sandbox.carrier import FOLDER
from rbuild.store import Entry, Room, Store, remove_tree, tree_size

EPILOG = """\b
Examples:
  rbuild clean                            KDIRs and runs; the rest stays
  rbuild clean --what all
  rbuild clean --what ccache             C that was compiled before
  rbuild clean --what runs --older-than 7
"""
DAY_S = 86400


@click.command(epilog=EPILOG)
@click.option(
    "--what",
    multiple=True,
    type=click.Choice([*[room.value for room in Room], "all"]),
    help="What to remove; may be given more than once [default: kdirs and runs].",
)
@click.option(
    "--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Only what is older."
)
@click.pass_obj
def command(app: App, what: tuple[str, ...], older_than: float | None) -> None:
    """Remove entries of the cache directory, and what interrupted runs left there.

    What another rbuild is working on is waited for; the logs of a run under way stay, and so
    does the ccache that it uses.  Of a remote Docker engine, the volumes of entries that are gone
    are removed, too.
    """
    rooms = list(Room) if "all" in what else [Room(name) for name in what or ("kdirs", "runs")]
    removed = []
    freed = 0
    for room in rooms:
        for entry in app.store.entries(room):
            if older_than is not None and _age_s(entry) < older_than * DAY_S:
                continue
            if room in {Room.RUNS, Room.CCACHE} and app.store.in_use(entry):
                continue
            freed += tree_size(entry.path)
            with app.store.lock(entry):
                if entry.path.exists():
                    app.store.remove(entry)
            removed.append(entry.name)
        if older_than is None:
            freed += _leftovers(app.store, room)
    removed += _volumes(app)
    app.console.result(
        f"Removed {len(removed)} entries, {size(freed)}.",
        {"removed": removed, "freed_bytes": freed},
    )


def _volumes(app: App) -> list[str]:
    """Remove the volumes of entries that are gone from the engine that this Store's went to."""
    if not (app.store.root / FOLDER).is_dir():
        return []
    from rbuild.sandbox.engine import connect  # noqa: PLC0415 - the Docker SDK loads slowly
    from rbuild.sandbox.volumes import sweep  # noqa: PLC0415

    try:
        return sweep(connect(), app.store)
    except RbuildError as error:
        app.console.warn(f"What a remote engine has of this cache stays there: {error.message}")
        return []


def _age_s(entry: Entry) -> float:
    created = (entry.metadata or {}).get("created", entry.path.stat().st_mtime)
    return float(time.time() - created)


def _leftovers(store: Store, room: Room) -> int:
    """Remove unfinished and half-removed entries that no rbuild is working on."""
    freed = 0
    folder = store.root / room
    if not folder.is_dir():
        return 0
    for path in folder.iterdir():
        if path.is_dir() and path.name.startswith("."):
            name = path.name[1:].rsplit(".", 1)[0]
            with store.lock(Entry(room, name, folder / name)):
                if path.exists():
                    freed += tree_size(path)
                    remove_tree(path)
    return freed
