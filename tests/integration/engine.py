"""Real Docker engines for the tests: on sockets of their own, with nothing of the host's.

One sees this host's files, the other doesn't, as if it were on another machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rbuild.sandbox.docker.runtime import Docker
from rbuild.sandbox.docker.synced import Traffic
from rbuild.sandbox.docker.transport import FileTransport
from rbuild.sandbox.docker.volumes import Volumes

ROOT = Path("/var/tmp")
"""Where engines keep their files: nothing of the tests' or of a cache is there."""

HIDDEN = """\
for folder in $1; do mount -t tmpfs tmpfs "$folder" || exit; done
shift
exec "$@"
"""

FAR = """\
set -e
mount -t tmpfs tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mount --rbind /dev dev
mount -t proc proc proc
mount -t tmpfs tmpfs run
mkdir -p run/sshd root/.ssh
touch run/docker.sock usr/bin/docker
mount --bind "$4" run/docker.sock
mount --bind "$5" usr/bin/docker
cp "$3/key.pub" root/.ssh/authorized_keys
install -m 600 "$3/host-key" run/host-key
exec chroot . /usr/sbin/sshd -D -e -p "$6" -h /run/host-key -o ListenAddress=127.0.0.1 \\
    -o StrictModes=no -o UsePAM=no
"""
"""A machine with an sshd and the docker command, whose engine is the one of the socket."""


@dataclass
class Engine:
    """A dockerd: where it keeps its files, and which of the host's folders are empty for it.

    With a ``port`` it listens there, too, by TLS.
    """

    folder: Path
    hidden: tuple[Path, ...] = ()
    port: int | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "docker.sock"

    @property
    def host(self) -> str:
        """What DOCKER_HOST must be for it."""
        return f"unix://{self.socket}"

    @property
    def certificates(self) -> Path:
        return self.folder / "certificates"

    @property
    def client(self) -> Any:
        import docker

        return docker.DockerClient(base_url=self.host, timeout=120)

    def start(self) -> None:
        # Without a network of its own it leaves the host's as it is.
        options = {
            "host": self.host,
            "data-root": self.folder / "data",
            "exec-root": self.folder / "exec",
            "pidfile": self.folder / "pid",
            "storage-driver": "overlay2",
            "bridge": "none",
            "iptables": "false",
            "ip6tables": "false",
            "ip-forward": "false",
        }
        words = ["dockerd", *(f"--{name}={value}" for name, value in options.items())]
        if self.port is not None:
            if not self.certificates.exists():
                self.certificates.mkdir()
                certify(self.certificates)
            words += [f"--host=tcp://127.0.0.1:{self.port}", "--tlsverify"]
            for name, file in (("cacert", "ca"), ("cert", "server"), ("key", "server-key")):
                words.append(f"--tls{name}={self.certificates}/{file}.pem")
        if self.hidden:
            apart = ["unshare", "--mount", "--propagation", "private", "sh", "-c", HIDDEN, "hidden"]
            words = [*apart, " ".join(map(str, self.hidden)), *words]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(self.answers, self.process, self.folder / "log")

    def answers(self) -> bool:
        with contextlib.suppress(Exception):
            self.client.ping()
            return True
        return False

    def stop(self) -> None:
        assert self.process is not None
        with contextlib.suppress(Exception):
            for one in self.containers():
                self.client.api.remove_container(one["Id"], force=True)
        self.process.terminate()
        self.process.wait(timeout=60)

    def containers(self) -> list[dict[str, Any]]:
        """Return all containers, running or not."""
        return list(self.client.api.containers(all=True))

    def inspected(self, name: str) -> str:
        """Return all that the engine tells of a container, as JSON; nothing if it is gone."""
        with contextlib.suppress(Exception):
            return json.dumps(self.client.api.inspect_container(name))
        return ""

    def remove(self) -> None:
        """Leave nothing of it: neither mounts, nor control groups, nor files."""
        if not self.hidden:  # else it was in a namespace that is gone
            subprocess.run(["umount", self.folder / "exec/netns/default"], capture_output=True)
        for group in Path("/sys/fs/cgroup").glob("*/docker"):
            with contextlib.suppress(OSError):
                group.rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class PodmanEngine(Engine):
    """Podman's service, which speaks Docker's API."""

    def start(self) -> None:
        # As a host without CAP_SYS_RESOURCE, or with cgroups of both versions, needs it.
        soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        (self.folder / "containers.conf").write_text(
            f'[containers]\ndefault_ulimits = ["nproc={soft}:{hard}"]\n'
        )
        (self.folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\nrunroot = "{self.folder}/exec"\n'
            f'graphroot = "{self.folder}/data"\n'
        )
        words = ["podman", "--cgroup-manager=cgroupfs", "--runtime=runc", "system", "service"]
        configured = {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
        }
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*words, "--time=0", self.host],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **configured},
            )
        wait_for(self.answers, self.process, self.folder / "log")

    def remove(self) -> None:
        subprocess.run(["umount", self.folder / "data/overlay"], capture_output=True)
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def running_engine(*hidden: Path, port: int | None = None) -> Iterator[Engine]:
    # Not below pytest's folders: a socket's path must be short.
    made = Engine(Path(tempfile.mkdtemp(prefix="rbuild-engine-", dir=ROOT)), hidden, port)
    try:
        made.start()
        yield made
    finally:
        if made.process is not None:
            made.stop()
        made.remove()


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A real engine for the whole session, where dockerd is installed and this is root."""
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        pytest.skip("needs dockerd (apt-get install docker.io) and root")
    with running_engine() as made:
        yield made


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(true: Callable[[], bool], child: subprocess.Popen[Any], log: Path) -> None:
    for _ in range(1200):
        if true():
            return
        assert child.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def certify(folder: Path) -> None:
    """Make a CA, a certificate of a server at 127.0.0.1 and one of a client, as docker's names."""

    def openssl(*words: str | Path) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)

    key = ("-newkey", "rsa:2048", "-nodes", "-days", "2")
    authority = ("-keyout", "ca-key.pem", "-out", "ca.pem", "-subj", "/CN=test CA")
    openssl("req", "-x509", *key, *authority)
    for name, key_name, extension in (
        ("server", "server-key", "subjectAltName=IP:127.0.0.1"),
        ("cert", "key", "extendedKeyUsage=clientAuth"),
    ):
        (folder / "extensions").write_text(extension + "\n")
        openssl("req", *key[:3], "-keyout", f"{key_name}.pem", "-out", "csr", "-subj", "/CN=test")
        signed = ("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2")
        openssl(
            *("x509", "-req", "-in", "csr", *signed, "-out", f"{name}.pem"),
            *("-extfile", "extensions"),
        )


