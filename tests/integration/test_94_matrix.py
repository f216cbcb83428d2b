"""A matrix on three machines for real: a scheduler and three workers, each with its own cache."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from rbuild.cli.main import _cache_directory

from .conftest import Rbuild

NAMES = ("one", "two", "three")
ASKED = ("--env", "cross", "--env", "hybrid", "--kind", "out-of-tree", "--driver", "rust")
ASKED = (*ASKED, "--driver", "c")


def until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    last = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < last, "it never came so far"
        time.sleep(0.05)
    return found


def processes(cache: Path) -> list[str]:
    """Return the command lines of builds in a cache."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(cache) in line and " worker " not in line:
            found.append(line)
    return found


@dataclass
class Machine:
    name: str
    rbuild: Rbuild
    process: subprocess.Popen[bytes] | None = None

    @property
    def cache(self) -> Path:
        assert self.rbuild.cache is not None
        return self.rbuild.cache

    def forget(self) -> None:
        """Throw away the modules that were built here."""
        for path in (self.cache / "kdirs").glob("*/modules"):
            shutil.rmtree(path)

    def start(self, words: Sequence[str], folder: Path) -> None:
        log = (folder / f"{self.name}.log").open("wb")
        argv = self.rbuild.argv("worker", "--name", self.name, *words)
        self.process = subprocess.Popen(argv, env=self.rbuild.env(), stderr=log)
        until(lambda: b"takes builds" in (folder / f"{self.name}.log").read_bytes())

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


def start_scheduler(
    words: Sequence[str], folder: Path, scheme: str = "tcp"
) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address = f"{scheme}://127.0.0.1:{port}"
    words = ["--host", f"{scheme}://127.0.0.1", "--port", str(port), "--no-dashboard", *words]
    log = folder / "scheduler.log"
    with log.open("wb") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_scheduler", *words], stderr=file
        )
    until(lambda: address.encode() in log.read_bytes())
    return child, address


