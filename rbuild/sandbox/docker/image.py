"""Images: a rootfs as a Docker engine has it, and the Dockerfile that makes one.

An image is made of a rootfs in the cache (``FROM scratch`` and the rootfs as a tar), or, where
there is no mmdebstrap, of the suite's own image with the same packages.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from rbuild.cache.directory import Cache
from rbuild.cache.entry import METADATA, Entry, EntryKind
from rbuild.errors import InfrastructureError
from rbuild.sandbox.docker.engine import OURS, PASSING, Owner, cannot_run, explained, tried
from rbuild.util import process
from rbuild.util.files import read_json

if TYPE_CHECKING:
    from docker import DockerClient

REPOSITORY = "rbuild/rootfs"
PLATFORMS = {"amd64": "linux/amd64", "arm64": "linux/arm64", "armhf": "linux/arm/v7"}
"""Docker's name of each of Debian's architectures, where it isn't linux/ and the same."""

ROOTFS_LABEL = "rbuild.rootfs"
CREATED_LABEL = "rbuild.created"
PLATFORM_LABEL = "rbuild.platform"
CHUNK = 1 << 20


def platform_of(debian: str) -> str:
    """Return Docker's name of one of Debian's architectures."""
    return PLATFORMS.get(debian, f"linux/{debian}")


def obtain(client: DockerClient, root: Path, cache: Cache) -> tuple[str, str]:
    """Return the name and the platform of the image of the cache's rootfs whose root this is.

    It is built first if the engine has none, or that of an earlier rootfs of the name.  Raises
    InfrastructureError where the engine can't build it.
    """
    entry = root.parent
    metadata = read_json(entry / METADATA) or {}
    platform = platform_of(str(metadata.get("architecture")))
    name = f"{REPOSITORY}:{entry.name}"
    labels = {
        OURS: "rootfs",
        ROOTFS_LABEL: entry.name,
        CREATED_LABEL: str(metadata.get("created")),
        PLATFORM_LABEL: platform,
    }
    if _labels(client, name).items() >= labels.items():
        return name, platform
    with cache.lock(Entry(EntryKind.ROOTFS, entry.name, entry)):
        # Another rbuild may have made it meanwhile.
        if not _labels(client, name).items() >= labels.items():
            _make(client, root, name, platform, labels, cache)
    return name, platform


def _make(
    client: DockerClient,
    root: Path,
    name: str,
    platform: str,
    labels: Mapping[str, str],
    cache: Cache,
) -> None:
    """Make the image of a rootfs; the caller holds the lock of its entry."""
    entry = root.parent
    with cache.console.step(f"Making an image of {entry.name} for the Docker engine") as step:
        archive = entry / ".rootfs.tar"
        old = _id(client, name)
        try:
            _pack(root, archive)
            context = _context(scratch_dockerfile(), archive, step.update)
            build(client, context, name, platform, labels)
        finally:
            archive.unlink(missing_ok=True)
        if old is not None:
            remove(client, old)


def scratch_dockerfile() -> str:
    """Return the Dockerfile that makes an image of a rootfs.tar beside it."""
    return "FROM scratch\nADD rootfs.tar /\n"


def build(
    client: DockerClient,
    context: Iterator[bytes],
    name: str,
    platform: str,
    labels: Mapping[str, str],
    *,
    network: str = "none",
    on_line: Callable[[str], None] | None = None,
) -> None:
    """Have the engine build an image of a context, a tar with a Dockerfile in it.

    Raises InfrastructureError with the build's last lines.
    """
    lines: list[str] = []
    with explained("build an image"):
        answer = client.api.build(
            fileobj=cast("IO[bytes]", context),  # requests takes any iterable
            custom_context=True,
            tag=name,
            platform=platform,
            labels=dict(labels),
            network_mode=network,
            nocache=True,
            rm=True,
            forcerm=True,
            decode=True,
        )
        for part in answer:
            words = str(part.get("stream", "") or part.get("error", ""))
            for line in words.splitlines():
                lines.append(line)
                if on_line is not None:
                    on_line(line)
            if "error" in part:
                if "exec format error" in words:
                    raise cannot_run()
                raise InfrastructureError(
                    f"The Docker engine can't build {name}: {words.strip()}",
                    detail="\n".join(lines[-15:]),
                )


