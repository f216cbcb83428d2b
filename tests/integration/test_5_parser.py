"""The parsers of the C and the Rust driver: the same language, and never a byte too far."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from .conftest import Rbuild

PROJECT = Path(__file__).parents[2]
PARSERS = (PROJECT / "module/c/mfrc522_request.h", PROJECT / "module/rust/request.rs")
HARNESS = Path(__file__).parent / "parser"
INPUTS = 1_500_000

# The environment's own make variables are for the kernel; these programs are the host's.
BUILD = """\
set -e
rustc --edition=2021 --crate-type=staticlib -Copt-level=2 -Cpanic=abort \
    -Coverflow-checks=on -Cdebug-assertions=on -Dwarnings -Adead_code \
    -o libparsers.a parsers.rs
gcc -std=gnu11 -O1 -g -Wall -Wextra -Werror -fsanitize=address,undefined \
    -fno-sanitize-recover=all -o compare compare.c libparsers.a -lpthread -ldl -lm
"""


def _compare(rbuild: Rbuild, folder: Path, inputs: int, seed: int, *, fails: bool = False) -> str:
    """Compile the parsers in a folder, and compare them; return what was said."""
    # However it ends: by a signal if they differ, with a status of a sanitizer's own.
    command = f"{BUILD} {'! ' if fails else ''}./compare {inputs} {seed} 2>&1"
    words = ["--quiet", "shell", "--module", folder, "--", "sh", "-c", command]
    return rbuild(*words).out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy the parsers and what compares them to one folder."""
    made = shutil.copytree(HARNESS, tmp_path / "parser")
    for path in PARSERS:
        shutil.copy(path, made)
    return made


def test_both_parsers_take_a_million_inputs_alike(rbuild: Rbuild, folder: Path) -> None:
    found = _compare(rbuild, folder, INPUTS, seed=1)
    count = {line.split()[0]: int(line.split()[1]) for line in found.splitlines()}
    assert "none" not in count, found
    assert count.pop("inputs") == INPUTS
    # Each command, seven of them, was given often enough to be mutated in every place.
    assert len(count) == 7
    assert all(number > 10_000 for number in count.values()), found
    assert sum(count.values()) < INPUTS / 2, found


MUTANTS = {
    "c-takes-more-than-said": ("count - pos != len", "count - pos < len", "a command"),
    "c-reads-one-byte-too-far": ("pos < count && text", "pos <= count && text", "runtime error|overflow"),
    "c-keeps-the-newline": ("if (count && text[count - 1]", "if (0 && text[count - 1]", "a command"),
    "c-takes-a-word-cut-short": ("count != strlen(", "count > strlen(", "a command"),
    "c-takes-one-for-another": ('"version", MFRC522_OP_GET_VERSION', '"version", MFRC522_OP_MEM_READ', "which command"),
    "rust-takes-no-length": ("if digits.is_empty()", "if false", "a command"),
    "rust-lets-a-length-overflow": ("if len > MEM_SIZE", "if false", "overflow"),
    "rust-takes-a-byte-less": ("text.len() > REQUEST_MAX", "text.len() >= REQUEST_MAX", "a command"),
    "rust-knows-a-word-less": ('b"get_version" | b"version"', 'b"get_version"', "a command"),
    "rust-takes-other-data": ("Some(Request::MemWrite(data))", "Some(Request::MemWrite(&rest[..len]))", "what is written"),
}  # fmt: skip
"""Faults by what they do: what to replace by what, and what is said of it."""


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_parser_is_noticed(rbuild: Rbuild, folder: Path, name: str) -> None:
    right, wrong, said = MUTANTS[name]
    path = folder / PARSERS[name.startswith("rust")].name
    text = path.read_text()
    assert text.count(right) == 1
    path.write_text(text.replace(right, wrong))
    assert re.search(said, _compare(rbuild, folder, INPUTS, seed=1, fails=True))
