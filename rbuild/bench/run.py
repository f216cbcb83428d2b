"""A benchmark from its plan to its samples, in folders of its own."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rbuild.bench.measure import measure
from rbuild.bench.places import KernelPlace, ModulePlace, Place, has_rust, once
from rbuild.bench.plan import Mode, Plan, Run, Scenario, Target, runs_of
from rbuild.bench.result import Sample
from rbuild.errors import UsageError
from rbuild.kernel import reuse
from rbuild.kernel.identity import Kernel
from rbuild.kernel.kdir import Kdir
from rbuild.module import build, drivers, sync, workplace
from rbuild.sandbox.context import BuildContext
from rbuild.specs.profile import Profile
from rbuild.ui.format import duration

SAMPLES = "samples.jsonl"
"""In the run's folder: each sample as it comes, so that an interrupted benchmark isn't lost.

Where an emulated environment was waited for, the others' are there twice: rounds begin again.
"""


@dataclass(frozen=True)
class PreparedKernel:
    """What a benchmark builds in an environment: a kernel, and its KDIR if a module needs one."""

    kernel: Kernel
    kdir: Kdir | None


@dataclass(frozen=True)
class Results:
    """What a benchmark found: the counted samples, and where each mode's last products are.

    ``releases`` and ``configs`` have each environment's kernel release and the SHA-256 of its
    .config.
    """

    samples: Mapping[tuple[Mode, Scenario], Sequence[Sample]]
    products: Mapping[Mode, Path]
    kdirs: Mapping[str, Path]


def for_profile(plan: Plan, profile: Profile) -> Plan:
    """Return the plan without what this profile's kernel can't be measured at.

    Raises UsageError if nothing else was asked for.
    """
    rust = has_rust(profile)
    found = tuple(replace(mode, rust=rust) for mode in plan.modes)
    products = tuple(mode for mode in found if mode.scenarios(plan.scenarios))
    if not products:
        raise UsageError(f"The profile {profile.name} has no Rust to change a line of.")
    return replace(plan, modes=products)


def execute(
    plan: Plan, grounds: Mapping[str, PreparedKernel], folder: Path, context: BuildContext
) -> Results:
    """Make all runs of a plan below ``folder``, which the caller makes and removes.

    Neither does a benchmark disturb what was built before, nor find it.
    """
    console = context.console
    places = _places(plan, grounds, folder, context)
    _build_once(plan, places, context)
    samples: dict[tuple[Mode, Scenario], list[Sample]] = {}
    products: dict[Mode, Path] = {}
    order = list(runs_of(plan))
    took: dict[tuple[Mode, Scenario], list[float]] = {}
    for number, turn in enumerate(order):
        left = _left(order[number:], took)
        console.note(f"[{number + 1}/{len(order)}] {label(turn.mode, plan)}, {turn.scenario}{left}")
        started = time.monotonic()
        sample = measure(turn, places[turn.mode])
        took.setdefault((turn.mode, turn.scenario), []).append(time.monotonic() - started)
        if not turn.counted:
            continue
        samples.setdefault((turn.mode, turn.scenario), []).append(sample)
        _write(context.run_folder / SAMPLES, turn, sample)
        if turn.scenario is Scenario.CLEAN:
            products[turn.mode] = _keep(turn.mode, places[turn.mode], folder)
    return Results(
        samples,
        products,
        {
            mode.where: place.kbuild.kdir
            for mode, place in places.items()
            if isinstance(place, KernelPlace)
        },
    )


def label(mode: Mode, plan: Plan) -> str:
    """Return a mode's name, with its -j where the plan has more than one."""
    several = len({one.jobs for one in plan.modes}) > 1
    return f"{mode} -j{mode.jobs}" if several else str(mode)


def _places(
    plan: Plan, grounds: Mapping[str, PreparedKernel], folder: Path, context: BuildContext
) -> dict[Mode, Place]:
    """Make each mode's place; in-tree modes share a copy of their environment's KDIR."""
    places: dict[Mode, Place] = {}
    copies: dict[str, Path] = {}
    for mode in plan.modes:
        ground = grounds[mode.where]
        own = folder / f"{mode}-{mode.jobs}".replace(" ", "-").replace("/", "_")
        if mode.target is Target.KERNEL:
            kbuild = replace(ground.kernel.kbuild(own / "build"), jobs=mode.jobs)
            places[mode] = KernelPlace(kbuild, ground.kernel, own)
            continue
        assert ground.kdir is not None
        assert mode.driver is not None
        if mode.target is Target.OUT_OF_TREE:
            source = drivers.driver_source(mode.driver)
            work = workplace.out_of_tree(ground.kdir, source, own, context)
        else:
            if mode.where not in copies:
                copies[mode.where] = _copy_in_tree(ground.kdir, own)
            copy = copies[mode.where]
            work = workplace.in_tree(
                ground.kdir, copy / "kdir", mode.driver, copy / "overlay", context
            )
        places[mode] = ModulePlace(replace(work, kbuild=replace(work.kbuild, jobs=mode.jobs)))
    return places


def _copy_in_tree(kdir: Kdir, folder: Path) -> Path:
    """Copy the KDIR that in-tree builds write in, and the sources that it was configured with.

    Both keep their times: a Kconfig file that were newer than the configuration would be read
    again in the first run.
    """
    overlay, own = build.in_tree_kdir(kdir)
    folder.mkdir(parents=True)
    reuse.copy(own.path, folder / "kdir")
    reuse.copy(overlay, folder / "overlay")
    shutil.copy(sync.inputs_list(overlay), sync.inputs_list(folder / "overlay"))
    return folder


def _build_once(plan: Plan, places: Mapping[Mode, Place], context: BuildContext) -> None:
    """Build the modes that no clean run builds first, so that their runs have a start.

    All are thrown away before any is built: in-tree modes of one environment share a folder.
    """
    waiting = [mode for mode in plan.modes if Scenario.CLEAN not in mode.scenarios(plan.scenarios)]
    for mode in waiting:
        places[mode].clean()
    for mode in waiting:
        context.console.note(f"Building {label(mode, plan)} once: its runs start from there")
        scenarios = mode.scenarios(plan.scenarios)
        once(places[mode], [one for one in scenarios if one is not Scenario.NOOP])


def _left(order: Sequence[Run], took: Mapping[tuple[Mode, Scenario], Sequence[float]]) -> str:
    """Return how long the turns may take that are still to come, once each has been tried."""
    known = [took.get((turn.mode, turn.scenario)) for turn in order]
    if not all(known):
        return ""
    return f" (about {duration(sum(statistics.median(one) for one in known if one))} left)"


def _keep(mode: Mode, place: Place, folder: Path) -> Path:
    """Copy a place's products to where later runs don't change them."""
    own = folder / "kept" / f"{mode}-{mode.jobs}".replace(" ", "-").replace("/", "_")
    own.mkdir(parents=True, exist_ok=True)
    for path in place.products():
        shutil.copy2(path, own / path.name)
    return own


def _write(path: Path, turn: Run, sample: Sample) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(
            f'{{"mode": "{turn.mode}", "jobs": {turn.mode.jobs}, "scenario": "{turn.scenario}", '
            f'"sample": {sample.model_dump_json()}}}\n'
        )
