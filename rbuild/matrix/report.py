"""What a matrix came to: each build's result, whether the bytes agree, and times side by side.

Times are compared within a machine only: what two machines took says something of the machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rbuild.matrix.plan import Build, Plan
from rbuild.matrix.task import Outcome
from rbuild.ui.format import duration, joined

COLUMNS = ("Build", "Environment", "Result", "Time", "Machine", "SHA-256")
SHORT = 12
"""How many digits of a checksum a table shows."""


class State(StrEnum):
    """What became of a build."""

    BUILT = "built"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Attempt:
    """A machine that had a build: ``ended`` is rbuild's exit code, or None if it was lost."""

    machine: str
    ended: int | None

    def as_json(self) -> dict[str, Any]:
        """Return the attempt; that a machine was lost is a word of its own."""
        return {"machine": self.machine, "exit_code": self.ended, "lost": self.ended is None}


@dataclass(frozen=True)
class Row:
    """A build and its end.  Without an outcome no machine came to one: ``error`` says why."""

    build: Build
    outcome: Outcome | None
    attempts: tuple[Attempt, ...] = ()
    error: str | None = None
    log: str | None = None

    @property
    def state(self) -> State:
        """What became of it: only rbuild's exit codes 1 and 2 are the build's own fault."""
        if self.outcome is None or not self.outcome.is_final:
            return State.NOT_RUN
        return State.FAILED if self.outcome.exit_code else State.BUILT

    @property
    def why(self) -> str | None:
        """Why it isn't built."""
        return self.error or (None if self.outcome is None else self.outcome.error)

    @property
    def phases(self) -> list[dict[str, Any]]:
        """The phases of its build; those that the cache had already are marked ``cached``."""
        return [] if self.outcome is None else list(self.outcome.result.get("phases", ()))

    @property
    def fresh_s(self) -> float | None:
        """How long was built, in seconds; None if there was nothing to do."""
        fresh = [float(one["wall_s"]) for one in self.phases if not one["cached"]]
        return sum(fresh) if fresh else None

    @property
    def comparable_s(self) -> float | None:
        """How long its own last make took, if it ran, and ccache gave it nothing."""
        if not self.phases or self.state is not State.BUILT:
            return None
        last = self.phases[-1]
        helped = (last.get("ccache") or {}).get("hits", 0) > 0
        return None if last["cached"] or helped else float(last["wall_s"])

    @property
    def checksums(self) -> dict[str, str]:
        """The SHA-256 of each artefact, by its name in the output directory."""
        if self.outcome is None:
            return {}
        found = self.outcome.result.get("artefacts", ())
        return {_name(one["path"]): one["sha256"] for one in found}

    def as_json(self) -> dict[str, Any]:
        """Return the build with all that is known of it."""
        outcome = self.outcome
        result = {} if outcome is None else outcome.result
        return {
            **self.build.as_json(),
            "state": self.state.value,
            "exit_code": None if outcome is None else outcome.exit_code,
            "error": self.why,
            "machine": None if outcome is None else outcome.machine,
            "attempts": [one.as_json() for one in self.attempts],
            "artefacts": result.get("artefacts", []),
            "phases": self.phases,
            "toolchain": result.get("toolchain"),
            "kernel_release": result.get("kernel_release"),
            "runtime": result.get("runtime"),
            "load_before": None if outcome is None else outcome.description.load_before,
            "log": self.log,
        }


@dataclass(frozen=True)
class Same:
    """Whether one artefact of a group is the same wherever it was built.

    ``checksums`` has each SHA-256 with those (environment, machine) that came to it.
    """

    group: str
    name: str
    checksums: dict[str, list[tuple[str, str]]]

    @property
    def identical(self) -> bool:
        """Whether all came to the same bytes."""
        return len(self.checksums) == 1

    def as_json(self) -> dict[str, Any]:
        """Return it with the places by name."""
        return {
            "build": self.group,
            "name": self.name,
            "identical": self.identical,
            "checksums": [
                {"sha256": sum_, "places": [{"environment": e, "machine": m} for e, m in places]}
                for sum_, places in self.checksums.items()
            ],
        }


@dataclass(frozen=True)
class Times:
    """What the builds of a group took on one machine, the reference first.

    Each is one run: ``rbuild bench`` measures.
    """

    group: str
    machine: str
    seconds: tuple[tuple[str, float], ...]

    def ratios(self) -> list[tuple[str, float]]:
        """Return each other environment with the ratio of its time to the reference's."""
        (_, reference), *others = self.seconds
        return [(name, wall_s / reference) for name, wall_s in others]

    def as_json(self) -> dict[str, Any]:
        """Return the times, with ratios to the first."""
        reference = self.seconds[0][1]
        return {
            "build": self.group,
            "machine": self.machine,
            "reference": self.seconds[0][0],
            "environments": [
                {"environment": name, "wall_s": wall_s, "ratio": round(wall_s / reference, 4)}
                for name, wall_s in self.seconds
            ],
        }


