"""A Report as pictures: what each mode took, and what making each environment took.

The same report gives the same bytes: text is measured and placed here, fonts are matplotlib's own,
and neither a date nor a random id is written.  Lengths are in inches, from the figure's top.
"""

from __future__ import annotations

import importlib
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbuild.bench.report import header, ratio_cells, several_jobs
from rbuild.bench.result import EnvironmentFacts, Report, Row
from rbuild.bench.stats import CONFIDENCE
from rbuild.errors import MissingDependency
from rbuild.ui.format import duration
from rbuild.util import export

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 10.0
MARGIN = 0.15
LABELS = 2.8
"""The most room that the labels left of the bars get; longer ones go on in a second line."""

LINE = 0.25
BAR = 0.68
"""A bar's height, and how much of its line that is."""

SMALL, NORMAL, LARGE = 8.0, 9.0, 12.0
TEXT_LINE = 0.165
"""The sizes of letters in points, and the height of a line of small ones."""

LOGARITHMIC = 20
"""From this ratio of the longest to the shortest median, the shortest would be but a stroke."""

INK, FAINT = "#222222", "#666666"
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, YELLOW, RED, GREY = "#56B4E9", "#F0E442", "#D55E00", "#999999"
ENVIRONMENTS = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY, YELLOW, GREY)
PHASES = (SKY, YELLOW, GREY, RED, PURPLE, GREEN, ORANGE, BLUE)
"""Okabe and Ito's colours (2008), which people with any kind of colour vision can tell apart."""

HATCHES = ("", "////", "----", "\\\\\\\\", "xxxx", "||||", "++++")
"""Strokes only: dots make an SVG ten times as large."""

MINUTES = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
"""How many minutes apart ticks may be."""

DEFAULT_PHASES = ("provision", "configure", "prepare", "kernel", "module")
"""The phases that every report has, so that each always has the same colour."""

SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": NORMAL,
    "hatch.linewidth": 0.7,
    "svg.fonttype": "path",
    "svg.hashsalt": "rbuild",
    "text.parse_math": False,
}


def require() -> None:
    """Raise MissingDependency if matplotlib can't be imported."""
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise MissingDependency(
            f"Pictures need matplotlib: {error}.", hint="pip install 'rbuild[plot]'"
        ) from error


def write(report: Report, path: Path) -> None:
    """Draw the report as SVG or PNG, whichever the name ends in, all at once.

    Raises MissingDependency without matplotlib, and OSError where the file can't be written.
    """
    kind = path.suffix.lower().lstrip(".")
    with _settings():
        content = _bytes(figure(report), kind)
    export.write(path, content)


def svg_times(report: Report) -> str:
    """Return the picture of the wall times as an SVG element to put into a page."""
    return _element(report, "times", _times)


def svg_phases(report: Report) -> str:
    """Return that of the environments' phases, or nothing if none has any."""
    return _element(report, "phases", _phases) if _has_phases(report) else ""


def figure(report: Report) -> Figure:
    """Return both pictures in one figure, with a line that says where they were measured."""
    with _settings():
        ruler = Ruler()
        pictures = [_times(report, ruler)]
        if _has_phases(report):
            pictures.append(_phases(report, ruler))
        return _compose(pictures, ruler.flow(header(report)[:2]))


