"""A kernel's configuration and its artefacts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from rbuild.kernel.config import locate

from .conftest import Host


def profile(host: Host, *lines: str) -> Path:
    text = f"name: k\nsource: {{directory: {host.tree}}}\npatches: false\n"
    return host.write_profile(text + "".join(f"{line}\n" for line in lines), "k")


def config(host: Host) -> list[str]:
    (path,) = host.cache.glob("kdirs/*/build/.config")
    return path.read_text().splitlines()


def test_artefacts_are_image_device_trees_and_modules(host: Host) -> None:
    path = profile(
        host,
        "config: {base: tinyconfig}",
        "device_trees: [broadcom/bcm2837-rpi-3-b-plus.dtb]",
    )
    found = host("--json", "kernel", "--profile", path).json["artefacts"]
    names = [Path(one["path"]).name for one in found]
    assert names == ["Image", "bcm2837-rpi-3-b-plus.dtb", "dummy.ko"]
    for one in found:
        content = Path(one["path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == one["sha256"]
        assert len(content) == one["size_bytes"]


def test_a_damaged_kernel_is_built_again_with_each_phase_once(host: Host) -> None:
    first = host("--json", "kernel", "--profile", host.profile).json
    image = Path(first["artefacts"][0]["path"])
    image.write_bytes(b"short")
    again = host("--json", "kernel", "--profile", host.profile)
    # make would take it for finished: it is newer than all that it is made of.
    assert "Image has 5 bytes instead of" in again.err
    assert [one["name"] for one in again.json["phases"]] == ["configure", "prepare", "kernel"]
    assert not any(one["cached"] for one in again.json["phases"])
    assert again.json["artefacts"] == first["artefacts"]


def test_what_a_profile_asks_for_reaches_the_configuration(host: Host) -> None:
    (host.folder / "extra.config").write_text("CONFIG_A=m\nCONFIG_B=y\n# a comment\n")
    path = profile(
        host,
        "config:",
        "  base: tinyconfig",
        "  fragments: [extra.config]",
        "  options: {B: n, NAME: some words, LEVEL: 7}",
    )
    host("kernel", "--profile", path)
    assert config(host) == [
        "CONFIG_A=m",
        "# CONFIG_B is not set",
        "CONFIG_LEVEL=7",
        "CONFIG_MMU=y",
        'CONFIG_NAME="some words"',
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("board.config", "CONFIG_A=y\nCONFIG_B=m\n"),
        ("./my_defconfig", "CONFIG_A=y\nCONFIG_B=m\n"),
        (".config", "CONFIG_A=y\nCONFIG_B=m\n"),
        ("one-line.txt", "CONFIG_A=y"),
    ],
)
def test_a_base_may_be_a_file_beside_the_profile(host: Host, name: str, content: str) -> None:
    (host.folder / name).write_text(content)
    path = profile(host, f"config: {{base: {name}, options: {{C: y}}}}")
    host("kernel", "--profile", path)
    assert {"CONFIG_A=y", "CONFIG_C=y"} <= set(config(host))


@pytest.mark.parametrize("content", [None, b"\xff\xfe\n"])
def test_a_base_that_cannot_be_read_is_named(host: Host, content: bytes | None) -> None:
    if content is not None:
        (host.folder / "base").write_bytes(content)
    found = host("kernel", "--profile", profile(host, "config: {base: ./base}"), code=2)
    assert "config.base" in found.err
    assert str(host.folder / "base") in found.err


def test_a_target_that_the_kernel_lacks_is_in_makes_words(host: Host) -> None:
    path = profile(host, "config: {base: bcm2711_defconfig}")
    found = host("kernel", "--profile", path, code=1)
    assert "No rule to make target 'bcm2711_defconfig'" in found.err


def test_an_option_that_no_kernel_has(host: Host) -> None:
    host.fault("drop-rust")
    (host.tree / "init/Kconfig").write_text("config RUSTY\n")
    found = host("kernel", "--profile", host.profile, code=2)
    assert "this kernel has no such option" in found.err


def test_locate_reads_an_options_own_block(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/Kconfig.x").write_text(
        "config FIRST\n\tdepends on NOT_THIS\n\nmenuconfig SECOND\n\tbool\n"
        "\tdepends on A && B\n\tdepends on !C\n\nconfig THIRD\n\tdepends on NOR_THIS\n"
    )
    assert locate("SECOND", tmp_path) == ("a/Kconfig.x:4", ("A && B", "!C"))
    assert locate("SECON", tmp_path) == ("", ())
