"""Sizes and other figures on the command line: those that a machine can count with."""

from __future__ import annotations

import math
import re
from typing import Any

import click

MAX = 1_000_000
"""The largest number of anything; of seconds it is eleven days."""

MAX_BYTES = 1 << 60


def _is_one(value: Any, kind: type[float]) -> bool:  # noqa: ANN401
    try:
        kind(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


class Number(click.FloatRange):
    """A finite number of a range, at most ``MAX``."""

    def convert(
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Return the number; infinity and what is no number are refused."""
        if not _is_one(value, float):
            self.fail(f"{value!r} is not a number, such as 1.5.", param, ctx)
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found) or found > MAX:
            self.fail(f"{value!r} is not a number up to {MAX}.", param, ctx)
        return found


class Count(click.IntRange):
    """An integer of a range, at most ``MAX``."""

    def convert(
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> int:
        """Return the number."""
        if not _is_one(value, int):
            self.fail(f"{value!r} is not a whole number, such as 4.", param, ctx)
        found = int(super().convert(value, param, ctx))
        if found > MAX:
            self.fail(f"{value!r} is not a number up to {MAX}.", param, ctx)
        return found


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
        size = int(float(found[1]) * 1024 ** " kmgt".index(found[2] or " "))
        if not 0 < size <= MAX_BYTES:
            self.fail(f"{value!r} is no size between 1 byte and 1 EiB.", param, ctx)
        return size
