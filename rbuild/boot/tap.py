"""The Test Anything Protocol: a guest's console output read into tests and their outcomes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import count

LINE = re.compile(
    r"(?P<not>not )?ok (?P<number>[0-9]{1,9})(?: - (?P<name>.*?))?(?: # SKIP (?P<skip>.*))?"
)
PLAN = re.compile(r"1\.\.([0-9]{1,9})")
GROUP = re.compile(r"# Group: (.*)")

MAX_DIAGNOSTICS = 200
"""How many lines of a test that failed are kept."""


@dataclass(frozen=True)
class Test:
    """One test: its number from 1, its group, its name, how it ended, why if not well."""

    number: int
    group: str
    name: str
    passed: bool
    skipped: str | None = None
    diagnostics: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"{self.group}: " if self.group else ""
        return f"{where}{self.name}"


@dataclass(frozen=True)
class Report:
    """The tests that were seen, and how many there should be (None if no plan was seen)."""

    tests: tuple[Test, ...]
    planned: int | None

    @property
    def failed(self) -> list[Test]:
        """The tests that failed, in their order."""
        return [test for test in self.tests if not test.passed]

    @property
    def skipped(self) -> list[Test]:
        """The tests that were not made."""
        return [test for test in self.tests if test.skipped is not None]

    def problems(self) -> list[str]:
        """Say what is wrong with the protocol itself: tests that are missing or come twice."""
        numbers = [test.number for test in self.tests]
        if self.planned is None:
            return [f"the tests ended after {len(numbers)}, without their plan"]
        found = []
        seen = {number for number in numbers if 1 <= number <= self.planned}
        if missing := self.planned - len(seen):
            first = next(number for number in count(1) if number not in seen)
            found.append(f"{missing} of {self.planned} tests are missing, first {first}")
        if len(numbers) != len(set(numbers)) or (numbers and max(numbers) > self.planned):
            found.append(f"{len(numbers)} tests were seen where {self.planned} were planned")
        if self.planned == 0:
            found.append("no test was made")
        return found


@dataclass
class Reader:
    """Takes the lines of an output, one by one; what isn't TAP among them is passed over."""

    tests: list[Test] = field(default_factory=list)
    planned: int | None = None
    group: str = ""

    def take(self, line: str) -> Test | None:
        """Take a line; return the test if it was one's."""
        if found := GROUP.fullmatch(line):
            self.group = found[1]
        elif found := PLAN.fullmatch(line):
            self.planned = int(found[1])
        elif line.startswith("# ") and self.tests and not self.tests[-1].passed:
            last = self.tests[-1]
            if len(last.diagnostics) < MAX_DIAGNOSTICS:
                self.tests[-1] = replace(last, diagnostics=(*last.diagnostics, line[2:]))
        elif found := LINE.fullmatch(line):
            name, skip = found["name"] or "", found["skip"]
            passed = found["not"] is None
            self.tests.append(Test(int(found["number"]), self.group, name, passed, skip))
            return self.tests[-1]
        return None

    def report(self) -> Report:
        """Return what was seen so far."""
        return Report(tuple(self.tests), self.planned)


def write(report: Report) -> str:
    """Return the report as TAP, without whatever else was on the console."""
    return "".join(f"{line}\n" for line in _lines(report))


def _lines(report: Report) -> Iterable[str]:
    group = ""
    for test in report.tests:
        if test.group != group:
            group = test.group
            yield f"# Group: {group}"
        skip = "" if test.skipped is None else f" # SKIP {test.skipped}"
        yield f"{'' if test.passed else 'not '}ok {test.number} - {test.name}{skip}"
        yield from (f"# {line}" for line in test.diagnostics)
    if report.planned is not None:
        yield f"1..{report.planned}"
