"""What an ELF file says of itself: machine, a module's modinfo, its undefined symbols."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from rbuild.errors import BuildFailed
from rbuild.util.textfile import open_regular

MAX_BYTES = 2 << 30
"""The size of the largest ELF file: a vmlinux with debug information has 500 MiB."""

UNREADABLE = (
    ELFError,
    OSError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)
"""What pyelftools raises on a damaged file: it trusts the figures that it finds there."""


@dataclass(frozen=True)
class ModuleInfo:
    """What modinfo(8) would say of a .ko, and the symbols that the kernel must provide."""

    machine: str
    fields: dict[str, tuple[str, ...]]
    undefined: tuple[str, ...]

    def field(self, name: str) -> str:
        """Return a field that occurs once, or ''."""
        values = self.fields.get(name, ())
        return values[0] if values else ""

    @property
    def vermagic(self) -> str:
        """The kernel release and options that it was built for."""
        return self.field("vermagic").strip()


def machine(path: Path) -> str:
    """Return the architecture of an ELF file in readelf's words, such as AArch64.

    Raises BuildFailed if the file isn't ELF.
    """
    try:
        with _opened(path) as file:
            return str(ELFFile(file).get_machine_arch())
    except UNREADABLE as error:
        raise BuildFailed(f"{path} is not an ELF file: {error}.") from error


def module_info(path: Path) -> ModuleInfo:
    """Read a .ko; raise BuildFailed if it isn't an ELF file with a .modinfo section."""
    try:
        with _opened(path) as file:
            elf = ELFFile(file)
            section = elf.get_section_by_name(".modinfo")
            if section is None:
                raise BuildFailed(f"{path} has no .modinfo section: it is not a kernel module.")
            return ModuleInfo(
                str(elf.get_machine_arch()), _modinfo(section.data()), _undefined(elf)
            )
    except UNREADABLE as error:
        raise BuildFailed(f"{path} can't be read as an ELF file: {error}.") from error


def section_digests(path: Path) -> dict[str, str] | None:
    """Return the SHA-256 of each section's content by name; None if the file isn't ELF.

    Sections of one name count together, in their order; what is outside of all sections (the
    headers) is named ``(headers)``.
    """
    try:
        with _opened(path) as file:
            if file.read(4) != b"\x7fELF":
                return None
            file.seek(0)
            elf = ELFFile(file)
            found: dict[str, Any] = {}
            headers = hashlib.sha256(repr(elf.header).encode())
            for section in elf.iter_sections():
                headers.update(repr(section.header).encode())
                content = b"" if section["sh_type"] == "SHT_NOBITS" else section.data()
                found.setdefault(section.name or "(null)", hashlib.sha256()).update(content)
            return {name: one.hexdigest() for name, one in found.items()} | {
                "(headers)": headers.hexdigest()
            }
    except UNREADABLE as error:
        raise BuildFailed(f"{path} can't be read as an ELF file: {error}.") from error


def _opened(path: Path) -> BinaryIO:
    """Open a file of a build's, of which sections are read whole."""
    file = open_regular(path)
    if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
        file.close()
        raise OSError(f"it is {size} bytes; the limit is {MAX_BYTES}")
    return file


def _modinfo(content: bytes) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for item in content.split(b"\0"):
        name, separator, value = item.decode("utf-8", "replace").partition("=")
        if separator:
            found[name] = (*found.get(name, ()), value)
    return found


def _undefined(elf: ELFFile) -> tuple[str, ...]:
    """Return the names of symbols that are neither defined nor weak."""
    names = set()
    for section in elf.iter_sections():
        if isinstance(section, SymbolTableSection):
            for symbol in section.iter_symbols():
                missing = symbol["st_shndx"] == "SHN_UNDEF" and symbol.name
                if missing and symbol["st_info"]["bind"] != "STB_WEAK":
                    names.add(symbol.name)
    return tuple(sorted(names))
