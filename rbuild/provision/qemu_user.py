"""The emulator of an environment: which QEMU runs its programs, and how a sandbox comes by it.

QEMU's user mode becomes faster with most releases, and a host has the one of its own Debian.  Since
Linux 6.7 a user namespace can have a binfmt_misc of its own (Documentation/admin-guide/
binfmt-misc.rst), so that a sandbox brings its QEMU along, and the host's registration, which is
everybody's, stays as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbuild.cache.directory import Cache
from rbuild.cache.entry import Entry, EntryKind
from rbuild.errors import InfrastructureError, MissingDependency, ProcessFailed
from rbuild.provision.mirrors import host_mirrors
from rbuild.sandbox import binfmt
from rbuild.specs.environment import Environment, Rootfs
from rbuild.util import process
from rbuild.util.folders import remove_tree
from rbuild.util.hashes import digest

PACKAGE = "qemu-user"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Emulator:
    """A QEMU: its version, and where it is; ``program`` is None for the host's registered one."""

    version: str
    program: Path | None = None

    def describe(self, variables: Mapping[str, str]) -> str:
        """Return its version and how ``variables`` set it up."""
        model = variables.get("QEMU_CPU", "its default")
        more = "".join(
            f", {name}={value}"
            for name, value in sorted(variables.items())
            if name.startswith("QEMU_") and name != "QEMU_CPU"
        )
        return f"{self.version}, CPU model {model}{more}"


def obtain(environment: Environment, cache: Cache) -> Emulator | None:
    """Return what runs an environment's emulated programs; None where it has none.

    That is the newest QEMU of the suites that the definition names, downloaded once, where this
    host lets a sandbox bring its own; else the host's.  Raises MissingDependency where that isn't
    registered.
    """
    base = environment.base
    if not base.emulated:
        return None
    if not is_hosts(base):
        try:
            return _own(base, cache)
        except (InfrastructureError, MissingDependency) as error:
            cache.console.warn(f"{error.message} The host's own QEMU runs {environment.name}.")
    binfmt.require(base.architecture)
    return Emulator(_host_version(base))


def is_hosts(base: Rootfs) -> bool:
    """Tell whether the host's QEMU has to run a rootfs's programs."""
    return base.emulated and not (base.definition.emulator and binfmt.private())


def _own(base: Rootfs, cache: Cache) -> Emulator:
    """Return the QEMU of the definition's suites; fetch it if it isn't there."""
    suites = base.definition.emulator
    program = f"qemu-{base.architecture.qemu}"
    key = {"package": PACKAGE, "suites": suites, "host": base.host.debian, "program": program}
    entry = cache.entry(EntryKind.EMULATORS, f"{program}-{suites[-1]}", digest(key))
    metadata = cache.get_or_make(
        entry, lambda: cache.use(entry), lambda: _fetch(entry, base, program, cache)
    )
    return Emulator(f"qemu-user {metadata.get('version')}", entry.path / program)


def _fetch(entry: Entry, base: Rootfs, program: str, cache: Cache) -> dict[str, Any]:
    """Publish ``program`` out of Debian's package, which the host's apt downloads and verifies."""
    partial = cache.partial(entry)
    work = partial / "download"
    work.mkdir()
    title = f"Fetching {PACKAGE}, the newest for {base.definition.suite}"
    with cache.console.step(title, key=base.host.debian) as step:
        tell = cache.console.teller(step)
        apt = _apt(work, base)
        try:
            process.run([*apt, "update"], cwd=work, on_line=tell)
            process.run([*apt, "download", PACKAGE], cwd=work, on_line=tell)
            (package,) = work.glob("*.deb")
            version = process.capture(["dpkg-deb", "--field", "--", str(package), "Version"])
            process.run(["dpkg-deb", "--extract", "--", str(package), str(work / "files")])
        except (ProcessFailed, ValueError) as error:
            raise InfrastructureError(
                f"{PACKAGE} could not be downloaded.", detail=getattr(error, "detail", "")
            ) from error
        (work / "files/usr/bin" / program).rename(partial / program)
        remove_tree(work)
        metadata = {"version": version, "architecture": base.host.debian}
        return cache.publish(entry, partial, metadata)


def _apt(work: Path, base: Rootfs) -> list[str]:
    """Return an apt-get that knows only the definition's suites, and leaves the host's lists alone.

    The suite that is named last is preferred.
    """
    suites = base.definition.emulator
    for name in ("lists/partial", "cache/archives/partial", "state"):
        (work / name).mkdir(parents=True)
    (work / "sources.list").write_text("\n".join(_sources(suites)) + "\n")
    architecture = base.host.debian
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Default-Release": suites[-1],
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Dir::Cache": work / "cache",
        "Dir::Etc::SourceList": work / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State": work / "state",
        "Dir::State::Lists": work / "lists",
        "Dir::State::Status": "/dev/null",
    }
    return ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items())]


def _sources(suites: Sequence[str]) -> list[str]:
    """Return apt's lines for the suites, on the mirrors that the host uses."""
    lines = [line for suite in suites for line in host_mirrors(suite)[:1]]
    if not lines:
        raise InfrastructureError("This host's apt names no Debian mirror.")
    return [line.replace("deb ", f"deb [signed-by={KEYRING}] ", 1) for line in lines]


def _host_version(base: Rootfs) -> str:
    """Return the version of the host's QEMU, as it says itself."""
    names = [name.format(qemu=base.architecture.qemu) for name in binfmt.PROGRAMS]
    program = next((name for name in names if shutil.which(name)), None)
    if program is None:
        return "an unknown QEMU"
    try:
        return process.capture([program, "--version"]).splitlines()[0]
    except (MissingDependency, ProcessFailed, IndexError):
        return "an unknown QEMU"
