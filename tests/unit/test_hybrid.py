"""The hybrid: its levels, and the layer of native programs that is bound over its rootfs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rbuild.cache.directory import Cache
from rbuild.errors import UsageError
from rbuild.provision.rootfs import entry_of
from rbuild.sandbox.native import layer, merged
from rbuild.sandbox.runtime import Bind
from rbuild.specs import catalogue, environment
from rbuild.ui.console import Console

from .conftest import Host

DEFINITION = """\
name: mixed
base: chroot
native: cross
level: all
levels:
  compilers: {folders: ["/usr/lib/{triplet}"], programs: [make]}
  all: {programs: [sh, awk]}
"""


@pytest.fixture(autouse=True)
def x86(monkeypatch: pytest.MonkeyPatch) -> None:
    uname = os.uname_result(("Linux", "x", "6", "1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: uname)


def write(folder: Path, text: str = DEFINITION) -> Path:
    path = folder / "mixed.yaml"
    path.write_text(text)
    return path


def test_a_level_has_what_those_before_it_have(tmp_path: Path) -> None:
    path = write(tmp_path)
    every, some = environment.load(str(path)), environment.load(f"{path}:compilers")
    assert (every.name, every.level, every.programs) == ("mixed", "all", ("make", "sh", "awk"))
    assert (some.name, some.level, some.programs) == ("mixed:compilers", "compilers", ("make",))
    assert every.folders == some.folders
    assert environment.load(f"{path}:all") == every


def test_at_level_none_all_is_emulated(tmp_path: Path) -> None:
    found = environment.load(f"{write(tmp_path)}:none")
    chroot = environment.load("chroot")
    assert found.emulated
    assert found.native is None
    assert found.builder.debian == "arm64"
    assert found.base == chroot.base
    assert found.variables == chroot.variables


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("level: all", "level: most"), "none, compilers, all"),
        (("  all:", "  none:"), "needs no definition"),
        (("programs: [sh", "program: [sh"), "Did you mean 'programs'?"),
    ],
)
def test_a_wrong_level_is_explained(tmp_path: Path, change: tuple[str, str], expected: str) -> None:
    path = write(tmp_path, DEFINITION.replace(*change))
    with pytest.raises(UsageError) as caught:
        environment.load(str(path))
    assert expected in caught.value.message
    assert str(path) in caught.value.message


def test_a_variant_is_its_base_in_another_emulator(tmp_path: Path) -> None:
    path = tmp_path / "newest.yaml"
    path.write_text("base: chroot\nemulator: [sid]\nemulated_variables: {QEMU_CPU: max}\n")
    found, chroot = environment.load(str(path)), environment.load("chroot")
    assert found.variables == {"QEMU_CPU": "max"}
    assert found.base.definition.emulator == ("sid",)
    # What is built in it is the same: it has its base's name, and so its rootfs and KDIRs.
    assert found.name == "chroot"
    cache = Cache(tmp_path, Console())
    assert entry_of(found.base, cache) == entry_of(chroot.base, cache)


def test_the_documented_variants_are_of_the_chroot() -> None:
    paths = sorted((Path(__file__).parents[2] / "docs/bench/environments").glob("*.yaml"))
    assert len(paths) >= 4
    assert {environment.load(str(path)).name for path in paths} == {"chroot"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: hybrid\n", "hybrid is not a rootfs of its own"),
        ("base: chrot\n", "Did you mean 'chroot'?"),
        ("base: chroot\nemulators: []\n", "Did you mean 'emulator'?"),
    ],
)
def test_a_wrong_variant_is_explained(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        environment.load(str(path))
    assert expected in caught.value.message


def test_only_a_hybrid_has_levels(bare: Host) -> None:
    assert "Did you mean 'compilers'?" in bare("setup", "hybrid:compiler", code=2).err
    assert "cross has no levels" in bare("setup", "cross:all", code=2).err
    assert "There is no environment" in bare("setup", "hybird:all", code=2).err
    assert catalogue.levels("hybrid") == ["hybrid:none", "hybrid:compilers", "hybrid:all"]
    assert catalogue.levels("cross") == []


def rootfs(folder: Path, **programs: str) -> Path:
    (folder / "usr/bin").mkdir(parents=True)
    (folder / "usr/sbin").mkdir()
    for name, text in programs.items():
        (folder / "usr/bin" / name).write_text(text)
    return folder


def test_programs_are_native_where_both_rootfses_have_them(tmp_path: Path) -> None:
    base = rootfs(tmp_path / "base", dash="arm", make="arm", uname="arm", mawk="arm")
    (base / "usr/bin/sh").symlink_to("dash")
    (base / "usr/bin/awk").symlink_to("/usr/bin/mawk")
    native = rootfs(tmp_path / "native", dash="x86", make="x86", uname="x86")
    (native / "usr/bin/sh").symlink_to("dash")
    found = layer(environment.load(str(write(tmp_path))), base, native)
    assert found.emulated == ("awk",)
    assert {bind.target: bind.source.read_text() for bind in found.binds} == {
        "/usr/bin/make": "x86",
        "/usr/bin/dash": "x86",
    }

    shelf = tmp_path / "layers"
    (bind,) = merged(found.binds, base, shelf, "today")
    assert bind.target == "/usr/bin"
    assert not bind.writable
    seen = {path.name: path.read_text() for path in bind.source.iterdir() if not path.is_symlink()}
    assert seen == {"make": "x86", "dash": "x86", "uname": "arm", "mawk": "arm"}
    assert (bind.source / "sh").readlink() == Path("dash")
    # The rootfses stay as they were; what is there already isn't made again.
    assert (base / "usr/bin/dash").read_text() == "arm"
    before = bind.source.stat().st_ino
    assert merged(found.binds, base, shelf, "today")[0].source.stat().st_ino == before
    assert merged(found.binds, base, shelf, "tomorrow")[0].source != bind.source
    assert not list(shelf.glob(".*"))


def test_folders_and_single_files_are_bound_as_they_are(tmp_path: Path) -> None:
    base, native = rootfs(tmp_path / "base", a="arm"), rootfs(tmp_path / "native", a="x86")
    folder = Bind(native / "usr/sbin", "/usr/sbin")
    single = Bind(native / "usr/bin/a", "/usr/bin/a")
    assert merged([folder, single], base, tmp_path / "layers", "x") == (folder, single)


def test_where_no_link_can_be_made_each_program_is_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = rootfs(tmp_path / "base", a="arm", b="arm")
    native = rootfs(tmp_path / "native", a="x86", b="x86")
    binds = tuple(Bind(native / f"usr/bin/{name}", f"/usr/bin/{name}") for name in "ab")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    assert merged(binds, base, tmp_path / "layers", "x") == binds
    assert not list((tmp_path / "layers").iterdir())
