"""A remedy for an option that Kconfig refuses: found by reading, then tried with Kconfig itself."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from rbuild.errors import UsageError
from rbuild.kernel.configure import attempt_with, origins
from rbuild.kernel.identity import Kernel
from rbuild.kernel.kconfig.explain import explain
from rbuild.kernel.kconfig.explanation import Explanation, Plan
from rbuild.kernel.kconfig.parser import read
from rbuild.kernel.kconfig.values import values_of
from rbuild.kernel.prepare import attempt
from rbuild.util.folders import remove_tree

ROUNDS = 4
"""How often a remedy is tried: what it lifts may show what else is in the way."""


@dataclass(frozen=True)
class Remedy:
    """Why an option is what it is, and what would grant it.

    ``plan`` is None where there is nothing to change; ``tried`` says whether Kconfig then grants
    the option, None if it wasn't tried; ``last`` is the explanation after the last trial.
    """

    first: Explanation
    last: Explanation
    plan: Plan | None
    tried: bool | None


def find_remedy(option: str, kernel: Kernel) -> Remedy:
    """Explain an option of a kernel; where it is refused, find a remedy and try it.

    Raises UsageError for an option that the source doesn't have.
    """
    kconfig = read(kernel.tree.path, kernel.profile.architecture)
    if option not in kconfig.options or not kconfig.options[option].definitions:
        known = [one.name for one in kconfig.options.values() if one.definitions]
        close = get_close_matches(option, known, 3)
        raise UsageError(
            f"Linux {kernel.tree.version} has no option {option}.",
            hint=f"Perhaps {' or '.join(close)}?" if close else None,
        )
    asked = origins(kernel.profile, kernel.tree)
    before = attempt(kernel)
    first = explain(option, values_of(before.config, kconfig), asked)
    last, plan = first, first.plan
    if first.granted or plan is None or plan.tools:
        return Remedy(first, last, plan, None)
    folder = kernel.context.run_folder / "trial"
    folder.mkdir()
    kbuild = kernel.kbuild(folder)
    target = plan.options.get(option)
    for _ in range(ROUNDS):
        after = attempt_with(plan.options, before, kernel, kbuild)
        last = explain(option, values_of(after.config, kconfig), asked, wanted=target)
        if last.granted or last.plan is None or last.plan.tools:
            break
        plan += last.plan
    remove_tree(folder)
    return Remedy(first, last, plan, last.granted)
