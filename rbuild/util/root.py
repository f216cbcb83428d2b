"""Roots: which of the user's files a build may be given.

What a module's folder or a profile brings is copied from there.  A link in it, or a path such as
``../secret``, must not bring any other file of the user's: only what lies in the folder, in the git
work tree that has the folder, or below what ``--root`` names.  A hard link can't be told from a
file.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from rbuild.errors import UsageError
from rbuild.util import data, textfile, walk

OPTION = "Copy the file there, or allow a common parent folder with --root DIR."
BESIDE = "A profile can use files in its own folder or git work tree: copy the file there."

GIT = ".git"


@dataclass(frozen=True)
class Root:
    """A resolved folder whose files may be read; ``hint`` is the remedy for any other file."""

    folder: Path
    hint: str = OPTION

    def has(self, file: Path) -> bool:
        """Tell whether a resolved path may be read: what git keeps for itself may not.

        rbuild's own data may, such as a fragment that a user's profile begins with.
        """
        if file.is_relative_to(self.folder) and GIT not in file.relative_to(self.folder).parts:
            return True
        return _is_own(file)

    def check(self, path: Path, where: str = "", file: Path | None = None) -> None:
        """Raise UsageError unless ``file``, else what ``path`` leads to, may be read.

        Raises FileNotFoundError for a link that is removed or replaced meanwhile.
        """
        file = file or resolved(path)
        if self.has(file):
            return
        before = f"{where}: " if where else ""
        leads = "" if file == path else f" leads to {file}, which"
        raise UsageError(f"{before}{path}{leads} is outside of {self.folder}.", hint=self.hint)

    def open(self, path: Path, where: str = "") -> BinaryIO:
        """Open a file; raise UsageError if it may not be read, OSError as ``open_regular``."""
        return textfile.open_regular(path, partial(self.check, path, where))

    def read_text(self, path: Path, *, limit: int, where: str = "") -> str:
        """Return a file's text; raise UsageError as ``check`` and ``textfile.read_text`` do."""
        check = self._check_first(path, where)
        return textfile.read_text(path, limit=limit, where=where, check=check)

    def read_bytes(self, path: Path, *, limit: int, where: str = "") -> bytes:
        """Return a file's content; raise as ``read_text`` does."""
        check = self._check_first(path, where)
        return textfile.read_bytes(path, limit=limit, where=where, check=check)

    def _check_first(self, path: Path, where: str) -> Callable[[Path], None]:
        """Check a path before anything is said of it; return the check of what is then opened."""
        with suppress(FileNotFoundError):
            self.check(path, where)
        return partial(self.check, path, where)


def resolved(path: Path) -> Path:
    """Return what a path leads to, as realpath(3), whether or not anything is there.

    Raises FileNotFoundError for a link that is removed or replaced meanwhile.
    """
    try:
        return Path(os.path.realpath(path))
    except OSError as error:
        if error.errno not in walk.VANISHED | {errno.EINVAL}:
            raise
        raise FileNotFoundError(error.errno, "changes while it is read", str(path)) from error


def of(folder: Path, hint: str = OPTION) -> Root:
    """Return the root of a folder, or a file's: the git work tree that has it, else the folder.

    A work tree that has a home doesn't count, nor does one that everybody may write to: its .git
    says nothing of what belongs together.  An installer may have linked rbuild's own data from
    anywhere.
    """
    folder = _folder(folder)
    if _is_own(folder):
        return Root(Path("/"), hint)
    tree = next((one for one in (folder, *folder.parents) if _is_work_tree(one)), folder)
    return Root(tree if tree == folder or _may_be_seen(tree) else folder, hint)


def named(option: Path | None, folder: Path) -> Root:
    """Return the root that --root names for a folder or a file, else its own.

    Raises UsageError if it isn't a folder that has the other.
    """
    if option is None:
        return of(folder)
    if not option.is_dir():
        raise UsageError(f"--root: {option} is not a folder.")
    root = Root(option.resolve())
    if not _folder(folder).is_relative_to(root.folder):
        raise UsageError(
            f"--root: {option} does not contain {folder}.", hint="Name a parent folder of PATH."
        )
    return root


def _folder(path: Path) -> Path:
    path = path.resolve()
    return path.parent if path.is_file() else path


def _is_own(folder: Path) -> bool:
    own = (data.folder(name).resolve() for name in ("module", "profiles", "rootfs"))
    return any(folder.is_relative_to(one) for one in own)


def _is_work_tree(folder: Path) -> bool:
    """Tell whether a folder has a repository, or a file that says where it is (gitfile)."""
    git = folder / GIT
    return git.is_file() or (git / "HEAD").is_file()


def _may_be_seen(tree: Path) -> bool:
    if tree.stat().st_mode & stat.S_IWOTH:
        return False
    return not any(home.is_relative_to(tree) for home in _homes(tree))


def _homes(tree: Path) -> Iterator[Path]:
    """Yield the caller's home, that of the work tree's owner, and the root."""
    yield Path("/")
    with suppress(RuntimeError):
        yield Path.home().resolve()
    for user in {os.getuid(), tree.stat().st_uid}:
        with suppress(KeyError):
            yield Path(pwd.getpwuid(user).pw_dir).resolve()
