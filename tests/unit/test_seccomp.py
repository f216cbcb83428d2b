"""The filter of system calls: what it says to each call of each architecture."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from rbuild.sandbox import seccomp
from rbuild.sandbox.bwrap import Bwrap
from rbuild.sandbox.docker.isolation import FILTER
from rbuild.sandbox.runtime import Job, Sandbox

X86_64, AARCH64, ARM, I386 = 0xC000003E, 0xC00000B7, 0x40000028, 0x40000003
REFUSED = seccomp.ERRNO | seccomp.EAFNOSUPPORT
ABSENT = seccomp.ERRNO | seccomp.ENOSYS


def verdict(architecture: int, number: int, family: int = 0) -> int:
    """Run the filter as the kernel does (Documentation/networking/filter.rst)."""
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, architecture, 0, family, 0, 0, 0, 0, 0)
    program = [*struct.iter_unpack("<HBBI", seccomp.program())]
    value, at = 0, 0
    while True:
        code, true, false, operand = program[at]
        at += 1
        if code == seccomp.LOAD:
            (value,) = struct.unpack_from("<I", data, operand)
        elif code == seccomp.JUMP_IF_EQUAL:
            at += true if value == operand else false
        elif code == seccomp.JUMP_IF_AT_LEAST:
            at += true if value >= operand else false
        else:
            assert code == seccomp.RETURN
            return int(operand)


@pytest.mark.parametrize(
    ("architecture", "sockets", "keys"),
    [
        (X86_64, (41, 53), (248, 249, 250)),
        (AARCH64, (198, 199), (217, 218, 219)),
        (ARM, (281, 288), (309, 310, 311)),
    ],
)
def test_only_common_families_have_sockets_and_no_call_reaches_a_keyring(
    architecture: int, sockets: tuple[int, int], keys: tuple[int, ...]
) -> None:
    for number in sockets:
        for family in range(64):
            wanted = seccomp.ALLOW if family in {1, 2, 10, 16} else REFUSED
            assert verdict(architecture, number, family) == wanted
        # The family is an int: what is above it doesn't count.
        assert verdict(architecture, number, 1 << 32 | 40) == REFUSED
    absent = {425, 426, 427, *keys}
    for number in set(range(600)) - {*sockets, *absent}:
        assert verdict(architecture, number, 40) == seccomp.ALLOW
    for number in absent:
        assert verdict(architecture, number) == ABSENT


def test_no_other_interface_gets_round_it() -> None:
    assert verdict(I386, 102, 1) == seccomp.KILL
    assert verdict(X86_64, 0x40000000 + 41, 40) == ABSENT
    assert verdict(X86_64, -1) == ABSENT


TRIAL = """
import errno, socket, sys
for family in (1, 2, 16, 17, 38, 40):
    try:
        socket.socket(family, socket.SOCK_STREAM if family != 16 else socket.SOCK_RAW).close()
        print(family, 0)
    except OSError as error:
        print(family, error.errno)
"""


@pytest.mark.skipif(not seccomp.is_known(), reason="there is no filter for this machine")
def test_a_containers_init_loads_it() -> None:
    """By the real perl and kernel; what it runs has the filter too."""
    setup = "syscall({x86_64 => 157, aarch64 => 167}->{(POSIX::uname())[4]}, 38, 1, 0, 0, 0);"
    script = f"use POSIX ();\n{setup}\n{FILTER}\nexec @ARGV;"
    words = ["perl", "-e", script, seccomp.program().hex(), sys.executable, "-c", TRIAL]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = dict(map(int, line.split()) for line in done.stdout.splitlines())
    assert found == {1: 0, 2: 0, 16: 0, 17: 97, 38: 97, 40: 97}


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file that has what a stand-in for bubblewrap was called with."""
    folder = tmp_path / "bin"
    folder.mkdir()
    words, filtered = tmp_path / "words", tmp_path / "filter"
    script = f"""#!/bin/sh
for word; do echo "$word"; done >{words}
while [ "$1" != --seccomp ]; do [ $# != 0 ] || exit 0; shift; done
cat "/proc/self/fd/$2" >{filtered}
"""
    (folder / "bwrap").write_text(script)
    (folder / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return words


def test_bubblewrap_gets_it(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbuild.sandbox.cgroup._bounding", lambda *_: None)
    sandbox, job = Sandbox("x", Path("/")), Job(["make", "x"])
    Bwrap().run(sandbox, job)
    assert (told.parent / "filter").read_bytes() == seccomp.program()
    words = told.read_text().splitlines()
    assert words[words.index("--") :] == ["--", "prlimit", words[-4], "--", "make", "x"]
    assert int(words[-4].removeprefix("--nproc=")) >= 4096
    # What can be pasted needs no descriptor.
    assert "--seccomp" not in Bwrap().argv(sandbox, job)


def test_an_unknown_machine_has_none(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "MACHINES", frozenset())
    Bwrap().run(Sandbox("x", Path("/")), Job(["make"]))
    assert "--seccomp" not in told.read_text().splitlines()


def test_a_lower_limit_of_the_user_s_own_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """prlimit(1) can't raise the hard limit, and then ran nothing at all."""
    import resource

    from rbuild.sandbox import bwrap, cgroup

    for own, bound in ((2000, 2000), (resource.RLIM_INFINITY, cgroup.max_tasks()), (1 << 20, None)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, own=own: (own, own))
        assert bwrap._nproc() == (bound or cgroup.max_tasks())
