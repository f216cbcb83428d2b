"""A benchmark's result as data: what --export-json writes, --compare reads, and all tables show.

The models are the published format: ``rbuild bench --schema`` prints their JSON Schema, and a
file that doesn't match it is refused with the field that is wrong.  Seconds, bytes and MHz are
plain numbers; a figure that the machine can't give is null.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT: Literal[2] = 2
"""The version of the format; a file with another one can't be compared."""


class Part(BaseModel):
    """The base of every part of a result: frozen, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PhaseTimes(Part):
    """One make (or a few that belong together) of a run.

    The names are ``configure``, ``prepare`` (modules_prepare), ``kernel`` and ``module``, and in
    an environment's own phases also ``provision``, ``seed`` (a copy of another KDIR), and ``adopt``
    (the configuration that another environment came to) instead of ``configure``.
    """

    name: str
    wall_s: float
    user_s: float
    system_s: float
    max_rss_bytes: int


class Product(Part):
    """A file that a run made."""

    name: str
    sha256: str
    size_bytes: int


class Sample(Part):
    """One counted run.

    ``wall_s`` is the sum of the phases; the CPU times are of all processes (wait4(2));
    ``max_rss_bytes`` is the largest resident set of any single one.  ``cgroup_cpu_s`` and
    ``cgroup_peak_bytes`` (all processes together, page cache included) are the cgroup's own
    figures, where rbuild may make one.  ``load`` is the machine's load (1 min) and ``mhz`` the
    mean frequency of its processors, both just before the run.
    """

    round: int
    wall_s: float = Field(ge=0, le=1e9)
    user_s: float
    system_s: float
    max_rss_bytes: int
    cgroup_cpu_s: float | None = None
    cgroup_peak_bytes: int | None = None
    load: float
    mhz: float | None = None
    phases: tuple[PhaseTimes, ...]
    products: tuple[Product, ...] = Field(min_length=1)
    ccache_hits: int | None = None
    ccache_misses: int | None = None


class Spread(Part):
    """What the samples of one figure come to.

    ``low`` and ``high`` bound the median with ``confidence``: what was asked for (0.95), or less
    if so few samples can't give it.  ``deviation`` is the sample's standard deviation, 0 for a
    single one.  ``outliers`` are the indices (from 0) of samples whose modified Z-score exceeds
    3.5 (Iglewicz and Hoaglin, 1993); they are counted all the same.
    """

    n: int = Field(ge=1)
    median: float
    low: float
    high: float
    confidence: float
    mean: float
    deviation: float
    least: float
    most: float
    outliers: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _ordered(self) -> Spread:
        if not self.low <= self.median <= self.high:
            raise ValueError("low and high must bound the median")
        return self


Verdict = Literal["slower", "faster", "no difference shown"]


class Ratio(Part):
    """A ratio of medians with its interval; ``verdict`` is plain about an interval around 1."""

    ratio: float
    low: float
    high: float
    confidence: float
    verdict: Verdict

    @model_validator(mode="after")
    def _ordered(self) -> Ratio:
        if not self.low <= self.ratio <= self.high:
            raise ValueError("low and high must bound the ratio")
        return self


class Row(Part):
    """All counted runs of one scenario of one mode (environment x kind x driver x jobs).

    ``environment`` is followed by ``@docker`` where it was entered by that runtime.
    ``kind`` is ``kernel``, ``out-of-tree`` or ``in-tree``; a kernel has no ``driver``.
    ``ratio`` is that of the wall time to the reference row: the same kind, driver and scenario in
    the benchmark's first environment with its first number of jobs; null for that row itself.
    """

    environment: str
    kind: Literal["kernel", "out-of-tree", "in-tree"]
    driver: Literal["rust", "c", "glue"] | None
    jobs: int
    scenario: Literal["clean", "incremental", "incremental-c", "incremental-rust", "noop"]
    wall_s: Spread
    user_s: Spread
    system_s: Spread
    max_rss_bytes: int
    ratio: Ratio | None
    samples: tuple[Sample, ...] = Field(min_length=1)

    @property
    def walls(self) -> list[float]:
        """The runs' wall times as ratios need them: none is less than a microsecond."""
        return [max(one.wall_s, 1e-6) for one in self.samples]

    @property
    def mode(self) -> str:
        """The mode as it is written in tables."""
        driver = f" {self.driver}" if self.driver else ""
        return f"{self.environment} {self.kind}{driver}"


class Difference(Part):
    """How one environment's product differs from the reference environment's.

    ``sections`` names the ELF sections that differ; ``note`` says what else is known.
    """

    environment: str
    sections: tuple[str, ...] = ()
    note: str = ""


class Identity(Part):
    """Whether the environments made the same bytes of one product, from clean.

    ``sha256`` has the checksums of each environment: one, unless its runs differ among themselves.
    """

    kind: Literal["kernel", "out-of-tree", "in-tree"]
    driver: Literal["rust", "c", "glue"] | None
    product: str
    identical: bool
    sha256: dict[str, tuple[str, ...]]
    differences: tuple[Difference, ...] = ()


class EnvironmentFacts(Part):
    """What an environment was, and what its KDIR took when it was made (``phases``).

    ``runtime`` is what entered it; ``name`` ends in ``@RUNTIME`` where that isn't bwrap.
    """

    name: str
    runtime: str = "bwrap"
    kernel_release: str
    source: str
    profile: str
    config_sha256: str
    toolchain: dict[str, str]
    variables: dict[str, str]
    emulator: str | None
    phases: tuple[PhaseTimes, ...]


class Unmeasured(Part):
    """An environment that was to be measured and wasn't, and why."""

    environment: str
    reason: str


class Machine(Part):
    """Where a benchmark ran, and how busy the machine was before it began and when it ended."""

    cpu: str
    cores: int
    governor: str
    mhz: float | None
    memory_bytes: int
    host_kernel: str
    file_system: str
    load_before: float
    load_after: float
    busy: bool


class Report(Part):
    """A whole benchmark."""

    format: Literal[2] = FORMAT
    rbuild: str
    command_line: str
    started: str = Field(description="ISO 8601, UTC")
    seconds: float
    machine: Machine
    environments: tuple[EnvironmentFacts, ...]
    runs: int
    warmup: int
    ccache: bool
    rows: tuple[Row, ...]
    identity: tuple[Identity, ...]
    log_tail: tuple[str, ...] = ()
    unmeasured: tuple[Unmeasured, ...] = ()
