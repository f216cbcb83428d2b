"""A rootfs that an ordinary user unpacks: what a container of it needs, and nothing more."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from rbuild.errors import InfrastructureError, ProcessFailed
from rbuild.provision import dockerfile, rootfs
from rbuild.provision.mmdebstrap import fix_modes, unpacking
from rbuild.util import pipe


def packed(modes: dict[str, int]) -> bytes:
    """Return a tar with these files and, by a slash at their end, folders."""
    text = io.BytesIO()
    with tarfile.open(fileobj=text, mode="w") as archive:
        for name, mode in modes.items():
            info = tarfile.TarInfo(name)
            info.mode = mode
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(info)
    return text.getvalue()


@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_others_can_use_it_whatever_the_umask(tmp_path: Path, prefix: str, umask: int) -> None:
    wanted = {
        "tmp/": 0o1777,
        "var/": 0o755,
        "var/tmp/": 0o1777,
        "etc/": 0o555,
        "etc/hostname": 0o644,
        "dev/": 0o755,
        "dev/null": 0o666,
        "usr/": 0o755,
        "usr/share/": 0o755,
        "usr/share/dev/": 0o755,
        "usr/share/dev/x": 0o644,
        "usr/bin/": 0o755,
        "usr/bin/su": 0o4755,
    }
    before = os.umask(umask)
    try:
        root = tmp_path / "root"
        root.mkdir()
        content = packed({f"{prefix}{name}": mode for name, mode in wanted.items()})
        subprocess.run(unpacking(root), input=content, check=True)
        fix_modes(root)
    finally:
        os.umask(before)
    found = {
        f"{path.relative_to(root)}{'/' * path.is_dir()}": stat.S_IMODE(path.stat().st_mode)
        for path in root.rglob("*")
    }
    # What is the user's own needn't be set-user-ID; devices are the sandbox's.
    expected = {**wanted, "usr/bin/su": 0o755}
    del expected["dev/null"]
    if os.geteuid() != 0:  # to root, all can be written
        expected["etc/"] = 0o755
    assert found == expected
    assert stat.S_IMODE(root.stat().st_mode) == 0o755


def test_temporary_folders_that_lead_elsewhere_are_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "tmp").mkdir(parents=True)
    outside.chmod(0o700)
    (outside / "tmp").chmod(0o700)
    root = tmp_path / "root"
    root.mkdir()
    (root / "tmp").symlink_to(outside)
    (root / "var").symlink_to(outside)
    fix_modes(root)
    for path in (outside, outside / "tmp"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_padding_that_comes_late_breaks_no_pipe(tmp_path: Path) -> None:
    """tar reads whole records of 20 blocks up to the archive's end, and not what follows.

    What mmdebstrap writes is its own entries of /dev before the archive of a tar, which is padded
    to whole records, so that some blocks may follow the record that the archive ends in.
    """
    root, archive = tmp_path / "root", tmp_path / "archive"
    root.mkdir()
    archive.write_bytes(packed({"etc/": 0o755, "etc/hostname": 0o644}))
    assert archive.stat().st_size == tarfile.RECORDSIZE
    script = 'cat "$1"; until [ -e "$2" ]; do sleep 0.01; done; sleep 0.5; head -c 7680 /dev/zero'
    producer = ["sh", "-ec", script, "sh", str(archive), str(root / "etc/hostname")]
    lines: list[str] = []
    pipe.pipe(producer, unpacking(root), lines.append)
    assert lines == []
    assert (root / "etc/hostname").exists()


@pytest.mark.parametrize("padding", [0, 1 << 20])
def test_an_exported_image_ends_before_its_stream(tmp_path: Path, padding: int) -> None:
    root = tmp_path / "root"
    dockerfile._unpack(iter([packed({"etc/": 0o755}), *[bytes(1024)] * (padding >> 10)]), root)
    assert (root / "etc").is_dir()


def test_an_export_that_is_no_tar_is_told_in_tars_words(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="can't be unpacked") as caught:
        dockerfile._unpack(iter([b"x" * 1024] * 4096), tmp_path / "root")
    assert "does not look like a tar archive" in caught.value.detail


def test_tars_own_words_are_told(tmp_path: Path) -> None:
    """Of the tar that unpacks, and of the one that mmdebstrap runs."""
    words = ("tar: Unaligned block (100 bytes) in archive", "tar: Error is not recoverable")
    outer = rootfs._explain(ProcessFailed(tuple(unpacking(tmp_path)), 2, words), "cross")
    assert outer.message == "tar failed to unpack cross (status 2)."
    assert outer.detail == "\n".join(words)
    words = ("tar: ./x: Cannot open: Permission denied", "done", "E: tar failed: 512")
    inner = rootfs._explain(ProcessFailed(("mmdebstrap",), 1, words), "cross")
    assert inner.detail == f"{words[0]}\n{words[2]}"
