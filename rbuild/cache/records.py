"""Records: what an earlier rbuild wrote as JSON, read only if it is what was written.

A disk may lose a part of a file, and a user may edit one: a record with a missing or wrong field
counts as missing.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from rbuild.cache.entry import Entry


def _plain(text: str) -> str:
    text.encode()  # a lone surrogate raises UnicodeEncodeError, a ValueError
    if "\0" in text:
        raise ValueError("a text has no NUL")
    return text


def _moment(value: object) -> datetime:
    if not isinstance(value, str):
        raise ValueError("a moment is written in ISO 8601")  # noqa: TRY004 - for pydantic
    return datetime.fromisoformat(value)


Text = Annotated[str, AfterValidator(_plain)]
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Moment = Annotated[AwareDatetime, BeforeValidator(_moment)]


class Record(BaseModel):
    """The base of everything that is kept as JSON: exact types, unknown fields ignored."""

    # A command reads few of the kinds: each is built when it is first read.
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    @classmethod
    def read(cls, data: object) -> Self | None:
        """Return the record of a JSON value; None if it is none."""
        with suppress(ValueError, RecursionError, OverflowError):
            return cls.model_validate(data)
        return None


class Created(Record):
    """When an entry was made, in seconds since the epoch."""

    created: float


def created_s(entry: Entry) -> float:
    """Return when an entry was made, in seconds since the epoch: as it says, or as its folder.

    One that has just been removed is as old as can be.
    """
    if (record := Created.read(entry.metadata)) is not None:
        return record.created
    with suppress(OSError):
        return entry.path.stat().st_mtime
    return 0.0


def within(entry: Entry, name: str) -> Path:
    """Return a path of a record, relative to its entry; raise ValueError for one elsewhere."""
    path = entry.path / name
    if not path.resolve().is_relative_to(entry.path.resolve()):
        raise ValueError(f"{name!r} is not in {entry.name}")
    return path
