"""The crash test: rbuild is killed at random moments of every phase, and goes on as if it wasn't.

A *round* is a phase's work, begun anew and killed several times, before a last run is left alone.
After each kill nothing of it may run, be mounted or stand in a folder for temporary files but for
what the next run removes; after the last run nothing unfinished is left, and what was built has the
bytes of a run that was never disturbed.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.lab import Done, Lab, Running

LATE = 600.0
"""Seconds after which a run that doesn't come to its phase is given up."""

EXITS_WITHIN_S = 5.0
"""How soon a run that is asked to end has to."""

INTERRUPTED = 130
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "closed terminal")


@dataclass(frozen=True)
class Phase:
    """A part of rbuild's work: what begins it (a line of progress), and how it is begun anew."""

    name: str
    words: tuple[str, ...]
    begins: str
    reset: Callable[[Lab], None] = lambda lab: lab.touch()
    kills_a_round: int = 6
    span_s: float = 8.0
    """It is killed within so many seconds after it began; what follows is another phase."""
    resumes: bool = False


@dataclass
class Tally:
    """What came of the kills in a phase; lists have a line for each fault."""

    phase: str
    kills: int = 0
    rounds: int = 0
    left_over: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    @property
    def is_clean(self) -> bool:
        return not (self.left_over or self.mismatches or self.failures)


def without_trees(lab: Lab) -> None:
    with_kernel(lab)
    lab.discard("trees")


def without_patched_trees(lab: Lab) -> None:
    with_kernel(lab)
    lab.discard("trees", "linux-")


def without_kdirs(lab: Lab) -> None:
    lab.discard("kdirs")
    lab.touch()


def prepared_only(lab: Lab) -> None:
    restore(lab, "prepared")


def with_kernel(lab: Lab) -> None:
    """Have the kernel built again, if an earlier phase has taken it away."""
    metadata = (path.read_text() for path in (lab.cache / "kdirs").glob("*/metadata.json"))
    if (lab.folder / "built").is_dir() and not any('"built"' in text for text in metadata):
        restore(lab, "built")
    lab.touch()


def restore(lab: Lab, kept: str) -> None:
    lab.discard("kdirs")
    for entry in (lab.folder / kept).iterdir():
        lab.copy(entry, lab.cache / "kdirs" / entry.name)


def keep(lab: Lab, name: str) -> None:
    """Keep a copy of the KDIRs as they are."""
    shutil.rmtree(lab.folder / name, ignore_errors=True)
    (lab.folder / name).mkdir()
    for entry in (lab.cache / "kdirs").iterdir():
        if entry.is_dir() and not entry.name.startswith("."):
            lab.copy(entry, lab.folder / name / entry.name)


def without_rootfs(lab: Lab) -> None:
    lab.discard("rootfs", "cross-")
    lab.touch()


def without_packages(lab: Lab) -> None:
    with_kernel(lab)
    shutil.rmtree(lab.folder / "packages", ignore_errors=True)


def without_in_tree(lab: Lab) -> None:
    with_kernel(lab)
    for path in (lab.cache / "kdirs").glob("*-in-tree-*"):
        if path.is_dir():
            shutil.rmtree(path)


def phases(lab: Lab) -> list[Phase]:
    """Return the phases that a lab can be killed in; those of docker only with an engine."""
    profile = ("--profile", str(lab.profile))
    module = ("--json", "module", str(lab.module), *profile)
    boot = ("--json", "boot", "--driver", "c", "--test", "aliases", *profile)
    packages = ("--output", str(lab.folder / "packages"), "--format", "tar", "--format", "deb")
    report = ("--export-json", str(lab.folder / "bench.json"))
    timed = ("--runs", "1", "--warmup", "0", "--scenario", "clean", "--scenario", "noop")
    bench = ("bench", "--env", "cross", "--driver", "c", "--kind", "out-of-tree", *timed, *report)
    in_tree = ("--json", "module", "--in-tree", "--driver", "c", *profile)
    # The kernel comes early: against a built one, no module's build has to read all of the source.
    found = [
        Phase("configure", module, "==> Configuring", without_kdirs),
        Phase("prepare", module, "==> Preparing", without_kdirs, resumes=True),
        Phase(
            "kernel", ("--json", "kernel", *profile), "==> Building", prepared_only, 8, resumes=True
        ),
        Phase("start", module, r"\A", with_kernel),
        Phase("source", module, "==> Fetching", without_trees),
        Phase("patch", module, "==> Patching", without_patched_trees),
        Phase("module", module, "==> Building mine", with_kernel),
        Phase("in-tree", in_tree, "==> (Copying|Preparing|Building)", without_in_tree),
        Phase("boot", boot, "==> Testing", with_kernel),
        Phase("bench", (*bench, *profile), r"\[1/", with_kernel),
        Phase("package", ("--json", "package", *packages, *profile), "==> ", without_packages),
    ]
    if lab.engine is not None:
        docker = (*module, "--runtime", "docker")
        found.append(Phase("docker", docker, "==> Building mine", with_kernel))
    found.append(
        Phase(
            "setup", ("--json", "setup", "cross"), "==> Provisioning", without_rootfs, 3, span_s=120
        )
    )
    return found


