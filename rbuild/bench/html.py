"""A Report as one page that needs nothing else: tables, pictures, bytes, runs and the log.

Whatever is in a report may be hostile, a log above all: every word of it passes ``_text``.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rbuild.bench import compare, plot
from rbuild.bench.compare import Comparison
from rbuild.bench.report import (
    SHORT,
    SPEEDUP_COLUMNS,
    cells,
    columns,
    conclusion,
    header,
    identity_line,
    notes,
    phase_table,
    speedups,
)
from rbuild.bench.result import EnvironmentFacts, Identity, Report, Sample
from rbuild.ui.format import size

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1f2328; --faint: #57606a; --line: #d0d7de; --ground: #ffffff; --shade: #f6f8fa;
  --good: #00664d; --bad: #a33b00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6edf3; --faint: #9198a1; --line: #3d444d; --ground: #0d1117; --shade: #161b22;
    --good: #4fd1ac; --bad: #ff9b5e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem;
  font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
}
h1 { font-size: 1.7rem; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; }
ul { margin: .5rem 0; padding-left: 1.3rem; }
li, td, dd { overflow-wrap: anywhere; }
.wide td, .wide th { overflow-wrap: normal; }
.facts, .notes { color: var(--faint); font-size: .9rem; }
.warning { color: var(--bad); font-weight: 600; }
.same { color: var(--good); }
.differs { color: var(--bad); font-weight: 600; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; }
th, td {
  padding: .3rem .7rem; text-align: right; white-space: nowrap; vertical-align: top;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums;
}
tr:last-child > td, tr:last-child > th { border-bottom: 0; }
thead th { background: var(--shade); }
tbody tr:hover { background: var(--shade); }
th:first-child, .words td, .words th { text-align: left; }
tbody th { font-weight: 500; }
td ul { padding-left: 1rem; margin: 0; max-width: 26rem; white-space: normal; color: var(--faint); }
figure { margin: .8rem 0; background: #ffffff; border-radius: 6px; overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 40rem; height: auto; }
code, pre { font-family: ui-monospace, monospace; font-size: .85em; }
pre { margin: 0; padding: .8rem; }
details { border: 1px solid var(--line); border-radius: 6px; }
details { margin: .6rem 0; padding: .5rem .8rem; }
summary { cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { color: var(--faint); }
dd { margin: 0; }
@media print {
  :root { --ink: #000; --faint: #333; --line: #999; --ground: #fff; --shade: #eee; }
  body { max-width: none; padding: 0; font-size: 11px; }
  .wide, figure { overflow: visible; }
  figure, tr { break-inside: avoid; }
  h2, summary { break-after: avoid; }
  th, td { padding: .15rem .3rem; white-space: normal; }
  figure svg { min-width: 0; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""


def page(report: Report, compared: Comparison | None) -> str:
    """Return the whole HTML document.

    Raises MissingDependency without matplotlib.
    """
    parts = [
        f"<h1>rbuild bench</h1>{_facts(report)}",
        _times(report),
        _comparison(compared) if compared is not None else "",
        _section("Parallelism", _table(SPEEDUP_COLUMNS, speedups(report))),
        _phases(report),
        _identity(report),
        _section("Environments", *(_environment(one) for one in report.environments)),
        _section("Raw data", _samples(report), _log(report)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>rbuild bench, {_text(report.started)}</title>\n<style>{STYLE}</style>\n"
        f"</head>\n<body>\n{chr(10).join(part for part in parts if part)}\n</body>\n</html>\n"
    )


def _text(text: str) -> str:
    """Return text as it may stand in HTML, without characters that have no place there."""
    return escape("\n".join(plot.printable(line) for line in text.split("\n")))


def _section(title: str, *parts: str) -> str:
    """Return a part of the page under its heading; nothing if there is nothing to say."""
    content = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{_text(title)}</h2>\n{content}\n</section>" if content else ""


def _details(summary: str, content: str) -> str:
    return f"<details>\n<summary>{_text(summary)}</summary>\n{content}\n</details>"


def _list(lines: Sequence[str], name: str = "notes") -> str:
    items = "".join(f"<li>{_text(line)}</li>" for line in lines)
    return f'<ul class="{name}">{items}</ul>' if items else ""


def _pairs(found: Sequence[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{_text(a)}</dt><dd>{_text(b)}</dd>' for a, b in found)}</dl>"


def _wide(content: str) -> str:
    """Return a box that scrolls by itself, by the keyboard too."""
    return f'<div class="wide" tabindex="0">{content}</div>'


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text."""
    return _markup_table(names, [[_text(cell) for cell in row] for row in rows])


def _markup_table(
    names: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "figures"
) -> str:
    """Return a table of cells that are markup already; nothing if it has no rows."""
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in names)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return _wide(
        f'<table class="{kind}">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table>"
    )


def _picture(svg: str, label: str) -> str:
    if not svg:
        return ""
    named = svg.replace("<svg ", f'<svg role="img" aria-label="{_text(label)}" ', 1)
    return f"<figure>{named}</figure>"


