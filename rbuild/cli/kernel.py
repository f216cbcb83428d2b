"""``rbuild kernel``: build a profile's kernel."""

from __future__ import annotations

from difflib import get_close_matches

import click

from rbuild import environment, profile
from rbuild.ccache import Share
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
    timeout_option,
)
from rbuild.console import duration, joined, size, visible
from rbuild.errors import UsageError
from rbuild.explain import explain, remedy
from rbuild.explain import tree as tree_of
from rbuild.kbuild import Kbuild
from rbuild.kconfig import read, values_of
from rbuild.kernel import (
    Kdir,
    attempt,
    attempt_with,
    build,
    discard,
    origins,
    prepare,
    provenance,
)
from rbuild.profile import Profile
from rbuild.provision import Ready, make_ready
from rbuild.session import Session
from rbuild.source import Tree, obtain
from rbuild.store import remove_tree

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
@click.option("--clean", is_flag=True, help="Throw away what was built before; use no seed.")
@runtime_option
@timeout_option
@click.pass_obj
def command(
    app: App,
    env: str,
    profile_name: str,
    jobs: int | None,
    ccache: bool,
    option: str | None,
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
    if option is not None:
        _explain(option.removeprefix("CONFIG_"), found, tree, ready, made)
        return
    if clean:
        discard(found, tree, ready, made)
    kdir = build(prepare(found, tree, ready, made, seeded=not clean), made)
    data = summary("kernel", kdir, made)
    data["artefacts"] = [{**one, "path": str(kdir.path / one["path"])} for one in kdir.artefacts]
    data["seed"] = kdir.seed
    app.console.result(_line(kdir), data)


ROUNDS = 4
"""How often a remedy is tried: what it lifts may show what else is in the way."""


def _explain(option: str, found: Profile, tree: Tree, ready: Ready, made: Session) -> None:
    """Print why an option is what it is; where it is refused, a remedy that was tried."""
    kconfig = read(tree.path, found.architecture)
    if option not in kconfig.options or not kconfig.options[option].definitions:
        known = [one.name for one in kconfig.options.values() if one.definitions]
        close = get_close_matches(option, known, 3)
        raise UsageError(
            f"Linux {tree.version} has no option {option}.",
            hint=f"Perhaps {' or '.join(close)}?" if close else None,
        )
    asked = origins(found, tree)
    before = attempt(found, tree, ready, made)
    first = explain(option, values_of(before.config, kconfig), asked)
    last, plan, tried = first, first.plan, None
    if not first.granted and plan is not None and not plan.tools:
        folder = made.run_folder / "trial"
        folder.mkdir()
        kbuild = Kbuild(made, ready, tree, folder, share=Share(provenance(found, tree)))
        target = plan.options.get(option)
        for _ in range(ROUNDS):
            after = attempt_with(plan.options, before, found, kbuild)
            last = explain(option, values_of(after.config, kconfig), asked, wanted=target)
            if last.granted or last.plan is None or last.plan.tools:
                break
            plan += last.plan
        tried = last.granted
        remove_tree(folder)
    lines = tree_of(first)
    if plan is not None and (plan.options or plan.tools):
        lines += ["", "To have it, in the profile:", *(f"  {line}" for line in remedy(plan))]
    if tried is not None:
        words = f"{option} is then {last.value}" if tried else "it isn't enough"
        lines.append(f"Tried in {ready.environment.name}: {words}.")
    if tried is False:
        lines += tree_of(last)
    result = {
        "command": "kernel",
        "profile": found.name,
        "environment": ready.environment.name,
        **first.as_json(),
        "tried": tried,
    }
    if plan is not None:
        result["lift"] = {"options": dict(plan.options), "tools": list(plan.tools)}
    made.console.result(joined(lines), result)


def _line(kdir: Kdir) -> str:
    image = kdir.artefacts[0]
    spent = sum(phase.usage.wall_s for phase in kdir.phases if not phase.cached)
    how = f"built in {duration(spent)}{cache_words(kdir.phases)}" if spent else "nothing to do"
    return visible(
        f"Linux {kdir.release} ({kdir.ready.environment.name}, {how}), "
        f"{size(image['size_bytes'])}: {kdir.path / image['path']}"
    )
