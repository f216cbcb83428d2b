"""The fuzzer: real inputs made wrong, some thousands a second; only rbuild's own errors may come out.

By hand, for instance: ``python -m tests.faults.fuzz --cases 1000000 --seed 7 --json``.  The same
cases and seed give the same inputs, however many processes try them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rbuild.errors import RbuildError

from .mutate import Mutator
from .targets import ROOT, TARGETS, Target, Try

CHUNK = 2500
"""How many cases are tried in one go, with one generator and in one folder."""

CPU_S = 10.0
"""How long one input of a few kilobytes may take, in seconds of this process's CPU time."""

MEMORY = 2 << 30
"""How many bytes of address space a process may have: an input of a few kilobytes needs no more."""

SHRINKS = 300
"""How often a shorter input is tried that fails in the same way."""


class TooSlow(BaseException):
    """An input takes too long; no ``except Exception`` may hide it."""


@dataclass(frozen=True)
class Fault:
    """A way to fail: what came out and where, how often, and the shortest input that does it."""

    error: str
    count: int
    example: bytes

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "example": self.example.decode("latin-1")}


@dataclass(frozen=True)
class FuzzFigures:
    """What became of a target's cases.  ``refused`` are RbuildErrors, ``tracebacks`` all else.

    ``seconds`` is the time that trying took, of all processes together.
    """

    target: str
    cases: int = 0
    accepted: int = 0
    refused: int = 0
    tracebacks: int = 0
    seconds: float = 0.0
    faults: tuple[Fault, ...] = ()

    def __add__(self, other: FuzzFigures) -> FuzzFigures:
        found = {one.error: one for one in self.faults}
        for one in other.faults:
            known = found.get(one.error, one)
            count = one.count + (known.count if one.error in found else 0)
            example = min(known.example, one.example, key=lambda text: (len(text), text))
            found[one.error] = Fault(one.error, count, example)
        return FuzzFigures(
            self.target,
            self.cases + other.cases,
            self.accepted + other.accepted,
            self.refused + other.refused,
            self.tracebacks + other.tracebacks,
            self.seconds + other.seconds,
            tuple(sorted(found.values(), key=lambda one: one.error)),
        )

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "faults": [one.as_json() for one in self.faults]}


@dataclass(frozen=True)
class _Chunk:
    """A part of a target's cases."""

    target: str
    number: int
    cases: int
    seed: int


@dataclass
class _Inputs:
    """Draws inputs for a target, each a seed of its own made wrong."""

    target: Target
    draw: random.Random
    seeds: list[bytes] = field(default_factory=list)
    data: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seeds = self.target.seeds()
        self.data = [_parsed(seed, self.target.how) for seed in self.seeds]
        words = [word.encode("utf-8", "surrogatepass") for word in self.target.words]
        self._mutator = Mutator(self.draw, words)

    def next(self) -> bytes:
        at, other = (self.draw.randrange(len(self.seeds)) for _ in range(2))
        as_data = self.target.how == "data" or (
            self.target.how == "yaml" and self.draw.random() < 0.5
        )
        if as_data and self.data[at] is not None:
            return self._mutator.of_data(self.data[at], self.data[other])
        change = (
            self._mutator.of_text if self.target.how in {"text", "yaml"} else self._mutator.of_bytes
        )
        return change(self.seeds[at], self.seeds[other])


def _parsed(seed: bytes, how: str) -> Any:
    """Return a seed's data, if it has any: JSON is YAML, too."""
    try:
        return (
            json.loads(seed) if how == "data" else yaml.safe_load(seed) if how == "yaml" else None
        )
    except ValueError:
        return None


def run(
    cases: int,
    seed: int,
    processes: int = 2,
    targets: Sequence[Target] = TARGETS,
    told: Callable[[str], None] = lambda _: None,
) -> tuple[FuzzFigures, ...]:
    """Try so many cases in all, each target its share; return what became of them.

    With one process all is tried in this one; more know only what is in TARGETS.  ``told`` is
    called with how far it is.
    """
    chunks = list(_chunks(cases, seed, targets))
    figures = {one.name: FuzzFigures(one.name) for one in targets}
    done = 0
    for found in _all_tried(chunks, processes, targets):
        figures[found.target] += found
        done += found.cases
        told(f"{done} of {sum(one.cases for one in chunks)} cases")
    return tuple(figures.values())


def _all_tried(
    chunks: Sequence[_Chunk], processes: int, targets: Sequence[Target]
) -> Iterator[FuzzFigures]:
    if processes == 1:
        known = {one.name: one for one in targets}
        yield from (_tried(chunk, known) for chunk in chunks)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _limit) as pool:
        yield from pool.imap_unordered(_tried, chunks)


