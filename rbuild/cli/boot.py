"""``rbuild boot``: boot the built kernel in QEMU, and test the module there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import click

from rbuild import architecture, export, module, profile
from rbuild.architecture import Machine
from rbuild.boot import Booted, Suite, boot, must_pass
from rbuild.cli import App
from rbuild.cli.options import (
    Output,
    ccache_option,
    driver_option,
    env_option,
    jobs_option,
    kdir_for,
    kind_options,
    profile_option,
    root_of,
    root_option,
    runtime_option,
    session,
    summary,
    was_typed,
)
from rbuild.cli.size import Number
from rbuild.cli.typo import Choice
from rbuild.completion import names
from rbuild.completion.types import MACHINE, TEST
from rbuild.console import duration, joined
from rbuild.errors import UsageError
from rbuild.guest import must_boot
from rbuild.kernel import Kdir, build
from rbuild.module import Built
from rbuild.nearest import nearest
from rbuild.process import Limits
from rbuild.profile import Driver, Kind
from rbuild.textfile import read_text

SILENCE_S = 120.0
TOTAL_S = 900.0

OURS = re.compile(rf"(?<![\w-])(?:{'|'.join(module.NAMES.values())})\.o\b")
"""How a Makefile names a module that our tests are for."""

MAKEFILE_MOST = 1 << 20

EPILOG = """\b
Examples:
  rbuild boot                                  the Rust driver, all its tests
  rbuild boot --driver c --profile slim-debug
  rbuild boot --machine raspi3b                a Raspberry Pi 3B
  rbuild boot --test dead_bus --test two_readers
  rbuild boot ~/src/my-driver                  load and unload any module
