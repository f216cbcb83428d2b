"""``rbuild module``: build our driver, or any module."""

from __future__ import annotations

from pathlib import Path

import click

from rbuild import module, profile
from rbuild.cli import App
from rbuild.cli.options import (
    Output,
    cache_words,
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
    timeout_option,
    was_typed,
)
from rbuild.console import duration, joined, size
from rbuild.kernel import Kdir
from rbuild.profile import Driver, Kind

EPILOG = """\b
Examples:
  rbuild module                            the Rust driver, out-of-tree
  rbuild module --in-tree --driver c
  rbuild module ~/src/my-driver --env hybrid --output .
"""


@click.command(epilog=EPILOG)
@click.argument("path", required=False, type=click.Path(path_type=Path))
@root_option
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
    help="Copy the .ko there.",
)
@runtime_option
@timeout_option
@click.pass_obj
def command(
    app: App,
    path: Path | None,
    root_folder: Path | None,
    kind: str | None,
    driver: str | None,
    env: str,
    profile_name: str,
    jobs: int | None,
    ccache: bool,
    output: Path | None,
    runtime: str,
) -> None:
    """Build our MFRC522 driver, or with PATH any out-of-tree module.

    PATH is a folder with a Kbuild or Makefile, of a C or a Rust module; it is left as it is.
    The .ko is checked: machine, vermagic, and that each symbol it needs is exported.
    """
    if path is not None and (was_typed("driver") or kind == Kind.IN_TREE):
        raise click.UsageError("PATH is built out-of-tree, and goes without --driver.")
    own = root_of(path, root_folder)
    made = session(app, "module", runtime, jobs, ccache=ccache)
    found = profile.load(profile_name)
    wanted, how = Driver(driver or found.driver), Kind(kind or found.kind)
    if path is not None:
        how = Kind.OUT_OF_TREE
    else:
        made.settled.update(driver=wanted, kind=how)
    kdir = kdir_for(found, env, made)
    if path is not None:
        result = module.build_out_of_tree(kdir, path, made, own)
    else:
        result = module.build_driver(kdir, wanted, how, made)
    places = [one.path for one in result.modules]
    if output is not None:
        places = module.export(result.modules, output)
    data = summary("module", kdir, made)
    data["kind"] = how
    data["driver"] = None if path is not None else wanted
    data["artefacts"] = [
        {**one.as_json(), "path": str(place)}
        for one, place in zip(result.modules, places, strict=True)
    ]
    data["phases"] += [phase.as_json() for phase in result.phases]
    app.console.result(_lines(kdir, how, result, places), data)


def _lines(kdir: Kdir, kind: Kind, result: module.Result, places: list[Path]) -> str:
    lines = []
    for one, place in zip(result.modules, places, strict=True):
        took = "nothing to do"
        if not result.phase.cached:
            took = duration(result.phase.usage.wall_s) + cache_words([result.phase])
        against = (
            "Module.symvers"
            if one.symbols == "Module.symvers"
            else "the source and its configuration (`rbuild kernel` gives the kernel's own list)"
        )
        if one.undecided:
            against += f"; it doesn't tell of {', '.join(one.undecided[: module.SYMBOLS_SHOWN])}"
        lines += [
            f"{place.name} ({kdir.ready.environment.name}, {kind}, {took}), "
            f"{size(one.size_bytes)}: {place}",
            f"  vermagic {one.vermagic}; license {one.license}"
            f"; depends on {one.depends or 'no module'}",
            f"  symbols checked against {against}",
            f"  sha256 {one.sha256}",
        ]
    return joined(lines)
