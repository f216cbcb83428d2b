"""Trust in files that rbuild finds by itself: whose they are, and which content is allowed.

A project's configuration file may have come with a clone.  It is read only if the user, root or the
user behind sudo owns it, and nobody else may write to it or replace it.  What it sets beyond
harmless values counts after `rbuild config trust`, which records the SHA-256 of the file and of
every file that it leads to.  The bytes that were compared are the bytes that are parsed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from rbuild.errors import RefusedFileError, UsageError
from rbuild.util import root
from rbuild.util.home import user_path
from rbuild.util.root import Root
from rbuild.util.textfile import open_regular, read_all

MAX_BYTES = 8 << 20
"""Maximum size of a configuration file and of each file that it leads to."""

MAX_LINKS = 40
"""Maximum number of symbolic links in a path, as in Linux (path_resolution(7))."""

FORMAT = 1


@dataclass(frozen=True)
class Verdict:
    """Whether a project's file counts in whole, or why not; ``texts`` are what was compared."""

    is_trusted: bool
    reason: str = ""
    texts: Mapping[Path, bytes] = field(default_factory=dict, repr=False)


def trusted_owners() -> frozenset[int]:
    """Return whose files count: the caller's, root's, and those of the user behind sudo."""
    owners = {0, os.getuid()}
    if os.getuid() == 0 and (behind := os.environ.get("SUDO_UID", "")).isdigit():
        owners.add(int(behind))
    return frozenset(owners)


def project_root(path: Path) -> Root:
    """Return where a project's file may name files: its git work tree, or else its folder."""
    return root.of(
        path.parent,
        "Copy the file into the project, or name it in your own configuration file or on the "
        "command line.",
    )


def read_project_file(path: Path) -> bytes:
    """Read a project's file, or a record.

    Raises RefusedFileError where it, or its folder, could have been written by others, and for a
    symbolic link.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_owner(path, os.fstat(folder), "is in a folder")
        # Below the opened folder, which nobody can replace.
        inside = Path(f"/proc/self/fd/{folder}")
        if stat.S_ISLNK((inside / path.name).lstat().st_mode):
            raise RefusedFileError(path, "is a symbolic link")
        real = inside.readlink() / path.name
        with open_regular(inside / path.name, lambda found: _compare(found, real, path)) as file:
            return _read(file, path)
    finally:
        os.close(folder)


def read_named(path: Path, own: Root) -> bytes:
    """Read a file that a project's file leads to.

    Raises UsageError if it isn't in ``own``, after all links, or isn't the user's.
    """
    own.check(path)
    with own.open(path) as file:
        return _read(file, path)


def read_user_file(path: Path) -> bytes:
    """Read the user's own file, which may be a link to elsewhere.

    Raises RefusedFileError if it is another user's, or if another user's link leads to a file that
    isn't that user's: as root it could be any.
    """
    real, owners = _resolve(path)
    with open_regular(path, lambda found: _compare(found, real, path)) as file:
        owner = os.fstat(file.fileno()).st_uid
        if owners - {0, os.getuid(), owner}:
            raise RefusedFileError(
                path, "goes through a symbolic link whose owner doesn't own the target"
            )
        if owner not in trusted_owners():
            raise RefusedFileError(path, f"belongs to another user (uid {owner})")
        return read_all(file, MAX_BYTES)


def _compare(found: Path, expected: Path, path: Path) -> None:
    if found != expected:
        raise RefusedFileError(path, "was replaced while it was read")


def check(path: Path, content: bytes) -> Verdict:
    """Compare a project's file, and all that it leads to, with what the user trusted."""
    recorded = _recorded(path)
    if recorded is None:
        return Verdict(is_trusted=False, reason="it has never been trusted")
    if recorded.pop(path, None) != _digest(content):
        return Verdict(is_trusted=False, reason="it has changed since it was trusted")
    own, texts = project_root(path), {path: content}
    for file, digest in recorded.items():
        try:
            texts[file] = read_named(file, own)
        except (OSError, UsageError):
            return Verdict(is_trusted=False, reason=f"{file} can no longer be read")
        if _digest(texts[file]) != digest:
            return Verdict(is_trusted=False, reason=f"{file} has changed since it was trusted")
    return Verdict(is_trusted=True, texts=texts)


def record(path: Path, files: Mapping[Path, bytes]) -> dict[Path, str]:
    """Record that the user trusts a project's file with these files; return their SHA-256.

    Raises UsageError where the record wouldn't count.
    """
    digests = {file: _digest(content) for file, content in files.items()}
    data = {
        "format": FORMAT,
        "path": str(path),
        "files": {str(file): digest for file, digest in digests.items()},
    }
    _write(record_path(path), json.dumps(data, indent=1).encode() + b"\n")
    if _recorded(path) != digests:
        raise UsageError(
            f"{record_path(path)}: the record of trust doesn't count: others may write there.",
            hint="The folder must be yours, and writable by nobody else.",
        )
    return digests


