"""A signal that comes while Python ends, after rbuild has said all, changes nothing."""

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
