"""Hostile tarballs: refused, with nothing left and nothing written outside."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rbuild.source import unpack
from tests.unit.conftest import Host

Add = Callable[[tarfile.TarFile], None]


def member(name: str, text: bytes = b"x", **fields: object) -> Add:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(text) if "type" not in fields else 0
        for field, value in fields.items():
            setattr(info, field, value)
        archive.addfile(info, io.BytesIO(text))

    return add


def all_of(*adds: Add) -> Add:
    def add(archive: tarfile.TarFile) -> None:
        for one in adds:
            one(archive)

    return add


HOSTILE = {
    "dots": (member("linux/../../../escaped"), "can't be unpacked"),
    "a link out": (member("linux/Kbuild.x", type=tarfile.SYMTYPE, linkname="../../secret"), "link"),
    "an absolute link": (member("linux/x", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "link"),
    "written through a link": (
        all_of(
            member("linux/sub", type=tarfile.SYMTYPE, linkname="/tmp"),
            member("linux/sub/rbuild-escaped"),
        ),
        "",
    ),
    "rights": (member("linux/tool", mode=0o6755), "runs with the rights of its owner or group"),
    "a pipe": (member("linux/pipe", type=tarfile.FIFOTYPE), "a pipe"),
}


def tarball(host: Host, add: Add) -> Path:
    path = host.folder / "linux.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(host.tree, "linux")
        add(archive)
    return path


def profile(host: Host, packed: Path) -> Path:
    import hashlib

    sha256 = hashlib.sha256(packed.read_bytes()).hexdigest()
    return host.write_profile(
        f"name: packed\nsource: {{tarball: 'file://{packed}', sha256: '{sha256}'}}\n"
        "patches: false\nconfig: {base: tinyconfig, options: {RUST: y}}\n",
        "packed",
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_source_has_is_refused(host: Host, name: str) -> None:
    add, said = HOSTILE[name]
    (host.folder / "secret").write_text("mine")
    words = ("module", host.write_module(), "--profile", profile(host, tarball(host, add)))
    found = host(*words, code=4)
    assert said in found.err
    assert not (host.cache / "escaped").exists()
    assert not (host.folder / "escaped").exists()
    assert not Path("/tmp/rbuild-escaped").exists()
    assert not list(host.cache.glob("trees/[!.]*"))


def test_what_a_source_has_is_taken(host: Host) -> None:
    add = all_of(
        member("linux/arch/link", type=tarfile.SYMTYPE, linkname="../Kbuild"),
        member("linux/again", type=tarfile.LNKTYPE, linkname="linux/Kbuild"),
        member("linux/script", mode=0o755),
    )
    host("module", host.write_module(), "--profile", profile(host, tarball(host, add)))
    (tree,) = host.cache.glob("trees/[!.]*/src")
    assert os.access(tree / "script", os.X_OK)
    assert (tree / "arch/link").is_symlink()


def test_ten_gigabytes_of_zeros_are_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MAX_BYTES", 1 << 20)
    add = member("linux/zeros", bytes(4 << 20))
    words = ("module", host.write_module(), "--profile", profile(host, tarball(host, add)))
    assert "unpacks to more than 1.0 MiB" in host(*words, code=4).err
    monkeypatch.setattr(unpack, "MAX_BYTES", 1 << 30)
    monkeypatch.setattr(unpack, "MAX_FILE_BYTES", 1 << 20)
    assert "has a file of more than 1.0 MiB" in host(*words, code=4).err
    monkeypatch.setattr(unpack, "MAX_FILE_BYTES", 1 << 30)
    host(*words)


def test_what_is_damaged_is_told(host: Host) -> None:
    packed = tarball(host, member("linux/x", os.urandom(100_000)))
    packed.write_bytes(packed.read_bytes()[:-5000])
    words = ("module", host.write_module(), "--profile", profile(host, packed))
    found = host(*words, code=4)
    assert "can't be unpacked" in found.err
    assert "unexpected end of file" in found.err


@pytest.mark.parametrize("packer", ["xz", "gzip", "bzip2"])
def test_any_packer_will_do(host: Host, packer: str) -> None:
    form = {"xz": "w:xz", "gzip": "w:gz", "bzip2": "w:bz2"}[packer]
    path = host.folder / "linux.tarball"
    with tarfile.open(path, form) as archive:  # type: ignore[call-overload]
        archive.add(host.tree, "linux")
    host("module", host.write_module(), "--profile", profile(host, path))
