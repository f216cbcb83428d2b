"""The docker runtime on a real engine: the same bytes, shut off as well, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbuild.provision.mirrors import host_mirrors
from rbuild.sandbox.docker.image import scratch_dockerfile

from .conftest import Rbuild
from .engine import Engine, engine

__all__ = ["engine"]

DOCKER = ("--runtime", "docker")
GONE_WITHIN_S = 20


@pytest.fixture(scope="module")
def docker(rbuild: Rbuild, engine: Engine) -> Iterator[Rbuild]:
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = engine.host
    try:
        yield rbuild
    finally:
        os.environ.pop("DOCKER_HOST")
        if before is not None:
            os.environ["DOCKER_HOST"] = before


def none_left(engine: Engine) -> bool:
    """Wait until the engine has no container any more."""
    for _ in range(GONE_WITHIN_S * 10):
        if not engine.containers():
            return True
        time.sleep(0.1)
    return False


def running(engine: Engine) -> bool:
    for _ in range(GONE_WITHIN_S * 10):
        if any(one["State"] == "running" for one in engine.containers()):
            return True
        time.sleep(0.1)
    return False


def fresh(module: Path) -> Path:
    """Change a comment of a module's source: it must be built anew, into the same bytes."""
    source = next(path for path in module.iterdir() if path.suffix in {".c", ".rs"})
    source.write_text(f"{source.read_text()}// {time.monotonic_ns()}\n")
    return module


@pytest.mark.parametrize("env", ["cross", pytest.param("hybrid", marks=pytest.mark.slow)])
def test_a_module_is_the_same_bytes_as_bubblewrap_s(
    docker: Rbuild, engine: Engine, rust_stranger: Path, env: str
) -> None:
    words = ("--json", "module", "--env", env)
    usual = docker(*words, rust_stranger).json
    made = docker(*words, *DOCKER, fresh(rust_stranger)).json
    assert made["runtime"] == "docker"
    assert not made["phases"][-1]["cached"]
    assert made["phases"][-1]["user_s"] > 0
    assert made["phases"][-1]["max_rss_bytes"] > 1 << 20
    assert made["artefacts"][0]["sha256"] == usual["artefacts"][0]["sha256"]
    assert none_left(engine)


def test_a_driver_that_was_built_in_tree_is_the_same_bytes(docker: Rbuild, tmp_path: Path) -> None:
    words = ("--json", "module", "--in-tree", "--driver", "c")
    usual = docker(*words).json["artefacts"][0]
    ko = Path(usual["path"])
    ko.unlink()
    made = docker(*words, *DOCKER).json
    assert not made["phases"][-1]["cached"]
    assert made["artefacts"][0]["sha256"] == usual["sha256"]


@pytest.mark.slow
def test_an_emulated_module_is_the_same_bytes(docker: Rbuild, rust_stranger: Path) -> None:
    words = ("--json", "module", "--env", "chroot")
    usual = docker(*words, rust_stranger).json
    made = docker(*words, *DOCKER, fresh(rust_stranger)).json
    assert made["artefacts"][0]["sha256"] == usual["artefacts"][0]["sha256"]


@pytest.mark.slow
def test_a_kernel_is_the_same_bytes(docker: Rbuild) -> None:
    usual = docker("--json", "kernel").json["artefacts"]
    made = docker("--json", "kernel", "--clean", *DOCKER).json["artefacts"]
    assert [one["sha256"] for one in made] == [one["sha256"] for one in usual]


INSIDE = """
id -u
grep -E '^(CapEff|NoNewPrivs):' /proc/self/status
tail -n +3 /proc/net/dev | cut -d: -f1
for path in / /usr /src /kdir; do touch $path/x 2>/dev/null && echo "$path can be written"; done
touch /tmp/x && cp /bin/true /tmp/true && /tmp/true && echo tmp works
ls /proc/1/fd >/dev/null 2>&1 || echo fd
[ -e /var/run/docker.sock ] && echo socket
hostname
"""


def test_a_container_is_shut_off(docker: Rbuild) -> None:
    seen = docker("-q", "shell", *DOCKER, "--", "sh", "-c", INSIDE).out.split("\n")
    zero = "CapEff:\t0000000000000000"
    assert [word.strip() for word in seen if word] == [
        str(os.getuid()), zero, "NoNewPrivs:\t1", "lo", "tmp works", "rbuild",
    ]  # fmt: skip


def test_the_environment_is_that_of_bubblewrap(docker: Rbuild) -> None:
    one, other = (
        set(docker("-q", "shell", "--runtime", name, "--", "env").out.splitlines())
        for name in ("bwrap", "docker")
    )
    assert other - one == {"HOSTNAME=rbuild"}  # the engine's own
    assert one - other == set()


def test_a_shell_has_the_user_s_terminal(docker: Rbuild) -> None:
    import pexpect

    docker("-q", "shell", *DOCKER, "--", "true")  # the image is there
    child = pexpect.spawn(
        sys.executable,
        docker.argv("shell", *DOCKER, "--", "sh")[1:],
        env=docker.env(),
        dimensions=(33, 101),
        encoding="utf-8",
        timeout=GONE_WITHIN_S,
    )
    child.sendline("test -t 0 && echo size: $(stty size)")
    child.expect_exact("size: 33 101")
    child.setwinsize(40, 120)
    child.sendline("sleep 1; echo size: $(stty size)")
    child.expect_exact("size: 40 120")
    child.sendline("sleep 100")
    time.sleep(1)
    child.sendintr()  # which is the terminal's, and ends what runs there, not rbuild
    child.sendline("exit 7")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 7


