"""Base KDIRs: one that was made for nearly the same configuration, from which a new one starts.

Kbuild knows what an option touches: whatever depends on one is made again when it changes
(scripts/basic/fixdep.c, include/config/).  So a copy of a KDIR, configured anew, costs what has
changed, and becomes what a build from nothing would have made.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbuild.cache.directory import Cache
from rbuild.cache.entry import Entry, EntryKind
from rbuild.cache.records import Count, Record, Text
from rbuild.errors import BuildFailed, ProcessFailed
from rbuild.kernel.products import forget_the_last
from rbuild.specs.profile import MAX_CONFIG_BYTES
from rbuild.util import process
from rbuild.util.disk import not_copied
from rbuild.util.folders import remove_tree
from rbuild.util.process import Usage
from rbuild.util.textfile import read_text

PREPARED_MALUS = 10
"""How many options a base KDIR may differ more if its kernel is built, and not only prepared."""

WAIT_S = 10.0
"""How long a base KDIR that another rbuild works on is waited for: a module's build takes less."""

ENDS = (
    "vmlinux*",
    ".vmlinux*",
    ".tmp_vmlinux*",
    "System.map",
    "Module.symvers",
    "modules.order",
    "modules.builtin*",
    "modules-only.symvers",
    "arch/*/boot/*Image*",
)
"""What the last steps of a build leave.

A KDIR that has them counts as built, for Kbuild's modpost as for rbuild; a copy that isn't built
yet must not show those of another configuration.
"""


@dataclass(frozen=True)
class Request:
    """What decides whether a KDIR can be copied for another, and how near it is (``options``).

    ``compatible_with`` stands for the tree, the environment with its toolchain, and the base
    configuration: a KDIR's host programs run in its own environment only, and another base leaves
    little to keep.  ``configuration`` stands for the tree, the toolchain's versions and all that
    Kconfig is asked, whatever the environment.
    """

    compatible_with: str
    options: Mapping[str, str]
    configuration: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return what a KDIR's metadata keeps of it."""
        return {"compatible_with": self.compatible_with, "options": dict(self.options)}

    def differing(self, other: Mapping[str, str]) -> int:
        """Return for how many options something else was asked."""
        names = self.options.keys() | other.keys()
        return sum(self.options.get(name) != other.get(name) for name in names)


@dataclass(frozen=True)
class BaseKdir:
    """A KDIR to start from, how many options of the request it differs in, and its objects."""

    entry: Entry
    differing: int
    built: bool
    created: float
    objects: Mapping[str, int]


class RequestRecord(Record):
    """A Request as a KDIR's metadata has it."""

    compatible_with: Text
    options: dict[Text, Text]


class BaseKdirRecord(Record):
    """What the metadata of a KDIR says that can be a base KDIR."""

    request: RequestRecord
    stage: Text
    created: float
    objects: dict[Text, Count]


@dataclass(frozen=True)
class Clone:
    """A base KDIR that was copied, what that took, and the .config that came with it."""

    base_kdir: BaseKdir
    usage: Usage
    config: str


def nearest(request: Request, cache: Cache) -> list[BaseKdir]:
    """Return the KDIRs that can be a base KDIR, the best first.

    It is the one that differs least from the request, the newest among equals; a built kernel
    outweighs a few options, since a prepared one has hardly any objects.
    """
    found = []
    for entry in cache.entries(EntryKind.KDIRS):
        record = BaseKdirRecord.read(entry.metadata)
        if record is not None and record.request.compatible_with == request.compatible_with:
            differing = request.differing(record.request.options)
            built = record.stage == "built"
            found.append(BaseKdir(entry, differing, built, record.created, record.objects))
    return sorted(found, key=_rank)


def _rank(base_kdir: BaseKdir) -> tuple[int, float]:
    return base_kdir.differing + (0 if base_kdir.built else PREPARED_MALUS), -base_kdir.created


