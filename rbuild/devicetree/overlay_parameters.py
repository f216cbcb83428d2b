"""Parameters of overlays, in Raspberry Pi's way of writing them, given here and not on the Pi.

In config.txt they stand behind the overlay's name (``dtoverlay=mfrc522,int_pin=24``), and the
Pi's firmware does what the overlay's ``__overrides__`` say.  No other boot loader knows them, nor
does fdtoverlay: for those a .dtbo is made that has the values in it.  Raspberry Pi's documentation
of device trees describes them ("Device Trees, overlays, and parameters").
"""

from __future__ import annotations

import copy
import re
import struct
from collections.abc import Iterator, Mapping

from rbuild.devicetree.fdt import Node
from rbuild.errors import UsageError
from rbuild.util.suggest import nearest

CELL = re.compile(r"(?P<property>[^:;.#?=]+):(?P<offset>[0-9]{1,5})")
"""What sets a 32-bit cell of a property, at an offset in bytes."""

FRAGMENTS = re.compile(r"(?:[+-]\d+)+")
"""What turns fragments on and off by their numbers."""

OFF, ON = "__dormant__", "__overlay__"


def names(overlay: Node) -> list[str]:
    """Return the parameters that an overlay has."""
    return list((overlay.find("/__overrides__") or Node()).properties)


def given(overlay: Node, values: Mapping[str, str]) -> Node:
    """Return an overlay with its parameters given; what they turn on is on.

    Raises UsageError for a parameter that it hasn't, a value that isn't a number, or a kind of
    parameter that only the Pi's firmware knows.
    """
    made = copy.deepcopy(overlay)
    overrides = (made.find("/__overrides__") or Node()).properties
    for name, value in values.items():
        if name not in overrides:
            known = nearest(name, list(overrides))
            raise UsageError(f"The overlay has no parameter {name!r}.{known}")
        for phandle, action in _actions(overrides[name]):
            if phandle == 0 and FRAGMENTS.fullmatch(action):
                for sign, number in re.findall(r"([+-])(\d+)", action):
                    _switch(made, f"fragment@{number}", on=sign == "+")
            elif (cell := CELL.fullmatch(action)) is not None:
                node = _by_phandle(made, phandle, name)
                _set(node.properties, cell["property"], int(cell["offset"]), _number(name, value))
            else:
                raise UsageError(
                    f"The parameter {name} is of a kind that only the Pi's firmware knows: "
                    f"{action!r}."
                )
    return made


def _actions(value: bytes) -> Iterator[tuple[int, str]]:
    """Yield what a parameter does: the phandle of a node, or 0, and what is done there."""
    at = 0
    while at < len(value):
        try:
            (phandle,) = struct.unpack_from(">I", value, at)
            end = value.index(b"\0", at + 4)
            action = value[at + 4 : end].decode()
        except (struct.error, ValueError) as error:
            raise UsageError(f"The overlay's __overrides__ are damaged: {error}.") from error
        yield phandle, action
        at = end + 1


def _number(name: str, value: str) -> int:
    try:
        number = int(value, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 32:
        raise UsageError(f"The parameter {name} is a number, not {value!r}.")
    return number


def _set(properties: dict[str, bytes], name: str, offset: int, number: int) -> None:
    """Set a cell of a property, which grows if it must."""
    value = bytearray(properties.get(name, b"").ljust(offset + 4, b"\0"))
    struct.pack_into(">I", value, offset, number)
    properties[name] = bytes(value)


def _by_phandle(overlay: Node, phandle: int, name: str) -> Node:
    for _, node in overlay.walk():
        if node.cells("phandle") == [phandle]:
            return node
    raise UsageError(f"The parameter {name} is for a node outside of the overlay.")


def _switch(overlay: Node, name: str, *, on: bool) -> None:
    """Turn a fragment on or off, and what dtc notes of it with it."""
    old, new = (OFF, ON) if on else (ON, OFF)
    for parent in (overlay, overlay.find("/__local_fixups__") or Node()):
        fragment = (parent.children.get(name) or Node()).children
        if old in fragment:
            fragment[new] = fragment.pop(old)
    fixups = (overlay.find("/__fixups__") or Node()).properties
    for label, places in fixups.items():
        fixups[label] = places.replace(f"/{name}/{old}".encode(), f"/{name}/{new}".encode())
