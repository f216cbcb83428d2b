"""What rbuild remembers of what it made: believed only while it is true, after a power cut too."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rbuild.cache import entry
from rbuild.cache.directory import Cache
from rbuild.kernel import products
from rbuild.module import build, workplace
from rbuild.util import files, hashes, host

from .conftest import Host, Result


def write_two(host: Host) -> Path:
    """Write a module of two sources."""
    folder = host.write_module()
    (folder / "other.c").write_text("int z;\n")
    (folder / "Kbuild").write_text("obj-m += mine.o\nmine-y := other.o mine.o\n")
    return folder


def build_folder(host: Host) -> Path:
    (found,) = host.cache.glob("kdirs/*/modules/mine-*/build")
    return found


def product(found: Result) -> bytes:
    return Path(found.json["artefacts"][0]["path"]).read_bytes()


def cached(found: Result) -> bool:
    return found.json["phases"][-1]["cached"]


def reboot(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the machine have been started again since."""
    path = folder / "boot_id"
    path.write_text(f"{len(path.read_text()) if path.exists() else 0}-another\n")
    monkeypatch.setattr(host, "BOOT_ID", path)


def unseen(path: Path, change: Callable[[Path], None]) -> None:
    """Change a file so that its times don't tell."""
    status = path.stat()
    change(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def cut(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = pytest.mark.parametrize("damage", [append, flip, cut])


# A module's products.


@DAMAGES
def test_a_damaged_product_is_not_taken_for_what_make_has_built(
    host: Host, damage: Callable[[Path], None]
) -> None:
    folder = host.write_module()
    sound = product(host.module(folder))
    unseen(build_folder(host) / "mine.ko", damage)
    for _ in range(2):
        assert product(host.module(folder)) == sound


def test_an_edit_begins_from_nothing_where_a_product_was_damaged(host: Host) -> None:
    """Of a module of two sources, one of which is edited, each file that make has left is cut."""
    folder = write_two(host)
    sound = {"int x;\n": product(host.module(folder))}
    (folder / "mine.c").write_text("int y;\n")
    sound["int y;\n"] = product(host.module(folder))
    names = sorted(path.name for path in build_folder(host).iterdir())
    assert {"mine.ko", "other.o", ".other.o.cmd", "modules.order", "Module.symvers"} <= set(names)
    for number, name in enumerate(names):
        text = list(sound)[number % 2]
        unseen(build_folder(host) / name, cut)
        (folder / "mine.c").write_text(text)
        assert product(host.module(folder)) == sound[text], name


@pytest.mark.parametrize("name", [build.STATE, build.LEFT])
def test_without_a_record_a_build_begins_from_nothing(host: Host, name: str) -> None:
    folder = host.write_module()
    sound = product(host.module(folder))
    place = build_folder(host)
    for content in (b"", b"{}", b"[1]", b'{"files": 3}', b"\xff", None):
        for path in {place.parent / name, place.parent / build.LEFT}:
            path.unlink() if content is None else path.write_bytes(content)
        cut(place / "mine.o")
        unseen(place / "mine.ko", flip)
        assert product(host.module(folder)) == sound


def test_an_edit_and_a_failed_build_go_on_from_what_is_there(host: Host) -> None:
    folder = write_two(host)
    host.module(folder)
    for text, code in (("int y;\n", 0), ("oops\n", 1), ("oops oops\n", 1), ("int x;\n", 0)):
        (folder / "mine.c").write_text(text)
        said = host("-v", "module", folder, "--profile", host.profile, code=code)
        assert "other.o" not in said.err + said.out, text
        assert "mine.o" in said.err + said.out


def test_a_killed_build_begins_from_nothing(host: Host) -> None:
    folder = host.write_module("int y;\n")
    sound = product(host.module(folder))
    host.module(host.write_module("int x;\n"))
    host.fault("module-killed")
    host.anyhow("module", host.write_module("int y;\n"), "--profile", host.profile)
    host.fault()
    # The half-written object is newer than its source, and there is the command line that fits.
    (build_folder(host) / ".mine.o.cmd").write_text("")
    assert (build_folder(host) / "mine.o").read_text() == "ob"
    assert product(host.module(folder)) == sound


def test_the_fingerprint_is_of_what_was_copied(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A: fingerprint; B: copy; A: the next run finds that its module is not that of A."""
    folder = host.write_module("int a;\n")
    real = workplace.ModuleBuild.sync

    def sync(self: workplace.ModuleBuild) -> dict[str, str]:
        host.write_module("int b;\n")
        try:
            return real(self)
        finally:
            host.write_module("int a;\n")

    with monkeypatch.context() as patch:
        patch.setattr(workplace.ModuleBuild, "sync", sync)
        assert b"int b;" in product(host.module(folder))
    found = host.module(folder)
    assert not cached(found)
    assert b"int a;" in product(found)


def test_an_in_tree_product_that_was_damaged_is_built_again(host: Host) -> None:
    words = ("--in-tree", "--driver", "c")
    sound = product(host.module(*words))
    path = Path(host.module(*words).json["artefacts"][0]["path"])
    unseen(path, append)
    assert product(host.module(*words)) == sound
    assert cached(host.module(*words))


# A power cut.


def test_what_is_published_was_synced_before(host: Host) -> None:
    (host.folder / "synced").unlink(missing_ok=True)
    host("kernel", "--profile", host.profile)
    synced = (host.folder / "synced").read_text().splitlines()
    names = [Path(line.split(" ", 1)[1]).name for line in synced]
    (tree,) = (path.name for path in host.cache.glob("trees/[!.]*"))
    (kdir,) = (path.name for path in host.cache.glob("kdirs/[!.]*"))
    assert names[0] == f".{tree}.partial"
    assert names[-2:] == [f".{kdir}.partial", kdir]


def test_records_of_validity_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    real = os.fsync

    def fsync(opened: int) -> None:
        done.append(Path(f"/proc/self/fd/{opened}").readlink().name)
        real(opened)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_json(tmp_path / "x.json", {}, synced=True)
    assert [files.ASIDE.fullmatch(name) is not None for name in done] == [True, False]
    assert done[1] == tmp_path.name


def test_a_kernel_that_was_cut_off_is_made_from_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.fault("kernel-killed")
    host("kernel", "--profile", host.profile, code=1)
    (kdir,) = host.cache.glob("kdirs/[!.]*")
    half = kdir / "build/init.o"
    half.write_bytes(b"")
    assert host.module(host.write_module()).json["artefacts"]
    host.fault()
    before = host.calls("modules_prepare")
    reboot(monkeypatch, host.folder)
    rows = host("--json", "status", "--verify").json["entries"]
    assert [row["state"] for row in rows if row["room"] == "kdirs"] == ["cut off"]
    host("kernel", "--profile", host.profile)
    assert not half.exists()
    assert host.calls("modules_prepare") == before + 1
    reboot(monkeypatch, host.folder)
    assert all(
        phase["cached"]
        for phase in host("--json", "kernel", "--profile", host.profile).json["phases"]
    )


def test_a_kernel_that_was_killed_goes_on_but_for_the_last(host: Host) -> None:
    host("module", host.write_module(), "--profile", host.profile)
    host.fault("kernel-killed")
    host("kernel", "--profile", host.profile, code=1)
    host.fault()
    (kdir,) = host.cache.glob("kdirs/[!.]*")
    whole, half = kdir / "build/.whole.o.cmd", kdir / "build/.half.o.cmd"
    for path, age in ((whole, 1000), (half, 1000)):
        path.write_text("")
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    (kdir / "build/half.o").write_text("")
    (kdir / "build/.newest.o.cmd").write_text("")
    before = host.calls("modules_prepare")
    host("kernel", "--profile", host.profile)
    assert host.calls("modules_prepare") == before
    assert whole.exists()
    assert not half.exists()


def test_a_kernel_whose_compiler_failed_goes_on_after_a_reboot(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.fault("kernel-error")
    host("kernel", "--profile", host.profile, code=1)
    host.fault()
    before = host.calls("modules_prepare")
    reboot(monkeypatch, host.folder)
    host("kernel", "--profile", host.profile)
    assert host.calls("modules_prepare") == before


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_preparation_that_was_cut_off_begins_from_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch, is_cut: bool
) -> None:
    host.fault("prepare-killed")
    folder = host.write_module()
    host("module", folder, "--profile", host.profile, code=1)
    (partial,) = host.cache.glob("kdirs/.*.partial")
    (partial / "build/half.h").write_bytes(b"")
    host.fault()
    if is_cut:
        reboot(monkeypatch, host.folder)
    said = host("module", folder, "--profile", host.profile).err
    assert ("which was interrupted" in said) is not is_cut
    (kdir,) = host.cache.glob("kdirs/[!.]*")
    assert (kdir / "build/half.h").exists() is not is_cut


def test_an_in_tree_kdir_that_was_cut_off_is_made_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--in-tree", "--driver", "c")
    sound = product(host.module(*words))
    (kdir,) = host.cache.glob("kdirs/[!.]*-in-tree-*")
    Cache(host.cache, None).open(entry.Entry(entry.EntryKind.KDIRS, kdir.name, kdir))  # type: ignore[arg-type]
    (kdir / "build/half.o").write_bytes(b"")
    shutil.rmtree(kdir / "modules")
    reboot(monkeypatch, host.folder)
    assert product(host.module(*words)) == sound
    assert not (kdir / "build/half.o").exists()


def test_a_list_of_exports_that_a_power_cut_has_emptied_is_read_again(host: Host) -> None:
    host.module(host.write_module())
    (path,) = host.cache.glob("trees/*/exports.json")
    path.write_bytes(b"")
    host.module(host.write_module("int y;\n"))


def test_what_a_killed_make_may_have_half_made_is_made_again(tmp_path: Path) -> None:
    """As Kbuild leaves it: the .cmd file when the target is made, or before some last step."""

    def make(name: str, target_at: float, cmd_at: float) -> Path:
        cmd = tmp_path / f".{name}.cmd"
        cmd.write_text("")
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (target_at, target_at))
        os.utime(cmd, (cmd_at, cmd_at))
        return cmd

    long_ago, last = 1e9, 1e9 + 1000
    sound = make("sound.o", long_ago, long_ago + 1)
    half = make("half.o", last - 500, long_ago)
    latest = make("latest.o", last - 1, last)
    products.forget_the_last(tmp_path)
    assert sound.exists()
    assert not half.exists()
    assert not latest.exists()


# A cache that was copied.


@pytest.fixture
def copied(host: Host, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Return what copies the cache and removes the old one."""

    def copy() -> Path:
        other = host.folder / "cache2"
        shutil.copytree(host.cache, other, symlinks=True)
        old = host.cache.rename(host.folder / "old")
        for path in old.rglob("*"):
            if path.is_file() and path.suffix in {".json", ".txt"}:
                assert str(host.cache) not in path.read_text(errors="replace"), path
        monkeypatch.setenv("RBUILD_CACHE_DIR", str(other))
        return other

    return copy


def paths(value: object) -> list[str]:
    """Return all absolute paths in a JSON value."""
    if isinstance(value, str):
        return [value] if value.startswith("/") else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [path for one in parts for path in paths(one)]


def test_a_copied_cache_answers_from_itself(host: Host, copied: Callable[[], Path]) -> None:
    folder = host.write_module()
    profile = host.write_profile(host.profile.read_text() + "device_trees: [board.dtb]\n", "board")
    (host.tree / "Documentation/devicetree/bindings").mkdir(parents=True)
    (host.tree / "Documentation/devicetree/bindings/Makefile").write_text("")
    overlay = host.folder / "thing.dtso"
    overlay.write_text("/dts-v1/;\n/plugin/;\n/ { };\n")
    commands = (
        ("module", folder, "--profile", profile),
        ("module", "--in-tree", "--driver", "c", "--profile", profile),
        ("overlay", overlay, "--profile", profile),
        ("kernel", "--profile", profile),
    )
    for _ in range(2):
        for words in commands:
            host("--json", *words)
    other = copied()
    for words in commands:
        found = host("--json", *words).json
        assert all(phase["cached"] for phase in found["phases"]), words
        named = paths(found["artefacts"])
        assert named
        assert [path for path in named if not Path(path).is_relative_to(other)] == []
    host("--json", "status", "--verify")
    host.write_module("int y;\n")
    assert Path(host("--json", *commands[0]).json["artefacts"][0]["path"]).is_relative_to(other)
    assert not host.cache.exists()


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../../etc/passwd", "."])
def test_a_record_that_names_another_entrys_file_is_not_believed(host: Host, path: str) -> None:
    folder = host.write_module()
    sound = product(host.module(folder))
    (record,) = host.cache.glob("kdirs/*/modules/mine-*/state.json")
    data = json.loads(record.read_text())
    outside = Path("/etc/passwd")
    data["modules"][0] |= {"path": path, "sha256": hashes.sha256_file(outside)}
    record.write_text(json.dumps(data))
    assert product(host.module(folder)) == sound
