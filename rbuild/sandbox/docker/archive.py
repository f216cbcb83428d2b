"""Tar archives between a folder of the host's and an engine, to the nanosecond.

What comes back is written by a container, so it is believed nothing: see ``Unpacker``.
"""

from __future__ import annotations

import errno
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rbuild.errors import InfrastructureError
from rbuild.sandbox.docker.manifest import NANO, Item, Manifest, Type, item_of, nanoseconds

CHUNK = 1 << 20
"""Bytes that are read and sent at a time."""

MISPLACED = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
        *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
    }
)
"""What the kernel says of a name or a link that no build made; a full disk is no such thing."""

TEMPORARY = ".rbuild-incoming"
"""The name of a file in a folder while it is written."""


@dataclass(frozen=True)
class User:
    """The user whose files they are in a container."""

    uid: int = 0
    gid: int = 0


def pack(
    folder: Path,
    names: Iterable[str],
    user: User,
    *,
    under: str = "",
    told: Callable[[str], None] = lambda _: None,
) -> Iterator[bytes]:
    """Yield a gzipped tar archive of some items in a folder, each below ``under`` in it.

    An item that has gone meanwhile is left out.  ``told`` is called with each name.
    """
    squeezer = zlib.compressobj(1, wbits=31)
    for block in _blocks(folder, names, user, under, told):
        if squeezed := squeezer.compress(block):
            yield squeezed
    yield squeezer.flush()


def _blocks(
    folder: Path, names: Iterable[str], user: User, under: str, told: Callable[[str], None]
) -> Iterator[bytes]:
    for name in names:
        told(name)
        path = folder / name
        try:
            item = item_of(path, path.lstat())
            if item is None:
                continue
            if item.type is not Type.FILE:
                yield header(under + name, item, user)
                continue
            with path.open("rb") as file:
                yield header(under + name, item, user)
                yield from _content(file, item.size)
        except FileNotFoundError:
            continue
    yield tarfile.NUL * 2 * tarfile.BLOCKSIZE


