"""Device tree overlays: compiled by the kernel's own rules, and applied to prove that they fit.

Kbuild makes them as it makes those of its own tree: the C preprocessor with the kernel's
dt-bindings headers, then the KDIR's dtc.  No warning of dtc's is let pass.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rbuild.cache.entry import Entry
from rbuild.cache.records import Count, Record, Text, within
from rbuild.devicetree import fdt, overlay_parameters
from rbuild.devicetree.fdt import Node
from rbuild.errors import BuildFailed, UsageError
from rbuild.kernel.kbuild import Kbuild
from rbuild.kernel.kdir import Kdir
from rbuild.kernel.products import forget_the_last
from rbuild.provision.jobs import run_job
from rbuild.sandbox.context import BuildContext, Phase, PhaseRecord
from rbuild.sandbox.runtime import KDIR, MODULE
from rbuild.util import data
from rbuild.util.export import copy
from rbuild.util.files import read_json, write_json
from rbuild.util.folders import remove_tree
from rbuild.util.hashes import digest, sha256_file
from rbuild.util.process import Usage
from rbuild.util.root import Root
from rbuild.util.root import of as root_of

PLUGIN = re.compile(r"^\s*/plugin/\s*;", re.M)
"""What makes a device tree's source an overlay's."""

WARNING = re.compile(r"\bWarning \([a-z_0-9]+\): ")
FAULT = re.compile(r"\b(ERROR|Error|FATAL ERROR|Warning)\b.*: |\berror: ")

STATE = "state.json"

MAX_SOURCE_BYTES = 16 << 20
"""The bytes of the largest source of a device tree."""


@dataclass(frozen=True)
class Overlay:
    """A compiled overlay."""

    name: str
    path: Path
    sha256: str
    size_bytes: int

    def as_json(self) -> dict[str, Any]:
        """Return the artefact as the command line's contract has it."""
        return {"path": str(self.path), "sha256": self.sha256, "size_bytes": self.size_bytes}


@dataclass(frozen=True)
class Fitted:
    """A device tree with an overlay applied: ``base`` as it was, ``path`` as it came out."""

    overlay: Overlay
    base: Path
    path: Path


@dataclass(frozen=True)
class Result:
    """What one compilation gave: the overlays, in the order of their names, and what it took."""

    overlays: tuple[Overlay, ...]
    phase: Phase


def own_folder() -> Path:
    """Return the folder of our overlays and their bindings."""
    return data.folder("module") / "dts"


def sources(path: Path, own: Root | None = None) -> list[Path]:
    """Return the overlays' sources that a path names: a file, or all of a folder.

    Links may lead to what is below ``own``, by default the folder's own root.  Raises UsageError if
    there is no source, if one can't or may not be read, or if two would make the same .dtbo.
    """
    own = own or root_of(path)
    if path.is_dir():
        found = [one for one in sorted(path.iterdir()) if one.suffix in {".dts", ".dtso"}]
        found = [one for one in found if one.is_file() and _is_overlay(one, own)]
        if not found:
            raise UsageError(
                f"{path} has no overlay: no .dts or .dtso file with the line `/plugin/;`."
            )
    elif path.is_file():
        found = [path]
        if path.suffix not in {".dts", ".dtso"} or not _is_overlay(path, own):
            raise UsageError(
                f"{path} is not an overlay's source.",
                hint="That is a .dts or .dtso file with the lines `/dts-v1/;` and `/plugin/;`.",
            )
    else:
        raise UsageError(f"{path} is neither a file nor a folder.")
    names = [name(one) for one in found]
    if twice := sorted({one for one in names if names.count(one) > 1}):
        raise UsageError(f"{path} has more than one source of {twice[0]}.dtbo.")
    return found


def name(source: Path) -> str:
    """Return an overlay's name by its source: mfrc522 of mfrc522-overlay.dts, or mfrc522.dtso."""
    return source.stem.removesuffix("-overlay")


def compile_overlays(
    kdir: Kdir, path: Path, context: BuildContext, own: Root | None = None
) -> Result:
    """Compile the overlay in a file, or all in a folder, with a KDIR's own dtc.

    Nothing is written beside the sources.  Links may lead to what is below ``own`` (see
    ``sources``).  Raises UsageError if there is no overlay, BuildFailed
    with dtc's words, also where they are only a warning.
    """
    own = own or root_of(path)
    found = sources(path.resolve(), own)
    folder = kdir.entry.path / "overlays" / f"{path.resolve().stem}-{digest(str(path.resolve()))}"
    inputs = _inputs(kdir, found, own)
    if (known := _unchanged(kdir.entry, folder, inputs)) is not None:
        return known
    with context.cache.reading(kdir.entry, folder):
        if (known := _unchanged(kdir.entry, folder, inputs)) is not None:
            return known
        build = folder / "build"
        (folder / STATE).unlink(missing_ok=True)
        # What is compiled is what was copied, regardless of later edits to the user's files.
        copied = {**inputs, "files": _bring(found, build, own)}
        kbuild = Kbuild(context, kdir.ready, kdir.tree, kdir.path)
        title = f"Compiling {', '.join(f'{name(one)}.dtbo' for one in found)}"
        usage = compile_device_trees(kbuild, build, title)
        overlays = tuple(_overlay(build / f"{name(one)}.dtbo") for one in found)
        phase = Phase("overlay", usage)
        root = kdir.entry.path
        records = [{**vars(one), "path": str(one.path.relative_to(root))} for one in overlays]
        write_json(
            folder / STATE, {"inputs": copied, "overlays": records, "phase": phase.as_json()}
        )
    return Result(overlays, phase)


