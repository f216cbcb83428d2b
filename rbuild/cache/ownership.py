"""Whose the cache directory is: what to say where this user may not read or write it."""

from __future__ import annotations

import errno
import os
import shlex
from contextlib import suppress
from itertools import chain
from pathlib import Path

from rbuild.errors import InfrastructureError
from rbuild.util.walk import walk


def denied(root: Path, error: PermissionError) -> InfrastructureError | None:
    """Return what to say of something of the cache's that this user may not read or write.

    None if the error isn't of something in the cache.
    """
    path = Path(os.path.abspath(error.filename or root))  # noqa: PTH100 - no links
    if not path.is_relative_to(root):
        return None
    name = _user(os.geteuid())
    strange = _of_another(root, path)
    own = f"sudo chown -R {shlex.quote(f'{name}:')} {shlex.quote(str(root))}"
    if strange is None:
        return InfrastructureError(
            f"{path} can't be read or written: {error.strerror}.",
            hint=f"Run `{own} && chmod -R u+rwX {shlex.quote(str(root))}`, "
            "or choose another directory with --cache-dir.",
        )
    return InfrastructureError(
        f"{strange} belongs to {_owner(strange)}, so {path} can't be read or written: a cache "
        "directory is for one user.",
        hint=f"Run `{own}`, or choose another directory with --cache-dir or RBUILD_CACHE_DIR.",
    )


def reason(folder: Path, error: OSError) -> str:
    """Return why a folder can't be written, with whose it is if that is why."""
    reason = error.strerror or str(error)
    if os.access(folder, os.W_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        return "the file system is read-only" if error.errno == errno.EROFS else reason
    return f"{reason}, and it belongs to {_owner(folder)}"


def _owner(path: Path) -> str:
    name = _user(path.lstat().st_uid)
    return f"the user {name}" if name.isdecimal() else name


def _user(number: int) -> str:
    """Return a user's name; the number itself if nobody here has it."""
    import pwd  # noqa: PLC0415 - for an error only

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _of_another(root: Path, path: Path) -> Path | None:
    """Return the first thing from ``root`` to ``path``, or below it, that is another user's."""
    above = [one for one in reversed(path.parents) if one.is_relative_to(root)]
    below = (
        path / visit.path(name)
        for visit in walk(path)
        for name in sorted([*visit.folders, *(entry.name for entry in visit.files)])
    )
    for one in chain(above, [path], below):
        with suppress(OSError):
            if one.lstat().st_uid != os.geteuid():
                return one
    return None
