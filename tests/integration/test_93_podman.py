"""The docker runtime on Podman, whose socket speaks Docker's API."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Rbuild
from .engine import ROOT, Engine, PodmanEngine
from .test_91_docker import INSIDE, none_left, running, slow_module

__all__ = ["slow_module"]

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(
        None in {shutil.which("podman"), shutil.which("runc")}, reason="needs podman and runc"
    ),
]
DOCKER = ("--runtime", "docker")
PROCESSES = 32768
"""What Podman itself allows; where it lacks CAP_SYS_RESOURCE it can't give a container more."""


@pytest.fixture(scope="module")
def podman() -> Iterator[Engine]:
    before = resource.getrlimit(resource.RLIMIT_NPROC)
    wanted = min(PROCESSES, *(one for one in before if one >= 0))
    made = PodmanEngine(Path(tempfile.mkdtemp(prefix="rbuild-podman-", dir=ROOT)))
    resource.setrlimit(resource.RLIMIT_NPROC, (wanted, before[1]))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", made.host)
            made.start()
            yield made
            made.stop()
    finally:
        made.remove()
        resource.setrlimit(resource.RLIMIT_NPROC, before)


def limited() -> list[str]:
    return ["prlimit", f"--nproc={PROCESSES}:{PROCESSES}"]


def test_a_module_is_the_same_bytes(rbuild: Rbuild, podman: Engine, rust_stranger: Path) -> None:
    usual = rbuild("--json", "module", rust_stranger).json["artefacts"][0]
    source = rust_stranger / "stranger.rs"
    source.write_text(source.read_text() + "// changed\n")
    words = ("--json", "module", *DOCKER, "--memory", "2g", rust_stranger)
    made = rbuild(*words, prefix=limited()).json
    assert not made["phases"][-1]["cached"]
    assert made["artefacts"][0]["sha256"] == usual["sha256"]
    assert none_left(podman)


def test_a_container_is_shut_off(rbuild: Rbuild, podman: Engine) -> None:
    words = ("-q", "shell", *DOCKER, "--", "sh", "-c", INSIDE)
    seen = rbuild(*words, prefix=limited()).out.split("\n")
    assert [word.strip() for word in seen if word] == [
        str(os.getuid()), "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "lo", "tmp works", "rbuild",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_it_is_ended(
    rbuild: Rbuild, podman: Engine, slow_module: Path, number: signal.Signals
) -> None:
    child = subprocess.Popen(
        [*limited(), *rbuild.argv("module", *DOCKER, slow_module)],
        env=rbuild.env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert running(podman)
    time.sleep(1)
    child.send_signal(number)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == (-number if number is signal.SIGKILL else 130), out
    assert none_left(podman)
