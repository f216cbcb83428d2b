"""One invocation of rbuild: its Store, its runtime, how parallel it is, and where it logs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from rbuild.console import Console
from rbuild.kept import Kept
from rbuild.process import Limits, Usage
from rbuild.sandbox import Runtime
from rbuild.store import Store

SILENCE_S = 3600.0
"""A build that writes nothing for so long hangs: no compilation takes that, emulated or not."""


@dataclass(frozen=True)
class CacheUse:
    """How many compilations ccache had the result of, and how many it had not."""

    hits: int = 0
    misses: int = 0

    def __add__(self, other: CacheUse) -> CacheUse:
        return CacheUse(self.hits + other.hits, self.misses + other.misses)


@dataclass(frozen=True)
class Phase:
    """A part of the work with what it took; ``cached`` if the Store had its result already.

    The figures of a cached phase are those of the run that made the result.  ``ccache`` is None
    where ccache was not used.
    """

    name: str
    usage: Usage
    cached: bool = False
    ccache: CacheUse | None = None

    def as_json(self) -> dict[str, object]:
        """Return the phase as the command line's contract has it."""
        return {
            "name": self.name,
            "wall_s": round(self.usage.wall_s, 3),
            "user_s": round(self.usage.user_s, 3),
            "system_s": round(self.usage.system_s, 3),
            "max_rss_bytes": self.usage.max_rss_bytes,
            "cached": self.cached,
            "ccache": None if self.ccache is None else vars(self.ccache),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Phase:
        """Return a phase that was kept in metadata, as a cached one; raise ValueError for none."""
        kept = Kept(data)
        wall, user, system = (kept.number(key) for key in ("wall_s", "user_s", "system_s"))
        usage = Usage(wall, user, system, kept.count("max_rss_bytes"))
        ccache = None
        if data.get("ccache") is not None:
            use = kept.part("ccache")
            ccache = CacheUse(use.count("hits"), use.count("misses"))
        return Phase(kept.text("name"), usage, cached=True, ccache=ccache)

    @staticmethod
    def all_of(kept: Kept) -> tuple[Phase, ...]:
        """Return the phases that metadata has; raise ValueError if it has none."""
        return tuple(Phase.from_json(one.data) for one in kept.parts("phases"))


@dataclass
class Session:
    """What every part of a command needs: made once by the command line, passed down.

    ``ccache`` lets C be taken from a cache of what was compiled before; ``limits`` are those of one
    call of make.  ``line`` is the command
    line that has the same result again, and ``script`` does it without rbuild, where there is one.
    """

    command: str
    store: Store
    runtime: Runtime
    jobs: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    ccache: bool = False
    limits: Limits = field(default_factory=lambda: Limits(silence_s=SILENCE_S))
    line: Callable[[], str] = lambda: "rbuild"
    script: Path | None = None
    settled: dict[str, Any] = field(default_factory=dict)
    _held: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    @property
    def console(self) -> Console:
        """Where this session speaks."""
        return self.store.console

    @cached_property
    def run_folder(self) -> Path:
        """The folder for this run's log and result, made when first needed."""
        folder = self.store.new_run(self.command)
        self._held.enter_context(self.store.use(folder))
        return folder

    def reproduce(self) -> dict[str, str | None]:
        """Return how to have this run's result again, as the command line's contract has it."""
        return {
            "rbuild": self.line(),
            "script": None if self.script is None else str(self.script),
        }

    def close(self) -> None:
        """Let this run's folder go: `rbuild clean` may remove it."""
        self._held.close()

    @property
    def log_path(self) -> Path:
        """The full log of this run's builds."""
        return self.run_folder / "build.log"

    @property
    def has_log(self) -> bool:
        """Whether anything was logged in this run."""
        return "run_folder" in self.__dict__ and self.log_path.exists()

    @contextmanager
    def log(self) -> Iterator[IO[str]]:
        """Open the log to add to it."""
        with self.log_path.open("a", encoding="utf-8", errors="surrogateescape") as file:
            yield file
