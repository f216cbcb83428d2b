"""A Docker engine that shares no files with the tests, as one on another machine."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rbuild.sandbox.carrier import Carrier
from rbuild.sandbox.docker import Docker
from rbuild.sandbox.volumes import Traffic, Volumes

ROOT = Path("/var/tmp")
"""Where an engine keeps its files: nothing of the tests' or of a Store is there."""

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


@dataclass(frozen=True)
class Engine:
    """An engine that runs: its socket, its TLS port, and the folder with its certificates."""

    socket: Path
    port: int
    certificates: Path

    @property
    def place(self) -> str:
        return f"unix://{self.socket}"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def engine(*hidden: Path) -> Iterator[Engine]:
    """Run a dockerd in a mount namespace in which ``hidden`` folders are empty."""
    folder = Path(tempfile.mkdtemp(prefix="rbuild-engine-", dir=ROOT))
    certificates, port = folder / "certificates", free_port()
    certificates.mkdir()
    certify(certificates)
    here = Engine(folder / "docker.sock", port, certificates)
    options = {
        "data-root": folder / "data",
        "exec-root": folder / "exec",
        "pidfile": folder / "dockerd.pid",
        "storage-driver": "overlay2",
        "bridge": "none",
        "iptables": "false",
        "ip6tables": "false",
        "ip-forward": "false",
        "tlsverify": "true",
        "tlscacert": certificates / "ca.pem",
        "tlscert": certificates / "server.pem",
        "tlskey": certificates / "server-key.pem",
    }
    words = ["dockerd", "-H", here.place, "-H", f"tcp://127.0.0.1:{port}"]
    words += [f"--{name}={value}" for name, value in options.items()]
    apart = ["unshare", "--mount", "--propagation", "private", "sh", "-c", HIDDEN, "hidden"]
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(
            [*apart, " ".join(map(str, hidden)), *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(here.socket.exists, child, folder / "log")
        yield here
    finally:
        child.terminate()
        child.wait(timeout=60)
        for group in Path("/sys/fs/cgroup").glob("*/docker"):
            with contextlib.suppress(OSError):
                group.rmdir()
        shutil.rmtree(folder)


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

    def _carrier(self, name: str, platform: str) -> Carrier:
        found = super()._carrier(name, platform)
        assert isinstance(found, Volumes)
        self.journeys.append(found.traffic)
        return found
