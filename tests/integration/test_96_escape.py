"""A hostile module's Makefile tries to get out of its sandbox: as root and as an ordinary user."""

from __future__ import annotations

import pytest

from tests.faults.escape import ATTEMPTS, USER, escape, lab_of
from tests.faults.lab import Lab

from .engine import Engine, engine

__all__ = ["engine"]


@pytest.fixture(autouse=True)
def against_a_kdir(lab: Lab) -> None:
    ready = lab.run("module", lab.module, "--profile", lab.profile)
    assert ready.code == 0, ready.err


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
