"""How the values of configuration files become the defaults of options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import click

from rbuild import config
from rbuild.errors import UsageError

WITHOUT = frozenset({"doctor", "config", "completion", "man"})
"""Commands that work though a configuration file is wrong: they are what one turns to then."""


def values_for(command: click.Command, found: Mapping[str, config.Origin]) -> dict[str, Any]:
    """Return the defaults of a command's options, by parameter: those with a field's variable."""
    fields = {variable: name for name, variable in config.VARIABLES.items()}
    values: dict[str, Any] = {}
    for param in command.params:
        name = fields.get(str(param.envvar)) if isinstance(param.envvar, str) else None
        if name is None or name not in found or param.name is None:
            continue
        value = found[name].value
        values[param.name] = [value] if getattr(param, "multiple", False) else value
    return values


@dataclass
class Defaults(MutableMapping[str, Any]):
    """click's ``default_map`` of the whole command line; the files are read when first asked.

    What it has for a command's name is the default_map of that command.
    """

    group: click.Group
    asks_help: bool = False
    fault: UsageError | None = field(default=None, init=False)
    notes: list[str] = field(default_factory=list, init=False)
    exported: set[str] = field(default_factory=set, init=False)
    """Variables that were set from a file, for programs that look there."""

    @cached_property
    def found(self) -> dict[str, config.Origin]:
        """What the files say; nothing where one is wrong, which is then the ``fault``."""
        try:
            files, self.notes = config.layers()
        except UsageError as error:
            self.fault = error
            return {}
        return config.resolved(files)

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401
        """Return an option's default, or a command's default_map."""
        if key not in self.group.list_commands(click.Context(self.group)):
            return values_for(self.group, self.found).get(key, default)
        command = self.group.get_command(click.Context(self.group), key)
        return default if command is None else values_for(command, self.found)

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:  # noqa: ANN401
        raise TypeError

    def __delitem__(self, key: str) -> None:
        raise TypeError

    def __iter__(self) -> Iterator[str]:
        return iter(values_for(self.group, self.found))

    def __len__(self) -> int:
        return len(values_for(self.group, self.found))

    def __bool__(self) -> bool:
        return True
