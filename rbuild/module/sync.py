"""The inputs of a module: which files they are, and how they are brought to where it is built."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from rbuild.errors import UsageError
from rbuild.sandbox import outputs
from rbuild.util import folders, root, textfile, walk
from rbuild.util.files import read_json, write_json
from rbuild.util.root import Root

PRODUCTS = re.compile(
    r".*\.(o|ko|mod|mod\.c|cmd|symvers|rlib)|modules\.order|\.tmp_.*|\.git|\.svn|"
    r"__pycache__"
)
"""What Kbuild or a version control system leaves in a module's folder: never an input."""

MAX_SOURCES = 10_000
"""More files than this below a module's folder are a mistake in the path."""

NOT_A_MODULES = "PATH must be the module's own folder, not a folder above it."

MAX_SOURCE_BYTES = 256 << 20
"""The bytes of the largest file that may be in a module's folder."""


def is_input(name: str) -> bool:
    """Tell whether a file of that path in a module's folder is brought into its build.

    Otherwise the build's own file of that name, or none, is meant.
    """
    parts = Path(name).parts
    return ".." not in parts and not any(PRODUCTS.fullmatch(one) for one in parts)


def must_be_module(source: Path) -> None:
    """Raise UsageError unless a folder is a module's."""
    if not source.is_dir():
        raise UsageError(f"{source} is not a folder.", hint="Name the folder of the module.")
    if not any((source / name).is_file() for name in ("Kbuild", "Makefile")):
        raise UsageError(
            f"{source} has neither a Kbuild nor a Makefile.",
            hint="A module's folder needs a Kbuild file with a line such as `obj-m += name.o`.",
        )
    if (source / "init/Kconfig").exists():
        raise UsageError(f"{source} is a kernel tree, not a module.")


def list_inputs(
    source: Path, only: tuple[str, ...] = (), own: Root | None = None
) -> Iterator[Path]:
    """Yield the input files below a folder, relative to it, in order.

    Links are followed; what is neither a file nor a folder, such as an editor's lock that links
    to nothing, is no input.  Raises UsageError for a link that leads out of ``own``.
    """
    own = own or root.of(source)
    count = visited = 0
    # Where each folder really is: a path of many links takes long to resolve.
    places = {source: source.resolve()}
    for folder, subfolders, names in os.walk(source, followlinks=True, onerror=_must_be_read):
        here = Path(folder)
        top = here == source
        visited += 1
        if visited > MAX_SOURCES:
            raise UsageError(f"{source} has more than {MAX_SOURCES} folders.", hint=NOT_A_MODULES)
        if walk.is_too_deep(here.relative_to(source).as_posix()):
            raise UsageError(f"{source} has folders {walk.TOO_DEEP}.", hint=NOT_A_MODULES)
        below = sorted(n for n in subfolders if not PRODUCTS.fullmatch(n))
        below = [n for n in below if not top or not only or n in only]
        for name in below:
            with contextlib.suppress(FileNotFoundError):
                places[here / name] = root.resolved(places[here] / name)
        found = [n for n in below if here / n in places]
        subfolders[:] = [n for n in found if not _leads_out(here / n, places)]
        for name in subfolders:
            own.check(here / name, file=places[here / name])
        for name in sorted(names):
            if PRODUCTS.fullmatch(name) or (top and only and name not in only):
                continue
            _must_be_within(here / name, own)
            if not (here / name).is_file():
                continue
            count += 1
            if count > MAX_SOURCES:
                raise UsageError(f"{source} has more than {MAX_SOURCES} files.", hint=NOT_A_MODULES)
            yield (here / name).relative_to(source)


def _must_be_within(path: Path, own: Root) -> None:
    """Raise UsageError for a link to anything that isn't below ``own``."""
    if path.is_symlink() and path.exists():
        with contextlib.suppress(FileNotFoundError):
            own.check(path)


def _must_be_read(error: OSError) -> None:
    """Raise UsageError for a folder that can't be read, but not for one that has gone."""
    if error.errno not in walk.VANISHED:
        raise UsageError(
            f"{str(error.filename)[:200]} can't be read: {error.strerror}.",
            hint="A module's folder must be readable as a whole.",
        ) from error


