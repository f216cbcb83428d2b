"""Whether a board can run what is built for it: its processor, its programs, its device tree."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from rbuild.board.deploy.board import Board, Hardware
from rbuild.devicetree import fdt
from rbuild.errors import UsageError
from rbuild.kernel.config import read_config
from rbuild.kernel.kdir import Kdir
from rbuild.specs import architecture
from rbuild.specs.architecture import Architecture
from rbuild.ui.format import several

GENERATIONS = {
    "armv8l": "aarch64",  # a 64-bit kernel, asked by a program under `linux32`
    "armv6l": "armv7l",
}
"""Machines that run kernels of an architecture that is called otherwise."""

SOCS_64 = ("brcm,bcm2837", "brcm,bcm2711", "brcm,bcm2712")
"""The chips of Raspberry Pis that can run a 64-bit kernel, even if they run a 32-bit one now."""

ONLY_64 = "brcm,bcm2712"
"""A chip whose processors can't run a 32-bit kernel."""

PAGE_SIZES = {"ARM64_4K_PAGES": 4096, "ARM64_16K_PAGES": 16384, "ARM64_64K_PAGES": 65536}

PROCESSORS = {"armv6l": ("CPU_V6", "CPU_V6K"), "armv7l": ("CPU_V7",)}
"""What a 32-bit kernel must have to know a processor (arch/arm/mm/Kconfig)."""

TOOLS = re.compile(
    r"(CC|GCC|CLANG|LD|LLD|AS|RUSTC|RUST|BINDGEN|PAHOLE|TOOLS|TOOLCHAIN|LLVM|HAVE|ARCH|CAN)_|"
    r".*_VERSION(_TEXT)?$|IKCONFIG|LOCALVERSION|BUILD_SALT|DEFAULT_HOSTNAME|SYSTEM_TRUSTED_KEYS"
)
"""Options that tell what a kernel was compiled by, or change nothing that a module sees."""

MAX_CONFIG_BYTES = 4 << 20
"""The bytes of the largest configuration: a distribution's has 0.3 MiB."""
DIFFERENCES_SHOWN = 3

OTHER_PROFILE = "--profile chooses a kernel for another architecture."


def must_suit(board: Board, target: Architecture, *, whole: bool) -> list[str]:
    """Return warnings; raise UsageError if the board can't run what is built for ``target``.

    That is a kernel if ``whole``, else a module for the kernel that runs there.
    """
    hardware, host = board.hardware, board.remote.host
    what = f"the {'kernel' if whole else 'module'} is built for {target.machine}"
    running = _architecture(hardware)
    if hardware.machine and running is None:
        raise UsageError(f"{host} is an {hardware.machine} machine; {what}.", hint=OTHER_PROFILE)
    if (
        running
        and running.debian != target.debian
        and not (whole and _can_change(hardware, running, target))
    ):
        raise UsageError(
            f"{host} runs a {running.elf.bits}-bit kernel ({hardware.machine}); {what}.",
            hint=OTHER_PROFILE,
        )
    if hardware.number and hardware.number not in {
        one.elf.number for one in architecture.known().values() if one.kernel is not None
    }:
        raise UsageError(
            f"The programs in {board.remote.root} on {host} are for another processor; {what}.",
            hint=OTHER_PROFILE,
        )
    if hardware.bits == 64 and target.elf.bits == 32:
        raise UsageError(
            f"The programs on {host} are 64-bit ones, which no 32-bit kernel runs; {what}.",
            hint=OTHER_PROFILE,
        )
    return list(_warnings(board, running, target))


def _warnings(board: Board, running: Architecture | None, target: Architecture) -> Iterator[str]:
    hardware, host = board.hardware, board.remote.host
    if running is not None and running.elf.bits != target.elf.bits:
        yield (
            f"{host} runs a {running.elf.bits}-bit kernel ({hardware.machine}) now, and will run a "
            f"{target.elf.bits}-bit one."
        )
    if 0 < hardware.bits < target.elf.bits:
        yield (
            f"The programs on {host} are {hardware.bits}-bit ones under a {target.elf.bits}-bit "
            "kernel: what is compiled there isn't for this kernel, and the kernel must have "
            "CONFIG_COMPAT."
        )


