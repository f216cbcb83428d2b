"""The native layer of a hybrid: which files of the native rootfs cover which of the base's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rbuild.sandbox.runtime import Bind
from rbuild.specs.environment import Environment
from rbuild.util.files import sync_path
from rbuild.util.folders import remove_tree
from rbuild.util.hashes import digest

PROGRAM_FOLDERS = ("/usr/bin", "/usr/sbin")
LINKS_MAX = 40
"""As many symbolic links as the kernel follows in one path (path_resolution(7))."""


@dataclass(frozen=True)
class Layer:
    """The binds of a hybrid, and the programs that have no native twin and stay emulated."""

    binds: tuple[Bind, ...]
    emulated: tuple[str, ...]


def layer(environment: Environment, base: Path, native: Path) -> Layer:
    """Return what is bound from the rootfs at ``native`` over the one at ``base``."""
    assert environment.native is not None
    host = environment.native.architecture
    binds: dict[str, Bind] = {}
    missing: list[str] = []
    folders = [host.fill(name) for name in environment.folders]
    for name in folders:
        source, target = resolve(native, name), resolve(base, name)
        if source is not None and target is not None:
            binds[target] = Bind(native / source.lstrip("/"), target)
    for program in environment.programs:
        pair = _twins(program, base, native)
        if pair is None:
            missing.append(program)
        elif not _within(pair[1], folders):
            binds[pair[1]] = Bind(native / pair[0].lstrip("/"), pair[1])
    return Layer(tuple(binds.values()), tuple(missing))


def merged(binds: Sequence[Bind], base: Path, shelf: Path, stamp: str) -> tuple[Bind, ...]:
    """Return binds that show the same, with one for each folder in which single files are bound.

    Each bind costs every start of a sandbox nearly a millisecond, and there are some eighty
    programs.  So a folder on ``shelf`` is made once, of hard links to the base's files and to the
    native ones instead of their twins; ``stamp`` names the rootfses that it is made from.  Where
    the file system allows no such links, the binds stay as they are.
    """
    singles: dict[str, list[Bind]] = {}
    for bind in binds:
        if not bind.source.is_dir():
            singles.setdefault(str(PurePosixPath(bind.target).parent), []).append(bind)
    kept = [bind for bind in binds if bind.source.is_dir()]
    for target, files in singles.items():
        folder = _linked(base / target.lstrip("/"), files, shelf, stamp) if len(files) > 1 else None
        kept += files if folder is None else [Bind(folder, target)]
    return tuple(kept)


def _linked(origin: Path, files: Sequence[Bind], shelf: Path, stamp: str) -> Path | None:
    """Return a folder like ``origin`` with the files of the binds in it; None if it can't be."""
    listed = sorted((str(bind.source), bind.target) for bind in files)
    place = shelf / digest([stamp, str(origin), listed])
    if place.is_dir():
        return place
    natives = {PurePosixPath(bind.target).name: bind.source for bind in files}
    aside = None
    try:
        shelf.mkdir(exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".", dir=shelf))
        for path in origin.iterdir():
            os.link(natives.get(path.name, path), aside / path.name, follow_symlinks=False)
        aside.chmod(0o755)
        sync_path(aside)
        aside.rename(place)
    except OSError:
        if aside is not None:
            remove_tree(aside)
        # Another rbuild may have made the same one meanwhile.
        return place if place.is_dir() else None
    return place


def resolve(root: Path, path: str) -> str | None:
    """Follow ``path`` as if ``root`` were the root; None if nothing is there."""
    pending = list(reversed(PurePosixPath(path).parts[1:]))
    current: list[str] = []
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            current = current[:-1]
            continue
        here = root.joinpath(*current, part)
        if here.is_symlink():
            links += 1
            if links > LINKS_MAX:
                return None
            target = PurePosixPath(here.readlink())
            if target.is_absolute():
                current = []
            pending += [piece for piece in reversed(target.parts) if piece != "/"]
        elif here.exists():
            current.append(part)
        else:
            return None
    return "/" + "/".join(current)


def _twins(program: str, base: Path, native: Path) -> tuple[str, str] | None:
    """Return the program's real path in the native rootfs and in the base, if both have it."""
    for folder in PROGRAM_FOLDERS:
        source = resolve(native, f"{folder}/{program}")
        target = resolve(base, f"{folder}/{program}")
        if source is not None and target is not None:
            return source, target
    return None


def _within(target: str, folders: Iterable[str]) -> bool:
    """Tell whether a folder of the layer already covers ``target``."""
    return any(target.startswith(f"{folder}/") for folder in folders)
