"""Rootfses made by a Docker engine from Debian's own images, where mmdebstrap is missing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from docker import DockerClient

from rbuild.errors import InfrastructureError
from rbuild.provision.mmdebstrap import fix_modes, unpacking
from rbuild.sandbox.docker.engine import PASSING, Owner, explained
from rbuild.sandbox.docker.image import CHUNK, _context, build, platform_of, remove
from rbuild.specs.environment import Environment, Rootfs
from rbuild.ui.format import visible
from rbuild.util import process


def debian_dockerfile(
    rootfs: Rootfs, stage: str = "", mirrors: Sequence[str] = (), proxies: Sequence[str] = ()
) -> str:
    """Return the Dockerfile of a rootfs with the same packages, from the suite's own image.

    ``stage`` names it for what copies from it; ``mirrors`` (apt source lines) and ``proxies``
    (lines of apt's configuration) stand in for the image's own.
    """
    from rbuild.provision.mmdebstrap import NOT_INSTALLED  # noqa: PLC0415 - it imports the sandbox, too

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


def export(
    client: DockerClient, rootfs: Rootfs, root: Path, on_line: Callable[[str], None]
) -> None:
    """Make a rootfs without mmdebstrap: have the engine build it, and unpack it at ``root``.

    Raises as ``build`` does, also where the engine can't fetch the suite's image.
    """
    from rbuild.provision.mirrors import host_mirrors, proxy_options  # noqa: PLC0415 - it imports the sandbox

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
        remove(client, name)


def _unpack(chunks: Iterator[bytes], root: Path) -> None:
    """Unpack a tar as it comes; an ordinary user's files become the user's own."""
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
        fix_modes(root)
