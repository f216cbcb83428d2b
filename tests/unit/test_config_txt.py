"""config.txt edited: our block alone changes, whatever the file looks like."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbuild.board.deploy.config import (
    BEGIN,
    END,
    Surroundings,
    block,
    current,
    difference,
    filters,
    value,
    with_block,
    with_block_of,
)

LINES = ("os_prefix=new/", "kernel=kernel8.img", "dtparam=spi=on", "dtoverlay=mfrc522")
OURS = f"{BEGIN}\n[all]\nos_prefix=new/\nkernel=kernel8.img\ndtoverlay=\ndtparam=spi=on\ndtoverlay=mfrc522\n{END}\n"

FILES = {
    "empty": "",
    "plain": "# a comment\ndtparam=audio=on\n",
    "no newline at its end": "dtparam=audio=on",
    "CRLF": "dtparam=audio=on\r\n\r\n[pi4]\r\narm_boost=1\r\n",
    "CRLF, no newline at its end": "dtparam=audio=on\r\n[pi4]\r\narm_boost=1",
    "a section at its end": "[pi4]\nkernel=mine.img\n",
    "an os_prefix of the user's": "os_prefix=current/\nkernel=vmlinuz\n",
    "an overlay of the user's": "dtoverlay=vc4-kms-v3d\n",
    "odd bytes": "# \udcff\x0b\x0c\u2028 x\ngpu_mem=16\n",
}


@pytest.mark.parametrize("name", FILES)
def test_the_block_comes_at_the_end_and_nothing_else_changes(name: str) -> None:
    text = FILES[name]
    new = with_block(text, LINES)
    newline = "\r\n" if "\r\n" in text else "\n"
    before = text if not text or text.endswith("\n") else text + newline
    assert new == before + OURS.replace("\n", newline)
    assert with_block(new, LINES) == new
    assert with_block_of(new, text) == text
    assert with_block_of(text, new) == new


def test_a_block_is_replaced_where_it_stands() -> None:
    text = "a=1\n" + OURS + "[pi4]\nb=2\n"
    new = with_block(text, ["os_prefix=newer/"])
    assert new == f"a=1\n{BEGIN}\n[all]\nos_prefix=newer/\n{END}\n[pi4]\nb=2\n"
    assert with_block_of(new, text) == text


def test_what_follows_a_block_counts_for_all_boards_when_it_is_gone() -> None:
    text = "[pi4]\na=1\n" + OURS + "gpu_mem=16\n"
    assert with_block_of(text, "") == "[pi4]\na=1\n[all]\ngpu_mem=16\n"
    assert with_block_of("[all]\na=1\n" + OURS + "gpu_mem=16\n", "") == "[all]\na=1\ngpu_mem=16\n"
    assert with_block_of("[pi4]\na=1\n" + OURS + "# x\n[cm4]\n", "") == "[pi4]\na=1\n# x\n[cm4]\n"


@pytest.mark.parametrize(
    ("user", "there"),
    [
        ("dtoverlay=mfrc522\n", False),
        ("dtoverlay=mfrc522,speed=1000000\n", False),
        ("[pi4]\nx=1\n[all]\ndtoverlay=mfrc522\n", False),
        ("[pi4]\ndtoverlay=mfrc522\n", True),
        ("#dtoverlay=mfrc522\n", True),
        ("dtoverlay=mfrc522-other\n", True),
    ],
)
def test_an_overlay_that_the_user_loads_is_not_loaded_twice(user: str, there: bool) -> None:
    assert ("dtoverlay=mfrc522" in (block(with_block(user, LINES)) or [])) is there


def test_a_parameter_of_the_board_is_not_taken_for_an_overlay_s() -> None:
    lines = block(with_block("dtoverlay=vc4-kms-v3d\n", LINES)) or []
    assert lines[lines.index("dtparam=spi=on") - 1] == "dtoverlay="
    assert "dtparam=spi=on" not in (block(with_block("dtparam=spi=on\n", LINES)) or [])


def test_a_block_without_an_end_takes_no_line_of_the_user_s() -> None:
    new = with_block(f"a=1\n{BEGIN}\n[all]\nb=2\n", LINES)
    assert new == f"a=1\n{OURS}[all]\nb=2\n"


def test_values_are_those_that_count_for_all_boards() -> None:
    text = "kernel=one\n[pi4]\nkernel=two\n[ALL]\nkernel = three\n[cm4]\nkernel=four\n"
    assert value(text, "kernel") == "three"
    assert value(text, "os_prefix") is None
    new = with_block(text, LINES)
    assert value(new, "kernel") == "three"
    assert current(new, "kernel") == "kernel8.img"
    assert current(text, "kernel") == "three"


def test_a_difference_is_a_diff() -> None:
    old = "a=1\n"
    shown = difference(old, with_block(old, LINES), "/boot/config.txt")
    assert "+os_prefix=new/" in shown.splitlines()
    assert difference(old, old, "x") == ""


TEXTS = st.text(st.sampled_from("ab=#[]\r\n \tdtoverlay"), max_size=60)


@given(TEXTS, st.lists(st.sampled_from(LINES), unique=True))
def test_any_text_comes_back(text: str, lines: list[str]) -> None:
    new = with_block(text, lines)
    assert with_block(new, lines) == new
    assert with_block_of(new, text) == text
    for line in text.split("\n"):
        assert line in new


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_blocks_lines_end_as_they_did(newline: str) -> None:
    """Whatever was in it: the same again must be the same text."""
    text = "a=1\r\n" * 6 + newline.join([BEGIN, *[""] * 12, END, ""])
    once = with_block(text, ["x=1"])
    assert once == "a=1\r\n" * 6 + newline.join([BEGIN, "[all]", "x=1", END, ""])
    assert with_block(once, ["x=1"]) == once


ALSO = Surroundings({"user.txt": "dtoverlay=mfrc522,speed=5\r\nos_prefix=inc/\n[pi4]\n"})


def test_included_files_count_where_they_are_included() -> None:
    """An overlay that an included file loads isn't loaded twice."""
    text = "include user.txt\nkernel=four.img\n"
    new = with_block(text, LINES, ALSO)
    assert "dtoverlay=mfrc522" not in (block(new) or [])
    assert "dtoverlay=mfrc522" in (block(with_block(text, LINES)) or [])
    assert with_block(new, LINES, ALSO) == new
    assert value(text, "os_prefix", ALSO) == current(text, "os_prefix", ALSO) == "inc/"
    # The section that it began goes on after it.
    assert value(text, "kernel", ALSO) is None
    assert value("[pi3]\ninclude user.txt\n", "os_prefix", ALSO) is None


