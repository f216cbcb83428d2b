"""Why Kconfig grants an option or not: trees of a few options, and the .config that came out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rbuild.kernel.config import read_config
from rbuild.kernel.kconfig import parser, values
from rbuild.kernel.kconfig.explain import explain
from rbuild.kernel.kconfig.explanation import (
    Explanation,
    Node,
    Origin,
    Plan,
    blockers,
    remedy,
    tree,
)
from rbuild.kernel.kconfig.tools import version_of

from .conftest import Host

Explain = Callable[..., Explanation]


@pytest.fixture
def explained(tmp_path: Path) -> Explain:
    def run(text: str, config: str, option: str, *origins: Origin) -> Explanation:
        (tmp_path / "Kconfig").write_text(text)
        found = parser.read(tmp_path, "arm64")
        return explain(option, values.values_of(read_config(config), found), origins)

    return run


RUST = """\
config HAVE_RUST
\tbool

config ARM64
\tdef_bool y
\tselect HAVE_RUST if RUSTC_SUPPORTS_ARM64

config RUSTC_SUPPORTS_ARM64
\tdef_bool y

config RUST_IS_AVAILABLE
\tdef_bool $(success,$(srctree)/scripts/rust_is_available.sh)

config PAHOLE_VERSION
\tint
\tdefault "$(shell,scripts/pahole-version.sh)"

config PAHOLE_HAS_LANG_EXCLUDE
\tdef_bool PAHOLE_VERSION >= 124

config LTO
\tbool

config DEBUG_INFO_BTF
\tbool "BTF"

config MODVERSIONS
\tbool "Module versions"

config RUST
\tbool "Rust support"
\tdepends on HAVE_RUST
\tdepends on RUST_IS_AVAILABLE
\tdepends on !MODVERSIONS
\tdepends on !DEBUG_INFO_BTF || \\
\t\t(PAHOLE_HAS_LANG_EXCLUDE && !LTO)
\thelp
\t  depends on NOTHING_THAT_STANDS_HERE

\t  config NEITHER
"""
GOOD = "CONFIG_ARM64=y\nCONFIG_HAVE_RUST=y\nCONFIG_RUSTC_SUPPORTS_ARM64=y\n"
AVAILABLE = f"{GOOD}CONFIG_RUST_IS_AVAILABLE=y\nCONFIG_PAHOLE_VERSION=118\n"
PI = Origin("pi.config", "CONFIG_MODULES=y\nCONFIG_MODVERSIONS=y\n")
OWN = Origin("config.options of p.yaml", "CONFIG_RUST=y\n", numbered=False)


def unmet(found: Explanation) -> list[str]:
    return [node.text for node in found.conditions if not node.met]


def test_what_blocks_rust_and_who_asked_for_it(explained: Explain) -> None:
    found = explained(RUST, f"{AVAILABLE}CONFIG_MODVERSIONS=y\n", "RUST", PI, OWN)
    assert not found.granted
    assert found.value == "n"
    assert unmet(found) == ["!MODVERSIONS"]
    assert found.plan == Plan({"MODVERSIONS": "n"})
    assert blockers(found) == [
        "!MODVERSIONS: MODVERSIONS is y (Kconfig:27): pi.config:2 asks for it; "
        "remedy: `MODVERSIONS: n`"
    ]
    first, *rest = tree(found)
    assert first == "RUST is n, though config.options of p.yaml asks for y (Kconfig:30)"
    assert "├─ ok  HAVE_RUST" in rest
    assert "├─ NO  !MODVERSIONS" in rest


def test_a_way_out_by_an_option_is_nearer_than_one_by_a_tool(explained: Explain) -> None:
    found = explained(RUST, f"{AVAILABLE}CONFIG_DEBUG_INFO_BTF=y\n", "RUST", OWN)
    assert unmet(found) == ["!DEBUG_INFO_BTF || (PAHOLE_HAS_LANG_EXCLUDE && !LTO)"]
    assert found.plan == Plan({"DEBUG_INFO_BTF": "n"})
    text = "\n".join(tree(found))
    assert "one of these would do" in text
    assert "PAHOLE_VERSION is 118: the environment has 1.18 pahole" in text


def test_a_tool_that_is_too_old_is_named_with_the_version_that_would_do(explained: Explain) -> None:
    found = explained(RUST, AVAILABLE, "PAHOLE_HAS_LANG_EXCLUDE")
    assert found.plan is not None
    assert found.plan.options == {}
    assert found.plan.tools == ("pahole, in the package dwarves, of version 1.24 or later",)
    assert remedy(found.plan)[0].endswith("of version 1.24 or later")


def test_rust_that_the_tools_do_not_give(explained: Explain) -> None:
    found = explained(RUST, GOOD, "RUST", OWN)
    assert unmet(found) == ["RUST_IS_AVAILABLE"]
    assert found.plan is not None
    assert "make rustavailable" in found.plan.tools[0]


def test_an_option_without_a_prompt_is_walked_to_what_selects_it(explained: Explain) -> None:
    found = explained(RUST, "CONFIG_ARM64=y\nCONFIG_RUST_IS_AVAILABLE=y\n", "RUST", OWN)
    text = "\n".join(tree(found))
    assert "ARM64 selects it if RUSTC_SUPPORTS_ARM64" in text
    assert "NO  RUSTC_SUPPORTS_ARM64" in text


def test_an_option_that_is_granted_says_where_it_comes_from(explained: Explain) -> None:
    found = explained(RUST, f"{AVAILABLE}CONFIG_RUST=y\n", "RUST", OWN)
    assert found.granted
    assert found.plan is None
    assert not unmet(found)
    assert tree(found)[:2] == [
        "RUST is y, as config.options of p.yaml asks (Kconfig:30)",
        "  it is y: config.options of p.yaml asks for it",
    ]


def test_a_number_is_explained_by_what_it_is(explained: Explain) -> None:
    found = explained(RUST, AVAILABLE, "PAHOLE_VERSION")
    assert found.granted
    assert tree(found)[0] == "PAHOLE_VERSION is 118 (Kconfig:14)"


CHOICE = """\
choice
\tprompt "Randomize"
\tdefault RANDSTRUCT_NONE

