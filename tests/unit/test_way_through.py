"""The whole way on a host of fakes: what is done, done once, and said when it fails."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pytest

from rbuild import cli, rootfs
from rbuild.profile import IN_KERNEL, Kind

from .conftest import Host


def test_setup_provisions_once(bare: Host) -> None:
    first = bare("--json", "setup", "cross").json
    assert first[0]["environment"] == "cross"
    assert first[0]["toolchain"]["clang-19"] == "1.0-1"
    again = bare("--json", "setup", "cross").json
    assert again[0]["cached"]
    assert bare.calls("mmdebstrap") == 1


def test_setup_force_provisions_anew(bare: Host) -> None:
    bare("setup", "cross")
    bare("setup", "cross", "--force")
    assert bare.calls("mmdebstrap") == 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [("network", "mirror could not be reached"), ("disk", "disk filled up")],
)
def test_a_rootfs_is_published_whole_or_not_at_all(bare: Host, fault: str, words: str) -> None:
    bare.fault(fault)
    assert words in bare("setup", "cross", code=4).err
    assert not list((bare.cache / "rootfs").glob("[!.]*"))
    bare.fault()
    bare("setup", "cross")
    assert not list((bare.cache / "rootfs").glob("*/root/half-made"))


@pytest.mark.parametrize("fault", ["broken-compiler", "wrong-compiler"])
def test_a_rootfs_whose_compiler_fails_is_not_called_ready(bare: Host, fault: str) -> None:
    bare.fault(fault)
    bare("setup", "cross", code=4)
    bare.fault()
    bare("setup", "cross")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("phase", ["setup", "module"])
def test_interrupted_anywhere_the_next_run_works(
    bare: Host, number: signal.Signals, phase: str
) -> None:
    if phase == "module":
        bare("setup", "cross")
    bare.fault("hang")
    words = (
        ["setup", "cross"]
        if phase == "setup"
        else ["module", bare.write_module(), "--profile", bare.profile]
    )
    child = bare.start("-v", *words)
    assert child.stdout is not None
    for line in child.stdout:
        if "Unpacking" in line or "  CC " in line:
            break
    child.send_signal(number)
    if number is not signal.SIGKILL:
        said = child.stdout.read()
        assert "Interrupted" in said
        assert "Traceback" not in said
    assert child.wait(timeout=20) == (-9 if number is signal.SIGKILL else 130)
    child.stdout.close()
    bare.fault()
    bare.module(bare.write_module())


def test_module_json_is_the_contract(host: Host) -> None:
    found = host.module(host.write_module()).json
    assert set(found) == {
        "command",
        "profile",
        "environment",
        "runtime",
        "kind",
        "driver",
        "artefacts",
        "phases",
        "toolchain",
        "kernel_release",
        "log",
    }
    assert found["kernel_release"] == "6.12.5"
    (one,) = found["artefacts"]
    assert Path(one["path"]).read_bytes()[:4] == b"\x7fELF"
    assert [phase["name"] for phase in found["phases"]] == ["configure", "prepare", "module"]


def test_nothing_to_do_starts_no_make(host: Host) -> None:
    folder = host.write_module()
    host.module(folder)
    before = host.calls("make")
    assert host.module(folder).json["phases"][-1]["cached"]
    assert host.calls("make") == before


def test_a_changed_line_is_built(host: Host) -> None:
    host.module(host.write_module())
    assert not host.module(host.write_module("int y;\n")).json["phases"][-1]["cached"]
    assert host.calls("modules_prepare") == 1


def test_the_users_folder_is_left_alone(host: Host, tmp_path: Path) -> None:
    folder = host.write_module()
    (folder / "mine.o").write_text("the user's own")
    host.module(folder, "--output", tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["Kbuild", "mine.c", "mine.o"]
    assert (tmp_path / "out/mine.ko").exists()


def test_a_removed_source_file_is_gone_from_the_build(host: Host) -> None:
    folder = host.write_module()
    (folder / "extra.h").write_text("")
    host.module(folder)
    (folder / "extra.h").unlink()
    host.module(folder)
    assert not list(host.cache.rglob("extra.h"))


def test_a_failed_build_then_a_good_one(host: Host) -> None:
    host.module(host.write_module())
    found = host("module", host.write_module("oops\n"), "--profile", host.profile, code=1)
    assert "undeclared identifier 'oops'" in found.err
    assert "make: ***" not in found.err.split("error: Building")[0]
    log = Path(found.err.split("The full log: ")[1].split()[0])
    assert "oops" in log.read_text()
    assert not host.module(host.write_module()).json["phases"][-1]["cached"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("wrong-machine", "not AArch64"),
        ("wrong-vermagic", "its vermagic is '6.12.4"),
        ("undefined", "nothing exports nowhere"),
    ],
)
def test_a_module_that_a_kernel_would_refuse(host: Host, fault: str, words: str) -> None:
    host.fault(fault)
    folder = host.write_module()
    for _ in range(2):
        assert words in host("module", folder, "--profile", host.profile, code=1).err


def test_in_tree_has_the_drivers_own_folder(host: Host) -> None:
    found = host.module("--in-tree", "--driver", "c").json
    assert found["kind"] == "in-tree"
    assert found["artefacts"][0]["path"].endswith("drivers/misc/mfrc522/c/mfrc522.ko")
    seen = next(host.cache.glob("kdirs/*-in-tree-*/build/seen"))
    assert {path.name for path in seen.iterdir() if path.name[0] != "."} == {
        "Kbuild",
        "Kconfig",
        "c",
        "glue",
        "rust",
    }
    assert not [path for path in seen.rglob("*") if path.is_symlink()]
    config = (seen.parent / ".config").read_text()
    assert "CONFIG_MFRC522=m" in config
    assert "CONFIG_MFRC522_GLUE=m" in config
    assert "CONFIG_MFRC522_RUST=m" in config


def test_a_tree_without_our_patch_has_no_in_tree_build(host: Host) -> None:
    (host.tree / "drivers/misc/mfrc522/Kconfig").unlink()
    (host.tree / "drivers/misc/mfrc522").rmdir()
    found = host("module", "--in-tree", "--profile", host.profile, code=2)
    assert "can't be built in-tree" in found.err


def test_kernel_is_built_once(host: Host) -> None:
    first = host("--json", "kernel", "--profile", host.profile).json
    assert first["artefacts"][0]["path"].endswith("arch/arm64/boot/Image")
    again = host("--json", "kernel", "--profile", host.profile).json
    assert all(phase["cached"] for phase in again["phases"])
    assert host.calls(" Image ") == 1
    module = host.module(host.write_module()).json
    assert module["artefacts"][0]["symbols_checked_against"] == "Module.symvers"


def test_a_damaged_image_is_built_again(host: Host) -> None:
    first = host("--json", "kernel", "--profile", host.profile).json
    Path(first["artefacts"][0]["path"]).write_bytes(b"short")
    host("kernel", "--profile", host.profile)
    assert host.calls(" Image ") == 2


def test_kernel_clean_starts_over(host: Host) -> None:
    host("kernel", "--profile", host.profile)
    host("kernel", "--profile", host.profile, "--clean")
    assert host.calls("modules_prepare") == 2


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("kernel-error", 1, "expected ';'"),
        ("kernel-full", 4, "the disk is full"),
        ("kernel-killed", 1, "signal 9"),
        ("prepare-error", 1, "expected ';'"),
    ],
)
def test_a_kernel_that_fails_then_goes_on(host: Host, fault: str, code: int, words: str) -> None:
    host.fault(fault)
    assert words in host("kernel", "--profile", host.profile, code=code).err
    host.fault()
    host("kernel", "--profile", host.profile)
    assert host.calls("tinyconfig") == 1


def test_what_kconfig_drops_is_an_error_with_reasons(host: Host) -> None:
    host.fault("drop-rust")
    found = host("kernel", "--profile", host.profile, code=2)
    assert "CONFIG_RUST: asked for y, got n (init/Kconfig:1)" in found.err
    assert "depends on !MODVERSIONS" in found.err
    assert "rustc' is too old" in found.err
    host.fault()
    host("kernel", "--profile", host.profile)


def test_our_patches_are_applied_in_order(host: Host) -> None:
    profile = host.write_profile(
        f"name: p\nsource: {{directory: {host.tree}}}\nconfig: {{base: tinyconfig}}\n", "p"
    )
    host("module", host.write_module(), "--profile", profile)
    applied = next(host.cache.glob("trees/*patched*/src/patched")).read_text()
    names = [name for name in applied.split(".patch") if name]
    assert names == sorted(names)
    assert not (host.tree / "patched").exists()


def test_a_patch_that_does_not_apply_is_named(host: Host) -> None:
    host.fault("bad-patch")
    profile = host.write_profile(
        f"name: p\nsource: {{directory: {host.tree}}}\nconfig: {{base: tinyconfig}}\n", "p"
    )
    found = host("module", host.write_module(), "--profile", profile, code=1)
    assert "0001-" in found.err
    assert "FAILED" in found.err
    assert not list((host.cache / "trees").glob("[!.]*patched*"))


def test_a_changed_tree_is_a_new_tree(host: Host) -> None:
    host.module(host.write_module())
    (host.tree / "kernel/new.c").write_text("EXPORT_SYMBOL(new);\n")
    assert not host.module(host.write_module()).json["phases"][0]["cached"]


def test_bench_compares_modes(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "bench.json"
    found = host(
        "bench",
        "--env",
        "cross",
        "--runs",
        "3",
        "--profile",
        host.profile,
        "--export-json",
        out,
        "--scenario",
        "clean",
        "--scenario",
        "noop",
    )
    assert "cross out-of-tree rust" in found.out
    assert "1.00x" in found.out
    data = host("--json", "bench", "--env", "cross", "--runs", "2", "--profile", host.profile).json
    assert len(data["results"]) == len(Kind) * len(IN_KERNEL)
    assert all(len(row["measurements"]) == 2 for row in data["results"])
    assert out.exists()
    assert not list(host.cache.glob("runs/*/bench"))


def test_bench_refuses_a_bad_file_before_it_starts(bare: Host, tmp_path: Path) -> None:
    found = bare("bench", "--export-json", tmp_path / "no/such/file", code=2)
    assert "not a folder" in found.err
    assert bare.calls("mmdebstrap") == 0


def test_two_at_once_do_the_work_once(host: Host) -> None:
    folder = host.write_module()
    children = [host.start("module", folder, "--profile", host.profile) for _ in range(4)]
    for child in children:
        assert child.wait(timeout=60) == 0, child.stdout.read() if child.stdout else ""
        assert child.stdout is not None
        child.stdout.close()
    assert host.calls("modules_prepare") == 1
    assert host.calls("M=/module") == 1


def test_a_second_rbuild_says_that_it_waits_and_clean_leaves_its_log(host: Host) -> None:
    words = ["module", host.write_module(), "--profile", host.profile]
    first = host.start_and_hold(*words)
    second = host.start(*words)
    assert second.stdout is not None
    assert any("Waiting for another rbuild" in line for line in second.stdout)
    (run,) = host.cache.glob("runs/*")
    assert host("--json", "clean", "--what", "runs").json["removed"] == []
    host.release()
    for child in (first, second):
        child.communicate(timeout=20)
        assert child.returncode == 0
    assert host.calls("modules_prepare") == 1
    assert host("--json", "clean", "--what", "runs").json["removed"] == [run.name]


def test_status_and_clean(bare: Host) -> None:
    assert "Nothing is provisioned" in bare("status").out
    bare.module(bare.write_module())
    entries = bare("--json", "status").json["entries"]
    assert {one["room"] for one in entries} == {"rootfs", "trees", "kdirs", "runs"}
    bare("clean", "--what", "kdirs", "--older-than", "1")
    assert any(one["room"] == "kdirs" for one in bare("--json", "status").json["entries"])
    bare("clean")
    rooms = {one["room"] for one in bare("--json", "status").json["entries"]}
    assert rooms == {"rootfs", "trees"}
    (bare.cache / "kdirs/.left-over.partial").mkdir()
    bare("clean", "--what", "all")
    assert not [
        path for path in bare.cache.rglob("*") if path.is_dir() and path.parent != bare.cache
    ]


def test_a_missing_tool_names_the_doctor(bare: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bare.folder))
    found = bare("setup", "cross", code=3)
    assert "is not installed" in found.err
    assert "rbuild doctor" in found.err


def test_no_room_is_said_before_anything_starts(
    bare: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootfs, "SPACE_NEEDED", 1 << 60)
    assert "are free" in bare("setup", "cross", code=4).err
    assert bare.calls("mmdebstrap") == 0


def test_a_cache_that_cannot_be_made(host: Host) -> None:
    (host.folder / "file").touch()
    found = host("--cache-dir", host.folder / "file/cache", "setup", "cross", code=4)
    assert "can't be made" in found.err


def test_output_has_no_escape_codes_when_it_is_no_terminal(host: Host) -> None:
    found = host("module", host.write_module(), "--profile", host.profile)
    assert "\x1b" not in found.out + found.err


def test_interrupt_in_process_is_130(host: Host) -> None:
    host.fault("hang")

    def interrupt() -> None:
        for _ in range(500):
            if host.calls("tinyconfig"):
                break
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert cli.run(["module", str(host.write_module()), "--profile", str(host.profile)]) == 130


def _sources(host: Host, *sources: str) -> Path:
    listed = "".join(f"  - {source}\n" for source in sources)
    return host.write_profile(
        f"name: s\npatches: false\nsource:\n{listed}config: {{base: tinyconfig}}\n", "s"
    )


def _tarball(host: Host) -> tuple[Path, str]:
    path = host.folder / "linux-6.12.5.tar.xz"
    with tarfile.open(path, "w:xz") as file:
        file.add(host.tree, "linux-6.12.5")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_source_from_a_tarball(host: Host) -> None:
    path, checksum = _tarball(host)
    profile = _sources(host, f"{{tarball: 'file://{path}', sha256: '{checksum}'}}")
    host("module", host.write_module(), "--profile", profile)
    path.unlink()
    host("module", host.write_module("int y;\n"), "--profile", profile)


def test_a_tarball_that_is_another_is_refused_with_both_sums(host: Host) -> None:
    path, checksum = _tarball(host)
    wrong = "0" * 64
    profile = _sources(host, f"{{tarball: 'file://{path}', sha256: '{wrong}'}}")
    found = host("module", host.write_module(), "--profile", profile, code=4)
    assert wrong in found.err
    assert checksum in found.err
    assert not list((host.cache / "trees").glob("[!.]*"))


def test_a_source_from_git(host: Host) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", str(host.tree), *who, *words], check=True, capture_output=True)

    git("init", "-b", "trunk")
    git("add", "-f", ".")
    git("commit", "-m", "one", "--date", "2024-05-06T07:08:09Z")
    git("tag", "v6.12.5")
    profile = _sources(host, f"{{git: 'file://{host.tree}', ref: v6.12.5}}")
    host("module", host.write_module(), "--profile", profile)
    bad = _sources(host, f"{{git: 'file://{host.tree}', ref: v9}}")
    assert "v9" in host("module", host.write_module(), "--profile", bad, code=4).err


def test_the_first_source_that_can_be_had_is_used_and_named(host: Host) -> None:
    nowhere = f"{{git: 'file://{host.folder}/nowhere', ref: x}}"
    profile = _sources(host, nowhere, f"{{directory: {host.tree}}}")
    found = host("module", host.write_module(), "--profile", profile)
    assert "can't be had" in found.err
    (metadata,) = (host.cache / "trees").glob("*/metadata.json")
    assert json.loads(metadata.read_text())["source"] == str(host.tree)
