"""A real board's profile: its modules, what keeps Rust out of its like, and its boot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rbuild.kernel.config import read_config
from rbuild.kernel.kconfig import parser, values
from rbuild.specs.profile import Driver

from .conftest import Rbuild

PROFILES = Path(__file__).parents[2] / "profiles"
BOARD = "rpi3bplus"

# What the Raspberry Pi's own configuration has of all that Rust can't be had together with.
PI_CONFIG = "CONFIG_MODVERSIONS=y\nCONFIG_MODULE_SRCVERSION_ALL=y\n"


def pi(folder: Path, **options: str) -> Path:
    """Write a profile that is rpi3bplus with what the Pi's own configuration has besides."""
    (folder / "pi.config").write_text(PI_CONFIG)
    lines = "".join(f"    {key}: {value}\n" for key, value in {"RUST": "y", **options}.items())
    path = folder / "pi.yaml"
    path.write_text(
        "name: pi\nsource: {debian: linux-source-6.12}\nconfig:\n  base: alldefconfig\n"
        f"  fragments: [{PROFILES / 'rpi3bplus.config'}, pi.config]\n  options:\n{lines}"
    )
    return path


def test_kconfig_is_read_as_the_kernel_itself_reads_it(rbuild: Rbuild) -> None:
    """What is on has its dependencies met; what is visible has a line; what is selected is on."""
    image = Path(rbuild("--json", "kernel").json["artefacts"][0]["path"])
    kdir = image.parents[4]
    key = json.loads((kdir / "metadata.json").read_text())["tree"]
    (tree,) = kdir.parents[1].glob(f"trees/*{key}/src")
    found = parser.read(tree, "arm64")
    config = read_config((kdir / "build/.config").read_text())
    granted = values.values_of(config, found)
    assert len(found.options) > 10000
    assert config.keys() <= found.options.keys()
    for name, option in found.options.items():
        met = [
            definition
            for definition in option.definitions
            if all(values.evaluate(one.expression, granted) for one in definition.conditions)
        ]
        visible = [
            one
            for one in met
            if one.prompt is not None
            and all(values.evaluate(condition, granted) for condition in one.visible_if)
        ]
        selected = any(
            granted.of(one.by) != "n" and values.evaluate(one.condition, granted)
            for one in option.selected_by
        )
        is_on = config.get(name, "n") != "n"
        assert not is_on or met or selected, f"{name} is on without what it depends on"
        assert not selected or is_on or not option.is_switch, f"{name} is selected, and off"
        if visible and option.is_switch and option.choice is None:
            assert name in config, f"{name} is visible, and has no line"


GLUE = pytest.param(Driver.GLUE, marks=pytest.mark.slow)
"""Its two builds take as long as the other four together."""

IN_TREE = pytest.param("in-tree", marks=pytest.mark.slow)
"""A second KDIR of a large configuration."""


@pytest.mark.parametrize("kind", ["out-of-tree", IN_TREE])
@pytest.mark.parametrize("driver", [Driver.RUST, Driver.C, GLUE])
def test_every_driver_is_built_for_the_board(rbuild: Rbuild, driver: Driver, kind: str) -> None:
    found = rbuild("--json", "module", f"--{kind}", "--driver", driver, "--profile", BOARD).json
    assert found["kernel_release"].endswith("-rpi3bplus")
    assert found["artefacts"]


@pytest.mark.slow
def test_what_the_pis_own_configuration_refuses_is_explained_and_lifted(
    rbuild: Rbuild, tmp_path: Path
) -> None:
    profile = pi(tmp_path)
    refused = rbuild("module", "--driver", "rust", "--profile", profile, code=2)
    assert "CONFIG_RUST: asked for y, got n" in refused.err
    assert "MODVERSIONS is y" in refused.err
    assert f"--profile {profile} --explain RUST" in refused.err
    found = rbuild("--json", "kernel", "--profile", profile, "--explain", "RUST").json
    assert [one["condition"] for one in found["conditions"] if not one["met"]] == ["!MODVERSIONS"]
    assert found["lift"] == {"options": {"MODVERSIONS": "n"}, "tools": []}
    assert found["tried"]
    # As it says.
    lifted = pi(tmp_path, **found["lift"]["options"])
    module = rbuild("--json", "module", "--driver", "rust", "--profile", lifted).json
    assert [Path(one["path"]).name for one in module["artefacts"]] == ["mfrc522_rust.ko"]


def test_each_thing_that_keeps_rust_out_is_found_and_lifted(rbuild: Rbuild, tmp_path: Path) -> None:
    path = tmp_path / "blocked.yaml"
    path.write_text(
        "name: blocked\nsource: {debian: linux-source-6.12}\nconfig:\n  base: alldefconfig\n"
        "  options: {RUST: y, MODULES: y, EXPERT: y, RANDSTRUCT_FULL: y, DEBUG_KERNEL: y, "
        "KASAN: y, KASAN_SW_TAGS: y}\n"
    )
    found = rbuild("--json", "kernel", "--profile", path, "--explain", "RUST").json
    assert [one["condition"] for one in found["conditions"] if not one["met"]] == [
        "!MODVERSIONS",
        "!RANDSTRUCT",
        "!KASAN_SW_TAGS",
    ]
    assert found["tried"], found["lift"]


def test_defconfig_is_configured_with_rust(rbuild: Rbuild) -> None:
    found = rbuild("--json", "kernel", "--profile", "defconfig", "--explain", "RUST").json
    assert found["granted"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["out-of-tree", "in-tree"])
@pytest.mark.parametrize("driver", list(Driver))
def test_the_hybrid_makes_the_same_bytes(rbuild: Rbuild, driver: Driver, kind: str) -> None:
    made = [
        rbuild(
            *("--json", "module", f"--{kind}", "--driver", driver),
            *("--profile", BOARD, "--env", env),
        ).json["artefacts"]
        for env in ("cross", "hybrid")
    ]
    assert made[0][0]["sha256"] == made[1][0]["sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("driver", list(Driver))
def test_the_boards_kernel_boots_and_drives_the_reader(rbuild: Rbuild, driver: Driver) -> None:
    found = rbuild("--json", "boot", "--profile", BOARD, "--driver", driver).json
    assert found["boot"]["passed"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["out-of-tree", "in-tree"])
def test_rust_for_the_whole_defconfig(rbuild: Rbuild, kind: str) -> None:
    rbuild("module", f"--{kind}", "--driver", "rust", "--profile", "defconfig")
