"""Environments: where a build happens, read from the definitions in ``rootfs/``.

There are three kinds of definition: a rootfs of its own (packages of a Debian suite in one
architecture), a hybrid (one rootfs with a native layer of another bound over it), and a variant (a
rootfs that is emulated in another way).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from rbuild import architecture, data, definition
from rbuild.architecture import CPU, CPU_ACCEPTS, Architecture
from rbuild.completion import names as known
from rbuild.definition import CONTROL, MAX_NAME, Form, Line, Strict, Suite, Word
from rbuild.errors import UsageError
from rbuild.nearest import nearest
from rbuild.store import Entry, Room, Store, digest

HOST = "host"
"""The architecture of a definition that means the host's own."""


NAME = "what --env calls it, and the Store's entries begin with"
DESCRIPTION = "a line for people"
EXTENDS = "a definition in the same folder or, with ../, a parent; its fields are the defaults"


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=MAX_NAME)]
Extended = Form(
    r"(?:\.\./)*[a-z0-9][a-z0-9-]*",
    "the name of a definition in the same folder or, with ../, a parent",
)
Package = Annotated[
    str,
    Form(
        "[a-z0-9][a-z0-9.+-]*[a-z0-9.+](?::[a-z0-9]+)?"
        "(?:=[0-9][A-Za-z0-9.+~:-]*|/[a-z][a-z0-9]*(?:-[a-z0-9]+)*)?",
        "a Debian package, such as clang-19 (or gcc:arm64, gcc=4:14.2.0-1, or "
        "dt-schema/trixie-backports)",
    ),
]
Program = Annotated[
    str,
    Form(r"\[|[A-Za-z0-9][A-Za-z0-9._+-]*", "a program's name without a path, such as clang-19"),
]
_STEP = r"(?:[A-Za-z0-9_]|\{(?:rust_)?triplet\})(?:[A-Za-z0-9._+-]|\{(?:rust_)?triplet\})*"
Folder = Annotated[
    str, Form(rf"/usr(?:/{_STEP})+", "a folder below /usr without .., such as /usr/lib/{triplet}")
]

FIXED = ("HOME", "LC_ALL", "PATH", "SOURCE_DATE_EPOCH", "TZ", "ENV", "BASH_ENV")
FIXED_BEGINNINGS = ("CCACHE_", "LD_", "PERL", "QEMU_")
"""Variables by which rbuild's own programs in a sandbox find their way, or could be led off it."""

Variable = Annotated[
    str,
    Form(
        rf"(?!(?:{'|'.join(FIXED)})$|{'|'.join(FIXED_BEGINNINGS)})[A-Za-z_][A-Za-z0-9_]*",
        f"a variable that a definition can set (rbuild reserves {', '.join(FIXED)}, and names that "
        f"begin with {', '.join(FIXED_BEGINNINGS)})",
    ),
]
Value = Annotated[str, Form(f"[^{CONTROL}]*", "a value without control characters")]

_SIZE = Form("(?:0x[0-9a-fA-F]{1,16}|[0-9]{1,15})[kKMG]?", "a number")
EMULATOR_VARIABLES = {
    "QEMU_CPU": Form(CPU, CPU_ACCEPTS),
    "QEMU_GUEST_BASE": _SIZE,
    "QEMU_ONE_INSN_PER_TB": _SIZE,
    "QEMU_PAGESIZE": _SIZE,
    "QEMU_RAND_SEED": _SIZE,
    "QEMU_RESERVED_VA": _SIZE,
    "QEMU_STACK_SIZE": _SIZE,
    "QEMU_TB_SIZE": _SIZE,
}
"""What only qemu-user reads, and what can name no file, no port and no program.

While a rootfs is made they are in the environment of the host's mmdebstrap.
"""


