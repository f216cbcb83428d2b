"""Profiles that travel: all that one says, in files that need nothing beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rbuild.errors import UsageError
from rbuild.specs.profile import TARGET, Profile
from rbuild.util import folders
from rbuild.util.gpg import armoured


@dataclass(frozen=True)
class ProfileBundle:
    """A profile's files: each one's path in a folder, and its text.  The first is the profile."""

    files: tuple[tuple[str, str], ...]


def pack(found: Profile) -> ProfileBundle:
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
        text = found.read(found.config.base, "config.base")
        files.append((f"base/{Path(found.config.base).name}", text))
        config["base"] = files[-1][0]
    for number, (source, written) in enumerate(zip(found.source, content["source"], strict=True)):
        if source.key is not None:
            files.append(
                (f"keys/{number}.asc", armoured(found.key(source), found.key_content(source)))
            )
            written["key"] = files[-1][0]
        if source.directory is not None:
            # A tree is too large to travel: the other machine has it in the same place, or says no.
            written["directory"] = str((found.path.parent / source.directory).resolve())
    # JSON is YAML, too.
    text = json.dumps(content, indent=2) + "\n"
    return ProfileBundle(((f"{found.name}.yaml", text), *files))


def unpack(bundle: ProfileBundle, folder: Path) -> Path:
    """Write a packed profile into a folder; return the profile's path.

    Raises UsageError if a file's name leads out of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with folders.opened(folder) as below:
        for name, text in bundle.files:
            try:
                folders.write_below(below, name, text.encode(), 0o644)
            except ValueError as error:
                raise UsageError(f"A packed profile has a file named {name!a}.") from error
    return folder / bundle.files[0][0]
