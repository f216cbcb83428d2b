"""Symbols: what a kernel that isn't built would export, as its source and configuration tell.

A Module.symvers is written when a kernel is built.  Before that, the index of the source's exports
tells which file has a symbol, and Kbuild's makefiles which files the configuration compiles.  What
can't be told so is neither accepted nor refused.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter

from rbuild.kernel.kbuild import Kbuild
from rbuild.sandbox.runtime import KDIR, MODULE, SRC, Job
from rbuild.source import symbol_index
from rbuild.source.preprocessor import truth
from rbuild.source.symbol_index import MAX_SOURCE_BYTES, Index, Site
from rbuild.source.tree import Tree
from rbuild.util import textfile
from rbuild.util.files import write_text

MAX_PARTS = 5
"""How many parts of parts an object may have."""

MAKEFILE = Path(__file__).with_name("objects.mk")
OBJECT = re.compile(r"[\w./+,-]+\.o")

COPY = "/tmp/kdir"  # noqa: S108 - in the sandbox
LIST_OBJECTS = (
    f"mkdir {COPY}; tar -C {KDIR} --exclude=./rust -cf - . | tar -C {COPY} -xf -; "
    f'"$@" >{MODULE}/objects'
)
"""Calls make on a copy of the KDIR: the kernel's Makefile writes there whatever it is asked for."""


class Answer(Enum):
    """Whether a kernel exports a symbol."""

    YES = "exported"
    NO = "not exported"
    UNKNOWN = "not to be told by reading"


@dataclass(frozen=True)
class Exports:
    """What a configured kernel exports: an index, the objects it consists of, and its options.

    ``objects`` is None where Kbuild didn't tell them; ``arch`` is Kbuild's ARCH.
    """

    index: Index
    objects: frozenset[str] | None
    config: Mapping[str, str]
    arch: str
    more: frozenset[str] = frozenset()
    """Names that are exported besides: those of Rust's crates."""

    @cached_property
    def has(self) -> frozenset[str]:
        """What the architecture's headers say that it has."""
        return frozenset([*self.index.has.get("", ()), *self.index.has.get(self.arch, ())])

    def find(self, name: str) -> Answer:
        """Tell whether a symbol is exported."""
        if name in self.more:
            return Answer.YES
        answers = {self._at(site) for site in self.index.sites(name)}
        for one in (Answer.YES, Answer.UNKNOWN):
            if one in answers:
                return one
        return Answer.UNKNOWN if self.index.pattern.fullmatch(name) else Answer.NO

    def _at(self, site: Site) -> Answer:
        holds = truth(site.condition, self.config, self.has)
        if holds is False:
            return Answer.NO
        if self.objects is None:
            return Answer.UNKNOWN
        if site.object in self.objects:
            return Answer.YES if holds else Answer.UNKNOWN
        return Answer.UNKNOWN if self._may_be_included(site.file, set()) else Answer.NO

    def _may_be_included(self, file: str, seen: set[str]) -> bool:
        """Tell whether a file may be a part of another one that is compiled."""
        if file.endswith(".h"):
            return True
        seen.add(file)
        assert self.objects is not None
        return any(
            Site(one).object in self.objects or self._may_be_included(one, seen)
            for one in self.index.included.get(Path(file).name, ())
            if one not in seen
        )


EMPTY = Index((), (), "", (), {}, {})


def listed(names: frozenset[str]) -> Exports:
    """Return what a kernel exports that has a list of it: a Module.symvers."""
    return Exports(EMPTY, frozenset(), {}, "", names)


RULE = re.compile(
    r"^[ \t]*(?P<head>[\w.-]+?)-(?:y|m|objs|\$\(CONFIG_(?P<option>\w+)\))[ \t]*[:+]?="
    r"(?P<parts>.*)$",
    re.M,
)
"""What something consists of, in a Kbuild file (Documentation/kbuild/makefiles.rst)."""


def option_off(tree: Path, file: str, config: Mapping[str, str]) -> str | None:
    """Return the option for want of which a file of a tree isn't compiled, if a rule names one."""
    folder, target = tree / Path(file).parent, f"{Path(file).stem}.o"
    while folder != tree and tree in folder.parents:
        above = f"{folder.name}/"
        for _ in range(MAX_PARTS):
            rules = [
                one for one in RULE.finditer(_makefile(folder)) if target in one["parts"].split()
            ]
            for one in rules:
                if one["option"] is not None and config.get(one["option"], "n") == "n":
                    return one["option"]
            heads = [one["head"] for one in rules if one["head"] not in {"obj", "lib"}]
            if not heads:
                break
            target = f"{heads[0]}.o"
        folder, target = folder.parent, above
    return None


def _makefile(folder: Path) -> str:
    for name in ("Kbuild", "Makefile"):
        if (folder / name).is_file():
            text = textfile.read_text(folder / name, limit=MAX_SOURCE_BYTES, decoding="replace")
            return text.replace("\\\n", " ")
    return ""


def index(tree: Tree) -> Index:
    """Return what a tree exports in any configuration; read once, then remembered."""
    path = _index_file(tree)
    adapter = TypeAdapter(Index)
    try:
        checksum, _, content = path.read_text().partition("\n")
        if checksum == _checksum(content):
            return adapter.validate_json(content)
    except (FileNotFoundError, ValueError):  # not there, or of another rbuild
        pass
    found = symbol_index.read(tree.path)
    content = adapter.dump_json(found).decode()
    write_text(path, f"{_checksum(content)}\n{content}", synced=True)
    return found


def _checksum(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def is_known(tree: Tree) -> bool:
    """Tell whether ``index`` answers at once."""
    return _index_file(tree).exists()


def objects(kbuild: Kbuild, path: Path) -> frozenset[str] | None:
    """Return the objects that a configured kernel consists of; asked once, then in ``path``.

    None if its Makefile has another target than Linux 6.1's for all of the source.  Raises
    BuildFailed where Kbuild fails.
    """
    if not path.exists():
        with kbuild.context.cache.scratch("objects") as folder:
            listing = f"{MODULE}/{MAKEFILE.name}"
            (folder / MAKEFILE.name).write_bytes(MAKEFILE.read_bytes())
            own = ["-s", f"O={COPY}", f"build=-f {listing} list={listing} obj"]
            make = kbuild.job(["."], extra=own).argv
            argv = ["sh", "-euc", LIST_OBJECTS, "objects", *make]
            job = Job(argv, kbuild.binds(folder), SRC, kbuild.environment())
            kbuild.do(job, "Listing what the kernel consists of")
            listed = textfile.read_text(folder / "objects", limit=MAX_SOURCE_BYTES)
        names = {os.path.normpath(line) for line in listed.splitlines() if OBJECT.fullmatch(line)}
        write_text(path, "".join(f"{name}\n" for name in sorted(names)), synced=True)
    return frozenset(textfile.read_text(path, limit=MAX_SOURCE_BYTES).split()) or None


def _index_file(tree: Tree) -> Path:
    return tree.path.parent / "exports.json"
