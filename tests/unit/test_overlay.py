"""Overlays without a kernel: sources, parameters, device trees as bytes, and what is said of them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import fdt as pyfdt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbuild.devicetree import dt_schema, fdt, overlay, overlay_parameters
from rbuild.devicetree.fdt import Node
from rbuild.errors import InfrastructureError, UsageError

from .conftest import Host

PLUGIN = "/dts-v1/;\n/plugin/;\n/ { };\n"


@pytest.fixture
def board(host: Host) -> Path:
    """Return a profile that names a device tree."""
    (host.tree / "Documentation/devicetree/bindings").mkdir(parents=True)
    (host.tree / "Documentation/devicetree/bindings/Makefile").write_text("")
    text = host.profile.read_text() + "device_trees: [board.dtb]\n"
    return host.write_profile(text, "board")


@pytest.fixture
def source(host: Host) -> Path:
    path = host.folder / "mine/thing-overlay.dts"
    path.parent.mkdir()
    path.write_text(PLUGIN)
    return path


# The command.


def test_an_overlay_is_compiled_once(host: Host, board: Path, source: Path) -> None:
    (host.folder / "out").mkdir()
    words = ("--json", "overlay", source, "--profile", board, "--output", host.folder / "out")
    (made,) = host(*words).json["artefacts"]
    assert Path(made["path"]) == host.folder / "out/thing.dtbo"
    assert made["fits"][0]["base"].endswith("board.dtb")
    assert Path(made["fits"][0]["path"]).is_file()
    assert [path.name for path in source.parent.iterdir()] == ["thing-overlay.dts"]
    assert host(*words).json["phases"][-1]["cached"]
    source.write_text(PLUGIN + "/* changed */\n")
    assert not host(*words).json["phases"][-1]["cached"]
    (source.parent / "part.dtsi").write_text("/* may be included */\n")
    assert not host(*words).json["phases"][-1]["cached"]


def test_what_is_changed_in_the_cache_is_made_again(host: Host, board: Path, source: Path) -> None:
    words = ("--json", "overlay", source, "--profile", board)
    Path(host(*words).json["artefacts"][0]["path"]).write_bytes(b"damaged")
    assert not host(*words).json["phases"][-1]["cached"]


def test_a_folders_overlays_are_all_compiled(host: Host, board: Path, source: Path) -> None:
    (source.parent / "other.dtso").write_text(PLUGIN)
    (source.parent / "board.dts").write_text("/dts-v1/;\n/ { };\n")
    found = host("--json", "overlay", source.parent, "--profile", board).json
    assert [Path(one["path"]).name for one in found["artefacts"]] == ["other.dtbo", "thing.dtbo"]


def test_a_profile_without_device_trees_has_none_to_fit(host: Host, source: Path) -> None:
    found = host("overlay", source, "--profile", host.profile)
    assert "applied to none" in found.err
    assert "fits" not in found.out


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("oops", "thing.dtso:3.1-5 syntax error"),
        ("shaky", "Warning (spi_bus_reg): /x: missing reg"),
    ],
)
def test_dtcs_words_are_shown(host: Host, board: Path, source: Path, word: str, said: str) -> None:
    source.write_text(PLUGIN + word)
    for _ in range(2):  # what failed is tried again
        found = host("overlay", source, "--profile", board, code=1)
        assert said in found.err
        assert "/module/" not in found.err
    source.write_text(PLUGIN)
    host("overlay", source, "--profile", board)


def test_an_overlay_that_does_not_fit_is_a_failure(host: Host, board: Path, source: Path) -> None:
    host.fault("unfit")
    found = host("overlay", source, "--profile", board, code=1)
    assert "thing.dtbo doesn't fit board.dtb" in found.err
    assert "FDT_ERR_NOTFOUND" in found.err
    assert "-@" in found.err  # an empty tree has no symbols, either


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.dts", None, "neither a file nor a folder"),
        ("plain.dts", "/dts-v1/;\n", "is not an overlay's source"),
        ("thing.txt", PLUGIN, "is not an overlay's source"),
        ("sub/thing.dtsi", PLUGIN, "is not an overlay's source"),
    ],
)
def test_what_is_no_overlay_starts_nothing(
    host: Host, name: str, text: str | None, said: str
) -> None:
    path = host.folder / name
    path.parent.mkdir(exist_ok=True)
    if text is not None:
        path.write_text(text)
    assert said in host("overlay", path, "--profile", host.profile, code=2).err
    assert host.calls("modules_prepare") == 0


def test_a_folder_without_an_overlay_or_with_one_twice(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no overlay"):
        overlay.sources(tmp_path)
    for name in ("x-overlay.dts", "x.dtso"):
        (tmp_path / name).write_text(PLUGIN)
    with pytest.raises(UsageError, match=r"more than one source of x\.dtbo"):
        overlay.sources(tmp_path)


@pytest.mark.parametrize(
    ("param", "said"), [("int_pin", "NAME=N"), ("=4", "NAME=N"), ("pin=4", "no parameter 'pin'")]
)
def test_a_wrong_parameter_is_wrong_usage(
    host: Host, board: Path, source: Path, param: str, said: str
) -> None:
    found = host("overlay", source, "--profile", board, "--param", param, code=2)
    assert said in found.err


# dt-schema.


def test_a_dt_schema_that_is_too_old_for_the_kernel(host: Host, board: Path, source: Path) -> None:
    makefile = host.tree / "Documentation/devicetree/bindings/Makefile"
    makefile.write_text("DT_SCHEMA_MIN_VERSION = 2023.9\n")
    host.fault("dt-schema-2022.12")
    found = host("overlay", source, "--profile", board, "--check", code=4)
    assert "wants dt-schema 2023.9 or newer; the environment package has 2022.12" in found.err
    # Without --check it isn't needed.
    host("overlay", source, "--profile", board)


def test_a_checker_that_breaks_is_no_clean_bill(host: Host, board: Path, source: Path) -> None:
    host.fault("dt-schema-broken")
    found = host("overlay", source, "--profile", board, "--check", code=1)
    assert "ImportError: no module" in found.err


def test_only_what_is_said_of_the_file_counts() -> None:
    lines = ["a.yaml: wrong", "\tsince so", "b.yaml: other", "\tof b", "a.yaml:3:1: more"]
    assert dt_schema._words(lines, "a.yaml") == ["wrong\n\tsince so", "3:1: more"]


SPI = Node({"status": b"disabled\0", "compatible": b"brcm,spi\0"})
BEFORE = Node(children={"soc": Node(children={"spi@0": SPI}), "cpu": Node()})


def test_changes_are_what_is_new_or_other_and_on() -> None:
    reader = Node({"compatible": b"nxp,mfrc522\0"})
    off = Node({"status": b"disabled\0"})
    spi = Node({**SPI.properties, "status": b"okay\0"}, {"nfc@0": reader, "spidev@0": off})
    after = Node(
        children={"soc": Node(children={"spi@0": spi}), "cpu": Node(), "__symbols__": Node()}
    )
    assert [path for path, _ in dt_schema.changes(BEFORE, after)] == [
        "/soc/spi@0",
        "/soc/spi@0/nfc@0",
    ]
    assert dt_schema.changes(BEFORE, BEFORE) == []
    pins = Node(children={**BEFORE.children, "cpu": Node(children={"pins": Node()})})
    assert [path for path, _ in dt_schema.changes(BEFORE, pins)] == ["/cpu", "/cpu/pins"]


def test_a_binding_names_a_compatible_as_a_whole_and_not_in_an_example(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("properties:\n  compatible:\n    const: nxp,mfrc522\nexamples:\n  - brcm,spi\n")
    assert dt_schema._names(path, ["nxp,mfrc522"])
    assert not dt_schema._names(path, ["nxp,mfrc52"])
    assert not dt_schema._names(path, ["brcm,spi"])


# What an overlay lacks.


def test_lacking_names_labels_and_targets() -> None:
    fragment = Node({"target-path": b"/soc/i2c@9\0"}, {"__overlay__": Node()})
    asleep = Node({"target-path": b"/nowhere\0"}, {"__dormant__": Node()})
    fixups = Node({"gpio": b"/fragment@0/x:0\0", "spi": b"/fragment@0/y:0\0"})
    wanted = Node(children={"fragment@0": fragment, "fragment@1": asleep, "__fixups__": fixups})
    symbols = Node({"spi": b"/soc/spi@0\0"})
    base = Node(children={**BEFORE.children, "__symbols__": symbols})
    assert overlay.lacking(wanted, base) == ["the label gpio", "the node /soc/i2c@9"]


# Parameters.


def overlay_with(overrides: bytes) -> Node:
    asleep = Node(children={"__dormant__": Node({"phandle": b"\0\0\0\1", "pins": bytes(4)})})
    return Node(
        children={
            "fragment@0": asleep,
            "__fixups__": Node({"gpio": b"/fragment@0/__dormant__:parent:0\0"}),
            "__local_fixups__": Node(
                children={"fragment@0": Node(children={"__dormant__": Node({"p": bytes(4)})})}
            ),
            "__overrides__": Node({"pin": overrides}),
        }
    )


def test_a_parameter_sets_cells_and_turns_fragments_on() -> None:
    asleep = overlay_with(b"\0\0\0\0+0\0" + b"\0\0\0\1pins:4\0")
    awake = overlay_parameters.given(asleep, {"pin": "0x18"})
    node = awake.find("/fragment@0/__overlay__")
    assert node is not None
    assert node.cells("pins") == [0, 24]
    assert awake.find("/fragment@0/__dormant__") is None
    assert awake.find("/__local_fixups__/fragment@0/__overlay__") is not None
    assert awake.children["__fixups__"].text("gpio") == "/fragment@0/__overlay__:parent:0"
    # What it was made from is as it was.
    assert asleep == overlay_with(b"\0\0\0\0+0\0" + b"\0\0\0\1pins:4\0")
    assert overlay_parameters.given(asleep, {}) == asleep


@pytest.mark.parametrize(
    ("overrides", "values", "said"),
    [
        (b"\0\0\0\1pins:0\0", {"pni": "4"}, "no parameter 'pni'. Did you mean 'pin'?"),
        (b"\0\0\0\1pins:0\0", {"pin": "high"}, "is a number, not 'high'"),
        (b"\0\0\0\1pins:0\0", {"pin": "-1"}, "is a number, not '-1'"),
        (b"\0\0\0\1pins:0\0", {"pin": "4294967296"}, "is a number"),
        (b"\0\0\0\1name\0", {"pin": "4"}, "only the Pi's firmware knows: 'name'"),
        (b"\0\0\0\1pins?\0", {"pin": "4"}, "only the Pi's firmware knows: 'pins?'"),
        (b"\0\0\0\7pins:0\0", {"pin": "4"}, "outside of the overlay"),
    ],
)
def test_a_parameter_that_cannot_be_given_here(
    overrides: bytes, values: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        overlay_parameters.given(overlay_with(overrides), values)
    assert said in caught.value.message


# Device trees as bytes.

NAMES = st.from_regex(r"[a-z][a-z0-9,#@-]{0,12}", fullmatch=True)
NODES = st.recursive(
    st.builds(Node, st.dictionaries(NAMES, st.binary(max_size=9), max_size=4)),
    lambda below: st.builds(
        Node,
        st.dictionaries(NAMES, st.binary(max_size=9), max_size=4),
        st.dictionaries(NAMES, below, max_size=3),
    ),
    max_leaves=8,
)


@given(NODES)
def test_a_device_tree_is_read_as_it_was_written(root: Node) -> None:
    assert fdt.parse(fdt.pack(root)) == root


def bytes_of(item: object) -> bytes:
    """Return a property's value, of whatever kind pyFDT takes it for."""
    match item:
        case pyfdt.PropStrings():
            return b"".join(one.encode() + b"\0" for one in item.data)
        case pyfdt.PropWords():
            return b"".join(one.to_bytes(4, "big") for one in item.data)
        case pyfdt.PropBytes():
            return bytes(item.data)
    return b""