"""


@click.command(epilog=EPILOG)
@click.argument("path", required=False, type=click.Path(path_type=Path))
@root_option
@kind_options
@driver_option
@env_option
@profile_option
@click.option(
    "--machine",
    "machine_name",
    type=MACHINE,
    envvar="RBUILD_MACHINE",
    metavar="M",
    help="What QEMU is: virt, raspi3b ..., or a YAML file [default: the profile's].",
)
@click.option(
    "--suite",
    "suites",
    multiple=True,
    type=Choice([suite.value for suite in Suite]),
    help="Which tests; may be repeated [default: functional and soak, with PATH load].",
)
@click.option(
    "--test",
    "tests",
    multiple=True,
    type=TEST,
    metavar="NAME",
    help="A single group of tests; may be repeated.",
)
@click.option(
    "--timeout",
    type=Number(min=1),
    default=TOTAL_S,
    show_default=True,
    metavar="S",
    help="Seconds after which the guest is given up.",
)
@click.option(
    "--tap",
    "tap_file",
    type=Output(allow_dash=True),
    metavar="F",
    help="Write the outcome as TAP; - is stdout.",
)
@jobs_option
@ccache_option
@runtime_option
@click.pass_obj
def command(
    app: App,
    path: Path | None,
    root_folder: Path | None,
    kind: str | None,
    driver: str | None,
    env: str,
    profile_name: str,
    machine_name: str | None,
    suites: tuple[str, ...],
    tests: tuple[str, ...],
    timeout: float,
    tap_file: Path | None,
    jobs: int | None,
    ccache: bool,
    runtime: str,
) -> None:
    """Boot the kernel in QEMU, and test our driver on a simulated MFRC522.

    Builds what is missing: the kernel, the driver, the simulated device. With PATH, the module
    built from that folder is tested instead. A test that fails, a panic, a splat in the kernel's
    log, or a guest that hangs is a failure; -v shows the guest's console.
    """
    if path is not None and (was_typed("driver") or kind == Kind.IN_TREE):
        raise click.UsageError("PATH is built out-of-tree, and goes without --driver.")
    if tap_file == Path("-") and app.console.json:
        raise click.UsageError("--tap - and --json both write on stdout; choose one.")
    for name in tests:
        if name not in (known := names.tests()):
            raise click.UsageError(f"--test: {name!r} is no name of a test.{nearest(name, known)}")
    own = root_of(path, root_folder)
    if path is not None and not _is_ours(path):
        _must_suit_any(suites, tests)
    made = session(app, "boot", runtime, jobs, ccache=ccache)
    found = profile.load(profile_name)
    wanted, how = Driver(driver or found.driver), Kind(kind or found.kind)
    chosen = [*suites, *tests] or ([Suite.LOAD] if path else [Suite.FUNCTIONAL, Suite.SOAK])

    if path is None:
        made.settled.update(driver=wanted, kind=how)
    machine = architecture.machine(machine_name or found.machine_name, found.architecture)
    made.settled.update(machine_name=machine.model, suites=() if tests else chosen)
    prepared = kdir_for(found, env, made)
    must_boot(prepared, machine)
    kdir = build(prepared, made)
    simulator = module.build_out_of_tree(kdir, module.simulator_source(), made)
    if path is not None:
        how = Kind.OUT_OF_TREE
        result = module.build_out_of_tree(kdir, path, made, own)
    else:
        result = module.build_driver(kdir, wanted, how, made)
    tested = _only(result.modules)
    limits = Limits(timeout, SILENCE_S)
    modules = [tested, *simulator.modules]
    origin = None if how is Kind.IN_TREE else path or module.driver_source(wanted)
    guest = boot(kdir, modules, tested.path.stem, chosen, limits, made, machine, origin)

    if tap_file is not None and tap_file != Path("-"):
        export.write(tap_file, guest.tap.read_text())
    text = guest.tap.read_text() if tap_file == Path("-") else _lines(kdir, guest, tested, machine)
    data = summary("boot", kdir, made)
    data["kind"] = how
    data["driver"] = None if path is not None else wanted
    data["artefacts"] = [one.as_json() for one in (tested, *simulator.modules)]
    data["phases"] += [phase.as_json() for phase in (*result.phases, guest.phase)]
    data["machine"] = machine.model
    data["boot"] = guest.as_json()
    if tap_file == Path("-") and not guest.passed:
        app.console.result(text)
    must_pass(guest, data)
    app.console.result(text, data)


def _is_ours(path: Path) -> bool:
    """Tell whether a folder makes a module that is named as one of our drivers: a copy of one."""
    for name in ("Kbuild", "Makefile"):
        try:
            text = read_text(path / name, limit=MAKEFILE_MOST)
        except UsageError:
            continue
        if OURS.search(text):
            return True
    return False


def _must_suit_any(suites: Sequence[str], tests: Sequence[str]) -> None:
    """Refuse tests that talk to our driver: of another module, all would fail."""
    known = names.suite(Suite.LOAD)
    wrong = [f"--suite {one}" for one in suites if one != Suite.LOAD]
    wrong += [f"--test {one}" for one in tests if one not in known]
    if wrong:
        raise click.UsageError(
            f"{wrong[0]} tests our driver, not the module in PATH; --suite {Suite.LOAD} loads and "
            "unloads any module."
        )


def _only(modules: Sequence[Built]) -> Built:
    if len(modules) != 1:
        names = ", ".join(one.path.name for one in modules)
        raise UsageError(f"One module is tested at a time; the folder makes {names}.")
    return modules[0]


def _lines(kdir: Kdir, guest: Booted, tested: Built, machine: Machine) -> str:
    report = guest.report
    skipped = f", {len(report.skipped)} skipped" if report.skipped else ""
    took = "" if guest.usage is None else f" in {duration(guest.usage.wall_s)}"
    where = f"{kdir.ready.environment.name}, {machine.model}"
    return joined(
        (
            f"{tested.path.name} on Linux {kdir.release} ({where}): "
            f"{len(report.tests)} tests passed{skipped}{took}",
            f"  up after {guest.up_s or 0:.2f} s; console: {guest.console}",
        )
    )
