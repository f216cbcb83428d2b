"""``rbuild clean``: remove what the cache directory holds."""

from __future__ import annotations

import click

from rbuild.cache.entry import EntryKind
from rbuild.cache.gc import GarbageCollector, choose
from rbuild.cli.main import App
from rbuild.cli.size import Count, Number, Size
from rbuild.cli.suggest import Choice
from rbuild.sandbox.docker.leftovers import remove_stale
from rbuild.ui.format import size

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


@click.command(epilog=EPILOG)
@click.option(
    "--what",
    multiple=True,
    type=Choice([*[kind.value for kind in EntryKind], "all"]),
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
    kinds = (
        list(EntryKind)
        if "all" in (what or default)
        else [EntryKind(one) for one in what or default]
    )
    older_than_s = None if older_than is None else older_than * DAY_S
    chosen = choose(app.cache, kinds, older_than_s=older_than_s, keep_last=keep_last)
    collector = GarbageCollector(app.cache)
    if older_than is None:
        for kind in kinds if what else EntryKind:
            collector.leftovers(kind)
    if max_size is None:
        collector.remove(chosen)
    else:
        collector.shrink(chosen, max_size)
    removed = [*collector.removed, *remove_stale(app.cache, images=EntryKind.ROOTFS in kinds)]
    stay = f" {len(collector.in_use)} are in use, and stay." if collector.in_use else ""
    app.console.result(
        f"Removed {len(removed)} entries, {size(collector.freed)}.{stay}",
        {"removed": removed, "freed_bytes": collector.freed, "in_use": collector.in_use},
    )
