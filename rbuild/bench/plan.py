"""What a benchmark compares, and in which order its runs are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from rbuild.profile import Driver, Kind


class Scenario(StrEnum):
    """What a run starts from: nothing built, one source line changed, or all built."""

    CLEAN = "clean"
    INCREMENTAL = "incremental"
    NOOP = "noop"


@dataclass(frozen=True)
class Mode:
    """One way of building: environment x kind x driver."""

    environment: str
    kind: Kind
    driver: Driver

    def __str__(self) -> str:
        return f"{self.environment} {self.kind} {self.driver}"


@dataclass(frozen=True)
class Turn:
    """One run to be made.  ``round`` counts from 0; warm-up rounds are negative."""

    round: int
    mode: Mode
    scenario: Scenario

    @property
    def counted(self) -> bool:
        """Whether the run is more than a warm-up."""
        return self.round >= 0


def modes(
    environments: Sequence[str], kinds: Sequence[Kind], drivers: Sequence[Driver]
) -> list[Mode]:
    """Return every combination, those that differ only in their environment next to each other."""
    return [Mode(env, kind, driver) for kind in kinds for driver in drivers for env in environments]


def turns(
    found: Sequence[Mode], scenarios: Sequence[Scenario], *, runs: int, warmup: int
) -> Iterator[Turn]:
    """Yield the runs interleaved: each round makes one of every mode (A B C, A B C).

    Within a round a mode's scenarios follow each other, clean first, since the others start from
    what it built.
    """
    order = [scenario for scenario in Scenario if scenario in scenarios]
    for number in range(-warmup, runs):
        for mode in found:
            for scenario in order:
                yield Turn(number, mode, scenario)
