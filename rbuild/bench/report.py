"""A benchmark's report: one line a mode and scenario, with its ratio to the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rbuild import __version__
from rbuild.bench.measure import Measurement
from rbuild.bench.plan import Mode, Scenario
from rbuild.bench.run import Plan
from rbuild.bench.stats import Ratio, Summary, ratio, summarize
from rbuild.console import size
from rbuild.kernel import Kdir

COLUMNS = (
    "mode",
    "scenario",
    "n",
    "wall s",
    "range",
    "user s",
    "system s",
    "peak RSS",
    ".ko size",
    "ratio",
    "(range)",
)


@dataclass(frozen=True)
class Row:
    """All runs of one scenario of one mode, summarized."""

    mode: Mode
    scenario: Scenario
    wall: Summary
    user: Summary
    system: Summary
    max_rss_bytes: int
    size_bytes: int
    sha256: tuple[str, ...]
    ratio: Ratio

    def cells(self) -> list[str]:
        """Return the row of the table."""
        return [
            str(self.mode),
            self.scenario.value,
            str(self.wall.n),
            f"{self.wall.median:.2f}",
            f"{self.wall.least:.2f}-{self.wall.most:.2f}",
            f"{self.user.median:.2f}",
            f"{self.system.median:.2f}",
            size(self.max_rss_bytes),
            size(self.size_bytes),
            f"{self.ratio.median:.2f}x",
            f"({self.ratio.least:.2f}-{self.ratio.most:.2f})",
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the row for --export-json."""
        return {
            "environment": self.mode.environment,
            "kind": self.mode.kind.value,
            "driver": self.mode.driver.value,
            "scenario": self.scenario.value,
            "wall_s": asdict(self.wall),
            "user_s": asdict(self.user),
            "system_s": asdict(self.system),
            "max_rss_bytes": self.max_rss_bytes,
            "size_bytes": self.size_bytes,
            "sha256": list(self.sha256),
            "ratio_to_reference": asdict(self.ratio),
        }


def rows(plan: Plan, found: Sequence[Measurement]) -> list[Row]:
    """Summarize the measurements; the reference is the plan's first mode, per scenario."""
    made = []
    for mode in plan.modes:
        for scenario in plan.scenarios:
            own = _of(found, mode, scenario)
            wall = [one.usage.wall_s for one in own]
            reference = [one.usage.wall_s for one in _of(found, plan.modes[0], scenario)]
            made.append(
                Row(
                    mode,
                    scenario,
                    summarize(wall),
                    summarize([one.usage.user_s for one in own]),
                    summarize([one.usage.system_s for one in own]),
                    max(one.usage.max_rss_bytes for one in own),
                    own[-1].artefact.size_bytes,
                    tuple(sorted({one.artefact.sha256 for one in own})),
                    ratio(wall, reference),
                )
            )
    return made


def identical(found: Sequence[Row]) -> list[str]:
    """Say for each kind and driver whether the environments made the same bytes from clean."""
    lines = []
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        if row.scenario is Scenario.CLEAN:
            groups.setdefault((row.mode.kind, row.mode.driver), []).append(row)
    for (kind, driver), group in groups.items():
        if len(group) > 1:
            names = ", ".join(row.mode.environment for row in group)
            same = len({checksum for row in group for checksum in row.sha256}) == 1
            lines.append(
                f"{kind} {driver}: {'the same bytes' if same else 'DIFFERENT bytes'} from {names}"
            )
    return lines


def header(machine: Mapping[str, Any], kdirs: Mapping[str, Kdir], command: str) -> list[str]:
    """Return the lines that say where and of what the figures are."""
    kdir = next(iter(kdirs.values()))
    tools = ", ".join(
        f"{name} {version}"
        for name, version in kdir.ready.toolchain.items()
        if name.startswith(("clang", "rustc"))
    )
    return [
        f"{machine['cpu']}, {machine['cores']} cores (governor {machine['governor']}), "
        f"{size(machine['memory_bytes'])}, Linux {machine['host_kernel']}, "
        f"load {machine['load_1min']}",
        f"{machine['qemu']}; emulated CPU {_cpu_model(kdirs)}",
        f"Linux {kdir.release} ({kdir.tree.source}), profile {kdir.profile.name}, "
        f"config {kdir.config_sha256[:12]}; {tools}; ccache off",
        command,
    ]


def as_json(
    plan: Plan,
    found: Sequence[Measurement],
    made: Sequence[Row],
    machine: Mapping[str, Any],
    kdirs: Mapping[str, Kdir],
    command: str,
) -> dict[str, Any]:
    """Return all of a benchmark, its single runs too."""
    return {
        "rbuild": __version__,
        "command_line": command,
        "machine": dict(machine),
        "reference": str(plan.modes[0]),
        "runs": plan.runs,
        "warmup": plan.warmup,
        "environments": {
            name: {
                "kernel_release": kdir.release,
                "source": kdir.tree.source,
                "profile": kdir.profile.name,
                "config_sha256": kdir.config_sha256,
                "toolchain": dict(kdir.ready.toolchain),
                "variables": dict(kdir.ready.sandbox.variables),
                "phases": [phase.as_json() for phase in kdir.phases],
            }
            for name, kdir in kdirs.items()
        },
        "results": [
            {
                **row.as_json(),
                "measurements": [one.as_json() for one in _of(found, row.mode, row.scenario)],
            }
            for row in made
        ],
        "identical": identical(made),
    }


def _of(found: Sequence[Measurement], mode: Mode, scenario: Scenario) -> list[Measurement]:
    return [one for one in found if one.turn.mode == mode and one.turn.scenario is scenario]


def _cpu_model(kdirs: Mapping[str, Kdir]) -> str:
    models = {kdir.ready.sandbox.variables.get("QEMU_CPU") for kdir in kdirs.values()} - {None}
    return ", ".join(sorted(str(model) for model in models)) or "not used"
