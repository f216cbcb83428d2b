"""Where a benchmark's runs are made: each mode's own folder, brought to a scenario's start.

A place builds in the run's own folders only: a benchmark neither disturbs what the cache has, nor
finds it built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from rbuild.bench.plan import Scenario
from rbuild.errors import BuildFailed, UsageError
from rbuild.kernel.config import read_config
from rbuild.kernel.configure import configure
from rbuild.kernel.identity import Kernel
from rbuild.kernel.kbuild import Kbuild
from rbuild.kernel.products import listed
from rbuild.module.workplace import ModuleBuild
from rbuild.sandbox.context import Phase
from rbuild.sandbox.runtime import SRC, Bind
from rbuild.specs.profile import Profile
from rbuild.util.folders import remove_tree

SOURCES = (".rs", ".c")
"""What a driver's change is made in: Rust, if it has any, since that takes longer to compile."""

OF_KERNEL = {
    Scenario.INCREMENTAL_C: ("drivers/spi/spi.c",),
    Scenario.INCREMENTAL_RUST: ("rust/kernel/spi.rs", "rust/kernel/lib.rs"),
}
"""What a kernel's change is made in: the first of these files that the tree has."""

Enter = Callable[[Kbuild], Kbuild]
"""Changes how a place's commands enter their environment, such as into a cgroup."""


class Place(Protocol):
    """Where one mode is built."""

    def clean(self) -> None:
        """Throw away all that was built."""
        ...

    def change(self, scenario: Scenario, number: int) -> None:
        """Change the line that the scenario is about; ``number`` makes each change another."""
        ...

    def build(self, enter: Enter) -> tuple[Phase, ...]:
        """Build what isn't up to date; raises as ``Kbuild.make`` does."""
        ...

    def products(self) -> list[Path]:
        """Return the files that were built, checked where they can be."""
        ...


@dataclass(frozen=True)
class ModulePlace:
    """A driver's place: a ModuleBuild, whose make is the one phase ``module``."""

    work: ModuleBuild

    def clean(self) -> None:
        """Throw away all that was built, and any changes of the sources."""
        self.work.wipe()
        self.work.sync()

    def change(self, scenario: Scenario, number: int) -> None:
        """Change a line of the driver."""
        assert scenario is Scenario.INCREMENTAL
        change_a_line(main_source(self.work), number)

    def build(self, enter: Enter) -> tuple[Phase, ...]:
        """Build the driver."""
        made = replace(self.work, kbuild=enter(self.work.kbuild)).make()
        return (Phase("module", made.usage, ccache=made.ccache),)

    def products(self) -> list[Path]:
        """Return the .ko, checked as every module that rbuild builds is."""
        return [one.path for one in self.work.products()]


@dataclass(frozen=True)
class KernelPlace:
    """A kernel's place: an output directory from nothing, in ``folder``.

    A changed source is a copy of the tree's file, bound over it in the sandbox: the tree itself
    never changes.
    """

    kbuild: Kbuild
    kernel: Kernel
    folder: Path

    def clean(self) -> None:
        """Throw away the output directory and all changes."""
        if self.folder.exists():
            remove_tree(self.folder)
        self._edits.mkdir(parents=True)

    def change(self, scenario: Scenario, number: int) -> None:
        """Change a line of a C file or of ``kernel::spi``; raises UsageError if there is none."""
        names = OF_KERNEL[scenario]
        tree = self.kbuild.tree
        name = next((name for name in names if (tree.path / name).is_file()), None)
        if name is None:
            raise UsageError(f"{tree.source} has no {' or '.join(names)} to change a line of.")
        path = self._edits / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((tree.path / name).read_bytes())
        change_a_line(path, number)

    def build(self, enter: Enter) -> tuple[Phase, ...]:
        """Configure and prepare if nothing is there, then build the kernel."""
        kbuild = enter(replace(self.kbuild, edits=self._binds()))
        phases: list[Phase] = []
        if not (kbuild.kdir / ".config").exists():
            kbuild.kdir.mkdir()
            configured = configure(self.kernel, kbuild)
            prepared = kbuild.make("Preparing the kernel", ["modules_prepare"])
            phases = [configured, Phase("prepare", prepared.usage, ccache=prepared.ccache)]
        made = kbuild.make("Building the kernel", self.kernel.targets)
        return (*phases, Phase("kernel", made.usage, ccache=made.ccache))

    def products(self) -> list[Path]:
        """Return Image, Module.symvers and the modules."""
        kdir = self.kbuild.kdir
        target = self.kbuild.ready.environment.target.target
        image, symvers = kdir / target.image_path, kdir / "Module.symvers"
        names = listed(kdir / "modules.order")
        return [image, symvers, *((kdir / name).with_suffix(".ko") for name in names)]

    @property
    def _edits(self) -> Path:
        return self.folder / "edits"

    def _binds(self) -> tuple[Bind, ...]:
        return tuple(
            Bind(path, f"{SRC}/{path.relative_to(self._edits)}")
            for path in sorted(self._edits.rglob("*"))
            if path.is_file()
        )


def has_rust(profile: Profile) -> bool:
    """Tell whether a profile's fragments ask for Rust."""
    asked: dict[str, str] = {}
    for _, text in profile.fragments():
        asked |= read_config(text)
    return asked.get("RUST") == "y"


def main_source(place: ModuleBuild) -> Path:
    """Return the driver's largest source file in the first of ``SOURCES`` that it is written in."""
    if place.module is not None:
        folder = place.sources
    else:
        folder = place.sources / Path(place.targets[0]).parent.name
    for suffix in SOURCES:
        paths = [p for p in folder.rglob(f"*{suffix}") if not p.name.endswith(".mod.c")]
        if paths:
            return max(paths, key=lambda path: path.stat().st_size)
    raise BuildFailed(f"{folder} has no source file to change a line of.")


def change_a_line(path: Path, number: int) -> None:
    """Change a source file's last line, a comment that the first change adds."""
    mark = "// rbuild bench: change "
    lines = path.read_text().splitlines()
    if lines and lines[-1].startswith(mark):
        lines.pop()
    path.write_text("\n".join([*lines, f"{mark}{number}"]) + "\n")


def once(place: Place, changes: Sequence[Scenario]) -> None:
    """Build a place that nothing has built yet, so that other scenarios have their start.

    With ``changes``, each of their lines is there already: the first run changes it, no more.
    """
    for scenario in changes:
        place.change(scenario, -1000)
    place.build(lambda kbuild: kbuild)
