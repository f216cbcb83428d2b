"""Editing config.txt, which the Pi's firmware reads: one marked block of rbuild's, no other line.

The file is a list of ``property=value`` lines; a line such as ``[pi4]`` starts a section that
counts for some boards only, ``[all]`` ends that, and of two values of a property the later counts
(Raspberry Pi's documentation of config.txt).  The block begins with ``[all]`` and stands at the
file's end, or where a user has moved it to.  ``include NAME`` stands for the lines of another file.
Text is kept as it is, byte by byte, if it was decoded with ``surrogateescape``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

BEGIN = "# rbuild: begin (`rbuild deploy` writes these lines)"
END = "# rbuild: end"

SECTION = re.compile(r"\s*\[(.*)\]\s*")

INCLUDE = re.compile(r"include[ \t]+(.*)")
MODEL = re.compile(r"pi[0-9].*|cm[0-9].*")

MAX_INCLUDES = 64
"""How many ``include`` lines are followed."""

REPEATED = ("dtoverlay", "dtparam")
"""Properties of which each line counts, not the last one alone."""

ALIASES = {"device_tree_overlay": "dtoverlay", "device_tree_param": "dtparam"}

FILTERS = {
    "model-a": "pi1",
    "model-a-plus": "pi1",
    "model-b": "pi1",
    "model-b-plus": "pi1",
    "model-b-rev2": "pi1",
    "compute-module": "pi1",
    "model-zero": "pi0",
    "model-zero-w": "pi0 pi0w",
    "model-zero-2-w": "pi0 pi0w pi02",
    "2-model-b": "pi2",
    "2-model-b-rev2": "pi2",
    "3-model-b": "pi3",
    "3-model-a-plus": "pi3 pi3+",
    "3-model-b-plus": "pi3 pi3+",
    "3-compute-module": "pi3",
    "3-compute-module-plus": "pi3",
    "4-model-b": "pi4",
    "400": "pi4 pi400",
    "4-compute-module": "pi4 cm4",
    "4-compute-module-s": "pi4 cm4s",
    "5-model-b": "pi5",
    "500": "pi5 pi500",
    "5-compute-module": "pi5 cm5",
}
"""The sections that each model reads, by what its device tree calls it after ``raspberrypi,``."""


@dataclass(frozen=True)
class Surroundings:
    """What decides which lines count: the files that may be included, the board's own filters.

    ``files`` are texts by the names after ``include``.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    filters: Collection[str] = ()


ALONE = Surroundings()


@dataclass(frozen=True)
class _Parts:
    """A config.txt with its block, if it has one, taken out."""

    before: list[str]
    block: list[str] | None
    after: list[str]


def filters(compatible: Sequence[str]) -> frozenset[str]:
    """Return the model sections that a board reads, by the ``compatible`` of its device tree."""
    names = [one.partition(",")[2] for one in compatible if one.startswith("raspberrypi,")]
    return frozenset(word for name in names for word in FILTERS.get(name, "").split())


def with_block(text: str, lines: Sequence[str], around: Surroundings = ALONE) -> str:
    """Return a config.txt whose block has these lines; all other lines stay as they are.

    A line that the user has, too, and that counts for this board, isn't said a second time: an
    overlay must be loaded once.
    """
    parts = _split(text)
    newline = _newline(parts)
    known = {_loaded(line) for line in _effective(parts, around)}
    wanted = [line for line in lines if _name(line) not in REPEATED or _loaded(line) not in known]
    block = [f"{line}{newline}" for line in (BEGIN, "[all]", *_scoped(wanted), END)]
    before = parts.before
    if before and not before[-1].endswith("\n"):
        before = [*before[:-1], before[-1] + newline]
    return "".join([*before, *block, *parts.after])


def with_block_of(text: str, other: str) -> str:
    """Return a config.txt whose block is that of another one, which may be none at all."""
    parts, block = _split(text), _split(other).block
    if parts.block is None and block is None:
        return text
    if block is not None:
        before = parts.before
        if parts.block is None and before and not before[-1].endswith("\n"):
            before = [*before[:-1], before[-1] + _newline(parts)]
        return "".join([*before, *block, *parts.after])
    after = parts.after
    # What follows the block counted for all boards, and has to go on so.
    if any(_says_something(line) for line in after[: _next_section(after)]) and (
        list(_sections(parts.before))[-1:] not in ([], ["all"])
    ):
        after = [f"[all]{_newline(parts)}", *after]
    result = "".join([*parts.before, *after])
    # The newline that the block needed before it, if the file had none at its end.
    if not after and not other.endswith("\n") and other + _newline(parts) == result:
        return other
    return result


