"""The reader's device tree overlay, as it comes out on the Pi's device tree."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rbuild.devicetree import fdt
from rbuild.devicetree.fdt import Node

from .conftest import Rbuild

DTS = Path(__file__).parents[2] / "module/dts"
OVERLAY = DTS / "mfrc522-overlay.dts"
BINDING = DTS / "nxp,mfrc522.yaml"
SPI = "/soc/spi@7e204000"
PI = "bcm2837-rpi-3-b-plus.dtb"


class Tree:
    """A device tree, by the paths of its nodes."""

    def __init__(self, path: Path) -> None:
        self.root = fdt.read(path)

    def node(self, path: str) -> Node:
        found = self.root.find(path)
        assert found is not None, path
        return found

    def has(self, path: str) -> bool:
        return self.root.find(path) is not None

    def text(self, path: str, name: str) -> str | None:
        return self.node(path).text(name)

    def cells(self, path: str, name: str) -> list[int] | None:
        return self.node(path).cells(name)

    def names(self, path: str) -> set[str]:
        """Return the names of a node's properties."""
        return set(self.node(path).properties)

    def pins(self, path: str) -> list[tuple[int, int, int | None]]:
        """Return the pins of a node's pinctrl-0, each with its function and its pull."""
        groups = {tuple(node.cells("phandle") or ()): node for _, node in self.root.walk()}
        found = []
        for phandle in self.cells(path, "pinctrl-0") or ():
            group = groups[(phandle,)]
            pull = (group.cells("brcm,pull") or [None])[0]
            (function,) = group.cells("brcm,function") or ()
            found += [(pin, function, pull) for pin in group.cells("brcm,pins") or ()]
        return found


INPUT, ALT0, PULL_UP = 0, 4, 2
BUS_PINS = [(9, ALT0, None), (10, ALT0, None), (11, ALT0, None)]
READER = {"compatible", "reg", "spi-max-frequency", "phandle"}


def build(rbuild: Rbuild, *words: str | Path) -> dict[str, Any]:
    (made,) = rbuild("--json", "overlay", *words).json["artefacts"]
    return made


def merged(made: dict[str, Any]) -> Tree:
    (one,) = made["fits"]
    assert Path(one["base"]).name == PI
    return Tree(Path(one["path"]))


def test_the_reader_is_on_spi0_and_nobody_else(rbuild: Rbuild, tmp_path: Path) -> None:
    made = build(rbuild, "--output", tmp_path)
    assert Path(made["path"]) == tmp_path / "mfrc522.dtbo"
    before, after = Tree(Path(made["fits"][0]["base"])), merged(made)
    assert before.text(SPI, "status") == "disabled"
    assert after.text(SPI, "status") == "okay"
    assert after.pins(SPI) == BUS_PINS
    assert after.text(f"{SPI}/nfc@0", "compatible") == "nxp,mfrc522"
    assert after.cells(f"{SPI}/nfc@0", "reg") == [0]
    assert after.cells(f"{SPI}/nfc@0", "spi-max-frequency") == [4000000]
    # Lines that nobody asked for aren't there.
    assert after.names(f"{SPI}/nfc@0") == READER
    assert not after.has("/soc/gpio@7e200000/mfrc522-int-pins")
    if after.has(f"{SPI}/spidev@0"):
        assert after.text(f"{SPI}/spidev@0", "status") == "disabled"


@pytest.mark.parametrize("lines", [("int_pin",), ("reset_pin",), ("int_pin", "reset_pin")])
def test_lines_are_there_if_asked_for(rbuild: Rbuild, lines: Sequence[str]) -> None:
    asked = {"int_pin": 23, "reset_pin": 22}
    params = [f"--param={name}={asked[name]}" for name in lines]
    after = merged(build(rbuild, *params, "--param", "speed=1000000"))
    gpio = after.cells("/soc/gpio@7e200000", "phandle")
    reader = f"{SPI}/nfc@0"
    wanted = set(READER)
    if "int_pin" in lines:
        wanted |= {"interrupt-parent", "interrupts", "pinctrl-names", "pinctrl-0"}
        assert after.cells(reader, "interrupt-parent") == gpio
        assert after.cells(reader, "interrupts") == [23, 8]  # active low
        assert after.pins(reader) == [(23, INPUT, PULL_UP)]
    if "reset_pin" in lines:
        wanted |= {"reset-gpios"}
        assert after.cells(reader, "reset-gpios") == [*gpio, 22, 1]  # active low
        assert after.pins(SPI) == [*BUS_PINS, (22, INPUT, PULL_UP)]
    else:
        assert after.pins(SPI) == BUS_PINS
    assert after.names(reader) == wanted
    assert after.cells(reader, "spi-max-frequency") == [1000000]


