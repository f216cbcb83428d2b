"""The soak: a hundred modules and twenty boots in a row, in one process, which must not grow."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rbuild.cli import main
from rbuild.util.disk import tree_size
from tests.faults.kills import with_kernel
from tests.faults.lab import Lab

FIRST = 5
"""So many rounds are let pass before growth is looked at: what is loaded once is no growth."""


@dataclass(frozen=True)
class Soaked:
    """What a row of runs took; memory in KiB, sizes in bytes."""

    builds: int
    boots: int
    outputs: int
    """How many different bytes came out; 1 of the builds and 1 of the boots' modules is right."""
    descriptors_grown: int
    threads_grown: int
    memory_grown_kib: int
    store_bytes: int
    bound_bytes: int

    @property
    def is_clean(self) -> bool:
        return (
            self.outputs == 1
            and self.descriptors_grown <= 0
            and self.threads_grown <= 0
            and self.store_bytes <= self.bound_bytes
        )


def soak(lab: Lab, builds: int, boots: int, tell: Callable[[str], None] = print) -> Soaked:
    """Build and boot in this very process, cleaning now and then to a bound of the cache."""
    with_kernel(lab)
    profile = ("--profile", str(lab.profile))
    module = ("--json", "module", str(lab.module), *profile)
    boot = ("--json", "boot", str(lab.module), *profile)
    sums: set[str] = set()
    figures: list[tuple[int, int, int]] = []
    os.environ.update(lab.environment())
    bound = 0
    for number in range(builds + boots):
        lab.touch()
        found = _run(*(module if number < builds else boot))
        sums |= {
            one["sha256"]
            for one in json.loads(found)["artefacts"]
            if Path(one["path"]).name == "mine.ko"
        }
        figures.append(_figures())
        if number == FIRST:
            bound = tree_size(lab.cache) + (16 << 20)
        if number % 10 == FIRST:
            _run("clean", "--what", "runs", "--keep-last", str(FIRST))
            tell(f"soak: {number + 1} of {builds + boots}, {figures[-1]}")
    _run("clean", "--max-size", str(bound), "--what", "runs")
    last, first = figures[-1], figures[min(FIRST, len(figures) - 1)]
    return Soaked(
        builds,
        boots,
        len(sums),
        last[0] - first[0],
        last[1] - first[1],
        last[2] - first[2],
        tree_size(lab.cache),
        bound,
    )


def _run(*words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
        code = main.run(list(words))
    if code != 0:
        raise AssertionError(f"{words}: {code}\n{err.getvalue()}")
    return out.getvalue()


def _figures() -> tuple[int, int, int]:
    """Return how many descriptors and threads this process has, and its memory in KiB."""
    status = Path("/proc/self/status").read_text()
    found = {
        name: int(re.findall(rf"^{name}:\s+(\d+)", status, re.M)[0])
        for name in ("Threads", "VmRSS")
    }
    return len(list(Path("/proc/self/fd").iterdir())), found["Threads"], found["VmRSS"]
