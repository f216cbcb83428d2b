"""A cache to which several users wrote: whose it is, and the remedy, but no verdict."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rbuild.cache import directory, entry, integrity
from rbuild.errors import ProcessFailed

from .conftest import Host


@pytest.fixture
def mixed(host: Host, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let an entry of the cache be another user's; return its path."""
    (entry,) = (host.cache / "rootfs").glob("[!.]*")
    real = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        status = real(path)
        fields = list(status)
        fields[4] = 4242 if path == entry or entry in path.parents else os.geteuid()
        return os.stat_result(fields) if path.is_relative_to(host.cache) else status

    monkeypatch.setattr(Path, "lstat", lstat)
    return entry


def denied(path: object) -> PermissionError:
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@pytest.mark.parametrize("command", [["status"], ["setup", "cross"], ["module"]])
def test_metadata_that_cant_be_read_says_whose_it_is(
    host: Host, mixed: Path, monkeypatch, command: list[str]
) -> None:
    real = Path.read_text

    def read_text(path: Path, *more: object, **named: object) -> str:
        if path == mixed / "metadata.json":
            raise denied(path)
        return real(path, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", read_text)
    profile = ["--profile", host.profile] if command == ["module"] else []
    found = host(*command, *profile, code=4)
    assert f"{mixed} belongs to the user 4242" in found.err
    assert f"{mixed}/metadata.json can't be read or written" in found.err
    assert f"Run `sudo chown -R root: {host.cache}`, or" in found.err
    assert "damaged" not in found.err + found.out
    assert mixed.is_dir()


def test_a_lock_that_cant_be_taken_says_whose_it_is(host: Host, mixed: Path, monkeypatch) -> None:
    real = directory.Cache._make_room

    def make(self: directory.Cache, kind: entry.EntryKind) -> None:
        real(self, kind)
        raise denied(mixed / ".lock")

    monkeypatch.setattr(directory.Cache, "_make_room", make)
    found = host("setup", "cross", "--force", code=4)
    assert f"{mixed} belongs to the user 4242" in found.err


def test_what_is_ones_own_and_forbidden(host: Host, monkeypatch) -> None:
    (entry,) = (host.cache / "rootfs").glob("[!.]*")
    monkeypatch.setattr(directory.Cache, "entries", lambda *_: (_ for _ in ()).throw(denied(entry)))
    real = Path.lstat
    monkeypatch.setattr(
        Path,
        "lstat",
        lambda self: os.stat_result([*list(real(self))[:4], 0, *list(real(self))[5:]]),
    )
    found = host("status", code=4)
    assert f"{entry} can't be read or written: Permission denied" in found.err
    assert "chmod -R u+rwX" in found.err


def test_what_is_elsewhere_is_none_of_the_caches(host: Host, monkeypatch) -> None:
    monkeypatch.setattr(
        directory.Cache, "entries", lambda *_: (_ for _ in ()).throw(denied("/etc/shadow"))
    )
    found = host("status", code=4)
    assert "Permission denied (/etc/shadow)" in found.err
    assert "chown" not in found.err


def recorded(tmp_path: Path) -> tuple[Path, entry.IntegrityRecord]:
    entry = tmp_path / "entry"
    (entry / "src").mkdir(parents=True)
    (entry / "src/a").write_text("one")
    return entry, integrity.record(entry, "src")


def test_a_file_that_cant_be_read_isnt_damaged(tmp_path: Path, monkeypatch) -> None:
    entry, made = recorded(tmp_path)

    def unreadable(path: Path) -> str:
        raise denied(path)

    monkeypatch.setattr(integrity, "sha256_file", unreadable)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(PermissionError) as caught:
        integrity.verify_deep(entry, made)
    assert caught.value.filename == str(entry / "src/a")


def test_a_folder_that_cant_be_read_isnt_damaged(tmp_path: Path, monkeypatch) -> None:
    entry, made = recorded(tmp_path)

    def find(argv: list[str], **_: object) -> bytes:
        raise ProcessFailed(tuple(argv), 1, ("find: './a': Permission denied",))

    monkeypatch.setattr(integrity.process, "output", find)
    for look in (integrity.verify_deep, integrity.verify_quick):
        with pytest.raises(PermissionError) as caught:
            look(entry, made)
        assert caught.value.filename == str(entry / "src")


def test_a_manifest_that_cant_be_read_isnt_damaged(tmp_path: Path, monkeypatch) -> None:
    entry, made = recorded(tmp_path)

    def unreadable(path: Path) -> bytes:
        raise denied(path)

    monkeypatch.setattr(Path, "read_bytes", unreadable)
    with pytest.raises(PermissionError):
        integrity.verify_deep(entry, made)