config RANDSTRUCT_NONE
\tbool "None"

config RANDSTRUCT_FULL
\tbool "Full"
\tdepends on CC_HAS_RANDSTRUCT
\tselect MODVERSIONS if MODULES

endchoice

config CC_HAS_RANDSTRUCT
\tdef_bool $(cc-option,-frandomize-layout-seed-file=/dev/null)

config RANDSTRUCT
\tdef_bool !RANDSTRUCT_NONE

config MODULES
\tbool "Modules"
\tmodules

config MODVERSIONS
\tbool "Versions"
\tdepends on MODULES

config RUST
\tbool "Rust"
\tdepends on !RANDSTRUCT
\tdepends on !MODVERSIONS
"""
CHOSEN = (
    "CONFIG_RANDSTRUCT_FULL=y\nCONFIG_RANDSTRUCT=y\nCONFIG_CC_HAS_RANDSTRUCT=y\n"
    "CONFIG_MODULES=y\nCONFIG_MODVERSIONS=y\n"
)


def test_a_choice_is_lifted_by_another_of_its_members(explained: Explain) -> None:
    found = explained(CHOICE, CHOSEN, "RUST", OWN)
    # What selects MODVERSIONS may not be all that asks for it.
    assert found.plan == Plan({"RANDSTRUCT_NONE": "y", "MODVERSIONS": "n"})
    assert any("RANDSTRUCT_FULL, which selects MODVERSIONS" in line for line in blockers(found))


def test_an_option_that_stays_on_though_it_is_asked_off(explained: Explain) -> None:
    off = Origin("mine.config", "# CONFIG_MODVERSIONS is not set\n")
    found = explained(CHOICE, CHOSEN, "MODVERSIONS", off)
    assert not found.granted
    assert "though mine.config:1 asks for n" in tree(found)[0]
    assert "RANDSTRUCT_FULL selects it" in "\n".join(tree(found))
    assert found.plan is not None
    assert found.plan.options["RANDSTRUCT_NONE"] == "y"


NESTED = """\
menuconfig NET
\tbool "Net"

if NET
menu "Drivers"
\tdepends on USB != n

config USB_NET
\ttristate "USB network"
\tdepends on SPI

config FORCED
\tbool "Forced" if EXPERT
\tdefault y

endmenu
endif

