"""``rbuild config``: what configuration files say, and what is in force."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from rbuild import config
from rbuild.cli import COMMANDS, App
from rbuild.cli.typo import Group
from rbuild.console import joined
from rbuild.errors import UsageError

EPILOG = """\b
A value is taken from the first of these that has it:
  1. the command line
  2. the environment variable, such as RBUILD_ENV
  3. the project's file: rbuild.yaml in this folder or one above, up to a
     repository's root or your home
  4. your own file: ~/.config/rbuild/rbuild.yaml, or what RBUILD_CONFIG names
  5. the default

\b
Examples:
  rbuild config show --origin
  rbuild config path
  rbuild config schema > rbuild.schema.json
"""
SHOW_EPILOG = """\b
Examples:
  rbuild config show
  rbuild config show --origin
  rbuild --json config show
"""
PATH_EPILOG = """\b
Examples:
  rbuild config path
  rbuild --json config path
"""
SCHEMA_EPILOG = """\b
Examples:
  rbuild config schema
  rbuild config schema > rbuild.schema.json
"""
ELSEWHERE = {
    "driver": "the profile's",
    "machine": "the profile's",
    "jobs": "one a processor",
    "memory": "no limit",
    "cpus": "no limit",
    "docker_host": "the usual socket",
    "scheduler": "this machine",
}
"""What counts where an option has no default of its own."""


@click.group(cls=Group, invoke_without_command=True, epilog=EPILOG)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Show values from configuration files, and where each comes from."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(show, origin=False)


@command.command(epilog=SHOW_EPILOG)
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@click.pass_obj
def show(app: App, origin: bool) -> None:
    """Show the values in force."""
    files, _ = config.layers()
    rows = _rows(app, config.resolved(files))
    columns = ["field", "value", "from"] if origin else ["field", "value"]
    lines = [[row["field"], str(row["value"]), row["origin"]][: len(columns)] for row in rows]
    app.console.result(str(app.console.table("", columns, lines)), rows)


@command.command(epilog=PATH_EPILOG)
@click.pass_obj
def path(app: App) -> None:
    """Show where configuration files are looked for."""
    project, user = config.project_file(), config.user_file()
    rows = []
    if project is not None and project != user:
        trusted = config.is_trusted(project)
        state = _state(project, config.Scope.PROJECT) if trusted else "ignored: another user's"
        rows.append({"scope": "project", "path": str(project), "state": state})
    state = _state(user, config.Scope.USER) if user.is_file() else "not there"
    rows.append({"scope": "user", "path": str(user), "state": state})
    text = joined(f"{row['scope']}: {row['path']} ({row['state']})" for row in rows)
    if project is None:
        text = f"project: no {config.NAME} in this folder or above\n{text}"
    app.console.result(text, rows)


@command.command(epilog=SCHEMA_EPILOG)
@click.pass_obj
def schema(app: App) -> None:
    """Print the JSON Schema of a configuration file, for editors and checks."""
    from rbuild.settings import Settings  # noqa: PLC0415 - for this only

    found = Settings.model_json_schema()
    app.console.result(json.dumps(found, indent=2), found)


def _state(found: Path, scope: config.Scope) -> str:
    try:
        config.load(found, scope)
    except UsageError as error:
        return f"wrong: {error.message}"
    return "used"


def _rows(app: App, found: dict[str, config.Origin]) -> list[dict[str, Any]]:
    outer = click.get_current_context().find_root()
    exported: set[str] = getattr(outer.default_map, "exported", set())
    defaults = _defaults()
    rows = []
    for name, variable in config.VARIABLES.items():
        value, origin = defaults.get(name, ELSEWHERE.get(name, "")), "default"
        if name in found:
            value, origin = found[name].value, str(found[name])
        if variable in os.environ and variable not in exported:
            value, origin = os.environ[variable], f"variable {variable}"
        if name == "cache_dir":
            value = str(app.store.root)
            if outer.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                origin = "command line"
        rows.append({"field": name, "value": value, "variable": variable, "origin": origin})
    return rows


def _defaults() -> dict[str, Any]:
    """Return the defaults of the options that have a field's variable."""
    outer = click.get_current_context().find_root()
    assert isinstance(outer.command, click.Group)
    fields = {variable: name for name, variable in config.VARIABLES.items()}
    found: dict[str, Any] = {}
    for name in COMMANDS:
        inner = outer.command.get_command(outer, name)
        assert inner is not None
        for param in inner.params:
            variable = param.envvar if isinstance(param.envvar, str) else ""
            value = param.to_info_dict().get("default")
            if variable in fields and value is not None and not getattr(param, "multiple", False):
                found.setdefault(fields[variable], value)
    return found
