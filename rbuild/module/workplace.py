"""Where a module is built: its sources and outputs, and the call of make for it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rbuild.errors import BuildFailed
from rbuild.kernel.ccache import Share
from rbuild.kernel.identity import provenance
from rbuild.kernel.kbuild import Kbuild, MakeResult
from rbuild.kernel.kdir import Kdir, Stage
from rbuild.kernel.products import listed
from rbuild.module.check import SYMBOLS_SHOWN, BuiltModule, check, exports_of_crates, read_symvers
from rbuild.module.drivers import NAMES
from rbuild.module.sync import is_input, list_inputs, must_be_module, sync
from rbuild.sandbox import outputs
from rbuild.sandbox.context import BuildContext
from rbuild.sandbox.reproducer import Recipe, write
from rbuild.sandbox.runtime import MODULE, SRC
from rbuild.source.tree import IN_TREE_FOLDER
from rbuild.specs.profile import Driver
from rbuild.ui.format import visible
from rbuild.util import data, root
from rbuild.util.folders import remove_tree
from rbuild.util.root import Root

if TYPE_CHECKING:
    from rbuild.kernel.symbols import Exports

EXTRA = ("KBUILD_MODPOST_WARN=1",)
"""Lets modpost only warn of a symbol that it doesn't know: ``check`` tells where it comes from."""


@dataclass(frozen=True)
class ModuleBuild:
    """Where a module is built: its sources (brought there by ``sync``), and make's call for it.

    ``origin`` is the user's folder, ``sources`` its copy, ``outputs`` where make puts what it
    builds.  ``kdir`` is what the .ko is checked against, ``root`` where links of ``origin`` may
    lead to, if that isn't the folder's own.
    """

    kdir: Kdir
    kbuild: Kbuild
    title: str
    origin: Path
    sources: Path
    outputs: Path
    targets: tuple[str, ...]
    only: tuple[str, ...] = ()
    module: Path | None = None
    root: Root | None = None

    def sync(self) -> dict[str, str]:
        """Bring the sources to where they are built; return the fingerprint of each."""
        return sync(self.origin, self.sources, self.only, self.root)

    def wipe(self) -> None:
        """Throw away all that make has built.

        In-tree sources stay: a Kconfig file that is new would make Kbuild configure anew, which
        is no part of building a driver.
        """
        if self.outputs.exists():
            remove_tree(self.outputs)

    def make(self) -> MakeResult:
        """Call make; raises as ``Kbuild.make`` does."""
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - where work is begun

        try:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(_load_checks)
                return self.kbuild.make(self.title, self.targets, module=self.module, extra=EXTRA)
        except BuildFailed as error:
            if self.module is not None:
                # The files to mend, as an editor or a terminal can open them.
                error.hint = error.hint or _not_in_the_build(error.detail, self.origin)
                error.detail = with_own_paths(error.detail, self.origin)
            raise

    def reproducer(self, path: Path) -> Path | None:
        """Write the script that builds this without rbuild; return its path, if it can be."""
        context = self.kbuild.context
        recipe = Recipe(context.cache.root, context.runtime, self.kdir.ready.sandbox)
        job = self.kbuild.job(self.targets, module=self.module, extra=EXTRA)
        files = list(list_inputs(self.origin, self.only, self.root))
        if self.module is not None:
            lines = recipe.module(self.origin, files, job)
        else:
            target = f"{SRC}/{IN_TREE_FOLDER}"
            lines = recipe.in_tree(self.origin, files, self.kbuild.kdir, self.outputs, job, target)
        return write(recipe, self.title, context.line(), lines, path)

    def products(self) -> tuple[BuiltModule, ...]:
        """Return the modules that make has built, each checked."""
        if self.module is not None:
            found = _listed(self.outputs)
        else:
            found = [
                path for path in (self.kbuild.kdir / one for one in self.targets) if path.is_file()
            ]
        if not found:
            raise BuildFailed(
                f"{self.origin} was built, but made no module.",
                log=self.kbuild.context.log_path,
                hint="Its Kbuild or Makefile needs a line such as `obj-m += name.o`.",
            )
        exports = self._exports()
        if self._lacks_versions:
            self.kbuild.context.console.warn(
                "This kernel has CONFIG_MODVERSIONS and isn't built: the module has no versions of "
                "its symbols, and the kernel will refuse it. Run `rbuild kernel` with the same "
                "--profile and --env, then build the module again."
            )
        built = tuple(check(path, self.kdir, exports) for path in found)
        if undecided := sorted({name for one in built for name in one.undecided}):
            named = ", ".join(undecided[:SYMBOLS_SHOWN])
            self.kbuild.context.console.warn(
                f"The source doesn't tell whether this kernel exports {named}: run `rbuild kernel` "
                "with the same --profile and --env, then build the module again."
            )
        return built

    def _exports(self) -> Exports:
        """Return what the kernel exports, and the modules that are built together."""
        from rbuild.kernel import symbols  # noqa: PLC0415 - not where there is nothing to do

        own = read_symvers(self.outputs / "Module.symvers")
        if self.kdir.stage is Stage.BUILT:
            return symbols.listed(own | read_symvers(self.kdir.path / "Module.symvers"))
        console, tree = self.kbuild.context.console, self.kdir.tree
        if not symbols.is_known(tree):
            with console.step("Reading what the source exports, once", key=tree.version):
                symbols.index(tree)
        objects = symbols.objects(self.kbuild, self.kdir.entry.path / "objects")
        more = own | exports_of_crates(self.kdir)
        arch = self.kdir.profile.architecture
        return symbols.Exports(symbols.index(tree), objects, self.kdir.config, arch, more)

    @property
    def _lacks_versions(self) -> bool:
        """Whether modpost had no list of symbols from which to take their versions."""
        is_asked = self.kdir.config.get("MODVERSIONS") == "y"
        return is_asked and not (self.kbuild.kdir / "Module.symvers").is_file()


