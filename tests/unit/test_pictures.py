"""The benchmark's pictures and its page: right at the edges, safe with hostile text."""

from __future__ import annotations

import io
import itertools
import random
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from rbuild.bench import compare, html, plot
from rbuild.bench import report as words
from rbuild.bench.result import (
    Difference,
    EnvironmentFacts,
    Identity,
    Machine,
    PhaseTimes,
    Product,
    Ratio,
    Report,
    Row,
    Sample,
)
from rbuild.bench.stats import spread
from rbuild.errors import MissingDependency
from rbuild.ui.console import Console

HOSTILE = "<script>alert(1)</script> & \"'$x^2$ \x1b[31m --> ]]>"
SPEED = {"cross": 1.0, "hybrid": 1.07, "chroot": 21.0}
SCENARIOS = {"clean": 6.0, "incremental": 2.3, "noop": 0.9, "incremental-rust": 4.1}


def phases(*figures: float) -> tuple[PhaseTimes, ...]:
    names = ("provision", "configure", "prepare", "kernel", "module")
    return tuple(
        PhaseTimes(name=name, wall_s=wall, user_s=wall, system_s=0.1, max_rss_bytes=2**28)
        for name, wall in zip(names, figures, strict=False)
    )


def samples(walls: Sequence[float]) -> tuple[Sample, ...]:
    return tuple(
        Sample(
            round=n,
            wall_s=wall,
            user_s=wall * 1.7,
            system_s=wall / 5,
            max_rss_bytes=400 * 2**20,
            load=1.5,
            mhz=2400.0 if n else None,
            phases=phases(*[0.0] * 4, wall)[4:],
            products=(Product(name="chip.ko", sha256=f"{n:064x}", size_bytes=123456),),
        )
        for n, wall in enumerate(walls)
    )


def ratio(walls: Sequence[float], base: Sequence[float]) -> Ratio:
    """A ratio with an interval that isn't computed, which would take most of these tests' time."""
    middle = statistics.median(walls) / statistics.median(base)
    single = len(walls) == 1
    low, high = (middle, middle) if single else (middle * 0.93, middle * 1.08)
    verdict: Any = "slower" if low > 1 and not single else "no difference shown"
    return Ratio(
        ratio=middle, low=low, high=high, confidence=0.0 if single else 0.95, verdict=verdict
    )


def row(
    mode: tuple[str, Any, Any, int, Any], walls: Sequence[float], base: Sequence[float] | None
) -> Row:
    environment, kind, driver, jobs, scenario = mode
    return Row(
        environment=environment,
        kind=kind,
        driver=driver,
        jobs=jobs,
        scenario=scenario,
        wall_s=spread(walls),
        user_s=spread([one * 1.7 for one in walls]),
        system_s=spread([one / 5 for one in walls]),
        max_rss_bytes=400 * 2**20,
        ratio=None if base is None else ratio(walls, base),
        samples=samples(walls),
    )


def facts(name: str, speed: float = 1.0, **changed: Any) -> EnvironmentFacts:
    took = [120 * speed, 4.2 * speed, 21 * speed, 340 * speed, 6 * speed]
    known: dict[str, Any] = {
        "name": name,
        "kernel_release": "6.12.48-rbuild",
        "source": "Debian linux-source-6.12",
        "profile": "slim",
        "config_sha256": "c0ffee" * 10 + "0000",
        "toolchain": {"clang": "19.1.7", "rustc": "1.85.0", "make": "4.4.1"},
        "variables": {"ARCH": "arm64", "LLVM": "1"},
        "emulator": "qemu-aarch64 10.0.2 (max)" if speed > 5 else None,
        "phases": phases(*took),
    }
    return EnvironmentFacts(**known | changed)


def machine(**changed: Any) -> Machine:
    known: dict[str, Any] = {
        "cpu": "AMD Ryzen 7 5800X 8-Core Processor",
        "cores": 16,
        "governor": "performance",
        "mhz": 3800.0,
        "memory_bytes": 32 * 2**30,
        "host_kernel": "6.1.0-37-amd64",
        "file_system": "ext4",
        "load_before": 0.1,
        "load_after": 3.2,
        "busy": False,
    }
    return Machine(**known | changed)


