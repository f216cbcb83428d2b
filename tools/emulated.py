"""Count the processes of a build and their CPU time, per program, from process accounting.

    sudo accton /tmp/acct                      # acct(5); from Debian's package acct
    rbuild kernel --clean --env hybrid --no-ccache
    sudo accton off
    python3 tools/emulated.py /tmp/acct

A program whose name is in the hybrid's definition runs natively, as do LLVM's and those that the
build makes for itself; what is left runs under emulation.
"""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass

TICKS = 100
"""dump-acct(8) prints CPU times in hundredths of a second."""


@dataclass(frozen=True)
class Process:
    """A finished process: its command's first 15 letters, its CPU time and its ids."""

    name: str
    cpu_s: float
    pid: int
    parent: int


def read(path: str) -> list[Process]:
    """Return all processes in an accounting file, in the order in which they ended."""
    text = subprocess.run(
        ["dump-acct", path],  # noqa: S607
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
    ).stdout
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        cpu_s = (float(fields[2]) + float(fields[3])) / TICKS
        found.append(Process(fields[0], cpu_s, int(fields[9]), int(fields[10])))
    return found


def descendants(processes: list[Process], name: str) -> list[Process]:
    """Return the children of the last process of that name, and theirs.

    A process ends before its parent does, so its parent is the next in the file with that id: ids
    are used again.  What outlives its parent is not counted.
    """
    found: list[Process] = []
    inside: dict[int, bool] = {}
    for one in reversed(processes):
        is_root = one.name == name and True not in inside.values()
        is_child = inside.get(one.parent, False)
        if is_child:
            found.append(one)
        inside[one.pid] = is_root or is_child
    return found


def main() -> None:
    """Print a line for each program, the most called first."""
    found = descendants(read(sys.argv[1]), "rbuild")
    calls: dict[str, list[float]] = defaultdict(list)
    for one in found:
        calls[one.name].append(one.cpu_s)
    sys.stdout.write(f"{'':16} {len(found):6} {sum(one.cpu_s for one in found):9.2f} s\n")
    for name, times in sorted(calls.items(), key=lambda item: -len(item[1])):
        sys.stdout.write(f"{name:16} {len(times):6} {sum(times):9.2f} s\n")


if __name__ == "__main__":
    main()
