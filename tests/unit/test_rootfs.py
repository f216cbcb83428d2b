"""A rootfs that an ordinary user unpacks: what a container of it needs, and nothing more."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from rbuild.rootfs import settle, unpacking


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
        settle(root)
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
    settle(root)
    for path in (outside, outside / "tmp"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
