"""Outputs: what a build may leave in a folder that it writes to.

A Makefile is a program of somebody's, and what it leaves is read by rbuild, and later by the user.
A link that leads out of the folder would let either read or write a file of the host's; a program
with another owner's rights, or a device, would be there for whoever comes upon it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from rbuild import process
from rbuild.errors import BuildFailed
from rbuild.sandbox import KDIR, SRC

KBUILDS_OWN = {"source": SRC, "build": KDIR}
"""Links that Kbuild itself makes, in an output directory and among installed modules."""


def settle(folder: Path) -> list[str]:
    """Remove what no build needs to leave in a folder; return a line for each such thing.

    That are links that lead out of it, devices, pipes and sockets, and the bits by which a program
    runs with its owner's or group's rights; a file that has them stays without.
    """
    form = ["(", "!", "-type", "f", "!", "-type", "d", "-o", "-perm", "/6000", ")", "-print0"]
    found = process.output(["find", str(folder), "-mindepth", "1", *form]).split(b"\0")[:-1]
    faults = []
    for path in (Path(os.fsdecode(name)) for name in found):
        if fault := _settled(path, folder):
            name = str(path.relative_to(folder)).encode("unicode_escape").decode()
            faults.append(f"{name} {fault}")
    return faults


def named(folder: Path, name: str) -> Path:
    """Return the file of a folder that a build names.  Raises BuildFailed if it isn't in it."""
    path = folder / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise BuildFailed(f"The build names {name!a} as its product, which is out of its folder.")
    return path


def _settled(path: Path, folder: Path) -> str | None:
    """Make one thing harmless; say what it was."""
    try:
        mode = path.lstat().st_mode
    except OSError:  # below a folder that is gone meanwhile
        return None
    if stat.S_ISLNK(mode):
        target = str(path.readlink())
        if KBUILDS_OWN.get(path.name) == target or _stays(path, target, folder):
            return None
        path.unlink()
        return f"is a link to {target!a}, out of its folder"
    if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
        path.chmod(stat.S_IMODE(mode) & 0o1777)
        # A folder's set-group-id bit is inherited: on some file systems every folder has it.
        return None if stat.S_ISDIR(mode) else "runs with the rights of its owner or group"
    path.unlink()
    return "is a device, a pipe or a socket"


def _stays(path: Path, target: str, folder: Path) -> bool:
    """Tell whether a link leads to something in the folder."""
    if target.startswith("/"):
        return False
    inside = folder.resolve()
    # A loop of links resolves to nothing.
    try:
        return (path.parent / target).resolve(strict=False).is_relative_to(inside)
    except (OSError, RuntimeError):
        return False
