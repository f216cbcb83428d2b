"""A benchmark from its plan to its measurements, in folders of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rbuild import module, process
from rbuild.bench.measure import Measurement, measure
from rbuild.bench.plan import Mode, Scenario, turns
from rbuild.kernel import Kdir
from rbuild.module import Workplace
from rbuild.profile import Kind
from rbuild.session import Session


@dataclass(frozen=True)
class Plan:
    """What is measured: the first mode is the reference."""

    modes: tuple[Mode, ...]
    scenarios: tuple[Scenario, ...]
    runs: int
    warmup: int


def execute(plan: Plan, kdir_of: Callable[[str], Kdir], session: Session) -> list[Measurement]:
    """Make all runs of a plan; return the counted ones.

    ``kdir_of`` gives an environment's KDIR.  Everything happens in folders of this run, which
    are removed at the end: neither does a benchmark disturb what was built, nor find it.
    """
    folder = session.run_folder / "bench"
    try:
        places = _places(plan, kdir_of, folder, session)
        if any(scenario is not Scenario.CLEAN for scenario in plan.scenarios):
            _build_once(places, session)
        found = []
        order = list(turns(plan.modes, plan.scenarios, runs=plan.runs, warmup=plan.warmup))
        for number, turn in enumerate(order, start=1):
            session.console.note(f"[{number}/{len(order)}] {turn.mode}, {turn.scenario}")
            measured = measure(turn, places[turn.mode])
            if turn.counted:
                found.append(measured)
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _places(
    plan: Plan, kdir_of: Callable[[str], Kdir], folder: Path, session: Session
) -> dict[Mode, Workplace]:
    """Make a workplace for each mode; in-tree modes share a copy of their environment's KDIR."""
    places = {}
    copies: dict[str, Path] = {}
    for mode in plan.modes:
        kdir = kdir_of(mode.environment)
        own = folder / str(mode).replace(" ", "-").replace("/", "_")
        if mode.kind is Kind.OUT_OF_TREE:
            source = module.driver_source(mode.driver)
            places[mode] = module.out_of_tree(kdir, source, own, session)
            continue
        if mode.environment not in copies:
            copies[mode.environment] = _copy_in_tree(kdir, own, session)
        copy = copies[mode.environment]
        places[mode] = module.in_tree(kdir, copy / "kdir", mode.driver, copy / "overlay", session)
    return places


def _copy_in_tree(kdir: Kdir, folder: Path, session: Session) -> Path:
    """Copy the KDIR that in-tree builds write in."""
    _, own = module.in_tree_kdir(kdir, session)
    folder.mkdir(parents=True)
    with session.store.lock(own.entry):
        process.run(["cp", "-a", "--reflink=auto", str(own.path), str(folder / "kdir")])
    return folder


def _build_once(places: dict[Mode, Workplace], session: Session) -> None:
    """Build each mode once, so that incremental and noop runs have something to start from."""
    session.console.note("Building each mode once, for the runs that start from there")
    for place in places.values():
        place.wipe()
        place.sync()
        place.make()
