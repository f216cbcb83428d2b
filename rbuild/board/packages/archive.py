"""An archive of a staging folder that is unpacked over a Pi's root file system."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rbuild.board.staging import MANIFEST, Staged

FIRMWARE = "boot/firmware"
"""Where Raspberry Pi OS and Debian have the partition that the firmware reads."""

MODULES = "usr/lib/modules"
"""Not ``lib``, which is a link there: an archive that had a folder of that name would replace it.
For the same reason none of the folders above a kernel's own is in the archive."""


def place(name: str) -> str:
    """Return where a file of a staging folder belongs on the board."""
    part, _, rest = name.partition("/")
    return f"{ {'firmware': FIRMWARE, 'modules': MODULES}[part] }/{rest}"


def pack(staged: Staged, folder: Path, epoch: int) -> Path:
    """Pack a staging folder in ``folder``, under the name of its prefix; return the archive.

    Names are in order, owners are root, all times are ``epoch``: the same contents give the same
    bytes.
    """
    path = folder / f"{staged.os_prefix}.tar.gz"
    # Neither the time nor the name of the archive is in gzip's header.
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for name, source in sorted(_members(staged)):
            info, content = _member(name, source, epoch)
            tar.addfile(info, content)
            if content is not None:
                content.close()
    return path


def _members(staged: Staged) -> Iterator[tuple[str, Path | bytes]]:
    """Yield each member's name with its source: a path, or the bytes themselves."""
    for top in (staged.firmware, staged.modules):
        for source in (top, *top.rglob("*")):
            yield place(str(source.relative_to(staged.path))), source
    text = json.dumps(manifest(staged), indent=2, sort_keys=True) + "\n"
    yield f"{FIRMWARE}/{staged.os_prefix}/{MANIFEST}", text.encode()


def manifest(staged: Staged) -> dict[str, Any]:
    """Return the manifest with the files' places on the board."""
    files = [{**one, "path": place(one["path"])} for one in staged.manifest["files"]]
    return {**staged.manifest, "files": files}


def _member(
    name: str, source: Path | bytes, epoch: int
) -> tuple[tarfile.TarInfo, IO[bytes] | None]:
    info = tarfile.TarInfo(name)
    info.mtime = epoch
    info.uname = info.gname = "root"
    info.mode = 0o644
    if isinstance(source, bytes):
        info.size = len(source)
        return info, io.BytesIO(source)
    if source.is_dir():
        info.type = tarfile.DIRTYPE
        info.mode = 0o755
        return info, None
    info.size = source.stat().st_size
    return info, source.open("rb")
