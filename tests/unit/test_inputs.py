"""Inputs beside the sandbox: files that lead elsewhere, never end, or aren't files at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rbuild import textfile
from rbuild.errors import BuildFailed, UsageError

TERABYTE = 1 << 40


def sparse(path: Path, size: int = TERABYTE) -> Path:
    """Make a file that claims to be large and takes no space."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


class TestReadText:
    def test_a_small_file_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "a.yaml"
        path.write_bytes("a: ä\r\nb: 1\n".encode())
        assert textfile.read_text(path, limit=100) == "a: ä\nb: 1\n"

    def test_a_file_of_the_limit_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"x" * 100)
        assert len(textfile.read_bytes(path, limit=100)) == 100
        with pytest.raises(UsageError, match="it has 100 bytes, and may have 99"):
            textfile.read_bytes(path, limit=99)

    def test_a_fifo_is_refused_without_waiting(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="a FIFO, not a regular file"):
            textfile.read_text(fifo(tmp_path / "a"), limit=100)

    @pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/dev/full"])
    def test_a_device_is_refused(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.symlink_to(name)
        with pytest.raises(UsageError, match=rf"{path} can't be read: it is a device"):
            textfile.read_text(path, limit=100)

    def test_a_folder_and_a_missing_file_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="it is a folder"):
            textfile.read_text(tmp_path, limit=100)
        with pytest.raises(UsageError, match=r"p.yaml: base: .*No such file"):
            textfile.read_text(tmp_path / "a", limit=100, where="p.yaml: base")

    def test_a_sparse_file_costs_no_memory(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="may have 1048576"):
            textfile.read_text(sparse(tmp_path / "a"), limit=1 << 20)

    def test_a_file_of_no_size_is_counted_as_it_comes(self) -> None:
        path = Path("/proc/kallsyms")
        assert path.stat().st_size == 0
        with pytest.raises(UsageError, match="more than 1024 bytes"):
            textfile.read_text(path, limit=1024)

    def test_what_is_not_utf8_is_refused_or_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"ab\xff")
        with pytest.raises(BuildFailed, match="can't decode byte 0xff in position 2"):
            textfile.read_text(path, limit=100, error=BuildFailed)
        assert textfile.read_text(path, limit=100, decoding="replace") == "ab\ufffd"

    def test_the_check_sees_the_file_that_is_read(self, tmp_path: Path) -> None:
        real, link = tmp_path / "real", tmp_path / "link"
        real.write_text("real")
        (tmp_path / "secret").write_text("secret")
        link.symlink_to(real)
        seen: list[Path] = []

        def swap(path: Path) -> None:
            seen.append(path)
            link.unlink()
            link.symlink_to(tmp_path / "secret")

        with textfile.open_regular(link, swap) as file:
            assert file.read() == b"real"
        assert seen == [real]
