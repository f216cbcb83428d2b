"""Profiles that travel: all that one says, in files that need nothing beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rbuild.errors import UsageError
from rbuild.kernel import TARGET
from rbuild.profile import Profile


@dataclass(frozen=True)
class Packed:
    """A profile's files: each one's path in a folder, and its text.  The first is the profile."""

    files: tuple[tuple[str, str], ...]


def pack(found: Profile) -> Packed:
    """Return a profile with its fragments and its base configuration.

    Raises UsageError naming a file that can't be read.
    """
    texts = found.fragments()[: len(found.config.fragments)]
    # A folder for each: two fragments may be named alike, and their names are told in errors.
    files = [(f"fragments/{number}/{name}", text) for number, (name, text) in enumerate(texts)]
    content = found.model_dump(mode="json", exclude_defaults=True)
    config = content.setdefault("config", {})
    if files:
        config["fragments"] = [path for path, _ in files]
    if not TARGET.fullmatch(found.config.base):
        origin = found.path.parent / found.config.base
        try:
            files.append((f"base/{origin.name}", origin.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageError(
                f"{found.path}: config.base: {origin} can't be read: {reason}."
            ) from error
        config["base"] = files[-1][0]
    for source, written in zip(found.source, content["source"], strict=True):
        if source.directory is not None:
            # A tree is too large to travel: the other machine has it in the same place, or says no.
            written["directory"] = str((found.path.parent / source.directory).resolve())
    # JSON is YAML, too.
    text = json.dumps(content, indent=2) + "\n"
    return Packed(((f"{found.name}.yaml", text), *files))


def unpack(packed: Packed, folder: Path) -> Path:
    """Write a packed profile into a folder; return the profile's path."""
    for name, text in packed.files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / packed.files[0][0]