class Ruler:
    """Measures text as it will be drawn."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import RendererAgg  # noqa: PLC0415

        self._renderer: Any = RendererAgg(1, 1, 72)  # type: ignore[no-untyped-call]

    def width(self, text: str, size: float, *, bold: bool = False) -> float:
        """Return how wide a line of text is."""
        from matplotlib.font_manager import FontProperties  # noqa: PLC0415

        font = FontProperties(size=size, weight="bold" if bold else "normal")
        found = self._renderer.get_text_width_height_descent(text, font, ismath=False)
        return float(found[0]) / 72

    def wrap(self, text: str, size: float, room: float) -> list[str]:
        """Return text in as many lines as it takes, each not wider than ``room``."""
        text = printable(text)
        whole = self.width(text, size)
        if whole <= room:
            return [text]
        # Some lines are of narrower letters than the whole text is, hardly twice as narrow.
        for width in range(int(len(text) * 1.5 * room / whole), 1, -1):
            lines = textwrap.wrap(text, width)
            if all(self.width(line, size) <= room for line in lines):
                return lines
        return [text]

    def flow(self, texts: Sequence[str]) -> list[str]:
        """Return small text in lines as wide as the figure."""
        room = WIDTH - 2 * MARGIN
        return [line for text in texts for line in self.wrap(text, SMALL, room)]


@dataclass(frozen=True)
class Key:
    """What a colour and a hatch stand for, and where in its line that is said."""

    name: str
    style: tuple[str, str]
    x: float


@dataclass(frozen=True)
class Picture:
    """A picture that knows how much room it takes: what is said above it, and what is drawn."""

    title: str
    caption: Sequence[str]
    keys: Sequence[Sequence[Key]]
    labels: float
    body: float
    draw: Callable[[Axes], None]

    @property
    def height(self) -> float:
        """The whole height with the axis."""
        return 0.35 + TEXT_LINE * len(self.caption) + 0.22 * len(self.keys) + self.body + 0.65


@dataclass(frozen=True)
class Line:
    """A bar's label in lines of text, and where its middle is, in lines from the top."""

    label: Sequence[str]
    middle: float


def printable(text: str) -> str:
    """Return text without what is no letter, such as a control character of a hostile log."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


@contextmanager
def _settings() -> Iterator[None]:
    """Draw with our settings instead of the user's, and leave those as they are."""
    require()
    from matplotlib import style  # noqa: PLC0415

    with style.context(["default", SETTINGS]):
        yield


def _element(report: Report, name: str, picture: Callable[[Report, Ruler], Picture]) -> str:
    with _settings():
        whole = _bytes(_compose([picture(report, Ruler())], []), "svg").decode()
    element = re.sub(r"<!--.*?-->\s*", "", whole[whole.index("<svg") :], flags=re.DOTALL)
    # A page may hold both pictures, and an id only once.
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", element)


def _bytes(drawn: Figure, kind: str) -> bytes:
    content = io.BytesIO()
    if kind == "svg":
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        drawn.savefig(content, format=kind, metadata={**nothing, "Title": "rbuild bench"})
    else:
        drawn.savefig(content, format=kind, dpi=200, metadata={"Software": None})
    return content.getvalue()


def _compose(pictures: Sequence[Picture], footer: Sequence[str]) -> Figure:
    """Put pictures below each other, each as high as it must be."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    foot = TEXT_LINE * len(footer) + MARGIN if footer else 0
    height = MARGIN + sum(one.height for one in pictures) + foot
    drawn = Figure(figsize=(WIDTH, height), dpi=100, facecolor="white")
    y = height - MARGIN
    for one in pictures:
        _put(drawn, one, y)
        y -= one.height
    for line in footer:
        _write(drawn, MARGIN, y, line, color=FAINT)
        y -= TEXT_LINE
    return drawn


def _put(drawn: Figure, picture: Picture, y: float) -> None:
    _write(drawn, MARGIN, y, picture.title, size=LARGE, weight="bold")
    y -= 0.27
    for line in picture.caption:
        _write(drawn, MARGIN, y, line, color=FAINT)
        y -= TEXT_LINE
    for row in picture.keys:
        _put_keys(drawn, row, y)
        y -= 0.22
    y -= 0.08 + picture.body
    left = MARGIN + picture.labels
    width, height = drawn.get_size_inches()
    place = (left / width, y / height, (width - left - MARGIN) / width, picture.body / height)
    axes = drawn.add_axes(place)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(axis="y", length=0, labelsize=NORMAL, labelcolor=INK)
    axes.tick_params(axis="x", labelsize=SMALL, labelcolor=INK, color=FAINT)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    picture.draw(axes)


def _put_keys(drawn: Figure, row: Sequence[Key], y: float) -> None:
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    for key in row:
        color, hatch = key.style
        drawn.add_artist(
            Rectangle(
                (key.x, y - 0.128),
                0.24,
                0.12,
                transform=drawn.dpi_scale_trans,
                facecolor=_pale(color),
                edgecolor=color,
                hatch=hatch,
            )
        )
        _write(drawn, key.x + 0.3, y, key.name)


def _write(
    drawn: Figure,
    x: float,
    y: float,
    text: str,
    *,
    size: float = SMALL,
    color: str = INK,
    weight: str = "normal",
) -> None:
    place = drawn.dpi_scale_trans
    drawn.text(*(x, y, text), transform=place, size=size, color=color, weight=weight, va="top")


def _pale(color: str) -> tuple[float, ...]:
    """Return a colour that is mixed with as much white, for hatches and dots to stand out from."""
    from matplotlib.colors import to_rgb  # noqa: PLC0415

    return tuple((1 + part) / 2 for part in to_rgb(color))


def _styles(names: Sequence[str], colors: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return a colour and a hatch for each name; the pairs only repeat after 56 of them."""
    return {
        name: (colors[n % len(colors)], HATCHES[n % len(HATCHES)])
        for n, name in enumerate(dict.fromkeys(names))
    }


