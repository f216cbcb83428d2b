"""A Report in words: tables for a terminal, Markdown, CSV, and the format's own schema."""

from __future__ import annotations

import csv as csv_module
import io
from collections.abc import Sequence
from typing import Any

from rbuild.bench.result import EnvironmentFacts, Identity, Ratio, Report, Row, Spread
from rbuild.bench.stats import CONFIDENCE, attainable, ratio
from rbuild.ui.console import Console
from rbuild.ui.format import duration, joined, size, visible

SPARE = ("mean ± s", "system s", "size", "peak RSS", "user s", "[95 %]", "[interval]", "")
"""The columns that go, in this order, where a terminal is too narrow for all."""

SHORT = 12
"""How much of a checksum is shown."""


def schema() -> dict[str, Any]:
    """Return the JSON Schema of --export-json."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Report.model_json_schema(mode="serialization"),
        "title": "rbuild bench",
    }


def tables(report: Report, console: Console) -> str:
    """Return the whole report for the terminal."""
    blocks = [
        joined(header(report)),
        console.table("", *fitting(report, console.width)),
        joined(notes(report)),
    ]
    if scaling := speedups(report):
        blocks.append(console.table("Parallelism", SPEEDUP_COLUMNS, scaling))
    blocks.append(console.table("Phases (wall time)", *phase_table(report)))
    blocks.append(joined(identity_line(one) for one in report.identity))
    blocks.append(joined(line for line in [conclusion(report)] if line))
    return "\n".join(block for block in blocks if block)


def markdown(report: Report) -> str:
    """Return the whole report as Markdown."""
    lines = ["# rbuild bench", "", *(f"- {line}" for line in header(report)), ""]
    lines += _markdown(columns(report), [cells(row, report) for row in report.rows])
    lines += ["", *(f"- {line}" for line in notes(report)), ""]
    if scaling := speedups(report):
        lines += ["## Parallelism", "", *_markdown(SPEEDUP_COLUMNS, scaling), ""]
    lines += ["## Phases (wall time)", "", *_markdown(*phase_table(report)), ""]
    if report.identity:
        lines += ["## Byte identity", "", *(f"- {identity_line(one)}" for one in report.identity)]
    if end := conclusion(report):
        lines += ["", end]
    return joined(lines).rstrip() + "\n"


def csv(report: Report) -> str:
    """Return every single run as a line of CSV, with a header."""
    names: list[str] = []
    lines: list[dict[str, Any]] = []
    for row in report.rows:
        for sample in row.samples:
            line: dict[str, Any] = {
                "environment": row.environment,
                "kind": row.kind,
                "driver": row.driver or "",
                "jobs": row.jobs,
                "scenario": row.scenario,
                **sample.model_dump(exclude={"phases", "products"}),
            }
            line |= {f"{phase.name}_wall_s": phase.wall_s for phase in sample.phases}
            line["products"] = " ".join(f"{one.name}:{one.sha256}" for one in sample.products)
            names += [name for name in line if name not in names]
            lines.append(line)
    text = io.StringIO()
    writer = csv_module.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def header(report: Report) -> list[str]:
    """Return the lines that say where and of what the figures are."""
    machine = report.machine
    mhz = "" if machine.mhz is None else f" at {machine.mhz:.0f} MHz"
    lines = [
        f"{machine.cpu}{mhz}, {machine.cores} cores (governor {machine.governor}), "
        f"{size(machine.memory_bytes)}, Linux {machine.host_kernel}, {machine.file_system}",
        f"{report.started}, {duration(report.seconds)}; load {machine.load_before} before, "
        f"{machine.load_after} after; ccache {'on' if report.ccache else 'off'}; "
        f"{report.runs} runs after {report.warmup} to warm up",
    ]
    if machine.busy:
        lines.append("THE MACHINE WAS BUSY with other work before this began.")
    for line in dict.fromkeys(_environment(one) for one in report.environments):
        names = [one.name for one in report.environments if _environment(one) == line]
        lines.append(f"{', '.join(names)}: {line}")
    return [*lines, report.command_line]


def _environment(facts: EnvironmentFacts) -> str:
    tools = ", ".join(
        f"{name} {version}"
        for name, version in facts.toolchain.items()
        if name.startswith(("clang", "rustc"))
    )
    return (
        f"Linux {facts.kernel_release} ({facts.source}), profile {facts.profile}, "
        f"config {facts.config_sha256[:SHORT]}; {tools}; {facts.emulator or 'nothing emulated'}"
    )


def columns(report: Report) -> list[str]:
    """Return the names of the table's columns."""
    names = ["mode", "scenario", "n", "median s", "[interval]", "mean ± s", "user s", "system s"]
    names += ["peak RSS", "size", "ratio", "[95 %]", ""]
    return [names[0], "-j", *names[1:]] if several_jobs(report) else names


