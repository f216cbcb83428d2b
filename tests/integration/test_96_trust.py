"""rbuild killed, interrupted and crowded: a short version of ``python -m tests.faults``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.concurrency import crowd
from tests.faults.kills import Killer, Phase, phases
from tests.faults.lab import CHECKOUT, Lab, Seen
from tests.faults.powercut import modules
from tests.faults.resources import GROUPS, disks, hang, memory, mirrors
from tests.faults.soak import soak

SEED = 7
SHORT = ("module",)
LONG = ("prepare", "source")
"""A phase of Kbuild's that goes on where it was, and one that begins anew: minutes each."""


@pytest.fixture(scope="module")
def killer(lab: Lab) -> Killer:
    test = Killer(lab, SEED)
    test.prepare(chosen(lab, SHORT))
    return test


def chosen(lab: Lab, names: Sequence[str]) -> list[Phase]:
    return [phase for phase in phases(lab) if phase.name in names]


def test_killed_it_goes_on_as_if_it_wasnt(lab: Lab, killer: Killer) -> None:
    tallies = list(killer.kill(chosen(lab, SHORT), 4, a_round=4))
    assert [one for one in tallies if not one.is_clean] == []
    assert sum(one.kills for one in tallies) >= 4


@pytest.mark.slow
def test_killed_in_long_phases_it_goes_on_as_if_it_wasnt(lab: Lab, killer: Killer) -> None:
    killer.prepare(chosen(lab, LONG))
    tallies = list(killer.kill(chosen(lab, LONG), 8, a_round=4))
    assert [one for one in tallies if not one.is_clean] == []
    assert sum(one.kills for one in tallies) >= 8


def test_asked_to_end_it_leaves_nothing(lab: Lab, killer: Killer) -> None:
    tallies = list(killer.interrupt(chosen(lab, SHORT), ["SIGTERM", "closed terminal"]))
    assert [one for one in tallies if not one.is_clean] == []
    assert sum(one.kills for one in tallies) >= len(tallies)


def test_what_is_left_behind_is_noticed(lab: Lab) -> None:
    with subprocess.Popen(["sleep", "200"]) as somebody_elses:
        before = lab.seen()
        assert lab.after_the_end(before, 0.1) == []
        see_what_is_left(lab, before)
        assert somebody_elses.poll() is None
        somebody_elses.kill()


def see_what_is_left(lab: Lab, before: Seen) -> None:
    subprocess.run(["sh", "-c", "setsid sleep 300 >/dev/null 2>&1 &"], check=True)
    (lab.temporary / "left").touch()
    left = lab.after_the_end(before, 0.1)
    assert any("sleep 300" in one for one in left)
    assert any("left" in one for one in lab.seen().left(before))
    lab.end_all(before)
    (lab.temporary / "left").unlink()
    assert lab.after_the_end(before) == []


@pytest.mark.slow
def test_ten_at_once_do_the_work_once(lab: Lab) -> None:
    found = crowd(lab, cleaning=False, kernel=False)
    assert found.is_clean, found
    assert found.waited > 0


def test_what_a_power_cut_takes_of_a_modules_build_is_built_again(lab: Lab) -> None:
    found = modules(lab, step=3)
    assert found.faults == []
    assert found.tried > 3


def test_a_row_of_builds_grows_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    found = soak(lab, 6, 0)
    assert found.is_clean, found


@pytest.mark.root
def test_a_store_that_cant_be_written_is_told(lab: Lab, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "rbuild", "module", lab.module, "--profile", lab.profile]
    env = lab.environment() | {"RBUILD_CACHE_DIR": str(tmp_path)}
    script = 'mount -t tmpfs -o ro tmpfs "$0" && exec "$@"'
    apart = ["unshare", "--mount", "sh", "-c", script, tmp_path]
    found = subprocess.run([*apart, *argv], env=env, cwd=CHECKOUT, capture_output=True, text=True)
    assert found.returncode == 4
    assert f"{tmp_path} can't be written: the file system is read-only" in found.stderr
    assert "--cache-dir" in found.stderr


@pytest.mark.root
def test_somebody_elses_store_is_told(lab: Lab, tmp_path: Path) -> None:
    other = tmp_path / "cache"
    other.mkdir(mode=0o755)
    (other / "rootfs").mkdir(mode=0o755)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    words = ["--cache-dir", other, "setup", "cross"]
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c"]
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from rbuild.cli import main as cli; "
    )
    program += "sys.exit(cli.run(sys.argv[1:]))"
    found = subprocess.run(
        [*argv, program, CHECKOUT, *words],
        env={"PATH": os.environ["PATH"], "HOME": "/"},
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert found.returncode == 4, found.stderr
    assert "can't be written: Permission denied, and it belongs to root" in found.stderr


# What runs out.


@pytest.mark.root
@pytest.mark.slow
def test_a_full_disk_is_told_and_the_next_run_goes_on(lab: Lab) -> None:
    (found,) = disks(lab, SEED, 1, ends=["disk"])
    assert found.faults == []
    assert found.tried == 1


@pytest.mark.root
@pytest.mark.skipif(not GROUPS.is_dir(), reason="needs control groups of version 1")
def test_memory_that_runs_out_is_told(lab: Lab) -> None:
    assert memory(lab).faults == []


def test_a_compiler_that_hangs_is_ended(lab: Lab) -> None:
    assert hang(lab).faults == []


@pytest.mark.slow
def test_a_mirror_that_lies_is_told(lab: Lab) -> None:
    """As tests/unit/test_downloads.py has it, with a real source."""
    found = mirrors(lab)
    assert found.faults == []
    assert found.tried >= 10
