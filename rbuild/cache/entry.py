"""Entries of the cache: where they are, what their metadata says, what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from rbuild.util.files import read_json
from rbuild.util.host import boot_id

METADATA = "metadata.json"

FORMAT = 3
"""The version of the metadata's layout.

What an older rbuild's entry holds is recorded anew when it is first used; what a newer one made is
left alone.
"""

MIN_FORMAT = 1


class EntryKind(StrEnum):
    """The kinds of entry that the cache has."""

    ROOTFS = "rootfs"
    TREES = "trees"
    KDIRS = "kdirs"
    GUESTS = "guests"
    EMULATORS = "emulators"
    CCACHE = "ccache"
    RUNS = "runs"


VERIFIED_FOLDERS = {
    EntryKind.ROOTFS: "root",
    EntryKind.TREES: "src",
    EntryKind.KDIRS: "build",
    EntryKind.GUESTS: ".",
    EntryKind.EMULATORS: ".",
}
"""Which folder of an entry is verified; a ccache has checksums of its own, logs of runs grow."""


def _cut_off(metadata: Mapping[str, Any]) -> bool:
    opened = metadata.get("open")
    return opened is not None and opened != boot_id()


@dataclass(frozen=True)
class Entry:
    """A place in the cache: where it is, or would be."""

    kind: EntryKind
    name: str
    path: Path

    @property
    def raw(self) -> dict[str, Any]:
        """What is in the entry's metadata, of whatever format; {} if nothing is."""
        return read_json(self.path / METADATA) or {}

    @property
    def is_newer(self) -> bool:
        """Whether a newer rbuild made it, in a format that this one can't read."""
        found = self.raw.get("format")
        return type(found) is int and found > FORMAT

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The entry's metadata, or None if the entry isn't there or can't be used.

        It can't be if it is known to be damaged, has another entry's name, or an invalid record,
        or if the machine went down while it was written to.
        """
        data = self.raw
        if _cut_off(data):
            return None
        if data.get("format") == FORMAT and self._lacks_integrity(data):
            return None
        if data.get("format") not in range(MIN_FORMAT, FORMAT + 1) or data.get("damage"):
            return None
        return data if data.get("entry", self.name) == self.name else None

    @property
    def is_open(self) -> bool:
        """Whether somebody writes to it (see ``Cache.open``), or was killed while writing."""
        return self.raw.get("open") is not None

    @property
    def is_mended(self) -> bool:
        """Whether its writer makes anew what an earlier one, which was killed, has left there."""
        return bool(self.raw.get("mended"))

    @property
    def was_cut_off(self) -> bool:
        """Whether the machine was started again while somebody wrote to it: see ``boot_id``."""
        return _cut_off(self.raw)

    def _lacks_integrity(self, data: dict[str, Any]) -> bool:

        found = data.get("integrity")
        # A KDIR has none while it is written to.
        must_have = self.kind in {EntryKind.ROOTFS, EntryKind.TREES}
        return (found is not None or must_have) and IntegrityRecord.from_json(found) is None

    @property
    def integrity(self) -> IntegrityRecord | None:
        """What the entry held when it was published; None if it is written to."""
        return IntegrityRecord.from_json(self.raw.get("integrity"))


@dataclass(frozen=True)
class IntegrityRecord:
    """What an entry's metadata has of its manifest; ``folder`` is what is verified of the entry."""

    folder: str
    manifest: str
    parts: Mapping[str, str]
    files: int
    size_bytes: int

    def as_json(self) -> dict[str, Any]:
        """Return it as metadata has it."""
        return {**vars(self), "parts": dict(self.parts)}

    @staticmethod
    def from_json(data: Any) -> IntegrityRecord | None:  # noqa: ANN401 - whatever was in the file
        """Return the record that metadata has; None if it is none."""
        if not isinstance(data, dict) or data.keys() != IntegrityRecord.__dataclass_fields__.keys():
            return None
        texts = (data["folder"], data["manifest"])
        if data["folder"] not in VERIFIED_FOLDERS.values():
            return None
        numbers = (data["files"], data["size_bytes"])
        if not all(isinstance(one, str) for one in texts) or not isinstance(data["parts"], dict):
            return None
        return IntegrityRecord(**data) if all(type(one) is int for one in numbers) else None
