"""A step: a long piece of work under way, as the live view and the log show it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rbuild.ui.estimates import Estimate
from rbuild.ui.format import about, duration


@dataclass
class Step:
    """A long piece of work under way: what, how far (``done`` of ``total``), and what just now.

    ``unit`` is of what is counted; ``failed`` is for work that ends badly without an exception;
    ``estimate`` is what it took before.
    """

    title: str
    total: int | None = None
    done: int = 0
    detail: str = ""
    failed: bool = False
    started: float = field(default_factory=time.monotonic)
    estimate: Estimate | None = None
    unit: str = ""
    counted: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.started

    @property
    def tail_s(self) -> float:
        """Seconds since something was last counted; nothing where nothing is."""
        return min(time.monotonic() - self.counted, self.elapsed_s) if self.done else 0.0

    @property
    def whole(self) -> int | None:
        """How many there will be; None where that isn't known, or was too few: it goes on."""
        known = self.total or (None if self.estimate is None else self.estimate.count)
        return known if known and self.done < known else None

    @property
    def part(self) -> float | None:
        """How much is done, from 0 to 1; None where nothing tells."""
        if self.whole is not None:
            return self.done / self.whole
        if self.estimate is not None:
            return min(self.elapsed_s / self.estimate.seconds, 0.99)
        return None

    def far(self, *, brief: bool = False) -> str:
        """Return in words how far it is, how long it took, and what is left, if that is known."""
        words = []
        unit = f" {self.unit}" if self.unit else ""
        if self.unit == "%":
            words += [f"{self.done} %"] if self.done else []
        elif self.whole is not None:
            of = "/" if brief else " of about "
            words.append(f"{self.done}{of}{self.whole}{unit}")
        elif self.done:
            words.append(f"{self.done}{unit} so far")
        words.append(
            duration(round(self.elapsed_s)) if self.elapsed_s >= 60 else f"{self.elapsed_s:.0f} s"
        )
        left = None
        if self.estimate is not None:
            left = self.estimate.left_s(self.elapsed_s, self.done, self.total)
        if left is not None:
            words.append(f"{'~' if brief else 'about '}{about(left)} left")
        return ", ".join(words)

    def update(
        self, detail: str = "", *, done: int | None = None, total: int | None = None
    ) -> None:
        """Say what is being done just now, and how far it is."""
        self.detail = detail or self.detail
        if done is not None and done != self.done:
            self.done, self.counted = done, time.monotonic()
        self.total = self.total if total is None else total
