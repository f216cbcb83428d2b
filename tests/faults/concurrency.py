"""Ten rbuilds at once on one cache, and one that cleans meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.lab import CHECKOUT, Lab

STUCK_S = 1800.0
"""After so many seconds they are said to wait for each other for ever."""


@dataclass
class Crowd:
    """What came of rbuilds at once; lists have a line for each fault."""

    rbuilds: int
    cleanings: int = 0
    waited: int = 0
    done_twice: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    stuck: int = 0

    @property
    def is_clean(self) -> bool:
        return not (self.done_twice or self.failures or self.mismatches or self.stuck)


def crowd(
    lab: Lab, *, cleaning: bool, kernel: bool = True, tell: Callable[[str], None] = print
) -> Crowd:
    """Let ten rbuilds begin at once where nothing but the rootfs is there; look what they did.

    One of them builds a whole ``kernel``, or else one more module.
    """
    for kind in ("trees", "kdirs"):
        lab.discard(kind)
    modules = [_copy_of(lab, name) for name in ("one", "two")]
    profile = ("--json", "--profile", str(lab.profile))
    lines: list[tuple[str, ...]] = [("module", str(lab.module), *profile[1:])] * 4
    lines += [("module", str(folder), *profile[1:]) for folder in modules]
    lines += [("module", "--in-tree", "--driver", "c", *profile[1:])] * 2
    lines += [("module", "--driver", "c", *profile[1:])]
    lines += [("kernel", *profile[1:])] if kernel else [("module", "--driver", "c", *profile[1:])]
    found = Crowd(len(lines))
    folder = lab.folder / "crowd"
    folder.mkdir(exist_ok=True)
    children = []
    for number, words in enumerate(lines):
        with (
            (folder / f"{number}.out").open("wb") as out,
            (folder / f"{number}.err").open("wb") as err,
        ):
            argv = [sys.executable, "-m", "rbuild", "--json", *words]
            children.append(
                subprocess.Popen(
                    argv,
                    env=lab.environment(),
                    stdout=out,
                    stderr=err,
                    cwd=CHECKOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
    ends = time.monotonic() + STUCK_S
    while any(child.poll() is None for child in children):
        if time.monotonic() > ends:
            found.stuck = sum(child.poll() is None for child in children)
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, 9)
            break
        if cleaning:
            done = lab.run("clean", "--what", "trees", "--what", "kdirs", "--what", "runs")
            found.cleanings += 1
            if done.code != 0:
                found.failures.append(f"clean: {done.err[-300:]}")
        time.sleep(0.5)
    _compare(folder, children, lines, found, once=not cleaning)
    tell(f"crowd: {found}")
    return found


def _compare(
    folder: Path,
    children: list[subprocess.Popen[bytes]],
    lines: Sequence[tuple[str, ...]],
    found: Crowd,
    *,
    once: bool,
) -> None:
    sums: dict[str, set[str]] = {}
    steps: Counter[str] = Counter()
    for number, (child, words) in enumerate(zip(children, lines, strict=True)):
        said = (folder / f"{number}.err").read_text()
        found.waited += "Waiting for another rbuild" in said
        steps.update(set(re.findall(r"^==> ((?:Fetching|Patching|Preparing) .*)", said, re.M)))
        if child.wait() != 0:
            found.failures.append(f"{words[:2]}: {child.returncode}: {said[-400:]}")
            continue
        for one in json.loads((folder / f"{number}.out").read_text())["artefacts"]:
            key = f"{words[:2]} {Path(one['path']).name}"
            sums.setdefault(key, set()).add(one["sha256"])
    if once:
        found.done_twice = [f"{name}: {count} times" for name, count in steps.items() if count > 1]
    found.mismatches = [name for name, found_sums in sums.items() if len(found_sums) > 1]


def _copy_of(lab: Lab, name: str) -> Path:
    folder = lab.folder / name
    folder.mkdir(exist_ok=True)
    (folder / "Kbuild").write_text(f"obj-m += {name}.o\n")
    (folder / f"{name}.c").write_text((lab.module / "mine.c").read_text())
    return folder
