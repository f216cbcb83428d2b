"""Two benchmarks compared: what became slower or faster between them beyond their noise."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rbuild.bench.result import FORMAT, Report, Row
from rbuild.bench.stats import ratio
from rbuild.errors import UsageError
from rbuild.ui.console import Console
from rbuild.ui.format import joined
from rbuild.util.textfile import read_text

MAX_RESULT = 64 << 20
"""The bytes of the largest result: one of a thousand runs has 1 MiB."""

COLUMNS = ("mode", "scenario", "before s", "now s", "ratio", "[95 %]", "")

Key = tuple[str, str, str | None, int, str]


@dataclass(frozen=True)
class Change:
    """One row of both benchmarks: the medians in seconds, their ratio (now / before)."""

    environment: str
    kind: str
    driver: str | None
    jobs: int
    scenario: str
    old_s: float
    new_s: float
    ratio: float
    low: float
    high: float
    verdict: str

    @property
    def name(self) -> str:
        """The row as a message names it."""
        driver = f" {self.driver}" if self.driver else ""
        return f"{self.environment} {self.kind}{driver} -j{self.jobs} {self.scenario}"


@dataclass(frozen=True)
class Comparison:
    """All rows of both, those of only one, and why the two may not be comparable at all."""

    rows: tuple[Change, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the comparison for --json."""
        return asdict(self)


def load(path: Path) -> Report:
    """Read a result of ``rbuild bench --export-json``.

    Raises UsageError naming the file and the field that is wrong.
    """
    try:
        data = json.loads(read_text(path, limit=MAX_RESULT), parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} can't be read as JSON: {error}.") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise UsageError(
            f"{path} is no benchmark's result of format {FORMAT}: its `format` is {found!r}.",
            hint="Results come from `rbuild bench --export-json FILE`.",
        )
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UsageError(f"{path}: {where}: {fault['msg']}{more}.") from error


def _integer(text: str) -> int:
    """Return an integer of JSON's; raise ValueError for one that no figure of a machine's is."""
    if len(text) > 20:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def compare(old: Report, new: Report) -> Comparison:
    """Compare what both have measured; the runs of different days aren't paired."""
    before, now = _keyed(old), _keyed(new)
    both = [key for key in now if key in before]
    return Comparison(
        tuple(_change(before[key], now[key]) for key in both),
        tuple(_name(before[key]) for key in before if key not in now),
        tuple(_name(now[key]) for key in now if key not in before),
        tuple(_warnings(old, new)),
    )


MAX_PERCENTAGE = 20
"""The characters of the longest percentage."""


def parse_threshold(text: str) -> float:
    """Return ``10%`` as 0.1; raise UsageError for anything else than a percentage."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if found is None or len(text) > MAX_PERCENTAGE:
        raise UsageError(f"--fail-above: {text[:40]!r} is not a percentage; write it as 10%.")
    return float(found[1]) / 100


def failures(found: Comparison, threshold: float) -> list[str]:
    """Name what became slower beyond noise, and by more than the threshold allows."""
    return [
        f"{one.name} {one.ratio:.2f}x"
        for one in found.rows
        if one.verdict == "slower" and one.ratio > 1 + threshold
    ]


def table(found: Comparison, console: Console) -> str:
    """Return the comparison for the terminal."""
    shown = console.table("Compared with the earlier result", COLUMNS, cells(found))
    return "\n".join([shown, joined(remarks(found))])


def remarks(found: Comparison) -> list[str]:
    """Return what a reader must know besides the rows: what only one has, what else differs."""
    return [
        *(f"only in the earlier result: {name}" for name in found.only_old),
        *(f"only in this result: {name}" for name in found.only_new),
        *(f"hardly comparable: {one}" for one in found.warnings),
    ]


def cells(found: Comparison) -> list[list[str]]:
    """Return the table's rows."""
    return [
        [
            f"{one.environment} {one.kind}{' ' + one.driver if one.driver else ''} -j{one.jobs}",
            one.scenario,
            f"{one.old_s:.2f}",
            f"{one.new_s:.2f}",
            f"{one.ratio:.2f}x",
            f"[{one.low:.2f}, {one.high:.2f}]",
            one.verdict,
        ]
        for one in found.rows
    ]


def _keyed(report: Report) -> Mapping[Key, Row]:
    return {(r.environment, r.kind, r.driver, r.jobs, r.scenario): r for r in report.rows}


def _name(row: Row) -> str:
    return f"{row.mode} -j{row.jobs} {row.scenario}"


def _change(old: Row, new: Row) -> Change:
    found = ratio(new.walls, old.walls, paired=False)
    return Change(
        new.environment,
        new.kind,
        new.driver,
        new.jobs,
        new.scenario,
        old.wall_s.median,
        new.wall_s.median,
        found.ratio,
        found.low,
        found.high,
        found.verdict,
    )


def _warnings(old: Report, new: Report) -> list[str]:
    """Say what else than the code under test differs between two benchmarks."""
    found = [
        f"{label}: {before} and now {now}"
        for label, before, now in (
            ("CPU", old.machine.cpu, new.machine.cpu),
            ("cores", old.machine.cores, new.machine.cores),
            ("governor", old.machine.governor, new.machine.governor),
            ("file system", old.machine.file_system, new.machine.file_system),
            ("host kernel", old.machine.host_kernel, new.machine.host_kernel),
            ("ccache", old.ccache, new.ccache),
        )
        if before != now
    ]
    found += [
        f"the machine was busy in the {which} one (load {one.machine.load_before})"
        for which, one in (("earlier", old), ("new", new))
        if one.machine.busy
    ]
    known = {one.name: one for one in old.environments}
    for one in new.environments:
        if (other := known.get(one.name)) is None:
            continue
        for label in ("profile", "source", "kernel_release", "config_sha256", "emulator"):
            before, now = getattr(other, label), getattr(one, label)
            if before != now:
                found.append(f"{one.name}'s {label}: {before} and now {now}")
        changed = [
            f"{name} {other.toolchain.get(name, 'none')} and now {version}"
            for name, version in one.toolchain.items()
            if other.toolchain.get(name) != version
        ]
        if changed:
            found.append(f"{one.name}'s toolchain: {', '.join(changed)}")
    return found
