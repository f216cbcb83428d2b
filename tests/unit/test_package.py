"""Packages: what is in them, that they are the same twice, and what can't become one."""

from __future__ import annotations

import hashlib
import json
import tarfile
from datetime import UTC, datetime
from email import message_from_string
from pathlib import Path
from types import SimpleNamespace

import pytest

from rbuild import __version__
from rbuild.board import staging
from rbuild.board.packages import archive, debian
from rbuild.board.staging import Extra, Staged
from rbuild.cli.main import COMMANDS
from rbuild.errors import UsageError
from rbuild.kernel.kdir import Stage
from rbuild.specs.profile import Driver

from .conftest import Host, Result

TREE = "broadcom/bcm2837-rpi-3-b-plus.dtb"
DATE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def board(host: Host) -> Host:
    """A host whose profile has modules and a Pi's device tree."""
    host.profile = host.write_profile(
        f"name: board\nsource: {{directory: {host.tree}}}\npatches: false\ndriver: c\n"
        "config: {base: tinyconfig, options: {MODULES: y, SPI: y}}\n"
        f"device_trees: [{TREE}]\n",
        "board",
    )
    return host


def package(host: Host, *words: object, code: int = 0) -> Result:
    out = ("--output", host.folder / "out")
    out = () if "--output" in words else out
    return host("--json", "package", *words, *out, "--profile", host.profile, code=code)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def text(found: Result, form: str) -> str:
    """Return the only package of a format, which the fakes make of texts."""
    (path,) = (one["path"] for one in found.json["artefacts"] if one["format"] == form)
    return Path(path).read_bytes().decode(errors="replace")


def unpacked(found: Result) -> dict[str, tarfile.TarInfo]:
    (path,) = (one["path"] for one in found.json["artefacts"] if one["format"] == "tar")
    with tarfile.open(path) as tar:
        return {member.name: member for member in tar.getmembers()}


# Everything.


def test_all_formats_are_made_and_named(board: Host) -> None:
    found = package(board)
    prefix = names(board.folder / "out")[-1].removesuffix(".tar.gz")
    assert prefix.startswith("rbuild-6.12.5-")
    assert names(board.folder / "out") == [
        "linux-headers-6.12.5_6.12.5-1_arm64.deb",
        "linux-image-6.12.5_6.12.5-1_arm64.deb",
        "linux-libc-dev_6.12.5-1_arm64.deb",
        f"mfrc522-dkms_{__version__}-1_all.deb",
        f"mfrc522-modules-6.12.5_{__version__}-1_arm64.deb",
        f"{prefix}.tar.gz",
    ]
    for one in found.json["artefacts"]:
        content = Path(one["path"]).read_bytes()
        assert one["sha256"] == hashlib.sha256(content).hexdigest()
        assert one["size_bytes"] == len(content)
    assert found.json["driver"] == "c"
    assert {one["name"] for one in found.json["phases"]} >= {"kernel", "module", "overlay"}


def test_the_same_packages_come_out_twice(board: Host) -> None:
    hashes = [
        {Path(one["path"]).name: one["sha256"] for one in found.json["artefacts"]}
        for found in (package(board), package(board, "--output", board.folder / "again"))
    ]
    assert hashes[0] == hashes[1]


def test_a_package_that_is_there_is_replaced(board: Host) -> None:
    first = package(board, "--format", "dkms")
    path = Path(first.json["artefacts"][0]["path"])
    path.write_text("old")
    package(board, "--format", "dkms")
    assert path.read_bytes() != b"old"


def test_a_drivers_package_needs_no_kernel(board: Host) -> None:
    package(board, "--format", "module-deb", "--format", "dkms")
    assert board.calls(" Image ") == 0
    assert board.calls("modules_prepare") == 1


def test_the_archive_needs_no_packaging_tools(board: Host) -> None:
    package(board, "--format", "tar")
    assert not list(board.cache.glob("rootfs/package-*"))


def test_packaging_leaves_the_kdir_and_no_trace(board: Host) -> None:
    board("kernel", "--profile", board.profile)
    (kdir,) = board.cache.glob("kdirs/*/build")

    def seen() -> dict[Path, tuple[int, int]]:
        found = {path: path.stat() for path in kdir.rglob("*") if path.is_file()}
        return {path: (one.st_mtime_ns, one.st_size) for path, one in found.items()}

    before = seen()
    package(board)
    assert seen() == before
    assert not list(board.cache.glob("runs/*/package-*"))


