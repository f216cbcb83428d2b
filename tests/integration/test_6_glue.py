"""The glue driver's Rust library: its own tests, and what it must not contain."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rbuild.module.drivers import driver_source
from rbuild.specs.profile import Driver

from .conftest import Rbuild


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    return Path(shutil.copytree(driver_source(Driver.GLUE), tmp_path / "glue"))


def test_the_librarys_own_tests(rbuild: Rbuild, glue: Path) -> None:
    command = "rustc --edition=2021 --test -Dwarnings lib.rs -o tests && ./tests"
    done = rbuild("--quiet", "shell", "--module", glue, "--", "sh", "-ec", command)
    assert "test result: ok." in done.out


def test_the_library_is_formatted(rbuild: Rbuild, glue: Path) -> None:
    command = "rustfmt --check --edition 2021 --config-path /src/.rustfmt.toml *.rs"
    rbuild("shell", "--module", glue, "--", "sh", "-ec", command)


def test_a_panic_that_survives_is_refused(rbuild: Rbuild, glue: Path) -> None:
    source = glue / "ffi.rs"
    good, bad = "parse(text).ok_or(EINVAL)", "parse(text).map(Ok).unwrap()"
    text = source.read_text()
    assert good in text
    source.write_text(text.replace(good, bad))
    found = rbuild("module", glue, code=1)
    assert "unwrap_failed" in found.err