def forget(path: Path) -> bool:
    """Remove the record of a project's file; return whether there was one."""
    try:
        record_path(path).unlink()
    except FileNotFoundError:
        return False
    return True


def record_path(path: Path) -> Path:
    """Return where the user's trust in a project's file is recorded."""
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return user_path("state", "Set HOME or XDG_STATE_HOME.") / "rbuild" / "trusted" / f"{name}.json"


def _recorded(path: Path) -> dict[Path, str] | None:
    """Return the SHA-256 of each file that the user trusted; None if there is no sound record."""
    try:
        data = json.loads(read_project_file(record_path(path)))
    except (OSError, ValueError, RecursionError, RefusedFileError):
        return None
    if not isinstance(data, dict) or data.get("path") != str(path) or data.get("format") != FORMAT:
        return None
    files = data.get("files")
    if not isinstance(files, dict) or not all(isinstance(one, str) for one in files.values()):
        return None
    return {Path(name): digest for name, digest in files.items()}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(file: BinaryIO, path: Path) -> bytes:
    """Read a file that nobody else may write to."""
    _check_owner(path, os.fstat(file.fileno()), "is a file")
    return read_all(file, MAX_BYTES)


def _check_owner(path: Path, status: os.stat_result, what: str) -> None:
    if status.st_uid not in trusted_owners():
        raise RefusedFileError(
            path,
            f"{what} owned by another user (uid {status.st_uid}); chown it or use a copy of your "
            "own",
        )
    is_sticky_folder = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if is_sticky_folder:
        return
    is_shared = status.st_mode & stat.S_IWOTH or (
        status.st_mode & stat.S_IWGRP and not _is_private(status.st_gid, status.st_uid)
    )
    if is_shared:
        raise RefusedFileError(path, f"{what} that other users can write to; run chmod go-w on it")


def _is_private(gid: int, uid: int) -> bool:
    """Tell whether a group is a user's own, as where each user has a group of the same name."""
    import grp  # noqa: PLC0415 - few files are writable by a group
    import pwd  # noqa: PLC0415

    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(uid)
    except KeyError:
        return False
    is_own = (group.gr_gid, group.gr_name) == (user.pw_gid, user.pw_name)
    return is_own and set(group.gr_mem) <= {user.pw_name}


def _resolve(path: Path) -> tuple[Path, set[int]]:
    """Return where a path leads, and the owners of the links on the way."""
    real, owners, links = Path("/"), set(), 0
    left = list(reversed(path.absolute().parts[1:]))
    while left:
        step = real / left.pop()
        if step.name == "..":
            real = real.parent
            continue
        status = step.lstat()
        if not stat.S_ISLNK(status.st_mode):
            real = step
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        owners.add(status.st_uid)
        target = step.readlink()
        if target.is_absolute():
            real = Path("/")
        left += [part for part in reversed(target.parts) if part != "/"]
    return real, owners


def _write(path: Path, content: bytes) -> None:
    """Write a record aside and rename it; only the user can read it."""
    folder = _open_folder(path.parent)
    try:
        # A process that was killed may have left its file; one that is at work has the lock.
        fcntl.flock(folder, fcntl.LOCK_EX)
        aside = f".{path.name}.new"
        with suppress(FileNotFoundError):
            os.unlink(aside, dir_fd=folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(aside, flags, 0o600, dir_fd=folder), "wb") as opened:
            _give(opened.fileno(), os.fstat(folder))
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(aside, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    finally:
        os.close(folder)


def _open_folder(path: Path) -> int:
    """Open a folder; what isn't there of it is made, for the user alone."""
    missing: list[str] = []
    while not path.is_dir():
        missing.append(path.name)
        path = path.parent
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    folder = os.open(path, flags)
    for name in reversed(missing):
        outer = folder
        try:
            os.mkdir(name, 0o700, dir_fd=outer)
            folder = os.open(name, flags | os.O_NOFOLLOW, dir_fd=outer)
            _give(folder, os.fstat(outer))
        finally:
            os.close(outer)
    return folder


def _give(descriptor: int, outer: os.stat_result) -> None:
    """Under sudo with the user's home, let what is made there belong to the user."""
    if os.getuid() == 0 and outer.st_uid in trusted_owners() - {0}:
        os.fchown(descriptor, outer.st_uid, outer.st_gid)