class Killer:
    """Kills in a lab, by a seed; ``references`` are what an undisturbed run builds."""

    def __init__(self, lab: Lab, seed: int, tell: Callable[[str], None] = print) -> None:
        self.lab = lab
        self.random = random.Random(seed)
        self.tell = tell
        self.references: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def prepare(self, chosen: Iterable[Phase]) -> None:
        """Run each phase undisturbed, to see what it builds, and how long that takes."""
        lab = self.lab
        without_trees(lab)
        for phase in chosen:
            if phase.name == "setup":
                self.seconds["setup"] = 100.0
                continue
            if phase.name == "kernel":
                keep(lab, "prepared")
            phase.reset(lab)
            running = lab.start(*phase.words)
            begun = running.wait_for(phase.begins, LATE)
            began = time.monotonic()
            done = running.finish()
            if done.code != 0 or not begun:
                raise AssertionError(f"{phase.name} fails undisturbed ({done.code}):\n{done.err}")
            self.references[phase.name] = artefacts(lab, phase, done)
            self.seconds[phase.name] = time.monotonic() - began
            if phase.name == "kernel":
                keep(lab, "built")
            self.tell(f"{phase.name}: undisturbed {self.seconds[phase.name]:.1f} s")

    def kill(
        self, chosen: Sequence[Phase], kills: int, a_round: int | None = None
    ) -> Iterator[Tally]:
        """Kill at least ``kills`` times in the phases in turn; yield each phase's tally.

        ``a_round`` is how often in a phase before the next; by default as often as the phase says,
        or less, so that few kills reach all phases.
        """
        share = max(1, kills // len(chosen))
        tallies = {phase.name: Tally(phase.name) for phase in chosen}
        while sum(one.kills for one in tallies.values()) < kills:
            for phase in chosen:
                if sum(one.kills for one in tallies.values()) >= kills:
                    break
                self.round(phase, tallies[phase.name], a_round or min(share, phase.kills_a_round))
        yield from tallies.values()

    def round(self, phase: Phase, tally: Tally, kills: int) -> None:
        """Kill a phase's work some times, then let it come to its end, and compare."""
        lab = self.lab
        phase.reset(lab)
        before = lab.seen()
        for _ in range(kills):
            running = lab.start(*phase.words)
            if not running.wait_for(phase.begins, LATE):
                break
            whole = self.seconds[phase.name]
            span = whole / 3 if phase.resumes else min(whole, phase.span_s)
            time.sleep(self.random.uniform(0, span))
            if running.end(signal.SIGKILL):
                tally.kills += 1
            else:
                # It was done before it was killed, so that there is nothing left to do.
                took = running.finish().seconds
                self.seconds[phase.name] = min(whole, took)
                phase.reset(lab)
                continue
            running.finish()
            tally.left_over += [f"after a kill: {one}" for one in lab.after_the_end(before)]
        done = lab.run(*phase.words)
        tally.rounds += 1
        if done.code != 0:
            tally.failures.append(f"exit code {done.code}: {done.err[-400:]}")
            return
        tally.left_over += [f"after the next run: {one}" for one in lab.after_the_end(before)]
        tally.left_over += [f"after the next run: {one}" for one in lab.left(before)]
        tally.left_over += [f"in the cache: {one}" for one in lab.unfinished()]
        found = artefacts(lab, phase, done)
        if phase.name in self.references and found != self.references[phase.name]:
            tally.mismatches.append(f"{found} instead of {self.references[phase.name]}")
        faults = len(tally.left_over) + len(tally.mismatches) + len(tally.failures)
        self.tell(
            f"{phase.name}: {tally.kills} kills, {faults} faults, {done.seconds:.1f} s to the end"
        )

    def interrupt(
        self, chosen: Iterable[Phase], signals: Sequence[str] = SIGNALS
    ) -> Iterator[Tally]:
        """Ask for an end by each signal, once in each phase; yield a tally for each signal."""
        for name in signals:
            tally = Tally(name)
            for phase in chosen:
                self._ask(phase, name, tally)
                faults = len(tally.left_over) + len(tally.failures)
                self.tell(f"{name} in {phase.name}: {tally.kills} so far, {faults} faults")
            yield tally

    def _ask(self, phase: Phase, name: str, tally: Tally) -> None:
        lab = self.lab
        phase.reset(lab)
        before = lab.seen()
        running = lab.start(*phase.words, terminal=name == "closed terminal")
        if not running.wait_for(phase.begins.replace("==> ", ""), LATE):
            tally.failures.append(f"{phase.name} never began: {running.finish().err[-300:]}")
            return
        time.sleep(self.random.uniform(0, self.seconds[phase.name] / 3))
        asked = time.monotonic()
        if name == "closed terminal":
            running.hang_up()
        elif not running.end(getattr(signal, name)):
            running.finish()
            return
        code = running.process.wait()
        tally.slowest_s = max(tally.slowest_s, time.monotonic() - asked)
        tally.kills += 1
        running.finish()
        # It may have been done in that moment, or Python may not have come to rbuild's first line.
        unborn = phase.name == "start" and code < 0 and not running.said()
        if code not in {INTERRUPTED, 0} and not unborn:
            tally.failures.append(f"{phase.name}: exit code {code}: {running.said()[-300:]}")
        tally.left_over += [f"{phase.name}: {one}" for one in lab.after_the_end(before, 0.5)]
        tally.left_over += [f"{phase.name}: {one}" for one in lab.left(before)]
        if "Traceback" in running.said():
            tally.failures.append(f"{phase.name}: {running.said()[-600:]}")


def artefacts(lab: Lab, phase: Phase, done: Done) -> str:
    """Return what names the bytes of all that a phase builds."""
    if phase.name == "bench":
        sums = re.findall(r'"sha256": ?"([0-9a-f]{64})"', (lab.folder / "bench.json").read_text())
        return " ".join(sorted(set(sums)))
    if phase.name == "setup":
        found = lab.run("--json", "module", str(lab.module), "--profile", str(lab.profile))
        return artefacts(lab, phases(lab)[0], found)
    sums = [f"{Path(one['path']).name} {one['sha256']}" for one in done.json["artefacts"]]
    return "\n".join(sorted(sums))


__all__ = ["Killer", "Phase", "Running", "Tally", "phases"]