# The archive and its staging folder.


def test_the_archive_is_laid_out_for_a_pi(board: Host) -> None:
    found = package(board, "--format", "tar")
    members = unpacked(found)
    boot = next(name for name in members if name.startswith("boot/"))
    modules = "usr/lib/modules/6.12.5"
    assert boot.startswith("boot/firmware/rbuild-6.12.5-")
    assert [name for name in members if members[name].isfile()] == [
        f"{boot}/bcm2837-rpi-3-b-plus.dtb",
        f"{boot}/config-snippet.txt",
        f"{boot}/kernel8.img",
        f"{boot}/manifest.json",
        f"{boot}/overlays/README",
        f"{boot}/overlays/mfrc522.dtbo",
        f"{modules}/kernel/net/dummy.ko",
        f"{modules}/modules.dep",
        f"{modules}/modules.order",
        f"{modules}/updates/mfrc522.ko",
    ]
    # Unpacking must not touch a folder that others have, nor a link such as /lib.
    assert all(name.startswith((boot, modules)) for name in members)
    assert not any(one.islnk() or one.issym() for one in members.values())


def test_the_archive_tells_nothing_of_who_made_it(board: Host) -> None:
    for one in unpacked(package(board, "--format", "tar")).values():
        assert (one.uid, one.gid, one.uname, one.gname) == (0, 0, "root", "root")
        assert one.mode == (0o755 if one.isdir() else 0o644)
        assert one.mtime == int((board.tree / "Makefile").stat().st_mtime)


def test_the_manifest_has_the_hash_of_each_file(board: Host) -> None:
    found = package(board, "--format", "tar")
    with tarfile.open(found.json["artefacts"][0]["path"]) as tar:
        files = {one.name: tar.extractfile(one).read() for one in tar if one.isfile()}
    (name,) = (name for name in files if name.endswith("manifest.json"))
    manifest = json.loads(files.pop(name))
    assert manifest["kernel_release"] == "6.12.5"
    assert {one["path"]: one["sha256"] for one in manifest["files"]} == {
        name: hashlib.sha256(content).hexdigest() for name, content in files.items()
    }


def test_a_driver_built_in_tree_is_among_the_kernels_modules(board: Host) -> None:
    members = unpacked(package(board, "--format", "tar", "--in-tree"))
    assert "usr/lib/modules/6.12.5/kernel/drivers/misc/mfrc522/c/mfrc522.ko" in members


def test_another_driver_has_another_prefix(board: Host) -> None:
    found = [package(board, "--format", "tar", "--driver", one) for one in ("c", "glue")]
    assert len({one.json["artefacts"][0]["path"] for one in found}) == 2


def test_the_snippet_boots_this_kernel(board: Host) -> None:
    found = package(board, "--format", "tar")
    with tarfile.open(found.json["artefacts"][0]["path"]) as tar:
        member = next(one for one in tar if one.name.endswith("config-snippet.txt"))
        lines = tar.extractfile(member).read().decode().splitlines()
    prefix = Path(member.name).parent.name
    assert f"os_prefix={prefix}/" in lines
    assert {"arm_64bit=1", "kernel=kernel8.img", "dtoverlay=mfrc522"} <= set(lines)
    assert "device_tree=bcm2837-rpi-3-b-plus.dtb" in lines
    # The firmware reads no more of a line.
    assert max(map(len, lines)) <= 98


def test_several_device_trees_are_left_to_the_firmware(board: Host) -> None:
    board.profile.write_text(board.profile.read_text().replace(TREE, f"{TREE}, broadcom/x.dtb"))
    found = package(board, "--format", "tar")
    with tarfile.open(found.json["artefacts"][0]["path"]) as tar:
        member = next(one for one in tar if one.name.endswith("config-snippet.txt"))
        words = tar.extractfile(member).read().decode()
    assert "upstream_kernel=1" in words
    assert "device_tree=" not in words


def test_files_of_one_name_are_refused(tmp_path: Path) -> None:
    kdir = SimpleNamespace(stage=Stage.BUILT)
    one, two = tmp_path / "1/x.dtbo", tmp_path / "2/x.dtbo"
    with pytest.raises(UsageError, match=r"overlays have the name x\.dtbo"):
        staging.stage(kdir, [], [one, two], tmp_path / "stage", None)
    with pytest.raises(UsageError, match=r"modules have the name x\.dtbo"):
        staging.stage(kdir, [Extra(one), Extra(two)], [], tmp_path / "stage", None)