def fitting(report: Report, width: int | None) -> tuple[list[str], list[list[str]]]:
    """Return the table's columns and rows, without what a reader misses least in a narrow line."""
    names, lines = columns(report), [cells(row, report) for row in report.rows]
    for spare in SPARE:
        if width is None or _width(names, lines) <= width:
            break
        n = names.index(spare)
        names = [*names[:n], *names[n + 1 :]]
        lines = [[*line[:n], *line[n + 1 :]] for line in lines]
    return names, lines


def _width(names: Sequence[str], lines: Sequence[Sequence[str]]) -> int:
    """Return how wide a table is: two spaces around each cell, and one between cells."""
    widest = (max(len(cell) for cell in column) for column in zip(names, *lines, strict=True))
    return sum(width + 3 for width in widest) + 1


def cells(row: Row, report: Report) -> list[str]:
    """Return a row of the table."""
    wall = row.wall_s
    flag = f" ({_count(len(wall.outliers), 'outlier')})" if wall.outliers else ""
    found = [
        row.mode,
        row.scenario,
        str(wall.n),
        f"{wall.median:.2f}",
        interval(wall),
        f"{wall.mean:.2f} ± {wall.deviation:.2f}{flag}",
        f"{row.user_s.median:.2f}",
        f"{row.system_s.median:.2f}",
        size(row.max_rss_bytes),
        size(row.samples[-1].products[0].size_bytes),
        *ratio_cells(row.ratio),
    ]
    return [found[0], str(row.jobs), *found[1:]] if several_jobs(report) else found


def interval(found: Spread) -> str:
    """Return a median's interval as it is written."""
    return f"[{found.low:.2f}, {found.high:.2f}]"


def ratio_cells(found: Ratio | None) -> list[str]:
    """Return a ratio, its interval and what it shows; the reference has none."""
    if found is None:
        return ["1", "", "reference"]
    return [f"{found.ratio:.{_digits(found)}f}x", _bounds(found), found.verdict]


def notes(report: Report) -> list[str]:
    """Return what a reader must know of the table's figures."""
    lines = [
        "median, user, system: of whole builds; peak RSS: the largest single process; size: of "
        "the .ko or Image; ratio: of medians, to the first environment, paired by rounds",
    ]
    least = min((row.wall_s.n for row in report.rows), default=0)
    if least == 1:
        lines.append("a single run says nothing of the noise: no interval, no ratio's bounds")
    elif attainable(least) < CONFIDENCE:
        lines.append(
            f"{_count(least, 'run')} bound a median with {attainable(least):.0%} confidence at "
            "most: [interval] is their range.  Ratios are bounded with 95 % if noise is log-normal."
        )
    if any(row.wall_s.outliers for row in report.rows):
        lines.append("outliers (modified Z-score above 3.5) are counted, not left out")
    return lines


