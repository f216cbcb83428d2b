"""KDIRs in the cache: output directories against which modules are built.

A KDIR grows in two stages.  *Prepared* is what a module needs: the configuration, generated
headers, host tools and, with Rust, the kernel crate (Kbuild's modules_prepare).  *Built* has the
Image, the modules, the device trees, and the Module.symvers that tells which symbols exist.
Nothing in a KDIR's inputs ever changes (they are in its name), so an interrupted stage is
continued where it stopped.  A new KDIR starts from a copy of the nearest one that is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rbuild.cache.directory import Cache
from rbuild.cache.entry import Entry, EntryKind
from rbuild.cache.records import Count, Record, Text, Texts
from rbuild.kernel.config import config_of
from rbuild.kernel.identity import Kernel
from rbuild.kernel.kbuild import MakeResult
from rbuild.kernel.products import kernel_release, vermagic
from rbuild.provision.prepared import PreparedEnvironment
from rbuild.sandbox.context import Phase, Phases
from rbuild.source.tree import Tree
from rbuild.specs.architecture import KbuildNames
from rbuild.specs.profile import Profile
from rbuild.util.hashes import sha256_file

SPACE_NEEDED = 2 * 1024**3
"""Bytes that a slim KDIR takes at most; a whole defconfig needs several times that."""


class Stage(StrEnum):
    """How far a KDIR is."""

    PREPARED = "prepared"
    BUILT = "built"


@dataclass(frozen=True)
class Kdir:
    """A KDIR in the cache.  ``path`` is the output directory itself (make's O=).

    ``targets`` are those of make that built it, [] if it isn't built.  ``base_kdir`` names the
    KDIR that it started from, if it wasn't made from nothing.  ``script`` is a reproducer of its
    kernel.
    """

    kernel: Kernel
    entry: Entry
    stage: Stage
    release: str
    config_sha256: str
    phases: tuple[Phase, ...]
    artefacts: tuple[dict[str, Any], ...] = ()
    targets: tuple[str, ...] = ()
    base_kdir: str | None = None
    script: Path | None = None

    @property
    def profile(self) -> Profile:
        """What its kernel is built from: the profile."""
        return self.kernel.profile

    @property
    def tree(self) -> Tree:
        """What its kernel is built from: the source."""
        return self.kernel.tree

    @property
    def ready(self) -> PreparedEnvironment:
        """The environment that it is built in."""
        return self.kernel.ready

    @property
    def path(self) -> Path:
        """The output directory."""
        return self.entry.path / "build"

    @property
    def config(self) -> dict[str, str]:
        """The options that Kconfig granted."""
        return config_of(self.path)

    @property
    def vermagic(self) -> str:
        """The vermagic that its modules must have."""
        return vermagic(self.release, self.config, self.target)

    @property
    def target(self) -> KbuildNames:
        """What Kbuild calls its architecture and products."""
        return self.ready.environment.target.target

    @property
    def image(self) -> Path:
        """What a boot loader starts, once the kernel is built."""
        return self.path / self.target.image_path

    @property
    def device_trees(self) -> Path:
        """The folder of its device trees."""
        return self.path / self.target.device_trees


def find(kernel: Kernel, entry: Entry) -> Kdir | None:
    """Return a kernel's KDIR in an entry; None if it isn't there, or can't be used."""
    metadata = kernel.context.cache.use(entry)
    if metadata is None:
        return None
    record = KdirRecord.read(metadata)
    return None if record is None else _kdir(kernel, entry, record)


class ArtefactRecord(Record):
    """A file that a kernel's build made, relative to the output directory."""

    path: Text
    sha256: Text
    size_bytes: Count


class KdirRecord(Record):
    """What a KDIR's metadata says of it."""

    stage: Annotated[Stage, Field(strict=False)]
    release: Text
    config_sha256: Text
    phases: Phases
    artefacts: Annotated[tuple[ArtefactRecord, ...], Field(strict=False)] = ()
    targets: Texts = ()
    base_kdir: Text | None = None


class ObjectsRecord(Record):
    """How many objects each phase of a KDIR made."""

    objects: dict[Text, Count]


def _kdir(kernel: Kernel, entry: Entry, record: KdirRecord) -> Kdir:
    return Kdir(
        kernel,
        entry,
        record.stage,
        record.release,
        record.config_sha256,
        tuple(one.phase for one in record.phases),
        tuple(one.model_dump() for one in record.artefacts),
        record.targets,
        record.base_kdir,
    )


def publish(
    kernel: Kernel,
    entry: Entry,
    partial: Path,
    phases: tuple[Phase, ...],
    objects: dict[str, int],
    *,
    final: bool = True,
    **more: Any,  # noqa: ANN401
) -> Kdir:
    """Publish a prepared KDIR; return it with the phases as this run saw them."""
    build = partial / "build"
    metadata = {
        "stage": Stage.PREPARED,
        "release": kernel_release(build),
        "config_sha256": sha256_file(build / ".config"),
        "phases": [phase.as_json() for phase in phases],
        "objects": objects,
        "environment": kernel.ready.environment.name,
        "tree": kernel.tree.key,
        "toolchain": dict(kernel.ready.toolchain),
        **more,
    }
    metadata = kernel.context.cache.publish(entry, partial, metadata, final=final)
    kernel.context.cache.use(entry)
    return replace(_kdir(kernel, entry, KdirRecord.model_validate(metadata)), phases=phases)


def close(kdir: Kdir, phases: tuple[Phase, ...], **changes: Any) -> Kdir:  # noqa: ANN401
    """Record what a KDIR holds that was written to; return it with this run's phases."""
    cache = kdir.kernel.context.cache
    recorded = [phase.as_json() for phase in phases]
    metadata = cache.close(kdir.entry, phases=recorded, **changes)
    cache.use(kdir.entry)
    record = KdirRecord.model_validate(metadata)
    return replace(_kdir(kdir.kernel, kdir.entry, record), phases=phases)


def objects_of(metadata: Mapping[str, Any] | None) -> dict[str, int]:
    """Return how many objects each phase of a KDIR made, as far as its metadata tells."""
    record = ObjectsRecord.read(metadata)
    return {} if record is None else dict(record.objects)


def most_objects(before: Mapping[str, int], phase: str, made: MakeResult) -> dict[str, int]:
    """Return the counts of objects with a phase's own, or the base KDIR's where that is larger.

    A phase that started from a base KDIR made only a part of what the next one may have to.
    """
    return {**before, phase: max(made.objects, before.get(phase, 0))}


def expected_objects(kernel: Kernel, phase: str, configuration: str | None) -> int | None:
    """Return how many objects a phase makes: as in a KDIR of the same configuration, or the hint.

    Another environment's makes as many.
    """
    known = [
        objects_of(entry.metadata).get(phase)
        for entry in kernel.context.cache.entries(EntryKind.KDIRS)
        if configuration and (entry.metadata or {}).get("configuration") == configuration
    ]
    counts = [count for count in known if count]
    return max(counts) if counts else getattr(kernel.profile.objects, phase) or None


def was_prepared(profile: Profile, environment: str, cache: Cache) -> bool:
    """Tell whether a KDIR of the profile was made in an environment, if of other inputs perhaps."""
    label = cache.entry(EntryKind.KDIRS, f"{profile.name}-{environment}", "").name
    return any(entry.name.startswith(label) for entry in cache.entries(EntryKind.KDIRS))
