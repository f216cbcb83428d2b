"""32-bit Arm: definitions alone made it; the driver in C and the glue driver work there."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbuild.util.elf import module_info

from .conftest import Rbuild
from .test_7_boot import TESTS_AT_LEAST, boot

SMALL = "slim-arm32"
PI = "rpi3-arm32"
UNWINDING = b"__aeabi_unwind_cpp_pr"


def module(rbuild: Rbuild, *words: str) -> dict:
    found = rbuild("--json", "module", *words).json
    (made,) = found["artefacts"]
    assert module_info(Path(made["path"])).machine == "ARM"
    assert " ARMv7 " in f"{made['vermagic']} "
    return {**found, **made}


@pytest.mark.parametrize("kind", ["out-of-tree", pytest.param("in-tree", marks=pytest.mark.slow)])
@pytest.mark.parametrize("driver", ["c", "glue"])
def test_a_driver_builds_in_32_bits(rbuild: Rbuild, driver: str, kind: str) -> None:
    """Against a prepared kernel: a whole one takes minutes."""
    found = module(rbuild, "--profile", SMALL, "--driver", driver, f"--{kind}")
    assert found["environment"] == "cross-armhf"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["out-of-tree", "in-tree"])
@pytest.mark.parametrize("driver", ["c", "glue"])
def test_a_driver_builds_against_a_whole_kernel(rbuild: Rbuild, driver: str, kind: str) -> None:
    rbuild("kernel", "--profile", SMALL)
    found = module(rbuild, "--profile", SMALL, "--driver", driver, f"--{kind}")
    assert found["symbols_checked_against"] == "Module.symvers"


@pytest.mark.slow
def test_the_glue_drivers_rust_is_not_unwound(rbuild: Rbuild) -> None:
    """C's own tables refer to what the kernel exports with CONFIG_ARM_UNWIND; Rust has none."""
    found = module(rbuild, "--profile", SMALL, "--driver", "glue")
    library = Path(found["path"]).with_name("libmfrc522.a").read_bytes()
    assert b"mfrc522_command" in library
    assert b"_Unwind" not in library
    assert UNWINDING not in library
    exported = Path(rbuild("--json", "kernel", "--profile", SMALL).json["artefacts"][0]["path"])
    symvers = exported.parents[3].joinpath("Module.symvers").read_text().split()
    names = module_info(Path(found["path"])).undefined
    assert [name for name in names if name not in symvers] == []


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["c", "glue"])
def test_a_driver_passes_all_its_tests_in_32_bits(rbuild: Rbuild, driver: str) -> None:
    found = boot(rbuild, "--profile", SMALL, "--driver", driver, "--suite", "functional")
    assert found["planned"] > TESTS_AT_LEAST


@pytest.mark.slow
def test_a_driver_passes_on_a_32_bit_raspberry_pi(rbuild: Rbuild) -> None:
    words = ["--machine", "raspi2b", "--test", "loading"]
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