def _leads_out(folder: Path, places: Mapping[Path, Path]) -> bool:
    """Tell whether a linked folder is one of those that led to it, or a kernel's."""
    if not folder.is_symlink():
        return False
    place = places[folder]
    if any((place / name).exists() for name in ("init/Kconfig", "include/config")):
        return True
    return any(place == places.get(parent, parent) for parent in folder.parents)


def inputs_list(copy: Path) -> Path:
    """Return the file with the names of what ``sync`` has brought into a folder.

    It is beside the folder, where no build can write, since these names are removed.
    """
    return copy.with_name(f".{copy.name}-inputs")


def sync(
    source: Path, target: Path, only: tuple[str, ...] = (), own: Root | None = None
) -> dict[str, str]:
    """Make the inputs in ``target`` those of ``source``; what make built there stays.

    Links may lead to what is below ``own``, by default the folder's own root.  Returns the
    fingerprint of each input as it was copied.

    A file is written only if its content differs, and then with the time of now: whatever make
    has built from the old content is older.  What was built in a future that the clock has come
    back from would be newer: it is removed.
    """
    own = own or root.of(source)
    wanted = {str(path) for path in list_inputs(source, only, own)}
    target.mkdir(parents=True, exist_ok=True)
    # A build that was killed may have left links, and folders that can't be entered.
    outputs.sanitise(target)
    listed = inputs_list(target)
    known = _read_names(listed)
    if known is None:
        # Nothing tells the inputs of before from what make built.
        folders.empty(target)
        known = frozenset()
    with folders.opened(target) as copy:
        # What is gone goes first: a folder may now stand where a file was.
        for name in sorted(known - wanted):
            folders.remove_below(copy, name)
        # If this is interrupted, the next sync must know of all that may be there.
        if known != known | wanted:
            _write_names(listed, known | wanted)
        brought = {name: _bring(source / name, copy, name, own) for name in sorted(wanted)}
    if any(is_new for is_new, _ in brought.values()):
        _forget_the_future(target, wanted)
    if known != wanted:
        _write_names(listed, wanted)
    return {name: fingerprint for name, (_, fingerprint) in brought.items() if fingerprint}


def _forget_the_future(target: Path, wanted: Collection[str]) -> None:
    """Remove what was built later than now: make would take it for newer than any change."""
    now = time.time()
    for visit in walk.walk(target):
        for entry in visit.files:
            status = visit.status(entry)
            if status is None or not stat.S_ISREG(status.st_mode) or status.st_mtime <= now:
                continue
            if visit.path(entry.name) in wanted:
                os.utime(entry.name, dir_fd=visit.descriptor, follow_symlinks=False)
            else:
                folders.remove_below(visit.descriptor, entry.name)


def _bring(new: Path, copy: int, name: str, own: Root) -> tuple[bool, str | None]:
    """Make a file's copy, by its path below an open folder, equal to it, unless it is.

    Tell whether it was written, and its fingerprint.  A file that has gone meanwhile is no input.
    """
    try:
        content, mode = read_input(new, own)
    except FileNotFoundError:
        folders.remove_below(copy, name)
        return False, None
    fingerprint = fingerprint_of(content, mode)
    old = folders.read_below(copy, name)
    if old is not None and old == (content, mode):
        return False, fingerprint
    if old is not None and old[0] == content:
        with folders.parent_of(copy, name) as (parent, last):
            walk.chmod(parent, last, mode)
        return False, fingerprint
    folders.write_below(copy, name, content, mode)
    return True, fingerprint


def read_input(path: Path, own: Root) -> tuple[bytes, int]:
    """Return an input's content and mode, both of the very file that lies below ``own``.

    Raises UsageError if it doesn't lie there or can't be read, FileNotFoundError if it has gone.
    """
    try:
        with own.open(path) as file:
            mode = os.fstat(file.fileno()).st_mode & 0o755
            return textfile.read_all(file, MAX_SOURCE_BYTES), mode
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror or error}.") from error


def _read_names(path: Path) -> frozenset[str] | None:
    """Return the names of the inputs that a sync has left; None if that isn't known."""
    return folders.names_of((read_json(path) or {}).get("files"))


def _write_names(path: Path, names: Collection[str]) -> None:
    write_json(path, {"files": sorted(names)})


def fingerprint_of(content: bytes, mode: int) -> str:
    """Return what identifies an input: its content, and whether it can be run."""
    found = hashlib.sha256(content).hexdigest()
    return f"{found} x" if mode & 0o100 else found
