"""Checking a built module as the kernel would: machine, vermagic, licence, symbols."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbuild.errors import BuildFailed
from rbuild.kernel.configure import profiles_with
from rbuild.kernel.kdir import Kdir, Stage
from rbuild.util import textfile
from rbuild.util.hashes import sha256_file

if TYPE_CHECKING:
    from rbuild.kernel.symbols import Exports

SYMBOLS_SHOWN = 20
"""How many symbols that a kernel lacks, or may lack, are named."""

MAX_SYMVERS_BYTES = 64 << 20
"""The bytes of the largest Module.symvers: a whole distribution's kernel has 2 MiB."""


@dataclass(frozen=True)
class BuiltModule:
    """A .ko that was checked.

    ``symbols`` says against what its undefined symbols were checked: ``Module.symvers`` of a
    built kernel, or the ``source`` and its configuration where only a prepared KDIR is there, which
    doesn't tell of those that are ``undecided``.
    """

    path: Path
    sha256: str
    size_bytes: int
    vermagic: str
    license: str
    depends: str
    aliases: tuple[str, ...]
    symbols: str
    undecided: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the artefact as the command line's contract has it, with modinfo's fields."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "vermagic": self.vermagic,
            "license": self.license,
            "depends": self.depends,
            "aliases": list(self.aliases),
            "symbols_checked_against": self.symbols,
            "symbols_undecided": list(self.undecided),
        }


def check(path: Path, kdir: Kdir, exports: Exports) -> BuiltModule:
    """Return what a .ko says of itself, or raise BuildFailed if the kernel would refuse it.

    It must be of the right machine and vermagic, and each undefined symbol must be exported.
    """
    from rbuild.kernel.symbols import Answer  # noqa: PLC0415
    from rbuild.util.elf import module_info  # noqa: PLC0415 - not where there is nothing to do

    info = module_info(path)
    faults = []
    machine = kdir.ready.environment.target.elf.name
    if info.machine != machine:
        faults.append(f"it is for {info.machine}, not {machine}")
    if not (info.vermagic + " ").startswith(kdir.vermagic + " "):
        faults.append(f"its vermagic is {info.vermagic!r}, the kernel's {kdir.vermagic!r}")
    if not info.field("license"):
        faults.append("it has no MODULE_LICENSE")
    answers = {name: exports.find(name) for name in info.undefined}
    missing = [name for name, answer in answers.items() if answer is Answer.NO]
    if missing:
        faults.append("nothing exports " + ", ".join(missing[:SYMBOLS_SHOWN]))
    if faults:
        raise BuildFailed(
            f"{path.name} was built, but a kernel would refuse it: {'; '.join(faults)}.",
            detail="\n".join(_where_exported(missing[:SYMBOLS_SHOWN], kdir)),
        )
    return BuiltModule(
        path,
        sha256_file(path),
        path.stat().st_size,
        info.vermagic,
        info.field("license"),
        info.field("depends"),
        info.fields.get("alias", ()),
        "Module.symvers" if kdir.stage is Stage.BUILT else "source",
        tuple(name for name, answer in answers.items() if answer is Answer.UNKNOWN),
    )


def _where_exported(names: list[str], kdir: Kdir) -> Iterator[str]:
    """Yield, for each symbol that a kernel lacks, where it would come from."""
    from rbuild.kernel import symbols  # noqa: PLC0415 - not where there is nothing to do

    found = symbols.index(kdir.tree)
    for name in names:
        for site in found.sites(name)[:1]:
            line = f"{name} is exported by {site.file}"
            if option := symbols.option_off(kdir.tree.path, site.file, kdir.config):
                line += f", which needs CONFIG_{option}"
                if profiles := profiles_with(option, kdir.profile.architecture, kdir.tree):
                    line += f"; the profile {' or '.join(profiles)} has it"
            yield f"{line}."


def exports_of_crates(kdir: Kdir) -> frozenset[str]:
    """Return what Rust's crates export: a prepared KDIR has lists of it."""
    crates: set[str] = set()
    if kdir.config.get("RUST") != "y":
        # A KDIR that started from one with Rust still has its lists.
        return frozenset()
    for path in (kdir.path / "rust").glob("exports_*_generated.h"):
        crates |= set(
            re.findall(
                r"EXPORT_SYMBOL_RUST_GPL\((\w+)\)",
                textfile.read_text(
                    path, limit=MAX_SYMVERS_BYTES, decoding="replace", error=BuildFailed
                ),
            )
        )
    return frozenset(crates)


def read_symvers(path: Path) -> frozenset[str]:
    """Return the symbols of a Module.symvers (Documentation/kbuild/modules.rst, section 6)."""
    if not path.is_file():
        return frozenset()
    text = textfile.read_text(
        path,
        limit=MAX_SYMVERS_BYTES,
        where="The build's list of symbols",
        decoding="replace",
        error=BuildFailed,
    )
    fields = (line.split("\t") for line in text.splitlines())
    return frozenset(line[1] for line in fields if len(line) > 1)
