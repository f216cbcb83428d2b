"""One measured run: a module built from a known start, the make command alone being timed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rbuild.bench.plan import Scenario, Turn
from rbuild.errors import BuildFailed
from rbuild.module import Built, Workplace
from rbuild.process import Usage

SOURCES = (".rs", ".c")
"""What a change is made in: Rust, if the driver has any, since that takes longer to compile."""


@dataclass(frozen=True)
class Measurement:
    """What one run of one scenario of one mode took.

    ``usage.wall_s`` is of the sandboxed make command; the CPU times are of all its processes;
    ``max_rss_bytes`` is the largest resident set of any single one of them (wait4(2)).
    """

    turn: Turn
    usage: Usage
    artefact: Built

    def as_json(self) -> dict[str, Any]:
        """Return the run for --export-json."""
        return {
            "round": self.turn.round,
            "scenario": self.turn.scenario.value,
            **asdict(self.usage),
            "sha256": self.artefact.sha256,
            "size_bytes": self.artefact.size_bytes,
        }


def measure(turn: Turn, place: Workplace) -> Measurement:
    """Bring the workplace to the scenario's start, untimed, then time make.

    Raises as make does; a run that fails is no measurement.
    """
    if turn.scenario is Scenario.CLEAN:
        place.wipe()
        place.sync()
    elif turn.scenario is Scenario.INCREMENTAL:
        change_a_line(main_source(place), turn.round)
    made = place.make()
    return Measurement(turn, made.usage, place.products()[0])


def main_source(place: Workplace) -> Path:
    """Return the driver's largest source file in the first of ``SOURCES`` that it is written in."""
    if place.module is not None:
        folder = place.sources
    else:
        folder = place.sources / Path(place.targets[0]).parent.name
    for suffix in SOURCES:
        paths = [p for p in folder.rglob(f"*{suffix}") if not p.name.endswith(".mod.c")]
        if paths:
            return max(paths, key=lambda path: path.stat().st_size)
    raise BuildFailed(f"{folder} has no source file to change a line of.")


def change_a_line(path: Path, number: int) -> None:
    """Change a source file's last line, a comment that the first change adds."""
    mark = "// rbuild bench: change "
    lines = path.read_text().splitlines()
    if lines and lines[-1].startswith(mark):
        lines.pop()
    path.write_text("\n".join([*lines, f"{mark}{number}"]) + "\n")
