"""Which rbuild this is: builds of several machines agree only if all of them have the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from rbuild import __version__
from rbuild.module.sync import PRODUCTS
from rbuild.util import data

DIGITS = 12
PREFIX = "rbuild-"


def identity() -> str:
    """Return a name of this rbuild: its version, and a hash of its code and definitions.

    Profiles are no part of it: they travel with what is built.
    """
    found = hashlib.sha256()
    for root in (data.PACKAGE, data.folder("rootfs"), data.folder("module")):
        for path in sorted(_files(root)):
            found.update(f"{root.name}/{path.relative_to(root)}\0".encode())
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{PREFIX}{__version__}-{found.hexdigest()[:DIGITS]}"


def _files(root: Path) -> Iterator[Path]:
    """Yield the files below a folder that somebody wrote, not those that a program left there."""
    for path in root.iterdir():
        if path.name.startswith((".", "_data")) or PRODUCTS.fullmatch(path.name):
            continue
        if path.is_dir():
            yield from _files(path)
        else:
            yield path