def _check_emulator(variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if name not in EMULATOR_VARIABLES:
            raise ValueError(
                f"{name!r:.60} is not supported; use one of {', '.join(EMULATOR_VARIABLES)}"
            )
        try:
            EMULATOR_VARIABLES[name].check(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return variables


EmulatorVariables = Annotated[dict[str, str], AfterValidator(_check_emulator)]


class RootfsDefinition(Strict):
    """A rootfs of its own: what mmdebstrap is asked for, and how builds run in it."""

    name: Name = Field(description=NAME)
    description: Line = Field("", description=DESCRIPTION)
    extends: Annotated[str, Extended] | None = Field(None, description=EXTENDS)
    suite: Suite = Field(description="a Debian suite, such as trixie")
    architecture: str = Field(description=f"Debian's name of one, or {HOST}: this host's own")
    target: str | None = Field(
        None, description="the architecture that kernels are built for, where it is another"
    )
    packages: tuple[Package, ...] = Field(min_length=1, description="Debian packages to install")
    more_packages: tuple[Package, ...] = Field(
        (), description="packages besides, for a definition that extends another"
    )
    llvm: Annotated[str, Form("1|-[1-9][0-9]?", "1, or a version such as -19")] = Field(
        "1", description="the value of the kernel's LLVM variable, such as -19"
    )
    cc: Program = Field("cc", description="a compiler driver for programs of the target's userland")
    variables: dict[Variable, Value] = Field({}, description="environment variables in every build")
    emulated_variables: EmulatorVariables = Field(
        {}, description="further variables where the rootfs is emulated"
    )
    emulator: tuple[Suite, ...] = Field(
        (),
        description="Debian suites whose qemu-user runs it where it is emulated, the preferred one "
        "last; none: the host's QEMU",
    )
    mount_points: tuple[Folder, ...] = Field(
        (), description="empty folders for a hybrid's native layer"
    )

    @property
    def all_packages(self) -> tuple[str, ...]:
        """All packages that are asked for."""
        return (*self.packages, *self.more_packages)

    @property
    def other_suites(self) -> tuple[str, ...]:
        """The suites that packages are asked of by name (NAME/SUITE)."""
        found = {one.partition("/")[2] for one in self.all_packages}
        return tuple(sorted(found - {"", self.suite}))

    @field_validator("architecture", "target")
    @classmethod
    def _known(cls, value: str | None, info: ValidationInfo) -> str | None:
        names = list(architecture.known())
        if info.field_name == "architecture":
            names.insert(0, HOST)
        if value is not None and value not in names:
            raise ValueError(f"{value!r} is none of {', '.join(names)}")
        return value


class Level(Strict):
    """What a level of a hybrid adds to those before it: folders and programs that are native."""

    folders: tuple[Folder, ...] = Field(
        (), description="whole folders below /usr; `{triplet}` is filled in"
    )
    programs: tuple[Program, ...] = Field((), description="names in the native rootfs' PATH")


NONE = known.NO_LEVEL
"""The level of every hybrid at which nothing is native."""


class HybridDefinition(Strict):
    """A rootfs (``base``) with programs and folders of another (``native``) bound over it.

    Each of the ``levels`` includes those before it; ``level`` is the one meant where none is named.
    """

    name: Name = Field(description=NAME)
    description: Line = Field("", description=DESCRIPTION)
    extends: Annotated[str, Extended] | None = Field(None, description=EXTENDS)
    base: Word = Field(description="the environment in which builds run")
    native: Word = Field(description="the native environment whose programs replace emulated ones")
    level: str = Field(description="the level that is meant where none is named")
    levels: dict[Name, Level] = Field(
        min_length=1, description="the levels, the least first; `none` needs no definition"
    )

    @model_validator(mode="after")
    def _known(self) -> HybridDefinition:
        if NONE in self.levels:
            raise ValueError(f"the level {NONE} needs no definition: nothing is native there")
        if self.level not in self.level_names:
            raise ValueError(f"level is one of {', '.join(self.level_names)}, not {self.level!r}")
        return self

    @property
    def level_names(self) -> list[str]:
        """The levels that can be asked for, the least first."""
        return [NONE, *self.levels]

    def parts(self, level: str) -> Level:
        """Return all that is native at a level."""
        names = self.level_names[1 : self.level_names.index(level) + 1]
        found = [self.levels[name] for name in names]
        return Level(
            folders=tuple(folder for part in found for folder in part.folders),
            programs=tuple(program for part in found for program in part.programs),
        )


class VariantDefinition(Strict):
    """A rootfs (``base``) as it is, run by another emulator or with another setting of it.

    What is built in it is the same, so it shares rootfs and KDIRs with its base.
    """

    base: Word = Field(description="the environment that it is a variant of")
    description: Line = Field("", description=DESCRIPTION)
    emulator: tuple[Suite, ...] = Field((), description="instead of the base's `emulator`")
    emulated_variables: EmulatorVariables = Field(
        {}, description="instead of the base's `emulated_variables`"
    )


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

    def entry(self, store: Store) -> Entry:
        """Return its place in the Store, named by its inputs."""
        label = f"{self.definition.name}-{self.definition.suite}-{self.architecture.debian}"
        return store.entry(Room.ROOTFS, label, digest(self.inputs))

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
    no such environment or level, or if its definition is wrong; HostLacks on an unknown host.
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
        if not definition.is_there(path):
            raise UsageError(f"There is no environment {name!r}.{nearest(name, names())}")
    found = definition.load(path, _model(path), under=_extended(path))
    if isinstance(found, RootfsDefinition):
        return found
    found = found.model_copy(update={"base": definition.beside(path, found.base)})
    if isinstance(found, HybridDefinition):
        return found.model_copy(update={"native": definition.beside(path, found.native)})
    if path.resolve() in variants:
        raise UsageError(f"{path}: base: {path.stem} is a variant of itself.")
    return _varied(found, path, (*variants, path.resolve()))


def _extended(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the fields of the definition that the one in ``path`` extends; none if it doesn't."""
    name = _content(path).get("extends")
    if not isinstance(name, str) or not Extended.fits(name):  # load says what is wrong
        return {}
    other = path.parent / f"{name}.yaml"
    if not definition.is_there(other):
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
    _, content = definition.read(path)
    return content if isinstance(content, dict) else {}
