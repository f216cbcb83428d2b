"""Which package, in which version, a pattern or a suite means today.

What was found is remembered for a day, so that not every build asks a mirror.  Where none answers,
the newest that the cache has will do.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from rbuild.cache.directory import Cache
from rbuild.cache.entry import Entry, EntryKind
from rbuild.cache.records import Record, Text
from rbuild.errors import InfrastructureError, UsageError
from rbuild.provision import apt
from rbuild.provision.apt import Package, version_key
from rbuild.provision.prepared import PreparedEnvironment
from rbuild.specs.profile import Source
from rbuild.util.files import read_json, write_json
from rbuild.util.folders import remove_tree
from rbuild.util.hashes import digest

REMEMBERED_S = 24 * 3600
"""For how long an answer of a mirror's is good."""


@dataclass(frozen=True)
class ResolvedPackage:
    """A package that was found, in one version, and the suite that has it."""

    package: str
    version: str
    suite: str

    def __str__(self) -> str:
        return f"{self.package} {self.version} of {self.suite}"

    @property
    def key(self) -> dict[str, object]:
        """What its tree is known by in the cache."""
        return {"package": asdict(self)}


class PackageRecord(Record):
    """What a tree's metadata says of the package that it was."""

    package: Text
    version: Text
    suite: Text


class NoteRecord(PackageRecord):
    """Which package a source means, and when that was found out."""

    at: float


def resolve_package(source: Source, ready: PreparedEnvironment, cache: Cache) -> ResolvedPackage:
    """Return the newest package that a source means: the one remembered, or what a suite has.

    Raises UsageError listing what the suite has if nothing matches, InfrastructureError if no
    mirror answers and the cache has nothing that matches either.
    """
    assert source.debian is not None
    suite = source.suite or ready.environment.base.definition.suite
    note = _note(source, suite, cache)
    if (known := _remembered(note.path)) is not None:
        return known
    with cache.lock(note):
        if (known := _remembered(note.path)) is not None:
            return known
        try:
            offered = _offered(source.debian, suite, note, ready, cache)
        except InfrastructureError as error:
            if (had := _newest(source.debian, _in_store(suite, cache))) is None:
                raise
            found = ResolvedPackage(had.name, had.version, suite)
            cache.console.note(f"{error.message} The cached {found} is used.")
            return found
        if (newest := _newest(source.debian, offered)) is None:
            raise _nothing(source, suite, offered)
        found = ResolvedPackage(newest.name, newest.version, suite)
        write_json(note.path, {**asdict(found), "at": time.time()})
    return found


def forget(source: Source, ready: PreparedEnvironment, cache: Cache) -> None:
    """Forget what was found, since it is no longer there."""
    suite = source.suite or ready.environment.base.definition.suite
    _note(source, suite, cache).path.unlink(missing_ok=True)


def _note(source: Source, suite: str, cache: Cache) -> Entry:
    """Return where the answer for a source is noted: a file among the trees, which isn't one."""
    key = digest([source.debian, suite])
    name = f".resolved-{key}.json"
    return Entry(EntryKind.TREES, name, cache.root / EntryKind.TREES / name)


def _remembered(path: Path) -> ResolvedPackage | None:
    record = NoteRecord.read(read_json(path))
    if record is None or not 0 <= time.time() - record.at < REMEMBERED_S:
        return None
    return ResolvedPackage(record.package, record.version, record.suite)


def _offered(
    pattern: str, suite: str, note: Entry, ready: PreparedEnvironment, cache: Cache
) -> list[Package]:
    """Return what a suite has of packages of the kind that a pattern is of."""
    work = cache.partial(note)
    try:
        key = f"{ready.environment.name} {ready.runtime.name}"
        with cache.console.step(f"Looking for {pattern} in {suite}", key=key) as step:
            return apt.packages(_prefix(pattern), suite, work, ready, cache.console.teller(step))
    finally:
        remove_tree(work)


def _in_store(suite: str, cache: Cache) -> list[Package]:
    """Return what of a suite is in the cache as a tree."""
    found = []
    for entry in cache.entries(EntryKind.TREES):
        record = PackageRecord.read((entry.metadata or {}).get("package"))
        if record is not None and record.suite == suite:
            found.append(Package(record.package, record.version))
    return found


def _newest(pattern: str, offered: Iterable[Package]) -> Package | None:
    matching = [one for one in offered if fnmatchcase(one.name, pattern)]
    return max(matching, key=lambda one: version_key(one.version), default=None)


def _prefix(pattern: str) -> str:
    """Return how names begin that are of the kind that a pattern is of: its words without the last.

    What else there is of that kind is worth listing where nothing matches.
    """
    begin = pattern.replace("?", "*").split("*", 1)[0]
    return begin[: begin.rfind("-") + 1] or begin


def _nothing(source: Source, suite: str, offered: list[Package]) -> UsageError:
    assert source.debian is not None
    newest: dict[str, Package] = {}
    for one in sorted(offered, key=lambda one: version_key(one.version)):
        newest[one.name] = one
    listed = [f"{one.name} {one.version}" for one in newest.values()]
    begin = _prefix(source.debian)
    return UsageError(
        f"Debian {suite} has no package that {source.debian} matches.",
        detail="\n".join(listed) or f"It has none whose name begins with {begin!r}.",
        hint="Name one that it has in the profile's source.debian, or another suite.",
    )