def _chunks(cases: int, seed: int, targets: Sequence[Target]) -> Iterator[_Chunk]:
    whole = sum(one.share for one in targets)
    for one in targets:
        # Rounded up: at least so many cases in all.
        left = -(-cases * one.share // whole)
        number = 0
        while left > 0:
            yield _Chunk(one.name, number, int(min(left, CHUNK)), seed)
            left -= CHUNK
            number += 1


def _limit() -> None:
    """Let a process of the pool run out of memory before the machine does; leave Ctrl-C to us."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _tried(chunk: _Chunk, targets: Mapping[str, Target] | None = None) -> FuzzFigures:
    target = (targets or {one.name: one for one in TARGETS})[chunk.target]
    inputs = _Inputs(target, random.Random(f"{chunk.seed} {chunk.target} {chunk.number}"))
    accepted = refused = 0
    failed: dict[str, tuple[int, bytes]] = {}
    with tempfile.TemporaryDirectory(prefix="rbuild-fuzz-") as name:
        try_it = target.prepared(Path(name))
        started = time.process_time()
        for _ in range(chunk.cases):
            content = inputs.next()
            error = judged(try_it, content)
            if error is None:
                accepted += 1
            elif not error:
                refused += 1
            else:
                count, known = failed.get(error, (0, content))
                failed[error] = (count + 1, min(known, content, key=len))
        seconds = time.process_time() - started
        faults = tuple(
            Fault(error, count, shrunk(try_it, content, error))
            for error, (count, content) in sorted(failed.items())
        )
    tracebacks = sum(one.count for one in faults)
    return FuzzFigures(target.name, chunk.cases, accepted, refused, tracebacks, seconds, faults)


def judged(try_it: Try, content: bytes) -> str | None:
    """Try an input: return None if it was accepted, '' if refused, else what came out and where."""
    try:
        with _within(CPU_S):
            try_it(content)
    except RbuildError:
        return ""
    except (Exception, TooSlow) as error:  # noqa: BLE001 - whatever comes out is what we look for
        return _described(error)
    return None


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise TooSlow if the body takes more CPU time: a busy machine makes nothing too slow."""

    def stop(*_: Any) -> None:
        raise TooSlow(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _described(error: BaseException) -> str:
    """Return an error's type and the last place in rbuild that it went through."""
    own = str(ROOT / "rbuild")
    frames = traceback.extract_tb(error.__traceback__)
    inner = [one for one in frames if one.filename.startswith(own)] or list(frames)
    where = Path(inner[-1].filename)
    name = where.relative_to(ROOT) if where.is_relative_to(ROOT) else where.name
    return f"{type(error).__name__} in {name}, {inner[-1].name}"


def shrunk(try_it: Try, content: bytes, error: str) -> bytes:
    """Return a shorter input that fails in the same way, as far as a few tries find one."""
    tries = 0
    width = max(1, len(content) // 2)
    while width and tries < SHRINKS and not error.startswith("TooSlow"):
        at = 0
        while at < len(content) and tries < SHRINKS:
            tries += 1
            shorter = content[:at] + content[at + width :]
            if judged(try_it, shorter) == error:
                content = shorter
            else:
                at += width
        width //= 2
    return content


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz, and print the figures; return 1 if anything but rbuild's own errors came out."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--target", action="append", choices=[one.name for one in TARGETS])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    chosen = [one for one in TARGETS if asked.target is None or one.name in asked.target]
    found = run(asked.cases, asked.seed, asked.processes, chosen, _tell)
    if asked.json:
        whole = {"seed": asked.seed, "targets": [one.as_json() for one in found]}
        sys.stdout.write(json.dumps(whole, indent=1) + "\n")
    else:
        sys.stdout.write(table(found))
    return 1 if any(one.tracebacks for one in found) else 0


def _tell(words: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{words}\x1b[K")


def table(found: Sequence[FuzzFigures]) -> str:
    """Return the figures as lines of text, with what is wrong below them."""
    lines = [f"{'target':12}{'cases':>9}{'accepted':>10}{'refused':>9}{'tracebacks':>12}{'1/s':>8}"]
    for one in found:
        speed = one.cases / one.seconds if one.seconds else 0
        lines.append(
            f"{one.target:12}{one.cases:9}{one.accepted:10}{one.refused:9}{one.tracebacks:12}"
            f"{speed:8.0f}"
        )
    sums = [sum(getattr(one, key) for one in found) for key in ("cases", "accepted", "refused")]
    lines.append(
        f"{'all':12}{sums[0]:9}{sums[1]:10}{sums[2]:9}{sum(o.tracebacks for o in found):12}"
    )
    for one in found:
        lines += [f"{one.target}: {f.error} ({f.count}x): {f.example[:300]!r}" for f in one.faults]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
