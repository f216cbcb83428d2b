"""Provisioning: a Debian rootfs made by mmdebstrap from a definition, published in the cache."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rbuild.cache.directory import Cache
from rbuild.cache.entry import Entry, EntryKind
from rbuild.cache.records import Record, Text
from rbuild.errors import (
    FREE_SPACE,
    InfrastructureError,
    MissingDependency,
    ProcessFailed,
    RbuildError,
)
from rbuild.provision.mirrors import find_mirrors
from rbuild.provision.mmdebstrap import debootstrap
from rbuild.sandbox import binfmt
from rbuild.specs.environment import Rootfs
from rbuild.ui.step import Step
from rbuild.util.hashes import digest

SPACE_NEEDED = 4 * 1024**3
"""Bytes that a rootfs takes at most while it is being made."""

NETWORK_WORDS = re.compile(
    r"Could not (connect|resolve)|Temporary failure|Failed to fetch|Unable to fetch|"
    r"Connection (failed|refused|timed out)|Network is unreachable|does not have a Release file"
)
MISMATCH_WORDS = re.compile(
    r"File has unexpected size|Hash Sum mismatch|Release file for \S+ is expired"
)
SPACE_WORDS = re.compile(r"No space left on device|enough (free )?space|Disk quota exceeded")


@dataclass(frozen=True)
class Provisioned:
    """A rootfs that is in the cache: where, and the version of each of its packages."""

    path: Path
    key: str
    packages: dict[str, str]
    seconds: float
    cached: bool
    created: float


Make = Callable[[Rootfs, Path, Callable[[str], None]], None]
"""Makes a rootfs in a folder that isn't there yet, and tells each line of what it does."""


def provision(
    rootfs: Rootfs, cache: Cache, *, force: bool = False, make: Make | None = None
) -> Provisioned:
    """Return the rootfs from the cache, or make it first (``make``: by mmdebstrap).

    Raises MissingDependency where mmdebstrap or emulation is missing, InfrastructureError where the
    mirror can't be reached or the disk is full.
    """
    entry = entry_of(rootfs, cache)
    return cache.get_or_make(
        entry,
        lambda: None if force else _found(entry, cache),
        lambda: _make(rootfs, cache, entry, make),
    )


def entry_of(rootfs: Rootfs, cache: Cache) -> Entry:
    """Return a rootfs's place in the cache, named by its inputs."""
    return cache.entry(EntryKind.ROOTFS, rootfs.label, digest(rootfs.inputs))


def _found(entry: Entry, cache: Cache) -> Provisioned | None:
    metadata = cache.use(entry)
    if metadata is None:
        return None
    record = RootfsRecord.read(metadata)
    return None if record is None else _provisioned(entry, record, cached=True)


class RootfsRecord(Record):
    """What a rootfs's metadata says of it."""

    packages: dict[Text, Text]
    seconds: float
    created: float


def _provisioned(entry: Entry, record: RootfsRecord, *, cached: bool) -> Provisioned:
    return Provisioned(
        entry.path / "root",
        entry.name,
        record.packages,
        record.seconds,
        cached=cached,
        created=record.created,
    )


def _make(rootfs: Rootfs, cache: Cache, entry: Entry, make: Make | None) -> Provisioned:
    definition = rootfs.definition
    if make is None:
        make = debootstrap
        if rootfs.emulated:
            binfmt.require(rootfs.architecture)
    cache.need_space(SPACE_NEEDED, f"The {definition.name} rootfs")
    title = f"Provisioning {definition.name} ({definition.suite}, {rootfs.architecture.debian})"
    started = time.monotonic()
    partial = cache.partial(entry)
    root = partial / "root"
    if warning := find_mirrors().warning:
        cache.console.warn(warning)
    maker, parts = ("mmdebstrap", 2) if make is debootstrap else ("engine", 1)
    with cache.console.step(title, key=f"{entry.name} {maker}") as step:
        try:
            make(rootfs, root, _Watcher(step, cache, parts))
        except ProcessFailed as error:
            raise _explain(error, definition.name) from error
        metadata = {
            "definition": definition.model_dump(mode="json"),
            "architecture": rootfs.architecture.debian,
            "packages": installed(root),
            "seconds": time.monotonic() - started,
        }
        metadata = cache.publish(entry, partial, metadata)
    cache.use(entry)
    return _provisioned(entry, RootfsRecord.model_validate(metadata), cached=False)


def installed(root: Path) -> dict[str, str]:
    """Return the version of each package that dpkg's status file calls installed."""
    found: dict[str, str] = {}
    for block in (root / "var/lib/dpkg/status").read_text(errors="replace").split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if re.match(r"[A-Z][\w-]*: ", line)
        )
        whole = {"Package", "Version"} <= fields.keys()
        if whole and fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields["Version"]
    return found


def same_version(one: str, other: str) -> bool:
    """Tell whether two Debian versions are of the same source.

    ``+b1`` marks a mere rebuild, ``cross1`` the cross compiler made of the same gcc.
    """
    rebuilt = re.compile(r"(\+b|cross)\d+$")
    return rebuilt.sub("", one) == rebuilt.sub("", other)


class _Watcher:
    """Reads mmdebstrap's and apt's output into progress: packages set up, of those to come.

    mmdebstrap lets apt install the essential packages first; only after them apt tells how many
    others there are.  ``parts`` is how often it has to tell until all are known.
    """

    def __init__(self, step: Step, cache: Cache, parts: int) -> None:
        self._step = step
        self._parts = parts
        self._console = cache.console
        self._expected: list[int] = []
        self._done = 0

    def __call__(self, line: str) -> None:
        self._console.verbose(line)
        if found := re.search(r"(\d+) newly installed", line):
            self._expected.append(int(found[1]))
        if line.startswith(("Setting up ", "Unpacking ")):
            # Each package is first unpacked, then set up.
            self._done += 1
            whole = 2 * sum(self._expected) if len(self._expected) >= self._parts else None
            self._step.update(line, done=self._done, total=whole)
        elif line.startswith(("I: ", "Get:")):
            self._step.update(line.removeprefix("I: "))


def _explain(error: ProcessFailed, name: str) -> RbuildError:
    text = "\n".join(error.tail)
    own = [line for line in error.tail if line.startswith(("E: ", "W: ", "Err:", "tar: "))]
    detail = "\n".join(own[-8:] or error.tail[-8:])
    if SPACE_WORDS.search(text):
        return InfrastructureError(
            f"The disk filled up while {name} was being provisioned.",
            detail=detail,
            hint=FREE_SPACE,
        )
    if MISMATCH_WORDS.search(text):
        return InfrastructureError(
            f"The Debian mirror is not in order for {name}: what it has isn't what was signed.",
            detail=detail,
            hint="It happens while a mirror is brought up to date: try later, or another mirror.",
        )
    if NETWORK_WORDS.search(text):
        return InfrastructureError(
            f"The Debian mirror could not be reached while {name} was being provisioned.",
            detail=detail,
            hint="Check the network and the host's apt configuration, then run it again.",
        )
    if "subuid" in text or "newuidmap" in text:
        return MissingDependency(
            "mmdebstrap can't make a user namespace for this user.",
            detail=detail,
            hint="Install uidmap and give the user a range in /etc/subuid and /etc/subgid "
            "(`rbuild doctor` checks both).",
        )
    if "tar" in error.argv:
        status = error.returncode
        ended = f"status {status}" if status >= 0 else f"ended by signal {-status}"
        return InfrastructureError(f"tar failed to unpack {name} ({ended}).", detail=detail)
    return InfrastructureError(f"mmdebstrap failed to provision {name}.", detail=detail)
