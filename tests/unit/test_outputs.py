"""What a hostile build leaves is neither followed nor kept."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from rbuild.errors import BuildFailed
from rbuild.module.sync import sync
from rbuild.sandbox import outputs
from rbuild.util import process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "build"
    (made / "sub").mkdir(parents=True)
    (made / "a.ko").write_text("module")
    return made


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret", "sub/../../secret", "/module/a.ko"])
def test_a_link_that_leads_out_is_removed(folder: Path, target: str) -> None:
    (folder.parent / "secret").write_text("mine")
    (folder / "evil.ko").symlink_to(target)
    (fault,) = outputs.sanitise(folder)
    assert fault == f"evil.ko is a link to {target!r}, out of its folder"
    assert not (folder / "evil.ko").is_symlink()
    assert (folder.parent / "secret").read_text() == "mine"


def test_a_chain_of_links_that_leads_out_is_removed(folder: Path) -> None:
    (folder / "one").symlink_to("two/passwd")
    (folder / "two").symlink_to("/etc")
    assert len(outputs.sanitise(folder)) == 2
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_links_that_stay_are_kept(folder: Path) -> None:
    (folder / "sub/again.ko").symlink_to("../a.ko")
    (folder / "source").symlink_to("/src")
    (folder / "gone").symlink_to("nothing")
    assert outputs.sanitise(folder) == []
    assert (folder / "sub/again.ko").read_text() == "module"
    (folder / "source").unlink()
    (folder / "source").symlink_to("/src/../etc")
    assert len(outputs.sanitise(folder)) == 1


def test_rights_pipes_and_sockets_go(folder: Path) -> None:
    (folder / "root-shell").write_text("")
    (folder / "root-shell").chmod(0o6755)
    os.mkfifo(folder / "modules.order")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / "s"))
    found = outputs.sanitise(folder)
    assert sorted(found) == [
        "modules.order is a device, a pipe or a socket",
        "root-shell runs with the rights of its owner or group",
        "s is a device, a pipe or a socket",
    ]
    assert (folder / "root-shell").stat().st_mode & 0o7777 == 0o755
    assert outputs.sanitise(folder) == []


def test_a_name_is_shown_harmlessly(folder: Path) -> None:
    (folder / "\x1b[2J\nevil").symlink_to("/etc/passwd")
    assert outputs.sanitise(folder) == [
        r"\x1b[2J\nevil is a link to '/etc/passwd', out of its folder"
    ]


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.ko", "sub/../../x.ko"])
def test_a_product_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(BuildFailed, match="outside its output folder"):
        outputs.named(folder, name)
    for odd in ("", "a b.ko", "a\n.ko", "\x1b[2J.ko", "a\x85.ko", "\udc85.ko\t"):
        with pytest.raises(BuildFailed, match="Invalid product name"):
            outputs.named(folder, odd)
    assert outputs.named(folder, "sub/a.ko") == folder / "sub/a.ko"


def test_sources_are_not_written_through_what_a_killed_build_left(tmp_path: Path) -> None:
    source, target, home = tmp_path / "source", tmp_path / "build", tmp_path / "home"
    for path in (source / "sub", target, home):
        path.mkdir(parents=True)
    (source / "sub/bashrc").write_text("mine")
    (target / "sub").symlink_to(home)
    sync(source, target)
    assert list(home.iterdir()) == []
    assert (target / "sub/bashrc").read_text() == "mine"


def test_a_build_cant_name_what_is_removed(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "build"
    source.mkdir()
    (source / "a.c").write_text("one")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    sync(source, target)
    for name in (".tmp_inputs", ".build-inputs", "inputs"):
        (target / name).write_text("../victim\n")
    (source / "a.c").write_text("two")
    sync(source, target)
    assert victim.read_text() == "mine"


# What a build or a guest writes.

WRITTEN = {
    b"plain": "plain",
    b"a\ttab": "a\ttab",
    b"\xc3\xa4\xe2\x82\xac": "ä€",
    b"\x1b[2J\x1b[31mred\x1b[0m": "red",
    b"\x1b]0;a title\x07after": "after",
    b"\x1b]52;c;c2VjcmV0\x1b\\clipboard": "clipboard",
    b"\x1bPq#0\x1b\\sixel": "sixel",
    b"\x1b[6n\x1bcwhere": "where",
    b"over\rwritten\x08\x08": "overwritten",
    b"\x9b2J\xc2\x9b2Jc1": "�2Jc1",
    b"\x1b": "",
    b"\x1b]0;never ended": "",
    b"\0bell\x07": "bell",
}


@pytest.mark.parametrize("raw", WRITTEN)
def test_what_would_move_the_terminal_is_not_shown(raw: bytes) -> None:
    assert process.plain(raw + b"\r\n") == WRITTEN[raw]


def test_a_builds_lines_are_plain(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as log:
        done = process.run(["printf", r"\033[2J\033]0;x\007one\ntwo\033[0m\n"], log=log)
        log.seek(0)
        assert "\x1b" not in log.read().replace("\\033", "")
    assert done.tail == ("one", "two")
