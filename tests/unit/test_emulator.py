"""The emulator that a sandbox brings along: fetched once, and done without where it can't be had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rbuild.cache.directory import Cache
from rbuild.errors import MissingDependency
from rbuild.provision import qemu_user
from rbuild.sandbox import binfmt
from rbuild.sandbox.bwrap import Bwrap
from rbuild.sandbox.runtime import Job, Sandbox
from rbuild.specs import architecture, environment
from rbuild.ui.console import Console

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
    cache = Cache(tmp_path / "cache", Console(verbosity=-1))
    found = qemu_user.obtain(variant, cache)
    assert found is not None
    assert found.program is not None
    assert found.program.read_text() == "QEMU\n"
    assert found.describe(variant.variables) == (
        "qemu-user 1:99.1, CPU model cortex-a72, QEMU_TB_SIZE=1"
    )
    assert qemu_user.obtain(variant, cache) == found
    assert apt_calls(tmp_path, "download qemu-user") == 1
    assert apt_calls(tmp_path, "APT::Default-Release=trixie-backports") == 2
    assert not list(found.program.parent.glob("download"))


def test_where_it_cannot_be_had_the_hosts_own_runs(
    variant: environment.Environment, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faults.gone").touch()
    found = qemu_user.obtain(variant, Cache(tmp_path / "cache", Console()))
    assert found == qemu_user.Emulator("qemu-aarch64 version 7.2")
    assert "could not be downloaded. The host's own QEMU runs chroot." in capfd.readouterr().err


def test_without_namespaces_the_hosts_own_runs_or_is_asked_for(
    variant: environment.Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binfmt, "private", lambda: False)
    cache = Cache(tmp_path / "cache", Console())
    found = qemu_user.obtain(variant, cache)
    assert found is not None
    assert found.program is None

    def refuse(arch: architecture.Architecture) -> None:
        raise MissingDependency("no interpreter")

    monkeypatch.setattr(binfmt, "require", refuse)
    with pytest.raises(MissingDependency):
        qemu_user.obtain(variant, cache)


def test_what_is_native_needs_none(tmp_path: Path) -> None:
    assert qemu_user.obtain(environment.load("cross"), Cache(tmp_path, Console())) is None


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


# Whether the host emulates.

ARM = architecture.known()["arm64"]


def registered(folder: Path, name: str = "qemu-aarch64", text: str = "") -> Path:
    """Be binfmt_misc with an entry."""
    (folder / "status").write_text("enabled\n")
    interpreter = folder / "qemu"
    interpreter.touch()
    text = text or f"enabled\ninterpreter {interpreter}\nflags: PF\n"
    (folder / name).write_text(text)
    return folder


@pytest.fixture
def mounted(bare: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "binfmt_misc"
    folder.mkdir()
    monkeypatch.setattr(binfmt, "MOUNT_POINT", folder)
    return folder


def test_a_program_that_runs_is_emulated_whatever_is_registered(bare: Host, mounted: Path) -> None:
    assert binfmt.problem(ARM) is None  # nothing is mounted here
    registered(mounted, "aarch64")
    assert binfmt.problem(ARM) is None
    registered(mounted, text="enabled\ninterpreter /gone/qemu\nflags: F\n")
    assert binfmt.problem(ARM) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("disabled\ninterpreter /usr/bin/qemu\nflags: F\n", "is disabled"),
        ("enabled\ninterpreter /usr/bin/box64\nflags: F\n", "which isn't QEMU"),
        ("enabled\ninterpreter /bin/qemu-none\nflags: F\n", "doesn't exist"),
        (f"enabled\ninterpreter {__file__}/../qemu\nflags: \n", "doesn't exist"),
        ("", "ended with 1: bwrap: execvp /program"),
    ],
)
def test_a_program_that_doesnt_run_is_explained(
    bare: Host, mounted: Path, text: str, said: str
) -> None:
    bare.fault("not-emulated")
    assert binfmt.problem(ARM) == "binfmt_misc is not mounted"
    registered(mounted, text=text)
    assert said in str(binfmt.problem(ARM))
    with pytest.raises(MissingDependency, match="aarch64 programs can't run on this host"):
        binfmt.require(ARM)


def test_what_cant_be_tried_is_inferred(bare: Host, mounted: Path) -> None:
    bare.fault("no-namespaces")
    assert binfmt.problem(ARM) == "binfmt_misc is not mounted"
    registered(mounted)
    assert binfmt.problem(ARM) is None


@pytest.mark.parametrize(
    ("words", "state"),
    [
        ((), "warning"),
        (("--env", "cross"), "warning"),
        (("--env", "cross", "--env", "chroot"), "missing"),
        (("--profile", "slim-arm32"), "warning"),
    ],
)
def test_doctor_asks_for_what_the_environment_needs(
    bare: Host, mounted: Path, words: tuple[str, ...], state: str
) -> None:
    bare.fault("not-emulated")
    found = {one["name"]: one for one in bare.anyhow("--json", "doctor", *words).json}
    assert found["aarch64 programs"]["state"] == state
    assert found["armv7l programs"]["state"] == "warning"
    assert "qemu-user-static" in found["aarch64 programs"]["packages"]
