"""Unpacking what came from elsewhere: in the sandbox, and no more than a kernel's source has.

tar runs where only the target can be written, without capabilities, so that a name with ``..``, an
absolute one or a link that is written through reaches nothing, and a device can't be made.  What it
leaves is then treated as a build's outputs are (see ``outputs``).
"""

from __future__ import annotations

from pathlib import Path

from rbuild.errors import InfrastructureError, ProcessFailed
from rbuild.provision.prepared import PreparedEnvironment
from rbuild.sandbox import outputs
from rbuild.sandbox.runtime import MODULE, SRC, Bind, Job
from rbuild.ui.format import several, size
from rbuild.util import walk

MAX_BYTES = 6 * 1024**3
"""More than this, unpacked, is no kernel's source: Linux 7 has 1.7 GiB."""

MAX_FILE_BYTES = 512 * 1024**2
"""The largest file that may be in it, one with holes too, which takes hardly anything packed."""

UNPACK = """\
set -e -o pipefail
ulimit -f $(($3 / 1024))
case "$(head -c 6 -- "$1" | od -An -tx1 | tr -d ' ')" in
    fd377a585a00) unpack="xz -dc" ;;
    1f8b*) unpack="gzip -dc" ;;
    425a68*) unpack="bzip2 -dc" ;;
    28b52ffd*) unpack="zstd -dc" ;;
    *) unpack="cat" ;;
esac
$unpack -- "$1" | {
    head -c "$2"
    if [ "$(head -c 1 | wc -c)" != 0 ]; then echo "rbuild: too much" >&2; exit 1; fi
} | tar -x --strip-components=1 -C "$4" -f -
"""
"""Unpacks its first argument into its fourth: no more than the second's bytes, of which no file has
more than the third's."""


def unpack(file: Path, target: Path, ready: PreparedEnvironment, name: str) -> None:
    """Unpack a tarball into an empty folder, without its first step of names.

    Raises InfrastructureError for one that is damaged, is too large, or has what no source has.
    """
    job = Job(
        ["bash", "-c", UNPACK, "unpack", file.name, str(MAX_BYTES), str(MAX_FILE_BYTES), SRC],
        (Bind(file.parent, MODULE), Bind(target, SRC, writable=True)),
        MODULE,
    )
    try:
        ready.runtime.run(ready.sandbox, job)
    except ProcessFailed as error:
        raise _explained(error, name) from error
    if faults := [*outputs.sanitise(target), *_linked(target)]:
        raise InfrastructureError(
            f"{name} contains files that rbuild refuses: {several(faults)}.",
            hint="Use another tarball.",
        )


def _linked(target: Path) -> list[str]:
    """Return the names of files that are linked from elsewhere: tar makes links of files, too."""
    inside: dict[int, list[str]] = {}
    links: dict[int, int] = {}
    for visit in walk.walk(target):
        for entry in visit.files:
            status = entry.stat(follow_symlinks=False)
            if status.st_nlink > 1:
                inside.setdefault(status.st_ino, []).append(entry.name)
                links[status.st_ino] = status.st_nlink
    return [
        f"{names[0]!a} is linked from elsewhere"
        for number, names in inside.items()
        if links[number] > len(names)
    ]


def _explained(error: ProcessFailed, name: str) -> InfrastructureError:
    words = "\n".join(error.tail[-6:])
    if "rbuild: too much" in error.tail:
        return InfrastructureError(
            f"{name} unpacks to more than {size(MAX_BYTES)}, which no kernel's source has."
        )
    if "File too large" in words or "Wrote only" in words:
        return InfrastructureError(
            f"{name} has a file of more than {size(MAX_FILE_BYTES)}, which no kernel's source has."
        )
    return InfrastructureError(f"{name} can't be unpacked.", detail=words)
