"""A remote engine: a dockerd that sees none of our files, reached by socket, TLS and ssh."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError
from docker.types import Mount

from rbuild.cache.directory import Cache
from rbuild.cache.entry import EntryKind
from rbuild.errors import MissingDependency, ProcessFailed
from rbuild.kernel.build import build as build_kernel
from rbuild.kernel.identity import Kernel
from rbuild.kernel.prepare import discard, prepare
from rbuild.module import build, drivers, workplace
from rbuild.provision.prepare import prepare_environment
from rbuild.provision.rootfs import entry_of, provision
from rbuild.sandbox.bwrap import Bwrap
from rbuild.sandbox.context import BuildContext
from rbuild.sandbox.docker.engine import connect
from rbuild.sandbox.docker.image import platform_of
from rbuild.sandbox.docker.manifest import scan
from rbuild.sandbox.docker.synced import sweep
from rbuild.sandbox.runtime import Bind, Job, Sandbox
from rbuild.source import fetch
from rbuild.specs import architecture, environment, profile
from rbuild.specs.definitions import RootfsDefinition
from rbuild.specs.environment import Rootfs
from rbuild.specs.profile import Driver, Kind
from rbuild.ui.console import Console
from rbuild.util import data
from rbuild.util.process import Completed

from .conftest import Rbuild
from .engine import Engine, Recorded, certify, free_port, running_engine, ssh_host
from .test_9_deploy import PACKAGES

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("dockerd") is None, reason="needs dockerd"),
]


@dataclass(frozen=True)
class Far:
    """The engine, a cache whose entries are those of rbuild's own, and where to find a rootfs."""

    engine: Engine
    client: Any
    cache: Cache
    sandbox: Sandbox

    def runtime(self, cache: Cache | None = None) -> Recorded:
        return Recorded(cache or self.cache)

    def run(self, cache: Cache, job: Job) -> Completed:
        return self.runtime(cache).run(self.sandbox, job)


