"""Single packages, downloaded by an environment's own apt, which checks their signatures."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rbuild.errors import InfrastructureError, ProcessFailed
from rbuild.provision.prepared import PreparedEnvironment
from rbuild.sandbox.runtime import MODULE, Bind, Job

SETUP = """\
set -e -o pipefail
package=$1 architecture=$2 suite=$3
mkdir -p lists/partial cache/archives/partial
options="-o Dir::State::Lists=$PWD/lists -o Dir::Cache=$PWD/cache -o APT::Sandbox::User=root"
options="$options -o Acquire::Languages=none"
if [ -n "$architecture" ]; then
    options="$options -o APT::Architecture=$architecture -o APT::Architectures=$architecture"
fi
if [ -n "$suite" ]; then
    # On the mirror that the rootfs itself came from.
    sed -n 's|^deb \\(\\[[^]]*\\] \\)\\{0,1\\}\\([^ ]*\\) .*|deb \\1\\2 '"$suite"' main|p' \
        /etc/apt/sources.list | head -n 1 > sources.list
    options="$options -o Dir::Etc::SourceList=$PWD/sources.list -o Dir::Etc::SourceParts=/dev/null"
fi
# By itself, apt takes a mirror that does not answer for an empty one.
apt-get -q $options --error-on=any update
"""

DOWNLOAD = f"""\
{SETUP}
apt-get -q $options download -- "$package"
rm -rf lists cache sources.list
"""

LIST = f"""\
{SETUP}
names=$(apt-cache $options pkgnames -- "$package")
[ -z "$names" ] || apt-cache $options madison -- $names
rm -rf lists cache sources.list
"""

ROW = re.compile(r"^ *([a-z0-9][a-z0-9.+-]+) \| +(\S+) \| ")
"""A line of ``apt-cache madison``: a package, one of its versions, and where it is from."""


@dataclass(frozen=True)
class Package:
    """A package and one of its versions."""

    name: str
    version: str


def download(
    package: str,
    folder: Path,
    ready: PreparedEnvironment,
    tell: Callable[[str], None],
    *,
    architecture: str = "",
    suite: str = "",
    hint: str | None = None,
) -> None:
    """Download a package, or with ``=`` a version of it, into an empty folder.

    ``architecture`` is Debian's name of another architecture than the rootfs's, ``suite`` another
    suite.  Raises InfrastructureError where the suite has no such package (with ``hint``), or no
    mirror answers.
    """
    try:
        _run("download", DOWNLOAD, (package, architecture, suite), folder, ready, tell)
    except ProcessFailed as error:
        detail = "\n".join(error.tail[-6:])
        if any(words in detail for words in NOT_THERE):
            suite = suite or ready.environment.base.definition.suite
            raise NoPackage(
                f"Debian {suite} has no package {package}.", detail=detail, hint=hint
            ) from error
        raise InfrastructureError(
            f"{package} could not be downloaded.",
            detail=detail,
            hint="Check the network, the mirror and the free space, then run it again.",
        ) from error


def packages(
    prefix: str, suite: str, folder: Path, ready: PreparedEnvironment, tell: Callable[[str], None]
) -> list[Package]:
    """Return what a suite has of packages whose names begin with ``prefix``, in all versions.

    ``folder`` is an empty one, to work in.  Raises InfrastructureError where no mirror answers.
    """
    try:
        output = _run("list", LIST, (prefix, "", suite), folder, ready, tell)
    except ProcessFailed as error:
        raise InfrastructureError(
            f"The packages of Debian {suite} could not be listed.",
            detail="\n".join(error.tail[-6:]),
            hint="Check the network and the mirror, then run it again.",
        ) from error
    rows = (ROW.match(line) for line in output.splitlines())
    return [Package(row[1], row[2]) for row in rows if row is not None]


NOT_THERE = ("Unable to locate package", "has no installation candidate", "was not found")
"""What apt says of a package, or of a version, that no source has."""


class NoPackage(InfrastructureError):  # noqa: N818 - reads as what happened
    """A suite has no such package, or no longer that version."""


def _run(
    name: str,
    script: str,
    words: tuple[str, ...],
    folder: Path,
    ready: PreparedEnvironment,
    tell: Callable[[str], None],
) -> str:
    binds = [Bind(folder, MODULE, writable=True), *resolver()]
    job = Job(["bash", "-c", script, name, *words], binds, MODULE, network=True)
    return ready.runtime.run(ready.sandbox, job, on_line=tell).text


NUMBER = re.compile(r"[0-9]{1,18}")
MAX_DIGITS = 1000
"""How many digits of a number in a version count."""


def version_key(version: str) -> tuple[object, ...]:
    """Return what Debian versions compare by (deb-version(7)).

    A tilde sorts before the end, the end before letters, letters before all else; digits compare
    as numbers.
    """
    epoch, colon, rest = version.rpartition(":")
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    number = int(epoch) if colon and NUMBER.fullmatch(epoch) else 0
    return (number, _parts(upstream), _parts(revision))


def _parts(text: str) -> tuple[object, ...]:
    """Return what isn't digits and numbers by turns, from the one to the other at the end."""
    found: list[object] = []
    for word, number in re.findall(r"([^0-9]*)([0-9]*)", text)[:-1]:
        found += [(*map(_rank, word), 0), int(number[:MAX_DIGITS] or 0)]
    return (*found, (0,))


def _rank(character: str) -> int:
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256


def resolver() -> list[Bind]:
    """Return the host's resolv.conf as a bind, for a job with a network; none if it has none."""
    path = Path("/etc/resolv.conf")
    return [Bind(path.resolve(), str(path))] if path.exists() else []
