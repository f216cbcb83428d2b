"""``rbuild clean``: remove what the cache directory holds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import click

from rbuild.cli import App
from rbuild.cli.size import Count, Number, Size
from rbuild.cli.typo import Choice
from rbuild.console import size
from rbuild.kept import created_s
from rbuild.sandbox.carrier import FOLDER
from rbuild.store import Entry, Room, Store, freed_size, remove_tree, tree_size

EPILOG = """\b
Examples:
  rbuild clean                            KDIRs and runs; the rest stays
  rbuild clean --what all
  rbuild clean --what ccache              C that was compiled before
  rbuild clean --what runs --older-than 7
  rbuild clean --keep-last 3              of each kind, three stay
  rbuild clean --max-size 20G             what was used longest ago goes first
"""
DAY_S = 86400
LOCK_S = 0.2
"""How long the lock of something unfinished is tried: somebody may work on it for an hour."""


@click.command(epilog=EPILOG)
@click.option(
    "--what",
    multiple=True,
    type=Choice([*[room.value for room in Room], "all"]),
    help="What to remove; may be given more than once [default: kdirs and runs; with --max-size "
    "all].",
)
@click.option("--older-than", type=Number(min=0), metavar="DAYS", help="Only what is older.")
@click.option(
    "--keep-last",
    type=Count(min=0),
    metavar="N",
    help="Of each kind, leave the N that were used last.",
)
@click.option(
    "--max-size",
    type=Size(),
    metavar="SIZE",
    help="Only until the cache directory takes no more than this, such as 20G.",
)
@click.pass_obj
def command(
    app: App,
    what: tuple[str, ...],
    older_than: float | None,
    keep_last: int | None,
    max_size: int | None,
) -> None:
    """Remove entries of the cache directory, and what interrupted runs left there.

    What is unfinished is removed of every kind, unless --what names some. What another rbuild uses
    stays. Of a remote Docker engine, the volumes of entries that are gone are removed, too.
    """
    default = ("all",) if max_size is not None else ("kdirs", "runs")
    rooms = list(Room) if "all" in (what or default) else [Room(one) for one in what or default]
    chosen = [
        entry
        for room in rooms
        for entry in _beyond(app.store.entries(room), keep_last)
        if older_than is None or _age_s(entry) >= older_than * DAY_S
    ]
    broom = _Broom(app.store)
    if older_than is None:
        for room in rooms if what else Room:
            broom.leftovers(room)
    if max_size is None:
        broom.remove(chosen)
    else:
        broom.shrink(sorted(chosen, key=_used_at), max_size)
    removed = [*broom.removed, *_on_engine(app.store, images=Room.ROOTFS in rooms)]
    kept = f" {len(broom.in_use)} are in use, and stay." if broom.in_use else ""
    app.console.result(
        f"Removed {len(removed)} entries, {size(broom.freed)}.{kept}",
        {"removed": removed, "freed_bytes": broom.freed, "in_use": broom.in_use},
    )


@dataclass
class _Broom:
    """Removes entries, and counts what that gives."""

    store: Store
    removed: list[str] = field(default_factory=list)
    in_use: list[str] = field(default_factory=list)
    freed: int = 0

    def remove(self, entries: Iterable[Entry]) -> None:
        """Remove entries, but not those that somebody uses."""
        for entry in entries:
            self._remove(entry)

    def shrink(self, entries: Sequence[Entry], most: int) -> None:
        """Remove entries, in their order, until the whole Store takes no more than ``most``."""
        left = tree_size(self.store.root)
        for entry in entries:
            if left <= most:
                return
            before = self.freed
            self._remove(entry)
            left -= self.freed - before
        if left > most:
            self.store.console.warn(
                f"{self.store.root} still takes {size(left)}: the rest is in use, or wasn't chosen."
            )

    def leftovers(self, room: Room) -> None:
        """Remove unfinished and half-removed entries that no rbuild is working on."""
        for entry, path in self.store.leftovers(room):
            with self.store.lock_within(entry, LOCK_S) as held:
                if not held or self.store.in_use(Entry(room, path.name, path)):
                    self.in_use.append(path.name)
                elif path.exists():
                    self.freed += freed_size(path)
                    remove_tree(path)
                    self.removed.append(path.name)

    def _remove(self, entry: Entry) -> None:
        if self.store.in_use(entry):
            self.in_use.append(entry.name)
            return
        taken = freed_size(entry.path)
        with self.store.lock(entry):
            if not entry.path.exists():
                return
            # Whoever came to use it while the lock was waited for.
            if self.store.in_use(entry):
                self.in_use.append(entry.name)
                return
            self.store.remove(entry)
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