def compile_device_trees(kbuild: Kbuild, build: Path, title: str, flags: str = "") -> Usage:
    """Let Kbuild compile all .dts and .dtso files in a folder, to a .dtb or .dtbo beside each.

    ``flags`` are dtc's, besides those that Kbuild gives it.  Raises BuildFailed with dtc's words,
    also where they are only a warning.
    """
    products = sorted(
        f"{path.stem}.dtb{'o' if path.suffix == '.dtso' else ''}"
        for path in build.iterdir()
        if path.suffix in {".dts", ".dtso"}
    )
    lines = [f"DTC_FLAGS := {flags}", *(f"dtb-y += {one}" for one in products)]
    (build / "Kbuild").write_text("".join(f"{line}\n" for line in lines))
    for one in products:
        # A file that only warned is there, and make would not try it again.
        (build / one).unlink(missing_ok=True)
    job = kbuild.job(["modules"], module=build, extra=["KBUILD_MODPOST_WARN=1"])
    context = kbuild.context
    words: list[str] = []

    def watch(line: str) -> None:
        if FAULT.search(line):
            words.append(line.replace(f"{MODULE}/", ""))

    key = kbuild.kdir.parent.name
    with context.console.step(title, key=key):
        try:
            done = run_job(job, kbuild.ready, context, title, on_line=watch)
        except BuildFailed as failure:
            failure.detail = "\n".join(words) or failure.detail
            raise
    if any(WARNING.search(line) for line in words):
        raise BuildFailed(
            f"{title} failed: dtc warns.", detail="\n".join(words), log=context.log_path
        )
    if missing := [one for one in products if not (build / one).is_file()]:
        raise BuildFailed(f"make succeeded, but there is no {missing[0]}.", log=context.log_path)
    return done.usage


def parametrised(overlay: Overlay, values: Mapping[str, str]) -> Overlay:
    """Return an overlay with its parameters given, for who can't give them when it is applied.

    Raises UsageError as ``parameters.given`` does.
    """
    content = fdt.pack(overlay_parameters.given(fdt.read(overlay.path), values))
    folder = overlay.path.parent / f"with-{digest(values)}"
    folder.mkdir(exist_ok=True)
    path = folder / overlay.path.name
    path.write_bytes(content)
    return _overlay(path)


def fit(kdir: Kdir, overlay: Overlay, context: BuildContext) -> list[Fitted]:
    """Apply an overlay to each device tree that the profile names, with the kernel's fdtoverlay.

    Raises UsageError if the profile names none, BuildFailed if the overlay doesn't fit one of
    them, with what the tree lacks.
    """
    bases = device_trees(kdir, context)
    kbuild = Kbuild(context, kdir.ready, kdir.tree, kdir.path)
    build = overlay.path.parent
    fitted = []
    # A folder in the one of the overlay, where its parameters are given, is of the same lock.
    place = kdir.entry.path / "overlays"
    folder = place / build.relative_to(place).parts[0]
    with context.cache.reading(kdir.entry, folder):
        for base in bases:
            merged = build / "merged" / f"{overlay.name}-{base.name}"
            merged.parent.mkdir(exist_ok=True)
            inside = f"{KDIR}/{base.relative_to(kdir.path)}"
            words = [f"{KDIR}/scripts/dtc/fdtoverlay", "-i", inside]
            words += ["-o", f"{MODULE}/merged/{merged.name}", f"{MODULE}/{overlay.path.name}"]
            try:
                kbuild.run(words, "Applying the overlay", module=build)
            except BuildFailed as error:
                raise _unfit(overlay, base, error) from error
            fitted.append(Fitted(overlay, base, merged))
    return fitted


def device_trees(kdir: Kdir, context: BuildContext) -> list[Path]:
    """Return the profile's device trees, made if the kernel wasn't built yet.

    Raises UsageError if the profile names none.
    """
    names = kdir.profile.device_trees
    if not names:
        raise UsageError(
            f"The profile {kdir.profile.name} names no device trees to apply an overlay to.",
            hint="Such as `device_trees: [broadcom/bcm2837-rpi-3-b-plus.dtb]`.",
        )
    found = [kdir.device_trees / one for one in names]
    if not all(one.is_file() for one in found) or kdir.entry.is_open:
        cache = context.cache
        with cache.lock(kdir.entry), cache.writing(kdir.entry) as was_open:
            if was_open:
                forget_the_last(kdir.path)
            kbuild = Kbuild(context, kdir.ready, kdir.tree, kdir.path)
            kbuild.make("Making the device trees", names)
    return found


