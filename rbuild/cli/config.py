"""``rbuild config``: what configuration files say, and what is in force."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from rbuild.cli.main import COMMANDS, App
from rbuild.cli.suggest import Group
from rbuild.errors import RefusedFileError, UsageError
from rbuild.specs import config, trust
from rbuild.ui.format import joined, visible

EPILOG = """\b
A value is taken from the first of these that has it:
  1. the command line
  2. the environment variable, such as RBUILD_ENV
  3. the project's file: rbuild.yaml in this folder or one above, up to a
     repository's root or your home (in full only if you trust it)
  4. your own file: ~/.config/rbuild/rbuild.yaml, or what RBUILD_CONFIG names
  5. the default

\b
Examples:
  rbuild config show --origin
  rbuild config path
  rbuild config trust
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
TRUST_EPILOG = """\b
Examples:
  cat rbuild.yaml && rbuild config trust
  rbuild config trust ~/src/my-driver
"""
UNTRUST_EPILOG = """\b
Examples:
  rbuild config untrust
  rbuild config untrust ~/src/my-driver/rbuild.yaml
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
    """Show values from configuration files; trust a project's file."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(show, origin=False)


@command.command(epilog=SHOW_EPILOG)
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@click.pass_obj
def show(app: App, origin: bool) -> None:
    """Show the values in force, and those ignored because their file isn't trusted."""
    files, _ = config.layers()
    rows = _rows(app, files)
    columns = ["field", "value", "from"] if origin else ["field", "value"]
    lines = [[row["field"], str(row["value"]), row["origin"]][: len(columns)] for row in rows]
    text = str(app.console.table("", columns, lines))
    for name, value in config.withheld(files).items():
        text += "\n" + visible(
            f"{value.layer.path}:{value.line}: {name}: not used: {value.distrust} "
            "(`rbuild config trust`)"
        )
    app.console.result(text, rows)


@command.command(epilog=PATH_EPILOG)
@click.pass_obj
def path(app: App) -> None:
    """Show where configuration files are looked for, and which are trusted."""
    project, user = config.project_file(), config.user_file()
    rows = []
    if project is not None and project != user:
        rows.append(_row(project, config.Scope.PROJECT))
    if user is not None and user.is_file():
        rows.append(_row(user, config.Scope.USER))
    else:
        state: dict[str, Any] = {"state": "not there", "trusted": None, "ignored": []}
        rows.append({"scope": "user", "path": user and str(user), **state})
    text = joined(f"{row['scope']}: {row['path'] or 'no home'} ({row['state']})" for row in rows)
    if project is None:
        text = f"project: no {config.NAME} in this folder or above\n{text}"
    app.console.result(text, rows)


@command.command("trust", epilog=TRUST_EPILOG)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.pass_obj
def trust_file(app: App, file: Path | None) -> None:
    """Trust a project's file, as it is now, with all files that it names.

    FILE is the project's rbuild.yaml or its folder [default: the one that counts here]. Read it
    first: it says what is downloaded, installed and run. If any of these files changes, trust the
    project again.
    """
    path = _named(file)
    if path == config.user_file():
        raise UsageError(f"{path} is your own file and needs no trust.")
    layer, digests = config.trust_project(path)
    needy = [name for name in layer.values if config.needs_trust(name, layer.values[name])]
    what = ", ".join(needy) or "nothing that needs trust"
    lines = [f"{path}: trusted; it sets {what}."]
    lines += [f"  {digest}  {one}" for one, digest in digests.items()]
    app.console.result(
        joined(lines),
        {
            "path": str(path),
            "fields": needy,
            "files": {str(one): digest for one, digest in digests.items()},
            "record": str(trust.record_path(path)),
        },
    )


@command.command("untrust", epilog=UNTRUST_EPILOG)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.pass_obj
def untrust_file(app: App, file: Path | None) -> None:
    """Withdraw trust in a project's file.

    FILE is the project's rbuild.yaml or its folder [default: the one that counts here].
    """
    path = _named(file)
    was_trusted = trust.forget(path)
    words = "is no longer trusted" if was_trusted else "was not trusted"
    app.console.result(visible(f"{path} {words}."), {"path": str(path), "was_trusted": was_trusted})


@command.command(epilog=SCHEMA_EPILOG)
@click.pass_obj
def schema(app: App) -> None:
    """Print the JSON Schema of a configuration file, for editors and checks."""
    from rbuild.specs.settings import Settings  # noqa: PLC0415 - for this only

    found = Settings.model_json_schema()
    app.console.result(json.dumps(found, indent=2), found)


def _named(file: Path | None) -> Path:
    """Return the path of a project's file as it is found from its folder."""
    if file is None:
        found = config.project_file()
        if found is None:
            raise UsageError(f"There is no {config.NAME} in this folder or above.")
        return found
    path = file / config.NAME if file.is_dir() else file
    if path.name != config.NAME:
        raise UsageError(f"{file}: a project's file must be named {config.NAME}.")
    return Path(os.path.realpath(path.parent)) / path.name


def _row(path: Path, scope: config.Scope) -> dict[str, Any]:
    """Return a file's state: valid, trusted, used."""
    row: dict[str, Any] = {"scope": scope.value, "path": str(path), "trusted": False, "ignored": []}
    try:
        layer = config.load(path, scope)
    except RefusedFileError as error:
        return {**row, "state": f"ignored, since it {error.reason}"}
    except UsageError as error:
        return {**row, "state": f"wrong: {error.message}"}
    state = "used"
    if layer.withheld and layer.verdict is not None:
        ignored = ", ".join(layer.withheld)
        state += f" without {ignored}: not trusted, since {layer.verdict.reason}"
    elif layer.verdict is not None and layer.verdict.is_trusted:
        state += ", trusted"
    trusted = layer.verdict is None or layer.verdict.is_trusted
    return {**row, "state": state, "trusted": trusted, "ignored": list(layer.withheld)}


def _rows(app: App, files: list[config.Layer]) -> list[dict[str, Any]]:
    outer = click.get_current_context().find_root()
    exported: set[str] = getattr(outer.default_map, "exported", set())
    defaults, found, withheld = _defaults(), config.resolved(files), config.withheld(files)
    rows = []
    for name, variable in config.VARIABLES.items():
        value, origin = defaults.get(name, ELSEWHERE.get(name, "")), "default"
        if name in found:
            value, origin = found[name].value, str(found[name])
        if variable in os.environ and variable not in exported:
            value, origin = os.environ[variable], f"variable {variable}"
        if name == "cache_dir":
            value = str(app.cache.root)
            if outer.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                origin = "command line"
        row = {"field": name, "value": value, "variable": variable, "origin": origin}
        rows.append({**row, "ignored": _ignored(withheld.get(name))})
    return rows


def _ignored(origin: config.Origin | None) -> dict[str, Any] | None:
    if origin is None:
        return None
    return {"value": origin.value, "origin": str(origin), "reason": origin.distrust}


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
