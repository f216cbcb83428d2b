"""One build of a matrix on the machine that makes it: an rbuild of its own, in that one's cache."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rbuild.bench import machine
from rbuild.bench.plan import Target
from rbuild.bench.result import Machine
from rbuild.cache.records import Record, Text
from rbuild.errors import InfrastructureError
from rbuild.matrix.bundle import ProfileBundle, unpack
from rbuild.matrix.plan import Build
from rbuild.sandbox.context import PhaseRecord
from rbuild.util import process

MAX_OUTPUT = 64 << 20
"""The bytes of an output of which its JSON and its log are taken."""

LOG_BYTES = 1 << 20
"""How much of a log's end is reported: what failed stands there."""

RBUILD = (sys.executable, "-m", "rbuild")


@dataclass(frozen=True)
class Task:
    """What a machine is asked to build: rbuild's arguments but for --profile, and the profile."""

    words: tuple[str, ...]
    profile: ProfileBundle


@dataclass(frozen=True)
class Place:
    """A machine as a task finds it: its name, its cache, a folder for what lies about meanwhile.

    ``rbuild`` is how rbuild is called.
    """

    machine: str
    cache: Path
    folder: Path
    rbuild: tuple[str, ...] = field(default=RBUILD)


@dataclass(frozen=True)
class Outcome:
    """What became of a task: rbuild's exit code, its JSON, the end of its log, and where it was.

    A negative code is the signal that ended rbuild.
    """

    exit_code: int
    result: dict[str, Any]
    log: str
    machine: str
    description: Machine

    @property
    def error(self) -> str | None:
        """Why it wasn't built, in rbuild's words."""
        if self.exit_code == 0:
            return None
        said = self.result.get("error")
        return str(said) if said else f"rbuild ended with status {self.exit_code}."

    @property
    def is_final(self) -> bool:
        """Whether another machine would come to the same: it is built, or the build is at fault."""
        return self.exit_code in {0, 1, 2}


def task_of(build: Build, bundle: ProfileBundle, options: tuple[str, ...] = ()) -> Task:
    """Return what a machine has to do for a build, with a plan's ``options``."""
    if build.target is Target.KERNEL:
        words = ["kernel"]
    else:
        assert build.driver is not None
        words = ["module", f"--{build.target}", "--driver", build.driver.value]
    return Task((*words, "--env", build.env, *options), bundle)


def run_task(
    task: Task,
    place: Place,
    on_line: Callable[[str], None] | None = None,
    unwanted: Callable[[], bool] | None = None,
) -> Outcome:
    """Build; ``unwanted`` is asked now and then whether to give up.

    A build that fails is an outcome, too.  Raises Unwanted if it was given up.
    """
    before = machine.moment()
    with tempfile.TemporaryDirectory(prefix="build-", dir=place.folder) as name:
        folder = Path(name)
        profile = unpack(task.profile, folder)
        words = [*place.rbuild, "--cache-dir", str(place.cache), "--json", "--verbose"]
        words += [*task.words, "--profile", str(profile)]
        output = folder / "output"
        with output.open("w", encoding="utf-8", errors="surrogateescape") as file:
            done = process.run(
                process.dies_with_parent(words),
                env=process.callers_environment(),
                on_line=on_line,
                log=file,
                check=False,
                unwanted=unwanted,
            )
        log, result = _parted(_end_of(output))
        # Where a profile is unpacked is of no interest to whoever has it elsewhere.
        log = log.replace(f"{folder}/", "")
        if isinstance(result.get("error"), str):
            result["error"] = result["error"].replace(f"{folder}/", "")
    return Outcome(
        done.returncode,
        result,
        _end(log),
        place.machine,
        machine.describe(before, machine.moment(), place.cache),
    )


def _end_of(output: Path) -> str:
    """Return the end of an output, of which a Makefile may write without end."""
    with output.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_OUTPUT))
        return file.read().decode("utf-8", "replace")


def failure(error: Exception, place: Place) -> Outcome:
    """Return the outcome of a task that couldn't even be begun."""
    now = machine.moment()
    code = getattr(error, "exit_code", InfrastructureError.exit_code)
    said = f"{error}" or type(error).__name__
    return Outcome(
        code, {"error": said}, said, place.machine, machine.describe(now, now, place.cache)
    )


def _parted(text: str) -> tuple[str, dict[str, Any]]:
    """Return what rbuild said, and the JSON object at the end of it; an empty one if it has none.

    Within the object, which is indented, no line is a bare brace.
    """
    said, brace, rest = f"\n{text}".rpartition("\n{\n")
    if brace:
        try:
            result = json.loads("{\n" + rest)
            _must_be_ours(result)
        except (ValueError, RecursionError):
            return text, {}
        return said.lstrip("\n") + "\n", result
    return text, {}


class ToldPhase(PhaseRecord):
    """A phase as another rbuild's result has it."""

    cached: bool


class ToldArtefact(Record):
    """An artefact as another rbuild's result has it."""

    path: Text
    sha256: Text


class ResultRecord(Record):
    """What a report needs of another rbuild's result."""

    phases: Annotated[tuple[ToldPhase, ...], Field(strict=False)] = ()
    artefacts: Annotated[tuple[ToldArtefact, ...], Field(strict=False)] = ()


def _must_be_ours(result: Mapping[str, Any]) -> None:
    """Raise ValueError for what no rbuild says: of these fields a report is made."""
    ResultRecord.model_validate(result)


def _end(log: str) -> str:
    """Return as much of a log's end as is reported, in whole lines."""
    if len(log) <= LOG_BYTES:
        return log
    _, _, tail = log[-LOG_BYTES:].partition("\n")
    return f"[{len(log) - len(tail)} characters before this are left out]\n{tail}"