def block(text: str) -> list[str] | None:
    """Return the lines of a config.txt's block without its marks; None if it has none."""
    found = _split(text).block
    return None if found is None else [line.rstrip("\r\n") for line in found[1:-1]]


def value(text: str, name: str, around: Surroundings = ALONE) -> str | None:
    """Return what counts for this board as a property's value, the block apart."""
    found = [line for line in _effective(_split(text), around) if _name(line) == name]
    return found[-1].partition("=")[2].strip() if found else None


def current(text: str, name: str, around: Surroundings = ALONE) -> str | None:
    """Return what counts for this board as a property's value, the block's as well."""
    found = [line for line in block(text) or [] if _name(line) == name]
    return found[-1].partition("=")[2].strip() if found else value(text, name, around)


def difference(old: str, new: str, path: str) -> str:
    """Return what changes from one config.txt to another as a unified diff."""
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), path, f"{path} (new)", lineterm="", n=2
    )
    return "\n".join(lines)


def _split(text: str) -> _Parts:
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    marks = [line.strip() for line in lines]
    if BEGIN not in marks:
        return _Parts(lines, None, [])
    start = marks.index(BEGIN)
    if END not in marks[start:]:
        # Its end was taken away: what is ours is no longer known, but for the mark itself.
        return _Parts(lines[:start], lines[start : start + 1], lines[start + 1 :])
    end = marks.index(END, start) + 1
    return _Parts(lines[:start], lines[start:end], lines[end:])


def _newline(parts: _Parts) -> str:
    """Return how the block's lines end: as they did, or else as most lines of the file do."""
    first = parts.block[0] if parts.block else ""
    text = first if first.endswith("\n") else "".join([*parts.before, first, *parts.after])
    return "\r\n" if text.count("\r\n") * 2 > text.count("\n") else "\n"


def _name(line: str) -> str:
    name = line.partition("=")[0].strip()
    return ALIASES.get(name, name)


def _loaded(line: str) -> str:
    """Return what a line sets or loads: of an overlay its name without its parameters."""
    name, _, text = line.partition("=")
    name = ALIASES.get(name, name)
    return f"{name}={re.split('[,:]', text)[0] if name == 'dtoverlay' else text}"


def _scoped(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines; before a parameter of the board, end what a dtoverlay line began.

    A ``dtparam`` is otherwise taken for one of the overlay that the user's last line loads.
    """
    for line in lines:
        if _name(line) == "dtparam":
            yield "dtoverlay="
        yield line


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _next_section(lines: Sequence[str]) -> int:
    """Return where the first line that starts a section is, or the lines' end."""
    return next((i for i, line in enumerate(lines) if SECTION.fullmatch(line.strip())), len(lines))


def _sections(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        if found := SECTION.fullmatch(line.strip()):
            yield found[1].strip().lower()


def _effective(parts: _Parts, around: Surroundings) -> Iterator[str]:
    """Yield the user's lines, stripped, that certainly count for the board.

    Filters of one kind replace each other, those of several kinds must all hold, and ``[all]``
    ends them; only of those for models it is known here whether they hold.
    """
    for lines in (parts.before, parts.after):
        holds: dict[str, bool] = {}
        for line in _expanded(lines, around.files, iter(range(MAX_INCLUDES))):
            if found := SECTION.fullmatch(line):
                name = found[1].strip().lower()
                if name == "all":
                    holds = {}
                elif MODEL.fullmatch(name):
                    holds["model"] = name in around.filters
                else:
                    holds["other"] = False
            elif all(holds.values()):
                yield line


def _expanded(lines: Sequence[str], files: Mapping[str, str], left: Iterator[int]) -> Iterator[str]:
    """Yield lines that say something, stripped, those of included files in their place."""
    for line in map(str.strip, lines):
        if not _says_something(line):
            continue
        if found := INCLUDE.fullmatch(line):
            name = found[1].strip()
            if name in files and next(left, None) is not None:
                yield from _expanded(files[name].split("\n"), files, left)
        else:
            yield line
