"""Preparing KDIRs for modules: configured, with generated headers, host tools, Rust's crates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbuild.cache.entry import Entry, EntryKind
from rbuild.cache.records import Count, Record, Text
from rbuild.errors import BuildFailed, KconfigError, UsageError
from rbuild.kernel import reuse
from rbuild.kernel.config import config_of
from rbuild.kernel.configure import Attempt, configure, merge
from rbuild.kernel.identity import Kernel
from rbuild.kernel.kbuild import Kbuild
from rbuild.kernel.kdir import SPACE_NEEDED, Kdir, expected_objects, find, most_objects, publish
from rbuild.kernel.products import forget_the_last
from rbuild.kernel.reuse import Request
from rbuild.sandbox.context import Phase, Phases
from rbuild.source.tree import IN_TREE_FOLDER
from rbuild.util.files import read_json, write_json
from rbuild.util.folders import remove_tree
from rbuild.util.hashes import digest, sha256_file
from rbuild.util.host import boot_id

CONFIGURED = "configured.json"
"""Beside an unfinished KDIR's output: its configuration is finished, and what it took."""


def prepare(kernel: Kernel, *, clone: bool = True) -> Kdir:
    """Return a KDIR in which modules can be built; configure and prepare it if need be.

    With ``clone`` it may start from a copy of another one, which gives the same bytes sooner.
    Raises UsageError if Kconfig doesn't grant what the profile asks for, BuildFailed if the
    kernel's own preparation fails.
    """
    entry = kernel.entry
    return kernel.context.cache.get_or_make(
        entry, lambda: find(kernel, entry), lambda: _prepare(kernel, entry, clone=clone)
    )


def _prepare(kernel: Kernel, entry: Entry, *, clone: bool) -> Kdir:
    cache = kernel.context.cache
    cache.need_space(SPACE_NEEDED, "A kernel's output directory")
    partial = cache.partial(entry, keep=True)
    kbuild = kernel.kbuild(partial / "build")
    request = kernel.request()
    start = _started(partial, clone=clone)
    if start is None:
        start = _start(kernel, kbuild, partial, request if clone else None)
    else:
        cache.console.note(f"Continuing {entry.name}, which was interrupted.")
        forget_the_last(kbuild.kdir)
    expected = None
    if not start.base_kdir:
        expected = expected_objects(kernel, "prepare", request.configuration)
    made = kbuild.make(
        f"Preparing {kernel.title} for modules", ["modules_prepare"], expected=expected
    )
    phases = (*start.phases, Phase("prepare", made.usage, ccache=made.ccache))
    more: dict[str, Any] = {
        "request": request.as_json(),
        "base_kdir": start.base_kdir,
        "configuration": request.configuration,
    }
    objects = most_objects(start.objects, "prepare", made)
    return publish(kernel, entry, partial, phases, objects, **more)


def prepare_in_tree(base: Kdir, origin: Path, overlay: Path, bring: Callable[[], None]) -> Kdir:
    """Return a KDIR whose configuration has the driver's own options as modules.

    It starts as a copy of ``base``, so that only what those options change is made again.
    ``origin`` has the driver's Kconfig, Kbuild and sources; ``bring`` is called to bring them to
    ``overlay``, which then stands in the tree's folder for the driver.  Raises UsageError if the
    tree has no such folder, or if Kconfig refuses an option.
    """
    if not base.tree.has_in_tree_folder:
        raise UsageError(
            f"{base.tree.source} has no {IN_TREE_FOLDER}: the driver can't be built in-tree.",
            hint="A patch in module/patches/<kernel version>/ makes that folder.",
        )
    kernel, cache = base.kernel, base.kernel.context.cache
    fragment = _in_tree_fragment(base)
    kconfigs = sorted(origin.rglob("Kconfig"))
    kconfig = [(str(path.relative_to(origin)), sha256_file(path)) for path in kconfigs]
    key = digest({"base": base.entry.name, "fragment": fragment, "kconfig": kconfig})
    label = f"{base.profile.name}-{base.ready.environment.name}-in-tree"
    entry = cache.entry(EntryKind.KDIRS, label, key)

    def make() -> Kdir:
        cache.need_space(SPACE_NEEDED, "A kernel's output directory")
        bring()
        if any(sha256_file(overlay / name) != content for name, content in kconfig):
            raise BuildFailed(
                f"A Kconfig of {origin} was changed while it was copied.", hint="Run it again."
            )
        cache.check()
        partial = cache.partial(entry)
        _copy(base, partial / "build")
        kbuild = kernel.kbuild(partial / "build", overlay)
        wanted = [*kernel.fragments, ("in-tree.options", fragment)]
        configured = merge(kernel, kbuild, wanted, Path(".config"))
        made = kbuild.make("Preparing the in-tree KDIR", ["modules_prepare"])
        phases = (configured, Phase("prepare", made.usage, ccache=made.ccache))
        # Each build of a driver writes into it.
        return publish(kernel, entry, partial, phases, {}, final=False)

    if (found := find(kernel, entry)) is not None:
        return found
    with cache.lock(base.entry):
        return cache.get_or_make(entry, lambda: find(kernel, entry), make)


