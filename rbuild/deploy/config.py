"""Editing config.txt, which the Pi's firmware reads: one marked block of rbuild's, no other line.

The file is a list of ``property=value`` lines; a line such as ``[pi4]`` starts a section that
counts for some boards only, ``[all]`` ends that, and of two values of a property the later counts
(Raspberry Pi's documentation of config.txt).  The block begins with ``[all]`` and stands at the
file's end, or where a user has moved it to.  Text is kept as it is, byte by byte, if it was decoded
with ``surrogateescape``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BEGIN = "# rbuild: begin (`rbuild deploy` writes these lines)"
END = "# rbuild: end"

SECTION = re.compile(r"\s*\[(.*)\]\s*")

REPEATED = ("dtoverlay", "dtparam")
"""Properties of which each line counts, not the last one alone."""


@dataclass(frozen=True)
class _Parts:
    """A config.txt with its block, if it has one, taken out."""

    before: list[str]
    block: list[str] | None
    after: list[str]


def with_block(text: str, lines: Sequence[str]) -> str:
    """Return a config.txt whose block has these lines; all other lines stay as they are.

    A line that the user has, too, and that counts for every board, isn't said a second time: an
    overlay must be loaded once.
    """
    parts = _split(text)
    newline = _newline(parts)
    known = {_loaded(line) for line in _for_all_boards(parts)}
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


def value(text: str, name: str) -> str | None:
    """Return what counts for every board as a property's value, the block apart."""
    found = [line for line in _for_all_boards(_split(text)) if _name(line) == name]
    return found[-1].partition("=")[2].strip() if found else None


def current(text: str, name: str) -> str | None:
    """Return what counts for every board as a property's value, the block's as well."""
    found = [line for line in block(text) or [] if _name(line) == name]
    return found[-1].partition("=")[2].strip() if found else value(text, name)


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
    return line.partition("=")[0].strip()


def _loaded(line: str) -> str:
    """Return what a line sets or loads: of an overlay its name, whatever its parameters."""
    return line.partition(",")[0] if _name(line) == "dtoverlay" else line


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


def _for_all_boards(parts: _Parts) -> Iterator[str]:
    """Yield the user's lines, stripped, that stand in no section, or in [all]."""
    for lines in (parts.before, parts.after):
        section = "all"
        for line in lines:
            if found := SECTION.fullmatch(line.strip()):
                section = found[1].strip().lower()
            elif section == "all" and _says_something(line):
                yield line.strip()
