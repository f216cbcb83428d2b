"""``rbuild clean``: remove what the cache directory holds."""

from __future__ import annotations

import time

import click

from rbuild.cli import App
from rbuild.cli.typo import Choice
from rbuild.console import size
from rbuild.kept import created_s
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
    type=Choice([*[room.value for room in Room], "all"]),
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
    removed += _on_engine(app.store, images=Room.ROOTFS in rooms)
    app.console.result(
        f"Removed {len(removed)} entries, {size(freed)}.",
        {"removed": removed, "freed_bytes": freed},
    )


def _on_engine(store: Store, *, images: bool) -> list[str]:
    """Remove what a Docker engine has of entries that are gone; return the names of that."""
    from rbuild.sandbox import image  # noqa: PLC0415 - not where no engine was used
    from rbuild.sandbox.docker import engine_of  # noqa: PLC0415
    from rbuild.sandbox.volumes import sweep  # noqa: PLC0415

    client = engine_of(store)
    if client is None:
        return []
    found = image.remove_stale(client, store) if images else []
    return [*found, *sweep(client, store)] if (store.root / FOLDER).is_dir() else found


def _age_s(entry: Entry) -> float:
    return time.time() - created_s(entry)


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
