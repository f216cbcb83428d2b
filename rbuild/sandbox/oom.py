"""Memory that ran out: what the kernel has killed, and how a build's output tells of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

VMSTAT = Path("/proc/vmstat")

KILLED = re.compile(
    r"^Killed\b|: Killed$|: \d+ Killed\b|signal: 9, SIGKILL|terminated by signal 9|Error 137\b|"
    r"unable to execute command: Killed|fatal error: Killed signal"
)
OF_A_SHELL = re.compile(r"\d+ Killed\s+(?:\S*/)?([\w.-]+)")
PROGRAM = re.compile(
    r"(?:^|[\s/`(])(clang|ld\.lld|lld|rustc|bindgen|gcc|cc1|ld|sparse|llvm-\w+|make|sh)\b"
)


def kills() -> int:
    """Return how many processes of this host its kernel has killed for want of memory.

    That is the counter oom_kill of /proc/vmstat (proc(5)), which has those of control groups, too;
    0 where there is none.
    """
    try:
        found = re.search(r"^oom_kill (\d+)$", VMSTAT.read_text(), re.M)
    except OSError:
        return 0
    return 0 if found is None else int(found[1])


def killed(lines: Iterable[str], *, ran_out: bool) -> str | None:
    """Return which program a build's output says was killed, if memory ``ran_out``; else None."""
    if not ran_out:
        return None
    for line in lines:
        if KILLED.search(line):
            found = OF_A_SHELL.search(line) or PROGRAM.search(line)
            return found[1] if found else "a program of it"
    return None
