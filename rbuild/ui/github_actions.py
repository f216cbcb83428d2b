"""The workflow commands by which a program speaks to GitHub Actions: groups and annotations."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

PLACE = re.compile(r"^(?P<file>[^\s:]+):(?P<line>\d+):(?:\d+:)? (?:fatal )?error\b")
"""A place as gcc, clang and make's own tools name it: ``file:line:column: error: ...``."""

RUST_PLACE = re.compile(r"^\s*--> (?P<file>[^:]+):(?P<line>\d+):\d+$")


class Place(NamedTuple):
    """Where in a source a compiler found an error."""

    file: str
    line: int


def command(name: str, message: str = "", **properties: str | int) -> str:
    """Return the line that is the command, escaped so that no text can end it early."""
    given = ",".join(f"{key}={_property(str(value))}" for key, value in properties.items())
    return f"::{name}{' ' + given if given else ''}::{_data(message)}"


def harmless(text: str) -> str:
    """Return a program's text so that none of its lines is taken for a command."""
    lines = [f"| {line}" if line.lstrip().startswith("::") else line for line in text.splitlines()]
    # The older form is obeyed anywhere in a line.
    return "\n".join(lines).replace("##[", "# #[")


def place(words: str) -> Place | None:
    """Return where the first error of a compiler's output is, if it says so."""
    rust = False
    for line in words.splitlines():
        if found := PLACE.match(line):
            return Place(found["file"], int(found["line"]))
        rust = line.startswith("error") or (rust and not line.startswith("warning"))
        if rust and (found := RUST_PLACE.match(line)):
            return Place(found["file"], int(found["line"]))
    return None


def in_repository(file: str) -> str:
    """Return a file's path as annotations have it: from the checkout's folder, if it is there."""
    root = os.environ.get("GITHUB_WORKSPACE")
    if root and Path(file).is_relative_to(root):
        return str(Path(file).relative_to(root))
    return file


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