def lacking(overlay: Node, base: Node) -> list[str]:
    """Return what an overlay refers to and a device tree lacks: labels, and paths of targets.

    A path may also be one that an earlier part of the overlay makes.
    """
    symbols = base.find("/__symbols__") or Node()
    fixups = overlay.find("/__fixups__") or Node()
    faults = [f"the label {one}" for one in fixups.properties if one not in symbols.properties]
    for fragment in overlay.children.values():
        target = fragment.text("target-path")
        if target is not None and "__overlay__" in fragment.children and base.find(target) is None:
            faults.append(f"the node {target}")
    return faults


def export(overlays: tuple[Overlay, ...], folder: Path) -> list[Path]:
    """Copy overlays into a folder of the user's, as ``export.copy`` does; return where they are."""
    return copy((one.path for one in overlays), folder)


def _unfit(overlay: Overlay, base: Path, error: BuildFailed) -> BuildFailed:
    tree = fdt.read(base)
    faults = lacking(fdt.read(overlay.path), tree)
    hint = None
    if tree.find("/__symbols__") is None:
        hint = (
            "This device tree was compiled without symbols, and has no labels to refer to: its "
            "Makefile in the kernel needs `DTC_FLAGS_<name> := -@`."
        )
    lacks = f", which lacks {'; '.join(faults)}" if faults else ""
    return BuildFailed(
        f"{overlay.path.name} doesn't fit {base.name}{lacks}.",
        detail=error.detail,
        hint=hint,
        log=error.log,
    )


def _is_overlay(path: Path, own: Root) -> bool:
    return PLUGIN.search(_read(path, own).decode("utf-8", "replace")) is not None


def _read(path: Path, own: Root) -> bytes:
    """Return a source's content; raises UsageError if it can't or may not be read."""
    return own.read_bytes(path, limit=MAX_SOURCE_BYTES)


def _bring(found: list[Path], build: Path, own: Root) -> dict[str, str]:
    """Copy sources to where they are compiled, by the names that Kbuild's rule wants.

    Returns the SHA-256 of each as it was copied.
    """
    if build.exists():
        remove_tree(build)
    build.mkdir(parents=True)
    places = {path: build / path.name for path in _included(found)}
    places |= {path: build / f"{name(path)}.dtso" for path in found}
    for path, place in places.items():
        place.write_bytes(_read(path, own))
    return {path.name: sha256_file(place) for path, place in places.items()}


def _included(found: list[Path]) -> list[Path]:
    """Return what the sources may include: their neighbours that aren't compiled themselves."""
    beside = sorted(found[0].parent.iterdir())
    records = [one for one in beside if one.suffix in {".dtsi", ".h"} and one.is_file()]
    return [one for one in records if one not in found]


def _inputs(kdir: Kdir, found: list[Path], own: Root) -> dict[str, Any]:
    """Return all that decides what a compilation makes."""
    files = [*found, *_included(found)]
    return {
        "kdir": kdir.entry.name,
        "created": (kdir.entry.metadata or {}).get("created"),
        "sources": [name(one) for one in found],
        "files": {one.name: hashlib.sha256(_read(one, own)).hexdigest() for one in files},
    }


def _unchanged(entry: Entry, folder: Path, inputs: dict[str, Any]) -> Result | None:
    """Return the last result if its inputs were these and its products are intact."""
    state = read_json(folder / STATE)
    if state is None or state.get("inputs") != inputs:
        return None
    record = StateRecord.read(state)
    if record is None:
        return None
    try:
        overlays = tuple(one.overlay(entry) for one in record.overlays)
        if not all(one.path.is_file() and sha256_file(one.path) == one.sha256 for one in overlays):
            return None
    except (ValueError, OSError):  # it names no file of the entry's, or none at all
        return None
    return Result(overlays, record.phase.phase)


class OverlayRecord(Record):
    """A compiled overlay; ``path`` is relative to the KDIR's entry."""

    name: Text
    path: Text
    sha256: Text
    size_bytes: Count

    def overlay(self, entry: Entry) -> Overlay:
        """Return the overlay; raise ValueError if its path isn't in the entry."""
        return Overlay(**{**dict(self), "path": within(entry, self.path)})


class StateRecord(Record):
    """The result of the last compilation."""

    overlays: Annotated[tuple[OverlayRecord, ...], Field(strict=False)]
    phase: PhaseRecord


def _overlay(path: Path) -> Overlay:
    fdt.read(path)
    return Overlay(path.stem, path, sha256_file(path), path.stat().st_size)
