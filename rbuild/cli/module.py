"""``rbuild module``: build our driver, or any module."""

from __future__ import annotations

from pathlib import Path

import click

from rbuild.cli.main import App
from rbuild.cli.options import (
    Output,
    What,
    Where,
    cache_words,
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
    timeout_option,
)
from rbuild.kernel.kdir import Kdir
from rbuild.module import build, check
from rbuild.specs.profile import Kind
from rbuild.ui.format import duration, joined, size

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
@grouped("where", Where)
@grouped("what", What)
@click.pass_obj
def command(
    app: App,
    where: Where,
    what: What,
    output: Path | None,
) -> None:
    """Build our MFRC522 driver, or with PATH any out-of-tree module.

    PATH is a folder with a Kbuild or Makefile, of a C or a Rust module; it is left as it is.
    The .ko is checked: machine, vermagic, and that each symbol it needs is exported.
    """
    what.check()
    own = what.root
    made = where.build_context(app, "module")
    found = where.profile()
    wanted, how = what.chosen(found)
    if what.path is None:
        resolve_options(driver=wanted, kind=how)
    kdir = where.kdir(found, made)
    if what.path is not None:
        result = build.build_out_of_tree(kdir, what.path, made, own)
    else:
        result = build.build_driver(kdir, wanted, how, made)
    places = [one.path for one in result.modules]
    if output is not None:
        places = build.export(result.modules, output)
    data = summary("module", kdir, made, result.script)
    data["kind"] = how
    data["driver"] = None if what.path is not None else wanted
    data["artefacts"] = [
        {**one.as_json(), "path": str(place)}
        for one, place in zip(result.modules, places, strict=True)
    ]
    data["phases"] += [phase.as_json() for phase in result.phases]
    app.console.result(_lines(kdir, how, result, places), data)


def _lines(kdir: Kdir, kind: Kind, result: build.Result, places: list[Path]) -> str:
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
            against += f"; it doesn't tell of {', '.join(one.undecided[: check.SYMBOLS_SHOWN])}"
        lines += [
            f"{place.name} ({kdir.ready.environment.name}, {kind}, {took}), "
            f"{size(one.size_bytes)}: {place}",
            f"  vermagic {one.vermagic}; license {one.license}"
            f"; depends on {one.depends or 'no module'}",
            f"  symbols checked against {against}",
            f"  sha256 {one.sha256}",
        ]
    return joined(lines)
