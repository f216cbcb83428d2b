"""A signal that comes before rbuild is loaded, or while Python ends, after it has said all."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

LATE = """
import os, sys

class Late:
    def __del__(self, kill=os.kill, own=os.getpid(), number=int(sys.argv[1])):
        kill(own, number)

sys.late = Late()  # goes when the modules do
sys.argv = ["rbuild", "--version"]
from rbuild.__main__ import main

main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_exit_code_is_that_of_the_work(number: signal.Signals) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LATE, str(int(number))], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("rbuild")


EARLY = """
import os, sys

class Early:
    def find_spec(self, name, path=None, target=None):
        if name == "rbuild.cli.main":
            os.kill(os.getpid(), int(sys.argv[1]))

sys.meta_path.insert(0, Early())
from rbuild.__main__ import main

main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_that_comes_early_interrupts(number: signal.Signals) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", EARLY, str(int(number))], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr == ""
