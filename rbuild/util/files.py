"""Files written aside and renamed, as JSON too, and brought to the disk where it counts."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rbuild.errors import InfrastructureError, ProcessFailed
from rbuild.util.host import realm
from rbuild.util.walk import VANISHED


def sync_path(path: Path) -> None:
    """Bring a file's content, or the names in a folder, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sync_below(folder: Path) -> None:
    """Bring all that was written below a folder to the disk.

    That is one syncfs(2) of its file system: fsync(2) of each of a tree's 90 000 files takes
    minutes.  Raises InfrastructureError if the disk fails.
    """
    from rbuild.util import process  # noqa: PLC0415 - not needed to show help

    try:
        process.run(["sync", "--file-system", folder])
    except ProcessFailed as error:
        raise InfrastructureError(
            f"Syncing {folder} to disk failed.",
            detail=error.detail,
            hint="Check the disk and dmesg.",
        ) from error


ABANDONED_S = 60.0
"""After how long a file is taken for abandoned that a process of another machine, or of another
container, writes aside: whether that still runs can't be seen from here."""

ASIDE = re.compile(r"\.rbuild-([0-9a-f]{12})-([0-9]{1,9})-[0-9a-f]{16}")
"""The name of a file that is written aside: where its process runs (``realm``), and its number."""


def write_text(path: Path, text: str, *, synced: bool = False) -> None:
    """Write a text as ``written`` writes a file."""
    with written(path, synced=synced) as file:
        file.write(text.encode("utf-8"))


@contextmanager
def written(path: Path, *, synced: bool = False) -> Iterator[IO[bytes]]:
    """Have a new file to write to while the body runs, which is then renamed to ``path``.

    A reader never sees half of it, and what had the name stays if it can't be written; with
    ``synced`` that holds after a power cut as well.  A link there is replaced, not followed; its
    mode is the umask's.  What processes that were killed meanwhile have left aside is removed.
    Raises OSError, which names ``path``.
    """
    # By its descriptor: another may be put in the folder's place, where others may write.
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    aside = f".rbuild-{realm()}-{os.getpid()}-{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        _remove_abandoned(path.parent, folder)
        with os.fdopen(os.open(aside, flags, 0o666, dir_fd=folder), "wb") as file:
            yield file
            if synced:
                file.flush()
                os.fsync(file.fileno())
        os.replace(aside, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        if synced:
            sync_path(path.parent)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(aside, dir_fd=folder)
        if isinstance(error, OSError) and error.filename in {None, aside}:
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        os.close(folder)


def _remove_abandoned(path: Path, folder: int) -> None:
    """Remove what killed processes have left aside in a folder, as far as that is allowed."""
    here = realm()
    with suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            match = ASIDE.fullmatch(entry.name)
            if match is None:
                continue
            with suppress(OSError):
                if match[1] == here:
                    is_abandoned = not _is_alive(int(match[2]))
                else:
                    age_s = time.time() - entry.stat(follow_symlinks=False).st_mtime
                    is_abandoned = age_s > ABANDONED_S
                if is_abandoned:
                    os.unlink(entry.name, dir_fd=folder)


def _is_alive(number: int) -> bool:
    """Tell whether this host has a process of that number."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def write_json(path: Path, data: Any, *, synced: bool = False) -> None:  # noqa: ANN401
    """Write JSON as ``write_text`` writes a text."""
    text = json.dumps(data, indent=2, sort_keys=True, default=str) + "\n"
    write_text(path, text, synced=synced)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if it isn't there or isn't one.

    Raises OSError if it can't be read.
    """
    try:
        data = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return None
    except OSError as error:
        if error.errno in VANISHED | {errno.EISDIR, errno.ENAMETOOLONG}:
            return None
        raise
    return data if isinstance(data, dict) else None
