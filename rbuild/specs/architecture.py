"""Architectures: what a processor's is called everywhere, read from ``rootfs/architectures/``.

A new one is a new file there: nothing else in rbuild knows any of their names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rbuild.errors import MissingDependency, UsageError
from rbuild.util import data, yaml_model
from rbuild.util.suggest import nearest
from rbuild.util.yaml_model import Arch, DeviceTree, Form, Line, Option, Strict

Name = Annotated[str, Form(r"[A-Za-z0-9][A-Za-z0-9._-]*", "a plain name")]
Triplet = Annotated[
    str, Form(r"[a-z0-9_]+(?:-[a-z0-9_]+)+", "a triplet, such as aarch64-linux-gnu")
]
Model = Annotated[
    str,
    Form(r"[A-Za-z0-9][A-Za-z0-9._-]*", "a QEMU machine name without properties, such as raspi3b"),
]
CPU = r"[A-Za-z0-9][A-Za-z0-9._-]*(?:,[a-z][a-z0-9_-]*=(?:on|off|[0-9]{1,9}))*"
CPU_ACCEPTS = "a QEMU CPU model, such as cortex-a53, or max,sve=off"
"""Its properties are switches and numbers only: none names a file."""


class Elf(Strict):
    """How its programs are recognised (elf(5)): by these the kernel hands them to an emulator."""

    name: Name = Field(description="the machine in readelf's words, such as AArch64")
    bits: Literal[32, 64] = Field(description="the class")
    number: int = Field(ge=1, le=0xFFFF, description="e_machine")
    flags: int = Field(0, ge=0, le=0xFFFFFFFF, description="e_flags")
    exit_42: str = Field(
        pattern="^([0-9a-f]{2})+$",
        description="machine code, in hexadecimal, that ends a process with status 42",
    )


class Word(Strict):
    """A word of the vermagic: there if all of ``when`` are set and none of ``unless`` is."""

    word: Name = Field(description="the word, as in `modinfo`")
    when: tuple[Option, ...] = Field((), description="options that must be y")
    unless: tuple[Option, ...] = Field((), description="options that must not be y")

    def applies(self, config: Mapping[str, str]) -> bool:
        """Tell whether a configuration has it."""
        return all(config.get(name) == "y" for name in self.when) and not any(
            config.get(name) == "y" for name in self.unless
        )


class Machine(Strict):
    """A machine that QEMU can be, and what a kernel must have to say something on it."""

    model: Model = Field(description="QEMU's -machine")
    description: Line = Field("", description="a line for people")
    architecture: Arch = Field(description="the kernel's ARCH")
    cpu: Annotated[str, Form(CPU, CPU_ACCEPTS)] | None = Field(
        None, description="QEMU's -cpu, where it isn't the machine's own"
    )
    processors: int = Field(1, ge=1, le=512, description="number of processors")
    memory_mib: int = Field(512, ge=64, le=1 << 20, description="its memory in MiB")
    console: Annotated[
        str, Form("[A-Za-z][A-Za-z0-9]*(?:,[0-9a-z]+)?", "a console of the kernel's, such as ttyS1")
    ] = Field(description="the kernel's console=, such as ttyAMA0")
    serial_port: int = Field(
        0, ge=0, le=15, description="index of the QEMU serial port that the console is on"
    )
    device_tree: DeviceTree | None = Field(
        None, description="target of the kernel's dtbs, where QEMU doesn't make its own"
    )
    needs: tuple[Option, ...] = Field((), description="options that must be y")
    arguments: Annotated[
        str,
        Form(
            r"(?:[A-Za-z0-9_][!-~]*(?: +[A-Za-z0-9_][!-~]*)*)?",
            "a part of the kernel's command line: words that begin with a letter or digit",
        ),
    ] = Field("", description="more of the kernel's command line")


class KbuildNames(Strict):
    """What Kbuild calls it and its products."""

    arch: Arch = Field(description="ARCH")
    image: Name = Field(description="make target of the bootable image, such as Image")
    vermagic: tuple[Word, ...] = Field((), description="the end of a module's vermagic")
    board_image: Annotated[str, Form(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*)?", "a file's name")] = Field(
        "", description="what a Raspberry Pi's firmware calls the image"
    )

    @property
    def image_path(self) -> str:
        """The image's path in a KDIR."""
        return f"arch/{self.arch}/boot/{self.image}"

    @property
    def device_trees(self) -> str:
        """The folder of device trees in a KDIR."""
        return f"arch/{self.arch}/boot/dts"


