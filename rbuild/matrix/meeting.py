"""What client and workers of a cluster need of Dask: whether it is there, an address, TLS.

Dask is imported where it is used: it is an extra, and slow to import.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rbuild.errors import HostLacks, UsageError
from rbuild.home import at_home

if TYPE_CHECKING:
    from distributed.security import Security

TCP, TLS = "tcp", "tls"


@dataclass(frozen=True)
class Certificates:
    """The files that TLS needs: the CA's certificate, one's own, and its key, all PEM."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True)
class Meeting:
    """Where a cluster meets: its scheduler's address, and the certificates if that is TLS."""

    address: str
    certificates: Certificates | None

    def security(self) -> Security:
        """Return what Dask wants to know of TLS.

        Raises UsageError if a certificate or the key is none, or can't be read.
        """
        from distributed.security import Security  # noqa: PLC0415

        if self.certificates is None:
            return Security(require_encryption=False)
        ca, cert, key = (
            _readable(name, getattr(self.certificates, name)) for name in ("ca", "cert", "key")
        )
        made = Security(
            require_encryption=True,
            tls_ca_file=ca,
            tls_client_cert=cert,
            tls_client_key=key,
            tls_worker_cert=cert,
            tls_worker_key=key,
        )
        try:
            made.get_connection_args("worker")
        except OSError as error:  # ssl.SSLError is one
            reason = error.strerror or str(error)
            raise UsageError(
                f"{ca}, {cert} and {key} can't be used for TLS: {reason}.",
                hint="They are PEM files: the CA's certificate, one that it signed, and its key.",
            ) from error
        return made


def meeting(address: str, ca: Path | None, cert: Path | None, key: Path | None) -> Meeting:
    """Return where to meet; an address without a scheme is TCP, or TLS with certificates.

    Raises UsageError for an address that is none, or if it and the certificates don't fit.
    """
    given = [path for path in (ca, cert, key) if path is not None]
    scheme, separator, rest = address.rpartition("://")
    scheme = scheme if separator else TLS if given else TCP
    host, _, port = rest.rpartition(":")
    if scheme not in {TCP, TLS} or not host or not port.isdigit():
        raise UsageError(
            f"{address} is no scheduler's address.",
            hint="Such as tls://buildbox:8786, or tcp://127.0.0.1:8786.",
        )
    if scheme == TCP and given:
        raise UsageError(f"{address} is not encrypted: --tls-* need an address with tls://.")
    if scheme == TCP:
        return Meeting(f"{scheme}://{rest}", None)
    if ca is None or cert is None or key is None:
        raise UsageError("tls:// needs --tls-ca, --tls-cert and --tls-key.")
    return Meeting(f"{scheme}://{rest}", Certificates(ca, cert, key))


def _readable(name: str, path: Path) -> str:
    """Return the path of a file that can be read; raise UsageError if it can't."""
    path = at_home(path, f"--tls-{name}")
    try:
        path.read_bytes()
    except OSError as error:
        raise UsageError(f"--tls-{name}: {path} can't be read: {error.strerror}.") from error
    return str(path)


def require() -> None:
    """Raise HostLacks if Dask can't be imported; keep its own log off the screen."""
    try:
        importlib.import_module("distributed")
    except ImportError as error:
        raise HostLacks(
            f"Several machines need Dask.distributed: {error}.",
            hint="pip install 'rbuild[cluster]'",
        ) from error
    for name in ("distributed", "tornado", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Its children were given levels of their own, which would win.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("distributed."):
            logging.getLogger(name).setLevel(logging.NOTSET)
