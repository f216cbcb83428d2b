"""Small files of others: what isn't a regular file is not opened, what is too large isn't read."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from rbuild.errors import UsageError
from rbuild.util.textfile import read_bytes, read_text


def refused(path: Path, limit: int = 100) -> str:
    with pytest.raises(UsageError) as caught:
        read_text(path, limit=limit, where="a.yaml: field")
    assert caught.value.message.startswith(f"a.yaml: field: {path} can't be read: ")
    return caught.value.message


def test_a_regular_file_and_a_link_to_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("ä" * 50)
    (tmp_path / "link").symlink_to(path)
    assert read_text(tmp_path / "link", limit=100) == "ä" * 50
    assert read_bytes(path, limit=100) == path.read_bytes()


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    for name, kind in (("fifo", "a FIFO"), ("zero", "a device"), ("socket", "a socket")):
        assert f"it is {kind}, not a regular file" in refused(tmp_path / name)
    assert "it is a folder" in refused(tmp_path)
    listener.close()


def test_nothing_but_a_regular_file_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = os.open

    def only_look(path: Path, flags: int) -> int:
        assert flags & os.O_PATH, "it was opened"
        return look(path, flags)

    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(os, "open", only_look)
    refused(tmp_path / "fifo")


def test_a_file_that_is_swapped_for_a_fifo_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.touch()
    plain = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda self, **_: plain)
    assert "a FIFO" in refused(path)


def test_one_that_is_too_large_says_its_size(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert "it is 1099511627776 bytes; the limit is 100" in refused(path)
    # Of such a size the kernel says 0.
    assert "larger than the limit of 5 bytes" in refused(Path("/proc/self/status"), limit=5)


def test_other_reasons(tmp_path: Path) -> None:
    assert "No such file or directory" in refused(tmp_path / "none")
    assert "File name too long" in refused(tmp_path / ("x" * 300))
    assert "null" in refused(tmp_path / "x\0y")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "utf-8" in refused(tmp_path / "binary")
