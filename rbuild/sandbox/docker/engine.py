"""A Docker engine: reached through the SDK, told apart from others, its errors explained.

The engine is the one that Docker's own variables name (``DOCKER_HOST``, ``DOCKER_TLS_VERIFY``,
``DOCKER_CERT_PATH``), else the one on the usual socket.  Podman's socket speaks the same API.
"""

from __future__ import annotations

import os
import re
import resource
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbuild.cache.directory import Cache
from rbuild.errors import InfrastructureError, MissingDependency, UsageError
from rbuild.sandbox.docker.tunnel import tunnel
from rbuild.util import data
from rbuild.util.host import machine_id

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.types import Mount

OURS = "rbuild"
"""The label of everything that rbuild makes on an engine."""

JOB, PASSING = "job", "passing"
"""What that label says of a container, and of an image that is needed for a moment only."""

TIMEOUT_S = 600
"""How long the engine may take to answer: the removal of a large image takes a while."""

REMEDIES = {
    "CERTIFICATE_VERIFY_FAILED|doesn't match": "Its certificate must be of the CA in "
    "DOCKER_CERT_PATH/ca.pem, and for the name that DOCKER_HOST has (subjectAltName).",
    "alert|certificate required|bad certificate": "DOCKER_CERT_PATH must have a cert.pem and "
    "key.pem of the CA that dockerd has as --tlscacert.",
    "HTTP request to an HTTPS server": "It wants TLS: set DOCKER_TLS_VERIFY=1 and "
    "DOCKER_CERT_PATH.",
    "WRONG_VERSION_NUMBER|record layer failure": "It speaks no TLS there: unset "
    "DOCKER_TLS_VERIFY, or start dockerd with --tlsverify.",
    "TLS|SSL|certificate": "DOCKER_CERT_PATH must have the ca.pem of whoever signed the engine's "
    "certificate, and a cert.pem and key.pem that the engine trusts.",
}
"""What in an engine's or the SDK's words calls for which remedy; the first that fits counts."""

LOOK_S = 5
"""How long it may take where rbuild only looks whether there is one."""

CANNOT_RUN = re.compile(r"exec format error", re.I)
LIMITS_REFUSED = re.compile(r"range of CPUs is|minimum memory limit", re.I)


@dataclass(frozen=True)
class Owner:
    """The process that a container belongs to, so that others can tell whether it still runs.

    ``machine`` and ``boot`` name the host and its present boot, ``started`` is the process's start
    time in clock ticks after it (proc_pid_stat(5), field 22).
    """

    machine: str
    boot: str
    pid: int
    started: str

    @staticmethod
    def this() -> Owner:
        """Return the owner of what this process makes."""
        pid = os.getpid()
        return Owner(_machine(), _boot(), pid, _started(pid) or "")

    @staticmethod
    def from_labels(labels: dict[str, str]) -> Owner | None:
        """Return the owner that a container's labels name, if they do."""
        try:
            return Owner(
                labels["rbuild.machine"],
                labels["rbuild.boot"],
                int(labels["rbuild.pid"]),
                labels["rbuild.started"],
            )
        except (KeyError, ValueError):
            return None

    def labels(self, kind: str = JOB) -> dict[str, str]:
        """Return the labels of what this owner makes, and which kind of thing it is."""
        return {
            OURS: kind,
            "rbuild.machine": self.machine,
            "rbuild.boot": self.boot,
            "rbuild.pid": str(self.pid),
            "rbuild.started": self.started,
        }

    @property
    def is_gone(self) -> bool:
        """Whether it was a process of this host, and runs no more."""
        if self.machine != _machine():
            return False
        return self.boot != _boot() or _started(self.pid) != self.started


def _machine() -> str:
    """Return a name of this host that doesn't tell its machine-id(5)."""
    return machine_id() or os.uname().nodename


