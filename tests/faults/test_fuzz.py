"""The fuzzer's short version, and that it would notice what it is there for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rbuild.errors import UsageError

from . import fuzz
from .fuzz import FuzzFigures, run
from .targets import TARGETS, Target

SEED = 7
FEW, MANY = 200, 2000
QUICK = {"answer", "board", "config_txt", "lines", "manifest"}
"""Targets that try thousands of inputs a second."""


@pytest.mark.parametrize("target", TARGETS, ids=lambda one: one.name)
def test_only_rbuilds_own_errors_come_out(target: Target) -> None:
    cases = MANY if target.name in QUICK else FEW
    (found,) = run(cases, SEED, 1, [target])
    assert found.cases == cases
    assert found.faults == ()
    assert (found.accepted + found.refused, found.tracebacks) == (cases, 0)
    assert found.accepted > 0


def planted(try_it: Callable[[bytes], None], how: str = "text") -> Target:
    """Return a target that reads a number behind a colon, as ``try_it`` does."""
    return Target("planted", lambda _: try_it, lambda: [b'{"a": 12}', b'{"b": [3, 4]}'], how)


def believing(content: bytes) -> None:
    """Have a bug: a text with a 3 after a colon is no good."""
    if b"{" not in content:
        raise UsageError("That is none.")
    if b"3" in content.partition(b":")[2]:
        raise KeyError("3")


@pytest.mark.parametrize("how", ["bytes", "text", "data", "yaml"])
def test_a_traceback_is_noticed_and_its_input_is_made_short(how: str) -> None:
    (found,) = run(500, SEED, 1, [planted(believing, how)])
    assert found.tracebacks > 0
    assert found.cases == found.accepted + found.refused + found.tracebacks == 500
    (fault,) = found.faults
    assert fault.count == found.tracebacks
    assert fault.error == "KeyError in tests/faults/test_fuzz.py, believing"
    assert fault.example == b"{:3"


def test_an_input_that_takes_too_long_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(content: bytes) -> None:
        while b"12" not in content:
            pass

    monkeypatch.setattr(fuzz, "CPU_S", 0.05)
    (found,) = run(20, SEED, 1, [planted(hang)])
    assert found.tracebacks == sum(one.count for one in found.faults) > 0
    assert {one.error.split()[0] for one in found.faults} == {"TooSlow"}


def test_the_same_seed_tries_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    target = planted(seen.append)
    monkeypatch.setattr(fuzz, "CHUNK", 30)
    run(100, 1, 1, [target])
    first = list(seen)
    seen.clear()
    run(100, 1, 1, [target])
    assert seen == first
    assert len(seen) == 100
    assert len(set(seen)) > 50
    seen.clear()
    run(100, 2, 1, [target])
    assert seen != first


def test_processes_share_the_work(tmp_path: Path) -> None:
    known = [one for one in TARGETS if one.name in {"manifest", "answer"}]
    alone, shared = (run(101, SEED, count, known) for count in (1, 2))
    assert [replace(one, seconds=0) for one in alone] == [replace(one, seconds=0) for one in shared]
    assert [one.cases for one in alone] == [51, 51]


def test_figures_are_printed_and_a_traceback_is_an_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--cases", "40", "--processes", "1", "--target", "manifest"]
    assert fuzz.main(words) == 0
    assert "manifest           40" in capsys.readouterr().out
    assert fuzz.main([*words, "--json", "--seed", "3"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["seed"], data["targets"][0]["cases"]) == (3, 40)
    bad = FuzzFigures("manifest", 1, tracebacks=1, faults=(fuzz.Fault("KeyError", 1, b"\xff"),))
    monkeypatch.setattr(fuzz, "run", lambda *_: (bad,))
    assert fuzz.main([*words, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["targets"][0]["faults"][0]["example"] == "\xff"
    assert fuzz.main(words) == 1
    assert "manifest: KeyError (1x): b'\\xff'" in capsys.readouterr().out