def _copy(base: Kdir, build: Path) -> None:
    """Copy a KDIR's output directory."""
    title = f"Copying the KDIR of {base.kernel.title}"
    with base.kernel.context.console.step(title, key=f"{base.entry.name} {base.stage}"):
        reuse.copy(base.path, build)
        if base.entry.is_open:
            reuse.forget_ends(build)
            forget_the_last(build)


def _in_tree_fragment(base: Kdir) -> str:
    """Return the driver's own options, as modules; the Rust driver's only in a Rust kernel."""
    options = ["MFRC522", "MFRC522_GLUE"]
    if base.config.get("RUST") == "y":
        options.append("MFRC522_RUST")
    return "".join(f"CONFIG_{option}=m\n" for option in options)


class ConfiguredRecord(Record):
    """How a KDIR began, beside an unfinished one."""

    phases: Phases
    base_kdir: Text | None = None
    objects: dict[Text, Count]
    boot: Text


@dataclass(frozen=True)
class _Start:
    """How a KDIR began: configured, from nothing or from a base KDIR with its counts of objects."""

    phases: tuple[Phase, ...]
    base_kdir: str | None
    objects: Mapping[str, int]


def _started(partial: Path, *, clone: bool) -> _Start | None:
    """Return how an interrupted preparation began, if it came to the end of its configuration.

    What was begun before that, a base KDIR's half-made copy too, is of no use; nor is anything
    that a power cut may have taken a part of.
    """
    mark = ConfiguredRecord.read(read_json(partial / CONFIGURED))
    if mark is None or mark.boot != boot_id() or (mark.base_kdir is not None and not clone):
        return None
    return _Start(tuple(one.phase for one in mark.phases), mark.base_kdir, mark.objects)


def _start(kernel: Kernel, kbuild: Kbuild, partial: Path, request: Request | None) -> _Start:
    """Configure a KDIR in ``partial``, on a copy of another one if there is one, and mark it."""
    (partial / CONFIGURED).unlink(missing_ok=True)
    if kbuild.kdir.exists():
        remove_tree(kbuild.kdir)
    cloned = None
    if request is not None:
        cloned = reuse.clone_base(request, kbuild.kdir, kbuild.context.cache)
    if cloned is None:
        kbuild.kdir.mkdir()
        reused = None
        if request is not None:
            reused = reuse.reuse_configuration(
                request.configuration, kbuild.kdir, kbuild.context.cache
            )
        configured = Phase("adopt", reused[1]) if reused else configure(kernel, kbuild)
        start = _Start((configured,), None, {})
    else:
        configured = configure(kernel, kbuild)
        reuse.forget_options(kbuild.kdir, cloned)
        phases = (Phase("seed", cloned.usage), configured)
        start = _Start(phases, cloned.base_kdir.entry.name, cloned.base_kdir.objects)
    mark = {
        "phases": [phase.as_json() for phase in start.phases],
        "base_kdir": start.base_kdir,
        "objects": dict(start.objects),
        "boot": boot_id(),
    }
    write_json(partial / CONFIGURED, mark)
    return start


def attempt(kernel: Kernel) -> Attempt:
    """Return what Kconfig makes of a profile, whether it grants all that is asked or not."""
    entry = kernel.entry

    def get() -> Attempt | None:
        found = find(kernel, entry)
        return None if found is None else Attempt(found.config, found.path)

    def make() -> Attempt:
        kernel.context.cache.need_space(SPACE_NEEDED, "A kernel's output directory")
        partial = kernel.context.cache.partial(entry, keep=True)
        build = partial / "build"
        if _started(partial, clone=True) is None:
            with suppress(KconfigError):
                _start(kernel, kernel.kbuild(build), partial, kernel.request())
        return Attempt(config_of(build), build)

    return kernel.context.cache.get_or_make(entry, get, make)


def discard(kernel: Kernel) -> None:
    """Remove a kernel's KDIR, also an unfinished one."""
    cache, entry = kernel.context.cache, kernel.entry
    with cache.lock(entry):
        remove_tree(cache.partial(entry, keep=True))
        if entry.path.exists():
            with cache.without_readers(entry.path / "modules"):
                cache.remove(entry)
