"""The benchmark's own parts: what is run in which order, where, and what is said of the bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rbuild.bench import compare, identity, machine
from rbuild.bench import report as words
from rbuild.bench.places import change_a_line, main_source
from rbuild.bench.plan import Mode, Plan, Scenario, Target, modes, runs_of
from rbuild.errors import BuildFailed, UsageError
from rbuild.module.drivers import driver_source
from rbuild.module.sync import sync
from rbuild.provision import doctor
from rbuild.sandbox import seccomp
from rbuild.sandbox.cgroup import Cgroup, bounded, cgroup, is_exempt, max_tasks
from rbuild.specs.profile import IN_KERNEL, Driver
from rbuild.util import elf


@pytest.mark.parametrize(
    ("driver", "name"),
    [(Driver.C, "mfrc522_chip.c"), (Driver.RUST, "chip.rs"), (Driver.GLUE, "chip.rs")],
)
def test_a_change_is_made_where_the_chip_is(tmp_path: Path, driver: Driver, name: str) -> None:
    sync(driver_source(driver), tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_symlink()]
    place = SimpleNamespace(module=tmp_path, sources=tmp_path)
    assert main_source(place).name == name


def test_change_a_line_changes_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.rs"
    path.write_text("fn f() {}\n")
    change_a_line(path, 1)
    first = path.read_text()
    change_a_line(path, 2)
    assert first != path.read_text()
    assert len(path.read_text().splitlines()) == 2


def test_turns_are_interleaved() -> None:
    found = modes(["cross", "hybrid"], [Target.OUT_OF_TREE], [Driver.C], [2])
    order = list(runs_of(Plan(tuple(found), (Scenario.NOOP, Scenario.CLEAN), 2, 1)))
    assert len(order) == 3 * 2 * 2
    assert [turn.counted for turn in order] == [False] * 4 + [True] * 8
    assert [str(turn.mode) for turn in order[:3]] == [str(found[0])] * 2 + [str(found[1])]
    assert [turn.scenario for turn in order[:2]] == [Scenario.CLEAN, Scenario.NOOP]


def test_modes_are_every_combination() -> None:
    found = modes(["a", "b"], list(Target), list(IN_KERNEL), [1, 2])
    assert len(set(found)) == 2 * 2 * (2 * len(IN_KERNEL) + 1)
    assert found[0] == Mode("a", Target.KERNEL, None, 1)
    assert found[1].environment == "b"
    assert str(found[0]) == "a kernel"


def test_runtimes_are_compared_like_environments() -> None:
    found = modes(["a"], [Target.KERNEL], [], [1], ["bwrap", "docker"])
    assert [str(mode) for mode in found] == ["a kernel", "a@docker kernel"]
    assert [mode.where for mode in found] == ["a", "a@docker"]


def test_a_kernel_has_other_changes_than_a_driver() -> None:
    kernel, driver = modes(["a"], [Target.KERNEL, Target.IN_TREE], [Driver.C], [1])
    asked = [Scenario.NOOP, Scenario.INCREMENTAL]
    assert kernel.scenarios(asked) == [
        Scenario.INCREMENTAL_C,
        Scenario.INCREMENTAL_RUST,
        Scenario.NOOP,
    ]
    assert driver.scenarios(asked) == [Scenario.INCREMENTAL, Scenario.NOOP]
    assert kernel.scenarios([Scenario.INCREMENTAL_C]) == [Scenario.INCREMENTAL_C]
    assert driver.scenarios([Scenario.INCREMENTAL_C]) == []


def test_the_file_system_is_that_of_the_longest_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = "a / ext4 rw 0 0\nb /var xfs rw 0 0\nc /var/lib btrfs rw 0 0\nd /va tmpfs rw 0 0\n"
    monkeypatch.setattr(machine, "_read", lambda path: mounts)
    assert machine.file_system(Path("/var/lib/x")) == "btrfs"
    assert machine.file_system(Path("/var/libs")) == "xfs"
    assert machine.file_system(Path("/usr")) == "ext4"


def test_a_machine_without_procs_files_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: "")
    moment = machine.Moment(0.1, None)
    found = machine.describe(moment, machine.Moment(9.0, None), Path("/"))
    assert (found.governor, found.mhz, found.file_system) == ("unknown", None, "unknown")
    assert not found.busy
    assert machine.busy(machine.Moment(machine.cores() * 0.6, None))


def test_a_command_joins_its_cgroup(tmp_path: Path) -> None:
    groups = [tmp_path / name for name in ("one group", "two")]
    for folder in groups:
        folder.mkdir()
    prefix = Cgroup(tuple(groups)).prefix()
    words = [*prefix, sys.executable, "-c", "import sys; print(sys.argv[1:])", "--", "a b", "-c"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['--', 'a b', '-c']"
    assert [(folder / "cgroup.procs").read_text() for folder in groups] == ["0\n", "0\n"]


@pytest.mark.parametrize(
    ("files", "seconds", "peak"),
    [
        ({"cpu.stat": "usage_usec 2500000\nuser_usec 1\n", "memory.peak": "4096\n"}, 2.5, 4096),
        ({"cpuacct.usage": "1500000000\n", "memory.max_usage_in_bytes": "8192\n"}, 1.5, 8192),
        ({}, None, None),
    ],
)
def test_a_cgroup_tells_what_it_used(
    tmp_path: Path, files: dict[str, str], seconds: float | None, peak: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    group = Cgroup((tmp_path,))
    assert group.cpu_s() == seconds
    assert group.peak_bytes() == peak


def test_a_cgroup_is_made_and_removed(tmp_path: Path) -> None:
    for name in ("cpuacct", "memory"):
        (tmp_path / name).mkdir()
    with cgroup(tmp_path) as group:
        assert group is not None
        assert [folder.parent.name for folder in group.folders] == ["cpuacct", "memory"]
        assert all(folder.is_dir() for folder in group.folders)
    assert not list(tmp_path.glob("*/*"))


def test_what_a_killed_bench_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    # No pid is that large (proc(5), pid_max).
    left, others = tmp_path / f"rbuild-{1 << 30}-1", tmp_path / "rbuild-of-somebody"
    working = tmp_path / f"rbuild-{os.getppid()}-1"
    for folder in (left, others, working):
        folder.mkdir()
    with cgroup(tmp_path):
        assert not left.exists()
    assert others.exists()
    assert working.exists()


def fake_groups(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each group that is made in this folder have a bound on its processes, as in a cgroup."""
    plain, remove = Path.mkdir, Path.rmdir

    def mkdir(path: Path, *words: Any, **options: Any) -> None:
        plain(path, *words, **options)
        if path.is_relative_to(root) and path.name.startswith("rbuild-"):
            (path / "pids.max").write_text("max\n")

    def rmdir(path: Path) -> None:
        (path / "pids.max").unlink(missing_ok=True)
        remove(path)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "rmdir", rmdir)
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.mark.parametrize(
    ("files", "own", "place"),
    [
        ({"pids/own/x": ""}, "8:pids:/own\n4:memory:/other\n0::/\n", "pids/own"),
        ({"cgroup.controllers": "pids"}, "0::/\n", "."),
        ({"cgroup.controllers": "pids", "a/b/memory.max": "max\n"}, "0::/a/b\n", "a"),
        ({"cgroup.controllers": "pids", "a/b/memory.max": "1000\n"}, "0::/a/b\n", None),
        ({"cgroup.controllers": "pids", "a/b/cpu.max": "max 100000\n"}, "0::/a/b\n", "a"),
        ({"cgroup.controllers": "pids", "a/b/pids.max": "100\n"}, "0::/a/b\n", None),
        ({"cgroup.controllers": "pids", "a/b/cpuset.cpus": "\n"}, "0::/a/b\n", "a"),
        ({"cgroup.controllers": "pids", "a/b/cpuset.cpus": "0\n"}, "0::/a/b\n", None),
        ({"cgroup.controllers": "pids", "a/b/cpu.max": "50000 100000\n"}, "0::/a/b\n", None),
        ({}, "8:pids:/own\n", None),
    ],
)
def test_a_builds_processes_are_bounded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    own: str,
    place: str | None,
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    told = tmp_path / "told"
    told.write_text(own)
    fake_groups(tmp_path, monkeypatch)
    with bounded(tmp_path, told) as group:
        if place is None:
            assert group is None
            return
        assert group is not None
        (folder,) = group.folders
        assert folder.parent == tmp_path / place
        assert int((folder / "pids.max").read_text()) == max_tasks() >= 4096
        # What can be reached from inside isn't the bound itself.
        assert group.prefix()[-2] == str(folder / "inside")
        left = folder.with_name(f"rbuild-{1 << 30}-1") / "inside"
        left.mkdir(parents=True)
        with bounded(tmp_path, told):
            assert not left.parent.exists()
    assert not list(tmp_path.rglob("rbuild-*"))