def _facts(report: Report) -> str:
    *lines, command = header(report)
    busy = '<p class="warning">The machine was busy: do not rely on these figures.</p>'
    return (
        f"{busy if report.machine.busy else ''}{_list(lines, 'facts')}"
        f'<p class="facts"><code>{_text(command)}</code> (rbuild {_text(report.rbuild)})</p>'
    )


def _times(report: Report) -> str:
    return _section(
        "Wall time",
        _table(columns(report), [cells(row, report) for row in report.rows]),
        _list(notes(report)),
        _list([line for line in [conclusion(report)] if line]),
        _picture(plot.svg_times(report), "Bars of each mode's median wall time, as in the table"),
    )


def _phases(report: Report) -> str:
    return _section(
        "Phases (wall time)",
        _picture(plot.svg_phases(report), "Bars of each environment's phases, as in the table"),
        _table(*phase_table(report)),
    )


def _comparison(found: Comparison) -> str:
    return _section(
        "Compared with the earlier result",
        _table(compare.COLUMNS, compare.cells(found)) or "<p>Nothing is in both.</p>",
        _list(compare.remarks(found), "warning"),
    )


def _identity(report: Report) -> str:
    """Return which environment made which bytes: a row a product, a column an environment."""
    names = list(dict.fromkeys(name for one in report.identity for name in one.sha256))
    rows = [
        [
            _text(" ".join(word for word in (one.kind, one.driver, one.product) if word)),
            *(_bytes(one, name) for name in names),
        ]
        for one in report.identity
    ]
    return _section(
        "Byte identity",
        _list([identity_line(one) for one in report.identity], "facts"),
        _markup_table(["product", *names], rows, "words"),
    )


def _bytes(one: Identity, environment: str) -> str:
    """Return a cell: the checksums, whether they are the first environment's, what differs."""
    own = one.sha256.get(environment)
    if own is None:
        return "not built"
    reference = next(iter(one.sha256))
    if environment == reference:
        mark = "reference"
    else:
        same = set(own) == set(one.sha256[reference])
        mark = (
            '<span class="same">= same</span>' if same else '<span class="differs">≠ differs</span>'
        )
    if len(own) > 1:
        mark += f' <span class="differs">({len(own)} versions)</span>'
    sums = "<br>".join(
        f'<code title="{_text(sha256)}">{_text(sha256[:SHORT])}</code>' for sha256 in own
    )
    return f"{sums or 'not made'} {mark}{_list(_differences(one, environment))}"


def _differences(one: Identity, environment: str) -> list[str]:
    return [
        text
        for each in one.differences
        if each.environment == environment
        for text in (*each.sections, each.note)
        if text
    ]


def _environment(one: EnvironmentFacts) -> str:
    facts = [
        ("kernel", f"{one.kernel_release} ({one.source})"),
        ("profile", one.profile),
        ("config's SHA-256", one.config_sha256),
        ("emulator", one.emulator or "nothing emulated"),
    ]
    content = _pairs(facts)
    for title, found in (("Toolchain", one.toolchain), ("Variables", one.variables)):
        if found:
            content += f"\n<h3>{title}</h3>\n{_pairs(list(found.items()))}"
    return _details(one.name, content)


def _samples(report: Report) -> str:
    """Return every run in a table, as --export-csv has it."""
    phases = list(
        dict.fromkeys(p.name for r in report.rows for one in r.samples for p in one.phases)
    )
    names = ["mode", "scenario", "-j", "round", "wall s", "user s", "system s", "peak RSS"]
    names += ["cgroup CPU s", "cgroup peak", "load", "MHz", "ccache hits/misses"]
    names += [f"{name} s" for name in phases] + ["products"]
    rows = [
        [row.mode, row.scenario, str(row.jobs), *_sample(one, n in row.wall_s.outliers, phases)]
        for row in report.rows
        for n, one in enumerate(row.samples)
    ]
    return _details(f"All {len(rows)} runs", _table(names, rows)) if rows else ""


def _sample(one: Sample, outlier: bool, phases: Sequence[str]) -> list[str]:
    took = {phase.name: f"{phase.wall_s:.3f}" for phase in one.phases}
    ccache = f"{one.ccache_hits}/{one.ccache_misses}" if one.ccache_hits is not None else ""
    return [
        str(one.round),
        f"{one.wall_s:.3f}{' (outlier)' if outlier else ''}",
        f"{one.user_s:.3f}",
        f"{one.system_s:.3f}",
        size(one.max_rss_bytes),
        "" if one.cgroup_cpu_s is None else f"{one.cgroup_cpu_s:.3f}",
        "" if one.cgroup_peak_bytes is None else size(one.cgroup_peak_bytes),
        str(one.load),
        "" if one.mhz is None else f"{one.mhz:.0f}",
        ccache,
        *(took.get(name, "") for name in phases),
        ", ".join(f"{made.name} {made.sha256[:SHORT]}" for made in one.products),
    ]


def _log(report: Report) -> str:
    lines = "\n".join(report.log_tail)
    content = _wide(f"<pre>{_text(lines)}</pre>")
    return _details(f"The log's last {len(report.log_tail)} lines", content) if lines else ""