@given(NODES)
def test_another_reader_reads_it_the_same(root: Node) -> None:
    def nodes(node: pyfdt.Node) -> Node:
        properties = {one.name: bytes_of(one) for one in node.props}
        return Node(properties, {one.name: nodes(one) for one in node.nodes})

    assert nodes(pyfdt.parse_dtb(fdt.pack(root)).root) == root


GOOD = fdt.pack(Node({"a": b"1234"}, {"b": Node({"c": b"12345"})}))


@pytest.mark.parametrize("end", range(0, len(GOOD) - 4, 4))
def test_half_a_device_tree_is_refused(end: int) -> None:
    with pytest.raises(ValueError, match=r"device tree|no end"):
        fdt.parse(GOOD[:end])


@pytest.mark.parametrize("value", [0, 1, 2, 3, 4, 9, 0x7F, 0xFF])
def test_a_damaged_device_tree_is_read_or_refused(value: int) -> None:
    for at in range(len(GOOD)):
        with contextlib.suppress(ValueError):
            fdt.parse(GOOD[:at] + bytes([value]) + GOOD[at + 1 :])


def test_a_damaged_device_tree_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.dtbo"
    deep = Node()
    for _ in range(80):
        deep = Node({}, {"n": deep})
    for content in (b"", GOOD[:30], GOOD.replace(b"c\0", b"\xff\0"), fdt.pack(deep)):
        path.write_bytes(content)
        with pytest.raises(InfrastructureError, match=r"x\.dtbo can't be read as a device tree"):
            fdt.read(path)


def test_cells_that_are_none() -> None:
    assert Node({"reg": b"12345"}).cells("reg") is None


@pytest.mark.parametrize(
    "value", [b"\0", b"\0\0\0\1x", b"\0\0\0\1\xff:0\0", b"\0\0\0\1x:99999999999\0"]
)
def test_damaged_overrides_are_refused(value: bytes) -> None:
    with pytest.raises(UsageError, match=r"__overrides__ are damaged|of a kind"):
        overlay_parameters.given(Node({}, {"__overrides__": Node({"p": value})}), {"p": "1"})
