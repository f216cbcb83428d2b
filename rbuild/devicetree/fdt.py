"""Flattened device trees: what a .dtb or .dtbo says, read and written without any tool.

The format is described in the Devicetree Specification, chapter 5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rbuild.errors import InfrastructureError
from rbuild.util.textfile import read_bytes

MAGIC = 0xD00DFEED

MAX_BYTES = 16 << 20
"""The size of the largest device tree: those of boards have 0.2 MiB."""

VERSION, COMPATIBLE_VERSION = 17, 16
HEADER, RESERVED = 40, 16
"""The bytes of the header, and of an empty list of reserved memory."""

MAX_DEPTH = 64
"""How many nodes may stand one in the other."""

MAX_NAME = 256
"""The longest name of a node or a property; the specification allows 31 bytes."""

BEGIN_NODE, END_NODE, PROPERTY, NOTHING, END = 1, 2, 3, 4, 9


@dataclass(frozen=True)
class Node:
    """A node with its properties, as the bytes that they are, and its children, by name."""

    properties: dict[str, bytes] = field(default_factory=dict)
    children: dict[str, Node] = field(default_factory=dict)

    def find(self, path: str) -> Node | None:
        """Return the node at a path such as /soc/spi@7e204000, or None if there is none."""
        node: Node | None = self
        for name in path.split("/"):
            if name and node is not None:
                node = node.children.get(name)
        return node

    def text(self, name: str) -> str | None:
        """Return a property that is one string; None if it isn't there."""
        value = self.properties.get(name)
        return None if value is None else value.rstrip(b"\0").decode("utf-8", "replace")

    def texts(self, name: str) -> list[str]:
        """Return a property that is a list of strings; none if it isn't there."""
        value = self.text(name)
        return [] if value is None else value.split("\0")

    def cells(self, name: str) -> list[int] | None:
        """Return a property that is a list of 32-bit cells; None if there is none such."""
        value = self.properties.get(name)
        if value is None or len(value) % 4:
            return None
        return list(struct.unpack(f">{len(value) // 4}I", value))

    def walk(self, path: str = "") -> Iterator[tuple[str, Node]]:
        """Yield this node and all below it, each with its path."""
        yield path or "/", self
        for name, child in self.children.items():
            yield from child.walk(f"{path}/{name}")


def read(path: Path) -> Node:
    """Return the root of the device tree in a file; raise InfrastructureError if it is none."""
    try:
        return parse(read_bytes(path, limit=MAX_BYTES, error=InfrastructureError))
    except ValueError as error:
        raise InfrastructureError(f"{path} can't be read as a device tree: {error}.") from error


def parse(blob: bytes) -> Node:
    """Return the root of a device tree; raise ValueError if it isn't one."""
    try:
        magic, _, structure, strings = struct.unpack_from(">4I", blob)
        if magic != MAGIC:
            raise ValueError("it doesn't begin with a device tree's magic")
        return _nodes(blob, structure, strings)
    except (struct.error, IndexError, KeyError) as error:
        raise ValueError(f"it isn't a whole device tree: {error}") from error


def pack(root: Node) -> bytes:
    """Return a device tree as a .dtb has it, without what is said of reserved memory."""
    strings: dict[str, int] = {}
    table = bytearray()
    structure = bytearray()

    def add(name: str, node: Node) -> None:
        structure.extend(struct.pack(">I", BEGIN_NODE) + _padded(name.encode() + b"\0"))
        for key, value in node.properties.items():
            if key not in strings:
                strings[key] = len(table)
                table.extend(key.encode() + b"\0")
            structure.extend(struct.pack(">3I", PROPERTY, len(value), strings[key]))
            structure.extend(_padded(value))
        for child, below in node.children.items():
            add(child, below)
        structure.extend(struct.pack(">I", END_NODE))

    add("", root)
    structure.extend(struct.pack(">I", END))
    begin, sizes = HEADER + RESERVED, (len(table), len(structure))
    offsets = (begin, begin + len(structure), HEADER)
    header = (MAGIC, begin + sum(sizes), *offsets, VERSION, COMPATIBLE_VERSION, 0, *sizes)
    return struct.pack(">10I", *header) + bytes(RESERVED) + bytes(structure) + bytes(table)


def _nodes(blob: bytes, at: int, strings: int) -> Node:
    """Read the structure block, a sequence of tokens, into nodes."""
    root = Node()
    open_nodes = [root]
    while True:
        (token,) = struct.unpack_from(">I", blob, at)
        at += 4
        if token == BEGIN_NODE:
            name = _string(blob, at)
            at = _aligned(at + len(name) + 1)
            if len(open_nodes) > MAX_DEPTH:
                raise ValueError(f"more than {MAX_DEPTH} nodes stand in each other")
            open_nodes.append(open_nodes[-1].children.setdefault(name.decode(), Node()))
        elif token == END_NODE:
            open_nodes.pop()
        elif token == PROPERTY:
            size, offset = struct.unpack_from(">2I", blob, at)
            name = _string(blob, strings + offset)
            open_nodes[-1].properties[name.decode()] = blob[at + 8 : at + 8 + size]
            at = _aligned(at + 8 + size)
        elif token == END:
            return root.children[""]
        elif token != NOTHING:
            raise ValueError(f"its structure has the unknown token {token}")


def _string(blob: bytes, at: int) -> bytes:
    end = blob.find(b"\0", at, at + MAX_NAME + 1)
    if end < 0:
        raise ValueError("a name in it has no end")
    return blob[at:end]


def _aligned(at: int) -> int:
    return (at + 3) & ~3


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)
