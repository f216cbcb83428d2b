"""What a program has used: its own, not what it inherits from a large parent."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rbuild.errors import MissingDependency
from rbuild.util import process

MIB = 1 << 20
LARGE = 200 * MIB


@pytest.fixture
def ballast() -> bytearray:
    """Have this process be a large one."""
    return bytearray(b"x") * LARGE


def peak(*argv: str) -> int:
    return process.run(argv, apart=True).usage.max_rss_bytes


def test_a_small_program_of_a_large_parent_is_small(ballast: bytearray) -> None:
    assert process.run(["true"]).usage.max_rss_bytes > LARGE  # what wait4(2) says
    assert 0 < peak("true") < 50 * MIB


def test_the_largest_of_its_descendants_counts(ballast: bytearray) -> None:
    grows = f"bytearray(b'x') * {LARGE}"
    found = peak("sh", "-c", f'"{sys.executable}" -S -c "{grows}"; true')
    assert LARGE < found < LARGE + 60 * MIB


def test_the_times_are_the_programs() -> None:
    found = process.run(
        ["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"], apart=True
    )
    assert found.usage.user_s > 0.01
    assert found.usage.wall_s >= found.usage.user_s * 0.5


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", -9), ("kill $$", -15)]
)
def test_it_ends_as_the_program_does(script: str, status: int) -> None:
    done = process.run(["sh", "-c", f"echo said; {script}"], apart=True, check=False)
    assert done.returncode == status
    assert done.tail == ("said",)


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(MissingDependency, match="no-such-program is not installed"):
        process.run(["no-such-program"], apart=True)


def test_the_program_cannot_write_the_report() -> None:
    done = process.run(["sh", "-c", "ls -l /proc/self/fd"], apart=True)
    assert "pipe" in done.text  # its own output
    assert len([line for line in done.tail if "pipe:" in line]) == 2


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    code = (
        "from rbuild.util import process\n"
        f"process.run(['sh', '-c', 'echo $$ >{mark}; exec sleep 10'], apart=True)\n"
    )
    nowhere = subprocess.DEVNULL
    words = [sys.executable, "-c", code]
    parent = subprocess.Popen(words, cwd=Path(__file__).parents[2], stdout=nowhere, stderr=nowhere)
    while not (mark.exists() and mark.read_text().strip()):
        time.sleep(0.02)
    starter = int(Path("/proc", mark.read_text().strip(), "stat").read_text().split()[3])
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(200):
        if not Path("/proc", str(starter)).exists():
            break
        time.sleep(0.02)
    assert not Path("/proc", str(starter)).exists()
    subprocess.run(["kill", mark.read_text().strip()], check=False)
