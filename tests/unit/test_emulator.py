"""The emulator that a sandbox brings along: fetched once, and done without where it can't be had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rbuild import architecture, binfmt, emulator, environment
from rbuild.console import Console
from rbuild.errors import HostLacks
from rbuild.sandbox import Job, Sandbox
from rbuild.sandbox.bwrap import Bwrap
from rbuild.store import Store

from .conftest import Host

APT = """\
echo "$@" >>"$RBUILD_FAKE.apt"
case "$*" in
*indextargets*) echo "Debian|https://mirror.invalid/debian" ;;
*download*) [ -e "$RBUILD_FAKE.gone" ] && exit 100; touch qemu-user_1_amd64.deb ;;
esac
"""

DPKG_DEB = """\
case "$1" in
--field) echo 1:99.1 ;;
--extract) mkdir -p "$4/usr/bin"; echo QEMU >"$4/usr/bin/qemu-aarch64" ;;
esac
"""

VARIANT = """\
base: chroot
emulator: [trixie, trixie-backports]
emulated_variables: {QEMU_CPU: cortex-a72, QEMU_TB_SIZE: "1"}
"""


@pytest.fixture
def variant(bare: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> environment.Environment:
    """The chroot by the newest QEMU, on an x86-64 host with fake packages."""
    uname = os.uname_result(("Linux", "x", "6", "1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: uname)
    monkeypatch.setattr(binfmt, "private", lambda: True)
    monkeypatch.setattr(binfmt, "require", lambda arch: None)
    bare.tool("apt-get", APT)
    bare.tool("dpkg-deb", DPKG_DEB)
    bare.tool("qemu-aarch64-static", "echo qemu-aarch64 version 7.2")
    path = tmp_path / "variant.yaml"
    path.write_text(VARIANT)
    return environment.load(str(path))


def apt_calls(folder: Path, word: str) -> int:
    return sum(word in line for line in (folder / "faults.apt").read_text().splitlines())


def test_the_newest_is_fetched_once(variant: environment.Environment, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache", Console(verbosity=-1))
    found = emulator.obtain(variant, store)
    assert found is not None
    assert found.program is not None
    assert found.program.read_text() == "QEMU\n"
    assert found.describe(variant.variables) == (
        "qemu-user 1:99.1, CPU model cortex-a72, QEMU_TB_SIZE=1"
    )
    assert emulator.obtain(variant, store) == found
    assert apt_calls(tmp_path, "download qemu-user") == 1
    assert apt_calls(tmp_path, "APT::Default-Release=trixie-backports") == 2
    assert not list(found.program.parent.glob("download"))


def test_where_it_cannot_be_had_the_hosts_own_runs(
    variant: environment.Environment, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faults.gone").touch()
    found = emulator.obtain(variant, Store(tmp_path / "cache", Console()))
    assert found == emulator.Emulator("qemu-aarch64 version 7.2")
    assert "could not be downloaded. The host's own QEMU runs chroot." in capfd.readouterr().err


def test_without_namespaces_the_hosts_own_runs_or_is_asked_for(
    variant: environment.Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binfmt, "private", lambda: False)
    store = Store(tmp_path / "cache", Console())
    found = emulator.obtain(variant, store)
    assert found is not None
    assert found.program is None

    def refuse(arch: architecture.Architecture) -> None:
        raise HostLacks("no interpreter")

    monkeypatch.setattr(binfmt, "require", refuse)
    with pytest.raises(HostLacks):
        emulator.obtain(variant, store)


def test_what_is_native_needs_none(tmp_path: Path) -> None:
    assert emulator.obtain(environment.load("cross"), Store(tmp_path, Console())) is None


def test_a_sandbox_registers_its_emulator_before_it_is_entered() -> None:
    line = binfmt.line(architecture.known()["arm64"], Path("/x/qemu"), "PF")
    assert line.startswith(r":qemu-aarch64:M::\x7fELF\x02")
    assert line.endswith(":/x/qemu:PF")
    plain = Bwrap().argv(Sandbox("x", Path("/root")), Job(["true"]))
    argv = Bwrap().argv(Sandbox("x", Path("/root"), interpreter=line), Job(["true"]))
    assert plain[0] == "bwrap"
    assert argv[0] == "unshare"
    assert argv.index(line) < argv.index("bwrap")
    assert argv[-1] == "true"
