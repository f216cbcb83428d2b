"""ccache: the C that was compiled before, taken from a cache instead.

It stands before the compilers in the sandbox's PATH under their names, so that make's command
lines stay as they are: Kbuild records them, and makes anew whatever has another one.  What a
compilation depends on, ccache reads from its arguments, the text of its sources, and a word for
the compiler (ccache(1), "How ccache works"); no sloppiness is allowed, so that the bytes are
those of the compiler.  Nor is its depend mode, which makes a miss cheaper: it doesn't see .incbin,
with which the kernel takes in its vDSO, an initramfs, certificates and its own configuration.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rbuild.provision import Ready
from rbuild.sandbox import PATH, Bind, Job
from rbuild.session import CacheUse, Session
from rbuild.store import Entry, Room, digest

LINKS = "/usr/lib/ccache"
"""Where Debian's package has a link to ccache for each compiler's name."""

FOLDER = "/tmp/ccache"  # noqa: S108 - in the sandbox, on a tmpfs: a rootfs has no folder for it
LOG = "/tmp/ccache-stats.log"  # noqa: S108
"""Where the cache and the log of its use are, in every sandbox."""

SIZE_MOST = "5GiB"
"""How large the cache of an environment may become; what was not used for longest goes."""

MISS = "cache_miss"
HITS = frozenset({"direct_cache_hit", "preprocessed_cache_hit"})
"""What ccache's log of statistics says of a compilation that it looked for."""


@dataclass(frozen=True)
class Ccache:
    """The cache for one environment's compilers, and the log of one job's use of it."""

    folder: Path
    compiler: str
    log: Path

    def around(self, job: Job) -> Job:
        """Return the job with ccache in it."""
        binds = (Bind(self.folder, FOLDER, writable=True), Bind(self.log, LOG, writable=True))
        variables = {
            "PATH": f"{LINKS}:{PATH}",
            "CCACHE_DIR": FOLDER,
            "CCACHE_MAXSIZE": SIZE_MOST,
            # Instead of the compiler's time and size: what it is made of is in its libraries.
            "CCACHE_COMPILERCHECK": f"string:{self.compiler}",
            "CCACHE_STATSLOG": LOG,
        }
        return replace(job, binds=(*job.binds, *binds), variables={**job.variables, **variables})

    def use(self) -> CacheUse:
        """Return how often the job found what it looked for."""
        words = self.log.read_text(errors="replace").splitlines()
        return CacheUse(sum(word in HITS for word in words), words.count(MISS))


@contextmanager
def opened(ready: Ready, session: Session) -> Iterator[Ccache | None]:
    """Keep the environment's cache open, if the session wants one and the rootfs has ccache."""
    if not session.ccache or not (ready.sandbox.root / LINKS.lstrip("/")).is_dir():
        yield None
        return
    entry = _entry(ready, session)
    _make(entry, ready, session)
    with (
        session.store.use(entry.path),
        tempfile.NamedTemporaryFile(prefix="ccache-", dir=session.run_folder) as log,
    ):
        yield Ccache(entry.path / "cache", entry.name, Path(log.name))


def _entry(ready: Ready, session: Session) -> Entry:
    """Return the place of the cache for an environment's compilers.

    Environments share none, though cross and hybrid have the same compiler: that they make the
    same bytes is to be found out, not brought about.
    """
    environment = ready.environment
    key = digest(
        {
            "toolchain": dict(ready.toolchain),
            "builder": environment.builder.debian,
            "emulated": environment.emulated,
        }
    )
    return session.store.entry(Room.CCACHE, environment.name, key)


def _make(entry: Entry, ready: Ready, session: Session) -> None:
    if entry.metadata is not None:
        return
    with session.store.lock(entry):
        if entry.metadata is not None:
            return
        partial = session.store.partial(entry)
        (partial / "cache").mkdir()
        builder = ready.environment.builder.debian
        session.store.publish(entry, partial, {"architecture": builder})