@contextlib.contextmanager
def ssh_host(here: Engine, root: Path, folder: Path) -> Iterator[int]:
    """Run an sshd on loopback whose machine has the engine; yield its port.

    ``folder`` then has an ``ssh`` that knows its keys.
    """
    docker = shutil.which("docker")
    assert docker is not None
    for name in ("key", "host-key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
        )
    port = free_port()
    known = (folder / "host-key.pub").read_text()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {known}")
    (folder / "config").write_text(
        f"IdentityFile {folder}/key\nIdentitiesOnly yes\nBatchMode yes\n"
        f"UserKnownHostsFile {folder}/known\nStrictHostKeyChecking yes\n"
    )
    (folder / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    (folder / "ssh").chmod(0o755)
    (folder / "mount").mkdir()
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", FAR, "far"]
    words = [root, folder / "mount", folder, here.socket, docker, port]
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(
            [*apart, *map(str, words)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        wait_for(lambda: "listening on" in (folder / "log").read_text(), child, folder / "log")
        yield port
    finally:
        child.kill()
        child.wait()


@dataclass
class Recorded(Docker):
    """The docker runtime, which tells of each job what went to the engine and came from it."""

    journeys: list[Traffic] = field(default_factory=list)

    def _transport(self, name: str, platform: str) -> FileTransport:
        found = super()._transport(name, platform)
        assert isinstance(found, Volumes)
        self.journeys.append(found.traffic)
        return found
