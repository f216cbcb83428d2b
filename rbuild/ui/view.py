"""The live view of a step on a terminal: what, how far, how long, the object, and the load."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

from rich.console import Console as Rich
from rich.console import ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rbuild.ui.format import visible

if TYPE_CHECKING:
    from rbuild.ui.step import Step

REFRESHES = 4
"""How often in a second it is drawn: often enough to look alive, too seldom to cost anything."""

WIDE = 120
"""From how many columns on the bar is long."""


class View:
    """Draws the innermost step that is under way, on two lines, as wide as the terminal is."""

    def __init__(self, file: IO[str], current: Callable[[], Step | None]) -> None:
        self._current = current
        # Without colours there are no other attributes, either.
        plain = bool(os.environ.get("NO_COLOR"))
        self._screen = Rich(
            file=file,
            markup=False,
            emoji=False,
            highlight=False,
            force_terminal=True,
            color_system=None if plain else "auto",
        )
        simple = not self._screen.encoding.lower().startswith("utf")
        self._spinner = Spinner("line" if simple else "dots")
        self._live = Live(
            self,
            console=self._screen,
            refresh_per_second=REFRESHES,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def start(self) -> None:
        """Begin to draw."""
        self._live.start(refresh=True)

    def stop(self) -> None:
        """Wipe what was drawn, and show the cursor again."""
        self._live.stop()

    def print(self, text: str) -> None:
        """Write a line above what is drawn."""
        self._screen.print(Text.from_ansi(text), soft_wrap=True)

    @property
    def screen(self) -> Rich:
        """What it is drawn on."""
        return self._screen

    def __rich_console__(self, console: Rich, options: ConsoleOptions) -> RenderResult:
        """Yield the two lines."""
        step = self._current()
        if step is None:
            return
        width = options.max_width
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=1)
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        grid.add_column(width=40 if width >= WIDE else 12)
        grid.add_column(no_wrap=True, justify="right")
        part = step.part
        bar = ProgressBar(
            total=1.0,
            completed=0.0 if part is None else part,
            pulse=part is None,
            animation_time=step.elapsed_s,
        )
        far = Text(step.far(brief=width < WIDE))
        grid.add_row(self._spinner, Text(visible(step.title)), bar, far)
        yield grid
        below = Table.grid(padding=(0, 1), expand=True)
        below.add_column(width=1)
        below.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        below.add_column(no_wrap=True, justify="right")
        load = Text(f"load {os.getloadavg()[0]:.1f}", style="dim")
        below.add_row("", Text(visible(step.detail), style="dim"), load)
        yield below
