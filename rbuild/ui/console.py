"""The one place that prints: results to stdout, progress and logs to stderr."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Literal

from rbuild.ui import github_actions
from rbuild.ui.format import duration, visible
from rbuild.ui.step import Step

if TYPE_CHECKING:
    from rbuild.ui.estimates import Estimates
    from rbuild.ui.view import View

PLAIN_INTERVAL_S = 30.0
"""How often a long step says how far it is when there is no terminal to draw on."""


def abandon(descriptor: int) -> None:
    """Let whatever is still written to a pipe that nobody reads any more vanish silently."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@dataclass
class _Now:
    """The steps under way, the innermost last, and what tells of them meanwhile."""

    steps: list[Step] = field(default_factory=list)
    view: View | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    beat: threading.Thread | None = None

    def current(self) -> Step | None:
        return self.steps[-1] if self.steps else None


@dataclass(frozen=True)
class Console:
    """Where rbuild speaks.  ``verbosity``: -1 quiet, 0 normal, 1 with the programs' output."""

    json: bool = False
    verbosity: int = 0
    out: IO[str] = field(default_factory=lambda: sys.stdout)
    err: IO[str] = field(default_factory=lambda: sys.stderr)
    estimates: Estimates | None = None
    _now: _Now = field(default_factory=_Now, repr=False, compare=False)

    @property
    def github(self) -> bool:
        """Whether GitHub Actions reads stderr, and obeys the workflow commands in it."""
        return os.environ.get("GITHUB_ACTIONS") == "true" and not self.err.isatty()

    @property
    def live(self) -> bool:
        """Whether progress may be drawn: stderr is a terminal that can move its cursor."""
        return (
            self.err.isatty() and self.verbosity == 0 and os.environ.get("TERM", "dumb") != "dumb"
        )

    def result(self, text: str, data: Mapping[str, Any] | Sequence[Any] | None = None) -> None:
        """Print a command's result: ``text`` for a person, ``data`` as JSON for a script."""
        if self.json:
            self._print(json.dumps(data, indent=2, default=str))
            return
        if text := visible(text.rstrip("\n"), lines=True):
            self._print(github_actions.harmless(text) if self.github else text)

    def note(self, text: str) -> None:
        """Say something in passing, on stderr."""
        if self.verbosity >= 0:
            self._say(visible(text))

    def verbose(self, text: str) -> None:
        """Show a line of a program's output if the user asked for it, or can unfold its group."""
        folded = self.verbosity == 0 and bool(self._now.steps) and self.github
        if self.verbosity > 0 or folded:
            self._say(visible(text))

    def warn(self, text: str) -> None:
        """Warn, even when quiet."""
        text = visible(text)
        if self.github:
            self._write(github_actions.command("warning", text, title="rbuild"))
            return
        self._say(f"{self._paint('warning:', '33')} {text}")

    def error(self, message: str, *, hint: str | None = None, detail: str = "") -> None:
        """Show an error: the failed program's own words, then ours, then the remedy."""
        message, hint = visible(message), visible(hint or "")
        detail = visible(detail.rstrip("\n"), lines=True)
        if detail:
            self._say(f"{detail}\n")
        if self.github:
            found = github_actions.place(detail)
            where: dict[str, str | int] = {}
            if found is not None:
                where = {"file": github_actions.in_repository(found.file), "line": found.line}
            words = f"{message}\nhint: {hint}" if hint else message
            self._write(github_actions.command("error", words, title="rbuild", **where))
            return
        self._say(f"{self._paint('error:', '1;31')} {message}")
        if hint:
            self._say(f"{self._paint('hint:', '36')} {hint}")

    @contextmanager
    def step(
        self, title: str, *, total: int | None = None, key: str = "", unit: str = ""
    ) -> Iterator[Step]:
        """Show progress on ``title`` while the body runs, and how long it took at its end.

        How long it may take is learned under its title and ``key``: what else decides that, such
        as the name of an entry, which has all that decides its content hashed.
        """
        name = f"{title} ({key})" if key else title
        learned = self.estimates
        estimate = None if learned is None else learned.of(name)
        step = Step(title, total, estimate=estimate, unit=unit)
        with self._drawn(step) if self.live else self._told(step):
            yield step
        if learned is not None and not step.failed:
            learned.learn(name, step.elapsed_s, step.done, step.tail_s)
        ended = self._paint("failed", "31") if step.failed else self._paint("ok", "32")
        if self.verbosity >= 0:
            self._say(f"  {ended} {visible(title)} ({duration(step.elapsed_s)})")

    @contextmanager
    def _drawn(self, step: Step) -> Iterator[None]:
        """Have a step in the view on the terminal, which is one, however many steps there are."""
        from rbuild.ui.view import View  # noqa: PLC0415 - rich loads slowly

        now = self._now
        now.steps.append(step)
        first = now.view is None
        if now.view is None:
            now.view = View(self.err, now.current)
            now.view.start()
        try:
            yield
        finally:
            now.steps[:] = [one for one in now.steps if one is not step]
            if first and now.view is not None:
                now.view.stop()
                now.view = None

    @contextmanager
    def _told(self, step: Step) -> Iterator[None]:
        """Say that a step begins, and from time to time that it goes on.

        On GitHub Actions what follows is folded, up to the step's end.
        """
        # Groups don't nest there: a step within a step is a line of the outer one's group.
        now = self._now
        first = not now.steps
        group = self.github and self.verbosity >= 0 and first
        if group:
            self._write(github_actions.command("group", visible(step.title)))
        else:
            self.note(f"==> {step.title}")
        now.steps.append(step)
        if first and self.verbosity >= 0:
            now.ended.clear()
            now.beat = threading.Thread(target=self._beat, daemon=True)
            now.beat.start()
        try:
            yield
        finally:
            now.steps[:] = [one for one in now.steps if one is not step]
            if first and now.beat is not None:
                now.ended.set()
                now.beat.join()
                now.beat = None
            if group:
                self._write(github_actions.command("endgroup"))

    def _beat(self) -> None:
        """Say now and then how far the innermost step is, also where its program is silent."""
        while not self._now.ended.wait(PLAIN_INTERVAL_S):
            step = self._now.current()
            if step is not None:
                self.note(f"    {step.far()}{': ' if step.detail else ''}{step.detail}")

    def teller(self, step: Step) -> Callable[[str], None]:
        """Return what a program's lines are given to: shown if asked for, and the step's detail."""

        def tell(line: str) -> None:
            self.verbose(line)
            step.update(line)

        return tell

    @property
    def width(self) -> int | None:
        """How many characters fit in a line of results; None where nothing limits them."""
        return shutil.get_terminal_size().columns if self.out.isatty() else None

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        """Return a table as text, as wide as the terminal; only the first column is words."""
        from rich import box  # noqa: PLC0415 - rich takes longer to load than most commands to run
        from rich.console import Console as Rich  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        table = Table(title=visible(title) or None, box=box.SIMPLE_HEAD, title_justify="left")
        for number, column in enumerate(columns):
            side: Literal["left", "right"] = "left" if number == 0 else "right"
            table.add_column(visible(column), justify=side, no_wrap=True)
        for row in rows:
            table.add_row(*map(visible, row))
        # Who reads a file or a pipe scrolls: nothing is cut off there.  There are no styles: what
        # prints the text couldn't tell their sequences from a stranger's.
        # What draws the lines depends on what stdout can encode.
        encoding = getattr(self.out, "encoding", None) or "utf-8"
        text = io.TextIOWrapper(io.BytesIO(), encoding, "backslashreplace")
        screen = Rich(
            file=text,
            width=self.width or 1000,
            force_terminal=False,
            markup=False,
            emoji=False,
            highlight=False,
        )
        screen.print(table)
        text.seek(0)
        return "\n".join(line.rstrip() for line in text.read().splitlines())

    def _print(self, text: str) -> None:
        """Write lines to stdout; what it can't encode is written as Python writes it."""
        text += "\n"
        try:
            self.out.write(text)
        except UnicodeEncodeError as error:
            text = text.encode(error.encoding, "backslashreplace").decode(error.encoding)
            self.out.write(text)
        self.out.flush()

    def _say(self, text: str) -> None:
        """Write a line to stderr; if nobody reads there any more, the work goes on without."""
        self._write(github_actions.harmless(text) if self.github else text)

    def _write(self, text: str) -> None:
        view = self._now.view
        try:
            if view is not None:
                view.print(text)
                return
            self.err.write(text + "\n")
            self.err.flush()
        except BrokenPipeError:
            abandon(self.err.fileno())

    def _paint(self, text: str, code: str) -> str:
        dumb = os.environ.get("TERM", "dumb") == "dumb"
        if not self.err.isatty() or dumb or os.environ.get("NO_COLOR"):
            return text
        return f"\x1b[{code}m{text}\x1b[0m"
