"""What a benchmark's header states of the machine: figures without it mean nothing."""

from __future__ import annotations

import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

from rbuild import process
from rbuild.errors import HostLacks, ProcessFailed


def describe() -> dict[str, Any]:
    """Return CPU, cores, governor, memory, host kernel, QEMU's version and the load just now."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "governor": _governor(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "host_kernel": platform.release(),
        "qemu": _qemu(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def busy(machine: dict[str, Any]) -> bool:
    """Tell whether something else used the machine before the benchmark began."""
    return float(machine["load_1min"]) > 0.5 * int(machine["cores"])


def _cpu() -> str:
    text = Path("/proc/cpuinfo").read_text(errors="replace")
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _governor() -> str:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return path.read_text().strip() if path.exists() else "unknown"


def _qemu() -> str:
    program = next(
        (name for name in ("qemu-aarch64-static", "qemu-aarch64") if shutil.which(name)), None
    )
    if program is None:
        return "none"
    try:
        return process.capture([program, "--version"]).splitlines()[0]
    except (HostLacks, ProcessFailed, IndexError):
        return "unknown"
