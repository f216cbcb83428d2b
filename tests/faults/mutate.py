"""Inputs made wrong: bytes, lines and values, changed as the draws of one generator say."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LONGEST = 8192
"""An input never grows beyond so many bytes: more cases find more than longer ones."""

NUMBERS = (
    *("0", "-1", "1", "255", "65536", "4294967295", "-2147483649", "18446744073709551616"),
    *("1e400", "-1e400", "NaN", "Infinity", "1.2.3", "0x", "0b", "1_0", "٣", "²", "1e-400"),
    *("9" * 19, "9" * 400, "9" * 5000, "-" + "9" * 400, "0x" + "f" * 4000),
)
"""Numbers at which something ends: a type's range, a float's, Python's digits."""

WORDS = (
    *("", " ", "\0", "\r", "\n", "\t", "\x1b[2J", "\x7f", "%s", "{}", "..", ".", "/", "../../x"),
    *("/etc/passwd", "~", "~nobody-has-this-name/x", "a\0b", "a" * 300, "$(reboot)", "'", '"'),
    *("é", "\u2028", "\x85", "\ufeff", "true", "null", "[", "{", "]", "}", ":", "#", "-", "--"),
)
"""Texts that mean something somewhere."""

YAML = (
    *("!!int ''", "!!int x", "!!float x", "!!bool x", "!!timestamp x", "!!binary x", "!!null x"),
    *("!!set {a, b}", "!!omap [a]", "!!pairs [a]", "!!python/object:os.system x", "!x y", "!<"),
    *(
        "&a [*a]",
        "*a",
        "&a x",
        "<<: *a",
        "{<<: 1}",
        "? [a]",
        "? {a: b}",
        "| \n  x",
        "> x",
        "%YAML 9",
    ),
    *("2001-99-99", "2001-01-01T99:99:99Z", "1:99:99", "0o9", "0b2", "0_", "~", "yes", "!!str 1"),
    *("0x" + "f" * 4000, "[" * 40, "{a: " * 40, "[" * 400, "- " * 400, "---\n", "...\n"),
    "[&a [x, x, x, x, x, x, x, x], &b [*a, *a, *a, *a, *a, *a, *a, *a], "
    "&c [*b, *b, *b, *b, *b, *b, *b, *b], &d [*c, *c, *c, *c, *c, *c, *c, *c], "
    "&e [*d, *d, *d, *d, *d, *d, *d, *d], &f [*e, *e, *e, *e, *e, *e, *e, *e], "
    "&g [*f, *f, *f, *f, *f, *f, *f, *f], &h [*g, *g, *g, *g, *g, *g, *g, *g], "
    "&i [*h, *h, *h, *h, *h, *h, *h, *h], &j [*i, *i, *i, *i, *i, *i, *i, *i]]",
)
"""What YAML gives a meaning of its own."""

