"""The one place that prints: results to stdout, progress and logs to stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from rbuild import workflow

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_INTERVAL_S = 30.0
"""How often a long step says how far it is when there is no terminal to draw on."""


def duration(seconds: float) -> str:
    """Return a duration as a person writes it: ``0.42 s``, ``12.3 s``, ``4 min 05 s``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Return a number of bytes as a person writes it, in binary units: ``1.9 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def abandon(descriptor: int) -> None:
    """Let whatever is still written to a pipe that nobody reads any more vanish silently."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@dataclass
class Step:
    """A long piece of work under way: what, how far (``done`` of ``total``), and what just now.

    ``failed`` is for work that ends badly without an exception.
    """

    title: str
    total: int | None = None
    done: int = 0
    detail: str = ""
    failed: bool = False
    started: float = field(default_factory=time.monotonic)
    _console: Console | None = None
    _bar: tuple[Progress, TaskID] | None = None
    _spoke: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.started

    def update(
        self, detail: str = "", *, done: int | None = None, total: int | None = None
    ) -> None:
        """Say what is being done just now, and how far it is."""
        self.detail = detail or self.detail
        self.done = self.done if done is None else done
        self.total = self.total if total is None else total
        if self._bar is not None:
            bar, task = self._bar
            # An estimate that proves too low must not show more than 100 %.
            whole = None if self.total is None else max(self.total, self.done)
            bar.update(task, completed=self.done, total=whole, detail=self.detail[-60:])
        elif self._console is not None and time.monotonic() - self._spoke > PLAIN_INTERVAL_S:
            self._spoke = time.monotonic()
            far = f"{self.done} of about {self.total}, " if self.total else ""
            self._console.note(f"    {far}{duration(self.elapsed_s)}: {self.detail}")


@dataclass(frozen=True)
class Console:
    """Where rbuild speaks.  ``verbosity``: -1 quiet, 0 normal, 1 with the programs' output."""

    json: bool = False
    verbosity: int = 0
    out: IO[str] = field(default_factory=lambda: sys.stdout)
    err: IO[str] = field(default_factory=lambda: sys.stderr)
    _open: list[Step] = field(default_factory=list, repr=False, compare=False)

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
            self._print(json.dumps(data, indent=2, default=str) + "\n")
        elif text:
            self._print(text.rstrip("\n") + "\n")
        self.out.flush()

    def note(self, text: str) -> None:
        """Say something in passing, on stderr."""
        if self.verbosity >= 0:
            self._say(text)

    def verbose(self, text: str) -> None:
        """Show a line of a program's output if the user asked for it, or can unfold its group."""
        folded = self.verbosity == 0 and bool(self._open) and self.github
        if self.verbosity > 0 or folded:
            self._say(text)

    def warn(self, text: str) -> None:
        """Warn, even when quiet."""
        if self.github:
            self._write(workflow.command("warning", text, title="rbuild"))
            return
        self._say(f"{self._paint('warning:', '33')} {text}")

    def error(self, message: str, *, hint: str | None = None, detail: str = "") -> None:
        """Show an error: the failed program's own words, then ours, then the remedy."""
        if detail:
            self._say(detail.rstrip("\n") + "\n")
        if self.github:
            found = workflow.place(detail)
            where = {} if found is None else found._asdict()
            words = f"{message}\nhint: {hint}" if hint else message
            self._write(workflow.command("error", words, title="rbuild", **where))
            return
        self._say(f"{self._paint('error:', '1;31')} {message}")
        if hint:
            self._say(f"{self._paint('hint:', '36')} {hint}")

    @contextmanager
    def step(self, title: str, *, total: int | None = None) -> Iterator[Step]:
        """Show progress on ``title`` while the body runs, and how long it took at its end."""
        step = Step(title, total, _console=self)
        if self.live:
            with self._progress() as bar:
                step._bar = (bar, bar.add_task(title, total=total, detail=""))
                yield step
        else:
            with self._grouped(step):
                yield step
        ended = self._paint("failed", "31") if step.failed else self._paint("ok", "32")
        self.note(f"  {ended} {title} ({duration(step.elapsed_s)})")

    @contextmanager
    def _grouped(self, step: Step) -> Iterator[None]:
        """Say that a step begins; on GitHub Actions fold what follows, up to the step's end."""
        # Groups don't nest there: a step within a step is a line of the outer one's group.
        group = self.github and self.verbosity >= 0 and not self._open
        if group:
            self._write(workflow.command("group", step.title))
        else:
            self.note(f"==> {step.title}")
        self._open.append(step)
        try:
            yield
        finally:
            self._open.pop()
            if group:
                self._write(workflow.command("endgroup"))

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

        table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        terminal = self.out.isatty()
        # Who reads a file or a pipe scrolls: nothing is cut off there.
        width = None if terminal else 1000
        screen = Rich(file=self.out, width=width, force_terminal=terminal, markup=False)
        with screen.capture() as captured:
            screen.print(table)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def _progress(self) -> Progress:
        from rich.console import Console as Rich  # noqa: PLC0415
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.table import Column  # noqa: PLC0415

        screen = Rich(file=self.err)
        # What is being done just now gets the room that is left, down to none.
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=24 if screen.width >= 120 else 8),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", markup=False, table_column=rest),
            console=screen,
            transient=True,
            expand=True,
        )

    def _print(self, text: str) -> None:
        """Write to stdout; what it can't encode, such as an odd file name, as Python writes it."""
        try:
            self.out.write(text)
        except UnicodeEncodeError as error:
            text = text.encode(error.encoding, "backslashreplace").decode(error.encoding)
            self.out.write(text)

    def _say(self, text: str) -> None:
        """Write a line to stderr; if nobody reads there any more, the work goes on without."""
        self._write(workflow.harmless(text) if self.github else text)

    def _write(self, text: str) -> None:
        try:
            self.err.write(text + "\n")
            self.err.flush()
        except BrokenPipeError:
            abandon(self.err.fileno())

    def _paint(self, text: str, code: str) -> str:
        dumb = os.environ.get("TERM", "dumb") == "dumb"
        if not self.err.isatty() or dumb or os.environ.get("NO_COLOR"):
            return text
        return f"\x1b[{code}m{text}\x1b[0m"
