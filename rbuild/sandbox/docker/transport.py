"""How the host's files get into a container, and back out of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

from rbuild.sandbox.runtime import Bind

if TYPE_CHECKING:
    import docker.types

FOLDER = "volumes"
"""In the cache: what is known of the volumes in engines that don't see this host's files."""


class FileTransport(Protocol):
    """How the host's files appear in a container."""

    def mount(self, binds: Sequence[Bind]) -> AbstractContextManager[list[docker.types.Mount]]:
        """Make ``binds`` visible in a container while the body runs.

        What the container wrote into writable ones is in the host's folders at the end, also if
        the body raises.
        """
        ...


class Shared:
    """Bind mounts: for an engine that sees this host's files."""

    @contextmanager
    def mount(self, binds: Sequence[Bind]) -> Iterator[list[docker.types.Mount]]:
        """Yield a bind mount for each; the engine makes no missing folder of this type."""
        yield bind_mounts(binds)


def bind_mounts(binds: Sequence[Bind]) -> list[docker.types.Mount]:
    """Return the mounts of what an engine sees where this host has it."""
    from docker.types import Mount  # noqa: PLC0415 - the SDK loads slowly

    return [
        Mount(bind.target, str(bind.source), type="bind", read_only=not bind.writable)
        for bind in binds
    ]
