"""``python -m tests.faults --report``: all the figures of SECURITY.md, measured anew.

As root on a machine that ``rbuild setup`` and the tests can use.  A whole report takes some hours;
``--part`` chooses, and ``--kills``, ``--cases`` and the like shorten it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.lab import Lab

SEED = 7
PARTS = (
    *("kills", "signals", "concurrency", "resources", "escape", "beside", "staleness"),
    *("powercut", "fuzz", "soak"),
)
FAULTS_SHOWN = 3
TOLD_EVERY_S = 30.0


@dataclass
class Part:
    """A part's outcome: what was tried, how often, and what went wrong (a line each)."""

    name: str
    tried: int
    faults: list[str]
    seconds: float
    details: list[dict[str, Any]] = field(default_factory=list)

    def line(self) -> str:
        return f"{self.name:12} {self.tried:>9} tried {len(self.faults):>5} faults {self.seconds:8.0f} s"


@contextlib.contextmanager
def laboratory(options: argparse.Namespace) -> Iterator[Lab]:
    """Have a lab with a small kernel's source, and, where there is dockerd, an engine."""
    folder = options.folder or Path(tempfile.mkdtemp(prefix="faults-", dir="/var/tmp"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        own = Lab(folder)
        here = Path(os.environ.get("RBUILD_CACHE_DIR", Path.home() / ".cache/rbuild"))
        own.run_here("setup", "cross")
        own.run_here("module", "--driver", "c", "--profile", "slim-no-rust")
        tree = next((here / "trees").glob("linux-source-6.12-*/src"))
        lab = Lab(folder, rootfs_from=here)
        lab.equip(tree)
        with _engine(options) as engine:
            lab.engine = engine
            yield lab
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _engine(options: argparse.Namespace) -> Iterator[Any]:
    if options.no_docker or shutil.which("dockerd") is None or os.geteuid() != 0:
        yield None
        return
    from tests.integration.engine import running_engine

    with running_engine() as engine:
        # Whoever tries to get out may use it.
        engine.folder.chmod(0o711)
        engine.socket.chmod(0o666)
        yield engine


def _killer(
    options: argparse.Namespace, lab: Lab, tell: Callable[[str], None]
) -> tuple[Any, list[Any]]:
    """Return a Killer and its phases, which have run undisturbed: once for all parts."""
    from tests.faults.kills import Killer, phases

    chosen = [one for one in phases(lab) if not options.phase or one.name in options.phase]
    if lab.killer is None:
        lab.killer = Killer(lab, options.seed, tell)
        lab.killer.prepare(chosen)
    return lab.killer, chosen


def kills(options: argparse.Namespace, lab: Lab, tell: Callable[[str], None]) -> Part:
    """Kill rbuild at random moments of all phases."""
    test, chosen = _killer(options, lab, tell)
    tallies = list(test.kill(chosen, options.kills))
    faults = [
        f"{one.phase}: {fault}"
        for one in tallies
        for fault in (*one.left_over, *one.mismatches, *one.failures)
    ]
    return Part(
        "kills", sum(one.kills for one in tallies), faults, 0, [asdict(one) for one in tallies]
    )


def signalled(options: argparse.Namespace, lab: Lab, tell: Callable[[str], None]) -> Part:
    """Ask rbuild to end, by each signal and by closing its terminal, in all phases."""
    from tests.faults.kills import EXITS_WITHIN_S

    test, chosen = _killer(options, lab, tell)
    tallies = list(test.interrupt(chosen))
    faults = [
        f"{one.phase}: {fault}" for one in tallies for fault in (*one.left_over, *one.failures)
    ]
    faults += [
        f"{one.phase}: {one.slowest_s:.1f} s until it ended"
        for one in tallies
        if one.slowest_s > EXITS_WITHIN_S
    ]
    return Part(
        "signals", sum(one.kills for one in tallies), faults, 0, [asdict(one) for one in tallies]
    )


def concurrency(options: argparse.Namespace, lab: Lab, tell: Callable[[str], None]) -> Part:
    """Let ten rbuilds work at once, without and with one that cleans."""
    from tests.faults.concurrency import crowd

    crowds = [crowd(lab, cleaning=cleaning, tell=tell) for cleaning in (False, True)]
    faults = [
        fault for one in crowds for fault in (*one.failures, *one.mismatches, *one.done_twice)
    ]
    faults += [f"{one.stuck} waited for ever" for one in crowds if one.stuck]
    return Part(
        "concurrency",
        sum(one.rbuilds for one in crowds),
        faults,
        0,
        [asdict(one) for one in crowds],
    )


def resources(options: argparse.Namespace, lab: Lab, tell: Callable[[str], None]) -> Part:
    """Let the disk, inodes, memory, time and the mirror end."""
    from tests.faults.resources import run

    ended = run(lab, options.seed, options.disks, tell)
    faults = [f"{one.resource}: {fault}" for one in ended for fault in one.faults]
    return Part(
        "resources", sum(one.tried for one in ended), faults, 0, [asdict(one) for one in ended]
    )


def escape(options: argparse.Namespace, lab: Lab, tell: Callable[[str], None]) -> Part:
    """Let a hostile module try to get out."""
    from tests.faults import escape as attempts

    ready = lab.run("module", lab.module, "--profile", lab.profile)
    if ready.code != 0:
        raise AssertionError(ready.err)
    runtimes = ["bwrap"] if options.no_docker or lab.engine is None else ["bwrap", "docker"]
    users = [None, attempts.USER] if os.geteuid() == 0 else [None]
    done = []
    for user in users:
        own = lab if user is None else attempts.lab_of(user, lab)
        done += [attempts.escape(own, one, user, tell) for one in runtimes]
        if own is not lab:
            own.remove()
    faults = [f"{one.runtime}, {one.user}: {fault}" for one in done for fault in one.successes]
    tried = sum(one.attempts for one in done)
    return Part("escape", tried, faults, 0, [asdict(one) for one in done])


def beside(_: argparse.Namespace, lab: Lab, tell: Callable[[str], None]) -> Part:
    """Give it a stranger's definitions, machines, settings, profiles, folders and outputs."""
    from tests.faults.beside import attempt_all

    found = attempt_all(lab, tell)
    return Part("beside", found.attempts, found.successes, 0, [asdict(found)])


def staleness(tell: Callable[[str], None]) -> Part:
    """Change each input of each kind of entry (a unit test, by reflection): the answer changes."""
    from tests.faults import CHECKED

    words = [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", *CHECKED]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    faults = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode != 0 and not faults:
        faults = [f"pytest ended with {done.returncode}"]
    tell(f"staleness: {counts}")
    return Part("staleness", sum(counts.values()), faults, 0, [counts])


def powercut(options: argparse.Namespace, lab: Lab, tell: Callable[[str], None]) -> Part:
    """Empty what builds have left, as a power cut may, and build again."""
    from tests.faults.powercut import cut

    cuts = list(cut(lab, tell))
    faults = [f"{one.of}: {fault}" for one in cuts for fault in one.faults]
    return Part(
        "powercut", sum(one.tried for one in cuts), faults, 0, [asdict(one) for one in cuts]
    )


def soak(options: argparse.Namespace, lab: Lab, tell: Callable[[str], None]) -> Part:
    """Build and boot many times in a row."""
    from tests.faults.soak import soak as run

    found = run(lab, options.builds, options.boots, tell)
    faults = [] if found.is_clean else [str(found)]
    return Part("soak", found.builds + found.boots, faults, 0, [asdict(found)])


def fuzz(options: argparse.Namespace, tell: Callable[[str], None]) -> Part:
    """Give each reader of input some thousands that were made wrong."""
    from tests.faults.fuzz import run

    begun = time.monotonic()

    def now_and_then(words: str) -> None:
        nonlocal begun
        if time.monotonic() - begun > TOLD_EVERY_S:
            begun = time.monotonic()
            tell(f"fuzz: {words}")

    figures = run(options.cases, options.seed, os.cpu_count() or 1, told=now_and_then)
    faults = [f"{one.target}: {fault.error}" for one in figures for fault in one.faults]
    tried = sum(one.cases for one in figures)
    return Part("fuzz", tried, faults, 0, [one.as_json() for one in figures])


OWN = {
    "kills": kills,
    "signals": signalled,
    "concurrency": concurrency,
    "resources": resources,
    "escape": escape,
    "beside": beside,
    "powercut": powercut,
    "soak": soak,
}


def main(arguments: Sequence[str]) -> int:
    """Run the parts that are asked for; return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--report", action="store_true", help="all parts, as SECURITY.md has them")
    parser.add_argument("--part", action="append", choices=PARTS, default=[])
    parser.add_argument("--phase", action="append", default=[], help="only these phases (kills)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--disks", type=int, default=20, help="that fill up, and as many inodes")
    parser.add_argument("--cases", type=int, default=1_000_000, help="of the fuzzing")
    parser.add_argument("--builds", type=int, default=100, help="of the soak")
    parser.add_argument("--boots", type=int, default=20, help="of the soak")
    parser.add_argument("--folder", type=Path, help="the lab's, which then stays")
    parser.add_argument("--no-docker", action="store_true")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args(arguments)
    chosen = PARTS if options.report else tuple(options.part)
    if not chosen:
        parser.error("name a --part, or ask for the --report")

    def tell(words: str) -> None:
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {words}\n")
        sys.stderr.flush()

    parts = []
    with laboratory(options) if set(chosen) & set(OWN) else contextlib.nullcontext() as lab:
        for name in chosen:
            began = time.monotonic()
            tell(f"== {name}")
            try:
                if lab is not None and name in OWN:
                    part = OWN[name](options, lab, tell)
                else:
                    part = staleness(tell) if name == "staleness" else fuzz(options, tell)
            except Exception as error:  # noqa: BLE001 - the other parts are worth their hours
                traceback.print_exc()
                part = Part(name, 0, [f"it didn't come to its end: {error!r}"], 0)
            part.seconds = time.monotonic() - began
            parts.append(part)
            sys.stdout.write(part.line() + "\n")
            for fault in part.faults[:FAULTS_SHOWN]:
                sys.stdout.write(f"    {fault}\n")
            sys.stdout.flush()
            if options.json is not None:
                options.json.write_text(json.dumps([asdict(one) for one in parts], indent=1) + "\n")
    sys.stdout.write(f"seed {options.seed}, {time.strftime('%Y-%m-%d')}\n")
    return int(any(part.faults for part in parts))


if __name__ == "__main__":
    # So that an engine ends, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv[1:]))
