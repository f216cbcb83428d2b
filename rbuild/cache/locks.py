"""Locks of cache entries, and shared locks that keep a folder from being removed.

All are flock(2) locks: they die with their process.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rbuild.cache.entry import Entry


def lock_file(entry: Entry) -> Path:
    """Return the file that an entry's lock is on."""
    return entry.path.with_name(f".{entry.name}.lock")


def is_locked(entry: Entry) -> bool:
    """Tell, without waiting or writing, whether somebody holds the entry's lock."""
    try:
        file = os.open(lock_file(entry), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False


@contextmanager
def use(folder: Path) -> Iterator[None]:
    """Keep a folder, such as a run's, from being removed while it is used."""
    held = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(held, fcntl.LOCK_SH)
        yield
    finally:
        os.close(held)


def in_use(folder: Path) -> bool:
    """Tell, without waiting, whether somebody uses a folder (see ``use``)."""
    with suppress(FileNotFoundError):
        held = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(held)
    return False
