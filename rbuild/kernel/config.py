"""Kernel configurations as text: read, quoted, compared with what was asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from rbuild.kernel.products import read_product
from rbuild.specs.profile import MAX_CONFIG_BYTES
from rbuild.util import process
from rbuild.util.textfile import read_text

OPTION = re.compile(
    r"^[ \t]*(?:CONFIG_(?P<set>\w+)=(?P<value>.*)|# CONFIG_(?P<unset>\w+) is not set)", re.MULTILINE
)


def read_config(text: str) -> dict[str, str]:
    """Return the options of a .config or a fragment, without CONFIG_; an unset one is ``n``."""
    return {
        found["set"] or found["unset"]: "n" if found["unset"] else found["value"].rstrip()
        for found in OPTION.finditer(text)
    }


TYPE = re.compile(r"^\s+(?:def_)?(bool|tristate|string|int|hex)\b", re.MULTILINE)

NEXT = re.compile(r"^\s*(?:menu)?config\s", re.MULTILINE)

QUOTABLE = re.compile(r'CONFIG_(\w+)=(?:"([0-9a-fA-F]+)"|([^"\n]+))')
"""A line whose value has quotes or none by its option's type: it may be a number or a text."""


def quote(fragment: str, tree: Path) -> str:
    """Return a fragment whose values have quotes as Kconfig wants them: strings alone.

    An option that the tree lacks stays as it is, and is refused later on.
    """
    matches = [QUOTABLE.fullmatch(line) for line in fragment.splitlines()]
    types = types_of({one[1] for one in matches if one is not None}, tree)
    lines = []
    for line, match in zip(fragment.splitlines(), matches, strict=True):
        kind = "" if match is None else types.get(match[1], "")
        if match is None or not kind:
            lines.append(line)
        else:
            value = match[2] or match[3]
            lines.append(f"CONFIG_{match[1]}=" + (f'"{value}"' if kind == "string" else value))
    return "".join(f"{line}\n" for line in lines)


def types_of(options: Collection[str], tree: Path) -> dict[str, str]:
    """Return the types of options that a tree defines: bool, tristate, string, int or hex."""
    if not options:
        return {}
    found: dict[str, str] = {}
    names = "|".join(map(re.escape, sorted(options)))
    opening = re.compile(rf"^\s*(?:menu)?config\s+({names})\s*$", re.MULTILINE)
    listed = process.output(["find", str(tree), "-name", "Kconfig*", "-type", "f", "-print0"])
    for path in sorted(listed.split(b"\0")[:-1]):
        text = read_text(Path(os.fsdecode(path)), limit=MAX_CONFIG_BYTES, decoding="replace")
        for match in opening.finditer(text):
            below = TYPE.search(text, match.end())
            following = NEXT.search(text, match.end())
            if below is None or (following is not None and following.start() < below.start()):
                continue  # another definition has its type
            found.setdefault(match[1], below[1])
    return found


@dataclass(frozen=True)
class UnsatisfiedOption:
    """An option that a fragment asks for and Kconfig didn't grant."""

    option: str
    asked: str
    got: str
    where: str = ""
    depends: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        text = f"CONFIG_{self.option}: asked for {self.asked}, got {self.got}"
        if not self.where:
            return f"{text} (this kernel has no such option)"
        needs = "".join(f"\n    depends on {line}" for line in self.depends)
        return f"{text} ({self.where}){needs}"


def unmet(asked: dict[str, str], got: dict[str, str]) -> list[UnsatisfiedOption]:
    """Return what was asked and not granted; an option that isn't in the result counts as n."""
    return [
        UnsatisfiedOption(option, value, got.get(option, "n"))
        for option, value in sorted(asked.items())
        if got.get(option, "n") != value
    ]


def locate(option: str, tree: Path) -> tuple[str, tuple[str, ...]]:
    """Return where a tree defines an option (file:line) and its ``depends on`` lines."""
    opening = re.compile(rf"^\s*(?:menu)?config {re.escape(option)}\s*$")
    for path in sorted(tree.rglob("Kconfig*")):
        lines = read_text(path, limit=MAX_CONFIG_BYTES, decoding="replace").splitlines()
        for number, line in enumerate(lines):
            if opening.match(line):
                block: list[str] = []
                for below in lines[number + 1 :]:
                    if re.match(r"\S", below) and not below.startswith("#"):
                        break
                    if found := re.match(r"\s+depends on (.*)", below):
                        block.append(found[1].rstrip("\\ "))
                return f"{path.relative_to(tree)}:{number + 1}", tuple(block)
    return "", ()


def config_of(kdir: Path) -> dict[str, str]:
    """Return the options of a KDIR's .config."""
    return read_config(read_product(kdir / ".config"))
