"""The newest kernel: its patches as they would be sent, and the drivers in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import Rbuild
from .test_4_static import MODULE, Series, apply_series, check_applied, check_each_builds
from .test_7_boot import DRIVERS, TESTS_AT_LEAST, boot

PATCHES = sorted((MODULE / "patches/7.3").glob("*.patch"))
UPSTREAM = [path for path in PATCHES if path.name < "1000"]
"""What is to be sent; the rest is needed here alone."""

COVER = Path(__file__).parents[2] / "docs/upstream/0000-cover-letter.txt"


def test_what_is_to_be_sent_is_of_spi_alone() -> None:
    touched = {
        name
        for path in UPSTREAM
        for name in re.findall(r"^\+\+\+ b/(\S+)$", path.read_text(), re.M)
    }
    assert {name for name in touched if "spi" in name} == {
        "rust/helpers/spi.c",
        "rust/kernel/spi.rs",
        "samples/rust/rust_driver_spi.rs",
    }
    for path in UPSTREAM:
        assert re.search(
            r"^Subject: \[PATCH \d/\d\] (rust: spi|samples: rust): ", path.read_text(), re.M
        )
    for path in set(PATCHES) - set(UPSTREAM):
        assert "Subject: [PATCH rbuild] " in path.read_text()


def test_the_cover_letter_is_of_this_series() -> None:
    text = COVER.read_text()
    subject = re.search(r"^Subject: \[PATCH 0/(\d)\] ", text, re.M)
    assert subject is not None
    assert int(subject[1]) == len(UPSTREAM)
    for path in UPSTREAM:
        found = re.search(r"^Subject: \[PATCH \d/\d\] (.*)", path.read_text(), re.M)
        assert found is not None
        assert f"  {found[1]}\n" in text
        for name in re.findall(r"^\+\+\+ b/(\S+)$", path.read_text(), re.M):
            assert f" {name} " in text


@pytest.fixture(scope="module")
def series(rbuild: Rbuild, tmp_path_factory: pytest.TempPathFactory) -> Series:
    return apply_series(rbuild, "mainline", PATCHES, tmp_path_factory.mktemp("mainline"))


@pytest.mark.slow
def test_git_applies_the_series(series: Series) -> None:
    check_applied(series)


@pytest.mark.slow
def test_that_kernel_s_own_checkers_have_nothing_to_say(rbuild: Rbuild, series: Series) -> None:
    files = " ".join(
        f"/src/{name}"
        for name in series.git("diff", "--name-only", f"{series.commits[0]}~", "HEAD").split()
        if name.endswith(".rs")
    )
    script = (
        "cd /src && scripts/checkpatch.pl --strict --terse /module/patches/7.3/0*.patch 2>&1;"
        f"for file in {files} /module/rust/*.rs; do rustfmt --check --edition 2021"
        " --config-path /src/.rustfmt.toml $file 2>&1; done"
    )
    words = ["--quiet", "shell", "--profile", "mainline", "--module", MODULE]
    assert rbuild(*words, "--", "sh", "-c", script).out == ""


@pytest.mark.slow
def test_each_patch_builds(rbuild: Rbuild, series: Series, tmp_path: Path) -> None:
    check_each_builds(rbuild, series, tmp_path, "KUNIT", "RUST_KUNIT_TESTS", "RUST_SPI_KUNIT_TEST")


WITH_KUNIT = """\
name: mainline-kunit
architecture: arm64
source:
  debian: linux-source-7.*
  suite: trixie-backports
config:
  base: tinyconfig
  fragments: [{fragment}]
  options: {{KUNIT: y, RUST_KUNIT_TESTS: y, RUST_SPI_KUNIT_TEST: y}}
"""


@pytest.mark.slow
def test_the_series_own_tests_pass(rbuild: Rbuild, tmp_path: Path) -> None:
    profile = tmp_path / "mainline-kunit.yaml"
    profile.write_text(WITH_KUNIT.format(fragment=MODULE.parent / "profiles/slim.config"))
    found = boot(rbuild, "--profile", profile, "--test", "loading")
    assert re.search(r"^ok \d+ rust_kernel_spi", Path(found["console"]).read_text(), re.M)


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_passes_all_its_tests(rbuild: Rbuild, driver: str) -> None:
    found = boot(rbuild, "--driver", driver, "--profile", "mainline")
    assert found["planned"] > TESTS_AT_LEAST


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_that_was_built_in_tree(rbuild: Rbuild, driver: str) -> None:
    words = ("--in-tree", "--test", "loading", "--test", "memory", "--profile", "mainline")
    boot(rbuild, "--driver", driver, *words)
