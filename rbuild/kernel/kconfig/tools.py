"""The tools whose versions Kconfig asks for."""

from __future__ import annotations

import re

TOOLS = {
    "PAHOLE": ("pahole", "pahole, in the package dwarves"),
    "RUSTC": ("rustc", "rustc"),
    "RUSTC_LLVM": ("LLVM", "rustc's own LLVM"),
    "CLANG": ("clang", "clang"),
    "LLD": ("lld", "lld"),
    "GCC": ("gcc", "gcc"),
    "AS": ("the assembler", "the assembler"),
    "LD": ("the linker", "the linker"),
}
"""The tools whose versions Kconfig knows as numbers, by the option's name without _VERSION."""


def version_of(name: str, number: str) -> str:
    """Return a tool's version as a person writes it: 124 of pahole is 1.24, 108501 of rustc 1.85.1.

    The kernel's scripts/*-version.sh say how each is made a number.
    """
    if not re.fullmatch("[0-9]{1,18}", number) or int(number) == 0:
        return "no"
    value = int(number)
    if name == "PAHOLE_VERSION":
        return f"{value // 100}.{value % 100:02d}"
    major, rest = divmod(value, 100000 if name == "RUSTC_VERSION" else 10000)
    minor, patch = divmod(rest, 100)
    return f"{major}.{minor}.{patch}"