@dataclass(frozen=True)
class Report:
    """All that a matrix came to.  ``scheduler`` is the cluster's address, if it was one."""

    plan: Plan
    rows: tuple[Row, ...]
    scheduler: str | None = None

    @property
    def exit_code(self) -> int:
        """0 if all was built; 1 if a build failed, else 4 if one couldn't be run."""
        states = {row.state for row in self.rows}
        return 1 if State.FAILED in states else 4 if State.NOT_RUN in states else 0

    def same(self) -> list[Same]:
        """Return for each artefact that was built twice or more whether the bytes agree."""
        found = []
        for group, rows in _groups(self.rows):
            places: dict[str, dict[str, list[tuple[str, str]]]] = {}
            for row in rows:
                assert row.outcome is not None
                for name, checksum in row.checksums.items():
                    where = (row.build.environment, row.outcome.machine)
                    places.setdefault(name, {}).setdefault(checksum, []).append(where)
            found += [
                Same(group, name, sums)
                for name, sums in places.items()
                if sum(map(len, sums.values())) > 1
            ]
        return found

    def times(self) -> list[Times]:
        """Return the times that can be compared: those of one group on one machine."""
        found = []
        for group, rows in _groups(self.rows):
            machines: dict[str, list[tuple[str, float]]] = {}
            for row in rows:
                assert row.outcome is not None
                if row.comparable_s:
                    one = (row.build.environment, row.comparable_s)
                    machines.setdefault(row.outcome.machine, []).append(one)
            found += [
                Times(group, machine, tuple(seconds))
                for machine, seconds in machines.items()
                if len(seconds) > 1
            ]
        return found

    def apart(self) -> list[tuple[str, list[str]]]:
        """Return the groups whose times belong to different machines, with these."""
        found = []
        for group, rows in _groups(self.rows):
            timed = [row.outcome for row in rows if row.outcome and row.comparable_s]
            machines = list(dict.fromkeys(one.machine for one in timed))
            if len(machines) > 1:
                found.append((group, machines))
        return found

    def as_json(self) -> dict[str, Any]:
        """Return all of it for a script."""
        outcomes = [row.outcome for row in self.rows if row.outcome is not None]
        machines = {one.machine: one.description for one in outcomes}
        moment = {"load_before", "load_after", "busy", "mhz"}
        return {
            "command": "matrix",
            "scheduler": self.scheduler,
            "machines": [
                {"name": name, **one.model_dump(mode="json", exclude=moment)}
                for name, one in machines.items()
            ],
            "builds": [row.as_json() for row in self.rows],
            "skipped": [one.as_json() for one in self.plan.skipped],
            "same_bytes": [one.as_json() for one in self.same()],
            "times": [one.as_json() for one in self.times()],
            "not_compared": [{"build": group, "machines": names} for group, names in self.apart()],
            "exit_code": self.exit_code,
        }

    def text(self, table: Callable[[str, Sequence[str], Sequence[Sequence[str]]], str]) -> str:
        """Return the report for a person; ``table`` makes a table (``Console.table``)."""
        parts = [
            table("", COLUMNS, [_cells(row) for row in self.rows]),
            *(_block(title, lines) for title, lines in self._blocks()),
        ]
        return "\n\n".join(part.strip("\n") for part in parts if part)

    def _blocks(self) -> Iterator[tuple[str, list[str]]]:
        yield "Not built:", [line for row in self.rows for line in _fault(row)]
        yield "Skipped:", [f"{one.build}: {one.reason}" for one in self.plan.skipped]
        yield "The same bytes?", list(_same_lines(self.same()))
        times = [_times_line(one) for one in self.times()]
        times += [
            f"{group}: on {_listed(names)}; times of different machines aren't compared"
            for group, names in self.apart()
        ]
        yield "Times, of one run each (`rbuild bench` measures):", times
        lost = [
            f"{row.build}: {_listed([one.machine for one in row.attempts if one.ended is None])}"
            for row in self.rows
            if any(one.ended is None for one in row.attempts)
        ]
        yield "Lost while they built:", lost


def _groups(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return the rows that were built, by their group."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.state is State.BUILT:
            found.setdefault(row.build.group, []).append(row)
    return list(found.items())


def _name(path: str) -> str:
    """Return an artefact's name in the output directory that it was made in."""
    _, build, name = path.rpartition("/build/")
    return name if build else path.rpartition("/")[2]


def _cells(row: Row) -> list[str]:
    sums = list(row.checksums.values())
    seconds = row.fresh_s
    took = duration(seconds) if seconds is not None else ""
    built = row.state is State.BUILT
    return [
        row.build.group,
        row.build.environment,
        "nothing to do" if built and seconds is None else row.state.value,
        took,
        row.outcome.machine if row.outcome else "",
        sums[0][:SHORT] if sums else "",
    ]


def _fault(row: Row) -> list[str]:
    if row.state is State.BUILT:
        return []
    lines = [f"{row.build}: {row.why}"]
    return [*lines, f"  log: {row.log}"] if row.log else lines


def _same_lines(found: Sequence[Same]) -> Iterator[str]:
    """Yield a line for each group, and one for each artefact that differs."""
    groups: dict[str, list[Same]] = {}
    for one in found:
        groups.setdefault(one.group, []).append(one)
    for group, sames in groups.items():
        differing = [one for one in sames if not one.identical]
        if not differing:
            (places,) = sames[0].checksums.values()
            many = f", {len(sames)} files" if len(sames) > 1 else ""
            yield f"{group}: yes, in {_listed([_place(*one) for one in places])}{many}"
        for one in differing:
            parts = (
                f"{checksum[:SHORT]} in {_listed([_place(*place) for place in places])}"
                for checksum, places in one.checksums.items()
            )
            yield f"{group}: NO, {one.name}: {'; '.join(parts)}"


def _times_line(times: Times) -> str:
    name, seconds = times.seconds[0]
    others = ", ".join(f"{other} {ratio:.2f} x" for other, ratio in times.ratios())
    return f"{times.group}, on {times.machine}: {name} {duration(seconds)}, {others} that"


def _place(environment: str, machine: str) -> str:
    return f"{environment} on {machine}"


def _listed(names: Sequence[str]) -> str:
    """Return names as a person lists them."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _block(title: str, lines: Sequence[str]) -> str:
    return joined([title, *(f"  {line}" for line in lines)]) if lines else ""