def test_an_unbuilt_kernel_or_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    names = {"profile": SimpleNamespace(name="p")}
    ready = SimpleNamespace(environment=SimpleNamespace(name="cross"))
    kdir = SimpleNamespace(stage=Stage.PREPARED, ready=ready, **names)
    with pytest.raises(UsageError, match="isn't built in cross"):
        staging.stage(kdir, [], [], tmp_path / "stage", None)
    kdir.stage = Stage.BUILT
    with pytest.raises(UsageError, match="is there already"):
        staging.stage(kdir, [], [], tmp_path, None)


def test_the_order_of_creation_is_not_in_an_archive(tmp_path: Path) -> None:
    packed = []
    for number, order in enumerate((["a", "b", "c"], ["c", "a", "b"])):
        folder = tmp_path / str(number)
        for name in order:
            for part in ("firmware/p", "modules/r"):
                (folder / part).mkdir(parents=True, exist_ok=True)
                (folder / part / name).write_text(name)
        made = archive.pack(Staged(folder, "r", "p", {"files": []}), tmp_path, 0)
        packed.append(made.read_bytes())
        made.unlink()
    assert packed[0] == packed[1]
    # gzip's flags, of which one means a name, and its time (RFC 1952).
    assert packed[0][3:8] == bytes(5)


# Debian's packages.


def written(source: debian.SourceFolder, folder: Path) -> dict[str, str]:
    source.write(folder)
    files = {path: path.read_text() for path in folder.rglob("*") if path.is_file()}
    return {str(path.relative_to(folder)): text for path, text in files.items()}


def of_modules(tmp_path: Path, driver: Driver = Driver.RUST) -> debian.SourceFolder:
    module, overlay = tmp_path / "mfrc522_rust.ko", tmp_path / "mfrc522.dtbo"
    for path in (module, overlay):
        path.write_text("")
    kdir = SimpleNamespace(
        release="6.12.5+rpt-rpi-v8",
        tree=SimpleNamespace(date=DATE),
        profile=SimpleNamespace(architecture="arm64"),
    )
    return debian.of_modules(kdir, driver, [Extra(module)], [overlay])


def test_a_modules_package_belongs_to_one_kernel(tmp_path: Path) -> None:
    files = written(of_modules(tmp_path), tmp_path / "source")
    source, binary = (message_from_string(part) for part in files["debian/control"].split("\n\n"))
    assert source["Rules-Requires-Root"] == "no"
    assert binary["Package"] == "mfrc522-rust-modules-6.12.5+rpt-rpi-v8"
    assert binary["Architecture"] == "arm64"
    assert binary["Depends"] == "kmod, linux-image-6.12.5+rpt-rpi-v8, ${misc:Depends}"
    assert binary["Conflicts"] == (
        "mfrc522-modules-6.12.5+rpt-rpi-v8, mfrc522-glue-modules-6.12.5+rpt-rpi-v8"
    )
    places = {line.split()[1] for line in files["debian/install"].splitlines()}
    assert places == {
        "usr/lib/modules/6.12.5+rpt-rpi-v8/updates",
        "usr/share/mfrc522-rust-modules-6.12.5+rpt-rpi-v8/overlays",
    }
    assert (tmp_path / "source/debian/rules").stat().st_mode & 0o111
    assert "dtoverlay=mfrc522" in files["debian/README.Debian"]


@pytest.mark.parametrize("script", ["postinst", "postrm"])
def test_modules_are_listed_anew_when_they_come_and_go(tmp_path: Path, script: str) -> None:
    words = written(of_modules(tmp_path), tmp_path / "source")[f"debian/{script}"]
    assert 'depmod ${DPKG_ROOT:+-b "$DPKG_ROOT"} 6.12.5+rpt-rpi-v8\n' in words
    assert words.startswith("#!/bin/sh\nset -e\n")
    assert "#DEBHELPER#" in words


def test_dkms_gets_the_drivers_own_source(board: Host) -> None:
    words = text(package(board, "--format", "dkms"), "dkms")
    for name in ("Kbuild", "mfrc522.h", "mfrc522_chip.c", "mfrc522_main.c", "mfrc522_request.h"):
        assert f"{name} usr/src/mfrc522-{__version__}" in words
    assert f'PACKAGE_VERSION="{__version__}"' in words
    assert "dh $@ --with dkms" in words


