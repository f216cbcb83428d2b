"""Groups and choices that, of a word that they don't know, say which is nearest.

Of options click says it by itself, of profiles and environments whoever loads them.
"""

from __future__ import annotations

from typing import Any

import click

from rbuild.util.suggest import meant


class Group(click.Group):
    """A group that knows what a mistyped command was meant to be."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for a mistyped name say which is nearest."""
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}.{meant(args[0], known)}")
        return super().resolve_command(ctx, args)


class Choice(click.Choice[str]):
    """A choice of words."""

    def convert(
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str:
        """Return the word; for a mistyped one say which is nearest."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            more = meant(str(value), self.choices)
            raise click.BadParameter(error.message + more, error.ctx, error.param) from None
