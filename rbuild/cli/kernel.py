"""``rbuild kernel``: build a profile's kernel."""

from __future__ import annotations

import click

from rbuild import environment, profile
from rbuild.cli import App
from rbuild.cli.options import (
    cache_words,
    ccache_option,
    env_option,
    jobs_option,
    profile_option,
    runtime_option,
    session,
    summary,
)
from rbuild.console import duration, size
from rbuild.kernel import Kdir, build, discard, prepare
from rbuild.provision import make_ready
from rbuild.source import obtain

EPILOG = """\b
Examples:
  rbuild kernel
  rbuild kernel --env hybrid -j8
  rbuild kernel --profile my-board.yaml --clean
"""


@click.command(epilog=EPILOG)
@env_option
@profile_option
@jobs_option
@ccache_option
@click.option("--clean", is_flag=True, help="Throw away what was built before; use no seed.")
@runtime_option
@click.pass_obj
def command(
    app: App,
    env: str,
    profile_name: str,
    jobs: int | None,
    ccache: bool,
    clean: bool,
    runtime: str,
) -> None:
    """Build the kernel of a profile: Image, modules and device trees.

    Configured by the kernel's own merge_config.sh; an option that Kconfig doesn't grant is an
    error.  A kernel that was built already isn't built again, and one that differs from it in a
    few options starts from a copy of it, its seed.
    """
    made = session(app, "kernel", runtime, jobs, ccache=ccache)
    found = profile.load(profile_name)
    ready = make_ready(environment.load_for(env, found.architecture), made.store, made.runtime)
    tree = obtain(found, ready, made.store)
    if clean:
        discard(found, tree, ready, made)
    kdir = build(prepare(found, tree, ready, made, seeded=not clean), made)
    data = summary("kernel", kdir, made)
    data["artefacts"] = [{**one, "path": str(kdir.path / one["path"])} for one in kdir.artefacts]
    data["seed"] = kdir.seed
    app.console.result(_line(kdir), data)


def _line(kdir: Kdir) -> str:
    image = kdir.artefacts[0]
    spent = sum(phase.usage.wall_s for phase in kdir.phases if not phase.cached)
    how = f"built in {duration(spent)}{cache_words(kdir.phases)}" if spent else "nothing to do"
    return (
        f"Linux {kdir.release} ({kdir.ready.environment.name}, {how}), "
        f"{size(image['size_bytes'])}: {kdir.path / image['path']}"
    )
