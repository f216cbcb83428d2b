"""``rbuild boot``: boot the built kernel in QEMU, and test the module there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from rbuild.boot.initramfs import must_boot
from rbuild.boot.qemu import Booted, Suite, boot, must_pass
from rbuild.cli.complete.types import MACHINE, TEST
from rbuild.cli.main import App
from rbuild.cli.options import (
    Output,
    What,
    Where,
    ccache_option,
    driver_option,
    env_option,
    grouped,
    jobs_option,
    kind_options,
    profile_option,
    resolve_options,
    root_option,
    runtime_option,
    summary,
)
from rbuild.cli.size import Number
from rbuild.cli.suggest import Choice
from rbuild.errors import UsageError
from rbuild.kernel.build import build
from rbuild.kernel.kdir import Kdir
from rbuild.module.build import build_driver, build_out_of_tree
from rbuild.module.check import BuiltModule
from rbuild.module.drivers import NAMES, driver_source, simulator_source
from rbuild.specs import architecture, catalogue
from rbuild.specs.architecture import Machine
from rbuild.specs.profile import Kind
from rbuild.ui.format import duration, joined
from rbuild.util import export
from rbuild.util.process import Limits
from rbuild.util.suggest import nearest
from rbuild.util.textfile import read_text

SILENCE_S = 120.0
TOTAL_S = 900.0

OURS = re.compile(rf"(?<![\w-])(?:{'|'.join(NAMES.values())})\.o\b")
"""How a Makefile names a module that our tests are for."""

MAX_MAKEFILE_BYTES = 1 << 20

EPILOG = """\b
Examples:
  rbuild boot                                  the Rust driver, all its tests
  rbuild boot --driver c --profile slim-debug
  rbuild boot --machine raspi3b                a Raspberry Pi 3B
  rbuild boot --test dead_bus --test two_readers
  rbuild boot ~/src/my-driver                  load and unload any module
"""


@dataclass(frozen=True)
class Tests:
    """Which tests run in the guest: suites, and single groups."""

    suites: tuple[str, ...]
    tests: tuple[str, ...]

    @property
    def chosen(self) -> list[str]:
        """All that are named."""
        return [*self.suites, *self.tests]

    def check(self, path: Path | None) -> None:
        """Raise click.UsageError for an unknown test, or one that talks to our driver only.

        Of another module than our driver, all of those would fail.
        """
        for name in self.tests:
            if name not in (known := catalogue.tests()):
                near = nearest(name, known)
                raise click.UsageError(f"--test: {name!r} is no name of a test.{near}")
        if path is None or _is_ours(path):
            return
        known = catalogue.suite(Suite.LOAD)
        wrong = [f"--suite {one}" for one in self.suites if one != Suite.LOAD]
        wrong += [f"--test {one}" for one in self.tests if one not in known]
        if wrong:
            raise click.UsageError(
                f"{wrong[0]} tests our driver, not the module in PATH; --suite {Suite.LOAD} loads "
                "and unloads any module."
            )


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
@grouped("tests", Tests)
@grouped("where", Where)
@grouped("what", What)
@click.pass_obj
def command(
    app: App,
    where: Where,
    what: What,
    tests: Tests,
    machine_name: str | None,
    timeout: float,
    tap_file: Path | None,
) -> None:
    """Boot the kernel in QEMU, and test our driver on a simulated MFRC522.

    Builds what is missing: the kernel, the driver, the simulated device. With PATH, the module
    built from that folder is tested instead. A test that fails, a panic, a splat in the kernel's
    log, or a guest that hangs is a failure; -v shows the guest's console.
    """
    what.check()
    if tap_file == Path("-") and app.console.json:
        raise click.UsageError("--tap - and --json both write on stdout; choose one.")
    path, own = what.path, what.root
    tests.check(path)
    made = where.build_context(app, "boot")
    found = where.profile()
    wanted, how = what.chosen(found)
    chosen = tests.chosen or ([Suite.LOAD] if path else [Suite.FUNCTIONAL, Suite.SOAK])
    if path is None:
        resolve_options(driver=wanted, kind=how)
    machine = architecture.machine(machine_name or found.machine_name, found.architecture)
    resolve_options(machine_name=machine.model, suites=() if tests.tests else chosen)
    prepared = where.kdir(found, made)
    must_boot(prepared, machine)
    kdir = build(prepared)
    simulator = build_out_of_tree(kdir, simulator_source(), made)
    if path is not None:
        result = build_out_of_tree(kdir, path, made, own)
    else:
        result = build_driver(kdir, wanted, how, made)
    tested = _only(result.modules)
    limits = Limits(timeout, SILENCE_S)
    modules = [tested, *simulator.modules]
    origin = None if how is Kind.IN_TREE else path or driver_source(wanted)
    guest = boot(kdir, modules, tested.path.stem, chosen, limits, made, machine, origin)

    if tap_file is not None and tap_file != Path("-"):
        export.write(tap_file, guest.tap.read_text())
    text = guest.tap.read_text() if tap_file == Path("-") else _lines(kdir, guest, tested, machine)
    data = summary("boot", kdir, made, guest.script)
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
            text = read_text(path / name, limit=MAX_MAKEFILE_BYTES)
        except UsageError:
            continue
        if OURS.search(text):
            return True
    return False


def _only(modules: Sequence[BuiltModule]) -> BuiltModule:
    if len(modules) != 1:
        names = ", ".join(one.path.name for one in modules)
        raise UsageError(f"One module is tested at a time; the folder makes {names}.")
    return modules[0]


def _lines(kdir: Kdir, guest: Booted, tested: BuiltModule, machine: Machine) -> str:
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
