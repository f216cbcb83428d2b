"""What a board shall have: each part with its place there, and config.txt's lines for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbuild.board.deploy import config
from rbuild.board.deploy.board import MODULES, Board, probe
from rbuild.board.staging import OUT_OF_TREE_FOLDER, Staged
from rbuild.errors import UsageError
from rbuild.module.check import BuiltModule
from rbuild.module.drivers import NAMES
from rbuild.util.hashes import sha256_file

OTHER_KERNEL = "`--kernel` brings the whole kernel; --profile chooses another one to build for."

SPI = "dtparam=spi=on"


@dataclass(frozen=True)
class Part:
    """Something that has a place on the board.

    ``kind`` is one of switch.sh's; ``source`` is the file or folder here; ``files`` the SHA-256
    and the name of each file, relative to the folder that is, or has, the part.
    """

    kind: str
    target: str
    source: Path | None = None
    files: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The last part of its path, there and aside."""
        return self.target.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """Where the names in ``files`` are found, once it is in its place."""
        return self.target if self.kind == "tree" else self.target.rpartition("/")[0]

    @property
    def listed(self) -> str:
        """The files as sha256sum checks them."""
        return "\n".join(f"{digest}  {name}" for digest, name in self.files)

    @property
    def size_bytes(self) -> int:
        """How large it is."""
        if self.source is None:
            return 0
        if self.kind == "file":
            return self.source.stat().st_size
        return sum((self.source / name).stat().st_size for _, name in self.files)


@dataclass(frozen=True)
class Plan:
    """What a board shall have: parts, and the lines of config.txt that use them."""

    parts: tuple[Part, ...]
    lines: tuple[str, ...]


Planner = Callable[[Board], Plan]


def for_release(board: Board, release: str) -> Board:
    """Return the board looked at for modules of a release.

    On a mounted card no kernel runs that could be asked for its own.  Raises UsageError if it is
    another one that runs.
    """
    if board.remote.root:
        return probe(board.remote, board.boot, release)
    _must_run(board, release, "the driver")
    return board


def module_plan(board: Board, built: BuiltModule, release: str, overlays: Sequence[Path]) -> Plan:
    """Return what a module for the kernel that runs there takes: the .ko, overlays, config.txt.

    Others of our drivers, which would bind to the same device, go.  Raises UsageError if the
    board's kernel isn't the one that the module was built for.
    """
    _must_be_for(board, built, release)
    folder = f"{MODULES}/{release}/{OUT_OF_TREE_FOLDER}"
    others = {f"{name}.ko" for name in NAMES.values()} - {built.path.name}
    if built.path.name not in {f"{name}.ko" for name in NAMES.values()}:
        others = set()
    parts = [
        _file(built.path, f"{folder}/{built.path.name}"),
        *(Part("remove", f"{folder}/{name}") for name in sorted(others & set(board.updates))),
        Part("depmod", release),
        *(_file(path, f"{board.overlays}/{path.name}") for path in overlays),
    ]
    lines = [SPI, *(f"dtoverlay={path.stem}" for path in overlays)]
    return Plan(tuple(parts), tuple(lines) if overlays else ())


def kernel_plan(board: Board, staged: Staged) -> Plan:
    """Return what a whole kernel takes: a folder of its own to boot from, its modules."""
    parts = [
        _tree(staged.firmware, f"{board.boot}/{staged.os_prefix}", staged),
        _tree(staged.modules, f"{MODULES}/{staged.release}", staged),
    ]
    lines = [line for line in staged.snippet.splitlines() if line and not line.startswith("#")]
    lines = [_command_line(board, line) for line in lines]
    first = next((i for i, line in enumerate(lines) if line.startswith("dtoverlay=")), None)
    if first is not None and SPI not in lines:
        lines.insert(first, SPI)
    return Plan(tuple(part for part in parts if part.files), tuple(lines))


def _must_be_for(board: Board, built: BuiltModule, release: str) -> None:
    host = board.remote.host
    if board.remote.root:
        if release not in board.releases:
            raise UsageError(
                f"{board.remote.root} on {host} has modules of Linux "
                f"{', '.join(board.releases) or 'none'}, not of {release}, "
                f"for which {built.path.name} was built.",
                hint=OTHER_KERNEL,
            )
    else:
        _must_run(board, release, built.path.name)
    if board.vermagic and board.vermagic != built.vermagic:
        raise UsageError(
            f"The modules of {host} have the vermagic {board.vermagic!r}, but {built.path.name} "
            f"has {built.vermagic!r}.",
            hint=OTHER_KERNEL,
        )


def _must_run(board: Board, release: str, what: str) -> None:
    if board.release != release:
        raise UsageError(
            f"{board.remote.host} runs Linux {board.release}, but {what} is built for {release}.",
            hint=OTHER_KERNEL,
        )


def _file(path: Path, target: str) -> Part:
    return Part("file", target, path, ((sha256_file(path), path.name),))


def _tree(source: Path, target: str, staged: Staged) -> Part:
    """Return a folder of a staging folder as a part; its files are those in the manifest."""
    inside = f"{source.relative_to(staged.path)}/"
    files = [
        (one["sha256"], one["path"].removeprefix(inside))
        for one in staged.manifest["files"]
        if one["path"].startswith(inside)
    ]
    return Part("tree", target, source, tuple(files))


def _command_line(board: Board, line: str) -> str:
    """Return a line of the snippet; of ``cmdline=`` the one that names the board's own file.

    What the board's config.txt says of it counts without our block, and below its ``os_prefix``.
    """
    if not line.startswith("cmdline="):
        return line
    name = config.value(board.config, "cmdline", board.around) or "cmdline.txt"
    prefix = config.value(board.config, "os_prefix", board.around) or ""
    return f"cmdline={name}" if name.startswith("/") else f"cmdline=/{prefix}{name}"
