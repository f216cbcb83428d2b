"""The set-up of a checkout: what it installs for whom, and what it says meanwhile."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).parents[2] / "tools/bootstrap.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Steps:
    """A bootstrap of a checkout in a folder of its own, whose steps are only noted."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module = load()
        self.taken: list[str] = []
        self.became: list[str] = []
        (folder / ".venv/bin").mkdir(parents=True)
        rbuild = folder / ".venv/bin/rbuild"
        rbuild.write_text("#!/bin/sh\nexit 0\n")
        rbuild.chmod(0o755)
        (folder / "pyproject.toml").write_text("[project]\n")
        monkeypatch.chdir(folder)
        monkeypatch.setattr(self.module, "CHECKOUT", folder)
        monkeypatch.setattr(self.module, "VENV", folder / ".venv")
        monkeypatch.setattr(self.module, "_step", lambda argv, _: self.taken.append(" ".join(argv)))
        monkeypatch.setattr(os, "execv", lambda _, words: self.became.append(" ".join(words)))

    def __call__(self, *words: str) -> list[str]:
        """Return the steps that are taken for these words."""
        self.taken.clear()
        self.module.main(list(words))
        return list(self.taken)


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(tmp_path / "checkout", monkeypatch)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of it that has no checkout around it."""
    (folder / "rbuild").mkdir()
    copy = shutil.copy(SOURCE, folder / "rbuild")
    return subprocess.run([sys.executable, copy, *words], capture_output=True, text=True)


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_names_the_ways_and_changes_nothing(tmp_path: Path, word: str) -> None:
    found = run(tmp_path, word)
    assert found.returncode == 0
    assert "--test" in found.stdout
    assert "bench" in found.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["rbuild"]


def test_no_word_is_wrong_usage(tmp_path: Path) -> None:
    assert run(tmp_path).returncode == 2


def test_the_main_job_gets_no_more_than_rbuild_needs(steps: Steps, tmp_path: Path) -> None:
    taken = steps("bench")
    assert taken[-1].endswith(f"--editable {tmp_path / 'checkout'}")
    assert not [one for one in taken if "apt-get" in one]
    assert steps.became[-1].endswith("bin/rbuild bench")
    assert steps("bench") == []


def test_the_tests_get_theirs_and_leave_the_main_job_as_it_is(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps("bench")
    monkeypatch.setattr(shutil, "which", lambda name, path="": None if name == "fish" else name)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    taken = steps("--test", "-k", "x")
    assert [one for one in taken if one.endswith("[dev]")]
    assert [one.split()[-1] for one in taken if "apt-get install" in one] == ["fish"]
    assert steps.became[-1].endswith("bin/python -m pytest -k x")
    monkeypatch.setattr(shutil, "which", lambda name, path="": name)
    assert steps("--test") == []
    assert steps("bench") == []


def test_another_pyproject_is_installed_anew(steps: Steps, tmp_path: Path) -> None:
    steps("bench")
    (tmp_path / "checkout/pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert any("--editable" in one for one in steps("bench"))


def test_a_long_step_shows_that_it_lives_and_a_failed_one_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load()
    assert module.TELLS_FIRST_S <= 2
    monkeypatch.setattr(module, "TELLS_FIRST_S", 0.05)
    module._step(["sh", "-c", "sleep 0.3; echo hidden"], "Waiting")
    said = capsys.readouterr().err
    assert said.startswith("==> Waiting\n")
    assert " s\n" in said
    assert "hidden" not in said
    with pytest.raises(subprocess.CalledProcessError):
        module._step(["sh", "-c", "echo why; exit 1"], "Failing")
    assert "why" in capsys.readouterr().err


def test_a_user_of_sudos_gets_the_tests_packages_too(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path="": None if name == "fish" else name)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    asked: list[list[str]] = []
    monkeypatch.setattr(steps.module.subprocess, "run", lambda words, **_: asked.append(words))
    assert [one.split()[-1] for one in steps("--test") if one.startswith("sudo")][-1] == "fish"
    # The password is asked for while nothing else is written.
    assert asked[0] == ["sudo", "true"]

    def refused(words: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(1, words)

    monkeypatch.setattr(steps.module.subprocess, "run", refused)
    steps("--test")
    assert "skipped for want of: fish" in capsys.readouterr().err
    assert steps.became[-1].endswith("-m pytest")
