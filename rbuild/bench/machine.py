"""What a benchmark's header states of the machine: figures without it mean nothing."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from rbuild.bench.result import Machine

BUSY = 0.5
"""A load of more than this for each core, before a benchmark begins, is somebody else's work."""


@dataclass(frozen=True)
class Moment:
    """How busy the machine is (load over 1 min) and how fast (mean MHz, None if not known)."""

    load: float
    mhz: float | None


def moment() -> Moment:
    """Look at the machine as it is just now."""
    text = _read("/proc/cpuinfo")
    found = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*: ([\d.]+)$", text, re.MULTILINE)]
    mhz = round(sum(found) / len(found), 1) if found else None
    return Moment(round(os.getloadavg()[0], 2), mhz)


def cores() -> int:
    """Return how many processors this process may run on."""
    return len(os.sched_getaffinity(0))


def busy(before: Moment) -> bool:
    """Tell whether something else used the machine before the benchmark began."""
    return before.load > BUSY * cores()


def describe(before: Moment, after: Moment, cache: Path) -> Machine:
    """Return the machine as a report states it; ``store`` is where the builds are."""
    return Machine(
        cpu=_cpu(),
        cores=cores(),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
        or "unknown",
        mhz=before.mhz,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        host_kernel=platform.release(),
        file_system=file_system(cache),
        load_before=before.load,
        load_after=after.load,
        busy=busy(before),
    )


def file_system(path: Path) -> str:
    """Return the type of the file system that a folder is on, by the longest mount point."""
    place = str(path.resolve())
    best, kind = "", "unknown"
    for line in _read("/proc/self/mounts").splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        mount = fields[1].rstrip("/")
        if (place == mount or place.startswith(f"{mount}/")) and len(mount) >= len(best):
            best, kind = mount, fields[2]
    return kind


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1] if found else platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
