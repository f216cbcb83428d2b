"""What was built, booted: the drivers pass their tests, and the tests notice what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .conftest import Rbuild
from .faults import FAULTS, Fault

MODULE = Path(__file__).parents[2] / "module"
DRIVERS = ("rust", "c", "glue")
TESTS_AT_LEAST = 390
"""As many tests as the suites have, less a few."""


def boot(rbuild: Rbuild, *words: str | Path) -> dict:
    """Boot, and return what was found; all that is run must have passed."""
    found = rbuild("--json", "boot", *words).json["boot"]
    assert found["passed"]
    assert found["failed"] == 0
    assert found["skipped"] == 0
    assert found["planned"] == len(found["tests"])
    return found


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_passes_all_its_tests(rbuild: Rbuild, driver: str) -> None:
    found = boot(rbuild, "--driver", driver)
    assert found["planned"] > TESTS_AT_LEAST
    assert {one["group"] for one in found["tests"]} >= {"two_readers", "loading_often"}


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["c", "glue"])
def test_a_driver_passes_without_rust_in_the_kernel(rbuild: Rbuild, driver: str) -> None:
    boot(rbuild, "--driver", driver, "--profile", "slim-no-rust", "--env", "hybrid")


SLOW = [pytest.param(driver, marks=pytest.mark.slow) for driver in ("c", "glue")]


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_passes_under_the_kernel_s_own_checkers(rbuild: Rbuild, driver: str) -> None:
    """Without the soak suite, which takes a quarter of an hour there."""
    found = boot(rbuild, "--driver", driver, "--profile", "slim-debug", "--suite", "functional")
    assert found["planned"] > TESTS_AT_LEAST
    assert found["tests"][-1]["name"] == "no memory was lost"


@pytest.mark.parametrize("driver", ["rust", *SLOW])
def test_a_driver_that_was_built_in_tree(rbuild: Rbuild, driver: str) -> None:
    boot(rbuild, "--driver", driver, "--in-tree", "--test", "loading", "--test", "memory")


@pytest.mark.parametrize("driver", ["rust", *SLOW])
def test_a_driver_passes_on_a_raspberry_pi(rbuild: Rbuild, driver: str) -> None:
    """QEMU's raspi3b with the device tree of the 3B+; virt has shown the rest of the tests."""
    words = ["--machine", "raspi3b", "--suite", "functional"]
    found = boot(rbuild, "--driver", driver, *words)
    assert found["planned"] > TESTS_AT_LEAST


def test_the_same_guest_is_the_same_bytes(rbuild: Rbuild) -> None:
    found = [boot(rbuild, "--driver", "c", "--test", "aliases") for _ in range(2)]
    first, second = (one["initramfs"] for one in found)
    assert first["path"] != second["path"]
    assert first["sha256"] == second["sha256"]


def test_verbose_shows_the_guests_console(rbuild: Rbuild) -> None:
    found = rbuild("-v", "boot", "--driver", "c", "--test", "aliases", "--tap", "-")
    assert "Run /init.sh as init process" in found.err
    assert "ok 1 - the module has the alias spi:mfrc522" in found.out


QUICK = (1, 4, 7, 10)
"""Faults of each driver and kind that are put back every time."""


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            fault,
            id=f"{fault.number} {fault.name}",
            marks=() if fault.number in QUICK else pytest.mark.slow,
        )
        for fault in FAULTS
    ],
)
def test_a_known_fault_that_is_put_back_is_found(
    rbuild: Rbuild, tmp_path: Path, fault: Fault
) -> None:
    folder = tmp_path / fault.driver
    shutil.copytree(MODULE / fault.driver, folder)
    for name, old, new in fault.changes:
        path = folder / name
        text = path.read_text()
        assert text.count(old) == 1, f"{name} has changed: {old}"
        path.write_text(text.replace(old, new))
    words = [word for test in fault.tests for word in ("--test", test)]
    found = rbuild("boot", folder, *words, "--timeout", str(fault.timeout), code=1)
    assert fault.words in found.err


STRANGERS = {
    "a warning": ("WARN_ON(1);", "the kernel said `WARNING: CPU:"),
    "a panic": ('panic("lost");', "the kernel said `Kernel panic - not syncing: lost`"),
    "a wild pointer": ("WRITE_ONCE(*(int *)8, 1);", "Unable to handle kernel NULL pointer"),
    "an endless loop": ("while (1) cpu_relax();", "it was not done after 10 s"),
    "an error": ("return -EIO;", "module: the module loads"),
}


@pytest.mark.parametrize("what", STRANGERS)
def test_a_stranger_that_misbehaves_is_found(rbuild: Rbuild, c_stranger: Path, what: str) -> None:
    code, words = STRANGERS[what]
    path = c_stranger / "stranger.c"
    path.write_text(path.read_text().replace('pr_info("hello\\n");', code))
    found = rbuild("boot", c_stranger, "--timeout", "10", code=1)
    assert words in found.err


def test_strangers_that_behave_pass(rbuild: Rbuild, c_stranger: Path, rust_stranger: Path) -> None:
    for folder in (c_stranger, rust_stranger):
        boot(rbuild, folder)


PANIC = """\
// SPDX-License-Identifier: GPL-2.0
//! Panics when it is loaded.
use kernel::prelude::*;
module! { type: Panics, name: "panics", author: "x", description: "x", license: "GPL", }
struct Panics;
impl kernel::Module for Panics {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let mut bytes = KVec::new();
        bytes.push(1u8, GFP_KERNEL)?;
        pr_info!("{}\\n", bytes[bytes.len() + 4]);
        Ok(Panics)
    }
}
"""


def test_a_panic_of_rusts_is_shown_from_its_first_line(rbuild: Rbuild, tmp_path: Path) -> None:
    (tmp_path / "Kbuild").write_text("obj-m += panics.o\n")
    (tmp_path / "panics.rs").write_text(PANIC)
    found = rbuild("--json", "boot", tmp_path, code=1)
    first = f"rust_kernel: panicked at {tmp_path}/panics.rs:10:"
    assert first in found.err
    assert "the len is 1 but the index is 5`" in found.json["error"]
    (report,) = found.json["boot"]["reports"]
    assert report[0].startswith(first)
    assert any("core::panicking::" in line for line in report)
    assert not any("_RN" in line for line in report)
