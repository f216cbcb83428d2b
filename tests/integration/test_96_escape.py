"""A hostile module's Makefile tries to get out of its sandbox: as root and as an ordinary user."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.escape import ATTEMPTS, USER, escape, lab_of
from tests.faults.lab import Lab

from .conftest import Rbuild
from .engine import Engine, engine

__all__ = ["engine"]


@pytest.fixture(scope="module")
def lab(rbuild: Rbuild, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    found = rbuild("--json", "module", "--driver", "c").json
    store = Path(found["artefacts"][0]["path"]).parents[5]
    made = Lab(tmp_path_factory.mktemp("escape"), rootfs_from=store)
    made.equip(next((store / "trees").glob("linux-source-6.12-*/src")))
    ready = made.run("module", made.module, "--profile", made.profile)
    assert ready.code == 0, ready.err
    yield made
    made.remove()


def test_nothing_gets_out_of_bubblewrap(lab: Lab) -> None:
    found = escape(lab, "bwrap", None)
    assert found.successes == []
    assert found.attempts == len(ATTEMPTS) >= 60


@pytest.mark.root
def test_nothing_gets_out_as_an_ordinary_user(lab: Lab) -> None:
    own = lab_of(USER, lab)
    try:
        assert escape(own, "bwrap", USER).successes == []
    finally:
        own.remove()


def test_nothing_gets_out_of_a_container(lab: Lab, engine: Engine) -> None:
    lab.engine = engine
    try:
        assert escape(lab, "docker", None).successes == []
    finally:
        lab.engine = None