def test_dt_schema_has_nothing_to_say(rbuild: Rbuild) -> None:
    made = build(rbuild, "--check", "--param=int_pin=24", "--param=reset_pin=25")
    assert made["bindings"] == ["net/nfc/nxp,mfrc522.yaml", "spi/brcm,bcm2835-spi.yaml"]


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ("<4000000>", "<20000000>", "20000000 is greater than the maximum of 10000000"),
        ("nxp,mfrc522", "nxp,mfrc255", "no binding names nxp,mfrc255"),
    ],
)
def test_dt_schema_would_say_it(
    rbuild: Rbuild, tmp_path: Path, good: str, bad: str, said: str
) -> None:
    found = rbuild("overlay", changed(OVERLAY, tmp_path, good, bad), "--check", code=1)
    assert said in found.err


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ("    maximum: 1", "    maxium: 1", "'maxium' is not one of"),
        ("    maximum: 1", "    maximum:  1", "too many spaces after colon"),
        (
            "maximum: 10000000",
            "maximum: 1000000",
            "10000000 is greater than the maximum of 1000000",
        ),
        ("reg = <0>;", "reg = <0>", "syntax error"),
    ],
)
def test_a_binding_that_the_kernel_would_not_take(
    rbuild: Rbuild, tmp_path: Path, good: str, bad: str, said: str
) -> None:
    shutil.copy(OVERLAY, tmp_path)
    changed(BINDING, tmp_path, good, bad)
    found = rbuild("overlay", tmp_path, "--check", code=1)
    assert said in found.err


def test_a_warning_of_dtcs_is_an_error(rbuild: Rbuild, tmp_path: Path) -> None:
    path = changed(OVERLAY, tmp_path, "reg = <0>;\n", "\n")
    assert "Warning (spi_bus_reg)" in rbuild("overlay", path, code=1).err


def test_a_label_that_the_pi_has_not_is_named(rbuild: Rbuild, tmp_path: Path) -> None:
    path = changed(OVERLAY, tmp_path, "interrupt-parent = <&gpio>", "interrupt-parent = <&pio>")
    found = rbuild("overlay", path, code=1)
    assert f"doesn't fit {PI}, which lacks the label pio" in found.err


def test_raspberry_pis_own_tree_and_one_without_symbols(rbuild: Rbuild, tmp_path: Path) -> None:
    """Raspberry Pi's has spidev on both chip selects, which are GPIOs, and pins of its own."""
    made = build(rbuild, "--output", tmp_path)
    pi = fdt.read(Path(made["fits"][0]["base"]))
    spi, gpio = pi.find(SPI), pi.find("/soc/gpio@7e200000")
    assert spi is not None
    assert gpio is not None
    gpio.children["spi0_pins"] = Node({"brcm,pins": cells(9, 10, 11), "phandle": cells(0x200)})
    gpio.children["spi0_cs_pins"] = Node({"brcm,pins": cells(8, 7), "phandle": cells(0x201)})
    at = gpio.properties["phandle"]
    spi.properties["pinctrl-names"] = b"default\0"
    spi.properties["pinctrl-0"] = cells(0x200, 0x201)
    spi.properties["cs-gpios"] = at + cells(8, 1) + at + cells(7, 1)
    for number in (0, 1):
        spi.children[f"spidev@{number}"] = Node(
            {"compatible": b"spidev\0", "reg": cells(number), "spi-max-frequency": cells(125000000)}
        )
    symbols = pi.children["__symbols__"].properties
    symbols |= {"spi0": symbols.pop("spi"), "spidev0": f"{SPI}/spidev@0".encode() + b"\0"}
    (tmp_path / "pi.dtb").write_bytes(fdt.pack(pi))
    del pi.children["__symbols__"]
    (tmp_path / "mute.dtb").write_bytes(fdt.pack(pi))

    def apply(base: str, code: int = 0) -> str:
        words = f"-i /module/{base}.dtb -o /module/{base}-out.dtb /module/mfrc522.dtbo"
        script = f"/kdir/scripts/dtc/fdtoverlay {words} 2>&1"
        return rbuild("-q", "shell", "--module", tmp_path, "--", "sh", "-c", script, code=code).out

    assert apply("pi") == ""
    after = Tree(tmp_path / "pi-out.dtb")
    assert after.text(SPI, "status") == "okay"
    assert after.text(f"{SPI}/nfc@0", "compatible") == "nxp,mfrc522"
    assert after.text(f"{SPI}/spidev@0", "status") == "disabled"
    assert "status" not in after.names(f"{SPI}/spidev@1")
    assert after.cells(SPI, "cs-gpios")[1::3] == [8, 7]
    assert after.pins(SPI) == BUS_PINS
    assert "FDT_ERR_" in apply("mute", code=1)


def changed(path: Path, folder: Path, good: str, bad: str) -> Path:
    """Copy a file into a folder with something in it changed."""
    text = path.read_text()
    assert good in text
    (folder / path.name).write_text(text.replace(good, bad))
    return folder / path.name


def cells(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "big") for value in values)
