"""Definitions of environments: a rootfs of its own, a hybrid of two, a variant of either."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from rbuild.specs import architecture, catalogue
from rbuild.specs.architecture import CPU, CPU_ACCEPTS
from rbuild.util.yaml_model import CONTROL, MAX_NAME, Form, Line, Strict, Suite, Word

HOST = "host"
"""The architecture of a definition that means the host's own."""

NAME = "what --env calls it, and the cache's entries begin with"

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


NONE = catalogue.NO_LEVEL
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
