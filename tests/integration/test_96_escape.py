"""A hostile module's Makefile tries to get out of its sandbox: as root and as an ordinary user."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.faults.beside import attempt_all
from tests.faults.escape import ATTEMPTS, USER, escape, lab_of
from tests.faults.lab import MODULE, Lab

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


def test_nothing_gets_out_of_a_container(lab: Lab, engine: Engine) -> None:
    with known_to(lab, engine):
        assert escape(lab, "docker", None).successes == []


@pytest.mark.root
def test_nothing_gets_out_as_an_ordinary_user(lab: Lab) -> None:
    own = lab_of(USER, lab)
    try:
        assert escape(own, "bwrap", USER).successes == []
    finally:
        own.remove()


@pytest.mark.root
@pytest.mark.slow
def test_nothing_gets_out_of_an_ordinary_users_container(lab: Lab, engine: Engine) -> None:
    own = lab_of(USER, lab)
    try:
        with known_to(own, engine):
            assert escape(own, "docker", USER).successes == []
    finally:
        own.remove()


@pytest.mark.slow
def test_nothing_comes_in_beside_the_sandbox(lab: Lab) -> None:
    """The unit tests have each of these attempts with fakes; this is with the real programs."""
    found = attempt_all(lab)
    assert found.successes == []
    assert found.attempts >= 30


SECRET = "hunter2-51ab"
SLEEPY = """\
obj-m += mine.o
$(obj)/mine.o: $(src)/wait
.PHONY: $(src)/wait
$(src)/wait:
\tsleep 4; env | sort
"""


@pytest.mark.parametrize("runtime", ["bwrap", "docker"])
def test_no_secret_is_kept_printed_or_told(
    lab: Lab, engine: Engine, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a build prints of its environment is in the log, and has none of the caller's."""
    for name in ("AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "KBUILD_BUILD_USER", "https_proxy"):
        monkeypatch.setenv(name, f"http://me:{SECRET}@proxy.invalid")
    folder = lab.folder / "sleepy" / "mine"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Kbuild").write_text(SLEEPY)
    (folder / "mine.c").write_text(f"{MODULE}// {runtime}\n")
    words = ("module", folder, "--profile", lab.profile, "--runtime", runtime)
    with known_to(lab, engine):
        running = lab.start("--json", *words)
        told = []
        while running.process.poll() is None:
            told += filter(None, (engine.inspected(one["Id"]) for one in engine.containers()))
            time.sleep(0.2)
        done = running.finish()
        (folder / "mine.c").write_text("wrong\n")
        failed = lab.run("--verbose", *words)
    assert (done.code, failed.code) == (0, 1), done.err + failed.err
    assert bool(told) == (runtime == "docker")
    shown = [done.out, done.err, failed.out, failed.err, *told]
    assert not [one for one in shown if SECRET in one]
    assert "KERNELRELEASE=" in failed.err
    kept = [lab.cache / "runs", *(lab.cache / "kdirs").glob("*/modules/mine-*")]
    found = ["grep", "--recursive", "--files-with-matches", "--text", SECRET, *kept]
    assert subprocess.run(found, capture_output=True, text=True).stdout == ""


@contextlib.contextmanager
def known_to(lab: Lab, engine: Engine) -> Iterator[None]:
    """Let a lab's rbuild use an engine, whoever runs it."""
    lab.engine = engine
    engine.folder.chmod(0o711)
    engine.socket.chmod(0o666)
    try:
        yield
    finally:
        lab.engine = None
