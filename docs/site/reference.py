"""The reference's generated parts, from the code that they describe: commands, fields, exit codes.

Each function returns Markdown; PARTS has their names.
"""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
from pydantic import BaseModel

from rbuild import errors
from rbuild.bench.result import Report
from rbuild.cli import main
from rbuild.specs.architecture import Architecture, Machine
from rbuild.specs.definitions import HybridDefinition, RootfsDefinition, VariantDefinition
from rbuild.specs.profile import Profile
from rbuild.specs.settings import Settings

WIDTH = 80
"""How wide the help is, whoever makes the pages."""

Row = tuple[str, ...]
"""A row of a table."""


def commands() -> str:
    """Return a section for each command: its help as rbuild prints it."""
    parts = []
    for command, context in walk():
        with context:
            name = context.command_path
            title = f"{'#' * (1 + len(name.split()))} {name}"
            parts.append(f"{title}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def walk() -> Iterator[tuple[click.Command, click.Context]]:
    """Yield each command and each subcommand, with a context that knows its whole name."""
    context = click.Context(
        main.main, info_name="rbuild", terminal_width=WIDTH, **main.main.context_settings
    )
    yield from _walk(main.main, context)


def _walk(
    command: click.Command, context: click.Context
) -> Iterator[tuple[click.Command, click.Context]]:
    yield command, context
    if not isinstance(command, click.Group):
        return
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        yield from _walk(inner, click.Context(inner, parent=context, info_name=name))


def variables() -> str:
    """Return a table of the environment variables that stand for options."""
    found: dict[str, tuple[str, str, list[str]]] = {}
    for command, context in walk():
        where = "all" if command is main.main else context.command_path.removeprefix("rbuild ")
        for option in command.params:
            if isinstance(option, click.Option) and option.envvar:
                names = [option.envvar] if isinstance(option.envvar, str) else option.envvar
                words = "/".join([*option.opts, *option.secondary_opts])
                for name in names:
                    found.setdefault(name, (words, option.help or "", []))[2].append(where)
    rows = [
        (f"`{name}`", f"`{option}`", _line(text), ", ".join(where))
        for name, (option, text, where) in sorted(found.items())
    ]
    return _table(("variable", "option", "what it says", "commands"), rows)


def exit_codes() -> str:
    """Return a table of the errors by exit code."""
    rows = [("0", "", "Done.")]
    rows += [
        (str(error.exit_code), f"`{error.__name__}`", _line(inspect.getdoc(error) or ""))
        for error in sorted(_public(errors.RbuildError), key=lambda error: error.exit_code)
    ]
    rows.append((str(errors.INTERRUPTED), "", "Interrupted: Ctrl-C, SIGTERM or SIGHUP."))
    return _table(("code", "in the code", "what happened"), rows)


def _public(base: type[errors.RbuildError]) -> Iterator[type[errors.RbuildError]]:
    """Yield the errors that reach the command line: ProcessFailed and TimedOut become another."""
    for error in base.__subclasses__():
        if error not in {errors.ProcessFailed, errors.TimedOut}:
            yield error
            yield from _public(error)


def fields(*models: type[BaseModel], level: int = 2) -> str:
    """Return a section with a table of fields for each model, and for each that it is made of."""
    parts: dict[str, str] = {}
    for model in models:
        schema = model.model_json_schema(ref_template="{model}")
        inner = schema.pop("$defs", {})
        for name, one in {model.__name__: schema, **inner}.items():
            if "properties" in one:
                parts.setdefault(name, _section(name, one, inner, level))
    return "\n".join(parts.values())


def _section(name: str, schema: dict[str, Any], known: dict[str, Any], level: int) -> str:
    required = set(schema.get("required", ()))
    rows: list[Row] = [
        (
            f"`{field}`",
            _kind(one, known),
            "required" if field in required else _default(one),
            _line(one.get("description", "")),
        )
        for field, one in schema["properties"].items()
    ]
    text = _prose(schema.get("description", ""))
    head: Row = ("field", "value", "default", "what it is")
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return f"{'#' * level} {name}\n\n{text}\n\n{_table(head, rows)}"


def _kind(schema: dict[str, Any], known: dict[str, Any]) -> str:
    """Return in words which values a field takes."""
    if "$ref" in schema:
        name = schema["$ref"]
        inner = known[name]
        return _kind(inner, known) if "enum" in inner else f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        kinds = [_kind(one, known) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(kinds)
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    match schema.get("type"):
        case "array":
            return f"list: {_kind(schema['items'], known)}" if "items" in schema else "list"
        case "object":
            values = schema.get("additionalProperties") or next(
                iter(schema.get("patternProperties", {}).values()), None
            )
            return f"names, each with: {_kind(values, known)}" if values else "names with values"
        case "string":
            return {"path": "path"}.get(schema.get("format", ""), "text")
        case "integer":
            return _bounded("whole number", schema)
        case "number":
            return _bounded("number", schema)
        case "boolean":
            return "`true` or `false`"
    return "any"


def _bounded(kind: str, schema: dict[str, Any]) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f"{kind}, {schema['minimum']} to {schema['maximum']}"
    return f"{kind}, at least {schema['minimum']}" if "minimum" in schema else kind


def _default(schema: dict[str, Any]) -> str:
    value = schema.get("default")
    if value in (None, "", [], {}) or isinstance(value, dict):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _table(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _prose(docstring: str) -> str:
    """Return a docstring as Markdown: outside of code, what looks like HTML is none."""
    text = re.sub(r"``([^`]+)``", r"`\1`", inspect.cleandoc(docstring))
    parts = text.split("`")
    parts[::2] = [html.escape(part, quote=False) for part in parts[::2]]
    return "`".join(parts)


def _line(text: str | None) -> str:
    """Return a text as one cell of a table: its first paragraph."""
    first = _prose(text or "").split("\n\n")[0]
    return " ".join(first.split()).replace("|", "\\|")


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "variables": variables,
    "exit-codes": exit_codes,
    "profile": lambda: fields(Profile),
    "environments": lambda: fields(RootfsDefinition, HybridDefinition, VariantDefinition),
    "machines": lambda: fields(Machine, Architecture),
    "configuration": lambda: fields(Settings),
    "bench-result": lambda: fields(Report, level=3),
}
"""What a page can ask for."""
