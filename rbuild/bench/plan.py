"""What a benchmark compares, and in which order its runs are made."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from rbuild.specs.profile import Driver


class Target(StrEnum):
    """What is built: the kernel itself, or a driver beside it or as a part of it."""

    KERNEL = "kernel"
    OUT_OF_TREE = "out-of-tree"
    IN_TREE = "in-tree"


class Scenario(StrEnum):
    """What a run starts from.

    Nothing built; one line changed, of the driver (``incremental``) or, for a kernel, of a C file
    or of ``kernel::spi``; or all built.
    """

    CLEAN = "clean"
    INCREMENTAL = "incremental"
    INCREMENTAL_C = "incremental-c"
    INCREMENTAL_RUST = "incremental-rust"
    NOOP = "noop"


OF_KERNEL = (Scenario.CLEAN, Scenario.INCREMENTAL_C, Scenario.INCREMENTAL_RUST, Scenario.NOOP)
OF_MODULE = (Scenario.CLEAN, Scenario.INCREMENTAL, Scenario.NOOP)


@dataclass(frozen=True)
class Mode:
    """One way of building: environment x kind x driver (a kernel has none), with -j ``jobs``.

    ``rust`` says whether a kernel has Rust of which a line could be changed; ``runtime`` is what
    enters the environment.
    """

    environment: str
    target: Target
    driver: Driver | None
    jobs: int
    rust: bool = True
    runtime: str = "bwrap"

    @property
    def where(self) -> str:
        """The environment as reports name it, with its runtime where that isn't the usual one."""
        usual = self.runtime == Mode.runtime
        return self.environment if usual else f"{self.environment}@{self.runtime}"

    def __str__(self) -> str:
        words = [self.where, self.target.value]
        return " ".join([*words, self.driver.value] if self.driver else words)

    def scenarios(self, asked: Sequence[Scenario]) -> list[Scenario]:
        """Return those of the asked scenarios that this mode has, in the order to run them.

        For a kernel, ``incremental`` means both a line of C and one of Rust.
        """
        if self.target is not Target.KERNEL:
            return [one for one in OF_MODULE if one in asked]
        wanted = set(asked)
        if Scenario.INCREMENTAL in asked:
            wanted |= {Scenario.INCREMENTAL_C, Scenario.INCREMENTAL_RUST}
        if not self.rust:
            wanted.discard(Scenario.INCREMENTAL_RUST)
        return [one for one in OF_KERNEL if one in wanted]


@dataclass(frozen=True)
class Plan:
    """What is measured: every scenario that a mode has, ``runs`` times after ``warmup`` times."""

    modes: tuple[Mode, ...]
    scenarios: tuple[Scenario, ...]
    runs: int
    warmup: int


@dataclass(frozen=True)
class Run:
    """One run to be made.  ``round`` counts from 0; warm-up rounds are negative."""

    round: int
    mode: Mode
    scenario: Scenario

    @property
    def counted(self) -> bool:
        """Whether the run is more than a warm-up."""
        return self.round >= 0


def modes(
    environments: Sequence[str],
    targets: Sequence[Target],
    drivers: Sequence[Driver],
    jobs: Sequence[int],
    runtimes: Sequence[str] = (Mode.runtime,),
) -> list[Mode]:
    """Return every combination; those that differ only in where they are built are neighbours."""
    return [
        Mode(environment, target, driver, count, runtime=runtime)
        for target in targets
        for driver in ((None,) if target is Target.KERNEL else drivers)
        for count in jobs
        for environment in environments
        for runtime in runtimes
    ]


def only(plan: Plan, where: Collection[str]) -> Plan:
    """Return the part of a plan that is measured in these environments."""
    return replace(plan, modes=tuple(mode for mode in plan.modes if mode.where in where))


def runs_of(plan: Plan) -> Iterator[Run]:
    """Yield the runs interleaved: each round makes one of every mode (A B C, A B C).

    Within a round a mode's scenarios follow each other, clean first, since the others start from
    what it built.
    """
    for number in range(-plan.warmup, plan.runs):
        for mode in plan.modes:
            for scenario in mode.scenarios(plan.scenarios):
                yield Run(number, mode, scenario)
