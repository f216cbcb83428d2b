"""Git sources: which commit a ref is today, and that commit's files."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from rbuild.cache.directory import Cache
from rbuild.cache.entry import Entry, EntryKind
from rbuild.cache.records import Record, Text, created_s
from rbuild.errors import InfrastructureError, ProcessFailed, TimedOut
from rbuild.util import process
from rbuild.util.files import read_json, write_json
from rbuild.util.folders import remove_tree
from rbuild.util.hashes import digest

COMMIT = re.compile("[0-9a-f]{40}(?:[0-9a-f]{24})?")
"""A commit's whole name, by SHA-1 or SHA-256."""

LISTED = re.compile(r"([0-9a-f]{40,64})\t(\S+)")
"""A line of git ls-remote."""

ANSWERS_WITHIN_S = 20.0
"""How long a repository may take to say what it has."""

TAG_REMEMBERED_S = 24 * 3600
"""For how long a tag is believed to be where it was.  A branch is asked for each time."""

PROTOCOLS = "https:http:ssh:git:file"
"""What git may fetch by (git(1)), also where a server redirects to: nothing that runs a program."""


SETTINGS = (
    *("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"),
    *("-c", "core.attributesFile=/dev/null", "-c", "core.autocrlf=false", "-c", "core.eol=lf"),
    *("-c", "gc.auto=0", "-c", "maintenance.auto=false", "-c", "fetch.recurseSubmodules=false"),
)
"""What no setting of the user's changes: git runs no hooks, writes files as they were committed,
and leaves nothing running in the background."""


class NoteRecord(Record):
    """Which commit a tag was, and when that was found out."""

    commit: Text
    at: float


class CommitRecord(Record):
    """What a tree's metadata says of the commit that it is."""

    url: Text
    ref: Text
    commit: Text


class MovedError(InfrastructureError):
    """A ref is no longer the commit that it was resolved to."""


def resolve(url: str, ref: str, cache: Cache) -> str:
    """Return the commit that a branch, tag or commit of a repository is now.

    Where the repository doesn't answer, the newest commit of that ref in the cache is taken, and a
    note says so.  Raises InfrastructureError if the repository has no such ref, or if it doesn't
    answer and the cache has none.
    """
    if COMMIT.fullmatch(ref):
        return ref
    note = _note(url, ref, cache)
    known = NoteRecord.read(read_json(note.path))
    if known is not None and 0 <= time.time() - known.at < TAG_REMEMBERED_S:
        return known.commit
    try:
        listed = _list(url, ref)
    except InfrastructureError as error:
        if (had := _newest(url, ref, cache)) is None:
            raise
        cache.console.note(f"{error.message} Using the cached commit {had[:12]}.")
        return had
    for name in (f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", ref):
        if (commit := listed.get(name)) is not None and name.startswith("refs/tags/"):
            with cache.lock(note):
                write_json(note.path, {"commit": commit, "at": time.time()})
            return commit
    for name in (f"refs/heads/{ref}", ref):
        if (commit := listed.get(name)) is not None:
            return commit
    raise InfrastructureError(
        f"{url} has no branch or tag {ref!r}.",
        hint="Give a commit as its full hash (40 or 64 hex digits).",
    )


def fetch(url: str, ref: str, commit: str, target: Path, tell: Callable[[str], None]) -> datetime:
    """Put the files of a commit, which ``ref`` is now, into an empty folder; return its date.

    Raises InfrastructureError if it can't be fetched, MovedError if the ref has moved meanwhile.
    """
    git = ["git", "-C", str(target), *SETTINGS]
    # Only to reach the repository are the user's own settings needed: a proxy, a credential.
    env = _environment() | NO_SETTINGS
    try:
        process.run([*git, "init", "--quiet", "--template="], env=env)
        words = [*git, "fetch", "--depth=1", "--progress", "--", url, ref]
        process.run(words, on_line=tell, env=_environment())
        process.run([*git, "checkout", "--quiet", "--detach", "FETCH_HEAD"], env=env)
        got = process.capture([*git, "rev-parse", "HEAD"], env=env)
        words = [*git, "show", "--no-show-signature", "--no-patch", "--format=%cI", "HEAD"]
        date = datetime.fromisoformat(process.capture(words, env=env)).astimezone(UTC)
    except ValueError as error:
        raise InfrastructureError(f"{commit} of {url} has no valid date.") from error
    except ProcessFailed as error:
        raise InfrastructureError(
            f"Fetching {ref} from {url} failed.", detail="\n".join(error.tail[-5:])
        ) from error
    if got != commit:
        raise MovedError(
            f"{ref} of {url} moved from {commit[:12]} to {got[:12]} while it was fetched.",
            hint="Run it again.",
        )
    remove_tree(target / ".git")
    return date


def forget(url: str, ref: str, cache: Cache) -> None:
    """Forget what a tag was, since it has moved."""
    _note(url, ref, cache).path.unlink(missing_ok=True)


def record(url: str, ref: str, commit: str) -> dict[str, object]:
    """Return what a tree's metadata has of its commit, by which ``resolve`` finds it again."""
    return {"git": {"url": url, "ref": ref, "commit": commit}}


def _environment() -> dict[str, str]:
    """Return the environment of git: no variable of git's own is the caller's."""
    # There is nobody to answer.
    return process.environment(
        GIT_ALLOW_PROTOCOL=PROTOCOLS, GIT_TERMINAL_PROMPT="0", GIT_ATTR_NOSYSTEM="1"
    )


NO_SETTINGS = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}
"""Keeps git from the settings of the user and the host, such as filters, which are programs."""


def _list(url: str, ref: str) -> dict[str, str]:
    """Return the commit of each ref of a repository whose name ends in ``ref``."""
    words = ["git", *SETTINGS, "ls-remote", "--quiet", "--", url, ref, f"{ref}^{{}}"]
    try:
        printed = process.output(words, env=_environment(), total_s=ANSWERS_WITHIN_S)
    except (ProcessFailed, TimedOut) as error:
        tail = error.tail if isinstance(error, ProcessFailed) else ()
        raise InfrastructureError(
            f"Looking up {ref} in {url} failed.",
            detail="\n".join(tail[-5:]),
            hint="Check the URL and the network.",
        ) from error
    found = (LISTED.fullmatch(process.plain(line)) for line in printed.splitlines())
    return {match[2]: match[1] for match in found if match is not None}


def _note(url: str, ref: str, cache: Cache) -> Entry:
    """Return where a tag's commit is noted: a file among the trees, which isn't one."""
    name = f".git-{digest([url, ref])}.json"
    return Entry(EntryKind.TREES, name, cache.root / EntryKind.TREES / name)


def _newest(url: str, ref: str, cache: Cache) -> str | None:
    """Return the commit of the newest tree in the cache that is of a ref."""
    found = []
    for entry in cache.entries(EntryKind.TREES):
        record = CommitRecord.read((entry.metadata or {}).get("git"))
        if record is not None and (record.url, record.ref) == (url, ref):
            found.append((created_s(entry), record.commit))
    return max(found)[1] if found else None