def identity_line(one: Identity) -> str:
    """Say whether the environments made the same bytes of a product, and where they differ."""
    what = " ".join(word for word in (one.kind, one.driver, one.product) if word)
    if len(one.sha256) == 1:
        (own,) = one.sha256.values()
        return f"{what}: {'the same bytes' if one.identical else 'DIFFERENT bytes'} in all runs" + (
            "" if len(own) == 1 else f" ({len(own)} versions)"
        )
    if one.identical:
        return f"{what}: the same bytes from {', '.join(one.sha256)}"
    parts = [
        f"{each.environment} in {', '.join(each.sections) or each.note or 'single runs'}"
        for each in one.differences
    ]
    return f"{what}: DIFFERENT bytes: {'; '.join(parts) or 'from run to run'}"


SPEEDUP_COLUMNS = ("mode", "scenario", "-j", "median s", "speedup", "[95 %]")


def speedups(report: Report) -> list[list[str]]:
    """Return for each mode how much faster more jobs are than the fewest."""
    found = []
    for row in report.rows:
        same = [one for one in report.rows if (one.mode, one.scenario) == (row.mode, row.scenario)]
        base = min(same, key=lambda one: one.jobs)
        if len(same) < 2:
            continue
        gain = ratio(base.walls, row.walls, paired=len(base.walls) == len(row.walls))
        cell = ["1", ""] if row is base else [f"{gain.ratio:.2f}x", _bounds(gain)]
        found.append([row.mode, row.scenario, str(row.jobs), f"{row.wall_s.median:.2f}", *cell])
    return found


def _bounds(found: Ratio) -> str:
    digits = _digits(found)
    return f"[{found.low:.{digits}f}, {found.high:.{digits}f}]" if found.confidence else ""


def _digits(found: Ratio) -> int:
    """Return how many decimals show that an interval excludes 1, if it does: two or more."""
    bound = found.low if found.low > 1 else found.high
    if found.low <= 1 <= found.high:
        return 2
    return next((n for n in (2, 3, 4) if float(f"{bound:.{n}f}") != 1), 5)


def conclusion(report: Report) -> str:
    """Return in a sentence how the environments compare over all that was built in both.

    Another one names each environment that was to be compared, and why it wasn't.
    """
    base = next((row.environment for row in report.rows if row.ratio is None), None)
    ratios: dict[str, list[Ratio]] = {}
    for row in report.rows:
        if row.ratio is not None and row.ratio.confidence and row.environment != base:
            ratios.setdefault(row.environment, []).append(row.ratio)
    parts = [f"{name} {_compared(found, str(base))}" for name, found in ratios.items()]
    sentences = [f"{'; '.join(parts)}."] if parts else []
    sentences += [
        f"{one.environment} was not measured: {one.reason.rstrip('.')}."
        for one in report.unmeasured
    ]
    return " ".join(sentences)


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.2g}" if ratio >= 1.95 else f"{ratio:.2f}"


def _compared(found: Sequence[Ratio], base: str) -> str:
    """Say how an environment compares: as often as a difference was shown, and how large it was."""
    shown = [one for one in found if one.verdict != "no difference shown"]
    if not shown:
        return f"against {base}: no difference shown"
    low, high = (_times(pick(one.ratio for one in shown)) for pick in (min, max))
    times = low if low == high else f"{low} to {high}"
    took = f"takes {times} times as long as {base}"
    if len(shown) == len(found):
        return took
    return f"{took} in {len(shown)} of {len(found)} comparisons, no difference shown in the others"


def phase_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of what each environment's phases took."""
    names = list(dict.fromkeys(p.name for one in report.environments for p in one.phases))
    lines = []
    for one in report.environments:
        took = {phase.name: duration(phase.wall_s) for phase in one.phases}
        lines.append([one.name, *(took.get(name, "") for name in names)])
    return ["environment", *names], lines


def several_jobs(report: Report) -> bool:
    """Tell whether modes differ in their -j, so that it must be said."""
    return len({row.jobs for row in report.rows}) > 1


def _markdown(names: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    found = [f"| {' | '.join(_escape(name) for name in names)} |", f"|{' --- |' * len(names)}"]
    return found + [f"| {' | '.join(_escape(cell) for cell in line)} |" for line in lines]


def _escape(cell: str) -> str:
    return visible(cell).replace("|", "\\|")


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
