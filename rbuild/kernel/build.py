"""Building kernels: the image, modules and device trees of a prepared KDIR."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rbuild.errors import BuildFailed, InfrastructureError, ended_by_itself
from rbuild.kernel.kbuild import Kbuild
from rbuild.kernel.kdir import Kdir, Stage, close, expected_objects, find, most_objects, objects_of
from rbuild.kernel.products import forget_the_last, listed
from rbuild.sandbox import outputs
from rbuild.sandbox.context import Phase
from rbuild.sandbox.reproducer import SCRIPT, Recipe, write
from rbuild.util.hashes import sha256_file


def build(kdir: Kdir) -> Kdir:
    """Return the KDIR with its kernel built: Image, modules and device trees.

    Raises BuildFailed with the compiler's words.
    """
    kernel = kdir.kernel
    cache = kernel.context.cache
    kbuild = kernel.kbuild(kdir.path)
    if _is_built(kdir):
        cache.check()
        return replace(kdir, script=_reproducer(kdir, kbuild))
    with cache.lock(kdir.entry):
        current = find(kernel, kdir.entry)
        if current is None:
            raise InfrastructureError(f"{kdir.entry.name} was removed while it was needed.")
        if _is_built(current):
            return current
        script = _reproducer(kdir, kbuild)
        metadata = current.entry.metadata or {}
        expected = None
        if not kdir.base_kdir:
            expected = expected_objects(kernel, "kernel", metadata.get("configuration"))
        cache.check()
        if cache.open(kdir.entry):
            forget_the_last(kdir.path)
        try:
            made = kbuild.make(f"Building {kernel.title}", kernel.targets, expected=expected)
        except BuildFailed as error:
            error.script = script
            if ended_by_itself(error):
                cache.rest(kdir.entry)
            raise
        before = tuple(phase for phase in kdir.phases if phase.name != "kernel")
        built = close(
            kdir,
            (*before, Phase("kernel", made.usage, ccache=made.ccache)),
            stage=Stage.BUILT,
            targets=kernel.targets,
            artefacts=[_artefact(kdir.path, path) for path in _products(kdir)],
            objects=most_objects(objects_of(metadata), "kernel", made),
        )
        return replace(built, script=script)


def _reproducer(kdir: Kdir, kbuild: Kbuild) -> Path | None:
    context = kbuild.context
    recipe = Recipe(context.cache.root, context.runtime, kdir.ready.sandbox)
    jobs = [kbuild.job(["olddefconfig"]), kbuild.job(kdir.kernel.targets)]
    title = f"Building {kdir.kernel.title}"
    lines = recipe.kernel(kdir.path, jobs)
    return write(recipe, title, context.line(), lines, kdir.entry.path / SCRIPT)


def _products(kdir: Kdir) -> list[Path]:
    """Return what a finished kernel build made: Image, device trees, modules.

    Kbuild's own lists tell which those are: a KDIR that began as a copy of another may have more.
    """
    image = kdir.image
    if not image.is_file():
        raise BuildFailed(f"make succeeded, but there is no {kdir.target.image_path}.")
    names = listed(kdir.path / "modules.order")
    modules = [outputs.named(kdir.path, name).with_suffix(".ko") for name in names]
    trees = [kdir.device_trees / name for name in kdir.profile.device_trees]
    if not trees:
        trees = _all_device_trees(kdir)
    return [image, *trees, *modules]


def _all_device_trees(kdir: Kdir) -> list[Path]:
    folder = kdir.device_trees
    names = folder / "dtbs-list"  # since Linux 6.12
    if names.is_file():
        return sorted(outputs.named(kdir.path, name) for name in listed(names))
    return sorted(folder.rglob("*.dtb"))


def _artefact(build: Path, path: Path) -> dict[str, Any]:
    return {
        "path": str(path.relative_to(build)),
        "sha256": sha256_file(path),
        "size_bytes": path.stat().st_size,
    }


def _is_built(kdir: Kdir) -> bool:
    """Tell whether all that the profile asks for was built and, cheaply, is still there."""
    if kdir.stage is not Stage.BUILT or list(kdir.targets) != kdir.kernel.targets:
        return False
    try:
        return bool(kdir.artefacts) and all(
            (kdir.path / one["path"]).is_file()
            and (kdir.path / one["path"]).stat().st_size == one["size_bytes"]
            for one in kdir.artefacts
        )
    except OSError:  # a name that no file can have
        return False