@pytest.fixture(scope="module")
def far(rbuild: Rbuild, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    usual = Path(rbuild("--json", "status").json["root"])
    own = Path(tempfile.mkdtemp(prefix="rbuild-remote-", dir=usual.parent))
    cache = Cache(own, Console(verbosity=-1))
    try:
        ready = prepare_environment(
            environment.load("cross"), Cache(usual, Console(verbosity=-1)), Bwrap()
        )
        found = profile.load("slim")
        context = BuildContext("module", Cache(usual, Console(verbosity=-1)), Bwrap())
        tree = fetch.obtain(found, ready, context.cache)
        kdir = prepare(Kernel(found, tree, ready, context))
        for kind in (EntryKind.ROOTFS, EntryKind.TREES, EntryKind.KDIRS):
            (own / kind).mkdir()
        # What never changes as hard links: the rootfs, the tree, and the source from which that was
        # patched.
        root = ready.sandbox.root
        link(root.parent, own / EntryKind.ROOTFS)
        for entry in context.cache.entries(EntryKind.TREES):
            if entry.path in tree.path.parents or entry.name.startswith("linux-source-"):
                link(entry.path, own / EntryKind.TREES)
        subprocess.run(["cp", "-a", kdir.entry.path, own / EntryKind.KDIRS], check=True)
        shutil.rmtree(own / EntryKind.KDIRS / kdir.entry.name / "modules", ignore_errors=True)
        hidden = (usual, own, tmp_path_factory.getbasetemp(), data.folder("module"))
        with (
            running_engine(*hidden, port=free_port()) as here,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setenv("DOCKER_HOST", here.host)
            client = connect()
            import_rootfs(client, root)
            yield Far(here, client, cache, ready.sandbox)
            for one in client.containers.list(all=True):
                one.remove(force=True)
            client.close()
    finally:
        shutil.rmtree(own)


def link(entry: Path, kind: Path) -> None:
    """Have an entry in another cache, too, unless it is there."""
    if not (kind / entry.name).exists():
        subprocess.run(["cp", "-al", entry, kind], check=True)


def import_rootfs(client: Any, root: Path) -> None:
    """Give the engine the image that rbuild would make, in one go."""
    entry = root.parent
    metadata = json.loads((entry / "metadata.json").read_text())
    labels = {
        "rbuild": "rootfs",
        "rbuild.rootfs": entry.name,
        "rbuild.created": metadata["created"],
        "rbuild.platform": platform_of(metadata["architecture"]),
    }
    pack = ["tar", "--create", f"--directory={root}", "--exclude=./dev/*", "."]
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as tar:
        client.api.import_image_from_stream(
            tar.stdout,
            repository="rbuild/rootfs",
            tag=entry.name,
            changes=[f"LABEL {key}={value}" for key, value in labels.items()],
        )


@pytest.fixture
def small(tmp_path: Path) -> Cache:
    """A cache with nothing in it."""
    (tmp_path / "cache").mkdir()
    return Cache(tmp_path / "cache", Console(verbosity=-1))


def publish(cache: Cache, kind: EntryKind, files: dict[str, bytes]) -> Path:
    entry = cache.entry(kind, "some", "key")
    with cache.lock(entry):
        partial = cache.partial(entry)
        for name, content in files.items():
            path = partial / "build" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        cache.publish(entry, partial, {})
    return entry.path / "build"


def sh(script: str, *binds: Bind) -> Job:
    return Job(["sh", "-euc", script], binds)


def test_the_engine_sees_none_of_our_files(far: Far, tmp_path: Path) -> None:
    name = f"rbuild/rootfs:{far.sandbox.root.parent.name}"
    for path in (far.cache.root / EntryKind.KDIRS / "x", tmp_path):
        path.mkdir(exist_ok=True)
        mount = Mount("/module", str(path), type="bind")
        with pytest.raises(APIError, match="does not exist"):
            far.client.containers.create(name, ["true"], mounts=[mount])
    (far.cache.root / EntryKind.KDIRS / "x").rmdir()


def test_what_a_job_writes_comes_back_as_it_was(far: Far, small: Cache, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "old/folder").mkdir(parents=True)
    (folder / "old/folder/file").write_text("x")
    (folder / "becomes-folder").write_text("x")
    (folder / "program").write_text("#!/bin/sh\n")
    (folder / "program").chmod(0o755)
    (folder / "-rf").write_text("old")
    untouched = (folder / "program").stat()
    script = r"""
        cd /module
        test -x program
        rm -r old becomes-folder
        mkdir -p becomes-folder/empty
        echo new >-rf
        printf x >"$(printf 'odd\n\303\244\377 //name')" 2>/dev/null || printf x >"$(printf 'odd\n\303\244\377 ')"
        ln -s /src source
        ln -s ../../../outside escape
        touch -d '2020-01-02 03:04:05.123456789 UTC' stamped
        ln stamped twice
        mkfifo pipe
        chmod 4711 stamped
    """
    far.run(small, sh(script, Bind(folder, "/module", writable=True)))
    found = scan(folder)
    odd = os.fsdecode(b"odd\n\xc3\xa4\xff ")
    wanted = {"-rf", "becomes-folder", "becomes-folder/empty", "program", odd}
    assert set(found) == wanted | {"source", "escape", "stamped", "twice"}
    assert found["source"].target == "/src"
    assert found["stamped"].mtime_ns == 1_577_934_245_123_456_789
    assert found["stamped"].mode == 0o711
    assert (folder / "-rf").read_text() == "new\n"
    after = (folder / "program").stat()
    assert (after.st_ino, after.st_mtime_ns) == (untouched.st_ino, untouched.st_mtime_ns)
    assert not far.client.volumes.list(filters={"label": "rbuild.entry="})
    # A job that fails leaves what it has written, too.
    with pytest.raises(ProcessFailed):
        job = sh("echo half >/module/half; exit 3", Bind(folder, "/module", writable=True))
        far.run(small, job)
    assert (folder / "half").read_text() == "half\n"


def test_files_and_binds_within_binds(far: Far, small: Cache, tmp_path: Path) -> None:
    outer = publish(
        small, EntryKind.TREES, {"a": b"tree\n", "drivers/mine/old": b"", "include/b": b"b"}
    )
    inner, edit, log = tmp_path / "inner", tmp_path / "edit", tmp_path / "log"
    inner.mkdir()
    (inner / "new").write_text("driver\n")
    edit.write_text("edited\n")
    log.write_text("")
    script = """
        cat /src/a /src/drivers/mine/new /src/include/b
        ! test -e /src/drivers/mine/old
        ! touch /src/no /src/a /src/drivers/mine/no 2>/dev/null
        echo said >>/var/log/said
    """
    binds = (
        Bind(outer, "/src"),
        Bind(inner, "/src/drivers/mine"),
        Bind(edit, "/src/a"),
        Bind(log, "/var/log/said", writable=True),
    )
    number = log.stat().st_ino
    done = far.run(small, sh(script, *binds))
    assert done.text == "edited\ndriver\nb"
    assert log.read_text() == "said\n"
    assert log.stat().st_ino == number
    assert (outer / "a").read_text() == "tree\n"


def test_only_what_changed_is_sent(far: Far, small: Cache) -> None:
    big = os.urandom(3_000_000)
    kdir = publish(small, EntryKind.KDIRS, {"big": big, "a": b"1", "b/c": b"2", "gone": b"3"})
    runtime = far.runtime(small)
    look = sh("cd /kdir; cat a b/c; ls", Bind(kdir, "/kdir"))
    write = sh("cd /kdir; echo more >>b/c; rm a", Bind(kdir, "/kdir", writable=True))
    runtime.run(far.sandbox, look)
    assert runtime.journeys[-1].sent > len(big)
    runtime.run(far.sandbox, look)
    assert runtime.journeys[-1].sent == runtime.journeys[-1].received == 0
    runtime.run(far.sandbox, write)
    assert (kdir / "b/c").read_bytes() == b"2more\n"
    (kdir / "a").write_text("again")
    (kdir / "gone").unlink()
    assert runtime.run(far.sandbox, look).text == "again2more\na\nb\nbig"
    assert sum(one.sent for one in runtime.journeys[2:]) < 20_000
    # Without what this host knows of it the engine is asked, and still nothing is sent twice.
    shutil.rmtree(small.root / "volumes")
    (kdir / "a").write_text("once more")
    assert runtime.run(far.sandbox, look).text == "once more2more\na\nb\nbig"
    assert runtime.journeys[-1].sent < 20_000


KILLED = """
import sys
from pathlib import Path
from rbuild.ui.console import Console
from rbuild.sandbox.runtime import Bind, Job, Sandbox
from rbuild.sandbox.docker.runtime import Docker
from rbuild.cache.directory import Cache
root, store, folder, writable, script = sys.argv[1:]
job = Job(["sh", "-c", script], [Bind(Path(folder), "/kdir", bool(writable))])
runtime = Docker(Cache(Path(store), Console()))
runtime.run(Sandbox("cross", Path(root)), job, on_line=lambda line: print(line, flush=True))
"""


def start(
    far: Far, cache: Cache, folder: Path, script: str, writable: str = ""
) -> subprocess.Popen[str]:
    words = [str(far.sandbox.root), str(cache.root), str(folder), writable, script]
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, *words], stdout=subprocess.PIPE, text=True
    )


