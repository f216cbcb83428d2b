"""The native layer of a hybrid: which files of the native rootfs cover which of the base's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rbuild.environment import Environment
from rbuild.sandbox import Bind

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
