"""Single packages, downloaded by an environment's own apt, which checks their signatures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rbuild.errors import InfrastructureError, ProcessFailed
from rbuild.provision import Ready
from rbuild.sandbox import MODULE, Bind, Job

DOWNLOAD = """\
set -e
mkdir -p lists/partial cache/archives/partial
options="-o Dir::State::Lists=$PWD/lists -o Dir::Cache=$PWD/cache -o APT::Sandbox::User=root"
[ -z "$2" ] || options="$options -o APT::Architecture=$2 -o APT::Architectures=$2"
apt-get -q $options update
apt-get -q $options download "$1"
rm -r lists cache
"""


def download(
    package: str,
    folder: Path,
    ready: Ready,
    tell: Callable[[str], None],
    *,
    architecture: str = "",
    hint: str | None = None,
) -> None:
    """Download a package of the environment's suite into an empty folder.

    ``architecture`` is Debian's name of another architecture than the rootfs's.  Raises
    InfrastructureError where the suite has no such package (with ``hint``), or no mirror answers.
    """
    binds = [Bind(folder, MODULE, writable=True), *resolver()]
    argv = ["bash", "-c", DOWNLOAD, "download", package, architecture]
    job = Job(argv, binds, MODULE, network=True)
    try:
        ready.runtime.run(ready.sandbox, job, on_line=tell)
    except ProcessFailed as error:
        detail = "\n".join(error.tail[-6:])
        if "Unable to locate package" in detail or "has no installation candidate" in detail:
            suite = ready.environment.base.definition.suite
            raise InfrastructureError(
                f"Debian {suite} has no package {package}.", detail=detail, hint=hint
            ) from error
        raise InfrastructureError(
            f"{package} could not be downloaded.",
            detail=detail,
            hint="Check the network, the mirror and the free space, then run it again.",
        ) from error


def resolver() -> list[Bind]:
    """Return the host's resolv.conf as a bind, for a job with a network; none if it has none."""
    path = Path("/etc/resolv.conf")
    return [Bind(path.resolve(), str(path))] if path.exists() else []
