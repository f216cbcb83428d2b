"""Modules: built against a KDIR, out-of-tree or in-tree, and checked before they are called good.

Sources are first brought into a folder of the cache's, where only what changed is written: the
user's folder stays as it was, and make rebuilds what it must.  A build whose inputs are those of
the last one isn't started at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from rbuild.cache.entry import Entry
from rbuild.cache.records import Count, Record, Text, Texts, within
from rbuild.errors import BuildFailed, ended_by_itself
from rbuild.kernel.kbuild import MakeResult
from rbuild.kernel.kdir import Kdir
from rbuild.kernel.prepare import prepare_in_tree
from rbuild.kernel.products import forget_the_last
from rbuild.module.check import BuiltModule
from rbuild.module.drivers import driver_source
from rbuild.module.sync import fingerprint_of, list_inputs, read_input, sync
from rbuild.module.workplace import IN_TREE_PARTS, ModuleBuild, in_tree, out_of_tree
from rbuild.sandbox import outputs
from rbuild.sandbox.context import BuildContext, Phase, PhaseRecord
from rbuild.sandbox.reproducer import SCRIPT
from rbuild.specs.profile import Driver, Kind
from rbuild.util import data, root
from rbuild.util.export import copy
from rbuild.util.files import read_json, write_json
from rbuild.util.hashes import digest, sha256_file
from rbuild.util.root import Root

if TYPE_CHECKING:
    pass


STATE = "state.json"
LEFT = "left.json"
"""Beside an output folder: the content of all files in it when make had last come to its end."""


@dataclass(frozen=True)
class Result:
    """What one build of a module gave; an in-tree build has ``prepared`` a KDIR of its own.

    ``script`` is its reproducer.
    """

    modules: tuple[BuiltModule, ...]
    phase: Phase
    prepared: tuple[Phase, ...] = ()
    script: Path | None = None

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All that was done for the module alone."""
        return (*self.prepared, self.phase)


def build_driver(kdir: Kdir, driver: Driver, kind: Kind, context: BuildContext) -> Result:
    """Build one of our drivers in either way; raises as the two functions for that do."""
    if kind is Kind.IN_TREE:
        return build_in_tree(kdir, driver, context)
    return build_out_of_tree(kdir, driver_source(driver), context)


def build_out_of_tree(
    kdir: Kdir, source: Path, context: BuildContext, own: Root | None = None
) -> Result:
    """Build the module in ``source``, a folder with a Kbuild or Makefile, against a KDIR.

    Links in it may lead to what is below ``own``, by default the folder's own root.  Raises
    UsageError if the folder isn't a module's, or has a link that leads elsewhere, BuildFailed with
    the compiler's words or with what is wrong with the .ko.
    """
    source = source.resolve()
    folder = place_of(kdir, source)
    place = out_of_tree(kdir, source, folder, context, own)
    return _build(place, kdir, folder, context)


def place_of(kdir: Kdir, source: Path) -> Path:
    """Return the cache's folder for the module in ``source``, a resolved path."""
    return kdir.entry.path / "modules" / f"{source.name}-{digest(str(source))}"


def build_in_tree(kdir: Kdir, driver: Driver, context: BuildContext) -> Result:
    """Build one of our drivers as a part of the tree; raises as ``build_out_of_tree`` does."""
    overlay, own = in_tree_kdir(kdir)
    place = in_tree(kdir, own.path, driver, overlay, context)
    result = _build(place, own, own.entry.path / "modules" / driver, context)
    prepared = tuple(replace(one, name=f"{one.name}-in-tree") for one in own.phases)
    return replace(result, prepared=prepared)


def in_tree_kdir(kdir: Kdir) -> tuple[Path, Kdir]:
    """Return the folder that stands in the tree for the driver, and the KDIR configured for it."""
    origin, overlay = data.folder("module"), kdir.entry.path / "modules" / "in-tree"

    def bring() -> None:
        sync(origin, overlay, IN_TREE_PARTS)

    return overlay, prepare_in_tree(kdir, origin, overlay, bring)


def _build(place: ModuleBuild, kdir: Kdir, folder: Path, context: BuildContext) -> Result:
    """Build what changed since the result in ``folder``; where nothing did, wait for no one."""
    if (found := _unchanged(kdir.entry, folder, _inputs(kdir, place))) is not None:
        return replace(found, script=place.reproducer(folder / SCRIPT))
    with _alone(place, kdir, folder, context):
        folder.mkdir(parents=True, exist_ok=True)
        inputs = _inputs(kdir, place)
        script = place.reproducer(folder / SCRIPT)
        if (found := _unchanged(kdir.entry, folder, inputs)) is None:
            try:
                found = _build_locked(place, kdir, inputs, folder)
            except BuildFailed as error:
                error.script = script
                raise
        return replace(found, script=script)


