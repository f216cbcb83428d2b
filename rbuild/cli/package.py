"""``rbuild package``: make packages of what was built, for a board."""

from __future__ import annotations

from pathlib import Path

import click

from rbuild.board.packages.make import WHOLE_KERNEL, Artefact, Contents, Format, make
from rbuild.board.staging import extras
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
    runtime_option,
    summary,
    timeout_option,
)
from rbuild.cli.suggest import Choice
from rbuild.devicetree import overlay
from rbuild.kernel.build import build
from rbuild.kernel.kdir import Kdir
from rbuild.module.build import build_driver
from rbuild.sandbox.context import BuildContext, Phase
from rbuild.specs.profile import Driver, Kind
from rbuild.ui.format import joined, size

EPILOG = """\b
Formats:
  deb         the kernel's own: linux-image, linux-headers, linux-libc-dev
  tar         kernel, modules, device trees and overlays, to unpack on a Pi
  module-deb  the driver alone, for a Pi that runs this kernel already
  dkms        the C driver's source, which the Pi builds for its own kernels
\b
Examples:
  rbuild package --output packages
  rbuild package --format tar --driver c --output .
"""


@click.command(epilog=EPILOG)
@click.option(
    "--format",
    "formats",
    type=Choice([form.value for form in Format]),
    multiple=True,
    help="Make packages of this format; may be repeated [default: all].",
)
@kind_options
@driver_option
@env_option
@profile_option
@jobs_option
@ccache_option
@click.option(
    "--output",
    type=Output(folder=True),
    metavar="DIR",
    required=True,
    help="Where the packages go.",
)
@runtime_option
@timeout_option
@grouped("where", Where)
@grouped("what", What)
@click.pass_obj
def command(
    app: App,
    formats: tuple[str, ...],
    where: Where,
    what: What,
    output: Path,
) -> None:
    """Make packages of a profile's kernel and of our driver, for a Raspberry Pi.

    The same sources give the same bytes, in cross and hybrid alike. lintian
    examines our own .debs.
    """
    made = where.build_context(app, "package")
    found = where.profile()
    chosen = [Format(name) for name in formats] or list(Format)
    wanted, how = what.chosen(found)
    resolve_options(formats=chosen, driver=wanted, kind=how)
    kdir = where.kdir(found, made)
    if WHOLE_KERNEL & set(chosen):
        kdir = build(kdir)
    contents, phases, script = _contents(kdir, wanted, how, made)
    packages = make(contents, chosen, output, made)
    data = summary("package", kdir, made, script)
    data["kind"] = how
    data["driver"] = wanted
    data["artefacts"] = [one.as_json() for one in packages]
    data["phases"] += [phase.as_json() for phase in phases]
    app.console.result(_lines(packages), data)


def _contents(
    kdir: Kdir, driver: Driver, kind: Kind, made: BuildContext
) -> tuple[Contents, list[Phase], Path | None]:
    """Build what packages need besides the kernel; return what that took, and a reproducer."""
    built = build_driver(kdir, driver, kind, made)
    compiled = overlay.compile_overlays(kdir, overlay.own_folder(), made)
    modules = extras([one.path for one in built.modules], kind)
    overlays = tuple(one.path for one in compiled.overlays)
    phases = [built.phase, compiled.phase]
    return Contents(kdir, driver, tuple(modules), overlays), phases, built.script


def _lines(packages: list[Artefact]) -> str:
    return joined(
        line
        for one in packages
        for line in (
            f"{one.path.name} ({one.format}), {size(one.size_bytes)}: {one.path}",
            f"  sha256 {one.sha256}",
        )
    )
