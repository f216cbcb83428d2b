"""Architectures and boards as data: what a kernel's architecture makes of an environment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbuild.errors import UsageError
from rbuild.specs import architecture, environment, profile
from rbuild.util import data

from .conftest import Host

BASE = """\
name: one
suite: trixie
architecture: arm64
packages: [make]
llvm: "-19"
"""


@pytest.fixture
def on_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    uname = os.uname_result(("Linux", "x", "6", "1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: uname)


@pytest.mark.parametrize(
    ("name", "arch", "expected"),
    [
        ("cross", "arm64", "cross"),
        ("cross", "arm", "cross-armhf"),
        ("cross-armhf", "arm", "cross-armhf"),
        ("chroot", "arm", "chroot-armhf"),
        ("hybrid:compilers", "arm", "hybrid-armhf:compilers"),
    ],
)
def test_an_environment_is_that_of_the_kernels_architecture(
    on_x86: None, name: str, arch: str, expected: str
) -> None:
    found = environment.load_for(name, arch)
    assert found.name == expected
    assert found.target.target.arch == arch


def test_an_environment_of_another_architecture_is_refused_with_those_that_fit(
    on_x86: None,
) -> None:
    with pytest.raises(UsageError, match="cross-armhf builds for armhf") as refused:
        environment.load_for("cross-armhf", "arm64")
    assert "cross, chroot, hybrid" in (refused.value.hint or "")


def test_a_32_bit_rootfs_is_emulated_and_a_32_bit_hybrid_is_not(on_x86: None) -> None:
    chroot, hybrid = environment.load("chroot-armhf"), environment.load("hybrid-armhf")
    assert chroot.emulated
    assert chroot.variables == {"QEMU_CPU": "cortex-a15"}
    assert set(chroot.base.definition.packages) == set(
        environment.load("chroot").base.definition.packages
    )
    assert hybrid.builder.debian == "amd64"
    assert hybrid.programs == environment.load("hybrid").programs


@pytest.fixture
def definitions(tmp_path: Path) -> Path:
    (tmp_path / "one.yaml").write_text(BASE)
    return tmp_path


def test_a_definition_extends_another(definitions: Path, on_x86: None) -> None:
    path = definitions / "two.yaml"
    path.write_text("name: two\nextends: one\nmore_packages: [gcc]\nvariables: {A: b}\n")
    found = environment.load(str(path)).base.definition
    assert found.all_packages == ("make", "gcc")
    assert (found.suite, found.llvm, found.variables) == ("trixie", "-19", {"A": "b"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "name: two\nextends: onne\n",
            "extends: there is no onne.yaml beside it. Did you mean 'one'?",
        ),
        ("name: two\nextends: two\n", "extends: two extends itself"),
        ("name: two\nextends: one\narchitecture: mips\n", ":3: architecture: 'mips' is none of"),
        ("name: two\nextends: one\ntarget: host\n", ":3: target: 'host' is none of amd64, arm64"),
    ],
)
def test_a_definition_that_extends_wrongly(
    definitions: Path, on_x86: None, text: str, words: str
) -> None:
    path = definitions / "two.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as refused:
        environment.load(str(path))
    assert words in refused.value.message


def test_an_architecture_without_kernels_says_which_have(definitions: Path, on_x86: None) -> None:
    path = definitions / "two.yaml"
    path.write_text("name: two\nextends: one\narchitecture: host\n")
    with pytest.raises(UsageError, match="no kernels for amd64"):
        _ = environment.load(str(path)).target.target


@pytest.mark.parametrize("arch", architecture.kernels())
def test_our_machines_load(arch: str) -> None:
    names = architecture.machines(arch)
    assert names[0] == "virt"
    for name in names:
        assert architecture.machine(name, arch).architecture == arch


@pytest.mark.parametrize("name", profile.names())
def test_each_profile_has_an_environment_and_a_machine(on_x86: None, name: str) -> None:
    found = profile.load(name)
    assert environment.load_for("cross", found.architecture).target.kernel is not None
    assert architecture.machine(found.machine, found.architecture).model == found.machine


def test_the_kernel_of_a_32_bit_profile_is_built_for_it(host: Host) -> None:
    text = f"name: small\narchitecture: arm\nsource: {{directory: {host.tree}}}\npatches: false\n"
    text += "config: {base: tinyconfig, options: {SPI: y}}\n"
    path = host.write_profile(text, "small")
    found = host("--json", "kernel", "--profile", path).json
    assert found["environment"] == "cross-armhf"
    assert found["artefacts"][0]["path"].endswith("arch/arm/boot/zImage")


RISCV = """\
debian: riscv64
machine: riscv64
triplet: riscv64-linux-gnu
rust_triplet: riscv64gc-unknown-linux-gnu
rust_bare: riscv64gc-unknown-none-elf
qemu: riscv64
elf: {name: RISC-V, bits: 64, number: 243, exit_42: "9308d0051305a00273000000"}
kernel: {arch: riscv, image: Image.gz, vermagic: [{word: riscv}]}
virtual: {model: virt, architecture: riscv, console: ttyS0, needs: [SERIAL_OF_PLATFORM]}
"""

CROSS_RISCV = """\
name: cross-riscv64
extends: cross
target: riscv64
more_packages: [gcc-riscv64-linux-gnu]
cc: riscv64-linux-gnu-gcc
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a copy of rbuild's data folders that is used instead of them."""
    for name in ("rootfs", "profiles"):
        shutil.copytree(data.folder(name), tmp_path / name)
    (tmp_path / "module").symlink_to(data.folder("module"))
    monkeypatch.setattr(data, "PACKAGE", tmp_path / "rbuild")
    architecture.known.cache_clear()
    yield tmp_path
    architecture.known.cache_clear()


def test_a_new_architecture_is_two_files(checkout: Path, host: Host) -> None:
    (checkout / "rootfs/architectures/riscv64.yaml").write_text(RISCV)
    (checkout / "rootfs/cross-riscv64.yaml").write_text(CROSS_RISCV)
    text = f"name: small\narchitecture: riscv\nsource: {{directory: {host.tree}}}\n"
    text += "patches: false\nconfig: {base: tinyconfig, options: {SPI: y}}\n"
    path = host.write_profile(text, "small")
    found = host("--json", "kernel", "--profile", path).json
    assert found["environment"] == "cross-riscv64"
    assert found["artefacts"][0]["path"].endswith("arch/riscv/boot/Image.gz")
    assert "riscv" in host("profiles", "schema").out


def test_an_architecture_that_is_wrong_names_file_and_line(checkout: Path, host: Host) -> None:
    path = checkout / "rootfs/architectures/riscv64.yaml"
    path.write_text(RISCV.replace("bits: 64", "bits: 65"))
    err = host("profiles", "show", "slim", code=2).err
    assert f"{path}:7: elf.bits:" in err
    path.write_text(RISCV.replace("debian: riscv64", "debian: riscv"))
    assert "is not what the file is called" in host("profiles", "show", "slim", code=2).err