def test_limits_are_those_of_the_container(docker: Rbuild) -> None:
    script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true"
    words = ("-q", "shell", *DOCKER, "--memory", "512m", "--cpus", "0.5", "--", "sh", "-c", script)
    assert docker(*words).out.strip() == str(512 << 20)
    refused = docker("module", "--memory", "512m", code=2)
    assert "--runtime docker" in refused.err


SLOW_MODULE = """\
obj-m += slow.o
$(obj)/slow.o: $(obj)/waits
$(obj)/waits:
\tsleep 300
"""


@pytest.fixture
def slow_module(tmp_path: Path) -> Path:
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "Kbuild").write_text(SLOW_MODULE)
    (folder / "slow.c").write_text("")
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_when_it_is_ended(
    docker: Rbuild, engine: Engine, slow_module: Path, number: signal.Signals
) -> None:
    child = docker.start("module", *DOCKER, slow_module)
    assert running(engine)
    time.sleep(1)
    child.send_signal(number)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == (-number if number is signal.SIGKILL else 130), out
    assert none_left(engine)


def test_what_a_killed_shell_left_is_removed_by_the_next_run(
    docker: Rbuild, engine: Engine
) -> None:
    child = docker.start("shell", *DOCKER, "--", "sleep", "300")
    assert running(engine)
    time.sleep(1)
    child.kill()
    child.wait()
    docker("-q", "shell", *DOCKER, "--", "true")
    assert none_left(engine)


def test_an_engine_that_is_restarted(docker: Rbuild, engine: Engine, slow_module: Path) -> None:
    child = docker.start("module", *DOCKER, slow_module)
    assert running(engine)
    time.sleep(1)
    engine.stop()
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 4, out
    assert "Traceback" not in out
    engine.start()
    docker("-q", "shell", *DOCKER, "--", "true")
    assert none_left(engine)


def test_images_are_known(docker: Rbuild) -> None:
    images = [one for one in docker("--json", "status").json["entries"] if one["room"] == "image"]
    assert {one["state"] for one in images} <= {"linux/amd64", "linux/arm64"}
    assert any("cross-trixie" in one["name"] for one in images)


def test_doctor_tries_other_architectures(docker: Rbuild, engine: Engine) -> None:
    before = set(engine.client.api.images(quiet=True, all=True))
    found = {one["name"]: one for one in docker("--json", "doctor").json}
    for machine in ("aarch64", "armv7l"):
        assert found[f"docker, {machine} programs (optional)"]["state"] == "ok"
    assert set(engine.client.api.images(quiet=True, all=True)) == before
    assert none_left(engine)


def test_an_engine_that_is_not_there(rbuild: Rbuild) -> None:
    words = ["env", "DOCKER_HOST=unix:///nonexistent/docker.sock"]
    done = rbuild("module", *DOCKER, code=3, prefix=words)
    assert "No Docker engine answers at DOCKER_HOST=" in done.err
    assert "hint:" in done.err


def test_a_failing_build_says_the_compiler_s_words(docker: Rbuild, c_stranger: Path) -> None:
    (c_stranger / "stranger.c").write_text("int broken = ;\n")
    done = docker("module", *DOCKER, c_stranger, code=1)
    assert "stranger.c:1:14: error: expected expression" in done.err


def test_bench_compares_the_runtimes(docker: Rbuild) -> None:
    words = ("--kind", "out-of-tree", "--driver", "c", "--runs", "2", "--warmup", "1")
    both = ("--runtime", "bwrap", *DOCKER)
    report = docker("--json", "bench", "--env", "cross", *words, *both).json
    assert [row["environment"] for row in report["rows"]] == ["cross", "cross@docker"]
    assert all(one["identical"] for one in report["identity"])


@pytest.mark.slow
def test_an_environment_without_mmdebstrap(
    docker: Rbuild, engine: Engine, c_stranger: Path, tmp_path: Path
) -> None:
    """Provision from an image that stands in for debian:trixie, since no registry is there."""
    usual = docker("--json", "module", c_stranger).json["artefacts"][0]
    base = tmp_path / "base"
    base.mkdir()
    words = [
        "mmdebstrap",
        "--variant=apt",
        "trixie",
        str(base / "rootfs.tar"),
        *host_mirrors("trixie"),
    ]
    subprocess.run(words, check=True, capture_output=True)
    (base / "Dockerfile").write_text(scratch_dockerfile())
    engine.client.images.build(
        path=str(base), tag="debian:trixie", platform="linux/amd64", rm=True, network_mode="none"
    )
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for folder in os.environ["PATH"].split(":"):
        for program in Path(folder).glob("*"):
            if program.name != "mmdebstrap" and not (bin_ / program.name).exists():
                (bin_ / program.name).symlink_to(program)
    cache = tmp_path / "cache"
    cache.mkdir()
    # The source is the same; so is what the module is built of, but for the rootfs.
    given = Path(docker("--json", "status").json["root"])
    shutil.copytree(given / "trees", cache / "trees", symlinks=True)
    other = Rbuild(cache)
    without = ["env", f"PATH={bin_}"]
    made = other("--json", "module", *DOCKER, c_stranger, prefix=without).json
    assert made["artefacts"][0]["sha256"] == usual["sha256"]
    assert "provision" not in " ".join(str(one["RepoTags"]) for one in engine.client.api.images())


def test_the_dockerfile_is_of_the_definition() -> None:
    done = subprocess.run(
        [*Rbuild().argv("setup", "hybrid", *DOCKER, "--print-dockerfile")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "FROM --platform=linux/arm64 debian:trixie" in done.stdout
    assert "COPY --from=native /layer/ /" in done.stdout
