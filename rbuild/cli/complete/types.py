"""The types of options and arguments whose values a shell can complete."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from rbuild.specs import catalogue

DEFINITIONS = (".yaml", ".yml")


class Named(click.ParamType[str]):
    """A name, or with ``files`` the path of a YAML file in its stead.

    Whether it exists is checked where it is loaded.
    """

    def __init__(self, name: str, known: Callable[[], list[str]], *, files: bool = True) -> None:
        self.name = name
        self._known = known
        self._files = files

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """Return the names and the files here that begin so; where none do, ask for any path."""
        found = [name for name in self._known() if name.startswith(incomplete)]
        if not self._files:
            return [CompletionItem(name) for name in found]
        if "/" not in incomplete:
            found += sorted(name for name in _files_here() if name.startswith(incomplete))
        if not found:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(name) for name in found]


def _files_here() -> list[str]:
    """Return the names of the files in this folder that may be definitions."""
    with suppress(OSError):
        return [path.name for path in Path().iterdir() if path.suffix in DEFINITIONS]
    return []


ENVIRONMENT = Named("environment", catalogue.environments_and_levels)
PROFILE = Named("profile", catalogue.profiles)
MACHINE = Named("machine", catalogue.machines)
TEST = Named("test", catalogue.tests, files=False)

NAMED = {one.name: one for one in (ENVIRONMENT, PROFILE, MACHINE, TEST)}
