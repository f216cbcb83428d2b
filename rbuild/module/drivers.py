"""The drivers that come with rbuild."""

from __future__ import annotations

from pathlib import Path

from rbuild.specs.profile import Driver
from rbuild.util import data

NAMES = {Driver.RUST: "mfrc522_rust", Driver.C: "mfrc522", Driver.GLUE: "mfrc522_glue"}
"""The name of each driver's module, without .ko."""


def driver_source(driver: Driver) -> Path:
    """Return the folder of one of our drivers."""
    return data.folder("module") / driver


def simulator_source() -> Path:
    """Return the folder of the simulated device."""
    return data.folder("module") / "sim"
