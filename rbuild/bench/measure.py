"""One measured run: a place brought to a scenario's start, untimed, then built, timed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rbuild.bench.machine import moment
from rbuild.bench.places import Enter, Place
from rbuild.bench.plan import Run, Scenario
from rbuild.bench.result import PhaseTimes, Product, Sample
from rbuild.kernel.kbuild import Kbuild
from rbuild.sandbox.bwrap import Bwrap
from rbuild.sandbox.cgroup import Cgroup, cgroup
from rbuild.sandbox.context import Phase
from rbuild.util.hashes import sha256_file


def measure(turn: Run, place: Place) -> Sample:
    """Bring the place to the scenario's start, untimed, then time its makes.

    Raises as make does; a run that fails is no measurement.
    """
    if turn.scenario is Scenario.CLEAN:
        place.clean()
    elif turn.scenario is not Scenario.NOOP:
        place.change(turn.scenario, turn.round)
    before = moment()
    with cgroup() as group:
        phases = place.build(_entering(group))
        cpu_s = group.cpu_s() if group else None
        peak = group.peak_bytes() if group else None
    uses = [phase.ccache for phase in phases if phase.ccache is not None]
    return Sample(
        round=turn.round,
        wall_s=sum(phase.usage.wall_s for phase in phases),
        user_s=sum(phase.usage.user_s for phase in phases),
        system_s=sum(phase.usage.system_s for phase in phases),
        max_rss_bytes=max(phase.usage.max_rss_bytes for phase in phases),
        cgroup_cpu_s=cpu_s,
        cgroup_peak_bytes=peak,
        load=before.load,
        mhz=before.mhz,
        phases=times(phases),
        products=tuple(_product(path) for path in place.products()),
        ccache_hits=sum(one.hits for one in uses) if uses else None,
        ccache_misses=sum(one.misses for one in uses) if uses else None,
    )


def times(phases: Iterable[Phase]) -> tuple[PhaseTimes, ...]:
    """Return phases as a report has them."""
    return tuple(
        PhaseTimes(
            name=phase.name,
            wall_s=phase.usage.wall_s,
            user_s=phase.usage.user_s,
            system_s=phase.usage.system_s,
            max_rss_bytes=phase.usage.max_rss_bytes,
        )
        for phase in phases
    )


def _entering(group: Cgroup | None) -> Enter:
    """Return what makes a Kbuild's commands enter their environment from within a cgroup."""

    def enter(kbuild: Kbuild) -> Kbuild:
        runtime = kbuild.ready.runtime
        if group is None or not isinstance(runtime, Bwrap):
            return kbuild
        inside = replace(runtime, prefix=(*group.prefix(), *runtime.prefix))
        return replace(kbuild, ready=replace(kbuild.ready, runtime=inside))

    return enter


def _product(path: Path) -> Product:
    return Product(name=path.name, sha256=sha256_file(path), size_bytes=path.stat().st_size)
