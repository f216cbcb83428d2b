"""``rbuild package``: make packages of what was built, for a board."""

from __future__ import annotations

from pathlib import Path

import click

from rbuild import kernel, module, overlay, profile
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
    runtime_option,
    session,
    summary,
    timeout_option,
)
from rbuild.cli.typo import Choice
from rbuild.console import joined, size
from rbuild.kernel import Kdir
from rbuild.package import WHOLE_KERNEL, Artefact, Contents, Format, make
from rbuild.profile import Driver, Kind
from rbuild.session import Phase, Session
from rbuild.stage import extras

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
@click.pass_obj
def command(
    app: App,
    formats: tuple[str, ...],
    kind: str | None,
    driver: str | None,
    env: str,
    profile_name: str,
    jobs: int | None,
    ccache: bool,
    output: Path,
    runtime: str,
) -> None:
    """Make packages of a profile's kernel and of our driver, for a Raspberry Pi.

    The same sources give the same bytes, in cross and hybrid alike. lintian
    examines our own .debs.
    """
    made = session(app, "package", runtime, jobs, ccache=ccache)
    found = profile.load(profile_name)
    chosen = [Format(name) for name in formats] or list(Format)
    wanted, how = Driver(driver or found.driver), Kind(kind or found.kind)
    made.settled.update(formats=chosen, driver=wanted, kind=how)
    kdir = kdir_for(found, env, made)
    if WHOLE_KERNEL & set(chosen):
        kdir = kernel.build(kdir, made)
    contents, phases = _contents(kdir, wanted, how, made)
    packages = make(contents, chosen, output, made)
    data = summary("package", kdir, made)
    data["kind"] = how
    data["driver"] = wanted
    data["artefacts"] = [one.as_json() for one in packages]
    data["phases"] += [phase.as_json() for phase in phases]
    app.console.result(_lines(packages), data)


def _contents(
    kdir: Kdir, driver: Driver, kind: Kind, made: Session
) -> tuple[Contents, list[Phase]]:
    """Build what packages need besides the kernel; return what that took, too."""
    built = module.build_driver(kdir, driver, kind, made)
    compiled = overlay.compile_overlays(kdir, overlay.own_folder(), made)
    modules = extras([one.path for one in built.modules], kind)
    overlays = tuple(one.path for one in compiled.overlays)
    return Contents(kdir, driver, tuple(modules), overlays), [built.phase, compiled.phase]


def _lines(packages: list[Artefact]) -> str:
    return joined(
        line
        for one in packages
        for line in (
            f"{one.path.name} ({one.format}), {size(one.size_bytes)}: {one.path}",
            f"  sha256 {one.sha256}",
        )
    )
