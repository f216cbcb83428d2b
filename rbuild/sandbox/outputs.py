"""Outputs: what a build may leave in a folder that it writes to.

A Makefile is a program of somebody's, and what it leaves is read by rbuild, and later by the user.
A link that leads out of the folder would let either read or write a file of the host's; a program
with another owner's rights, or a device, would be there for whoever comes upon it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Collection
from functools import partial
from pathlib import Path

from rbuild.errors import BuildFailed, InfrastructureError
from rbuild.sandbox.runtime import KDIR, SRC
from rbuild.util import folders, walk

KBUILDS_OWN = {"source": SRC, "build": KDIR}
"""Links that Kbuild itself makes, in an output directory and among installed modules."""

CHANGED = walk.VANISHED | {errno.EINVAL, errno.EISDIR}
"""What the kernel says of a thing that another build has removed or replaced meanwhile."""

NAME = re.compile(r"[^\s\x00-\x1f\x7f-\x9f]+")
"""A product's path: Kbuild's lists are of words, and so are those of packages and boards."""


def sanitise(folder: Path, skipped: Collection[str] = ()) -> list[str]:
    """Remove what no build needs to leave in a folder; return a line for each such thing.

    That are links that lead out of it, devices, pipes and sockets, the bits by which a program
    runs with its owner's or group's rights (a file that has them stays without), and folders that
    are too deep for other programs.  What its owner couldn't read is made readable.  What vanishes
    meanwhile, as in a folder that builds share, is no fault.  Top folders that are ``skipped``
    are not looked at.
    """
    faults = []
    for visit in walk.walk(folder, unlock=True, failed=partial(_must_be_read, folder)):
        if not visit.steps:
            visit.folders[:] = [one for one in visit.folders if one not in skipped]
        for name in [one for one in visit.folders if walk.is_too_deep(visit.path(one))]:
            visit.folders.remove(name)
            folders.remove_tree_below(visit.descriptor, name)
            faults.append(f"{_shown(visit.path(name)[:100])}... has folders {walk.TOO_DEEP}")
        mode = stat.S_IMODE(os.fstat(visit.descriptor).st_mode)
        # A folder's set-group-id bit is inherited: on some file systems every folder has it.
        if visit.steps and mode & 0o6000:
            os.fchmod(visit.descriptor, mode & 0o1777)
        for entry in visit.files:
            try:
                fault = _sanitised_one(visit, entry, folder)
            except OSError as error:
                if error.errno not in CHANGED:
                    raise
            else:
                faults += [f"{_shown(visit.path(entry.name))} {fault}"] if fault else []
    return faults


def _must_be_read(folder: Path, name: str, error: OSError) -> None:
    raise InfrastructureError(
        f"What a build left can't be checked: {folder}/{_shown(name[:200])}: {error.strerror}."
    ) from error


MAX_BYTES = 1 << 30
"""More than this is not read to be compared."""


def content(folder: Path) -> dict[str, str] | None:
    """Return the SHA-256 of each file in a folder, by its path there, and where each link leads.

    None if not all of it can be read, or if that would take long.
    """
    found: dict[str, str] = {}
    left = MAX_BYTES
    try:
        for visit in walk.walk(folder, failed=partial(_must_be_read, folder)):
            for entry in visit.files:
                left -= entry.stat(follow_symlinks=False).st_size
                if left < 0:
                    return None
                found[visit.path(entry.name)] = _content(visit, entry)
    except (OSError, InfrastructureError):
        return None
    return found


def _content(visit: walk.Visit, entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return f"link to {os.readlink(entry.name, dir_fd=visit.descriptor)}"
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(entry.name, flags, dir_fd=visit.descriptor), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def named(folder: Path, name: str) -> Path:
    """Return the file of a folder that a build names.  Raises BuildFailed if it isn't in it."""
    path = folder / name
    must_be_plain(name)
    if Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise BuildFailed(f"The build's product {name!a} is outside its output folder.")
    return path


def must_be_plain(name: str) -> None:
    """Raise BuildFailed for a path that can't stand in a list of words or of lines."""
    if not NAME.fullmatch(name):
        raise BuildFailed(
            f"Invalid product name {name!a}: use no white space or control characters."
        )


def _sanitised_one(visit: walk.Visit, entry: os.DirEntry[str], folder: Path) -> str | None:
    """Make one thing harmless; say what it was.  Raises FileNotFoundError if it has gone."""
    if entry.is_symlink():
        target = os.readlink(entry.name, dir_fd=visit.descriptor)
        path = folder / visit.path(entry.name)
        if KBUILDS_OWN.get(entry.name) == target or _stays(path, target, folder):
            return None
        os.unlink(entry.name, dir_fd=visit.descriptor)
        return f"is a link to {target!a}, out of its folder"
    mode = entry.stat(follow_symlinks=False).st_mode
    if not stat.S_ISREG(mode):
        os.unlink(entry.name, dir_fd=visit.descriptor)
        return "is a device, a pipe or a socket"
    if mode & 0o6000 or not mode & 0o400:
        walk.chmod(visit.descriptor, entry.name, mode & 0o1777 | 0o400)
    return "runs with the rights of its owner or group" if mode & 0o6000 else None


def _shown(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace").encode("unicode_escape").decode()


def _stays(path: Path, target: str, folder: Path) -> bool:
    """Tell whether a link leads to something in the folder."""
    if target.startswith("/"):
        return False
    # A loop of links resolves to nothing, and Python follows no chain of a thousand.
    try:
        return (path.parent / target).resolve(strict=False).is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return False