def _can_change(hardware: Hardware, running: Architecture, target: Architecture) -> bool:
    """Tell whether the processor can run a kernel with other bits than the one that runs."""
    if target.elf.bits > running.elf.bits:
        return any(one in SOCS_64 for one in hardware.compatible)
    return ONLY_64 not in hardware.compatible


def _architecture(hardware: Hardware) -> Architecture | None:
    """Return that of the kernel that runs; None if it isn't known, or none that rbuild builds."""
    name = GENERATIONS.get(hardware.machine, hardware.machine)
    found = (one for one in architecture.known().values() if one.machine == name)
    return next((one for one in found if one.kernel is not None), None)


def must_run_on(board: Board, kdir: Kdir, *, whole: bool) -> None:
    """Raise UsageError if a kernel's configuration shows that it can't run there.

    Of a module: that the kernel that runs there is configured otherwise.
    """
    hardware, host = board.hardware, board.remote.host
    config = kdir.config
    if not whole:
        sizes = [size for name, size in PAGE_SIZES.items() if config.get(name) == "y"]
        if sizes and hardware.page_size and hardware.page_size not in sizes:
            raise UsageError(
                f"{host} runs a kernel with pages of {hardware.page_size} bytes; the module is "
                f"built for pages of {sizes[0]} bytes.",
                hint="Set CONFIG_ARM64_4K_PAGES or CONFIG_ARM64_16K_PAGES as there in "
                f"{kdir.profile.path}, or choose another --profile.",
            )
        return
    is_mixed = hardware.bits == 32 and kdir.ready.environment.target.elf.bits == 64
    if is_mixed and config.get("COMPAT") != "y":
        raise UsageError(
            f"The programs on {host} are 32-bit ones; the kernel of {kdir.profile.name} can't "
            "run them: CONFIG_COMPAT is not set.",
            hint=f"Set it to y in {kdir.profile.path}.",
        )
    needed = PROCESSORS.get(hardware.machine, ())
    others = [name for names in PROCESSORS.values() for name in names if name not in needed]
    if (
        needed
        and not any(config.get(name) == "y" for name in needed)
        and any(config.get(name) == "y" for name in others)
    ):
        raise UsageError(
            f"{host} is an {hardware.machine} machine; the kernel of {kdir.profile.name} is built "
            f"for another processor: CONFIG_{needed[0]} is not set.",
            hint=OTHER_PROFILE,
        )


def config_warnings(board: Board, kdir: Kdir) -> list[str]:
    """Return a warning if the kernel there is one of the same release, but configured otherwise.

    A module of another configuration may be loaded, and take the kernel's structures for others.
    """
    there = read_config(_config_of(board, kdir.release))
    here = kdir.config
    names = sorted(
        name
        for name in there.keys() | here.keys()
        if there.get(name, "n") != here.get(name, "n") and not TOOLS.match(name)
    )
    if not there or not names:
        return []
    differences = [
        f"CONFIG_{name}={there.get(name, 'n')}, here {here.get(name, 'n')}" for name in names
    ]
    return [
        f"The kernel {kdir.release} on {board.remote.host} isn't configured as that of "
        f"{kdir.profile.name}: {several(differences, DIFFERENCES_SHOWN)}. "
        "A module may not work there."
    ]


def _config_of(board: Board, release: str) -> str:
    """Return the configuration of a kernel there; nothing where it isn't known."""
    content = board.remote.step("kconfig", release).first("kconfig")
    try:
        found = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        return found.decompress(base64.b64decode(content), MAX_CONFIG_BYTES).decode(
            "utf-8", "replace"
        )
    except (ValueError, zlib.error):
        return ""


def tree_warnings(board: Board, trees: Sequence[Path]) -> list[str]:
    """Return a warning if none of a kernel's device trees is the board's."""
    wanted = [one for one in board.hardware.compatible if one.startswith("raspberrypi,")]
    if not wanted or not trees:
        return []
    found = {name for path in trees for name in fdt.read(path).texts("compatible")}
    if found & set(wanted):
        return []
    names = ", ".join(path.name for path in trees)
    return [
        f"{board.remote.host} is a {wanted[0]}, which none of the device trees is for: {names}."
    ]
