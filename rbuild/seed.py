"""Seeds: a KDIR that was made for nearly the same configuration, from which a new one starts.

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

from rbuild import process
from rbuild.errors import BuildFailed, ProcessFailed
from rbuild.kbuild import forget_the_last
from rbuild.kept import Kept
from rbuild.process import Usage
from rbuild.profile import CONFIG_MOST
from rbuild.store import Entry, Room, Store, not_copied, remove_tree
from rbuild.textfile import read_text

PREPARED_MALUS = 10
"""How many options a seed may differ more if its kernel is built, and not only prepared."""

PATIENCE_S = 10.0
"""How long a seed that another rbuild works on is waited for: a module's build, not a kernel's."""

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
    """What decides whether a KDIR can be a seed (``kin``), and how near it is (``options``).

    ``kin`` stands for the tree, the environment with its toolchain, and the base configuration:
    a KDIR's host programs run in its own environment only, and another base leaves little to keep.
    ``configuration`` stands for the tree, the toolchain's versions and all that Kconfig is asked,
    whatever the environment.
    """

    kin: str
    options: Mapping[str, str]
    configuration: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return what a KDIR's metadata keeps of it."""
        return {"kin": self.kin, "options": dict(self.options)}

    def differing(self, other: Mapping[str, str]) -> int:
        """Return for how many options something else was asked."""
        names = self.options.keys() | other.keys()
        return sum(self.options.get(name) != other.get(name) for name in names)


@dataclass(frozen=True)
class Seed:
    """A KDIR to start from, how many options of the request it differs in, and its objects."""

    entry: Entry
    differing: int
    built: bool
    created: float
    objects: Mapping[str, int]


@dataclass(frozen=True)
class Planted:
    """A seed that was copied, what that took, and the .config that came with it."""

    seed: Seed
    usage: Usage
    config: str


def nearest(request: Request, store: Store) -> list[Seed]:
    """Return the KDIRs that can be a seed, the best first.

    It is the one that differs least from the request, the newest among equals; a built kernel
    outweighs a few options, since a prepared one has hardly any objects.
    """
    found = []
    for entry in store.entries(Room.KDIRS):
        kept = Kept(entry.metadata or {})
        try:
            asked = kept.part("request")
            if asked.text("kin") != request.kin:
                continue
            seed = Seed(
                entry,
                request.differing(asked.by_name("options")),
                kept.text("stage") == "built",
                kept.number("created"),
                kept.counts("objects"),
            )
        except ValueError:  # no seed at all, or one whose metadata is broken
            continue
        found.append(seed)
    return sorted(found, key=_rank)


def _rank(seed: Seed) -> tuple[int, float]:
    return seed.differing + (0 if seed.built else PREPARED_MALUS), -seed.created


def plant(request: Request, build: Path, store: Store) -> Planted | None:
    """Copy the best seed's output directory to ``build``; None if there is no seed to be had.

    The caller holds the lock of the KDIR that is made, and waits only so long for a seed's: were
    two to wait for each other's KDIR, neither would go on.
    """
    for seed in nearest(request, store):
        with store.lock_within(seed.entry, PATIENCE_S) as held:
            # It may have been removed, or made anew, since it was found.
            if not held or (store.rely(seed.entry) or {}).get("created") != seed.created:
                continue
            store.check()
            count = (
                "1 option differs" if seed.differing == 1 else f"{seed.differing} options differ"
            )
            stage = "built" if seed.built else "prepared"
            with store.console.step(f"Starting from {seed.entry.name}: {count}", key=stage):
                usage = copy(seed.entry.path / "build", build)
                forget_ends(build)
                if seed.entry.is_open:
                    forget_the_last(build)
            return Planted(seed, usage, _config(build))
    return None


def copy(source: Path, target: Path) -> Usage:
    """Copy an output directory with its files' times, by which make tells what is old.

    The file system shares the blocks where it can (reflink: Btrfs, XFS).  Hard links would be
    quicker elsewhere, and wrong: a part of Kbuild writes files in place, which would change the
    seed's own (Kconfig truncates include/config/*, scripts/sorttable edits vmlinux, and many a
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


def adopt(configuration: str, build: Path, store: Store) -> tuple[str, Usage] | None:
    """Copy to ``build`` the configuration of a KDIR that was asked for the same elsewhere.

    ``configuration`` stands for the tree, all that Kconfig was asked, and the toolchain's versions.
    Kconfig's some hundred probes of the compiler then give the same answers in every environment;
    emulated, they take minutes.  Returns the KDIR's name and what the copy took; None if there is
    none.
    """
    for entry in store.entries(Room.KDIRS):
        if (entry.metadata or {}).get("configuration") != configuration:
            continue
        with store.lock_within(entry, PATIENCE_S) as held:
            source = entry.path / "build"
            if not held or not all((source / name).exists() for name in CONFIGURATION[:-1]):
                continue
            if store.rely(entry) is None:
                continue
            store.check()
            with store.console.step(f"Taking the configuration of {entry.name}"):
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
    # one of the seed's can't be told from one of the copy's.
    for folder in build.glob("arch/*/boot/dts"):
        if not (folder / "dtbs-list").exists():
            for path in folder.rglob("*.dtb"):
                path.unlink()
    if (build / "fragments").exists():
        remove_tree(build / "fragments")


def _config(build: Path) -> str:
    path = build / ".config"
    return read_text(path, limit=CONFIG_MOST, decoding="surrogateescape", error=BuildFailed)


def forget_options(build: Path, planted: Planted) -> None:
    """Remove from a copy, configured anew, what Kbuild doesn't know to depend on each option.

    bindgen turns every CONFIG_X=y into a Rust constant, but is called again only for options that
    stand in one of the headers.
    """
    if _config(build) != planted.config:
        for path in build.glob("rust/*/*_generated.rs"):
            path.unlink()
