"""``rbuild worker``: make this machine one of those that a matrix is built on."""

from __future__ import annotations

import ipaddress
import socket
import tempfile
from pathlib import Path

import click

from rbuild.cli import App
from rbuild.cli.options import cluster_options, session

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
    name: str | None,
) -> None:
    """Take builds of `rbuild matrix` from a Dask scheduler, one at a time, until interrupted.

    They are made in this machine's own cache directory.  Whoever can reach the scheduler can run
    programs here: beyond a network that you trust, use TLS.
    """
    from rbuild.matrix.meeting import meeting, require  # noqa: PLC0415

    found = meeting(scheduler, tls_ca, tls_cert, tls_key)
    require()
    from rbuild.matrix.remote import serve  # noqa: PLC0415 - it needs Dask
    from rbuild.matrix.task import Place  # noqa: PLC0415

    if found.certificates is None and not _is_here(found.address):
        app.console.warn("Without TLS, whoever can reach the scheduler can run programs here.")
    made = session(app, "worker", "bwrap", None)
    with tempfile.TemporaryDirectory(prefix="worker-", dir=made.run_folder) as folder:
        place = Place(name or socket.gethostname(), app.store.root, Path(folder))
        serve(found, place, app.console)


def _is_here(address: str) -> bool:
    """Tell whether an address can be reached from this machine only."""
    host = address.partition("://")[2].rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