def _draw_bar(axes: Axes, y: float, left: float, width: float, style: tuple[str, str]) -> None:
    color, hatch = style
    axes.barh(y, width, BAR, left=left, facecolor=_pale(color), edgecolor=color, hatch=hatch)


def _draw_end(axes: Axes, x: float, y: float, text: str, weight: str = "normal") -> None:
    """Write at a bar's end."""
    axes.annotate(
        text,
        (x, y),
        xytext=(6, 0),
        textcoords="offset points",
        size=SMALL,
        weight=weight,
        color=INK,
        va="center_baseline",
        annotation_clip=False,
    )


# The wall times.


def _times(report: Report, ruler: Ruler) -> Picture:
    groups: dict[str, list[Row]] = {}
    for row in report.rows:
        driver = f" {row.driver}" if row.driver else ""
        groups.setdefault(f"{row.kind}{driver}, {row.scenario}", []).append(row)
    headings: list[tuple[str, float]] = []
    lines: list[tuple[Line, Row]] = []
    y = 0.0
    for heading, rows in groups.items():
        y += 0.25 if headings else 0.0
        headings.append((heading, y + 0.5))
        y += 1
        for row in rows:
            label = _wrapped(_label(row, report), ruler)
            height = max(1.0, 0.6 * len(label) + 0.2)
            lines.append((Line(label, y + height / 2), row))
            y += height

    bottom = max(y, 1.0)

    def draw(axes: Axes) -> None:
        axes.set_ylim(bottom, 0)
        _label_lines(axes, [line for line, _ in lines])
        _scale(axes, report.rows, ruler)
        styles = _styles([row.environment for row in report.rows], ENVIRONMENTS)
        for line, row in lines:
            _draw_row(axes, line, row, styles[row.environment])
        for heading, middle in headings:
            _draw_heading(axes, heading, middle)

    caption = ruler.flow(_caption(report))
    labels = _label_room(report, ruler)
    title = "Wall time" + (" (THE MACHINE WAS BUSY)" if report.machine.busy else "")
    return Picture(title, caption, (), labels, bottom * LINE, draw)


def _label(row: Row, report: Report) -> str:
    return f"{row.environment} -j{row.jobs}" if several_jobs(report) else row.environment


def _wrapped(name: str, ruler: Ruler) -> list[str]:
    return ruler.wrap(name, NORMAL, LABELS - 0.2)


def _label_room(report: Report, ruler: Ruler) -> float:
    """Return how much room the labels of both pictures need, for their axes to begin alike."""
    names = {_label(row, report) for row in report.rows} | {one.name for one in report.environments}
    widths = [ruler.width(text, NORMAL) for name in names for text in _wrapped(name, ruler)]
    return max(widths, default=0) + 0.2


def _label_lines(axes: Axes, lines: Sequence[Line]) -> None:
    axes.set_yticks([line.middle for line in lines], ["\n".join(line.label) for line in lines])
    for text in axes.get_yticklabels():
        text.set_linespacing(1.0)


