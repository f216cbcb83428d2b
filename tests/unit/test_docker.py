"""The docker runtime without an engine: what a container is asked to be, and what it says."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import struct
import tarfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import APIError
from docker.types import Mount

from rbuild.cache.directory import Cache
from rbuild.cache.entry import METADATA, EntryKind
from rbuild.errors import InfrastructureError, MissingDependency, ProcessFailed, UsageError
from rbuild.provision import dockerfile, doctor
from rbuild.provision.doctor import State
from rbuild.sandbox.docker import image
from rbuild.sandbox.docker.container import _lines
from rbuild.sandbox.docker.engine import (
    ENGINES,
    PASSING,
    Owner,
    explained,
    remove_orphans,
    unreachable,
)
from rbuild.sandbox.docker.runtime import Docker, Limits
from rbuild.sandbox.runtime import Bind, Job, Sandbox
from rbuild.specs import environment
from rbuild.ui.console import Console
from rbuild.util.files import write_json
from rbuild.util.hashes import digest
from rbuild.util.process import MAX_LINE

from .conftest import Host


def frame(data: bytes, stream: int = 1) -> bytes:
    return struct.pack(">BxxxL", stream, len(data)) + data


class Socket:
    """A connection on which an engine says what ``said`` makes of a container's command."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)
        self.is_closed = False

    def recv(self, count: int) -> bytes:
        return self._data.read(count)

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Api:
    """The SDK's low-level client as far as rbuild calls it, of an engine that has one image."""

    said: list[bytes] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    made: list[dict[str, Any]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    built: list[dict[str, Any]] = field(default_factory=list)
    listed: list[dict[str, Any]] = field(default_factory=list)
    pictured: list[dict[str, Any]] = field(default_factory=list)

    def inspect_image(self, name: str) -> dict[str, Any]:
        return {"Id": "sha256:1", "Config": {"Labels": self.labels}}

    def create_host_config(self, **options: Any) -> dict[str, Any]:
        return options

    def create_container(self, name: str, command: list[str], **options: Any) -> dict[str, str]:
        self.made.append({"image": name, "command": command, **options})
        return {"Id": "c1"}

    def attach_socket(self, name: str, how: dict[str, int]) -> Socket:
        mark = self.made[-1]["command"][3].encode()
        return Socket(b"".join(frame(one.replace(b"MARK", mark)) for one in self.said))

    def start(self, name: str) -> None:
        pass

    def remove_container(self, name: str, **options: Any) -> None:
        self.removed.append(name)

    def remove_image(self, name: str) -> None:
        self.removed.append(name)

    def containers(self, **options: Any) -> list[dict[str, Any]]:
        return self.listed

    def images(self, **options: Any) -> list[dict[str, Any]]:
        return self.pictured

    def build(self, **options: Any) -> list[dict[str, str]]:
        context = b"".join(options.pop("fileobj"))
        self.built.append({**options, "context": context})
        return [{"stream": "Step 1/2 : FROM scratch\n"}]


@dataclass
class Client:
    api: Api


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    root = tmp_path / "cache"
    entry = root / EntryKind.ROOTFS / "chroot-trixie-arm64-abc"
    (entry / "root/etc").mkdir(parents=True)
    (entry / "root/etc/hostname").write_text("x\n")
    write_json(entry / METADATA, {"format": 1, "created": 1.5, "architecture": "arm64"})
    made = Cache(root, Console(verbosity=-1))
    place = digest(str(root.resolve()))
    write_json(root / ENGINES, {f"E {os.getuid()}": {"shares_files": True, "cache": place}})
    return made


@pytest.fixture
def sandbox(cache: Cache) -> Sandbox:
    root = cache.root / EntryKind.ROOTFS / "chroot-trixie-arm64-abc/root"
    layer = (Bind(root / "etc", "/usr/lib/x86_64-linux-gnu"),)
    return Sandbox("chroot", root, layer, {"QEMU_CPU": "cortex-a72"})


ENDED = b"\0MARK 0 1 500000 0 250000 2048\n"


def docker(cache: Cache, api: Api, limits: Limits | None = None) -> Docker:
    made = Docker(cache, limits or Limits())
    made.__dict__ |= {"client": Client(api), "engine_id": "E"}
    api.labels = api.labels or {
        "rbuild": "rootfs",
        "rbuild.rootfs": "chroot-trixie-arm64-abc",
        "rbuild.created": "1.5",
        "rbuild.platform": "linux/arm64",
    }
    return made


def test_a_container_is_locked_down(cache: Cache, sandbox: Sandbox, tmp_path: Path) -> None:
    api = Api([ENDED])
    job = Job(["make"], [Bind(tmp_path, "/kdir", writable=True)], "/kdir", {"A": "b"})
    docker(cache, api, Limits(1 << 30, 1.5)).run(sandbox, job)
    (made,) = api.made
    host = made["host_config"]
    assert host["network_mode"] == "none"
    assert host["read_only"]
    assert host["cap_drop"] == ["ALL"]
    assert host["cap_add"] == []
    assert host["security_opt"] == ["no-new-privileges"]
    assert host["auto_remove"]
    assert not host.get("privileged")
    assert host["mem_limit"] == 1 << 30
    assert host["nano_cpus"] == 1_500_000_000
    assert made["user"] == f"{os.getuid()}:{os.getgid()}"
    assert made["platform"] == "linux/arm64"
    assert made["environment"]["QEMU_CPU"] == "cortex-a72"
    assert made["environment"]["A"] == "b"
    assert "USER" not in made["environment"]
    seen = {mount["Target"]: mount for mount in host["mounts"]}
    assert set(seen) == {"/usr/lib/x86_64-linux-gnu", "/kdir"}
    assert all(mount["Type"] == "bind" for mount in seen.values())
    assert seen["/usr/lib/x86_64-linux-gnu"]["ReadOnly"]
    assert not seen["/kdir"].get("ReadOnly")


def test_only_a_job_that_asks_for_it_has_a_network(cache: Cache, sandbox: Sandbox) -> None:
    api = Api([ENDED])
    docker(cache, api).run(sandbox, Job(["apt-get"], network=True))
    assert api.made[0]["host_config"]["network_mode"] == "host"


def test_an_interrupt_while_the_engine_makes_a_container_leaves_none(
    cache: Cache, sandbox: Sandbox
) -> None:
    class Slow(Api):
        def create_container(self, name: str, command: list[str], **options: Any) -> dict[str, str]:
            timer.start()
            time.sleep(0.4)
            return super().create_container(name, command, **options)

    api = Slow([ENDED])
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        docker(cache, api).run(sandbox, Job(["x"]))
    assert len(api.made) == 1
    assert api.removed == ["c1"]


def test_its_output_comes_line_by_line(cache: Cache, sandbox: Sandbox, tmp_path: Path) -> None:
    api = Api([b"one\ntw", b"o\nunfini", b"shed" + ENDED])
    seen: list[str] = []
    with (tmp_path / "log").open("w") as log:
        done = docker(cache, api).run(sandbox, Job(["true"]), on_line=seen.append, log=log)
    assert seen == ["one", "two", "unfinished"]
    assert done.tail == ("one", "two", "unfinished")
    assert (done.usage.user_s, done.usage.system_s) == (1.5, 0.25)
    assert done.usage.max_rss_bytes == 2048 * 1024
    logged = (tmp_path / "log").read_text().splitlines()
    assert logged[0].startswith("$ docker run --rm ")
    assert logged[1:] == seen


def test_the_log_says_how_files_got_there(
    cache: Cache, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere:
        @contextlib.contextmanager
        def mount(self, binds: Sequence[Bind]) -> Iterator[list[Mount]]:
            yield [
                Mount(bind.target, f"volume-{number}", read_only=not bind.writable, no_copy=True)
                for number, bind in enumerate(binds)
            ]

    job = Job(["true"], [Bind(tmp_path, "/kdir", writable=True)])
    logged = []
    for elsewhere in (False, True):
        runtime = docker(cache, Api([ENDED]))
        if elsewhere:
            monkeypatch.setattr(runtime, "_transport", lambda *_: Elsewhere())
        with (tmp_path / "log").open("w") as log:
            runtime.run(sandbox, job, log=log)
        logged.append((tmp_path / "log").read_text())
    assert f"--mount type=bind,source={tmp_path},target=/kdir " in logged[0]
    assert f"--mount type=bind,source={sandbox.layer[0].source},target=" in logged[0]
    assert "/kdir,readonly" not in logged[0]
    assert "--mount type=volume,source=volume-1,target=/kdir,volume-nocopy " in logged[1]
    assert "x86_64-linux-gnu,readonly,volume-nocopy " in logged[1]
    assert str(tmp_path) not in logged[1]


@pytest.mark.parametrize(("status", "code"), [(256, 1), (9, -9), (0, 0)])
def test_how_it_ended(cache: Cache, sandbox: Sandbox, status: int, code: int) -> None:
    api = Api([b"words\n", ENDED.replace(b" 0 ", f" {status} ".encode(), 1)])
    done = docker(cache, api).run(sandbox, Job(["x"]), check=False)
    assert done.returncode == code
    if code:
        with pytest.raises(ProcessFailed) as failed:
            docker(cache, Api(api.said)).run(sandbox, Job(["x"]))
        assert failed.value.returncode == code


def test_one_that_was_ended_from_outside_is_removed(cache: Cache, sandbox: Sandbox) -> None:
    api = Api([b"CC a.o\n"])
    with pytest.raises(InfrastructureError, match="ended from outside"):
        docker(cache, api).run(sandbox, Job(["make"]))
    assert api.removed == ["c1"]


def test_an_engine_that_can_t_emulate(cache: Cache, sandbox: Sandbox) -> None:
    api = Api([b"exec /usr/bin/perl: exec format error\n"])
    with pytest.raises(MissingDependency, match="no emulator") as failed:
        docker(cache, api).run(sandbox, Job(["make"]))
    assert "qemu-user-static" in str(failed.value.hint)


def test_an_interpreter_of_its_own_is_refused(cache: Cache, sandbox: Sandbox) -> None:
    own = Sandbox(sandbox.name, sandbox.root, interpreter=":qemu:")
    with pytest.raises(UsageError, match="emulator of its own"):
        docker(cache, Api([ENDED])).run(own, Job(["true"]))


def test_an_image_is_built_once(cache: Cache, sandbox: Sandbox) -> None:
    api = Api([ENDED, ENDED])
    api.labels = {"rbuild.rootfs": "an earlier one"}
    runtime = docker(cache, api)
    runtime.prepare(sandbox)
    (built,) = api.built
    assert built["platform"] == "linux/arm64"
    assert built["network_mode"] == "none"
    assert built["nocache"]
    with tarfile.open(fileobj=io.BytesIO(built["context"])) as context:
        text = context.extractfile("Dockerfile")
        inner = context.extractfile("rootfs.tar")
        assert text is not None
        assert inner is not None
        assert text.read() == b"FROM scratch\nADD rootfs.tar /\n"
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as rootfs:
            assert "./etc/hostname" in rootfs.getnames()
    assert api.removed == ["sha256:1"]
    assert not list(sandbox.root.parent.glob(".*.tar"))
    api.labels = built["labels"]
    docker(cache, api).prepare(sandbox)
    assert len(api.built) == 1


def test_an_image_that_another_rbuild_made_meanwhile(
    cache: Cache, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = Api()
    runtime = docker(cache, api)
    ready, api.labels = api.labels, {"rbuild.rootfs": "an earlier one"}
    lock = Cache.lock

    def held(self: Cache, entry: Any) -> Any:
        api.labels = ready  # whoever held it has made the image
        return lock(self, entry)

    monkeypatch.setattr(Cache, "lock", held)
    runtime.prepare(sandbox)
    assert api.built == []


@pytest.mark.parametrize("words", ["no space left on device", "bind source path does not exist"])
def test_only_a_missing_file_tells_of_an_engine_elsewhere(
    cache: Cache, sandbox: Sandbox, words: str
) -> None:
    class Refusing(Api):
        def create_container(self, name: str, command: list[str], **options: Any) -> dict[str, str]:
            raise APIError(words)

    (cache.root / ENGINES).unlink()
    runtime = docker(cache, Refusing())
    if words.startswith("bind"):
        assert not runtime._shares_files("image", "linux/arm64", cache.root)
    else:
        with pytest.raises(InfrastructureError, match="no space left"):
            runtime.run(sandbox, Job(["true"]))
        assert not (cache.root / ENGINES).exists()
        assert not [path for path in cache.root.rglob("*") if "token" in path.name]


def test_a_copied_cache_asks_an_engine_again(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What an engine shares depends on the folder: a cache may be copied to where it sees none."""
    asked: list[Path] = []
    monkeypatch.setattr(
        Docker, "_shares_files", lambda _, *words: bool(asked.append(words[-1]) or True)
    )
    docker(cache, Api())._transport("image", "linux/arm64")
    assert asked == []
    other = Cache(cache.root.rename(tmp_path / "cache2"), cache.console)
    for _ in range(2):
        docker(other, Api())._transport("image", "linux/arm64")
    assert len(asked) == 1


def test_images_of_what_is_gone_are_removed(cache: Cache) -> None:
    @dataclass
    class WithImages(Api):
        def images(self, **options: Any) -> list[dict[str, Any]]:
            names = ("chroot-trixie-arm64-abc", "cross-gone")
            return [{"Id": name, "Labels": {"rbuild.rootfs": name}} for name in names]

    api = WithImages()
    assert image.remove_stale(Client(api), cache) == ["rbuild/rootfs:cross-gone"]  # type: ignore[arg-type]
    assert api.removed == ["cross-gone"]


def test_containers_of_the_dead_are_removed() -> None:
    mine = Owner.this()
    owners = {
        "mine": mine,
        "dead": Owner(mine.machine, mine.boot, mine.pid, "0"),
        "before-boot": Owner(mine.machine, "other", 1, "1"),
        "other-host": Owner("other", mine.boot, 1, "1"),
    }
    api = Api(listed=[{"Id": name, "Labels": owner.labels()} for name, owner in owners.items()])
    api.listed.append({"Id": "strange", "Labels": {"rbuild": "job"}})
    # What is needed for a moment only has an owner, too.
    api.pictured = [
        {"Id": f"image-{name}", "Labels": owners[name].labels(PASSING)} for name in ("mine", "dead")
    ]
    assert remove_orphans(Client(api)) == 3  # type: ignore[arg-type]
    assert api.removed == ["dead", "before-boot", "image-dead"]


def test_what_keeps_an_engine_from_being_reached() -> None:
    assert "group docker" in str(unreachable(PermissionError(13, "Permission denied")).hint)
    assert "bwrap" in str(unreachable(FileNotFoundError(2, "No such file")).hint)


def test_the_equivalent_command_line_is_complete(cache: Cache, sandbox: Sandbox) -> None:
    words = docker(cache, Api()).argv(sandbox, Job(["make", "all"], cwd="/src"))
    line = " ".join(words)
    assert line.startswith("docker run --rm --platform linux/arm64 ")
    assert "--network none" in line
    assert "--read-only" in line
    assert "--env QEMU_CPU=cortex-a72" in line
    assert line.endswith("--workdir /src rbuild/rootfs:chroot-trixie-arm64-abc make all")


class OtherEngine(Api):
    """An engine of this host's architecture, whose containers end with the status that ``runs`` has
    for their platform, or can't be started.
    """

    def __init__(self, runs: dict[str, int]) -> None:
        super().__init__()
        self.runs = runs

    def start(self, name: str) -> None:
        if self.made[-1]["platform"] not in self.runs:
            raise APIError('exec /program: "exec format error": unknown')

    def wait(self, name: str) -> dict[str, int]:
        return {"StatusCode": self.runs[self.made[-1]["platform"]]}

    def logs(self, name: str) -> bytes:
        return b""


def test_doctor_tries_containers_of_other_architectures(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = OtherEngine({"linux/arm64": 42, "linux/386": 42})
    client = SimpleNamespace(
        api=api,
        version=lambda: {"Version": "26.1", "ApiVersion": "1.45", "Os": "linux", "Arch": "amd64"},
    )
    monkeypatch.setattr("rbuild.sandbox.docker.engine.connect", lambda timeout: client)
    engine, *others = doctor._docker(cache)
    assert engine.text == "engine 26.1, API 1.45, linux/amd64"
    found = {one.name: one for one in others}
    assert found["docker, aarch64 programs (optional)"].state is State.OK
    lacking = found["docker, armv7l programs (optional)"]
    assert lacking.state is State.WARNING
    assert "no emulator is registered" in lacking.text
    assert "doctor --fix" in lacking.remedy
    # It leaves nothing in the engine, and a container of a program that fails, neither.
    assert [one["platform"] for one in api.built] == ["linux/arm64", "linux/arm/v7"]
    assert all(one["labels"]["rbuild"] == PASSING for one in api.built)
    assert api.removed == [name for one in api.built for name in ("c1", one["tag"])]
    with tarfile.open(fileobj=io.BytesIO(api.built[0]["context"])) as context:
        inner = context.extractfile("rootfs.tar")
        assert inner is not None
        with tarfile.open(fileobj=inner) as rootfs:
            (program,) = rootfs.getmembers()
    assert (program.name, program.mode) == ("program", 0o755)
    api.runs["linux/arm64"] = 139
    _, first, _ = doctor._docker(cache)
    assert first.state is State.WARNING
    assert first.text == "ended with status 139, not 42"


def test_dockerfiles_have_what_the_definition_has() -> None:
    found = environment.load("chroot")
    text = dockerfile.dockerfile(found)
    assert "FROM --platform=linux/arm64 debian:trixie" in text
    for package in found.base.definition.all_packages:
        assert f" {package} " in text
    assert "--no-install-recommends" in text
    assert "mkdir -p -- /src /kdir /module" in text


def test_limits_are_for_docker_alone(host: Host) -> None:
    done = host("module", "--memory", "4g", code=2)
    assert "--runtime docker" in done.err
    done = host("module", "--runtime", "docker", "--memory", "much", code=2)
    assert "512m or 4g" in done.err


@pytest.mark.parametrize(("cpus", "code"), [("99", 2), ("2.5", 2), ("2", 3), ("0.5", 3)])
def test_more_processors_than_the_engine_has_are_refused(
    host: Host, monkeypatch: pytest.MonkeyPatch, cpus: str, code: int
) -> None:
    class Client:
        class api:  # noqa: N801 - as the SDK has it
            @staticmethod
            def info() -> dict[str, object]:
                return {"NCPU": 2}

    monkeypatch.setattr(Docker, "client", Client)
    monkeypatch.setattr(
        "rbuild.cli.options.Where.kdir",
        lambda *_: (_ for _ in ()).throw(MissingDependency("enough")),
    )
    done = host("module", "--runtime", "docker", "--cpus", cpus, code=code)
    assert ("the Docker engine has 2 processors" in done.err) == (code == 2)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available", UsageError),
        ("Minimum memory limit allowed is 6MB", UsageError),
        ("no space left on device", InfrastructureError),
    ],
)
def test_limits_that_the_engine_refuses_are_wrong_usage(words: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=words), explained("make a container"):
        raise APIError("400 Client Error", explanation=words)


def test_no_engine_is_an_error_with_a_remedy(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    done = host("--json", "module", "--runtime", "docker", code=3)
    assert "No Docker engine answers" in done.json["error"]


def test_an_endless_line_of_a_job_comes_in_parts() -> None:
    ending: list[str] = []
    chunks = iter([b"x" * 1_000_000, b"yy\n\0mark 0 1 \xff\n", b"rest"])
    lines = list(_lines(chunks, "mark", ending))
    assert "".join(lines) == "x" * 1_000_000 + "yy" + "rest"
    assert max(map(len, lines)) <= 2 * MAX_LINE
    assert ending == ["0 1 \ufffd"]


@pytest.mark.parametrize(
    "words", ["", "x", "0", "0 1 2 3", "9" * 5000, "99999999999999999999 1 2 3 4"]
)
def test_what_a_job_forges_of_its_end_is_no_end(cache: Cache, sandbox: Sandbox, words: str) -> None:
    with pytest.raises(InfrastructureError, match="can't be told"):
        Docker(cache)._ended(SimpleNamespace(), [words], deque(), sandbox)
