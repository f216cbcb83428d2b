"""``rbuild worker``: make this machine one of those that a matrix is built on."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import click

from rbuild.cli.main import App
from rbuild.cli.options import build_context, cluster_options

EPILOG = """\b
Examples:
  rbuild worker --scheduler tcp://127.0.0.1:8786
  rbuild worker --scheduler tls://buildbox:8786 --name pi5
"""


@click.command(epilog=EPILOG)
@cluster_options(required=True)
@click.option(
    "--name",
    metavar="NAME",
    help="What reports call this machine [default: its host name].",
)
@click.pass_obj
def command(
    app: App,
    scheduler: str,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    name: str | None,
) -> None:
    """Take builds of `rbuild matrix` from a Dask scheduler, one at a time, until interrupted.

    They are made in this machine's own cache directory.  Whoever can reach the scheduler or this
    worker can run programs here: it listens only where it reaches the scheduler, and beyond this
    machine only with TLS, or with --insecure.
    """
    from rbuild.matrix.scheduler import require, scheduler_at  # noqa: PLC0415

    found = scheduler_at(scheduler, tls_ca, tls_cert, tls_key, insecure=insecure)
    require()
    from rbuild.matrix.remote import serve  # noqa: PLC0415 - it needs Dask
    from rbuild.matrix.task import Place  # noqa: PLC0415

    made = build_context(app, "worker", "bwrap", None)
    with tempfile.TemporaryDirectory(prefix="worker-", dir=made.run_folder) as folder:
        place = Place(name or socket.gethostname(), app.cache.root, Path(folder))
        serve(found, place, app.console)
