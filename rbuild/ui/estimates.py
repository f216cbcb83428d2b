"""How long steps took before: what a progress bar's estimate is learned from.

One small file in the cache, written by rename, for at most KEYS steps of RUNS runs each.  A step is
remembered with the machine, since the cache may be on a shared file system or copied.  It is a
convenience: a file that is broken, of a newer rbuild or can't be written is passed over.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rbuild.util.files import write_text
from rbuild.util.hashes import digest
from rbuild.util.host import machine_id

FILE = "estimates.json"
FORMAT = 1
KEYS = 200
RUNS = 5
WORTH_S = 1.0
"""A step that takes less is not worth an estimate."""

MAX_VALUE = 1e9
"""More seconds, or more of what a step counts, no step ever takes."""


@dataclass(frozen=True)
class Estimate:
    """What a step is expected to take: ``seconds``, and ``count`` of what it counts, if it does.

    ``tail_s`` of the seconds come after the last that is counted, such as recording what was made.
    """

    seconds: float
    count: int | None = None
    tail_s: float = 0.0

    def left_s(self, elapsed_s: float, done: int, total: int | None) -> float | None:
        """Return the seconds that are left, None where it takes longer than it ever did.

        What was done so far corrects for a machine that is faster or slower than it was, and a
        ``total`` for a run that has more or less to do.  Once all is done that was to be counted,
        only the time tells.
        """
        whole = total or self.count
        counted_s = max(self.seconds - self.tail_s, 0.0)
        if total and self.count:
            counted_s *= total / self.count
        if not whole or not 0 < done < whole or not counted_s:
            left = counted_s + self.tail_s - elapsed_s
            return left if left > 0 else None
        part = done / whole
        pace = elapsed_s / (part * counted_s)
        return ((1 - part) * counted_s + self.tail_s) * ((1 - part) + part * pace)


@dataclass
class Estimates:
    """What was learned of the steps in one cache, read when first asked for."""

    root: Path
    _known: dict[str, list[list[float]]] | None = field(default=None, init=False)

    def of(self, key: str) -> Estimate | None:
        """Return what a step of this key is expected to take, if one ever ended well."""
        if self._known is None:
            self._known = read(self.root / FILE)
        runs = self._known.get(here(key))
        if not runs:
            return None
        import statistics  # noqa: PLC0415 - not needed to show help

        counts = [int(run[1]) for run in runs if run[1] > 0]
        seconds = statistics.median(run[0] for run in runs)
        tail = statistics.median(run[2] if len(run) > 2 else 0.0 for run in runs)
        if not counts:
            return Estimate(seconds)
        return Estimate(seconds, int(statistics.median(counts)), min(tail, seconds))

    def learn(self, key: str, seconds: float, count: int, tail_s: float = 0.0) -> None:
        """Remember what a step took, unless that is nothing or nowhere to be kept."""
        if seconds < WORTH_S or not self.root.is_dir():
            return
        with contextlib.suppress(OSError):
            self._learn(here(key), [round(seconds, 2), count, round(tail_s, 2)])

    def _learn(self, key: str, run: list[float]) -> None:
        from filelock import FileLock, Timeout  # noqa: PLC0415 - not where nothing takes long

        path = self.root / FILE
        with contextlib.suppress(Timeout), FileLock(path.with_name(f".{FILE}.lock"), timeout=1):
            known = read(path)
            # The newest is last: what is not met any more falls out.
            runs = [*known.pop(key, []), run]
            known[key] = runs[-RUNS:]
            kept = dict(list(known.items())[-KEYS:])
            text = json.dumps({"format": FORMAT, "time": time.time(), "steps": kept})
            write_text(path, text)
            self._known = kept


def here(key: str) -> str:
    """Return a step's key with what stands for this machine."""
    return f"{machine()} {key}"


@functools.cache
def machine() -> str:
    """Return what stands for the machine that works, without telling which it is.

    An image of a machine may be copied with its machine-id(5), to more or other processors; an
    engine may be elsewhere.
    """
    processors = len(os.sched_getaffinity(0))
    return digest([machine_id(), processor(), processors, os.environ.get("DOCKER_HOST", "")])


def processor() -> str:
    """Return the first processor's model, as far as the kernel tells it (proc_cpuinfo(5))."""
    names = ("model name", "CPU implementer", "CPU part", "CPU variant")
    try:
        first = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0]
    except OSError:
        first = ""
    return "\n".join([os.uname().machine, *(x for x in first.splitlines() if x.startswith(names))])


def read(path: Path) -> dict[str, list[list[float]]]:
    """Return what is known of each key: seconds, count, and the seconds after the last counted.

    An older rbuild wrote no third.  What is wrong is left out.
    """
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
        and 2 <= len(run) <= 3
        and all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in run)
        and WORTH_S <= run[0] <= MAX_VALUE
        and all(0 <= one <= MAX_VALUE for one in run[1:])
        for run in runs
    )
