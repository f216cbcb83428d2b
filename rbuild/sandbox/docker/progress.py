"""Progress of what is short as a rule: a step appears once it takes long."""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rbuild.ui.console import Console
from rbuild.ui.step import Step

WAIT_S = 2.0
"""How long sending may take before it is shown."""


class Progress:
    """Shows a step for what takes long, once it has."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self._console = console
        self._title, self._total = title, total
        self._done = 0
        self._started = time.monotonic()
        self._stack = ExitStack()
        self._step: Step | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def tell(self, name: str) -> None:
        """Count an item."""
        self._done += 1
        if self._step is None and time.monotonic() - self._started > WAIT_S:
            step = self._console.step(self._title, total=self._total)
            self._step = self._stack.enter_context(step)
        if self._step is not None:
            self._step.update(name, done=self._done)
