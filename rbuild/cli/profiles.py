"""``rbuild profiles``: list, show, schema."""

from __future__ import annotations

import json

import click

from rbuild.cli.complete.types import PROFILE
from rbuild.cli.main import App
from rbuild.cli.suggest import Group
from rbuild.specs import profile
from rbuild.ui.format import joined

EPILOG = """\b
Examples:
  rbuild profiles
  rbuild profiles show slim
  rbuild profiles schema > profile.schema.json
"""
SHOW_EPILOG = """\b
Examples:
  rbuild profiles show slim
  rbuild profiles show my-board.yaml
  rbuild --json profiles show slim
"""
SCHEMA_EPILOG = """\b
Examples:
  rbuild profiles schema
  rbuild profiles schema > profile.schema.json
"""


@click.group(cls=Group, invoke_without_command=True, epilog=EPILOG)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List the profiles; show one resolved, or the JSON Schema of them all."""
    if ctx.invoked_subcommand is not None:
        return
    app: App = ctx.obj
    found = [profile.load(name) for name in profile.names()]
    width = max(len(one.name) for one in found)
    app.console.result(
        joined(f"{one.name:{width}}  {one.description}" for one in found),
        [one.model_dump(mode="json") for one in found],
    )


@command.command(epilog=SHOW_EPILOG)
@click.argument("name", type=PROFILE)
@click.pass_obj
def show(app: App, name: str) -> None:
    """Show a profile with all its defaults and its fragments merged."""
    import yaml  # noqa: PLC0415

    found = profile.load(name)
    data = found.model_dump(mode="json", exclude_none=True)
    fragments = found.fragments()
    text = yaml.safe_dump(data, sort_keys=False)
    text += "".join(f"\n# {name}\n{content}" for name, content in fragments)
    texts = [{"name": name, "text": content} for name, content in fragments]
    app.console.result(text, {**data, "fragment_texts": texts})


@command.command(epilog=SCHEMA_EPILOG)
@click.pass_obj
def schema(app: App) -> None:
    """Print the JSON Schema of a profile, for editors and checks."""
    found = profile.Profile.model_json_schema()
    app.console.result(json.dumps(found, indent=2), found)