def _alone(
    place: ModuleBuild, kdir: Kdir, folder: Path, context: BuildContext
) -> contextlib.AbstractContextManager[None]:
    """Return what keeps others from what a build writes: an external module's only its folder."""
    if place.module is None:
        return context.cache.lock(kdir.entry)
    return context.cache.reading(kdir.entry, folder)


def _build_locked(place: ModuleBuild, kdir: Kdir, inputs: dict[str, Any], folder: Path) -> Result:
    # From here on the old result no longer holds, whatever becomes of the build.
    (folder / STATE).unlink(missing_ok=True)
    # Drivers in a tree share their output folder.
    left = (folder if place.module is not None else folder.parent) / LEFT
    # make goes by names and times: it goes on from what a make has left that came to its end, not
    # from what was damaged since, or from what a killed one has half written.
    if not _is_as_left(left, place.outputs):
        place.wipe()
    left.unlink(missing_ok=True)
    # What is built is what was copied, regardless of later edits to the user's files.
    copied = {**inputs, "files": place.sync()}
    with _writing(place, kdir):
        try:
            made = place.make()
        except BuildFailed as error:
            if ended_by_itself(error):
                _keep_as_left(left, place.outputs)
            raise
    _keep_as_left(left, place.outputs)
    return _remember(kdir.entry, folder, copied, place.products(), made)


@contextlib.contextmanager
def _writing(place: ModuleBuild, kdir: Kdir) -> Iterator[None]:
    """Let an in-tree build write to its KDIR; an external module's only reads it."""
    if place.module is not None:
        yield
        return
    with place.kbuild.context.cache.writing(kdir.entry) as was_open:
        if was_open:
            forget_the_last(kdir.path)
        yield


def _is_as_left(record: Path, folder: Path) -> bool:
    known = (read_json(record) or {}).get("files")
    return known is not None and known == outputs.content(folder)


def _keep_as_left(record: Path, folder: Path) -> None:
    write_json(record, {"files": outputs.content(folder)})


def _inputs(kdir: Kdir, place: ModuleBuild) -> dict[str, Any]:
    """Return all that decides what a build makes."""
    source = place.origin
    own = place.root or root.of(source)
    files: dict[str, str] = {}
    for path in list_inputs(source, place.only, own):
        # What an editor has there for a moment may be gone.
        with contextlib.suppress(FileNotFoundError):
            files[str(path)] = fingerprint_of(*read_input(source / path, own))
    return {
        "kdir": kdir.entry.name,
        "created": (kdir.entry.metadata or {}).get("created"),
        # What symbols are checked against: more is known of a kernel once it is built.
        "checked": [place.kdir.entry.name, place.kdir.stage],
        "files": files,
    }


def _unchanged(entry: Entry, work: Path, inputs: dict[str, Any]) -> Result | None:
    """Return the last build's result if its inputs were these and its products are intact."""
    state = read_json(work / STATE)
    if state is None or state.get("inputs") != inputs:
        return None
    record = StateRecord.read(state)
    if record is None:
        return None
    try:
        modules = tuple(one.module(entry) for one in record.modules)
        if not all(one.path.is_file() and sha256_file(one.path) == one.sha256 for one in modules):
            return None
    except (ValueError, OSError):  # it names no file of the entry's, or none at all
        return None
    return Result(modules, record.phase.phase)


class ModuleRecord(Record):
    """A built module; ``path`` is relative to the KDIR's entry."""

    path: Text
    sha256: Text
    size_bytes: Count
    vermagic: Text
    license: Text
    depends: Text
    aliases: Texts
    symbols: Text
    undecided: Texts

    def module(self, entry: Entry) -> BuiltModule:
        """Return the module; raise ValueError if its path isn't in the entry."""
        return BuiltModule(**{**dict(self), "path": within(entry, self.path)})


class StateRecord(Record):
    """The result of a module's last build."""

    modules: Annotated[tuple[ModuleRecord, ...], Field(strict=False)]
    phase: PhaseRecord


def _remember(
    entry: Entry,
    work: Path,
    inputs: dict[str, Any],
    modules: tuple[BuiltModule, ...],
    made: MakeResult,
) -> Result:
    phase = Phase("module", made.usage, ccache=made.ccache)
    root = entry.path
    records = [{**vars(one), "path": str(one.path.relative_to(root))} for one in modules]
    write_json(work / STATE, {"inputs": inputs, "modules": records, "phase": phase.as_json()})
    return Result(modules, phase)


def export(modules: tuple[BuiltModule, ...], folder: Path) -> list[Path]:
    """Copy modules into a folder of the user's, as ``export.copy`` does; return where they are."""
    return copy((one.path for one in modules), folder)