def clone_base(request: Request, build: Path, cache: Cache) -> Clone | None:
    """Copy the best base KDIR's output directory to ``build``; None if there is none.

    The caller holds the lock of the KDIR that is made, and waits only so long for the other's: were
    two to wait for each other's KDIR, neither would go on.
    """
    for base_kdir in nearest(request, cache):
        with cache.lock_within(base_kdir.entry, WAIT_S) as held:
            # It may have been removed, or made anew, since it was found.
            if not held or (cache.use(base_kdir.entry) or {}).get("created") != base_kdir.created:
                continue
            cache.check()
            count = (
                "1 option differs"
                if base_kdir.differing == 1
                else f"{base_kdir.differing} options differ"
            )
            stage = "built" if base_kdir.built else "prepared"
            with cache.console.step(f"Starting from {base_kdir.entry.name}: {count}", key=stage):
                usage = copy(base_kdir.entry.path / "build", build)
                forget_ends(build)
                if base_kdir.entry.is_open:
                    forget_the_last(build)
            return Clone(base_kdir, usage, _config(build))
    return None


def copy(source: Path, target: Path) -> Usage:
    """Copy an output directory with its files' times, by which make tells what is old.

    The file system shares the blocks where it can (reflink: Btrfs, XFS).  Hard links would be
    quicker elsewhere, and wrong: a part of Kbuild writes files in place, which would change the
    base KDIR's own (Kconfig truncates include/config/*, scripts/sorttable edits vmlinux, and many a
    rule is ``command > $@``).
    """
    try:
        return process.run(["cp", "-a", "--reflink=auto", "--", str(source), str(target)]).usage
    except ProcessFailed as error:
        raise not_copied(error, source, target) from error


CONFIGURATION = (
    "base.config",
    ".config",
    "include/config",
    "include/generated/autoconf.h",
    "include/generated/rustc_cfg",
)
"""All that configuring leaves: what was asked, what came out, and what syncconfig makes of it."""


def reuse_configuration(configuration: str, build: Path, cache: Cache) -> tuple[str, Usage] | None:
    """Copy to ``build`` the configuration of a KDIR that was asked for the same elsewhere.

    ``configuration`` stands for the tree, all that Kconfig was asked, and the toolchain's versions.
    Kconfig's some hundred probes of the compiler then give the same answers in every environment;
    emulated, they take minutes.  Returns the KDIR's name and what the copy took; None if there is
    none.
    """
    for entry in cache.entries(EntryKind.KDIRS):
        if (entry.metadata or {}).get("configuration") != configuration:
            continue
        with cache.lock_within(entry, WAIT_S) as held:
            source = entry.path / "build"
            if not held or not all((source / name).exists() for name in CONFIGURATION[:-1]):
                continue
            if cache.use(entry) is None:
                continue
            cache.check()
            with cache.console.step(f"Taking the configuration of {entry.name}"):
                return entry.name, _copy_parts(source, build)
    return None


def _copy_parts(source: Path, build: Path) -> Usage:
    """Copy the parts of a configuration, with the times by which make tells what is old."""
    names = [name for name in CONFIGURATION if (source / name).exists()]
    started = time.monotonic()
    for name in names:
        target = build / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, target, symlinks=True)
        else:
            shutil.copy2(source / name, target)
    return Usage(time.monotonic() - started, 0.0, 0.0, 0)


def forget_ends(build: Path) -> None:
    """Remove from a copied output directory what is no part of the new configuration."""
    for pattern in ENDS:
        for path in build.glob(pattern):
            path.unlink()
    # Kbuild lists the device trees that a configuration has (since Linux 6.12); without the list,
    # one of the base KDIR's can't be told from one of the copy's.
    for folder in build.glob("arch/*/boot/dts"):
        if not (folder / "dtbs-list").exists():
            for path in folder.rglob("*.dtb"):
                path.unlink()
    if (build / "fragments").exists():
        remove_tree(build / "fragments")


def _config(build: Path) -> str:
    path = build / ".config"
    return read_text(path, limit=MAX_CONFIG_BYTES, decoding="surrogateescape", error=BuildFailed)


def forget_options(build: Path, cloned: Clone) -> None:
    """Remove from a copy, configured anew, what Kbuild doesn't know to depend on each option.

    bindgen turns every CONFIG_X=y into a Rust constant, but is called again only for options that
    stand in one of the headers.
    """
    if _config(build) != cloned.config:
        for path in build.glob("rust/*/*_generated.rs"):
            path.unlink()
