"""The command line that has a result again, with every value in force spelled out."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click


def reproduction(line: str, script: Path | None) -> dict[str, str | None]:
    """Return how to have a result again, as the command line's contract has it."""
    return {"rbuild": line, "script": None if script is None else str(script)}


def reproducer_lines(found: Mapping[str, str | None]) -> list[str]:
    """Return what to say of a ``reproduction``."""
    lines = [f"again: {found['rbuild']}"]
    if found["script"] is not None:
        lines.append(f"without rbuild: sh {shlex.quote(found['script'])}")
    return lines


def command_line(context: click.Context, resolved: Mapping[str, Any]) -> str:
    """Return the command line of a context with every value in force spelled out.

    ``resolved`` has what commands have made of options that weren't given, by parameter.
    """
    chain: list[click.Context] = []
    here: click.Context | None = context
    while here is not None:
        chain.insert(0, here)
        here = here.parent
    words = ["rbuild"]
    for one in chain:
        if one.parent is not None:
            words.append(str(one.info_name))
        words += _options(one, resolved)
    engine = os.environ.get("DOCKER_HOST")
    before = f"DOCKER_HOST={shlex.quote(engine)} " if engine and "docker" in words else ""
    return before + shlex.join(words)


SAID = {"as_json", "verbose", "quiet"}
"""Options that change only what is said."""


def _options(context: click.Context, resolved: Mapping[str, Any]) -> list[str]:
    options: list[str] = []
    arguments: list[str] = []
    for parameter in context.command.params:
        name = str(parameter.name)
        if name in SAID:
            continue
        value = context.params.get(name)
        if value is None or value == ():
            value = resolved.get(name)
        if value is None or value == ():
            continue
        values = list(value) if isinstance(value, (tuple, list)) else [value]
        words = [_plain(one) for one in values]
        if isinstance(parameter, click.Argument):
            arguments += words
        elif isinstance(parameter, click.Option):
            options += _said(parameter, value, words)
    # What looks like an option is an argument behind this.
    guard = ["--"] if any(word.startswith("-") for word in arguments) else []
    return [*options, *guard, *arguments]


def _said(option: click.Option, value: Any, words: list[str]) -> list[str]:  # noqa: ANN401
    name = max(option.opts, key=len)
    if option.is_flag and isinstance(option.flag_value, str):
        return [name] if str(option.flag_value) == words[0] else []
    if option.is_flag:
        if value:
            return [name]
        return [max(option.secondary_opts, key=len)] if option.secondary_opts else []
    return [part for word in words for part in (name, word)]


def _plain(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, Path):
        return str(value if str(value) == "-" else value.absolute())
    return f"{value:g}" if isinstance(value, float) else str(value)
