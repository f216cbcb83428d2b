"""From samples to a Report: every figure that is printed is computed here, from raw samples."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rbuild import __version__
from rbuild.bench import identity
from rbuild.bench.measure import times
from rbuild.bench.plan import Mode, Plan, Scenario, Target
from rbuild.bench.result import EnvironmentFacts, Machine, PhaseTimes, Report, Row, Sample
from rbuild.bench.run import PreparedKernel, Results
from rbuild.bench.stats import ratio, spread
from rbuild.kernel.products import kernel_release
from rbuild.specs.profile import Profile
from rbuild.util.hashes import sha256_file


@dataclass(frozen=True)
class RunMetadata:
    """When and how a benchmark ran; ``started`` is ISO 8601 in UTC."""

    command_line: str
    started: str
    seconds: float
    machine: Machine
    ccache: bool
    log_tail: tuple[str, ...]


def build_report(
    plan: Plan,
    profile: Profile,
    grounds: Mapping[str, PreparedKernel],
    findings: Results,
    occasion: RunMetadata,
) -> Report:
    """Return the whole report of a finished benchmark."""
    return Report(
        rbuild=__version__,
        command_line=occasion.command_line,
        started=occasion.started,
        seconds=round(occasion.seconds, 1),
        machine=occasion.machine,
        environments=tuple(
            _facts(name, ground, profile, plan, findings) for name, ground in grounds.items()
        ),
        runs=plan.runs,
        warmup=plan.warmup,
        ccache=occasion.ccache,
        rows=tuple(rows(plan, findings.samples)),
        identity=tuple(identity.compare(findings.samples, findings.products)),
        log_tail=occasion.log_tail,
    )


def rows(plan: Plan, samples: Mapping[tuple[Mode, Scenario], Sequence[Sample]]) -> list[Row]:
    """Summarize the samples, scenario by scenario within what is built.

    The reference of a row is the first mode with its kind and driver.
    """
    first: dict[tuple[Target, str | None], Mode] = {}
    for mode in plan.modes:
        first.setdefault((mode.target, mode.driver), mode)
    made = []
    for (target, driver), reference in first.items():
        group = [one for one in plan.modes if (one.target, one.driver) == (target, driver)]
        for scenario in reference.scenarios(plan.scenarios):
            made += [_row(mode, scenario, reference, samples) for mode in group]
    return made


def _row(
    mode: Mode,
    scenario: Scenario,
    reference: Mode,
    samples: Mapping[tuple[Mode, Scenario], Sequence[Sample]],
) -> Row:
    own = samples[mode, scenario]
    wall = [one.wall_s for one in own]
    base = [one.wall_s for one in samples[reference, scenario]]
    return Row(
        environment=mode.where,
        kind=mode.target.value,
        driver=mode.driver.value if mode.driver else None,
        jobs=mode.jobs,
        scenario=scenario.value,
        wall_s=spread(wall),
        user_s=spread([one.user_s for one in own]),
        system_s=spread([one.system_s for one in own]),
        max_rss_bytes=max(one.max_rss_bytes for one in own),
        ratio=None if mode == reference else ratio(wall, base),
        samples=tuple(own),
    )


def _facts(
    name: str, ground: PreparedKernel, profile: Profile, plan: Plan, findings: Results
) -> EnvironmentFacts:
    kdir = findings.kdirs.get(name) or (ground.kdir.path if ground.kdir else None)
    assert kdir is not None
    return EnvironmentFacts(
        name=name,
        runtime=ground.kernel.ready.runtime.name,
        kernel_release=kernel_release(kdir),
        source=ground.kernel.tree.source,
        profile=profile.name,
        config_sha256=sha256_file(kdir / ".config"),
        toolchain=dict(ground.kernel.ready.toolchain),
        variables=dict(ground.kernel.ready.environment.variables),
        emulator=ground.kernel.ready.emulator,
        phases=(_provisioned(ground), *_phases(name, ground, plan, findings)),
    )


def _provisioned(ground: PreparedKernel) -> PhaseTimes:
    """Return what provisioning took when it was done; only its wall time is known."""
    return PhaseTimes(
        name="provision", wall_s=ground.kernel.ready.seconds, user_s=0, system_s=0, max_rss_bytes=0
    )


def _phases(
    name: str, ground: PreparedKernel, plan: Plan, findings: Results
) -> tuple[PhaseTimes, ...]:
    """Return an environment's kernel phases: as measured here, else as its KDIR was made."""
    for mode in plan.modes:
        found = findings.samples.get((mode, Scenario.CLEAN), ())
        if mode.where == name and mode.target is Target.KERNEL and found:
            return _medians([one.phases for one in found])
    return times(ground.kdir.phases) if ground.kdir else ()


def _medians(runs: Sequence[Sequence[PhaseTimes]]) -> tuple[PhaseTimes, ...]:
    return tuple(
        PhaseTimes(
            name=same[0].name,
            wall_s=statistics.median(one.wall_s for one in same),
            user_s=statistics.median(one.user_s for one in same),
            system_s=statistics.median(one.system_s for one in same),
            max_rss_bytes=max(one.max_rss_bytes for one in same),
        )
        for same in zip(*runs, strict=True)
    )