def _content(file: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield exactly ``size`` bytes, whatever becomes of the file meanwhile, and their padding."""
    left = size
    while left:
        block = file.read(min(left, CHUNK)) or tarfile.NUL * min(left, CHUNK)
        left -= len(block)
        yield block
    yield tarfile.NUL * (-size % tarfile.BLOCKSIZE)


def header(name: str, item: Item, user: User) -> bytes:
    """Return what stands before an item's content in an archive."""
    info = tarfile.TarInfo(name)
    info.type = {
        Type.FILE: tarfile.REGTYPE,
        Type.FOLDER: tarfile.DIRTYPE,
        Type.LINK: tarfile.SYMTYPE,
    }[item.type]
    info.mode, info.size, info.linkname = item.mode, item.size, item.target
    info.uid, info.gid = user.uid, user.gid
    if item.type is Type.LINK:
        info.mode = 0o777
    info.mtime, rest = divmod(item.mtime_ns, NANO)
    if rest:
        # tarfile's own would go through a float, which rounds it.
        info.pax_headers = {"mtime": f"{info.mtime}.{rest:09d}"}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def of_bytes(files: Mapping[str, bytes]) -> bytes:
    """Return an archive of files with this content, which root may run."""
    parts = []
    for name, content in files.items():
        parts += [header(name, Item(Type.FILE, 0o755, len(content)), User()), content]
        parts.append(tarfile.NUL * (-len(content) % tarfile.BLOCKSIZE))
    return b"".join([*parts, tarfile.NUL * 2 * tarfile.BLOCKSIZE])


class Stream:
    """The chunks of an answer as a file that can be read, and how many bytes came."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._pending = b""
        self.count = 0

    def read(self, size: int) -> bytes:
        """Return so many bytes, fewer only at the end."""
        parts = [self._pending]
        have = len(self._pending)
        while have < size and (chunk := next(self._chunks, b"")):
            parts.append(chunk)
            have += len(chunk)
            self.count += len(chunk)
        whole = b"".join(parts)
        self._pending = whole[size:]
        return whole[:size]


def hostile(name: str, why: str) -> InfrastructureError:
    """Return the error for an archive that would do harm."""
    return InfrastructureError(
        f"The container sent back {name!r}, {why}; nothing of it was written.",
        hint="What runs in a build is then not to be trusted, or the engine is not.",
    )


@dataclass
class Unpacker:
    """Writes what a container sends into one folder of the host's, and nowhere else.

    Every path is walked from the folder by open descriptors and no link in it is ever followed,
    so that neither ``..`` nor a link, be it in the archive or there before, leads out of it.  Only
    what was announced (``allowed``) is written: as the caller's own, without set-id bits, each
    file aside and then renamed.
    """

    folder: Path
    allowed: Manifest

    def unpack(self, archive: tarfile.TarFile, wanted: Iterable[str]) -> None:
        """Write an archive's members in their order; raises InfrastructureError at a hostile one.

        It must have all that is ``wanted``, and nothing else.
        """
        lacking = set(wanted)
        for member in archive:
            name = member.name
            item = self.allowed.get(name)
            if item is None or name not in lacking:
                raise hostile(name, "which was not asked for")
            if _type_of(member) is not item.type:
                raise hostile(name, "which is no such thing as was announced")
            try:
                with self._parent(name) as (parent, last):
                    self._write(archive, member, item, parent, last)
            except (ValueError, OverflowError) as error:
                raise hostile(name, f"which can't be written: {error}") from error
            except OSError as error:
                if error.errno not in MISPLACED:
                    raise
                raise hostile(name, f"which can't stand there: {error.strerror}") from error
            lacking.remove(name)
        if lacking:
            raise InfrastructureError(
                f"The engine left out {len(lacking)} files of what the container wrote, "
                f"such as {min(lacking)!r}."
            )

    def remove(self, names: Iterable[str]) -> None:
        """Remove items, a folder's content before it; a folder that isn't empty stays."""
        for name in names:
            with suppress(OSError), self._parent(name) as (parent, last):
                try:
                    os.unlink(last, dir_fd=parent)
                except IsADirectoryError:
                    os.rmdir(last, dir_fd=parent)

    @contextmanager
    def _parent(self, name: str) -> Iterator[tuple[int, str]]:
        """Open the folder that an item is in, without following any link on the way."""
        *folders, last = parts_of(name)
        here = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in folders:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                try:
                    below = os.open(part, flags, dir_fd=here)
                except NotADirectoryError as error:
                    raise hostile(name, "which is below a link") from error
                os.close(here)
                here = below
            yield here, last
        finally:
            os.close(here)

    def _write(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, item: Item, parent: int, last: str
    ) -> None:
        if item.type is Type.FOLDER:
            with suppress(FileExistsError):
                os.mkdir(last, 0o700, dir_fd=parent)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            folder = os.open(last, flags, dir_fd=parent)
            try:
                os.fchmod(folder, item.mode | 0o700)
            finally:
                os.close(folder)
            return
        with suppress(FileNotFoundError):
            os.unlink(TEMPORARY, dir_fd=parent)
        if item.type is Type.LINK:
            os.symlink(member.linkname, TEMPORARY, dir_fd=parent)
        else:
            content = archive.extractfile(member)
            assert content is not None
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(TEMPORARY, flags, 0o600, dir_fd=parent), "wb") as file:  # noqa: PTH123
                shutil.copyfileobj(content, file, CHUNK)
                file.flush()
                os.fchmod(file.fileno(), item.mode)
                when = mtime_ns(member)
                os.utime(file.fileno(), ns=(when, when))
        os.replace(TEMPORARY, last, src_dir_fd=parent, dst_dir_fd=parent)


def parts_of(name: str) -> list[str]:
    """Return the parts of a relative path; raises InfrastructureError if it could lead out."""
    parts = name.split("/")
    if any(part in {"", ".", ".."} for part in parts) or "\0" in name:
        raise hostile(name, "a path that could lead out of its folder")
    return parts


def mtime_ns(member: tarfile.TarInfo) -> int:
    """Return when a member was last changed, in nanoseconds since the epoch."""
    text = member.pax_headers.get("mtime")
    return int(member.mtime) * NANO if text is None else nanoseconds(text)


def _type_of(member: tarfile.TarInfo) -> Type | None:
    if member.isreg():
        return Type.FILE
    if member.isdir():
        return Type.FOLDER
    return Type.LINK if member.issym() else None
