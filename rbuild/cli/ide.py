"""``rbuild ide``: tell clangd and rust-analyzer how a module and its kernel are built."""

from __future__ import annotations

from pathlib import Path

import click

from rbuild.cli.main import App
from rbuild.cli.options import (
    Output,
    What,
    Where,
    driver_option,
    env_option,
    grouped,
    jobs_option,
    profile_option,
    root_option,
    runtime_option,
    summary,
    was_typed,
)
from rbuild.ide.project import describe, write
from rbuild.module import drivers
from rbuild.ui.format import joined
from rbuild.util.hashes import sha256_file

EPILOG = """\b
Examples:
  rbuild ide                          for our driver: says where the files are
  cd ~/src/my-driver && rbuild ide . --output .
"""


@click.command(epilog=EPILOG)
@click.argument("path", required=False, type=click.Path(path_type=Path))
@root_option
@driver_option
@env_option
@profile_option
@jobs_option
@click.option(
    "--output",
    type=Output(folder=True),
    metavar="DIR",
    help="Put the files there, such as into PATH itself.",
)
@click.option("--force", is_flag=True, help="Replace files there that rbuild didn't make.")
@runtime_option
@grouped("where", Where)
@grouped("what", What)
@click.pass_obj
def command(
    app: App,
    where: Where,
    what: What,
    output: Path | None,
    force: bool,
) -> None:
    """Tell clangd and rust-analyzer how our driver, or the module in PATH, is built.

    Builds the module, and makes a compile_commands.json and, for a module in
    Rust, a rust-project.json, with the paths of this host. They hold as long as
    the KDIR is there: after `rbuild clean`, call it again.
    """
    if what.path is not None and was_typed("driver"):
        raise click.UsageError("PATH goes without --driver.")
    if force and output is None:
        raise click.UsageError("--force goes with --output.")
    own = what.root
    made = where.build_context(app, "ide")
    found = where.profile()
    wanted = None if what.path is not None else what.chosen(found)[0]
    source = what.path if wanted is None else drivers.driver_source(wanted)
    assert source is not None
    kdir = where.kdir(found, made)
    done = describe(kdir, source, made, own)
    files = (
        list(done.files)
        if output is None
        else write(done.project, output.absolute(), app.cache, force=force)
    )
    if done.failure is not None:
        app.console.warn(
            f"{source.resolve().name} has faults (`rbuild module` shows them): "
            "what could not be compiled is missing."
        )
    data = summary("ide", kdir, made, done.script)
    data["driver"] = wanted
    data["artefacts"] = [
        {"path": str(one), "sha256": sha256_file(one), "size_bytes": one.stat().st_size}
        for one in files
    ]
    data["phases"] += [phase.as_json() for phase in done.phases]
    app.console.result(_lines(files), data)


def _lines(files: list[Path]) -> str:
    lines = []
    for one in files:
        if one.suffix == ".json" and one.name.startswith("compile"):
            lines += [str(one), f"  clangd --compile-commands-dir={one.parent}"]
        else:
            lines += [str(one), f'  "rust-analyzer.linkedProjects": ["{one}"]']
    return joined(lines)
