"""How long steps took before: what a progress bar's estimate is learned from.

One small file in the Store, written by rename, for at most KEYS steps of RUNS runs each.  It is a
convenience: a file that is broken, of a newer rbuild or can't be written is passed over.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rbuild.store import write_text

FILE = "estimates.json"
FORMAT = 1
KEYS = 200
RUNS = 5
WORTH_S = 1.0
"""A step that takes less is not worth an estimate."""

MOST = 1e9
"""More seconds, or more of what a step counts, no step ever takes."""


@dataclass(frozen=True)
class Estimate:
    """What a step is expected to take: ``seconds``, and ``count`` of what it counts, if it does."""

    seconds: float
    count: int | None = None

    def left_s(self, elapsed_s: float, done: int, total: int | None) -> float | None:
        """Return the seconds that are left, None where it takes longer than it ever did.

        What was done so far corrects for a machine that is faster or slower than it was.
        """
        whole = total or self.count
        if not whole or not done:
            left = self.seconds - elapsed_s
            return left if left > 0 else None
        part = min(done / whole, 1.0)
        pace = elapsed_s / (part * self.seconds)
        return (1 - part) * self.seconds * ((1 - part) + part * pace)


@dataclass
class Estimates:
    """What was learned of the steps in one Store, read when first asked for."""

    root: Path
    _known: dict[str, list[list[float]]] | None = field(default=None, init=False)

    def of(self, key: str) -> Estimate | None:
        """Return what a step of this key is expected to take, if one ever ended well."""
        if self._known is None:
            self._known = read(self.root / FILE)
        runs = self._known.get(key)
        if not runs:
            return None
        import statistics  # noqa: PLC0415 - not needed to show help

        counts = [int(count) for _, count in runs if count > 0]
        seconds = statistics.median(seconds for seconds, _ in runs)
        return Estimate(seconds, int(statistics.median(counts)) if counts else None)

    def learn(self, key: str, seconds: float, count: int) -> None:
        """Remember what a step took, unless that is nothing or nowhere to be kept."""
        if seconds < WORTH_S or not self.root.is_dir():
            return
        with contextlib.suppress(OSError):
            self._learn(key, seconds, count)

    def _learn(self, key: str, seconds: float, count: int) -> None:
        from filelock import FileLock, Timeout  # noqa: PLC0415 - not where nothing takes long

        path = self.root / FILE
        with contextlib.suppress(Timeout), FileLock(path.with_name(f".{FILE}.lock"), timeout=1):
            known = read(path)
            # The newest is last: what is not met any more falls out.
            runs = [*known.pop(key, []), [round(seconds, 2), count]]
            known[key] = runs[-RUNS:]
            kept = dict(list(known.items())[-KEYS:])
            text = json.dumps({"format": FORMAT, "time": time.time(), "steps": kept})
            write_text(path, text)
            self._known = kept


def read(path: Path) -> dict[str, list[list[float]]]:
    """Return what is known of each key: pairs of seconds and count.  What is wrong is left out."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        return {}
    steps = data.get("steps")
    if not isinstance(steps, dict):
        return {}
    return {key: runs for key, runs in steps.items() if _is_right(runs)}


def _is_right(runs: Any) -> bool:  # noqa: ANN401
    return isinstance(runs, list) and all(
        isinstance(run, list)
        and len(run) == 2
        and all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in run)
        and WORTH_S <= run[0] <= MOST
        and 0 <= run[1] <= MOST
        for run in runs
    )
