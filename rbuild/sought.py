"""Sources that are sought: which package, in which version, a pattern or a suite means today.

What was found is remembered for a day, so that not every build asks a mirror.  Where none answers,
the newest that the Store has will do.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from rbuild import apt
from rbuild.apt import Package, version_key
from rbuild.errors import InfrastructureError, UsageError
from rbuild.kept import Kept
from rbuild.profile import Source
from rbuild.provision import Ready
from rbuild.store import Entry, Room, Store, digest, read_json, remove_tree, write_json

REMEMBERED_S = 24 * 3600
"""For how long an answer of a mirror's is good."""


@dataclass(frozen=True)
class Sought:
    """A package that was found, in one version, and the suite that has it."""

    package: str
    version: str
    suite: str

    def __str__(self) -> str:
        return f"{self.package} {self.version} of {self.suite}"

    @property
    def key(self) -> dict[str, object]:
        """What its tree is known by in the Store."""
        return {"sought": asdict(self)}


def seek(source: Source, ready: Ready, store: Store) -> Sought:
    """Return the newest package that a source means: the one remembered, or what a suite has.

    Raises UsageError listing what the suite has if nothing matches, InfrastructureError if no
    mirror answers and the Store has nothing that matches either.
    """
    assert source.debian is not None
    suite = source.suite or ready.environment.base.definition.suite
    note = _note(source, suite, store)
    if (known := _remembered(note.path)) is not None:
        return known
    with store.lock(note):
        if (known := _remembered(note.path)) is not None:
            return known
        try:
            offered = _offered(source.debian, suite, note, ready, store)
        except InfrastructureError as error:
            if (had := _newest(source.debian, _in_store(suite, store))) is None:
                raise
            found = Sought(had.name, had.version, suite)
            store.console.note(f"{error.message} The Store's {found} is used.")
            return found
        if (newest := _newest(source.debian, offered)) is None:
            raise _nothing(source, suite, offered)
        found = Sought(newest.name, newest.version, suite)
        write_json(note.path, {**asdict(found), "at": time.time()})
    return found


def forget(source: Source, ready: Ready, store: Store) -> None:
    """Forget what was found, since it is no longer there."""
    suite = source.suite or ready.environment.base.definition.suite
    _note(source, suite, store).path.unlink(missing_ok=True)


def _note(source: Source, suite: str, store: Store) -> Entry:
    """Return where the answer for a source is noted: a file among the trees, which isn't one."""
    key = digest([source.debian, suite])
    name = f".sought-{key}.json"
    return Entry(Room.TREES, name, store.root / Room.TREES / name)


def _remembered(path: Path) -> Sought | None:
    note = Kept(read_json(path) or {})
    try:
        if not 0 <= time.time() - note.number("at") < REMEMBERED_S:
            return None
        return Sought(note.text("package"), note.text("version"), note.text("suite"))
    except ValueError:
        return None


def _offered(pattern: str, suite: str, note: Entry, ready: Ready, store: Store) -> list[Package]:
    """Return what a suite has of packages of the kind that a pattern is of."""
    work = store.partial(note)
    try:
        key = f"{ready.environment.name} {ready.runtime.name}"
        with store.console.step(f"Looking for {pattern} in {suite}", key=key) as step:
            return apt.packages(_prefix(pattern), suite, work, ready, store.console.teller(step))
    finally:
        remove_tree(work)


def _in_store(suite: str, store: Store) -> list[Package]:
    """Return what of a suite is in the Store as a tree."""
    found = []
    for entry in store.entries(Room.TREES):
        with suppress(ValueError):  # most trees weren't sought
            known = Kept(entry.metadata or {}).part("sought")
            if known.text("suite") == suite:
                found.append(Package(known.text("package"), known.text("version")))
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
