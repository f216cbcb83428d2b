"""An engine behind ssh: its socket, forwarded here by the user's own ssh."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from urllib.parse import urlsplit

from rbuild.errors import MissingDependency, UsageError
from rbuild.util import process
from rbuild.util.folders import remove_tree

SOCKET = "/var/run/docker.sock"
"""Where an engine listens on its host, unless DOCKER_HOST names another path."""

CONNECTS_WITHIN_S = 30
WAIT_S = 0.02
FORMS = "ssh://[USER@]HOST[:PORT][/PATH/OF/docker.sock]"


@contextmanager
def tunnel(place: str, timeout_s: float = CONNECTS_WITHIN_S) -> Iterator[str]:
    """Have the engine at ``place`` (ssh://...) on a socket of this host, while the body runs.

    Yields that socket as DOCKER_HOST would name it.  Raises UsageError for a place that can't be,
    MissingDependency where ssh can't connect without a question.
    """
    destination, port, socket = _parsed(place)
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-"))
    near = folder / "socket"
    options = ("BatchMode=yes", "ExitOnForwardFailure=yes", "ControlPath=none")
    argv = ["ssh", "-N", "-T", "-a", "-x", *(word for one in options for word in ("-o", one))]
    argv += [*port, "-L", f"{near}:{socket}", "--", destination]
    try:
        env = process.callers_environment()
        with process.beside(process.dies_with_parent(argv), env=env) as child:
            ends = time.monotonic() + min(timeout_s, CONNECTS_WITHIN_S)
            try:
                # It is there once the host has let us in.
                while not near.exists():
                    if child.poll() is not None or time.monotonic() > ends:
                        raise _refused(child, port, destination)
                    time.sleep(WAIT_S)
                yield f"unix://{near}"
            finally:
                process.terminate(child)
    finally:
        remove_tree(folder)


def _refused(child: Popen[bytes], port: list[str], destination: str) -> MissingDependency:
    process.terminate(child)
    assert child.stdout is not None
    return MissingDependency(
        f"ssh can't connect to {destination}.",
        detail=child.stdout.read().decode("utf-8", "replace").strip(),
        hint=f"`ssh {' '.join([*port, destination])} true` must work without a question: it needs "
        "a key and a known host.",
    )


def _parsed(place: str) -> tuple[str, list[str], str]:
    """Return ssh's destination, its options for the port, and the path of the engine's socket."""
    try:
        parts = urlsplit(place)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"DOCKER_HOST={place}: {error}.", hint=f"It may be {FORMS}.") from error
    if not parts.hostname or parts.password is not None or parts.query or parts.fragment:
        raise UsageError(f"DOCKER_HOST={place} names no host.", hint=f"It may be {FORMS}.")
    user = f"{parts.username}@" if parts.username else ""
    # Not parts.hostname, which is in lower case: ssh's aliases have cases.
    host = parts.netloc.rpartition("@")[2].removesuffix("" if port is None else f":{port}")
    path = parts.path if parts.path not in {"", "/"} else SOCKET
    return user + host.strip("[]"), [] if port is None else ["-p", str(port)], path


def _prefix() -> str:
    return f"rbuild-ssh-{os.getuid()}-"


def _sweep() -> None:
    """Remove the folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        found = re.match(rf"{_prefix()}(\d+)-", folder.name)
        mine = folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
        if found and mine and not Path(f"/proc/{found[1]}").exists():
            remove_tree(folder)
