"""One invocation of rbuild: its cache, its runtime, how parallel it is, and where it logs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Annotated

from pydantic import Field

from rbuild.cache.directory import Cache
from rbuild.cache.locks import use
from rbuild.cache.records import Count, Record, Text
from rbuild.sandbox.runtime import Runtime
from rbuild.ui.console import Console
from rbuild.util.process import Limits, Usage

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
    """A part of the work with what it took; ``cached`` if the cache had its result already.

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


class CacheUseRecord(Record):
    """A CacheUse as JSON has it."""

    hits: Count
    misses: Count


class PhaseRecord(Record):
    """A Phase as JSON has it."""

    name: Text
    wall_s: float
    user_s: float
    system_s: float
    max_rss_bytes: Count
    cached: bool = False
    ccache: CacheUseRecord | None = None

    @property
    def phase(self) -> Phase:
        """The phase of an earlier run: a cached one."""
        usage = Usage(self.wall_s, self.user_s, self.system_s, self.max_rss_bytes)
        use = None if self.ccache is None else CacheUse(self.ccache.hits, self.ccache.misses)
        return Phase(self.name, usage, cached=True, ccache=use)


Phases = Annotated[tuple[PhaseRecord, ...], Field(strict=False)]


@dataclass
class BuildContext:
    """What every part of a command needs: made once by the command line, passed down.

    ``ccache`` lets C be taken from a cache of what was compiled before; ``limits`` are those of one
    call of make, ``memory_bytes`` and ``cpus`` those of a container.  ``line`` is the command line
    that has the same result again.
    """

    command: str
    cache: Cache
    runtime: Runtime
    jobs: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    ccache: bool = False
    limits: Limits = field(default_factory=lambda: Limits(silence_s=SILENCE_S))
    line: Callable[[], str] = lambda: "rbuild"
    memory_bytes: int | None = None
    cpus: float | None = None
    _held: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    @property
    def console(self) -> Console:
        """Where this context speaks."""
        return self.cache.console

    @cached_property
    def run_folder(self) -> Path:
        """The folder for this run's log and result, made when first needed."""
        folder = self.cache.new_run(self.command)
        self._held.enter_context(use(folder))
        return folder

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