def test_files_that_include_each_other_end() -> None:
    files = {"a": "include b\ninclude b\nx=1\n", "b": "include a\ninclude a\ny=2"}
    assert value("include a\n", "y", Surroundings(files)) == "2"
    assert value("include nowhere\nx=3", "x", Surroundings(files)) == "3"


@pytest.mark.parametrize(
    ("compatible", "user", "there"),
    [
        ("raspberrypi,4-model-b brcm,bcm2711", "[pi4]\ndtoverlay=mfrc522", False),
        ("raspberrypi,400 brcm,bcm2711", "[pi400]\ndtoverlay=mfrc522", False),
        ("raspberrypi,3-model-b-plus", "[pi4]\n[pi3]\ndtoverlay=mfrc522", False),
        ("raspberrypi,3-model-b-plus", "[pi4]\ndtoverlay=mfrc522", True),
        ("raspberrypi,4-model-b", "[gpio4=1]\n[pi4]\ndtoverlay=mfrc522", True),
        ("raspberrypi,4-model-b", "[none]\n[pi4]\ndtoverlay=mfrc522", True),
        ("raspberrypi,4-model-b", "[none]\n[all]\ndtoverlay=mfrc522", False),
        ("", "[pi4]\ndtoverlay=mfrc522", True),
    ],
)
def test_a_section_for_the_boards_own_model_counts(compatible: str, user: str, there: bool) -> None:
    around = Surroundings(filters=filters(compatible.split()))
    assert ("dtoverlay=mfrc522" in (block(with_block(user, LINES, around)) or [])) is there


@pytest.mark.parametrize("line", ["device_tree_overlay=mfrc522", "dtoverlay=mfrc522:speed=5"])
def test_an_overlay_by_its_older_spelling_is_not_loaded_twice(line: str) -> None:
    assert "dtoverlay=mfrc522" not in (block(with_block(line, LINES)) or [])