def _caption(report: Report) -> list[str]:
    """Say what is drawn, and no more than that many runs can show."""
    if not report.rows:
        return ["nothing was measured"]
    confidence = min(row.wall_s.confidence for row in report.rows)
    if confidence == 0:
        bars = "bar: a single run, which says nothing of the noise (no interval)"
    else:
        least = "" if confidence == max(row.wall_s.confidence for row in report.rows) else ">= "
        bars = (
            f"bar: the median of all runs; whisker: its interval ({least}{confidence:.0%} "
            "confidence); dot: one run, the first at the top"
        )
    if any(row.wall_s.outliers for row in report.rows):
        bars += "; diamond: an outlier, counted too"
    found = [row.ratio for row in report.rows if row.ratio is not None]
    if not found:
        return [bars]
    if not any(one.confidence for one in found):
        return [bars, "ratio: to the reference"]
    return [
        bars,
        f"ratio: of medians, to the reference [with its {CONFIDENCE:.0%} interval]; "
        "bold where it shows a difference",
    ]


def _end(row: Row) -> float:
    """Return how far to the right a row's marks reach."""
    return max(row.wall_s.high, row.wall_s.median, *(one.wall_s for one in row.samples))


def _words(row: Row) -> tuple[str, bool]:
    """Return what is written at a bar's end, and whether it is bold."""
    ratio, bounds, verdict = ratio_cells(row.ratio)
    took = duration(row.wall_s.median)
    if row.ratio is None:
        return f"{took}   {verdict}", False
    text = f"{took}   {ratio} {bounds}".rstrip()
    return text, row.ratio.verdict in ("slower", "faster")


def _scale(axes: Axes, rows: Sequence[Row], ruler: Ruler) -> None:
    """Scale the axis so that what is written at each bar's end has room there."""
    room = axes.get_position().width * WIDTH
    needs = []
    for row in rows:
        text, bold = _words(row)
        needs.append((_end(row), ruler.width(text, SMALL, bold=bold) * 1.03 + 0.12))
    medians = [row.wall_s.median for row in rows]
    if medians and min(medians) > 0 and max(medians) > LOGARITHMIC * min(medians):
        _scale_logarithmic(axes, min(medians), needs, room)
        return
    most = max((end * room / (room - text) for end, text in needs), default=1)
    axes.set_xlim(0, most or 1)
    axes.set_xlabel("wall time in seconds", size=SMALL, color=INK)


def _scale_logarithmic(
    axes: Axes, least: float, needs: Sequence[tuple[float, float]], room: float
) -> None:
    axes.set_xscale("log")
    steps = [m * 10.0**e for e in range(-6, 9) for m in (1, 2, 5)]
    low = max((one for one in steps if one <= least / 2), default=least / 2)
    decades = max(math.log10(end / low) * room / (room - text) for end, text in needs)
    axes.set_xlim(low, low * 10**decades)
    if decades > 5:
        steps = steps[::3]
    shown = [one for one in steps if low <= one <= low * 10**decades]
    axes.set_xticks(shown, [f"{one:g}" for one in shown])
    axes.minorticks_off()
    label = "wall time in seconds, logarithmic: read the figures, the lengths aren't in proportion"
    axes.set_xlabel(label, size=SMALL, color=INK)


def _draw_row(axes: Axes, line: Line, row: Row, style: tuple[str, str]) -> None:
    wall, y = row.wall_s, line.middle
    left = axes.get_xlim()[0]
    _draw_bar(axes, y, left, wall.median - left, style)
    _draw_samples(axes, y, row)
    if wall.low < wall.high:
        reach = [[wall.median - wall.low], [wall.high - wall.median]]
        axes.errorbar(
            *(wall.median, y), xerr=reach, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3.5
        )
    text, bold = _words(row)
    _draw_end(axes, _end(row), y, text, weight="bold" if bold else "normal")


def _draw_samples(axes: Axes, y: float, row: Row) -> None:
    """Draw each run below the one before, so that a machine that slows down shows as a slope."""
    n = len(row.samples)
    if n < 2:
        return
    size = 3.2 if n <= 12 else 2.2
    places = [y + BAR * 0.8 * (i / (n - 1) - 0.5) for i in range(n)]
    for odd, marker, face in ((False, "o", INK), (True, "D", "white")):
        chosen = [i for i in range(n) if (i in row.wall_s.outliers) == odd]
        axes.plot(
            [row.samples[i].wall_s for i in chosen],
            [places[i] for i in chosen],
            marker=marker,
            linestyle="none",
            markersize=size,
            markerfacecolor=face,
            markeredgecolor=INK if odd else "white",
            markeredgewidth=0.8 if odd else 0.4,
            zorder=3,
        )


