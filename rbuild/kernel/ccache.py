"""ccache: the C that was compiled before, taken from a cache instead.

It stands before the compilers in the sandbox's PATH under their names, so that make's command
lines stay as they are: Kbuild records them, and rebuilds anything whose command line changed.  What
a compilation depends on, ccache reads from its arguments, the text of its sources, and a word for
the compiler (ccache(1), "How ccache works"); no sloppiness is allowed, so that the bytes are
those of the compiler.  Nor is its depend mode, which makes a miss cheaper: it doesn't see .incbin,
with which the kernel takes in its vDSO, an initramfs, certificates and its own configuration.

A build that writes into a cache decides what later builds take from it.  So builds share a cache
only if their commands have the same provenance, and a module that isn't rbuild's own only reads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rbuild.cache.entry import Entry, EntryKind
from rbuild.cache.locks import use
from rbuild.provision.prepared import PreparedEnvironment
from rbuild.sandbox.context import BuildContext, CacheUse
from rbuild.sandbox.runtime import PATH, Bind, Job
from rbuild.util.folders import remove_tree
from rbuild.util.hashes import digest

LINKS = "/usr/lib/ccache"
"""Where Debian's package has a link to ccache for each compiler's name."""

FOLDER = "/tmp/ccache"  # noqa: S108 - in the sandbox, on a tmpfs: a rootfs has no folder for it
LOG = "/tmp/ccache-stats.log"  # noqa: S108
TEMPORARY = "/tmp/ccache-temporary"  # noqa: S108
"""Where the cache, the log of its use and temporary files are, in every sandbox."""

CONFIGURATION = "ccache.conf"
"""A build may leave one in the cache; with CCACHE_CONFIGPATH ccache doesn't read it."""

MAX_LOG_BYTES = 64 << 20
"""How much of the log is read: a build can write more than any compilation would."""

MAX_SIZE = "5GiB"
"""How large the cache of an environment may become; what was not used for longest goes."""

MISS = "cache_miss"
HITS = frozenset({"direct_cache_hit", "preprocessed_cache_hit"})
"""What ccache's log of statistics says of a compilation that it looked for."""


@dataclass(frozen=True)
class Share:
    """Which cache a build uses: the one of ``provenance``, which says where its commands come from.

    One that isn't ``writable`` only takes from it.
    """

    provenance: str
    writable: bool = True


@dataclass(frozen=True)
class Ccache:
    """The cache for one environment's compilers, and the log of one job's use of it."""

    folder: Path
    compiler: str
    log: Path
    writable: bool = True

    def around(self, job: Job) -> Job:
        """Return the job with ccache in it."""
        binds = (Bind(self.folder, FOLDER, self.writable), Bind(self.log, LOG, writable=True))
        variables = {
            "PATH": f"{LINKS}:{PATH}",
            "CCACHE_CONFIGPATH": "/dev/null",
            "CCACHE_DIR": FOLDER,
            "CCACHE_MAXSIZE": MAX_SIZE,
            # Instead of the compiler's time and size: what it is made of is in its libraries.
            "CCACHE_COMPILERCHECK": f"string:{self.compiler}",
            "CCACHE_STATSLOG": LOG,
        }
        if not self.writable:
            variables |= {"CCACHE_READONLY": "1", "CCACHE_TEMPDIR": TEMPORARY}
        return replace(job, binds=(*job.binds, *binds), variables={**job.variables, **variables})

    def use(self) -> CacheUse:
        """Return how often the job found what it looked for."""
        hits = misses = read = 0
        with self.log.open(errors="replace") as file:
            while read < MAX_LOG_BYTES and (line := file.readline(256)):
                read += len(line)
                word = line.rstrip("\n")
                hits += word in HITS
                misses += word == MISS
        return CacheUse(hits, misses)


@contextmanager
def opened(
    ready: PreparedEnvironment, context: BuildContext, share: Share | None
) -> Iterator[Ccache | None]:
    """Keep a build's cache open, if it has one, the context wants it, and the rootfs has ccache."""
    if share is None or not context.ccache or not (ready.sandbox.root / LINKS[1:]).is_dir():
        yield None
        return
    entry = _entry(ready, context, share)
    context.cache.get_or_make(entry, lambda: entry.metadata, lambda: _make(entry, ready, context))
    with (
        use(entry.path),
        tempfile.NamedTemporaryFile(prefix="ccache-", dir=context.run_folder) as log,
    ):
        _remove_configuration(entry.path / "cache" / CONFIGURATION)
        yield Ccache(entry.path / "cache", entry.name, Path(log.name), share.writable)


def _remove_configuration(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def _entry(ready: PreparedEnvironment, context: BuildContext, share: Share) -> Entry:
    """Return the place of the cache for an environment's compilers and a provenance.

    Environments share none, though cross and hybrid have the same compiler: that they make the
    same bytes is to be found out, not brought about.  Nor do definitions that differ in anything: a
    variable such as CCACHE_PREFIX is a command.
    """
    environment = ready.environment
    key = digest(
        {
            "toolchain": dict(ready.toolchain),
            "builder": environment.builder.debian,
            "emulated": environment.emulated,
            "definitions": [
                one.definition.model_dump(mode="json", exclude={"description"})
                for one in environment.rootfses
            ],
            "native": [environment.folders, environment.programs],
            "provenance": share.provenance,
        }
    )
    return context.cache.entry(EntryKind.CCACHE, environment.name, key)


def _make(entry: Entry, ready: PreparedEnvironment, context: BuildContext) -> dict[str, Any]:
    partial = context.cache.partial(entry)
    (partial / "cache").mkdir()
    builder = ready.environment.builder.debian
    return context.cache.publish(entry, partial, {"architecture": builder})