JSON = (
    "[" * 1500,
    '{"a":' * 1500,
    "1e400",
    "NaN",
    "-Infinity",
    '"\\ud800"',
    "9" * 5000,
    "0x1",
    "'x'",
)
"""What JSON, or what Python takes for it, has at its ends."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**400, -(10**400), 0.0, -0.5, 1e308),
    *(float("inf"), float("-inf"), float("nan"), "", "x", "\0", "\ud800", "a" * 300, "0", "-1"),
    *("1.5", "nan", "../../x", "/x", "~nobody-has-this-name/x", [], {}, [[]], [None], [0], [{}]),
    *({"": None}, {"format": 1}, ["x"], "2026-01-01", "2026-01-01T00:00:00+99:00", "rust"),
)
"""Values of every type that JSON has, at their ends."""


@dataclass(frozen=True)
class Mutator:
    """Changes an input in one to four ways.  ``words`` are what its format gives a meaning."""

    draw: random.Random
    words: Sequence[bytes] = ()

    def of_bytes(self, seed: bytes, other: bytes) -> bytes:
        """Return bytes that were changed; ``other`` is what a part may come from."""
        content = bytearray(seed)
        for _ in range(self.draw.choice((1, 1, 1, 2, 3, 4))):
            self.draw.choice(BYTE_CHANGES)(self, content, other)
        return bytes(content[:LONGEST])

    def of_lines(self, seed: bytes, other: bytes) -> bytes:
        """Return lines that were changed: repeated, lost, moved, or with another value."""
        lines = seed.split(b"\n")
        for _ in range(self.draw.choice((1, 1, 2, 3))):
            self.draw.choice(LINE_CHANGES)(self, lines, other.split(b"\n"))
        return b"\n".join(lines)[:LONGEST]

    def of_text(self, seed: bytes, other: bytes) -> bytes:
        """Return a text in which lines or bytes were changed."""
        change = self.of_bytes if self.draw.random() < 0.4 else self.of_lines
        return change(seed, other)

    def of_data(self, seed: Any, other: Any) -> bytes:
        """Return JSON in which values were changed, or, now and then, its bytes."""
        data = json.loads(json.dumps(seed))
        for _ in range(self.draw.choice((1, 1, 1, 2, 3))):
            data = self._changed(data, other)
        content = json.dumps(data).encode()
        if self.draw.random() < 0.1:
            return self.of_bytes(content, content)
        return content

    def word(self) -> bytes:
        """Return a word that means something to the format, or to somebody."""
        if self.words and self.draw.random() < 0.5:
            return self.draw.choice(self.words)
        known = NUMBERS if self.draw.random() < 0.5 else WORDS
        return self.draw.choice(known).encode()

    def place(self, content: Sequence[Any]) -> int:
        """Return a place in a sequence, its end included."""
        return self.draw.randint(0, len(content))

    def _changed(self, data: Any, other: Any) -> Any:
        """Return ``data`` with one thing in it changed, wherever it is."""
        places = list(_places(data))
        if not places:
            return copy.deepcopy(self.draw.choice(VALUES))
        holder, key = self.draw.choice(places)
        kind = self.draw.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[self.draw.choice(("", "x", "\0", "format", f"{key}x"))] = holder.pop(key)
        elif kind == 2:
            holder[key] = [holder[key]]
        elif kind == 3 and isinstance(holder[key], (int, float)):
            holder[key] = -holder[key] if self.draw.random() < 0.5 else str(holder[key])
        elif kind == 4 and (others := list(_places(other))):
            from_holder, from_key = self.draw.choice(others)
            holder[key] = copy.deepcopy(from_holder[from_key])
        else:
            holder[key] = copy.deepcopy(self.draw.choice(VALUES))
        return data


def _places(data: Any) -> list[tuple[Any, Any]]:
    """Return each place in ``data`` as what holds it and the key or index there."""
    found: list[tuple[Any, Any]] = []
    pending = [data]
    while pending:
        holder = pending.pop()
        if isinstance(holder, dict):
            keys: Sequence[Any] = list(holder)
        elif isinstance(holder, list):
            keys = range(len(holder))
        else:
            continue
        found += [(holder, key) for key in keys]
        pending += [holder[key] for key in keys]
    return found


def _flip(mutator: Mutator, content: bytearray, _: bytes) -> None:
    if content:
        content[mutator.draw.randrange(len(content))] ^= 1 << mutator.draw.randrange(8)


def _byte(mutator: Mutator, content: bytearray, _: bytes) -> None:
    if content:
        content[mutator.draw.randrange(len(content))] = mutator.draw.choice(
            b"\0\x01\x7f\x80\xff\n ="
        )


def _figure(mutator: Mutator, content: bytearray, _: bytes) -> None:
    """Change a number of 1, 2, 4 or 8 bytes, as binary formats have them."""
    width = mutator.draw.choice((1, 2, 4, 8))
    if len(content) >= width:
        at = mutator.draw.randrange(len(content) - width + 1)
        top = (1 << 8 * width) - 1
        value = mutator.draw.choice((0, 1, 2, 3, 8, 24, 64, top, top >> 1, top - 1, top >> 2))
        order = "little" if mutator.draw.random() < 0.5 else "big"
        content[at : at + width] = value.to_bytes(width, order)  # type: ignore[arg-type]


def _cut(mutator: Mutator, content: bytearray, _: bytes) -> None:
    at = mutator.place(content)
    del content[at : at + mutator.draw.choice((1, 2, 4, 8, 16, 64))]


def _end(mutator: Mutator, content: bytearray, _: bytes) -> None:
    del content[mutator.place(content) :]


def _repeat(mutator: Mutator, content: bytearray, _: bytes) -> None:
    at = mutator.place(content)
    part = content[at : at + mutator.draw.choice((1, 2, 8, 32))]
    content[at:at] = part * mutator.draw.choice((1, 1, 2, 8, 64))


def _insert(mutator: Mutator, content: bytearray, _: bytes) -> None:
    at = mutator.place(content)
    content[at:at] = mutator.word()


def _splice(mutator: Mutator, content: bytearray, other: bytes) -> None:
    at, start = mutator.place(content), mutator.place(other)
    content[at:] = other[start:]


BYTE_CHANGES = (_flip, _flip, _byte, _figure, _figure, _cut, _end, _repeat, _insert, _splice)


def _lose(mutator: Mutator, lines: list[bytes], _: list[bytes]) -> None:
    if lines:
        del lines[mutator.draw.randrange(len(lines))]


def _again(mutator: Mutator, lines: list[bytes], _: list[bytes]) -> None:
    if lines:
        line, at = mutator.draw.choice(lines), mutator.place(lines)
        lines[at:at] = [line] * mutator.draw.choice((1, 1, 2, 20))


def _borrow(mutator: Mutator, lines: list[bytes], other: list[bytes]) -> None:
    lines.insert(mutator.place(lines), mutator.draw.choice(other))


def _value(mutator: Mutator, lines: list[bytes], _: list[bytes]) -> None:
    """Put a word in the place of what stands behind a colon, an equals sign or a space."""
    if not lines:
        return
    at = mutator.draw.randrange(len(lines))
    line = lines[at]
    marks = [n for n, one in enumerate(line) if one in b": =\t"]
    if not marks:
        lines[at] = mutator.word()
        return
    begin = mutator.draw.choice(marks) + 1
    if line[begin - 1 : begin] == b":":
        line = line[:begin] + b" " + line[begin:].lstrip(b" ")
        begin += 1
    end = line.find(b" ", begin) if mutator.draw.random() < 0.5 else -1
    lines[at] = line[:begin] + mutator.word() + (line[end:] if end > 0 else b"")


def _indent(mutator: Mutator, lines: list[bytes], _: list[bytes]) -> None:
    if lines:
        at = mutator.draw.randrange(len(lines))
        lines[at] = b" " * mutator.draw.choice((1, 2, 4)) + lines[at].lstrip(b" ")


LINE_CHANGES = (_lose, _again, _borrow, _value, _value, _value, _indent)
