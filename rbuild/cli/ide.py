"""``rbuild ide``: tell clangd and rust-analyzer how a module and its kernel are built."""

from __future__ import annotations

from pathlib import Path

import click

from rbuild import module, profile
from rbuild.cli import App
from rbuild.cli.options import (
    Output,
    driver_option,
    env_option,
    jobs_option,
    kdir_for,
    profile_option,
    root_of,
    root_option,
    runtime_option,
    session,
    summary,
    was_typed,
)
from rbuild.console import joined
from rbuild.ide import describe, write
from rbuild.profile import Driver
from rbuild.store import sha256_file

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
@click.pass_obj
def command(
    app: App,
    path: Path | None,
    root_folder: Path | None,
    driver: str | None,
    env: str,
    profile_name: str,
    jobs: int | None,
    output: Path | None,
    force: bool,
    runtime: str,
) -> None:
    """Tell clangd and rust-analyzer how our driver, or the module in PATH, is built.

    Builds the module, and makes a compile_commands.json and, for a module in
    Rust, a rust-project.json, with the paths of this host. They hold as long as
    the KDIR is there: after `rbuild clean`, call it again.
    """
    if path is not None and was_typed("driver"):
        raise click.UsageError("PATH goes without --driver.")
    if force and output is None:
        raise click.UsageError("--force goes with --output.")
    own = root_of(path, root_folder)
    made = session(app, "ide", runtime, jobs)
    found = profile.load(profile_name)
    wanted = None if path is not None else Driver(driver or found.driver)
    source = path if wanted is None else module.driver_source(wanted)
    assert source is not None
    kdir = kdir_for(found, env, made)
    done = describe(kdir, source, made, own)
    files = (
        list(done.files)
        if output is None
        else write(done.project, output.absolute(), app.store, force=force)
    )
    if done.failure is not None:
        app.console.warn(
            f"{source.resolve().name} has faults (`rbuild module` shows them): "
            "what could not be compiled is missing."
        )
    data = summary("ide", kdir, made)
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
