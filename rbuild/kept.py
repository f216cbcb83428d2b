"""What an earlier rbuild kept as JSON, believed only as far as it is what was written.

A disk may lose a part of a file, and a user may edit one.  Whoever reads a field gets the type that
it asks for, or ValueError, and then takes the whole for not there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rbuild.store import Entry


def created_s(entry: Entry) -> float:
    """Return when an entry was made, in seconds since the epoch: as it says, or as its folder.

    One that has just been removed is as old as can be.
    """
    try:
        return Kept(entry.metadata or {}).number("created")
    except ValueError:
        with suppress(OSError):
            return entry.path.stat().st_mtime
        return 0.0


@dataclass(frozen=True)
class Kept:
    """A JSON object.  Every method raises ValueError for a field that is missing or of no use."""

    data: Mapping[str, Any]

    def text(self, name: str) -> str:
        """Return a field that is a text."""
        return _text(self.data.get(name), name)

    def text_or_none(self, name: str) -> str | None:
        """Return a field that is a text, or None where it is null or missing."""
        return None if self.data.get(name) is None else self.text(name)

    def path(self, name: str, entry: Entry) -> Path:
        """Return a field that is the path of a file in an entry, relative to it."""
        place = entry.path / self.text(name)
        if not place.resolve().is_relative_to(entry.path.resolve()):
            raise _wrong(name)
        return place

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a field that is a list of texts."""
        return tuple(_text(one, name) for one in self._list(name))

    def number(self, name: str) -> float:
        """Return a field that is a finite number."""
        value = self.data.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _wrong(name)
        try:
            found = float(value)
        except OverflowError as error:
            raise _wrong(name) from error
        if not math.isfinite(found):
            raise _wrong(name)
        return found

    def count(self, name: str) -> int:
        """Return a field that is a whole number, not less than 0."""
        value = self.data.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
            raise _wrong(name)
        return value

    def flag(self, name: str) -> bool:
        """Return a field that is true or false."""
        value = self.data.get(name)
        if not isinstance(value, bool):
            raise _wrong(name)
        return value

    def date(self, name: str) -> datetime:
        """Return a field that is an ISO 8601 date and time with its time zone."""
        found = datetime.fromisoformat(self.text(name))
        if found.tzinfo is None:
            raise _wrong(name)
        return found

    def part(self, name: str) -> Kept:
        """Return a field that is an object."""
        return _object(self.data.get(name), name)

    def parts(self, name: str) -> list[Kept]:
        """Return a field that is a list of objects."""
        return [_object(one, name) for one in self._list(name)]

    def by_name(self, name: str) -> dict[str, str]:
        """Return a field that is an object of texts."""
        return {key: _text(one, name) for key, one in self.part(name).data.items()}

    def counts(self, name: str) -> dict[str, int]:
        """Return a field that is an object of whole numbers."""
        own = self.part(name)
        return {key: own.count(key) for key in own.data}

    def _list(self, name: str) -> list[Any]:
        value = self.data.get(name)
        if not isinstance(value, list):
            raise _wrong(name)
        return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise _wrong(name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _wrong(name) from error
    if "\0" in value:
        raise _wrong(name)
    return value


def _object(value: object, name: str) -> Kept:
    if not isinstance(value, dict):
        raise _wrong(name)
    return Kept(value)


def _wrong(name: str) -> ValueError:
    return ValueError(f"{name} is not what was kept")