@pytest.fixture(scope="module")
def here(rbuild: Rbuild, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the report of the same matrix on this machine alone."""
    return rbuild("--json", "matrix", *ASKED).json


@pytest.fixture(scope="module")
def machines(here: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    """Three machines, whose Stores have what ours has for these builds, but no module.

    What is never written again, rootfses and trees, is linked to; a KDIR is each machine's own.
    """
    root = _cache_directory(os.environ.get("RBUILD_CACHE_DIR"))
    kdirs = {Path(one["artefacts"][0]["path"]).relative_to(root).parts[1] for one in here["builds"]}
    trees = {
        json.loads((root / "kdirs" / name / "metadata.json").read_text())["tree"] for name in kdirs
    }
    found = []
    for name in NAMES:
        cache = tmp_path_factory.mktemp(name)
        for path in [
            *(root / "rootfs").glob("cross-*"),
            *(root / "rootfs").glob("chroot-*"),
            *(root / "trees").glob("linux-source-6.12-*"),
            *(root / "trees" / tree for tree in trees),
        ]:
            link = cache / path.relative_to(root)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path)
        for kdir in kdirs:
            target = cache / "kdirs" / kdir
            target.mkdir(parents=True)
            names = [path for path in (root / "kdirs" / kdir).iterdir() if path.name != "modules"]
            subprocess.run(["cp", "-a", "--reflink=auto", *names, target], check=True)
        found.append(Machine(name, Rbuild(cache)))
    yield found
    for one in found:
        shutil.rmtree(one.cache, ignore_errors=True)


@pytest.fixture
def cluster(machines: list[Machine], tmp_path: Path) -> Iterator[str]:
    """Return the address of a scheduler that has all three machines."""
    yield from gathered(machines, tmp_path, (), ())


def gathered(
    machines: list[Machine], folder: Path, scheduler: Sequence[str], worker: Sequence[str]
) -> Iterator[str]:
    child, address = start_scheduler(scheduler, folder, "tls" if worker else "tcp")
    for one in machines:
        one.forget()
    try:
        for one in machines:
            one.start(["--scheduler", address, *worker], folder)
        yield address
    finally:
        for one in machines:
            if one.process is not None and one.process.poll() is None:
                one.end(signal.SIGKILL)
        child.terminate()
        child.wait(timeout=60)


def sums(report: Any) -> dict[tuple[str, str], str]:
    """Return each build's checksum by environment and driver."""
    return {
        (one["environment"], one["driver"]): one["artefacts"][0]["sha256"]
        for one in report["builds"]
    }


def stderr_until(child: subprocess.Popen[str], words: str) -> str:
    """Read a program's lines up to the one with ``words``; return that."""
    stream: IO[str] | None = child.stdout
    assert stream is not None
    seen = ""
    for line in stream:
        seen += line
        if words in line:
            return line
    raise AssertionError(seen)


def test_three_machines_come_to_the_same_bytes_as_one(
    rbuild: Rbuild, here: Any, cluster: str, machines: list[Machine], tmp_path: Path
) -> None:
    found = rbuild("--json", "matrix", *ASKED, "--scheduler", cluster)
    report = found.json
    assert sums(report) == sums(here)
    assert all(one["identical"] for one in report["same_bytes"])
    assert len(report["same_bytes"]) == 2
    assert {one["name"] for one in report["machines"]} == set(NAMES)
    for one in report["builds"]:
        (attempt,) = one["attempts"]
        own = next(it.cache for it in machines if it.name == attempt["machine"])
        assert one["artefacts"][0]["path"].startswith(str(own))
        assert "LD [M]" in Path(one["log"]).read_text()
        assert not one["phases"][-1]["cached"]
    # Three machines and two builds of each group: whatever was timed apart is not compared.
    where = {}
    for one in report["builds"]:
        where.setdefault(one["driver"], set()).add(one["machine"])
    apart = {one["build"].split()[-1] for one in report["not_compared"]}
    assert apart == {driver for driver, names in where.items() if len(names) > 1}
    for one in report["times"]:
        assert where[one["build"].split()[-1]] == {one["machine"]}
    for one in machines:
        assert one.end() == 0


@pytest.mark.slow
def test_a_machine_that_is_killed_while_it_builds(
    rbuild: Rbuild, here: Any, cluster: str, machines: list[Machine], tmp_path: Path
) -> None:
    target = tmp_path / "report.json"
    words = ("matrix", *ASKED, "--scheduler", cluster, "--export-json", target)
    child = rbuild.start(*words)
    name = stderr_until(child, "slim out-of-tree rust, cross, on").split()[-1]
    victim = next(one for one in machines if one.name == name)
    until(lambda: any("bwrap" in line for line in processes(victim.cache)))
    victim.end(signal.SIGKILL)
    rest = child.communicate(timeout=300)[0]
    assert child.returncode == 0, rest
    assert "was lost while it built slim out-of-tree rust, cross" in rest
    report = json.loads(target.read_text())
    first = next(
        one for one in report["builds"] if (one["environment"], one["driver"]) == ("cross", "rust")
    )
    assert [one["lost"] for one in first["attempts"]] == [True, False]
    assert first["attempts"][0]["machine"] == name
    assert first["machine"] != name
    assert sums(report) == sums(here)
    assert all(one["identical"] for one in report["same_bytes"])
    until(lambda: not processes(victim.cache), 10)


@pytest.mark.slow
def test_an_interrupted_matrix_ends_its_builds(
    rbuild: Rbuild, cluster: str, machines: list[Machine]
) -> None:
    child = rbuild.start("matrix", *ASKED, "--scheduler", cluster)
    until(lambda: any("bwrap" in line for one in machines for line in processes(one.cache)))
    child.send_signal(signal.SIGINT)
    out = child.communicate(timeout=60)[0]
    assert child.returncode == 130, out
    assert "Traceback" not in out
    until(lambda: not any(processes(one.cache) for one in machines), 20)
    assert rbuild("--json", "matrix", *ASKED, "--scheduler", cluster).json["exit_code"] == 0


@pytest.mark.slow
def test_a_build_that_fails_is_not_tried_on_another_machine(
    rbuild: Rbuild, cluster: str, tmp_path: Path
) -> None:
    profile = tmp_path / "refused.yaml"
    profile.write_text(
        "name: refused\nsource: {debian: linux-source-6.12}\n"
        "config: {base: tinyconfig, options: {SPI: n, SPI_BCM2835: y}}\n"
    )
    words = ("--profile", profile, "--profile", "slim", "--env", "cross", "--driver", "c")
    found = rbuild(
        *("--json", "matrix", *words, "--kind", "out-of-tree", "--scheduler", cluster), code=1
    )
    refused, slim = found.json["builds"]
    assert (refused["state"], slim["state"]) == ("failed", "built")
    assert "Kconfig did not grant" in refused["error"]
    assert "SPI_BCM2835" in Path(refused["log"]).read_text()
    assert [one["exit_code"] for one in refused["attempts"]] == [2]


# TLS.


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


@dataclass(frozen=True)
class Authority:
    """A certification authority in a folder, made as docs/how-to/matrix.md says."""

    folder: Path

    def make(self) -> None:
        self.folder.mkdir()
        openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", "/CN=rbuild", "-keyout", self.folder / "ca.key"),
            *("-out", self.folder / "ca.pem"),
        )

    def certify(self, name: str) -> None:
        key, request = self.folder / f"{name}.key", self.folder / f"{name}.csr"
        openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", key, "-out", request),
        )
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.folder / "ca.pem", "-days", "2"),
            *("-CAkey", self.folder / "ca.key", "-CAcreateserial"),
            *("-out", self.folder / f"{name}.pem"),
        )

    def words(self, name: str, ca: str = "--tls-ca") -> list[str]:
        own = self.folder / name
        return [ca, f"{self.folder}/ca.pem", "--tls-cert", f"{own}.pem", "--tls-key", f"{own}.key"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    found = Authority(tmp_path_factory.mktemp("tls") / "ours")
    found.make()
    for name in ("scheduler", "worker", "client"):
        found.certify(name)
    return found


@pytest.fixture
def tls_cluster(machines: list[Machine], authority: Authority, tmp_path: Path) -> Iterator[str]:
    scheduler = authority.words("scheduler", "--tls-ca-file")
    yield from gathered(machines[:2], tmp_path, scheduler, authority.words("worker"))


def test_tls_from_end_to_end(
    rbuild: Rbuild, here: Any, tls_cluster: str, authority: Authority, tmp_path: Path
) -> None:
    words = ("--json", "matrix", *ASKED[4:], "--env", "cross", "--scheduler", tls_cluster)
    report = rbuild(*words, *authority.words("client")).json
    assert report["scheduler"].startswith("tls://")
    found = sums(report)
    assert found == {key: sums(here)[key] for key in found}
    assert len(found) == 2

    # Nobody of another authority, nobody without a certificate, nobody without TLS.
    other = Authority(tmp_path / "theirs")
    other.make()
    other.certify("client")
    stranger = other.words("client")
    assert "No scheduler answers" in rbuild(*words, *stranger, code=4).err
    mixed = [*authority.words("client")[:2], *stranger[2:]]
    assert "error:" in rbuild(*words, *mixed, "--wait", "0", code=4).err
    plain = tls_cluster.replace("tls://", "tcp://")
    assert "error:" in rbuild(*words[:-1], plain, code=4).err
    assert refused_without_certificate(tls_cluster, authority)


def refused_without_certificate(address: str, authority: Authority) -> bool:
    """Tell whether a TLS client that shows no certificate is turned away."""
    context = ssl.create_default_context(cafile=str(authority.folder / "ca.pem"))
    context.check_hostname = False
    host, _, port = address.removeprefix("tls://").partition(":")
    try:
        with (
            socket.create_connection((host, int(port)), timeout=20) as plain,
            context.wrap_socket(plain) as wrapped,
        ):
            return wrapped.recv(1) == b""
    except ssl.SSLError as error:
        return "certificate required" in str(error).lower().replace("_", " ")
