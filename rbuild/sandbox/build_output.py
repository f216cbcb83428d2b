"""Kbuild's output: the commands that it announces, and the compiler's words in it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

OBJECT = re.compile(r"^  (?P<what>[A-Z][A-Z0-9_]*(?: [A-Z]+)?) +(?:\[M\] +)?(?P<file>[^\s:]+)$")
"""A line with which Kbuild announces a command, such as ``  CC [M]  drivers/spi/spi.o``."""

ERROR = re.compile(
    r"\berror(\[E\d+\])?:|^ERROR: |\*\*\* |undefined (symbol|reference)|"
    r"No space left on device|^Killed\b|terminated by signal"
)

NOISE = re.compile(r"^(make(\[\d+\])?: (\*\*\*|Entering|Leaving)|  [A-Z][A-Z0-9_ ]+ \S+$)")

CONTEXT_LINES = 8
"""How many lines before an error are shown with it, as far as Kbuild's own allow."""


@dataclass
class Words:
    """The part of make's output that says what went wrong: from the first error on.

    It is kept while make runs: any number of lines may follow the first error.
    """

    most: int = 60
    lines: list[str] = field(default_factory=list)
    _before: deque[str] = field(default_factory=lambda: deque(maxlen=CONTEXT_LINES))

    def add(self, line: str) -> None:
        """Take the next line of the output."""
        if len(self.lines) >= self.most:
            return
        if NOISE.match(line) or OBJECT.match(line):
            self._before.clear()
        elif self.lines:
            self.lines.append(line)
        elif ERROR.search(line):
            # What stands just before an error often explains it: the files through which a header
            # was reached, or the linker's words before those of the compiler that called it.
            self.lines += [*self._before, line]
        else:
            self._before.append(line)


def compiler_words(lines: Sequence[str], most: int = 60) -> list[str]:
    """Return the part of make's output that says what went wrong, or else its last lines."""
    words = Words(most)
    for line in lines:
        words.add(line)
    return words.lines or list(lines[-15:])