class Architecture(Strict):
    """One processor architecture by the names that Debian, the kernel, gcc, QEMU and Rust give it.

    ``kernel`` and ``virtual`` are None for one that is a host's, and not a target's.
    """

    debian: str = Field(pattern="^[a-z0-9]+$", description="Debian's name, and the file's")
    machine: Name = Field(description="uname -m")
    triplet: Triplet = Field(description="gcc's and Debian's multiarch triplet")
    rust_triplet: Triplet = Field(description="rustc's target for programs")
    rust_bare: Triplet = Field(description="rustc's target for code without an operating system")
    qemu: Arch = Field(description="QEMU's name of it, as in qemu-NAME and qemu-system-NAME")
    elf: Elf = Field(description="how its programs are recognised")
    kernel: KbuildNames | None = Field(None, description="what Kbuild calls it, for a target")
    virtual: Machine | None = Field(None, description="QEMU's machine with fewest assumptions")

    def fill(self, path: str) -> str:
        """Return a definition's path with ``{triplet}`` and ``{rust_triplet}`` filled in."""
        return path.replace("{triplet}", self.triplet).replace("{rust_triplet}", self.rust_triplet)

    @property
    def target(self) -> KbuildNames:
        """What Kbuild calls it.  Raises UsageError where rbuild builds no kernels for it."""
        if self.kernel is None:
            built = ", ".join(one.debian for one in known().values() if one.kernel is not None)
            raise UsageError(
                f"rbuild builds no kernels for {self.debian}.",
                hint=f"{_folder()} says how for {built}.",
            )
        return self.kernel


def _folder() -> Path:
    return data.folder("rootfs") / "architectures"


@cache
def known() -> dict[str, Architecture]:
    """Return all architectures by Debian's name.  Raises UsageError for a file that is wrong."""
    found = {}
    for path in sorted(_folder().glob("*.yaml")):
        one = yaml_model.load(path, Architecture)
        if path.stem != one.debian:
            raise UsageError(f"{path}: debian: {one.debian} is not what the file is called.")
        found[one.debian] = one
    return found


def of_kernel(arch: str) -> Architecture:
    """Return the architecture for which Kbuild's ARCH is ``arch``; raise ValueError if none is."""
    for one in known().values():
        if one.kernel is not None and one.kernel.arch == arch:
            return one
    raise ValueError(f"{arch!r} is none of {', '.join(kernels())}")


def kernels() -> list[str]:
    """Return the ARCH of each architecture that kernels can be built for."""
    return [one.kernel.arch for one in known().values() if one.kernel is not None]


def host() -> Architecture:
    """Return the host's; raise MissingDependency for one that rbuild doesn't know."""
    machine = os.uname().machine
    for one in known().values():
        if one.machine == machine:
            return one
    names = ", ".join(one.machine for one in known().values())
    raise MissingDependency(f"rbuild runs on {names} hosts; this one is {machine}.")


def machines(arch: str) -> list[str]:
    """Return the names of the machines of an ARCH that can be booted, QEMU's own first."""
    paths = sorted(_machines().glob("*.yaml"))
    found = [path.stem for path in paths if yaml_model.load(path, Machine).architecture == arch]
    virtual = of_kernel(arch).virtual
    return found if virtual is None else [virtual.model, *found]


def machine(name: str, arch: str) -> Machine:
    """Return a machine by its name, or from a YAML file's path.

    Raises UsageError if there is none of an ARCH.
    """
    virtual = of_kernel(arch).virtual
    if virtual is not None and name == virtual.model:
        return virtual
    path = Path(name)
    if "/" not in name and path.suffix not in {".yaml", ".yml"}:
        path = _machines() / f"{name}.yaml"
        if not yaml_model.is_there(path):
            near = nearest(name, machines(arch))
            raise UsageError(f"There is no machine {name!r}.{near}")
    found = yaml_model.load(path, Machine)
    if found.architecture != arch:
        raise UsageError(f"The machine {name} runs kernels for {found.architecture}, not {arch}.")
    return found


def _machines() -> Path:
    return data.folder("profiles") / "machines"
