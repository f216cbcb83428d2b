"""Who holds a lock: the process that has locked a file, as the kernel tells it.

Nothing is written down that a killed process could leave behind: /proc/locks has the flock(2)
locks of the processes that can be seen from here (proc(5)).
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rbuild.ui.format import duration

PROC = Path("/proc")
MAX_COMMAND = 200
"""The characters of a command line that are shown."""


def holder(lock: Path) -> str | None:
    """Return who holds a lock file: a process's number, its command, and since when it runs.

    None if that can't be seen: it may run in another container, or on another machine.
    """
    for number in _holders(lock):
        with suppress(OSError, ValueError, IndexError):
            return f"pid {number}, `{_command(number)}`, since {_since(number)}"
    return None


def _holders(lock: Path) -> Iterator[int]:
    """Yield the processes that have a file locked, and open."""
    with suppress(OSError):
        status = lock.stat()
        for line in (PROC / "locks").read_text().splitlines():
            fields = line.split()
            # A process that waits has an arrow before its kind.
            if fields[1:2] != ["FLOCK"] or not fields[5].endswith(f":{status.st_ino}"):
                continue
            if _has_open(int(fields[4]), status):
                yield int(fields[4])


def _has_open(number: int, status: os.stat_result) -> bool:
    with suppress(OSError):
        for path in (PROC / str(number) / "fd").iterdir():
            with suppress(OSError):
                if os.path.samestat(path.stat(), status):
                    return True
    return False


def _command(number: int) -> str:
    words = (PROC / str(number) / "cmdline").read_bytes().split(b"\0")[:-1]
    texts = [os.fsdecode(word) for word in words]
    # What was typed, not how Python was started: `python -m rbuild`, or a script's path.
    for at, text in enumerate(texts[:3]):
        if Path(text).name == "rbuild" or text.endswith("/rbuild/__main__.py"):
            texts = ["rbuild", *texts[at + 1 :]]
            break
    command = shlex.join(texts)
    return command if len(command) <= MAX_COMMAND else f"{command[:MAX_COMMAND]}..."


def _since(number: int) -> str:
    # The name, in parentheses, may have blanks and parentheses of its own.
    fields = (PROC / str(number) / "stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    uptime = float((PROC / "uptime").read_text().split()[0])
    age = max(0.0, uptime - started)
    moment = time.strftime("%H:%M:%S", time.localtime(time.time() - age))
    return f"{moment} ({duration(age)} ago)"
