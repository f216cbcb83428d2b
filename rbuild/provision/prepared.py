"""A prepared environment: one that can be entered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rbuild.sandbox.runtime import Runtime, Sandbox
from rbuild.specs.environment import Environment


@dataclass(frozen=True)
class PreparedEnvironment:
    """An environment that can be entered, and by what.

    ``toolchain`` has the versions of the packages that decide what a build makes, for people;
    ``inputs`` is the record of all that does.
    ``emulated_programs`` are those of a hybrid's list that have no native twin; ``emulator`` is
    which QEMU runs what is emulated, and as which CPU.
    """

    environment: Environment
    sandbox: Sandbox
    runtime: Runtime
    toolchain: Mapping[str, str]
    rootfs_keys: tuple[str, ...]
    inputs: Mapping[str, Any]
    emulated_programs: tuple[str, ...]
    emulator: str | None
    seconds: float
    cached: bool
