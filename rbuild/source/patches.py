"""Patches of kernel sources: which series, and how one is applied."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rbuild.errors import BuildFailed
from rbuild.provision.prepared import PreparedEnvironment
from rbuild.sandbox.runtime import SRC, Bind, Job
from rbuild.source.tree import kernel_version
from rbuild.util import data


def patches_for(version: str) -> list[Path]:
    """Return our patches for a kernel version, in the order of their names.

    They are those of the nearest version that has any.
    """
    folder = data.folder("module") / "patches"
    series = nearest_series(version, [path.name for path in folder.iterdir() if path.is_dir()])
    return [] if series is None else sorted((folder / series).glob("*.patch"))


def nearest_series(version: str, series: Sequence[str]) -> str | None:
    """Return the X.Y of ``series`` that is the fewest releases away from a kernel version.

    Of two that are as near it is the older, since a kernel rarely loses what patches build upon.
    """
    known = sorted((number, name) for name in series if (number := _release(name)) is not None)
    wanted = _release(".".join(version.split(".")[:2])) or 0
    return min(known, key=lambda one: abs(one[0] - wanted), default=(0, None))[1]


def _release(series: str) -> int | None:
    """Return the number of a release: of each X since 3 there were 20, give or take one."""
    found = re.fullmatch(r"([0-9]{1,5})\.([0-9]{1,5})(?:-.*)?", series)
    return None if found is None else 20 * int(found[1]) + int(found[2])


def apply_patch(path: Path, target: Path, ready: PreparedEnvironment) -> None:
    """Apply one patch, whole and without fuzz; one that is in the tree already is left alone.

    Raises BuildFailed naming the patch and the hunks that don't apply.
    """
    inside = f"/tmp/{path.name}"  # noqa: S108 - in the sandbox
    binds = (Bind(path, inside), Bind(target, SRC, True))
    words = ["patch", "-p1", "--batch", "--fuzz=0", "--no-backup-if-mismatch", "-i", inside]
    dry = [*words, "--dry-run"]
    tried = ready.runtime.run(ready.sandbox, Job([*dry, "--forward"], binds, SRC), check=False)
    if tried.returncode == 0:
        ready.runtime.run(ready.sandbox, Job([*words, "--forward"], binds, SRC))
        return
    back = ready.runtime.run(ready.sandbox, Job([*dry, "--reverse"], binds, SRC), check=False)
    if back.returncode != 0:
        raise BuildFailed(
            f"The patch {path.parent.name}/{path.name} does not apply to Linux "
            f"{kernel_version(target)}.",
            detail="\n".join(failed_hunks(path.read_text(), tried.tail) or tried.tail),
            hint="`patches: false` in the profile leaves our patches out; the Rust driver needs "
            "them.",
        )


CHECKING = re.compile(r"(?:checking|patching) file '?([^']*?)'?(?: \(.*)?")

FAILED = re.compile(r"Hunk #(\d+) (?:FAILED|ignored) at (\d+)")

MISSING = re.compile(r"(?:can't find file to patch at input line|The next patch would).*")


def failed_hunks(patch: str, said: Sequence[str]) -> list[str]:
    """Return, of what patch(1) said, which hunks don't apply: file, number and line.

    Each is found in the patch, too, so that it can be looked at.
    """
    found, file = [], ""
    for line in said:
        if name := CHECKING.fullmatch(line):
            file = name[1]
        elif hunk := FAILED.match(line):
            number, at = int(hunk[1]), hunk[2]
            where = _hunk_line(patch, file, number)
            there = f" (line {where} of the patch)" if where else ""
            found.append(f"{file}: hunk {number} fails at line {at}{there}")
        elif MISSING.match(line):
            found.append(line)
    return found


def _hunk_line(patch: str, file: str, number: int) -> int:
    """Return the line of a patch at which a file's n-th hunk begins; 0 if it isn't found."""
    here, count = False, 0
    for position, line in enumerate(patch.splitlines(), 1):
        if line.startswith("+++ "):
            here, count = line[4:].split("\t")[0].partition("/")[2] == file, 0
        elif here and line.startswith("@@ "):
            count += 1
            if count == number:
                return position
    return 0
