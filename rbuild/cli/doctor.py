"""``rbuild doctor``: what the host has and lacks."""

from __future__ import annotations

import click

from rbuild.cli.complete.types import ENVIRONMENT
from rbuild.cli.main import App
from rbuild.cli.options import profile_option
from rbuild.errors import MissingDependency
from rbuild.provision.doctor import Finding, State, examine, fix, plan
from rbuild.specs import environment, profile
from rbuild.ui.format import joined
from rbuild.util import data

EPILOG = """\b
Examples:
  rbuild doctor
  rbuild doctor --env chroot --env hybrid
  sudo rbuild doctor --fix --yes
"""
MARKS = {State.OK: "ok  ", State.MISSING: "LACK", State.WARNING: "warn"}


@click.command(epilog=EPILOG)
@click.option(
    "--env",
    "environments",
    type=ENVIRONMENT,
    multiple=True,
    default=("cross",),
    show_default=True,
    metavar="E",
    help="What builds in it need; can be given several times.",
)
@profile_option
@click.option("--fix", "mend", is_flag=True, help="Apply the remedies (needs root).")
@click.option("-y", "--yes", is_flag=True, help="Don't ask before applying them.")
@click.pass_context
def command(
    ctx: click.Context, environments: tuple[str, ...], profile_name: str, mend: bool, yes: bool
) -> None:
    """Check what this host has and lacks, with a remedy for each lack.

    Ends with status 3 if something is missing that builds of the profile in the environment
    need. What only other environments need is a warning; --fix mends both.
    """
    app: App = ctx.obj
    arch = profile.load(profile_name).architecture
    needed = [environment.load_for(name, arch) for name in environments]
    found = examine(app.cache, needed)
    steps = plan(found)
    if mend and steps:
        for line in ("To be done:", *(f"  {step}" for step in steps), ""):
            app.console.note(line)
        if not yes and not click.confirm("Do it?", default=True, err=True):
            raise click.Abort
        fix(found, app.console.note)
        found = examine(app.cache, needed)
    app.console.result(
        joined(line for one in found for line in _lines(one)),
        [
            {
                "name": one.name,
                "state": one.state,
                "text": one.text,
                "remedy": one.remedy,
                "packages": list(one.packages),
            }
            for one in found
        ],
    )
    lacking = [one.name for one in found if one.state is State.MISSING]
    if not lacking:
        return
    if app.console.json:
        ctx.exit(MissingDependency.exit_code)
    raise MissingDependency(
        f"This host lacks: {', '.join(lacking)}.",
        hint=None if mend else f"`{data.as_root('doctor --fix')}` applies the remedies.",
    )


def _lines(one: Finding) -> list[str]:
    line = f"{MARKS[one.state]} {one.name}: {one.text}"
    return [line, f"       -> {one.remedy}"] if one.remedy and one.state is not State.OK else [line]
