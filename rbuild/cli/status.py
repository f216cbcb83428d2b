"""``rbuild status``: what is provisioned and built."""

from __future__ import annotations

import click

from rbuild.cache.entry import EntryKind
from rbuild.cache.inventory import leftover_rows, row_of
from rbuild.cache.verify import verify as verify_entries
from rbuild.cli.main import App
from rbuild.errors import InfrastructureError
from rbuild.sandbox.docker.leftovers import engine_rows
from rbuild.ui.format import duration, size, visible
from rbuild.util.disk import DiskUse

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
    help="Read all that was published, and compare it with its checksums; exit with 1 for damage.",
)
@click.pass_obj
def command(app: App, verify: bool) -> int:
    """Show what the cache directory holds: environments, trees, KDIRs and runs.

    What --verify finds damaged is not used any more: the next run that needs it makes it anew.
    """
    entries = [entry for kind in EntryKind for entry in app.cache.entries(kind)]
    checked = verify_entries(entries, app.cache) if verify else {}
    # What `rbuild clean` removes meanwhile is nothing to tell of.
    entries = [entry for entry in entries if entry.path.is_dir()]
    use = DiskUse()
    rows = [row_of(entry, use) | checked.get(entry.path, {}) for entry in entries]
    rows += leftover_rows(app.cache, use)
    rows += engine_rows(app.cache)
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
        f"{table}\n{visible(f'{size(use.total)} in {app.cache.root}')}"
        if rows
        else (f"Nothing is provisioned in {app.cache.root} yet; `rbuild setup` does it.")
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
    data = {"root": str(app.cache.root), "size_bytes": use.total, "entries": rows}
    app.console.result(text, data)
    if damaged:
        return 1
    return InfrastructureError.exit_code if unread else 0
