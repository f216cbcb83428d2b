"""Images: a rootfs as a Docker engine has it, and the Dockerfile that makes one.

An image is made of a rootfs in the Store (``FROM scratch`` and the rootfs as a tar), or, where
there is no mmdebstrap, of the suite's own image with the same packages.
"""

from __future__ import annotations

import io
import os
import shlex
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from rbuild import process
from rbuild.console import visible
from rbuild.environment import Environment, Rootfs
from rbuild.errors import InfrastructureError
from rbuild.sandbox.engine import OURS, PASSING, Owner, cannot_run, explained, tried
from rbuild.store import METADATA, Entry, Room, Store, read_json

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


def obtain(client: DockerClient, root: Path, store: Store) -> tuple[str, str]:
    """Return the name and the platform of the image of the Store's rootfs whose root this is.

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
    with store.lock(Entry(Room.ROOTFS, entry.name, entry)):
        # Another rbuild may have made it meanwhile.
        if not _labels(client, name).items() >= labels.items():
            _make(client, root, name, platform, labels, store)
    return name, platform


def _make(
    client: DockerClient,
    root: Path,
    name: str,
    platform: str,
    labels: Mapping[str, str],
    store: Store,
) -> None:
    """Make the image of a rootfs; the caller holds the lock of its entry."""
    entry = root.parent
    with store.console.step(f"Making an image of {entry.name} for the Docker engine") as step:
        archive = entry / ".rootfs.tar"
        old = _id(client, name)
        try:
            _pack(root, archive)
            context = _context(scratch_dockerfile(), archive, step.update)
            build(client, context, name, platform, labels)
        finally:
            archive.unlink(missing_ok=True)
        if old is not None:
            _remove(client, old)


def scratch_dockerfile() -> str:
    """Return the Dockerfile that makes an image of a rootfs.tar beside it."""
    return "FROM scratch\nADD rootfs.tar /\n"


def debian_dockerfile(
    rootfs: Rootfs, stage: str = "", mirrors: Sequence[str] = (), proxies: Sequence[str] = ()
) -> str:
    """Return the Dockerfile of a rootfs with the same packages, from the suite's own image.

    ``stage`` names it for what copies from it; ``mirrors`` (apt source lines) and ``proxies``
    (lines of apt's configuration) stand in for the image's own.
    """
    from rbuild.rootfs import NOT_INSTALLED  # noqa: PLC0415 - it imports the sandbox, too

    suite = rootfs.definition.suite
    named = f" AS {stage}" if stage else ""
    # An image that isn't whole is never used: nothing need be on the disk at once.
    options = " ".join(shlex.quote(option) for option in (*NOT_INSTALLED, "force-unsafe-io"))
    packages = " \\\n        ".join(map(shlex.quote, sorted(rootfs.definition.all_packages)))
    folders = shlex.join(rootfs.mount_points)
    own = ""
    if mirrors:
        own = f"RUN rm -f /etc/apt/sources.list.d/* && {_written(mirrors, 'sources.list')}\n"
    for other in rootfs.definition.other_suites:
        own += f"RUN {_added(suite, other, is_list=bool(mirrors))}\n"
    if proxies:
        own += f"RUN {_written(proxies, 'apt.conf.d/rbuild')}\n"
    return (
        f"FROM --platform={platform_of(rootfs.architecture.debian)} debian:{suite}{named}\n"
        f"{own}"
        f"RUN printf '%s\\n' {options} >/etc/dpkg/dpkg.cfg.d/rbuild \\\n"
        "    && apt-get update \\\n"
        "    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends -- \\\n"
        f"        {packages} \\\n"
        "    && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb \\\n"
        f"    && mkdir -p -- {folders}\n"
    )


def _added(suite: str, other: str, *, is_list: bool) -> str:
    """Return what adds a suite to an image's sources, on the mirror of its own suite."""
    if is_list:
        source, rule = "sources.list", f"s/^(deb .*) {suite} main$/\\1 {other} main/p"
    else:
        source = "sources.list.d/debian.sources"
        rule = f"s/^Suites: {suite} .*/Suites: {other}/; /^$/q; p"
    target = f"sources.list.d/{other}.{'list' if is_list else 'sources'}"
    return f"sed -nE {shlex.quote(rule)} /etc/apt/{source} >/etc/apt/{target}"


def _written(lines: Sequence[str], name: str) -> str:
    words = " ".join(shlex.quote(line) for line in lines)
    return f"printf '%s\\n' {words} >/etc/apt/{name}"


def dockerfile(environment: Environment) -> str:
    """Return a Dockerfile that makes an image of an environment from Debian's own images.

    A hybrid's copies the native programs over the emulated ones.
    """
    what = visible(f"{environment.name}: {environment.description}")
    lines = [f"# {what}"] if environment.description else []
    if environment.native is None:
        return "\n".join([*lines, debian_dockerfile(environment.base)])
    host = environment.native.architecture
    folders = " ".join(host.fill(name) for name in environment.folders)
    programs = " ".join(environment.programs)
    gather = (
        f"RUN for folder in {folders}; do \\\n"
        '        cp -a --parents -- "$(readlink -f -- $folder)" /layer; \\\n'
        "    done; \\\n"
        f"    for program in {programs}; do \\\n"
        '        path=$(command -v "$program") || continue; \\\n'
        '        cp -a --parents -- "$(readlink -f -- "$path")" /layer; \\\n'
        "    done\n"
    )
    return "\n".join(
        [
            *lines,
            debian_dockerfile(environment.native, "native") + "RUN mkdir /layer\n" + gather,
            debian_dockerfile(environment.base) + "COPY --from=native /layer/ /\n",
        ]
    )


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


def remove_stale(client: DockerClient, store: Store) -> list[str]:
    """Remove the images of rootfses that the Store has no more; return their names.

    Another Store on the same engine makes its own anew when it needs them.
    """
    removed = []
    for one in images(client):
        name = (one.get("Labels") or {}).get(ROOTFS_LABEL, "")
        if name and not (store.root / Room.ROOTFS / name / METADATA).exists():
            _remove(client, one["Id"])
            removed.append(f"{REPOSITORY}:{name}")
    return removed


def export(
    client: DockerClient, rootfs: Rootfs, root: Path, on_line: Callable[[str], None]
) -> None:
    """Make a rootfs without mmdebstrap: have the engine build it, and unpack it at ``root``.

    Raises as ``build`` does, also where the engine can't fetch the suite's image.
    """
    from rbuild.rootfs import host_mirrors, proxy_options  # noqa: PLC0415 - it imports the sandbox

    platform = platform_of(rootfs.architecture.debian)
    name = f"rbuild/provision:{rootfs.definition.name}-{os.getpid()}"
    mirrors = host_mirrors(rootfs.definition.suite)
    text = debian_dockerfile(rootfs, mirrors=mirrors, proxies=proxy_options())
    context = _context(text, None, None)
    labels = Owner.this().labels(PASSING)
    build(client, context, name, platform, labels, network="host", on_line=on_line)
    try:
        with explained("export an image"):
            container = client.api.create_container(
                name, ["/"], platform=platform, labels=Owner.this().labels()
            )
            try:
                _unpack(client.api.export(container["Id"], CHUNK), root)
            finally:
                client.api.remove_container(container["Id"], force=True)
    finally:
        _remove(client, name)


def status_of(client: DockerClient, program: bytes, platform: str) -> int:
    """Return the exit status of a static program in a container that has nothing else.

    Nothing of it stays.  Raises HostLacks where the engine can't run such programs,
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
        _remove(client, name)


def _unpack(chunks: Iterator[bytes], root: Path) -> None:
    """Unpack a tar as it comes; an ordinary user's files become the user's own."""
    from rbuild.rootfs import settle, unpacking  # noqa: PLC0415 - it imports the sandbox, too

    root.mkdir()
    argv = ["tar", "--extract", f"--directory={root}", "--anchored", "--exclude=dev/*"]
    if os.geteuid() != 0:
        argv = unpacking(root)
    with process.beside(argv) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        # tar ends before its input does at the archive's end, or if it fails.
        with suppress(BrokenPipeError):
            for chunk in chunks:
                child.stdin.write(chunk)
        with suppress(BrokenPipeError):
            child.stdin.close()
        words = [process.plain(line) for line in child.stdout]
        if child.wait() != 0:
            raise InfrastructureError(
                f"The exported image can't be unpacked at {root}.", detail="\n".join(words[-20:])
            )
    if os.geteuid() != 0:
        settle(root)


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


def _remove(client: DockerClient, name: str) -> None:
    """Remove an image, if nothing uses it."""
    from docker.errors import DockerException  # noqa: PLC0415 - the SDK loads slowly

    with suppress(DockerException):
        client.api.remove_image(name)
