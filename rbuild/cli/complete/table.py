"""A table of all commands and their options, kept beside the code as ``table.json``.

Importing every command takes longer than somebody who pressed Tab likes to wait.  A test compares
the table with the commands; ``python -m rbuild.cli.complete.table`` writes it anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from rbuild.cli.complete.types import NAMED

TABLE = Path(__file__).with_name("table.json")
HELP_OPTIONS = ["-h", "--help"]


def described(
    command: click.Command,
    context: click.Context,
    text: str,
    texts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what completion has to know of a command; ``text`` is its line in a list.

    ``texts`` are the lines of a group's commands, where they aren't those of their own help.
    """
    found: dict[str, Any] = {"help": text, "params": [_parameter(one) for one in command.params]}
    if isinstance(command, click.Group):
        found["commands"] = {}
        for name in command.list_commands(context):
            one = command.get_command(context, name)
            assert one is not None
            line = (texts or {}).get(name) or one.get_short_help_str(80)
            found["commands"][name] = described(one, click.Context(one, context, name), line)
    return found


def _parameter(param: click.Parameter) -> dict[str, Any]:
    found: dict[str, Any] = {"name": param.name, **_values(param.type)}
    if param.nargs != 1:
        found["nargs"] = param.nargs
    if isinstance(param, click.Option):
        found["opts"] = [*param.opts, *param.secondary_opts]
        found["help"] = param.help or ""
        found |= {key: True for key in ("is_flag", "multiple") if getattr(param, key)}
    return found


def _values(kind: click.ParamType[Any]) -> dict[str, Any]:
    """Return how the values of a type are completed."""
    if isinstance(kind, click.Choice):
        return {"values": list(kind.choices)}
    if isinstance(kind, click.Path):
        return {"path": "file" if kind.file_okay else "dir"}
    return {"named": kind.name} if kind.name in NAMED else {}


def read() -> click.Group:
    """Return the command line of the table: it completes as the real one does, and does nothing."""
    made = _command("rbuild", json.loads(TABLE.read_text(encoding="utf-8")))
    assert isinstance(made, click.Group)
    return made


def _command(name: str, entry: Mapping[str, Any]) -> click.Command:
    settings = {"help_option_names": HELP_OPTIONS}
    params = [_made(one) for one in entry["params"]]
    if "commands" not in entry:
        return click.Command(name, settings, params=params, short_help=entry["help"])
    inner = {one: _command(one, more) for one, more in entry["commands"].items()}
    return click.Group(
        name,
        inner,
        invoke_without_command=True,
        params=params,
        context_settings=settings,
        short_help=entry["help"],
    )


def _made(entry: Mapping[str, Any]) -> click.Parameter:
    names, nargs = [entry["name"], *entry.get("opts", [])], entry.get("nargs", 1)
    kind = _type(entry)
    if "opts" not in entry:
        return click.Argument(names, type=kind, nargs=nargs, required=False)
    if "is_flag" in entry:
        return click.Option(names, is_flag=True, help=entry["help"])
    many = "multiple" in entry
    return click.Option(names, type=kind, nargs=nargs, multiple=many, help=entry["help"])


def _type(entry: Mapping[str, Any]) -> click.ParamType[Any]:
    if "values" in entry:
        return click.Choice(entry["values"])
    if "path" in entry:
        return click.Path(file_okay=entry["path"] == "file")
    return NAMED[entry["named"]] if "named" in entry else click.STRING


def current() -> str:
    """Return the table's text, as the commands say today."""
    from rbuild.cli.main import COMMANDS, main  # noqa: PLC0415 - what the table is there to avoid

    context = click.Context(main, info_name="rbuild")
    return _text(described(main, context, "", COMMANDS)) + "\n"


def _text(entry: Mapping[str, Any]) -> str:
    """Return JSON with a parameter a line, so that one that changed is a line of a diff."""
    lines = ",\n".join(json.dumps(one) for one in entry["params"])
    text = f'{{"help": {json.dumps(entry["help"])}, "params": [\n{lines}\n]'
    if "commands" in entry:
        inner = ",\n".join(f'"{name}": {_text(one)}' for name, one in entry["commands"].items())
        text += f', "commands": {{\n{inner}\n}}'
    return text + "}"


if __name__ == "__main__":
    TABLE.write_text(current(), encoding="utf-8")
