"""The whole way on a host of fakes: what is done, done once, and said when it fails."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import jsonschema
import pytest

from rbuild.bench.compare import load
from rbuild.cache import holder
from rbuild.cache.directory import Cache
from rbuild.cache.entry import Entry, EntryKind
from rbuild.cli import main
from rbuild.module.workplace import with_own_paths
from rbuild.provision import rootfs
from rbuild.specs.profile import IN_KERNEL, Kind
from rbuild.ui.console import Console

from .conftest import Host, Result


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


def test_a_compiler_s_words_name_the_user_s_files(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("")
    words = (
        "/module/a.c:1:2: error: x\n--> /module/a.c:3\n/module/made.h:1: y\nx/module/a.c /module/"
    )
    assert with_own_paths(words, tmp_path) == (
        f"{tmp_path}/a.c:1:2: error: x\n--> {tmp_path}/a.c:3\n"
        "/module/made.h:1: y\nx/module/a.c /module/"
    )


def test_a_folder_s_name_starts_no_line_among_a_compiler_s_words(tmp_path: Path) -> None:
    origin = tmp_path / "x\nerror: faked"
    origin.mkdir()
    (origin / "a.c").write_text("")
    assert with_own_paths("/module/a.c:1:2: error: x", origin).splitlines() == [
        f"{tmp_path}/x\\nerror: faked/a.c:1:2: error: x"
    ]
    long = f"/module/{'a' * 5000}.c:1:2: error: x"
    assert with_own_paths(long, origin) == long


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("network", "mirror could not be reached"),
        ("stale-mirror", "mirror is not in order for cross: what it has isn't what was signed"),
        ("disk", "disk filled up"),
    ],
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_an_interrupt_leaves_is_listed_and_removed(bare: Host, number: signal.Signals) -> None:
    bare.fault("hang")
    child = bare.start("-v", "setup", "cross")
    assert child.stdout is not None
    assert any("Unpacking" in line for line in child.stdout)
    (row,) = bare("--json", "status").json["entries"]
    assert row["state"] == "at work"
    assert bare("--json", "clean").json["in_use"] == [row["name"]]
    child.send_signal(number)
    said = child.communicate(timeout=20)[0]
    if number is signal.SIGINT:
        assert "goes on from there. `rbuild status` lists what is unfinished" in said
    (row,) = bare("--json", "status").json["entries"]
    assert (row["state"], row["room"]) == ("unfinished", "rootfs")
    assert row["name"].startswith(".cross-")
    assert row["name"] in bare("status").out
    assert bare("--json", "clean", "--what", "runs").json["removed"] == []
    assert bare("--json", "clean").json["removed"] == [row["name"]]
    assert bare("--json", "status").json["entries"] == []


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
        "reproduce",
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
    own = {one["name"]: one for one in found["phases"] if one["name"].endswith("-in-tree")}
    assert own.keys() == {"configure-in-tree", "prepare-in-tree"}
    assert not own["prepare-in-tree"]["cached"]
    again = host.module("--in-tree", "--driver", "c").json["phases"]
    assert all(one["cached"] for one in again)
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
    assert (
        "The patch 6.12/0001-rust-types-add-Opaque-try_ffi_init.patch does not apply" in found.err
    )
    assert "to Linux 6.12.5" in found.err
    assert "rust/kernel/types.rs: hunk 1 fails at line 336 (line 19 of the patch)" in found.err
    assert not list((host.cache / "trees").glob("[!.]*patched*"))


def test_a_changed_tree_is_a_new_tree(host: Host) -> None:
    host.module(host.write_module())
    (host.tree / "kernel/new.c").write_text("EXPORT_SYMBOL(new);\n")
    assert not host.module(host.write_module()).json["phases"][0]["cached"]


def bench(host: Host, out: Path, *words: object, code: int = 0) -> Result:
    short = ("--env", "cross", "--driver", "c", "--kind", "out-of-tree", "--profile", host.profile)
    return host("bench", *short, "--export-json", out, *words, code=code)


def test_bench_compares_modes(host: Host, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    words = ["--env", "cross", "--runs", "2", "--profile", host.profile, "--export-json", out]
    kinds = [word for kind in Kind for word in ("--kind", kind.value)]
    found = host("bench", *words, *kinds, "--scenario", "clean", "--scenario", "noop")
    assert "cross out-of-tree rust" in found.out
    assert "reference" in found.out
    data = load(out)
    assert {(row.kind, row.driver, row.scenario) for row in data.rows} == {
        (kind.value, driver.value, scenario)
        for kind in Kind
        for driver in IN_KERNEL
        for scenario in ("clean", "noop")
    }
    assert all(len(row.samples) == 2 for row in data.rows)
    assert all(one.identical for one in data.identity)
    # A result is for others to read: it doesn't tell where this user's files are.
    assert data.log_tail
    assert str(host.cache) not in out.read_text()
    assert not list(host.cache.glob("runs/*/bench"))
    # What was measured is also kept as it came, in case the benchmark is interrupted.
    (lines,) = (path.read_text().splitlines() for path in host.cache.glob("runs/*/samples.jsonl"))
    assert len(lines) == 2 * len(data.rows)
    assert all(json.loads(line)["sample"]["wall_s"] > 0 for line in lines)


def test_bench_builds_kernels_from_nothing(host: Host, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    words = ["--env", "cross", "--kind", "kernel", "--runs", "1", "--warmup", "0", "-j", "1"]
    scenarios = ["--scenario", "clean", "--scenario", "noop", "-j", "3"]
    found = host("bench", *words, *scenarios, "--profile", host.profile, "--export-json", out)
    assert "Parallelism" in found.out
    data = load(out)
    assert [(row.jobs, row.scenario) for row in data.rows] == [
        (1, "clean"),
        (3, "clean"),
        (1, "noop"),
        (3, "noop"),
    ]
    clean, noop = data.rows[0].samples[0], data.rows[2].samples[0]
    assert [phase.name for phase in clean.phases] == ["configure", "prepare", "kernel"]
    assert [phase.name for phase in noop.phases] == ["kernel"]
    assert {"Image", "Module.symvers"} <= {product.name for product in clean.products}
    # No KDIR was needed, and none was made.
    assert not list(host.cache.glob("kdirs/*"))


def test_bench_changes_lines_of_the_kernel(host: Host, tmp_path: Path) -> None:
    (host.tree / "drivers/spi").mkdir(parents=True)
    (host.tree / "drivers/spi/spi.c").write_text("int spi;\n")
    out = tmp_path / "bench.json"
    words = ["--env", "cross", "--kind", "kernel", "--runs", "2", "--warmup", "0"]
    profile = host.write_profile(
        f"name: p\nsource: {{directory: {host.tree}}}\npatches: false\n"
        "config: {base: tinyconfig}\n",
        "p",
    )
    host(
        *("bench", *words, "--scenario", "incremental", "--profile", profile, "--export-json", out)
    )
    # Without Rust in the profile there is no line of Rust to change.
    assert [row.scenario for row in load(out).rows] == ["incremental-c"]
    assert (host.tree / "drivers/spi/spi.c").read_text() == "int spi;\n"
    found = host(*("bench", *words, "--scenario", "incremental-rust", "--profile", profile), code=2)
    assert "no Rust" in found.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--kind", "in-tree", "--scenario", "incremental-c"], "no such scenario"),
        (["--fail-above", "10%"], "needs --compare"),
        (["--compare", "FILE", "--fail-above", "10"], "write it as 10%"),
        (["--compare", "FILE"], "format"),
        (["--plot", "a.gif"], ".svg or .png"),
        (["--html", "no/such/x.html"], "not a folder"),
    ],
)
def test_bench_refuses_what_it_cannot_do_before_it_starts(
    bare: Host, tmp_path: Path, words: list[str], expected: str
) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    found = bare("bench", *[other if word == "FILE" else word for word in words], code=2)
    assert expected in found.err
    assert bare.calls("mmdebstrap") == 0


def test_bench_compares_with_an_earlier_result(host: Host, tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    bench(host, old, "--runs", "3")
    data = json.loads(old.read_text())
    for sample in data["rows"][0]["samples"]:
        sample["wall_s"] *= 100
    new.write_text(json.dumps(data))
    found = host("bench", "--from", new, "--compare", old)
    assert "slower" in found.out
    found = host("bench", "--from", old, "--compare", new)
    assert "faster" in found.out
    found = host("bench", "--from", new, "--compare", old, "--fail-above", "10%", code=1)
    assert "became slower by more than 10%" in found.err
    assert "cross out-of-tree c" in found.err
    data = host(
        *("--json", "bench", "--from", new, "--compare", old, "--fail-above", "10%"), code=1
    ).json
    assert data["comparison"]["rows"][0]["verdict"] == "slower"
    assert data["exit_code"] == 1
    host("bench", "--from", old, "--compare", old, "--fail-above", "0%")


def test_a_result_of_another_kind_is_refused(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    bench(host, path, "--runs", "1", "--warmup", "0")
    data = json.loads(path.read_text())
    for change, expected in (
        ({"format": 1}, "format"),
        ({"machine": {}}, "machine.cpu"),
        ({"wrong": 1}, "wrong"),
    ):
        path.write_text(json.dumps(data | change))
        assert expected in host("bench", "--from", path, code=2).err


def test_bench_exports_what_it_measured(host: Host, tmp_path: Path) -> None:
    table, text = tmp_path / "x.csv", tmp_path / "x.md"
    words = ("--runs", "2", "--export-csv", table, "--export-markdown", text)
    bench(host, tmp_path / "x.json", *words, "--scenario", "clean", "--scenario", "noop")
    lines = list(csv.DictReader(table.open()))
    assert [line["scenario"] for line in lines] == ["clean", "clean", "noop", "noop"]
    assert all(float(line["wall_s"]) > 0 for line in lines)
    assert text.read_text().startswith("# rbuild bench\n")
    rows = [line for line in text.read_text().splitlines() if line.startswith("| cross out-of")]
    assert len(rows) == 2


def test_the_published_schema_is_that_of_the_results(host: Host, tmp_path: Path) -> None:
    schema = host("bench", "--schema").json
    bench(host, tmp_path / "x.json", "--runs", "1", "--warmup", "0")
    data = json.loads((tmp_path / "x.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(data, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data | {"rows": [{}]}, schema)


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
    said = next(line for line in second.stdout if "Waiting for another rbuild" in line)
    assert f": pid {first.pid}, `" in said
    assert re.search(r"`, since \d\d:\d\d:\d\d \(.* s ago\) \.\.\.$", said)
    (run,) = host.cache.glob("runs/2*")
    assert host("--json", "clean", "--what", "runs").json["removed"] == []
    host.release()
    for child in (first, second):
        child.communicate(timeout=20)
        assert child.returncode == 0
    assert host.calls("modules_prepare") == 1
    assert host("--json", "clean", "--what", "runs").json["removed"] == [run.name]


def kdir_of(host: Host) -> Entry:
    (path,) = host.cache.glob("kdirs/tiny-*")
    return Entry(EntryKind.KDIRS, path.name, path)


def test_a_module_waits_for_no_one_who_works_on_its_kdir_or_on_another_module(host: Host) -> None:
    host.module(host.write_module())
    cache = Cache(host.cache, Console())
    (folder,) = (path for path in kdir_of(host).path.glob("modules/mine-*") if path.is_dir())
    other = host.folder / "other"
    shutil.copytree(host.write_module(), other)
    with cache.lock(kdir_of(host)), cache.lock(Entry(EntryKind.KDIRS, folder.name, folder)):
        child = host.start("module", other, "--profile", host.profile)
        said = child.communicate(timeout=30)[0]
    assert child.returncode == 0, said
    assert "Waiting" not in said


def test_a_module_waits_for_who_mends_its_kdir(host: Host) -> None:
    host.module(host.write_module())
    cache, entry = Cache(host.cache, Console()), kdir_of(host)
    host.write_module("int y;\n")
    with cache.lock(entry):
        cache.open(entry)
        cache.open(entry)  # as after a kill
        child = host.start("module", host.folder / "mine", "--profile", host.profile)
        assert child.stdout is not None
        said = next(line for line in child.stdout if "Waiting" in line)
        assert entry.name in said
        assert f"pid {os.getpid()}, `" in said
        cache.rest(entry)
    child.communicate(timeout=30)
    assert child.returncode == 0


def test_a_kdir_is_discarded_once_no_module_is_built_in_it(host: Host) -> None:
    host.module(host.write_module())
    cache, entry = Cache(host.cache, Console()), kdir_of(host)
    with cache.reading(entry, entry.path / "modules/x"):
        child = host.start("kernel", "--clean", "--profile", host.profile)
        assert child.stdout is not None
        said = next(line for line in child.stdout if "Waiting" in line)
        assert f"pid {os.getpid()}, `" in said
        assert entry.path.exists()
    child.communicate(timeout=30)
    assert child.returncode == 0


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["python3", "-m", "rbuild", "module", "a b"], "rbuild module 'a b'"),
        (["/v/bin/python", "/v/bin/rbuild", "kernel"], "rbuild kernel"),
        (["/usr/bin/rbuild"], "rbuild"),
        (["python3", "-c", "x" * 300], f"python3 -c {'x' * 189}..."),
    ],
)
def test_a_holder_is_shown_as_it_was_typed(
    words: list[str], shown: str, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    monkeypatch.setattr(holder, "PROC", tmp_path)
    assert holder._command(7) == shown
    assert holder.holder(tmp_path / "7/cmdline") is None  # nothing says who


def test_status_and_clean(bare: Host) -> None:
    assert "Nothing is provisioned" in bare("status").out
    bare.module(bare.write_module())
    entries = bare("--json", "status").json["entries"]
    assert {one["room"] for one in entries} == {*("rootfs", "trees", "kdirs", "ccache", "runs")}
    bare("clean", "--what", "kdirs", "--older-than", "1")
    assert any(one["room"] == "kdirs" for one in bare("--json", "status").json["entries"])
    bare("clean")
    kinds = {one["room"] for one in bare("--json", "status").json["entries"]}
    assert kinds == {"rootfs", "trees", "ccache"}
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
    assert main.run(["module", str(host.write_module()), "--profile", str(host.profile)]) == 130


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
    assert "is unavailable" in found.err
    (metadata,) = (host.cache / "trees").glob("*/metadata.json")
    assert json.loads(metadata.read_text())["source"] == str(host.tree)
