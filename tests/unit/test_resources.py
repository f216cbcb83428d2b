"""What runs out: time, memory, the disk, inodes; and clocks that jump."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rbuild.errors import BuildFailed, InfrastructureError, ProcessFailed
from rbuild.module.sync import sync
from rbuild.provision.jobs import explain
from rbuild.sandbox import oom
from rbuild.sandbox.cgroup import max_tasks
from rbuild.util import files
from tests.unit.conftest import Host

# Time.


def test_a_build_that_hangs_is_ended(host: Host) -> None:
    host.fault("hold")
    words = ("module", host.write_module(), "--profile", host.profile)
    found = host(*words, "--timeout", "0.5", code=1)
    assert "was not done for 0.5 s, and was ended" in found.err
    assert "--timeout" in found.err
    host.fault()
    host(*words, "--timeout", "60")


def test_a_limit_of_no_time_is_refused(host: Host) -> None:
    assert "--timeout" in host("kernel", "--timeout", "0", code=2).err


def test_a_reproducer_has_the_limit(host: Host) -> None:
    found = host.module(host.write_module(), "--timeout", "90").json
    assert "--timeout 90" in found["reproduce"]["rbuild"]


# Memory.

WORDS = {
    "clang: error: unable to execute command: Killed": "clang",
    "/bin/sh: line 1: 4242 Killed                  rustc --edition=2021": "rustc",
    "error: could not compile `core` (signal: 9, SIGKILL: kill)": "a program of it",
    "make[3]: *** [/src/scripts/Makefile.build:229: init/main.o] Error 137": "make",
}


def failure(line: str) -> ProcessFailed:
    return ProcessFailed(("make",), 2, ("  CC      init/main.o", line))


@pytest.mark.parametrize("line", WORDS)
def test_a_kill_for_want_of_memory_is_said_as_such(line: str) -> None:
    found = explain(failure(line), "Building", Path("log"), ran_out=True)
    assert isinstance(found, InfrastructureError)
    assert f"memory ran out, and the kernel killed {WORDS[line]}" in found.message
    # Somebody else may have killed it.
    other = explain(failure(line), "Building", Path("log"), ran_out=False)
    assert isinstance(other, BuildFailed)


def test_an_error_while_another_program_was_killed_is_an_error() -> None:
    line = "init/main.c:3:1: error: unknown type name 'Killed'"
    assert isinstance(explain(failure(line), "x", Path("log"), ran_out=True), BuildFailed)


@pytest.mark.parametrize(
    "line",
    [
        "make[2]: fork: Resource temporarily unavailable",
        "/bin/sh: 1: Cannot fork",
        "qemu: qemu_thread_create: Resource temporarily unavailable",
        "clang: error: unable to execute command: posix_spawn failed: "
        "Resource temporarily unavailable",
    ],
)
def test_a_bound_on_processes_is_told(line: str) -> None:
    found = explain(failure(line), "Building", Path("log"))
    assert isinstance(found, BuildFailed)
    assert f"limit: {max_tasks()} per build" in (found.hint or "")
    other = explain(failure("read: Resource temporarily unavailable"), "x", Path("log"))
    assert "per build" not in (other.hint or "")


def test_the_hosts_counter_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert oom.kills() >= 0
    (tmp_path / "vmstat").write_text("nr_free_pages 1\noom_kill 17\n")
    monkeypatch.setattr(oom, "VMSTAT", tmp_path / "vmstat")
    assert oom.kills() == 17
    monkeypatch.setattr(oom, "VMSTAT", tmp_path / "none")
    assert oom.kills() == 0


# The disk.


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "The disk is full"),
        (errno.EDQUOT, "The disk is full"),
        (errno.EROFS, "Read-only file system"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("after", [0, 1, 3, 5, 7])
def test_a_disk_that_fails_at_any_write_leaves_the_store_intact(
    host: Host, monkeypatch: pytest.MonkeyPatch, number: int, said: str, after: int
) -> None:
    module = host.write_module()
    count = [0]

    def failing(real):
        def write(path: Path, *more: object, **named: object) -> object:
            count[0] += 1
            if count[0] > after:
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *more, **named)

        return write

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", failing(Path.write_text))
        patch.setattr(files, "written", failing(files.written))
        found = host("module", module, "--profile", host.profile, code=4)
        assert said in found.err
        assert count[0] > after
    made = host.module(module)
    assert made.code == 0
    assert host("status", "--verify").code == 0
    assert not [path for path in host.cache.rglob(".*.partial") if path.is_dir()]


# Clocks.


def test_a_clock_that_goes_back_hides_no_change(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "a.c").write_text("one")
    sync(source, target)
    built = target / "a.o"
    built.write_text("object")
    later = time.time() + 3600
    os.utime(built, (later, later))
    (source / "a.c").write_text("two")
    sync(source, target)
    # make compares times: what changed must be newer than what was built of it.
    assert not built.exists()


@pytest.mark.parametrize("when", [0, 4e9])
def test_a_sources_own_time_is_nobodys_matter(tmp_path: Path, when: float) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "a.c").write_text("one")
    os.utime(source / "a.c", (when, when))
    sync(source, target)
    assert abs((target / "a.c").stat().st_mtime - time.time()) < 3600
    before = (target / "a.c").stat().st_mtime_ns
    sync(source, target)
    assert (target / "a.c").stat().st_mtime_ns == before


def test_ages_are_never_negative(host: Host) -> None:
    host.module(host.write_module())
    for path in host.cache.glob("*/*/metadata.json"):
        text = path.read_text()
        path.write_text(text.replace('"created": 1', '"created": 9'))
    entries = host("--json", "status").json["entries"]
    assert entries
    assert all(one["age_s"] >= 0 for one in entries)
    assert host("--json", "clean", "--older-than", "1", "--what", "trees").json["removed"] == []


# The terminal.

ON_A_TERMINAL = """\
import fcntl, os, signal, sys, termios
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
fcntl.ioctl(2, termios.TIOCSCTTY, 0)
os.geteuid = lambda: 0
from rbuild.cli import main as cli
sys.exit(cli.run(sys.argv[1:]))
"""


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_closed_terminal_interrupts(
    host: Host, monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    monkeypatch.setenv("TERM", term)
    words = ["module", str(host.write_module()), "--profile", str(host.profile)]
    host.fault("hold")
    master, slave = os.openpty()
    argv = [sys.executable, "-c", ON_A_TERMINAL, *words]
    with subprocess.Popen(
        argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    ) as child:
        os.close(slave)
        for _ in range(3000):
            if (host.folder / "held").exists():
                break
            time.sleep(0.01)
        os.close(master)
        assert child.wait(60) == 130
    host.fault()
    host.module(host.folder / "mine")


@pytest.mark.parametrize(("free", "kind"), [(100, InfrastructureError), (1 << 30, BuildFailed)])
def test_kconfig_that_cannot_write_to_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, kind: type[Exception]
) -> None:
    """Kconfig says no more than that there was an error: what the disk has left tells which."""
    real = os.statvfs(tmp_path)
    values = list(real[:10])
    values[1], values[4] = 1, free  # f_frsize, f_bavail
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(values))
    failed = ProcessFailed(("make",), 2, ("", "*** Error during sync of the configuration.", ""))
    error = explain(failed, "Preparing", tmp_path / "log")
    assert type(error) is kind
    assert ("the disk is full" in error.message) == (kind is InfrastructureError)


INTERRUPTED_INSIDE_EXEC = """
import sys
from rbuild import __main__
from rbuild.cli import main as cli

def run(arguments):
    try:
        exec("raise KeyboardInterrupt")
    except KeyboardInterrupt:
        print("said", flush=False)
        return 130

cli.run = run
sys.argv = ["rbuild", "status"]
__main__.main()
"""


def test_an_interrupt_while_a_class_is_made_is_one_like_any_other(tmp_path: Path) -> None:
    """CPython remembers an interrupt inside exec(), as dataclasses use, and dies of it at its end.

    That is so for ``python -m``, in ``Py_RunMain``.
    """
    (tmp_path / "asked.py").write_text(INTERRUPTED_INSIDE_EXEC)
    checkout = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{checkout}"}
    words = [sys.executable, "-m", "asked"]
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (130, "said\n", "")