def _draw_heading(axes: Axes, heading: str, middle: float) -> None:
    from matplotlib.transforms import blended_transform_factory  # noqa: PLC0415

    drawn = axes.get_figure(root=True)
    assert drawn is not None
    axes.text(
        MARGIN,
        middle,
        heading,
        transform=blended_transform_factory(drawn.dpi_scale_trans, axes.transData),
        size=NORMAL,
        weight="bold",
        color=INK,
        va="center_baseline",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )


# The environments' phases.


def _has_phases(report: Report) -> bool:
    return any(one.phases for one in report.environments)


def _phases(report: Report, ruler: Ruler) -> Picture:
    found = [phase.name for one in report.environments for phase in one.phases]
    styles = _styles([*DEFAULT_PHASES, *found], PHASES)
    lines: list[tuple[Line, EnvironmentFacts]] = []
    labels = _label_room(report, ruler)
    room = WIDTH - 2 * MARGIN - labels
    sums = [ruler.wrap(_sum(one), SMALL, room) for one in report.environments]
    y = 0.1
    for texts, one in zip(sums, report.environments, strict=True):
        label = _wrapped(one.name, ruler)
        # A label of several lines reaches as far above the bar's middle as below it.
        above = max(0.5, 0.3 * len(label))
        below = max(0.5 + 0.66 * len(texts), 0.3 * len(label)) + 0.35
        lines.append((Line(label, y + above), one))
        y += above + below

    def draw(axes: Axes) -> None:
        axes.set_ylim(y, 0)
        _label_lines(axes, [line for line, _ in lines])
        _scale_phases(axes, report)
        for (line, one), texts in zip(lines, sums, strict=True):
            _draw_phases(axes, line, one, styles)
            _draw_sum(axes, line, texts)

    keys = _keys([name for name in styles if name in found], styles, ruler)
    caption = ruler.flow(["wall time to make each environment's rootfs (provision) and its KDIR"])
    return Picture("Phases", caption, keys, labels, y * LINE, draw)


def _keys(
    names: Sequence[str], styles: dict[str, tuple[str, str]], ruler: Ruler
) -> list[list[Key]]:
    """Place what the colours mean in as many lines as it takes."""
    rows: list[list[Key]] = [[]]
    x = MARGIN
    for name in names:
        text = ruler.wrap(name, SMALL, WIDTH / 2)[0]
        width = 0.3 + ruler.width(text, SMALL) + 0.3
        if x + width > WIDTH - MARGIN and rows[-1]:
            rows.append([])
            x = MARGIN
        rows[-1].append(Key(text, styles[name], x))
        x += width
    return rows


def _total(one: EnvironmentFacts) -> float:
    return sum(phase.wall_s for phase in one.phases)


def _sum(one: EnvironmentFacts) -> str:
    """Return an environment's phases in words, since the short ones can't be seen."""
    parts = [f"{phase.name} {duration(phase.wall_s)}" for phase in one.phases]
    return ", ".join(parts) or "nothing is known of its phases"


def _scale_phases(axes: Axes, report: Report) -> None:
    most = max(_total(one) for one in report.environments)
    axes.set_xlim(0, most * 1.15 or 1)
    minutes = most > 300
    if minutes:
        step = next((m for m in MINUTES if most <= 10 * 60 * m), most / 600)
        axes.set_xticks([60 * step * n for n in range(12) if step * n * 60 <= most * 1.15])
        axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds / 60:g}")
    label = f"wall time in {'minutes' if minutes else 'seconds'}"
    axes.set_xlabel(label, size=SMALL, color=INK)


def _draw_phases(
    axes: Axes, line: Line, one: EnvironmentFacts, styles: dict[str, tuple[str, str]]
) -> None:
    left = 0.0
    for phase in one.phases:
        _draw_bar(axes, line.middle, left, phase.wall_s, styles[phase.name])
        left += phase.wall_s
    if one.phases:
        _draw_end(axes, left, line.middle, duration(left))


def _draw_sum(axes: Axes, line: Line, texts: Sequence[str]) -> None:
    axes.text(
        0,
        line.middle + 0.48,
        "\n".join(texts),
        size=SMALL,
        linespacing=1.15,
        color=FAINT,
        va="top",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )
