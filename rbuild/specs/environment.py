"""Environments: where a build happens, read from the definitions in ``rootfs/``.

There are three kinds of definition: a rootfs of its own (packages of a Debian suite in one
architecture), a hybrid (one rootfs with a native layer of another bound over it), and a variant (a
rootfs that is emulated in another way).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbuild.errors import UsageError
from rbuild.specs import architecture
from rbuild.specs import catalogue as known
from rbuild.specs.architecture import Architecture
from rbuild.specs.definitions import (
    HOST,
    NONE,
    Extended,
    HybridDefinition,
    RootfsDefinition,
    VariantDefinition,
)
from rbuild.util import data, yaml_model
from rbuild.util.suggest import nearest


@dataclass(frozen=True)
class Rootfs:
    """A rootfs as it is to be provisioned on this host: its definition and real architecture."""

    definition: RootfsDefinition
    architecture: Architecture
    emulated: bool
    host: Architecture

    @property
    def inputs(self) -> dict[str, Any]:
        """What decides the content of the rootfs.

        Not among it are ``emulator`` and ``emulated_variables``: QEMU's version and CPU model
        change how fast a package is installed, not what it installs, and variants share a rootfs.
        """
        return {
            "suite": self.definition.suite,
            "architecture": self.architecture.debian,
            "packages": sorted(self.definition.all_packages),
            "mount_points": self.mount_points,
        }

    @property
    def label(self) -> str:
        """What its name in the cache begins with."""
        return f"{self.definition.name}-{self.definition.suite}-{self.architecture.debian}"

    @property
    def emulator_variables(self) -> dict[str, str]:
        """The environment variables that set up the emulator of its programs."""
        return dict(self.definition.emulated_variables) if self.emulated else {}

    @property
    def mount_points(self) -> list[str]:
        """Folders that must exist in it: the sandbox binds there, and the rootfs is read-only."""
        own = (
            []
            if not self.emulated
            else [self.host.fill(path) for path in self.definition.mount_points]
        )
        return ["/src", "/kdir", "/module", *own]


@dataclass(frozen=True)
class Environment:
    """An environment on this host.

    ``base`` is the rootfs that is entered; ``native`` the one whose programs are bound over it,
    in a hybrid on a host that would otherwise emulate, with what of it is bound at ``level``.
    """

    name: str
    description: str
    base: Rootfs
    native: Rootfs | None = None
    folders: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    level: str | None = None

    @property
    def rootfses(self) -> list[Rootfs]:
        """The rootfses that it is made of."""
        return [self.base] if self.native is None else [self.base, self.native]

    @property
    def builder(self) -> Architecture:
        """The architecture of its compilers, and so of the host programs in a KDIR of its."""
        return (self.native or self.base).architecture

    @property
    def target(self) -> Architecture:
        """The architecture that its kernels and modules are for."""
        wanted = self.base.definition.target
        return self.base.architecture if wanted is None else architecture.known()[wanted]

    @property
    def emulated(self) -> bool:
        """Whether its compilers run under emulation."""
        return self.native is None and self.base.emulated

    @property
    def llvm(self) -> str:
        """The value of the kernel's LLVM variable."""
        return (self.native or self.base).definition.llvm

    @property
    def inputs(self) -> dict[str, Any]:
        """What decides the result of a build in it, apart from the content of its rootfses.

        Not among it are the variables that only QEMU reads: see ``Rootfs.inputs``.
        """
        return {
            "name": self.name,
            "builder": self.builder.debian,
            "target": self.target.debian,
            "llvm": self.llvm,
            "variables": self.base.definition.variables,
            "folders": self.folders,
            "programs": self.programs,
        }

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of every build in it."""
        return {**self.base.definition.variables, **self.emulator_variables}

    @property
    def emulator_variables(self) -> dict[str, str]:
        """Those that set up its emulator: all that a job has which is no build, such as apt's."""
        return self.base.emulator_variables


def names() -> list[str]:
    """Return the names of the environments that are defined, cross first."""
    return known.environments()


def load(name: str) -> Environment:
    """Return the environment of that name (or in the file of that path) as it is on this host.

    A hybrid's name may end in a level, as in ``hybrid:compilers``.  Raises UsageError if there is
    no such environment or level, or if its definition is wrong; MissingDependency on an unknown
    host.
    """
    plain, level = _split(name)
    found = _read(plain)
    if isinstance(found, RootfsDefinition):
        if level is not None:
            raise UsageError(f"{found.name} has no levels: nothing is bound over its rootfs.")
        return Environment(found.name, found.description, _rootfs(found))
    base, native = _read(found.base), _read(found.native)
    for part in (base, native):
        if not isinstance(part, RootfsDefinition):
            raise UsageError(f"{found.name}: {part.name} is not a rootfs of its own.")
    assert isinstance(base, RootfsDefinition)
    assert isinstance(native, RootfsDefinition)
    if base.suite != native.suite:
        raise UsageError(
            f"{found.name}: {base.name} is of {base.suite}, {native.name} of {native.suite}; "
            "a hybrid's parts must be of the same suite."
        )
    if level is not None and level not in found.level_names:
        known = nearest(level, found.level_names)
        raise UsageError(f"{found.name} has no level {level!r}.{known}")
    own = found.name if level in {None, found.level} else f"{found.name}:{level}"
    chosen = level or found.level
    under = _rootfs(base)
    if not under.emulated or chosen == NONE:
        return Environment(own, found.description, under, level=chosen)
    parts = found.parts(chosen)
    return Environment(
        own, found.description, under, _rootfs(native), parts.folders, parts.programs, chosen
    )


def names_for(arch: str) -> list[str]:
    """Return the names of the environments that build kernels of an ARCH."""
    wanted = architecture.of_kernel(arch).debian
    return [name for name in names() if load(name).target.debian == wanted]


def load_for(name: str, arch: str) -> Environment:
    """Return the environment that ``name`` means for kernels of an ARCH.

    ``cross`` means the definition ``cross-armhf`` where the kernel is for armhf.  Raises as
    ``load`` does, and UsageError where no such environment builds for that architecture.
    """
    found = load(name)
    if found.target.kernel is not None and found.target.kernel.arch == arch:
        return found
    wanted = architecture.of_kernel(arch).debian
    plain, level = _split(name)
    sibling = f"{plain}-{wanted}"
    if sibling in names():
        return load(sibling if level is None else f"{sibling}:{level}")
    known = ", ".join(names_for(arch)) or "none yet: a file in rootfs/ makes one"
    raise UsageError(
        f"{found.name} builds for {found.target.debian}, and the profile is for {wanted}.",
        hint=f"Environments for {wanted}: {known}.",
    )


def _split(name: str) -> tuple[str, str | None]:
    """Return an environment's name or path, and the level behind its last colon, if any."""
    plain, colon, level = name.rpartition(":")
    if not colon or "/" in level or not plain:
        return name, None
    return plain, level


def _rootfs(found: RootfsDefinition) -> Rootfs:
    host = architecture.host()
    arch = host if found.architecture == HOST else architecture.known()[found.architecture]
    return Rootfs(found, arch, emulated=arch != host, host=host)


def _read(name: str, variants: tuple[Path, ...] = ()) -> RootfsDefinition | HybridDefinition:
    """Read a definition; ``variants`` are those whose base it is."""
    path = Path(name)
    if "/" not in name and path.suffix not in {".yaml", ".yml"}:
        path = data.folder("rootfs") / f"{name}.yaml"
        if not yaml_model.is_there(path):
            raise UsageError(f"There is no environment {name!r}.{nearest(name, names())}")
    found = yaml_model.load(path, _model(path), under=_extended(path))
    if isinstance(found, RootfsDefinition):
        return found
    found = found.model_copy(update={"base": yaml_model.beside(path, found.base)})
    if isinstance(found, HybridDefinition):
        return found.model_copy(update={"native": yaml_model.beside(path, found.native)})
    if path.resolve() in variants:
        raise UsageError(f"{path}: base: {path.stem} is a variant of itself.")
    return _varied(found, path, (*variants, path.resolve()))


def _extended(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the fields of the definition that the one in ``path`` extends; none if it doesn't."""
    name = _content(path).get("extends")
    if not isinstance(name, str) or not Extended.fits(name):  # load says what is wrong
        return {}
    other = path.parent / f"{name}.yaml"
    if not yaml_model.is_there(other):
        known = nearest(name, [one.stem for one in path.parent.glob("*.yaml")])
        raise UsageError(f"{path}: extends: there is no {other.name} beside it.{known}")
    if other in seen:
        raise UsageError(f"{path}: extends: {name} extends itself.")
    return {**_extended(other, (*seen, path)), **_content(other)}


def _varied(found: VariantDefinition, path: Path, variants: tuple[Path, ...]) -> RootfsDefinition:
    base = _read(found.base, variants)
    if not isinstance(base, RootfsDefinition):
        raise UsageError(f"{path}: base: {found.base} is not a rootfs of its own.")
    changes = {"emulator": found.emulator, "emulated_variables": found.emulated_variables}
    return base.model_copy(update=changes)


Model = type[RootfsDefinition] | type[HybridDefinition] | type[VariantDefinition]


def _model(path: Path) -> Model:
    """Tell by its fields which kind a definition is of; faults are shown by load."""
    content = _content(path)
    if "base" not in content:
        return RootfsDefinition
    return HybridDefinition if "native" in content else VariantDefinition


def _content(path: Path) -> dict[str, Any]:
    """Return the fields of a file as they are; raise UsageError for one that can't be read."""
    _, content = yaml_model.read(path)
    return content if isinstance(content, dict) else {}
