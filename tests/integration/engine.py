"""A real Docker engine for the tests: on a socket of its own, with nothing of the host's."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

STARTS_WITHIN_S = 60


@dataclass
class Engine:
    """A running dockerd; ``prefix`` stands before it, such as to give it other mounts."""

    folder: Path
    prefix: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """What DOCKER_HOST must be for it."""
        return f"unix://{self.folder}/docker.sock"

    @property
    def client(self) -> Any:
        import docker

        return docker.DockerClient(base_url=self.host, timeout=120)

    def start(self) -> None:
        # Without a network of its own it leaves the host's as it is.
        words = [*self.prefix, "dockerd", "-H", self.host, "--data-root", self.folder / "data"]
        words += ["--exec-root", self.folder / "exec", "--pidfile", self.folder / "pid"]
        words += ["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none"]
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            [*map(str, words), "--storage-driver=overlay2"], stdout=log, stderr=log
        )
        for _ in range(STARTS_WITHIN_S * 10):
            with contextlib.suppress(Exception):
                self.client.ping()
                return
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.1)
        raise AssertionError((self.folder / "log").read_text())

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

    def remove(self) -> None:
        """Leave nothing of it: neither mounts, nor control groups, nor files."""
        netns = self.folder / "exec/netns/default"
        subprocess.run(["umount", str(netns)], capture_output=True)
        for group in Path("/sys/fs/cgroup").glob("*/docker"):
            with contextlib.suppress(OSError):
                group.rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A real engine for the whole session, where dockerd is installed and this is root."""
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        pytest.skip("needs dockerd (apt-get install docker.io) and root")
    # Not below pytest's folders: a socket's path must be short.
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    made = Engine(folder)
    try:
        made.start()
        yield made
        made.stop()
    finally:
        made.remove()
