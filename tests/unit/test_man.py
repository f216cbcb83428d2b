"""The manual page: it has all that the help has, and those who read roff have no complaint."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from rbuild.cli import main, manpage
from rbuild.cli.main import COMMANDS

from .conftest import Host

NO_DATE = 'missing date, using "": TH'
"""The page has no day on purpose: it would be another one with each release of the same help."""


@pytest.fixture(scope="module")
def page() -> str:
    return manpage.page(main.main)


@pytest.fixture
def file(page: str, tmp_path: Path) -> Path:
    path = tmp_path / "rbuild.1"
    path.write_text(page)
    return path


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def shown(path: Path) -> str:
    """Return the page as man(1) shows it in 80 columns, without bold and italics."""
    env = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    done = subprocess.run(
        [tool("man"), "-l", path], env=env, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


def test_mandoc_has_no_complaint(file: Path) -> None:
    done = subprocess.run(
        [tool("mandoc"), "-Tlint", "-W", "warning", file], capture_output=True, text=True
    )
    assert [line for line in done.stdout.splitlines() if not line.endswith(NO_DATE)] == []


def test_groff_has_no_complaint(file: Path) -> None:
    done = subprocess.run(
        [tool("man"), "--warnings", "-l", file], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_the_page_fits_80_columns(file: Path) -> None:
    assert max(map(len, shown(file).splitlines())) <= 80


def test_the_page_has_every_command_option_and_example(file: Path) -> None:
    text = shown(file)
    for name in COMMANDS:
        command = main.main.get_command(click.Context(main.main), name)
        assert command is not None
        own = text.split(f"\n   rbuild {name}\n")[1].split("\n   rbuild ")[0]
        for param in command.params:
            if isinstance(param, click.Option):
                assert all(re.search(rf"(^|\s){opt}\b", own) for opt in param.opts)
        flat = " ".join(own.replace(" \\\n", "").split())
        for line in manpage.CONTINUED.sub(" ", command.epilog or "").splitlines():
            assert " ".join(line.strip("\b").split()) in flat


@pytest.mark.parametrize(
    "words",
    [
        "RBUILD_CACHE_DIR",
        "RBUILD_ENV",
        "RBUILD_MEMORY",
        "RBUILD_SSH",
        "NO_COLOR",
        "~/.cache/rbuild",
        "130",
        "rbuild profiles show [OPTIONS] NAME",
        "rbuild bench                   compare the ways of building",
    ],
)
def test_the_page_has(words: str, file: Path) -> None:
    assert words in shown(file)


def test_the_same_help_gives_the_same_bytes(page: str, monkeypatch) -> None:
    for name, value in {"RBUILD_ENV": "chroot", "COLUMNS": "40", "LANG": "de_DE.UTF-8"}.items():
        monkeypatch.setenv(name, value)
    assert manpage.page(main.main) == page
    assert page.isascii()


def test_what_roff_would_take_for_its_own_is_shown(tmp_path: Path) -> None:
    said = "Say it's \\fBso\\fR: .ko, -x, ~/a, ^, \u00fc. \n\n.hidden is shown, too.\n\n'quoted'"

    @click.group(help=said, epilog="\b\nExamples:\n  .dot \\n 'q' `b`")
    def group() -> None: ...

    path = tmp_path / "x.1"
    path.write_text(manpage.page(group))
    text = shown(path)
    for words in ("it's \\fBso\\fR: .ko, -x, ~/a, ^, \u00fc.", ".hidden is", "'quoted'"):
        assert words in text
    assert ".dot \\n 'q' `b`" in text


def test_the_page_is_printed_and_installed(
    page: str, tmp_path: Path, bare: Host, monkeypatch
) -> None:
    assert bare("man").out == page == bare("--json", "man").json["page"]
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    path = tmp_path / "share/man/man1/rbuild.1"
    for _ in range(2):
        assert bare("--json", "man", "--install").json["path"] == str(path)
    assert path.read_text() == page
    assert [one.name for one in path.parent.iterdir()] == ["rbuild.1"]
    found = subprocess.run(
        [tool("man"), "-w", "rbuild"],
        env={**os.environ, "MANPATH": f"{tmp_path}/share/man:"},
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == str(path)