def images(client: DockerClient) -> list[dict[str, Any]]:
    """Return what the engine says of rbuild's images (the API's ImageSummary)."""
    found: list[dict[str, Any]] = client.api.images(filters={"label": f"{OURS}=rootfs"})
    return found


def remove_stale(client: DockerClient, cache: Cache) -> list[str]:
    """Remove the images of rootfses that the cache has no more; return their names.

    Another cache on the same engine makes its own anew when it needs them.
    """
    removed = []
    for one in images(client):
        name = (one.get("Labels") or {}).get(ROOTFS_LABEL, "")
        if name and not (cache.root / EntryKind.ROOTFS / name / METADATA).exists():
            remove(client, one["Id"])
            removed.append(f"{REPOSITORY}:{name}")
    return removed


def status_of(client: DockerClient, program: bytes, platform: str) -> int:
    """Return the exit status of a static program in a container that has nothing else.

    Nothing of it stays.  Raises MissingDependency where the engine can't run such programs,
    InfrastructureError where it fails.
    """
    name = f"rbuild/passing:{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory(prefix="rbuild-") as folder:
        archive = Path(folder, "rootfs.tar")
        with tarfile.open(archive, "w") as packed:
            header = tarfile.TarInfo("program")
            header.size, header.mode = len(program), 0o755
            packed.addfile(header, io.BytesIO(program))
        context = _context(scratch_dockerfile(), archive, None)
        build(client, context, name, platform, Owner.this().labels(PASSING))
    try:
        with explained("run a container"):
            return tried(client, name, ["/program"], platform)[0]
    finally:
        remove(client, name)


def _pack(root: Path, archive: Path) -> None:
    owner = ["--numeric-owner"] if os.geteuid() == 0 else ["--owner=0", "--group=0"]
    words = ["tar", "--create", f"--file={archive}", f"--directory={root}", "--sort=name", *owner]
    process.run(process.dies_with_parent([*words, "--exclude=./dev/*", "."]))


def _context(
    text: str, archive: Path | None, tell: Callable[[str], None] | None
) -> Iterator[bytes]:
    """Yield a tar of a Dockerfile and the rootfs's own tar, without a second copy of that."""
    body = text.encode()
    header = tarfile.TarInfo("Dockerfile")
    header.size = len(body)
    yield header.tobuf() + body + _padding(len(body))
    if archive is not None:
        header = tarfile.TarInfo("rootfs.tar")
        header.size = archive.stat().st_size
        yield header.tobuf(tarfile.GNU_FORMAT)
        sent = 0
        with archive.open("rb") as file:
            while chunk := file.read(CHUNK):
                sent += len(chunk)
                if tell is not None:
                    tell(f"{sent // CHUNK} of {header.size // CHUNK} MiB sent")
                yield chunk
        yield _padding(header.size)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _padding(count: int) -> bytes:
    return b"\0" * (-count % tarfile.BLOCKSIZE)


def _labels(client: DockerClient, name: str) -> dict[str, str]:
    data = _inspect(client, name)
    return dict((data.get("Config") or {}).get("Labels") or {})


def _id(client: DockerClient, name: str) -> str | None:
    found = _inspect(client, name).get("Id")
    return None if found is None else str(found)


def _inspect(client: DockerClient, name: str) -> dict[str, Any]:
    from docker.errors import ImageNotFound  # noqa: PLC0415 - the SDK loads slowly

    with explained("look for an image"):
        try:
            found: dict[str, Any] = client.api.inspect_image(name)
        except ImageNotFound:
            return {}
    return found


def remove(client: DockerClient, name: str) -> None:
    """Remove an image, if nothing uses it."""
    from docker.errors import DockerException  # noqa: PLC0415 - the SDK loads slowly

    with suppress(DockerException):
        client.api.remove_image(name)