config EXPERT
\tbool "Expert"
config USB
\ttristate "USB"
config SPI
\tbool "SPI"
source "arch/$(SRCARCH)/Kconfig"
"""


def test_menus_and_ifs_count_and_all_that_is_needed_is_one_remedy(explained: Explain) -> None:
    found = explained(NESTED, "", "USB_NET", Origin("a", "CONFIG_USB_NET=m\n"))
    assert unmet(found) == ["SPI", "USB != n", "NET"]
    found = explained(NESTED, "CONFIG_USB=m\n", "USB_NET", Origin("a", "CONFIG_USB_NET=m\n"))
    assert found.plan == Plan({"SPI": "y", "NET": "y"})


def test_a_module_is_not_enough_where_built_in_is_asked(explained: Explain) -> None:
    text = 'config A\n\ttristate "A"\n\tdepends on B\nconfig B\n\ttristate "B"\n'
    found = explained(text, "CONFIG_A=m\nCONFIG_B=m\n", "A", Origin("a", "CONFIG_A=y\n"))
    assert not found.granted
    assert found.plan == Plan({"B": "y"})
    # What a bool depends on may be a module.
    text = text.replace('tristate "A"', 'bool "A"')
    assert explained(text, "CONFIG_A=y\nCONFIG_B=m\n", "A").granted


def test_a_prompt_that_is_hidden_is_a_condition(explained: Explain) -> None:
    found = explained(NESTED, "CONFIG_NET=y\nCONFIG_USB=y\n", "FORCED")
    assert unmet(found) == ["EXPERT (else there is nothing to choose)"]


def test_options_that_need_each_other_end(explained: Explain) -> None:
    text = 'config A\n\tbool "A"\n\tdepends on B\nconfig B\n\tbool "B"\n\tdepends on A\n'
    found = explained(text, "", "A")
    assert "see above" in "\n".join(tree(found))


def test_an_expensive_way_is_the_last(explained: Explain) -> None:
    text = (
        'config X\n\tbool "X"\n\tdepends on COMPILE_TEST || (A && B)\n'
        'config COMPILE_TEST\n\tbool "T"\nconfig A\n\tbool "A"\nconfig B\n\tbool "B"\n'
    )
    found = explained(text, "", "X")
    assert found.plan == Plan({"A": "y", "B": "y", "X": "y"})


def test_what_a_macro_said_is_inferred_from_the_options_that_ask_it(explained: Explain) -> None:
    text = (
        'config A\n\tbool "A"\n\tdepends on $(cc-option,-fa)\n'
        'config B\n\tbool "B"\n\tdepends on $(cc-option,-fa)\n'
        "config HAS_C\n\tdef_bool $(cc-option,-fc)\n"
        'config D\n\tbool "D"\n\tdepends on $(cc-option,-fc)\n'
        'config E\n\tbool "E"\n\tdepends on $(cc-option,-fe)\n'
    )
    config = "CONFIG_A=y\n"
    assert not unmet(explained(text, config, "B"))
    said_no = explained(text, config, "D").conditions[0]
    assert said_no.why == ("the environment's tools were asked, and said no",)
    assert "isn't known" in explained(text, config, "E").conditions[0].why[0]


@pytest.mark.parametrize(
    ("text", "config", "expected"),
    [
        ("A && !B", "CONFIG_A=y\n", 2),
        ("A && !B", "CONFIG_A=m\n", 1),
        ("A || B = 0x10", "CONFIG_B=16\n", 2),
        ('B = "x y"', 'CONFIG_B="x y"\n', 2),
        ("B >= 9", "CONFIG_B=10\n", 2),
        ("A = y", "CONFIG_A=m\n", 0),
        ("A != n", "CONFIG_A=m\n", 2),
        ("UNHEARD_OF", "", 0),
        ("!(A || B)", "", 2),
        ("A && m", "CONFIG_A=y\n", 1),
        ("B < 3", "", 2),
    ],
)
def test_expressions_as_kconfig_evaluates_them(
    tmp_path: Path, text: str, config: str, expected: int
) -> None:
    (tmp_path / "Kconfig").write_text('config A\n\ttristate "A"\nconfig B\n\tint "B" # a comment\n')
    known = values.Values(read_config(config), parser.read(tmp_path, "arm64"))
    assert values.evaluate(parser.parse(text), known) == expected


def test_other_architectures_files_are_not_read(tmp_path: Path) -> None:
    for name in ("arm64", "x86"):
        (tmp_path / f"arch/{name}").mkdir(parents=True)
        (tmp_path / f"arch/{name}/Kconfig").write_text(f"config {name.upper()}\n\tdef_bool y\n")
    (tmp_path / "Kconfig").write_text(
        'm32-flag := $(cc-option,-m32)\nif-success = $(shell,x)\nsource "arch/$(SRCARCH)/Kconfig"\n'
        'source "missing/Kconfig"\n'
    )
    assert set(parser.read(tmp_path, "arm64").options) == {"ARM64"}


def test_a_dependency_with_a_condition_of_its_own(explained: Explain) -> None:
    text = (
        'config A\n\tbool "A"\n\tdepends on B if C\n'
        'config B\n\tbool "B"\nconfig C\n\tbool "C"\n\ttransitional\n'
    )
    assert not unmet(explained(text, "", "A"))
    assert unmet(explained(text, "CONFIG_C=y\n", "A")) == ["B || !C"]


def test_a_node_as_json() -> None:
    found = Node("A && B", False, ("why",), False, (Node("A", True),))
    assert found.as_json() == {
        "condition": "A && B",
        "met": False,
        "why": ["why"],
        "any_of": False,
        "children": [
            {"condition": "A", "met": True, "why": [], "any_of": False, "children": []},
        ],
    }


def blocked(host: Host, *lines: str) -> Path:
    """Write a profile and the tree's Kconfig, in which MODVERSIONS keeps RUST out."""
    (host.tree / "Kconfig").write_text('source "init/Kconfig"\nconfig MODVERSIONS\n\tbool "M"\n')
    (host.tree / "init/Kconfig").write_text(
        'config RUST\n\tbool "Rust"\n\tdepends on !MODVERSIONS\n'
    )
    text = f"name: b\nsource: {{directory: {host.tree}}}\npatches: false\n"
    return host.write_profile(text + "".join(f"{line}\n" for line in lines), "b")


