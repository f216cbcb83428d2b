"""Profiles: what to build.  A profile is a YAML file in ``profiles/`` or wherever the user says."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, field_validator, model_validator

from rbuild.errors import UsageError
from rbuild.specs import architecture
from rbuild.specs import catalogue as known
from rbuild.util import data, root, yaml_model
from rbuild.util.home import at_home
from rbuild.util.root import Root
from rbuild.util.suggest import nearest
from rbuild.util.yaml_model import (
    CONTROL,
    MAX_NAME,
    Arch,
    DeviceTree,
    FilePath,
    Form,
    Line,
    Option,
    Strict,
    Suite,
    Word,
)

MAX_CONFIG_BYTES = 4 << 20
"""The bytes of the largest fragment or .config: an allmodconfig has 0.3 MiB."""

MAX_KEY_BYTES = 1 << 20
"""The bytes of the largest OpenPGP key: one with thousands of signatures."""

Url = Annotated[
    str, Form("(?:https?|file)://[!-~]+", "a URL that begins with https://, http:// or file://")
]
GitUrl = Annotated[
    str,
    Form(
        # The host, and the user before it, begin with no dash: ssh would take them for an option.
        r"(?:https?|ssh|git)://(?:[A-Za-z0-9_][^@/\s]*@)?[A-Za-z0-9\[][A-Za-z0-9.:\]-]*(?:/[!-~]*)?|"
        rf"(?:file://)?/[^{CONTROL}]*|"
        # Not host::path, by which git runs a program of its own for it: git-remote-ext.
        r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*:(?!//|[:-])[!-~]+",
        "the URL of a git repository: https://, http://, ssh://, git://, file://, USER@HOST:PATH "
        "or an absolute path",
    ),
]
GitRef = Annotated[
    str,
    Form(
        r"(?!.*(?:\.\.|//|@\{))[A-Za-z0-9_][A-Za-z0-9_./@+#=,-]*",
        "a branch, tag or commit, such as v6.12.9",
    ),
]
KconfigText = Annotated[
    str, Form(f"[^{CONTROL}]*", "a value without control characters, such as y, m, n, 4 or a text")
]


DEFAULT_ARCHITECTURE = "arm64"
"""The ARCH of a profile that names none."""


class Driver(StrEnum):
    """The drivers for the MFRC522 that ``module/`` has."""

    RUST = "rust"
    C = "c"
    GLUE = "glue"


IN_KERNEL = (Driver.RUST, Driver.C)
"""The drivers as the kernel itself would have them: what is compared unless asked otherwise."""


class Kind(StrEnum):
    """How a module is built: beside the kernel tree, or as a part of it."""

    OUT_OF_TREE = "out-of-tree"
    IN_TREE = "in-tree"


class Source(Strict):
    """Where a kernel's source comes from: exactly one of the four."""

    debian: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9.+*?-]*$",
        description="a Debian package, such as linux-source-6.12; of those that a pattern such as "
        "linux-source-7.* matches, the newest",
    )
    suite: Suite | None = Field(
        None,
        description="Debian's suite that has the package, where it isn't the environment's own",
    )
    tarball: Url | None = Field(None, description="the URL of a kernel.org tarball")
    sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="the tarball's SHA-256 in hexadecimal"
    )
    key: FilePath | None = Field(
        None,
        description="the file of an OpenPGP public key that has signed the tarball, instead of its "
        "checksum or besides; a relative path starts at the profile",
    )
    signature: Url | None = Field(
        None,
        description="the URL of that signature, of the uncompressed tarball; where none is named, "
        "kernel.org's name for it: .tar.sign instead of .tar.xz",
    )
    git: GitUrl | None = Field(None, description="the URL of a git repository")
    ref: GitRef | None = Field(None, description="a branch, tag or commit of it")
    directory: FilePath | None = Field(
        None, description="a local kernel tree; a relative path starts at the profile"
    )

    @model_validator(mode="after")
    def _one(self) -> Source:
        given = [name for name in ("debian", "tarball", "git", "directory") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError("a source has exactly one of debian, tarball, git, directory")
        if self.tarball and not self.sha256 and not self.key:
            raise ValueError("tarball and sha256 go together, or tarball and key")
        if (self.sha256 or self.key) and not self.tarball:
            raise ValueError("sha256 and key go with tarball")
        if self.signature and not self.key:
            raise ValueError("signature goes with key")
        if self.suite and not self.debian:
            raise ValueError("suite goes with debian")
        if bool(self.git) != bool(self.ref):
            raise ValueError("git and ref go together")
        return self

    @property
    def is_pattern(self) -> bool:
        """Whether what is meant can only be said of what a suite has at the time."""
        return self.debian is not None and (
            self.suite is not None or bool(set("*?") & {*self.debian})
        )

    def __str__(self) -> str:
        if self.debian and self.suite:
            return f"{self.debian} of {self.suite}"
        return str(
            self.debian or self.tarball or (self.git and f"{self.git} {self.ref}") or self.directory
        )


class Config(Strict):
    """How a kernel is configured: a base, then fragments over it, then single options."""

    base: Word = Field(
        "defconfig",
        description="a configuration target of the kernel's (tinyconfig, defconfig, "
        "bcm2711_defconfig ...) or the path of a .config file relative to the profile",
    )
    fragments: tuple[FilePath, ...] = Field((), description="Kconfig fragments, from the profile")
    options: dict[Option, KconfigText | int | bool] = Field(
        {}, description="single options without their CONFIG_, such as `SPI: y`; over the fragments"
    )

    @field_validator("options", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:  # noqa: ANN401 - whatever YAML holds
        if not isinstance(value, dict):
            return value
        # YAML 1.1 reads a bare y as a string but yes/no/on/off as booleans: both mean Kconfig's.
        return {
            k: {True: "y", False: "n"}.get(v, v) if isinstance(v, bool) else v
            for k, v in value.items()
        }

    def as_fragment(self) -> str:
        """Return ``options`` as the text of a Kconfig fragment.

        What looks like a number has no quotes yet: see ``kbuild.quote``.
        """
        lines = []
        for name, value in self.options.items():
            if value == "n":
                lines.append(f"# CONFIG_{name} is not set")
            elif isinstance(value, str) and value not in {"y", "m"} and not _is_number(value):
                escaped = value.replace("\\", "\\\\").replace('"', '\\"')
                lines.append(f'CONFIG_{name}="{escaped}"')
            else:
                lines.append(f"CONFIG_{name}={value}")
        return "".join(f"{line}\n" for line in lines)


class Objects(Strict):
    """About how many objects each phase makes: what progress counts against the first time."""

    prepare: int = Field(0, ge=0, le=1_000_000, description="of `make modules_prepare`")
    kernel: int = Field(0, ge=0, le=1_000_000, description="of a whole kernel's build")


class Profile(Strict):
    """What to build.  Relative paths in it start where its file is."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]*$",
        max_length=MAX_NAME,
        description="what the cache's entries begin with: small letters, digits, `.`, `_`, `-`",
    )
    description: Line = Field("", description="a line for `rbuild profiles`")
    architecture: Arch = Field(
        DEFAULT_ARCHITECTURE,
        description="the kernel's ARCH",
        json_schema_extra=lambda schema: schema.update(enum=[*architecture.kernels()]),
    )
    source: tuple[Source, ...] = Field(
        min_length=1, description="where the kernel's source comes from; the first that can be had"
    )
    patches: bool = Field(True, description="apply module/patches/<kernel version>/ to the source")
    config: Config = Field(Config(), description="how it is configured")
    machine: Word = Field("virt", description="what QEMU is when its kernel is booted")
    device_trees: tuple[DeviceTree, ...] = Field(
        (), description="targets of the kernel's dtbs, such as broadcom/bcm2837-rpi-3-b.dtb"
    )
    driver: Driver = Field(Driver.RUST, description="our driver that is built unless --driver says")
    kind: Kind = Field(Kind.OUT_OF_TREE, description="how, unless --in-tree or --out-of-tree says")
    objects: Objects = Field(Objects(), description="what the first build's progress counts to")
    _path: Path = PrivateAttr(default=Path())

    @property
    def path(self) -> Path:
        """The file that it came from."""
        return self._path

    @property
    def machine_name(self) -> str:
        """The machine's name, or the absolute path of its file."""
        return yaml_model.beside(self.path, self.machine)

    @field_validator("architecture")
    @classmethod
    def _known(cls, value: str) -> str:
        architecture.of_kernel(value)
        return value

    @field_validator("source", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:  # noqa: ANN401
        return [value] if isinstance(value, dict) else value

    def fragments(self) -> list[tuple[str, str]]:
        """Return the name and the text of each fragment, in the order of their merging.

        Raises UsageError naming the profile and the file that can't be read.
        """
        found = [
            (fragment.name, self.read(fragment, "config.fragments"))
            for fragment in self.config.fragments
        ]
        if self.config.options:
            found.append((f"{self.name}.options", self.config.as_fragment()))
        return found

    def read(self, name: str | Path, field: str) -> str:
        """Return the text of a configuration that a field names.

        Raises UsageError naming the profile, the field and the file if it can't be read, or may
        not be: it must lie in the profile's folder, or in the git work tree that has this.
        """
        where = f"{self.path}: {field}"
        return self._root.read_text(self.path.parent / name, limit=MAX_CONFIG_BYTES, where=where)

    def key(self, source: Source) -> Path:
        """Return the path of a source's key; raises UsageError for an unknown user's home."""
        assert source.key is not None
        return self.path.parent / at_home(source.key, f"{self.path}: source.key")

    def key_content(self, source: Source) -> bytes:
        """Return the content of a source's key; raises UsageError as ``read`` does."""
        where = f"{self.path}: source.key"
        return self._root.read_bytes(self.key(source), limit=MAX_KEY_BYTES, where=where)

    @property
    def _root(self) -> Root:
        return root.of(self.path.parent, root.BESIDE)


def names() -> list[str]:
    """Return the names of the profiles that come with rbuild."""
    return known.profiles()


def load(name: str) -> Profile:
    """Return the profile of that name, or the one in the file of that path.

    Raises UsageError if there is none, or if it is wrong.
    """
    path = Path(name)
    if "/" not in name and path.suffix not in {".yaml", ".yml"}:
        path = data.folder("profiles") / f"{name}.yaml"
        if not yaml_model.is_there(path):
            raise UsageError(
                f"There is no profile {name!r}.{nearest(name, names())}",
                hint="`rbuild profiles` lists them; a path to a YAML file works too.",
            )
    profile = yaml_model.load(path, Profile, verbatim=("config", "options"))
    profile._path = path.resolve()
    return profile


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]+|0[xX][0-9a-fA-F]+", text) is not None


TARGET = re.compile(r"(?!-)[A-Za-z0-9_-]*config")
"""The name of a configuration target, such as defconfig; other names of a base are a file's."""
