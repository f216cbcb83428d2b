"""``rbuild kernel``: build a profile's kernel."""

from __future__ import annotations

import click

from rbuild.cli.main import App
from rbuild.cli.options import (
    Where,
    cache_words,
    ccache_option,
    env_option,
    grouped,
    jobs_option,
    profile_option,
    runtime_option,
    summary,
    timeout_option,
)
from rbuild.kernel.build import build
from rbuild.kernel.identity import Kernel
from rbuild.kernel.kconfig.explanation import remedy
from rbuild.kernel.kconfig.explanation import tree as tree_of
from rbuild.kernel.kdir import Kdir
from rbuild.kernel.prepare import discard, prepare
from rbuild.kernel.remedy import find_remedy
from rbuild.ui.format import duration, joined, size, visible

EPILOG = """\b
Examples:
  rbuild kernel
  rbuild kernel --env hybrid -j8
  rbuild kernel --profile my-board.yaml --clean
  rbuild kernel --profile my-board.yaml --explain RUST
"""


@click.command(epilog=EPILOG)
@env_option
@profile_option
@jobs_option
@ccache_option
@click.option(
    "--explain",
    "option",
    metavar="OPTION",
    help="Build nothing: say why Kconfig grants OPTION or not, and how to have it.",
)
@click.option("--clean", is_flag=True, help="Throw away what was built before; copy no other KDIR.")
@runtime_option
@timeout_option
@grouped("where", Where)
@click.pass_obj
def command(
    app: App,
    where: Where,
    option: str | None,
    clean: bool,
) -> None:
    """Build the kernel of a profile: Image, modules and device trees.

    Configured by the kernel's own merge_config.sh; an option that Kconfig doesn't grant is an
    error.  A kernel that was built already isn't built again, and one that differs from it in a
    few options starts from a copy of it.
    """
    made = where.build_context(app, "kernel")
    kernel = where.kernel(where.profile(), made)
    if option is not None:
        _explain(option.removeprefix("CONFIG_"), kernel)
        return
    if clean:
        discard(kernel)
    kdir = build(prepare(kernel, clone=not clean))
    data = summary("kernel", kdir, made, kdir.script)
    data["artefacts"] = [{**one, "path": str(kdir.path / one["path"])} for one in kdir.artefacts]
    data["seed"] = kdir.base_kdir
    app.console.result(_line(kdir), data)


def _explain(option: str, kernel: Kernel) -> None:
    """Print why an option is what it is; where it is refused, a remedy that was tried."""
    found = find_remedy(option, kernel)
    plan, where = found.plan, kernel.ready.environment.name
    lines = tree_of(found.first)
    if plan is not None and (plan.options or plan.tools):
        lines += ["", "To have it, in the profile:", *(f"  {line}" for line in remedy(plan))]
    if found.tried is not None:
        words = f"{option} is then {found.last.value}" if found.tried else "it isn't enough"
        lines.append(f"Tried in {where}: {words}.")
    if found.tried is False:
        lines += tree_of(found.last)
    result = {
        "command": "kernel",
        "profile": kernel.profile.name,
        "environment": where,
        **found.first.as_json(),
        "tried": found.tried,
    }
    if plan is not None:
        result["lift"] = {"options": dict(plan.options), "tools": list(plan.tools)}
    kernel.context.console.result(joined(lines), result)


def _line(kdir: Kdir) -> str:
    image = kdir.artefacts[0]
    spent = sum(phase.usage.wall_s for phase in kdir.phases if not phase.cached)
    how = f"built in {duration(spent)}{cache_words(kdir.phases)}" if spent else "nothing to do"
    return visible(
        f"Linux {kdir.release} ({kdir.ready.environment.name}, {how}), "
        f"{size(image['size_bytes'])}: {kdir.path / image['path']}"
    )
