"""Reproducers run for real: the same bytes again, by the line and by the script."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import Rbuild


def by_script(found: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a result's script as somebody does who has no rbuild."""
    folder.mkdir(exist_ok=True)
    env = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "TMPDIR": str(folder)}
    argv = ["sh", found["reproduce"]["script"]]
    return subprocess.run(argv, env=env, capture_output=True, text=True)


def sums(found: dict[str, Any]) -> set[str]:
    return {one["sha256"] for one in found["artefacts"]}


def listed(done: subprocess.CompletedProcess[str]) -> set[str]:
    lines = (line.split() for line in done.stdout.splitlines())
    return {words[0] for words in lines if len(words) == 2 and len(words[0]) == 64}


@pytest.mark.parametrize(
    "words",
    [
        ("--driver", "c"),
        ("--driver", "rust", "--env", "hybrid"),
        ("--driver", "c", "--in-tree"),
    ],
)
def test_a_driver(rbuild: Rbuild, tmp_path: Path, words: tuple[str, ...]) -> None:
    found = rbuild("--json", "module", *words).json
    done = by_script(found, tmp_path / "work")
    assert done.returncode == 0, done.stderr
    assert listed(done) == sums(found)
    again = shlex.split(found["reproduce"]["rbuild"])
    assert sums(rbuild("--json", *again[1:]).json) == sums(found)


def test_a_build_that_fails(rbuild: Rbuild, c_stranger: Path, tmp_path: Path) -> None:
    source = c_stranger / "stranger.c"
    source.write_text(source.read_text() + "int broken = ;\n")
    told = rbuild("module", c_stranger, code=1).err
    found = rbuild("--json", "module", c_stranger, code=1).json
    assert f"again: {found['reproduce']['rbuild']}" in told
    assert f"without rbuild: sh {found['reproduce']['script']}" in told
    done = by_script(found, tmp_path / "work")
    assert done.returncode != 0
    assert "error: expected expression" in done.stderr + done.stdout


def test_a_boot(rbuild: Rbuild, tmp_path: Path) -> None:
    found = rbuild("--json", "boot", "--driver", "c", "--test", "registers").json
    done = by_script(found, tmp_path / "work")
    assert "ok 1 - " in done.stdout
    assert "not ok" not in done.stdout


@pytest.mark.slow
def test_a_kernel(rbuild: Rbuild, tmp_path: Path) -> None:
    found = rbuild("--json", "kernel").json
    done = by_script(found, tmp_path / "work")
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "work").glob("tmp.*/kdir/arch/arm64/boot/Image")
    digest = subprocess.check_output(["sha256sum", made], text=True).split()[0]
    assert digest == found["artefacts"][0]["sha256"]