def jobs(far: Far) -> list[Any]:
    # Not containers.list, which asks for each by name: one may be gone meanwhile.
    found: list[Any] = far.client.api.containers(all=True, filters={"label": "rbuild=job"})
    return found


def test_a_killed_job_leaves_the_host_s_state(far: Far, small: Cache) -> None:
    kdir = publish(small, EntryKind.KDIRS, {"a": b"1", "b": b"2"})
    child = start(
        far, small, kdir, "cd /kdir; echo x >a; rm b; echo y >c; echo now; sleep 100", "w"
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "now\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    before = scan(kdir)
    job = sh("cd /kdir; cat a b; ls", Bind(kdir, "/kdir", writable=True))
    assert far.run(small, job).text == "12a\nb"
    assert scan(kdir) == before
    # Nothing of the killed one is left, and of its entry nothing once that is gone.
    assert not jobs(far)
    assert sweep(far.client, small) == []
    shutil.rmtree(kdir.parent)
    assert len(sweep(far.client, small)) == 2


def test_a_killed_upload_is_never_taken_for_a_whole_one(far: Far, small: Cache) -> None:
    files = {f"{number}": os.urandom(2_000_000) for number in range(60)}
    tree = publish(small, EntryKind.TREES, files)
    killed = 0
    for wait in (0.4, 0.8, 1.2):
        child = start(far, small, tree, "true")
        # It has begun once there is a helper.
        while not jobs(far):
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(wait / 2)
        child.kill()
        killed += child.wait() == -signal.SIGKILL
    assert killed
    done = far.run(small, sh("cd /src; sha256sum *", Bind(tree, "/src")))
    sums = sorted((name, hashlib.sha256(content).hexdigest()) for name, content in files.items())
    assert done.text == "\n".join(f"{value}  {name}" for name, value in sums)


def test_a_container_that_leaves_a_door_writes_nothing_outside(
    far: Far, small: Cache, tmp_path: Path
) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    for path in (outside, folder, folder / "sub"):
        path.mkdir()
    script = f"cd /module; rmdir sub; ln -s {outside} sub; mkdir real; echo x >real/file"
    far.run(small, sh(script, Bind(folder, "/module", writable=True)))
    assert (folder / "sub").is_symlink()
    # Through that link nothing is sent or written.
    script = "cd /module; rm sub; mkdir sub; echo evil >sub/evil"
    far.run(small, sh(script, Bind(folder, "/module", writable=True)))
    assert (folder / "sub/evil").read_text() == "evil\n"
    assert not list(outside.iterdir())


def test_modules_are_the_same_as_under_bwrap(far: Far, rbuild: Rbuild, tmp_path: Path) -> None:
    runtime = far.runtime()
    context = BuildContext("module", far.cache, runtime, jobs=2)
    found = profile.load("slim")
    ready = prepare_environment(environment.load("cross"), far.cache, runtime)
    tree = fetch.obtain(found, ready, far.cache)
    kdir = prepare(Kernel(found, tree, ready, context))
    for kind in Kind:
        (usual,) = rbuild("--json", "module", f"--{kind}").json["artefacts"]
        (made,) = build.build_driver(kdir, Driver.RUST, kind, context).modules
        assert made.sha256 == usual["sha256"], kind
    # Times came back to the nanosecond: make finds nothing to do.
    folder = kdir.entry.path / "modules/again"
    place = workplace.out_of_tree(kdir, drivers.driver_source(Driver.C), folder, context)
    place.sync()
    place.make()
    sent = len(runtime.journeys)
    before = len(context.log_path.read_text())
    place.make()
    said = context.log_path.read_text()[before:]
    assert "  CC " not in said
    assert "  LD " not in said
    assert sum(one.sent for one in runtime.journeys[sent:]) < 20_000


@dataclass
class Together(Recorded):
    """A runtime whose calls of make begin only once two are there: a lock would part them."""

    both: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=60))

    def run(self, sandbox: Sandbox, job: Job, **how: Any) -> Completed:
        if "make" in job.argv and "modules" in job.argv:
            self.both.wait()
        return super().run(sandbox, job, **how)


