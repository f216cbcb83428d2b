"""Formatting for people: durations, sizes, and text that can't move a terminal's cursor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def duration(seconds: float) -> str:
    """Return a duration as a person writes it: ``0.42 s``, ``12.3 s``, ``4 min 05 s``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Return a number of bytes as a person writes it, in binary units: ``1.9 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What a terminal obeys instead of showing it: control characters but tabs and newlines, marks that
turn the direction of writing, separators of lines, and bytes that are no UTF-8."""


def visible(text: str, *, lines: bool = False) -> str:
    """Escape control characters in untrusted text before printing it.

    Newlines, by which a name could pretend to be a message, are escaped too, unless ``lines`` are
    expected.
    """
    if text.isprintable():
        return text
    text = UNSEEN.sub(_escape, text)
    return text if lines else text.replace("\n", r"\n")


def joined(lines: Iterable[str]) -> str:
    """Join lines, escaping newlines within each."""
    return "\n".join(visible(line) for line in lines)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def several(lines: Sequence[str], shown: int = 5) -> str:
    """Return lines as one, the first few of them."""
    more = len(lines) - shown
    return "; ".join(lines[:shown]) + (f"; and {more} more" if more > 0 else "")


def about(seconds: float) -> str:
    """Return a duration that is only expected: no more exact than it is worth."""
    if seconds < 60:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{seconds / 3600:.1f} h"