def test_a_refusal_shows_what_blocks_and_who_explains_it(host: Host) -> None:
    host.fault("drop-rust")
    profile = blocked(host, "config: {base: tinyconfig, options: {RUST: y, MODVERSIONS: y}}")
    found = host("kernel", "--profile", profile, code=2)
    assert "MODVERSIONS is y (Kconfig:2): config.options of b.yaml asks for it" in found.err
    assert f"`rbuild kernel --profile {profile} --explain RUST`" in found.err


def test_explaining_what_was_refused_builds_nothing(host: Host) -> None:
    host.fault("drop-rust")
    profile = blocked(host, "config: {base: tinyconfig, options: {RUST: y, MODVERSIONS: y}}")
    found = host("kernel", "--profile", profile, "--explain", "RUST")
    assert "RUST is n, though config.options of b.yaml asks for y (init/Kconfig:1)" in found.out
    assert "    MODVERSIONS: n" in found.out
    # The fake drops RUST whatever is asked: a remedy that was tried and isn't one is said to be so.
    assert "Tried in cross: it isn't enough." in found.out
    assert host.calls("modules_prepare") == 0
    host.fault()
    host("kernel", "--profile", profile)


def test_a_remedy_is_tried_before_it_is_given(host: Host) -> None:
    profile = blocked(host, "config: {base: tinyconfig, options: {MODVERSIONS: y}}")
    found = host("--json", "kernel", "--profile", profile, "--explain", "CONFIG_RUST").json
    assert found["option"] == "RUST"
    assert found["asked"] is None
    assert not found["granted"]
    assert found["lift"] == {"options": {"MODVERSIONS": "n", "RUST": "y"}, "tools": []}
    assert found["tried"]
    assert not list(host.cache.glob("runs/*/trial"))


def test_a_kernel_that_is_there_is_only_read(host: Host) -> None:
    profile = blocked(host, "config: {base: tinyconfig, options: {RUST: y}}")
    host("kernel", "--profile", profile)
    made = host.calls("olddefconfig")
    found = host("kernel", "--profile", profile, "--explain", "RUST")
    assert "RUST is y, as config.options of b.yaml asks" in found.out
    assert host.calls("olddefconfig") == made


def test_an_option_that_the_kernel_lacks_has_neighbours(host: Host) -> None:
    profile = blocked(host, "config: {base: tinyconfig}")
    found = host("kernel", "--profile", profile, "--explain", "MODVERSION", code=2)
    assert "has no option MODVERSION" in found.err
    assert "MODVERSIONS" in found.err


@pytest.mark.parametrize(
    "text",
    [
        'source "Kconfig"\n',
        'source "other"\n',
        'source "a\0b"\n',
        f"depends on {'(' * 5000}A\n",
        f"depends on {'!' * 5000}A\n",
        f"depends on {'$(' * 5000}A\n",
    ],
)
def test_a_kconfig_that_has_no_end_is_read_all_the_same(tmp_path: Path, text: str) -> None:
    (tmp_path / "other").write_text('source "Kconfig"\nsource "Kconfig"\n')
    (tmp_path / "Kconfig").write_text(f"config A\n\tbool\n\t{text}config B\n\tbool\n")
    found = parser.read(tmp_path, "arm64")
    assert {"A", "B"} <= set(found.options)
    explain("A", values.values_of({}, found), [])


@pytest.mark.parametrize("number", ["", "0", "x", "²", "٣x", "9" * 5000])
def test_what_is_no_version_is_none(number: str) -> None:
    assert version_of("CLANG_VERSION", number) == "no"
