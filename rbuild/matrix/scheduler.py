"""What client and workers of a cluster need of Dask: whether it is there, an address, TLS.

Whoever reaches a scheduler or a worker can have it run programs.  Beyond this machine, they are
therefore used with TLS only, unless the user accepts the risk by --insecure.

Dask is imported where it is used: it is an extra, and slow to import.
"""

from __future__ import annotations

import importlib
import logging
import re
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from rbuild.errors import InfrastructureError, MissingDependency, UsageError
from rbuild.util.home import at_home
from rbuild.util.textfile import read_bytes

if TYPE_CHECKING:
    from distributed.security import Security

TCP, TLS = "tcp", "tls"
INSECURE = "--insecure"
MAX_PORT = 65535
LISTENING = "0A"
"""The state of a socket in /proc/net/tcp (proc_pid_net(5)) that accepts connections."""

IpAddress = IPv4Address | IPv6Address


MAX_CERTIFICATE = 1 << 20
"""The bytes of the largest file with a key or with certificates."""


@dataclass(frozen=True)
class Certificates:
    """The files that TLS needs: the CA's certificate, one's own, and its key, all PEM."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True)
class Scheduler:
    """Where a cluster meets: its scheduler's address, and the certificates if that is TLS.

    ``insecure`` allows an address without TLS that others than this machine's users reach.
    """

    address: str
    certificates: Certificates | None
    insecure: bool = False

    def resolve(self, warn: Callable[[str], None]) -> list[str]:
        """Return the scheduler's address, once for each IP address of its host.

        Raises InfrastructureError if the host's name can't be resolved, UsageError if the address
        is one to listen on, or isn't encrypted and others reach it (see ``exposure``); with
        ``insecure``, that is a warning.
        """
        scheme, _, rest = self.address.partition("://")
        host, _, port = rest.rpartition(":")
        found = _resolve(host.removeprefix("[").removesuffix("]"), int(port), self.address)
        if any(one.is_unspecified for one in found):
            raise UsageError(
                f"{self.address} is a wildcard address: a server can listen on it, but clients "
                "can't connect to it.",
                hint=f"Name the scheduler's host, or use {scheme}://127.0.0.1:{port} on the "
                "scheduler's machine.",
            )
        if self.certificates is None and (why := exposure(found, int(port))):
            risk = f"{self.address} is not encrypted, and {why}: others can run programs here."
            if not self.insecure:
                raise UsageError(
                    risk,
                    hint=f"Use tls:// (docs/how-to/matrix.md), or accept the risk with {INSECURE}.",
                )
            warn(risk)
        hosts = (f"[{one}]" if isinstance(one, IPv6Address) else f"{one}" for one in found)
        return [f"{scheme}://{host}:{port}" for host in hosts]

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


def scheduler_at(
    address: str,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    *,
    insecure: bool = False,
) -> Scheduler:
    """Return where to meet; an address without a scheme is TCP, or TLS with certificates.

    Raises UsageError for an address that is none, or if it and the certificates don't fit.
    """
    given = [path for path in (ca, cert, key) if path is not None]
    scheme, separator, rest = address.rpartition("://")
    scheme = scheme if separator else TLS if given else TCP
    host, _, port = rest.rpartition(":")
    is_port = re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) <= MAX_PORT
    if scheme not in {TCP, TLS} or not host or not is_port:
        raise UsageError(
            f"{address} is no scheduler's address.",
            hint="Such as tls://buildbox:8786, or tcp://127.0.0.1:8786.",
        )
    if scheme == TCP and given:
        raise UsageError(f"{address} is not encrypted: --tls-* need an address with tls://.")
    if scheme == TCP:
        return Scheduler(f"{scheme}://{rest}", None, insecure)
    if insecure:
        raise UsageError(f"{address} uses TLS: omit {INSECURE}.")
    if ca is None or cert is None or key is None:
        raise UsageError("tls:// needs --tls-ca, --tls-cert and --tls-key.")
    return Scheduler(f"{scheme}://{rest}", Certificates(ca, cert, key))


def exposure(addresses: list[IpAddress], port: int) -> str | None:
    """Return why others than this machine's users reach a scheduler; None if they don't.

    A scheduler that listens on all interfaces is reached by others, too, if it is called by the
    loopback's address.
    """
    for one in addresses:
        if not one.is_loopback:
            return f"{one} is beyond this machine's loopback interface"
    listeners = set(_listeners(port))
    others = sorted(str(one) for one in listeners if not one.is_loopback)
    # The kernel prefers a listener on just this address to one on all.
    if others and not listeners.issuperset(addresses):
        return f"its scheduler listens on {others[0]}"
    return None


def _resolve(host: str, port: int, address: str) -> list[IpAddress]:
    """Return the IP addresses of a host; those of IPv4 that are written as IPv6 are IPv4."""
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "invalid host name"
        raise InfrastructureError(f"No scheduler answers at {address}: {reason}.") from error
    return list(dict.fromkeys(_unmapped(ip_address(str(info[4][0]))) for info in infos))


def _unmapped(address: IpAddress) -> IpAddress:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def _listeners(port: int) -> Iterator[IpAddress]:
    """Yield the addresses on which programs of this network namespace listen on a TCP port."""
    for name in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", name).read_text(encoding="ascii").splitlines()[1:]
        except OSError:  # a kernel without IPv6
            continue
        for line in lines:
            _, local, _, state, *_ = line.split()
            digits, _, number = local.partition(":")
            if state == LISTENING and int(number, 16) == port:
                # Words of 32 bits in network byte order, each printed as a number of the host's.
                words = (digits[at : at + 8] for at in range(0, len(digits), 8))
                yield _unmapped(
                    ip_address(b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words))
                )


def _readable(name: str, path: Path) -> str:
    """Return the path of a file that can be read; raise UsageError if it can't."""
    path = at_home(path, f"--tls-{name}")
    read_bytes(path, limit=MAX_CERTIFICATE, where=f"--tls-{name}")
    return str(path)


def require() -> None:
    """Raise MissingDependency if Dask can't be imported; keep its own log off the screen."""
    try:
        importlib.import_module("distributed")
    except ImportError as error:
        raise MissingDependency(
            f"Several machines need Dask.distributed: {error}.",
            hint="pip install 'rbuild[cluster]'",
        ) from error
    for name in ("distributed", "tornado", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Its children were given levels of their own, which would win.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("distributed."):
            logging.getLogger(name).setLevel(logging.NOTSET)