def test_modules_of_one_kdir_do_not_wait_for_each_other(
    far: Far, rbuild: Rbuild, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each is an rbuild of its own, as it were: with its own cache object, client and volumes."""
    (usual,) = rbuild("--json", "module", "--driver", "c").json["artefacts"]
    both = threading.Barrier(2, timeout=60)

    def make(number: int) -> str:
        folder = tmp_path / str(number) / "mfrc522"
        shutil.copytree(drivers.driver_source(Driver.C), folder)
        cache = Cache(far.cache.root, Console())
        runtime = Together(cache, both=both)
        context = BuildContext("module", cache, runtime, jobs=1)
        ready = prepare_environment(environment.load("cross"), cache, runtime)
        found = profile.load("slim")
        tree = fetch.obtain(found, ready, cache)
        kdir = prepare(Kernel(found, tree, ready, context))
        (made,) = build.build_out_of_tree(kdir, folder, context).modules
        runtime.client.close()
        return made.sha256

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(make, range(2))) == {usual["sha256"]}
    assert "Waiting for" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_hybrid_is_the_same_as_under_bwrap(far: Far, rbuild: Rbuild) -> None:
    """Its native layer is carried like everything else: once."""
    words = ("--json", "module", "--env", "hybrid", "--driver", "c")
    (usual,) = rbuild(*words).json["artefacts"]
    theirs = Cache(Path(rbuild("--json", "status").json["root"]), Console(verbosity=-1))
    hybrid = environment.load("hybrid")
    for part in hybrid.rootfses:
        link(entry_of(part, theirs).path, far.cache.root / EntryKind.ROOTFS)
    runtime = far.runtime()
    context = BuildContext("module", far.cache, runtime, jobs=2)
    found = profile.load("slim")
    ready = prepare_environment(hybrid, far.cache, runtime)
    tree = fetch.obtain(found, ready, far.cache)
    kdir = prepare(Kernel(found, tree, ready, context))
    (made,) = build.build_driver(kdir, Driver.C, Kind.OUT_OF_TREE, context).modules
    assert made.sha256 == usual["sha256"]
    layer = sum(one.sent for one in runtime.journeys)
    assert layer > 100_000_000  # bytes: LLVM alone has more
    sent = len(runtime.journeys)
    done = runtime.run(ready.sandbox, sh("uname -m; make --version; readlink -f $(which sh)"))
    assert done.text.startswith("aarch64\nGNU Make")
    assert sum(one.sent for one in runtime.journeys[sent:]) < 20_000


def goes_there_and_back(far: Far, cache: Cache, folder: Path) -> None:
    """Check that a job gets its files and gives them back."""
    folder.mkdir()
    (folder / "big").write_bytes(os.urandom(5_000_000))
    runtime = far.runtime(cache)
    job = sh("cd /module; cp big copy; echo done", Bind(folder, "/module", writable=True))
    assert runtime.run(far.sandbox, job).text == "done"
    assert (folder / "copy").read_bytes() == (folder / "big").read_bytes()
    assert runtime.journeys[-1].sent > 5_000_000
    runtime.client.close()


def test_an_engine_behind_tls(
    far: Far, small: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{far.engine.port}")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(far.engine.certificates))
    # As on a host that trusts a CA of its own.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", ssl.get_default_verify_paths().openssl_cafile)
    goes_there_and_back(far, small, tmp_path / "folder")
    # A CA that is another; a client whom the engine's CA doesn't know; certificates that aren't
    # there; no TLS at all.
    other, mixed, lacking = tmp_path / "other", tmp_path / "mixed", tmp_path / "lacking"
    for path in (other, mixed):
        shutil.copytree(far.engine.certificates, path)
    lacking.mkdir()
    certify(other)
    for name in ("cert.pem", "key.pem"):
        shutil.copy(other / name, mixed / name)
    for folder, hint in ((other, "/ca.pem"), (mixed, "--tlscacert"), (lacking, "cert.pem and")):
        monkeypatch.setenv("DOCKER_CERT_PATH", str(folder))
        with pytest.raises(MissingDependency) as caught:
            connect()
        assert hint in str(caught.value.hint), caught.value.detail
    monkeypatch.delenv("DOCKER_CERT_PATH")
    monkeypatch.delenv("DOCKER_TLS_VERIFY")
    with pytest.raises(MissingDependency) as caught:
        connect()
    assert "DOCKER_TLS_VERIFY=1" in str(caught.value.hint), caught.value.detail


def test_an_engine_behind_ssh(
    far: Far, small: Cache, rbuild: Rbuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Cache(Path(rbuild("--json", "status").json["root"]), Console(verbosity=-1))
    host = architecture.host()
    definition = RootfsDefinition(
        name="board", suite="trixie", architecture="host", packages=PACKAGES
    )
    root = provision(Rootfs(definition, host, emulated=False, host=host), usual).path
    keys = tmp_path / "keys"
    keys.mkdir()
    with ssh_host(far.engine, root, keys) as port:
        monkeypatch.setenv("PATH", f"{keys}:{os.environ['PATH']}")
        monkeypatch.setenv("DOCKER_HOST", f"ssh://root@127.0.0.1:{port}")
        goes_there_and_back(far, small, tmp_path / "folder")
        tunnels = Path(tempfile.gettempdir()).glob("rbuild-ssh-*")
        assert not [path for path in tunnels if f"-{os.getpid()}-" in path.name]
        for place, hint in (
            (f"ssh://stranger@127.0.0.1:{port}", f"`ssh -p {port} stranger@127.0.0.1 true`"),
            (f"ssh://root@127.0.0.1:{port}/run/none.sock", "must name another"),
        ):
            monkeypatch.setenv("DOCKER_HOST", place)
            with pytest.raises(MissingDependency) as caught:
                connect()
            assert hint in str(caught.value.hint)


@pytest.mark.slow
def test_a_whole_kernel_is_the_same_as_under_bwrap(far: Far, rbuild: Rbuild) -> None:
    usual = {
        one["path"].rpartition("/")[2]: one["sha256"]
        for one in rbuild("--json", "kernel").json["artefacts"]
    }
    runtime = far.runtime()
    context = BuildContext("kernel", far.cache, runtime, jobs=2)
    found = profile.load("slim")
    ready = prepare_environment(environment.load("cross"), far.cache, runtime)
    tree = fetch.obtain(found, ready, far.cache)
    discard(Kernel(found, tree, ready, context))
    built = build_kernel(prepare(Kernel(found, tree, ready, context)))
    made = {Path(one["path"]).name: one["sha256"] for one in built.artefacts}
    assert made == usual