def _load_checks() -> None:
    """Load what products are checked with, while make runs."""
    from rbuild.kernel import symbols  # noqa: F401, PLC0415 - not where there is nothing to do
    from rbuild.util import elf  # noqa: F401, PLC0415 - not where there is nothing to do


IN_SANDBOX = re.compile(rf"(?<![\w./-]){MODULE}/(?P<name>[^\s:'\"]+)")
"""A file of a module's as its build names it."""


def with_own_paths(words: str, origin: Path) -> str:
    """Return a compiler's words with the module's files where the user has them."""

    def at_home(found: re.Match[str]) -> str:
        own = str(origin / found["name"])
        # os.path says of a name that no file can have that there is none.
        return visible(own) if is_input(found["name"]) and os.path.lexists(own) else found[0]

    return IN_SANDBOX.sub(at_home, words)


def _not_in_the_build(words: str, origin: Path) -> str | None:
    """Return what to say of the first file of the user's that a build lacks, if it names one."""
    for found in IN_SANDBOX.finditer(words):
        own = origin / found["name"]
        if is_input(found["name"]) or not os.path.lexists(own):
            continue
        place = visible(os.path.normpath(own))
        if ".." in Path(found["name"]).parts:
            return f"A build sees the module's folder only, not {place}: copy it into the folder."
        shipped = f": call it {visible(own.name)}_shipped" if own.suffix == ".o" else ""
        return f"{place} was not brought into the build, since Kbuild makes such files{shipped}."
    return None


def out_of_tree(
    kdir: Kdir, source: Path, folder: Path, context: BuildContext, own: Root | None = None
) -> ModuleBuild:
    """Return the place in ``folder`` where the module in ``source`` is built against a KDIR.

    Raises UsageError if ``source`` isn't the folder of a module.
    """
    must_be_module(source)
    is_own = source.resolve().is_relative_to(data.folder("module").resolve())
    share = Share(provenance(kdir.profile, kdir.tree), writable=is_own)
    kbuild = Kbuild(context, kdir.ready, kdir.tree, kdir.path, share=share)
    build = folder / "build"
    title = f"Building {source.name} out-of-tree in {kdir.ready.environment.name}"
    return ModuleBuild(
        kdir,
        kbuild,
        title,
        source,
        build,
        build,
        ("modules",),
        module=build,
        root=own or root.of(source),
    )


def in_tree(
    kdir: Kdir, output: Path, driver: Driver, overlay: Path, context: BuildContext
) -> ModuleBuild:
    """Return the place where one of our drivers is built as a part of the tree.

    ``output`` is an in-tree KDIR's output directory, or a copy of it; the driver's .ko alone is
    asked for.
    """
    share = Share(provenance(kdir.profile, kdir.tree))
    kbuild = Kbuild(context, kdir.ready, kdir.tree, output, overlay, share=share)
    title = f"Building {NAMES[driver]} in-tree in {kdir.ready.environment.name}"
    target = f"{IN_TREE_FOLDER}/{driver}/{NAMES[driver]}.ko"
    return ModuleBuild(
        kdir,
        kbuild,
        title,
        data.folder("module"),
        overlay,
        output / IN_TREE_FOLDER,
        (target,),
        only=IN_TREE_PARTS,
    )


IN_TREE_PARTS = ("Kconfig", "Kbuild", *Driver)
"""What of ``module/`` an in-tree build needs."""


def _listed(folder: Path) -> list[Path]:
    """Return the modules that make has just built in a folder, not those of builds before it."""
    order = folder / "modules.order"
    if not order.is_file():
        found = sorted(folder.rglob("*.ko"))
        return [outputs.named(folder, str(path.relative_to(folder))) for path in found]
    names = listed(order, root=f"{MODULE}/")
    return sorted({outputs.named(folder, name).with_suffix(".ko") for name in names})
