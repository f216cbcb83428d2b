"""Sizes on the command line."""

from __future__ import annotations

import re
from typing import Any

import click


class Size(click.ParamType[int]):
    """A number of bytes as Docker writes it: ``4g``, ``512m``, ``20G``."""

    name = "size"

    def convert(
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> int:
        """Return the bytes; units are powers of 1024."""
        if isinstance(value, int):
            return value
        words = str(value).strip().lower()
        found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([kmgt]?)i?b?", words)
        if found is None or float(found[1]) == 0:
            self.fail(f"{value!r} is no size such as 512m or 4g.", param, ctx)
        return int(float(found[1]) * 1024 ** " kmgt".index(found[2] or " "))
