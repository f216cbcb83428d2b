"""What was built before isn't built again: kernels that differ in an option, modules, C files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Rbuild

SLIM = Path(__file__).parents[2] / "profiles/slim.config"


def variant(folder: Path, name: str, **options: str) -> Path:
    """Write a profile that is slim with a few options changed."""
    lines = "".join(f"    {key}: {value}\n" for key, value in options.items())
    path = folder / f"{name}.yaml"
    path.write_text(
        f"name: {name}\nsource: {{debian: linux-source-6.12}}\n"
        f"config:\n  base: tinyconfig\n  fragments: [{SLIM}]\n  options:\n{lines}"
        "device_trees: [broadcom/bcm2837-rpi-3-b-plus.dtb]\n"
    )
    return path


def sums(found: Any) -> dict[str, str]:
    return {Path(one["path"]).name: one["sha256"] for one in found["artefacts"]}


def phases(found: Any) -> dict[str, Any]:
    return {one["name"]: one for one in found["phases"]}


def outputs(kdir: Path) -> Iterator[tuple[str, int]]:
    for path in sorted((kdir / "build").rglob("*")):
        yield str(path), path.lstat().st_mtime_ns


def test_a_kernel_with_an_option_more_starts_from_the_one_without(
    rbuild: Rbuild, tmp_path: Path
) -> None:
    slim = rbuild("--json", "kernel").json
    found = rbuild("--json", "kernel", "--profile", variant(tmp_path, "more", SPI_SPIDEV="m"))
    assert ": 1 option differs" in found.err
    assert f"Starting from {found.json['seed']}" in found.err
    made = sums(found.json)
    assert {"Image", "spidev.ko"} <= made.keys()
    # Most objects are slim's own, not a minute's work.
    assert phases(found.json)["kernel"]["user_s"] < phases(slim)["kernel"]["user_s"] / 4
    again = rbuild("--json", "kernel").json
    assert again["log"] is None
    assert all(phase["cached"] for phase in again["phases"])
    assert sums(again) == sums(slim)


def test_a_modules_change_touches_no_kernel(rbuild: Rbuild, c_stranger: Path) -> None:
    kernel = rbuild("--json", "kernel").json
    kdir = Path(kernel["artefacts"][0]["path"]).parents[4]
    rbuild("module", c_stranger)
    before = dict(outputs(kdir))
    source = c_stranger / "stranger.c"
    source.write_text(source.read_text().replace("hello", "hello again"))
    assert not rbuild("--json", "module", c_stranger).json["phases"][-1]["cached"]
    assert dict(outputs(kdir)) == before


def test_a_modules_change_is_one_make_and_no_change_is_none(
    rbuild: Rbuild, c_stranger: Path
) -> None:
    rbuild("module", c_stranger)
    (c_stranger / "stranger.c").open("a").write("// changed\n")
    found = rbuild("--json", "module", c_stranger).json
    entered = [line for line in Path(found["log"]).read_text().splitlines() if line[:2] == "$ "]
    assert len(entered) == 1
    assert " make " in entered[0]
    again = rbuild("--json", "module", c_stranger).json
    assert again["phases"][-1]["cached"]
    assert again["log"] is None


@pytest.mark.parametrize("env", ["cross", pytest.param("hybrid", marks=pytest.mark.slow)])
def test_c_that_was_compiled_before_is_taken_from_ccache(
    rbuild: Rbuild, c_stranger: Path, tmp_path: Path, env: str
) -> None:
    words = ("--json", "module", "--env", env)

    def from_nothing(*more: str) -> Any:
        found = rbuild(*words, "--driver", "c", *more).json
        folder = Path(found["artefacts"][0]["path"]).parents[1]
        shutil.rmtree(folder)
        return rbuild(*words, "--driver", "c", *more).json

    plain = from_nothing()
    assert plain["phases"][-1]["ccache"] is None
    cold = from_nothing("--ccache")
    warm = from_nothing("--ccache")
    assert warm["phases"][-1]["ccache"]["misses"] == 0
    assert warm["phases"][-1]["ccache"]["hits"] >= 1
    assert sums(plain) == sums(cold) == sums(warm)
    # A module that isn't rbuild's own adds nothing to what others get.
    source = c_stranger / "stranger.c"
    source.write_text(source.read_text().replace("hello", f"hello from {tmp_path}"))
    twin = shutil.copytree(c_stranger, tmp_path / "twin" / "stranger")
    for folder in (c_stranger, twin):
        assert rbuild(*words, "--ccache", folder).json["phases"][-1]["ccache"]["misses"] >= 1
    entries = rbuild("--json", "status").json["entries"]
    assert any(one["room"] == "ccache" and one["name"].startswith(env) for one in entries)


@pytest.mark.slow
def test_a_seed_and_ccache_give_the_bytes_of_a_build_from_nothing(
    rbuild: Rbuild, tmp_path: Path, rust_stranger: Path
) -> None:
    rbuild("kernel")
    on = variant(tmp_path, "spidev", SPI_SPIDEV="m", LOG_BUF_SHIFT="13")
    off = variant(tmp_path, "no-scripts", BINFMT_SCRIPT="n", LOG_BUF_SHIFT="13")
    assert rbuild("--json", "kernel", "--profile", on).json["seed"]
    seeded = rbuild("--json", "kernel", "--profile", off).json
    assert seeded["seed"]
    assert "spidev.ko" not in sums(seeded)

    def symbols(found: Any) -> bytes:
        build = Path(found["artefacts"][0]["path"]).parents[3]
        return (build / "Module.symvers").read_bytes()

    def module() -> dict[str, str]:
        return sums(rbuild("--json", "module", rust_stranger, "--profile", off).json)

    known = (sums(seeded), symbols(seeded), module())
    for ccache in ("--no-ccache", "--ccache", "--ccache"):
        found = rbuild("--json", "kernel", "--profile", off, "--clean", ccache).json
        assert found["seed"] is None
        assert (sums(found), symbols(found), module()) == known
    assert phases(found)["kernel"]["ccache"]["misses"] == 0