def test_the_changelog_has_the_sources_date() -> None:
    source = debian.of_source(DATE, [])
    assert source.texts["changelog"].endswith("  Fri, 02 Jan 2026 03:04:05 +0000\n")
    assert source.architecture is None


def test_versions_sort_as_debian_sorts_them() -> None:
    assert debian.version("6.12.5") == "6.12.5-1"
    assert debian.version("7.3.0-rc2") == "7.3.0~rc2-1"


@pytest.mark.parametrize("release", ["6.12.5-Custom", "6.12.5_x", "6.12.5 x"])
def test_a_release_that_no_package_can_be_named_by(release: str) -> None:
    with pytest.raises(UsageError, match="linux-image-6"):
        debian.check_release(release)


# What goes wrong.


def test_an_emulated_systems_kernel_is_not_for_the_packaging_tools(board: Host) -> None:
    found = package(board, "--env", "chroot", "--format", "deb", code=2)
    assert "--env cross or hybrid" in found.err
    package(board, "--env", "chroot", "--format", "tar")


def test_compilers_of_other_versions_are_not_used(board: Host) -> None:
    package(board, "--format", "dkms")
    (metadata,) = board.cache.glob("rootfs/package-*/metadata.json")
    metadata.write_text(metadata.read_text().replace('"clang-19": "1.0-1"', '"clang-19": "1.0-2"'))
    found = package(board, "--format", "deb", code=4)
    assert "clang-19: 1.0-1 and 1.0-2" in found.err
    assert "setup --force cross" in found.err


def test_a_kernel_that_packaging_builds_again_is_refused(board: Host) -> None:
    board.fault("rebuilds")
    found = package(board, "--format", "deb", code=1)
    assert "another Image" in found.err
    assert not list((board.folder / "out").glob("*"))


def test_what_lintian_refuses_is_not_delivered(board: Host) -> None:
    board.fault("lint")
    found = package(board, code=1)
    assert "no-copyright-file" in found.err
    assert names(board.folder / "out") == []
    assert not list(board.cache.glob("runs/*/package-*"))


def test_a_package_that_was_not_made_is_noticed(board: Host) -> None:
    board.fault("no-deb")
    assert "0 packages were made" in package(board, "--format", "dkms", code=1).err


def test_a_kernel_without_modules_takes_no_driver(host: Host) -> None:
    found = package(host, "--format", "tar", "--driver", "c", code=2)
    assert "CONFIG_MODULES=n" in found.err


def test_a_folder_where_a_package_goes_is_left_alone(board: Host) -> None:
    out = board.folder / "out"
    (out / f"mfrc522-dkms_{__version__}-1_all.deb").mkdir(parents=True)
    found = package(board, "--format", "module-deb", "--format", "dkms", code=2)
    assert "is a folder" in found.err
    assert names(out) == [f"mfrc522-dkms_{__version__}-1_all.deb"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "rpm"], "'rpm'"),
        (["--output", "{file}"], "--output"),
        (["--driver", "perl"], "'perl'"),
    ],
)
def test_wrong_usage_is_2_and_starts_nothing(bare: Host, words: list[str], said: str) -> None:
    words = [word.format(file=bare.profile) for word in words]
    found = bare("package", *words, code=2)
    assert said in found.err
    assert not bare.cache.exists()


def test_output_must_be_named(bare: Host) -> None:
    assert "--output" in bare("package", code=2).err
    assert "package" in COMMANDS


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("link-installed", "leads-out is a link to '../../../secret', out of its folder"),
        ("line-installed", "evil\\n0 passwd"),
        ("linked-release", "lib/modules/6.12.5 as a link"),
    ],
)
def test_what_a_kernel_installs_is_looked_at(board: Host, fault: str, said: str) -> None:
    """A kernel's Makefile may install anything: what would lead elsewhere once it is moved, too."""
    secret = board.folder / "secret"
    secret.write_text("mine")
    board("kernel", "--profile", board.profile)
    board.fault(fault)
    found = package(board, "--format", "tar", code=1)
    assert said in found.err
    assert not (board.folder / "out").exists() or names(board.folder / "out") == []
    assert secret.read_text() == "mine"