def rows(
    speeds: dict[str, float],
    kinds: Sequence[str] = ("out-of-tree",),
    drivers: Sequence[str | None] = ("rust", "c"),
    scenarios: Sequence[str] = ("clean",),
    jobs: Sequence[int] = (8,),
    runs: int = 5,
) -> tuple[Row, ...]:
    draw = random.Random(1)
    found = []
    for kind, driver, scenario in itertools.product(kinds, drivers, scenarios):
        base: list[float] | None = None
        for (environment, speed), count in itertools.product(speeds.items(), jobs):
            middle = SCENARIOS[scenario] * speed * (1.8 if driver == "rust" else 1) * 8 / count
            walls = [middle * draw.lognormvariate(0, 0.03) for _ in range(runs)]
            if environment == "hybrid" and runs > 4:
                walls[2] *= 1.4
            found.append(row((environment, kind, driver, count, scenario), walls, base))
            base = base or walls
    return tuple(found)


def report(found: Sequence[Row], **changed: Any) -> Report:
    names = dict.fromkeys(one.environment for one in found)
    known: dict[str, Any] = {
        "rbuild": "0.1.0",
        "command_line": "rbuild bench --env cross --env hybrid",
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 754.2,
        "machine": machine(),
        "environments": tuple(facts(name, SPEED.get(name, 1.0)) for name in names),
        "runs": len(found[0].samples) if found else 1,
        "warmup": 1,
        "ccache": False,
        "rows": tuple(found),
        "identity": (),
        "log_tail": ("make: Entering directory", "  LD [M]  chip.ko"),
    }
    return Report(**known | changed)


LONG = "a-chroot-of-debian-trixie-with-an-exceedingly-long-name-and-clang"
TWO = {"cross": 1.0, "hybrid": 1.07}
KINDS = ("out-of-tree", "in-tree")
REPORTS = {
    "2 rows": report(rows(TWO, drivers=("rust",))),
    "8 rows": report(rows(TWO, KINDS)),
    "36 rows": report(rows(SPEED, KINDS, scenarios=("clean", "incremental", "noop"))),
    "single runs": report(rows(SPEED, runs=1)),
    "several jobs": report(rows(TWO, drivers=("rust",), jobs=(1, 2, 8), runs=8)),
    "odd": report(
        rows({"cross": 1.0, LONG: 3.0, HOSTILE: 1.02}, drivers=("c",)),
        machine=machine(busy=True, cpu="CPU " * 40, load_before=12.0),
        environments=(
            facts("cross"),
            facts(LONG, 90.0),
            facts(HOSTILE, phases=(), toolchain={HOSTILE: HOSTILE}, variables={"A": HOSTILE}),
        ),
        identity=(
            Identity(
                kind="out-of-tree",
                driver="c",
                product=HOSTILE,
                identical=False,
                sha256={"cross": ("a" * 64,), LONG: ("a" * 64,), HOSTILE: ("b" * 64, HOSTILE)},
                differences=(
                    Difference(environment=HOSTILE, sections=(".text", HOSTILE), note=HOSTILE),
                ),
            ),
        ),
        command_line=f"rbuild bench --env {HOSTILE}",
        log_tail=("ok", HOSTILE),
    ),
    "no phases": report(rows(TWO, drivers=("c",)), environments=(facts("cross", phases=()),)),
    "nothing": report((), environments=()),
}


