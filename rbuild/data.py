"""Where rbuild's data folders are: ``profiles``, ``rootfs`` and ``module``.

In a checkout (also an editable install) they stand beside the package; in a wheel, within it.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """Return the data folder ``name``; the packaged copy first, then the checkout's."""
    packaged = PACKAGE / "_data" / name
    return packaged if packaged.is_dir() else PACKAGE.parent / name
