"""Environments provisioned for real, and what can go wrong on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from rbuild.cache.directory import Cache
from rbuild.errors import InfrastructureError
from rbuild.provision import rootfs
from rbuild.provision.prepare import prepare_environment, runtime_for
from rbuild.sandbox import binfmt
from rbuild.sandbox.bwrap import Bwrap
from rbuild.sandbox.runtime import Job
from rbuild.specs import environment
from rbuild.ui.console import Console

from .conftest import Rbuild

NATIVE = Path(__file__).parent / "native"
"""A Debian package's source, and a script that builds it."""

ENVIRONMENTS = ("cross", "hybrid")


def test_the_host_has_what_builds_need(rbuild: Rbuild) -> None:
    findings = rbuild("--json", "doctor").json
    assert {one["name"] for one in findings} >= {"mmdebstrap", "bwrap", "namespaces", "disk"}
    assert not [one for one in findings if one["state"] == "missing"]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_setup_then_nothing_to_do(rbuild: Rbuild, name: str) -> None:
    rbuild("setup", name)
    again = rbuild("--json", "setup", name)
    (found,) = again.json
    assert found["cached"]
    assert "clang-19" in found["toolchain"]
    assert "Provisioning" not in again.err
    assert "Verifying" not in again.err


def test_a_build_sees_neither_network_nor_home_nor_environment(rbuild: Rbuild) -> None:
    # In cross, before any in hybrid: there, the kernel's source would be unpacked by emulation.
    probe = "cat /proc/net/dev; ls /home /root /srv 2>&1; env; touch /src/x /usr/x 2>&1"
    os.environ["RBUILD_TEST_SECRET"] = "do-not-tell"
    try:
        seen = rbuild("--quiet", "shell", "--", "sh", "-c", probe + "; true").out
    finally:
        del os.environ["RBUILD_TEST_SECRET"]
    interfaces = [line.split(":")[0].strip() for line in seen.splitlines() if "0    0" in line]
    assert set(interfaces) <= {"lo"}
    assert "do-not-tell" not in seen
    assert seen.count("Read-only file system") == 2


def test_hybrid_is_an_aarch64_system_with_native_compilers(rbuild: Rbuild) -> None:
    def inside(*words: str) -> str:
        return rbuild("--quiet", "shell", "--env", "hybrid", "--", *words).out.strip()

    assert inside("uname", "-m") == "aarch64"
    assert inside("dpkg", "--print-architecture") == "arm64"
    assert "X86-64" in inside("sh", "-c", "readelf -h /usr/bin/make | grep Machine")
    assert "AArch64" in inside("sh", "-c", "readelf -h /usr/bin/python3.13 | grep Machine")


def test_in_a_hybrid_packages_are_installed_and_built_as_on_an_aarch64_system(
    rbuild: Rbuild,
) -> None:
    words = ("shell", "--env", "hybrid", "--scratch", "--module", NATIVE)
    seen = rbuild("--quiet", *words, "--", "sh", "/module/try.sh").out
    assert "Hello, world!" in seen
    assert "built for arm64, runs on aarch64" in seen
    # Nothing of it is left, here or there.
    inside = rbuild("--quiet", "shell", "--env", "hybrid", "--", "sh", "-c", "ls /usr/bin; id -u")
    assert "dpkg-buildpackage" not in inside.out
    assert not (NATIVE / "native").exists()
    assert str(rbuild("--json", "status").json["root"]) not in Path("/proc/self/mounts").read_text()


def test_a_sandbox_brings_a_newer_qemu_than_the_hosts(rbuild: Rbuild) -> None:
    variant = Path(__file__).parents[2] / "docs/bench/environments/newest-qemu.yaml"
    if not binfmt.private():
        pytest.skip("this kernel has one binfmt_misc for all")
    (found,) = rbuild("--json", "setup", variant).json
    assert found["emulator"].startswith("qemu-user 1:")
    assert found["environment"] == "chroot"
    assert found["cached"]
    cache = Cache(Path(rbuild("--json", "status").json["root"]), Console(verbosity=-1))
    ready = prepare_environment(environment.load(str(variant)), cache, runtime_for("bwrap", cache))
    argv = Bwrap().argv(ready.sandbox, Job(["sleep", "60"]))
    with subprocess.Popen(argv) as child:
        try:
            _wait_until(lambda: any("/emulators/" in one for one in _programs(child.pid)))
        finally:
            child.kill()


def _programs(pid: int) -> list[str]:
    """Return what a process and its children really run."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        own = str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return []
    return [own, *(program for one in children for program in _programs(int(one)))]


@pytest.mark.root
def test_no_network_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    cut_off = Rbuild(tmp_path / "cache")
    found = cut_off("setup", "cross", code=4, prefix=["unshare", "--net"])
    assert "mirror could not be reached" in found.err
    assert not list((tmp_path / "cache/rootfs").glob("[!.]*"))


@pytest.mark.root
def test_a_disk_too_small_is_said_before_anything_is_downloaded(tmp_path: Path) -> None:
    with _small_disk(tmp_path, "64M") as disk:
        found = Rbuild(disk)("setup", "cross", code=4)
    assert "needs about 4.0 GiB" in found.err


@pytest.mark.root
@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_nothing_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootfs, "SPACE_NEEDED", 0)
    with _small_disk(tmp_path, "700M") as disk:
        cache = Cache(disk, Console(verbosity=-1))
        with pytest.raises(InfrastructureError, match="disk filled up"):
            rootfs.provision(environment.load("cross").base, cache)
        assert not list((disk / "rootfs").glob("[!.]*"))


@pytest.mark.root
@pytest.mark.slow
def test_a_cache_mounted_nosuid_and_nodev_will_do_from_the_beginning(
    tmp_path: Path, c_stranger: Path
) -> None:
    with _small_disk(tmp_path, "8G,nosuid,nodev") as disk:
        own = Rbuild(disk)
        own("setup", "cross")
        own("module", c_stranger, "--profile", "slim-no-rust")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_setup_leaves_no_process_and_no_mount(
    tmp_path: Path, number: signal.Signals
) -> None:
    cache = tmp_path / "cache"
    child = Rbuild(cache).start("-v", "setup", "cross")
    assert child.stdout is not None
    for line in child.stdout:
        if "Unpacking" in line or "Get:" in line:
            break
    child.send_signal(number)
    child.stdout.read()
    code = child.wait(timeout=30)
    assert code == (-9 if number is signal.SIGKILL else 130)
    _wait_until(lambda: not _mentions(str(cache)))
    assert str(cache) not in Path("/proc/self/mounts").read_text()
    assert not list((cache / "rootfs").glob("[!.]*"))


def _mentions(text: str) -> list[str]:
    """Return the command lines of live processes that name ``text``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in words and str(os.getpid()) != path.parent.name:
            found.append(words)
    return found


def _wait_until(holds, seconds: float = 10) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "still so after ten seconds"
        time.sleep(0.1)


class _small_disk:  # noqa: N801 - reads as what it makes
    """A tmpfs of a given size, mounted while the body runs."""

    def __init__(self, folder: Path, size: str) -> None:
        self.path = folder / "disk"
        self.size = size

    def __enter__(self) -> Path:
        self.path.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", self.path], check=True
        )
        return self.path

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", self.path], check=True)
