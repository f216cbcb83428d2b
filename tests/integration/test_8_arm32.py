"""32-bit Arm: definitions alone made it; the driver in C and the glue driver work there."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbuild.elf import module_info

from .conftest import Rbuild
from .test_7_boot import TESTS_AT_LEAST, boot

SMALL = "slim-arm32"
PI = "rpi3-arm32"
UNWINDING = "__aeabi_unwind_cpp_pr"


def module(rbuild: Rbuild, *words: str) -> dict:
    found = rbuild("--json", "module", *words).json
    (made,) = found["artefacts"]
    assert module_info(Path(made["path"])).machine == "ARM"
    assert " ARMv7 " in f"{made['vermagic']} "
    return {**found, **made}


@pytest.mark.parametrize("kind", ["out-of-tree", "in-tree"])
@pytest.mark.parametrize("driver", ["c", "glue"])
def test_a_driver_builds_in_32_bits(rbuild: Rbuild, driver: str, kind: str) -> None:
    rbuild("kernel", "--profile", SMALL)
    found = module(rbuild, "--profile", SMALL, "--driver", driver, f"--{kind}")
    assert found["environment"] == "cross-armhf"
    assert found["symbols_checked_against"] == "Module.symvers"


def test_the_glue_driver_needs_no_unwinding(rbuild: Rbuild) -> None:
    """Rust's own core for this target refers to it; whatever is left undefined won't load."""
    found = module(rbuild, "--profile", SMALL, "--driver", "glue")
    names = module_info(Path(found["path"])).undefined
    assert "_printk" in names
    assert not [name for name in names if name.startswith("_Unwind") or UNWINDING in name]


@pytest.mark.parametrize("driver", ["c", "glue"])
def test_a_driver_passes_all_its_tests_in_32_bits(rbuild: Rbuild, driver: str) -> None:
    found = boot(rbuild, "--profile", SMALL, "--driver", driver, "--suite", "functional")
    assert found["planned"] > TESTS_AT_LEAST


def test_a_driver_passes_on_a_32_bit_raspberry_pi(rbuild: Rbuild) -> None:
    words = ["--machine", "raspi2b", "--test", "loading", "--test", "memory"]
    boot(rbuild, "--profile", SMALL, "--driver", "glue", *words)


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["virt", "raspi2b"])
@pytest.mark.parametrize("driver", ["c", "glue"])
def test_the_boards_own_configuration_in_32_bits(rbuild: Rbuild, driver: str, machine: str) -> None:
    found = boot(rbuild, "--profile", PI, "--driver", driver, "--machine", machine)
    assert found["planned"] > TESTS_AT_LEAST


@pytest.mark.slow
def test_an_armhf_chroot_and_hybrid_make_the_same_bytes(rbuild: Rbuild) -> None:
    for driver in ("c", "glue"):
        found = {
            env: module(rbuild, "--profile", SMALL, "--driver", driver, "--env", env)["sha256"]
            for env in ("cross", "hybrid", "chroot")
        }
        assert len(set(found.values())) == 1, found