def _boot() -> str:
    """Return a name of this boot, and of the PID namespace that pids of this process are of."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"


def _started(pid: int) -> str | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command's name, in parentheses, may hold anything.
    return text.rpartition(")")[2].split()[19]


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn the SDK's exceptions into errors that say what to do about them."""
    from docker.errors import APIError, DockerException  # noqa: PLC0415 - the SDK loads slowly
    from requests.exceptions import RequestException  # noqa: PLC0415

    try:
        yield
    except APIError as error:
        words = str(error.explanation or error)
        if "HTTP request to an HTTPS server" in words:
            raise unreachable(error) from error
        if CANNOT_RUN.search(words):
            raise cannot_run() from error
        if LIMITS_REFUSED.search(words):
            raise UsageError(
                f"The Docker engine can't keep the limits: {words.strip()}",
                hint="--cpus and --memory set them.",
            ) from error
        raise InfrastructureError(f"The Docker engine can't {what}: {words.strip()}") from error
    except (DockerException, RequestException, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # a file of this host, not the connection
        raise unreachable(error) from error


def cannot_run() -> MissingDependency:
    """Return the error of an engine that doesn't emulate the architecture of a rootfs."""
    return MissingDependency(
        "The Docker engine can't run programs of that architecture: no emulator is registered.",
        hint=f"Where the engine runs on this host, `{data.as_root('doctor --fix')}` registers QEMU "
        "(with the flag F); in a virtual machine or on another host, install qemu-user-static "
        "there.",
    )


def unreachable(error: Exception) -> MissingDependency:
    """Return the error of an engine that doesn't answer, or not to this user."""
    host = os.environ.get("DOCKER_HOST")
    where = f"at DOCKER_HOST={host}" if host else "on this host's socket"
    words = str(error)
    if "Permission" in words:
        return MissingDependency(
            f"This user may not talk to the Docker engine {where}.",
            detail=words,
            hint="Add the user to the group docker (which is as good as being root), or take "
            "--runtime bwrap, which needs no daemon.",
        )
    for pattern, hint in REMEDIES.items():
        if re.search(pattern, words):
            return MissingDependency(
                f"The Docker engine {where} refuses, or isn't what it should be.",
                detail=words,
                hint=hint,
            )
    if host is not None and host.startswith("ssh://"):
        return MissingDependency(
            f"The Docker engine {where} can't be reached.",
            detail=words,
            hint="ssh connects; the user there must be allowed to use /var/run/docker.sock, or "
            "DOCKER_HOST must name another: ssh://HOST/run/user/1000/docker.sock.",
        )
    return MissingDependency(
        f"No Docker engine answers {where}.",
        detail=words,
        hint="Start one (apt-get install docker.io), name one with DOCKER_HOST, or take "
        "--runtime bwrap, which needs no daemon.",
    )


def connect(timeout_s: float = TIMEOUT_S) -> DockerClient:
    """Return a client of the engine; raises MissingDependency where none answers in time."""
    try:
        import docker  # noqa: F401, PLC0415 - the SDK loads slowly
    except ImportError as error:
        raise MissingDependency(
            "The Docker SDK for Python is not installed.", hint="pip install docker"
        ) from error
    place = os.environ.get("DOCKER_HOST", "")
    with ExitStack() as stack:
        behind = place.startswith("ssh://")
        near = stack.enter_context(tunnel(place, timeout_s)) if behind else None
        with explained("be reached"):
            client = _client(near, timeout_s)
            client.ping()
        # The way to it lasts as long as the client.
        weakref.finalize(client, stack.pop_all().close)
    return client


def _client(near: str | None, timeout_s: float) -> DockerClient:
    """Return a client of the engine at ``near``, else of the one that the variables name."""
    import docker  # noqa: PLC0415 - the SDK loads slowly

    if near is not None:
        return docker.DockerClient(base_url=near, timeout=timeout_s)
    version = _version(timeout_s) if os.environ.get("DOCKER_TLS_VERIFY") else None
    client = docker.from_env(version=version, timeout=timeout_s)
    if version is not None:
        client.api.trust_env = False
    return client


def _version(timeout_s: float) -> str:
    """Return the API version of an engine behind TLS.

    A REQUESTS_CA_BUNDLE, as hosts with a CA of their own set it, would stand in for the engine's
    ca.pem, also while the SDK asks for the version by itself.
    """
    import docker  # noqa: PLC0415 - the SDK loads slowly
    from docker.constants import MINIMUM_DOCKER_API_VERSION  # noqa: PLC0415

    client = docker.from_env(version=MINIMUM_DOCKER_API_VERSION, timeout=timeout_s)
    try:
        client.api.trust_env = False
        return str(client.version(api_version=False)["ApiVersion"])
    finally:
        client.close()


def tried(
    client: DockerClient,
    image: str,
    command: Sequence[str],
    platform: str,
    mounts: Sequence[Mount] = (),
) -> tuple[int, str]:
    """Return the status and the output of a container that only tries something, and is gone then.

    Raises the SDK's exceptions: what failed tells the caller something.
    """
    api = client.api
    made = api.create_container(
        image,
        list(command),
        user=f"{os.getuid()}:{os.getgid()}",
        platform=platform,
        labels=Owner.this().labels(),
        network_disabled=True,
        host_config=api.create_host_config(
            mounts=list(mounts), network_mode="none", cap_drop=["ALL"], ulimits=ulimits()
        ),
    )
    try:
        api.start(made["Id"])
        status = int(api.wait(made["Id"])["StatusCode"])
        return status, api.logs(made["Id"]).decode(errors="replace")
    finally:
        api.remove_container(made["Id"], force=True)


def ulimits() -> list[dict[str, Any]]:
    """Return limits that a process of this host has, too.

    Some programs go through all the files that they might have open, and an engine that may not
    raise limits (Podman where it lacks CAP_SYS_RESOURCE) can't start a container with its own.
    """
    kinds = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    found = {name: resource.getrlimit(kind) for name, kind in kinds.items()}
    return [{"Name": name, "Soft": soft, "Hard": hard} for name, (soft, hard) in found.items()]


def remove_orphans(client: DockerClient) -> int:
    """Remove what rbuilds of this host that run no more have left: containers, passing images.

    Returns how many.
    """
    api = client.api
    containers = api.containers(all=True, filters={"label": f"{OURS}={JOB}"})
    images = api.images(filters={"label": f"{OURS}={PASSING}"})

    def remove(name: str) -> None:
        api.remove_container(name, force=True, v=True)

    # Containers come first: an image that one has can't be removed.
    return _remove_orphans(containers, remove) + _remove_orphans(images, api.remove_image)


def _remove_orphans(found: Sequence[Mapping[str, Any]], remove: Callable[[str], None]) -> int:
    from docker.errors import DockerException  # noqa: PLC0415 - the SDK loads slowly

    removed = 0
    for one in found:
        owner = Owner.from_labels(one.get("Labels") or {})
        if owner is None or not owner.is_gone:
            continue
        try:
            remove(one["Id"])
        except DockerException:
            continue  # gone meanwhile, or another rbuild removes it
        removed += 1
    return removed


ENGINES = "engines.json"
"""In the cache: what is known of each engine that was used with it."""


def engine_of(cache: Cache) -> DockerClient | None:
    """Return the client of an engine that may have something of this cache's; None if none has."""
    if not (cache.root / ENGINES).exists():
        return None
    try:
        return connect()
    except MissingDependency as error:
        cache.console.note(f"The images of the Docker engine were not looked at: {error.message}")
        return None
