"""How the values of configuration files become the defaults of options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NoReturn

import click

from rbuild.errors import UsageError
from rbuild.specs import config

TOLERATES_BAD_CONFIG = frozenset({"doctor", "config", "completion", "man"})
"""Commands that work though a configuration file is wrong: they are what one turns to then."""


def values_for(
    command: click.Command,
    found: Mapping[str, config.Origin],
    withheld: Mapping[str, config.Origin] | None = None,
) -> dict[str, Any]:
    """Return the defaults of a command's options, by parameter: those with a field's variable.

    The default of one that is withheld is a function, which click calls where the option isn't
    given; it raises UsageError.
    """
    fields = {variable: name for name, variable in config.VARIABLES.items()}
    values: dict[str, Any] = {}
    for param in command.params:
        name = fields.get(str(param.envvar)) if isinstance(param.envvar, str) else None
        if name is None or param.name is None:
            continue
        if withheld and name in withheld:
            values[param.name] = _refuser(name, param, withheld[name])
        elif name in found:
            value = found[name].value
            values[param.name] = [value] if getattr(param, "multiple", False) else value
    return values


def _refuser(name: str, param: click.Parameter, origin: config.Origin) -> Callable[[], NoReturn]:
    return partial(_refuse, name, param.opts[0], origin)


def _refuse(name: str, option: str, origin: config.Origin) -> NoReturn:
    """Say that a value isn't used, rather than build something else without a word."""
    layer = origin.layer
    raise UsageError(
        f"{layer.path}:{origin.line}: {name} needs trust, and the file isn't trusted: "
        f"{origin.distrust} ({layer.withheld[name]}).",
        hint=f"Read the file and those it names, then run `rbuild config trust`; or pass {option}.",
    )


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
    def files(self) -> list[config.Layer]:
        """The files that count; none where one is wrong, which is then the ``fault``."""
        try:
            files, self.notes = config.layers()
        except UsageError as error:
            self.fault = error
            return []
        return files

    @cached_property
    def found(self) -> dict[str, config.Origin]:
        """What the files say."""
        return config.resolved(self.files)

    @cached_property
    def withheld(self) -> dict[str, config.Origin]:
        """What they say in vain, since one isn't trusted; it is no matter to a help text."""
        return {} if self.asks_help else config.withheld(self.files)

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401
        """Return an option's default, or a command's default_map."""
        if key not in self.group.list_commands(click.Context(self.group)):
            return values_for(self.group, self.found).get(key, default)
        command = self.group.get_command(click.Context(self.group), key)
        return default if command is None else values_for(command, self.found, self.withheld)

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