@pytest.fixture(params=list(REPORTS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@cache
def drawn(name: str) -> tuple[Figure, list[tuple[Text, Bbox]]]:
    """The figure, and each text that is seen in it with the box that it takes."""
    figure = plot.figure(REPORTS[name])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    found: list[Any] = [*figure.texts]
    for axes in figure.axes:
        found += [*axes.texts, axes.xaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    return figure, [(t, t.get_window_extent(canvas.get_renderer())) for t in found if t.get_text()]


@cache
def page(name: str) -> str:
    return html.page(REPORTS[name], None)


def test_a_table_has_what_fits_in_a_line() -> None:
    found = REPORTS["36 rows"]
    whole, lines = words.fitting(found, None)
    assert whole == words.columns(found)
    table = Console(out=io.StringIO()).table("", whole, lines)
    assert all(name in table for name in whole)
    for width in (140, 120, 100, 80):
        names, lines = words.fitting(found, width)
        assert {"mode", "scenario", "median s", "ratio"} <= set(names) < set(whole)
        assert {len(line) for line in lines} == {len(names)}
        screen = io.StringIO()
        table = Console(out=screen).table("", names, lines)
        assert max(map(len, table.splitlines())) <= width
        assert "…" not in table


def test_no_text_is_cut_off_or_over_another(name: str) -> None:
    figure, found = drawn(name)
    assert figure.get_size_inches()[0] == plot.WIDTH
    for text, box in found:
        inside = figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert inside and figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text.get_text()
    for (one, a), (other, b) in itertools.combinations(found, 2):
        # Ascenders and descenders of lines below each other may touch.
        apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 + 2 or b.y1 <= a.y0 + 2
        assert apart, (one.get_text(), other.get_text())


def test_what_is_written_at_a_bar_is_not_over_a_bar(name: str) -> None:
    figure, found = drawn(name)
    ends = [box for text, box in found if text.get_text().endswith(("]", "reference"))]
    bars = [bar.get_window_extent() for axes in figure.axes[:1] for bar in axes.patches]
    assert not [1 for end in ends for bar in bars if end.overlaps(bar)]


def test_every_mode_is_named_with_its_time_and_ratio(name: str) -> None:
    made = REPORTS[name]
    seen = [text.get_text() for text, _ in drawn(name)[1]]
    flat = ["".join(text.split()) for text in seen]
    several = len({one.jobs for one in made.rows}) > 1
    expected: Counter[str] = Counter()
    for one in made.rows:
        name = plot.printable(one.environment) + (f" -j{one.jobs}" if several else "")
        expected["".join(name.split())] += 1
        driver = f" {one.driver}" if one.driver else ""
        assert f"{one.kind}{driver}, {one.scenario}" in seen
        end = words.ratio_cells(one.ratio)
        shown = end[2] if one.ratio is None else f"{end[0]} {end[1]}".strip()
        assert any(text.endswith(f"   {shown}") for text in seen)
    assert all(flat.count(name) >= n for name, n in expected.items())


def test_a_long_way_from_shortest_to_longest_is_logarithmic() -> None:
    wide, narrow = (drawn(name)[0].axes[0] for name in ("36 rows", "8 rows"))
    assert (wide.get_xscale(), narrow.get_xscale()) == ("log", "linear")
    assert "logarithmic" in wide.get_xlabel() and "logarithmic" not in narrow.get_xlabel()
    assert narrow.get_xlim()[0] == 0


def test_times_of_zero_are_drawn() -> None:
    zero = report((row(("cross", "kernel", None, 1, "noop"), [0.0, 0.0], None),))
    assert plot.figure(zero).axes[0].get_xscale() == "linear"


def test_more_rows_are_a_higher_figure() -> None:
    heights = [drawn(f"{n} rows")[0].get_size_inches()[1] for n in (2, 8, 36)]
    assert heights == sorted(heights)
    assert heights[0] < 6 and heights[-1] < 20


def test_every_run_is_a_mark_and_outliers_are_others() -> None:
    one = REPORTS["several jobs"].rows[-1]
    assert one.wall_s.outliers
    axes = drawn("several jobs")[0].axes[0]
    marks = [line for line in axes.lines if line.get_marker() in ("o", "D")]
    shown = [x for line in marks for x in line.get_xdata()]  # type: ignore[union-attr]
    runs = [s.wall_s for r in REPORTS["several jobs"].rows for s in r.samples]
    assert sorted(shown) == sorted(runs)
    diamonds = [x for m in marks if m.get_marker() == "D" for x in m.get_xdata()]  # type: ignore[union-attr]
    assert one.samples[one.wall_s.outliers[0]].wall_s in diamonds


def test_single_runs_claim_no_interval() -> None:
    seen = " ".join(text.get_text() for text, _ in drawn("single runs")[1])
    assert "says nothing of the noise" in seen
    assert "confidence" not in seen and "[" not in seen and "bold" not in seen


def test_a_busy_machine_is_in_the_picture() -> None:
    seen = [text.get_text() for text, _ in drawn("odd")[1]]
    assert any("BUSY" in text for text in seen)


@pytest.mark.parametrize(("name", "suffix"), [("odd", ".svg"), ("2 rows", ".png")])
def test_the_same_report_is_the_same_bytes(tmp_path: Path, name: str, suffix: str) -> None:
    paths = [tmp_path / f"{n}{suffix}" for n in "ab"]
    for path in paths:
        plot.write(REPORTS[name], path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert sorted(tmp_path.iterdir()) == paths  # nothing is left aside
    if suffix == ".png":
        assert first.startswith(b"\x89PNG\r\n\x1a\n")
        assert int.from_bytes(first[16:20], "big") == 200 * plot.WIDTH
    else:
        assert ET.fromstring(first).tag.endswith("svg")
        assert b"20" + b"26-" not in first.split(b"<defs>")[0]  # no date in its head


def test_a_user_s_settings_change_nothing_and_are_left_alone() -> None:
    import matplotlib

    first = plot.svg_times(REPORTS["2 rows"])
    own = {"font.size": 30.0, "axes.grid": True, "svg.fonttype": "none"}
    with matplotlib.rc_context(own):  # type: ignore[arg-type]
        assert plot.svg_times(REPORTS["2 rows"]) == first
        assert {name: matplotlib.rcParams[name] for name in own} == own  # type: ignore[index]


def test_without_matplotlib_the_host_lacks_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency) as caught:
        plot.require()
    assert "rbuild[plot]" in str(caught.value.hint)
    with pytest.raises(MissingDependency):
        plot.write(REPORTS["2 rows"], tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())


class Page(HTMLParser):
    """Reads a page, and fails where its tags don't balance."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_is_whole_and_needs_nothing_else(name: str) -> None:
    made, text = REPORTS[name], page(name)
    parsed = Page(text)
    assert text.startswith("<!doctype html>\n")
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for name, value in parsed.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#") and value[1:] in ids
        assert not name.startswith("on")
    assert "@import" not in text and "url(http" not in text
    assert not parsed.tags & Counter(("script", "link", "img", "iframe", "object"))
    assert parsed.tags["svg"] == 1 + any(e.phases for e in made.environments)
    for one in made.rows:
        for cell in words.cells(one, made):
            assert plot.printable(cell) in parsed.text
    for line in words.header(made) + words.notes(made):
        assert plot.printable(line) in parsed.text


def test_hostile_text_is_only_text() -> None:
    text = page("odd")
    assert "<script" not in text
    assert "\x1b" not in text
    parsed = Page(text)
    # The log, the command line, a mode, a product, a variable ...
    assert parsed.text.count(plot.printable(HOSTILE)) > 8


def test_a_page_says_whose_bytes_differ_in_words() -> None:
    parsed = Page(page("odd"))
    assert "a" * 12 + " reference" in parsed.text
    assert "a" * 12 + " = same" in parsed.text
    assert "≠ differs (2 versions).text" in parsed.text
    assert "Byte identity" not in page("2 rows")


def test_a_page_has_parallelism_only_of_several_jobs() -> None:
    assert "Parallelism" in page("several jobs")
    assert "Parallelism" not in page("8 rows")


def test_a_page_has_the_comparison() -> None:
    old = report(rows({"cross": 0.5, "chroot": 21.0}, drivers=("rust",)), ccache=True)
    found = compare.compare(old, REPORTS["2 rows"])
    parsed = Page(html.page(REPORTS["2 rows"], found))
    for cell in compare.cells(found)[0]:
        assert cell in parsed.text
    assert "only in the earlier result: chroot out-of-tree rust" in parsed.text
    assert "only in this result: hybrid out-of-tree rust" in parsed.text
    assert "hardly comparable: ccache: True and now False" in parsed.text


def test_a_page_has_every_run() -> None:
    one = REPORTS["several jobs"]
    parsed = Page(page("several jobs"))
    runs = [sample.wall_s for each in one.rows for sample in each.samples]
    assert f"All {len(runs)} runs" in parsed.text
    assert all(f"{wall:.3f}" in parsed.text for wall in runs)