def test_doctor_says_where_root_is_not_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("rbuild.sandbox.cgroup._bounding", lambda *_: None)
    monkeypatch.setattr("rbuild.sandbox.cgroup.is_exempt", lambda: True)
    assert doctor._bounds().state is doctor.State.WARNING
    monkeypatch.setattr("rbuild.sandbox.cgroup.is_exempt", lambda: False)
    assert doctor._bounds().state is doctor.State.OK
    monkeypatch.setattr(seccomp, "MACHINES", frozenset())
    assert "no system call filter" in doctor._bounds().text


@pytest.mark.parametrize(("text", "exempt"), [("0 0 4294967295", True), ("0 1000 1", False)])
def test_root_of_a_user_namespace_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, exempt: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "map").write_text(f"         {text}\n")
    assert is_exempt(tmp_path / "map") == exempt


def test_an_ordinary_user_has_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_groups(tmp_path, monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (tmp_path / "cgroup.controllers").touch()
    with bounded(tmp_path, tmp_path / "cgroup.controllers") as group:
        assert group is None


def test_without_cgroups_there_is_none(tmp_path: Path) -> None:
    with cgroup(tmp_path) as group:
        assert group is None


def test_elf_files_differ_by_section(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    elf_bytes = request.getfixturevalue("elf")
    one, two, three = (tmp_path / name for name in ("one.ko", "two.ko", "three.ko"))
    one.write_bytes(elf_bytes(modinfo={"license": "GPL"}, undefined=["a"]))
    two.write_bytes(elf_bytes(modinfo={"license": "BSD"}, undefined=["a"]))
    three.write_bytes(elf_bytes(modinfo={"license": "GPL"}, undefined=["a", "b"]))
    assert elf.section_digests(one) == elf.section_digests(one)
    assert identity.difference("hybrid", one, two).sections == (".modinfo",)
    assert identity.difference("hybrid", one, three).sections == (".symtab", ".strtab", "(headers)")


def test_a_file_that_only_begins_as_elf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.ko"
    path.write_bytes(b"\x7fELF\x02\x01\x01")
    with pytest.raises(BuildFailed):
        elf.section_digests(path)
    path.write_bytes(b"text")
    assert elf.section_digests(path) is None


def test_other_files_differ_by_line_or_byte(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a\nb\n")
    two.write_text("a\nc\n")
    assert identity.difference("x", one, two).note == "2 lines differ: b; c"
    one.write_bytes(b"\x80\x01\x02")
    two.write_bytes(b"\x80\x03\x02\x04")
    assert identity.difference("x", one, two).note == (
        "1 bytes differ, the first at 0x1; sizes 3 and 4"
    )
    assert "was not made" in identity.difference("x", one, tmp_path / "none").note


SCALING = Path(__file__).parents[2] / "docs/bench/scaling.json"


@pytest.mark.parametrize("value", [-1, 1e300, float("nan"), float("inf")])
def test_a_run_that_takes_no_such_time_is_refused(tmp_path: Path, value: float) -> None:
    data = json.loads(SCALING.read_text())
    data["rows"][1]["samples"][0]["wall_s"] = value
    path = tmp_path / "x.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"x\.json: rows\.1\.samples\.0\.wall_s: Input should be"):
        compare.load(path)


@pytest.mark.parametrize("value", [0, 1e-300])
def test_a_run_that_takes_no_time_can_be_compared(tmp_path: Path, value: float) -> None:
    data = json.loads(SCALING.read_text())
    data["rows"][1]["samples"][0]["wall_s"] = value
    path = tmp_path / "x.json"
    path.write_text(json.dumps(data))
    report = compare.load(path)
    assert words.speedups(report)
    (_, change) = compare.compare(report, compare.load(SCALING)).rows
    assert change.ratio > 1e6


def test_rows_of_unequal_runs_can_be_shown(tmp_path: Path) -> None:
    data = json.loads(SCALING.read_text())
    data["rows"][0]["samples"] *= 3
    path = tmp_path / "x.json"
    path.write_text(json.dumps(data))
    report = compare.load(path)
    assert words.speedups(report)
    assert compare.compare(report, compare.load(SCALING)).rows


@pytest.mark.parametrize(("part", "words"), [("wall_s", "the median"), ("ratio", "the ratio")])
def test_an_interval_that_bounds_nothing_is_refused(tmp_path: Path, part: str, words: str) -> None:
    data = json.loads((SCALING.parent / "kernel.json").read_text())
    data["rows"][1][part]["low"] = data["rows"][1][part]["high"] + 1
    path = tmp_path / "x.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=rf"rows\.1\.{part}: .*must bound {words}"):
        compare.load(path)


@pytest.mark.parametrize("digits", [21, 400, 5000])
def test_a_number_of_too_many_digits_is_refused(tmp_path: Path, digits: int) -> None:
    path = tmp_path / "x.json"
    path.write_text(SCALING.read_text().replace('"runs": ', f'"runs": {"9" * digits}', 1))
    with pytest.raises(
        UsageError, match=r"x\.json can't be read as JSON: a number has 4?\d+ digits"
    ):
        compare.load(path)
