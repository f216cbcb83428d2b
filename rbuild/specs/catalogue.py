"""What there is to name: profiles, environments, machines and tests, told by their files.

No file is checked here: that is for whoever loads it, and a shell that completes shows no errors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rbuild.util import data

NO_LEVEL = "none"
"""The level of every hybrid at which nothing is native."""


def profiles() -> list[str]:
    """Return the names of the profiles that come with rbuild."""
    return _stems(data.folder("profiles"))


def environments() -> list[str]:
    """Return the names of the environments that are defined, cross first."""
    found = _stems(data.folder("rootfs"))
    usual = [name for name in ("cross", "chroot", "hybrid") if name in found]
    return usual + [name for name in found if name not in usual]


def levels(name: str) -> list[str]:
    """Return the names by which an environment's levels are asked for; none if it has none."""
    levels = _definition(name).get("levels")
    if not isinstance(levels, dict):
        return []
    return [f"{name}:{level}" for level in (NO_LEVEL, *levels)]


def environments_and_levels() -> list[str]:
    """Return all environments, and those with levels by each level, too."""
    found = environments()
    return [*found, *(level for name in found for level in levels(name))]


def machines() -> list[str]:
    """Return the names of the machines that a kernel can be booted on, QEMU's own first."""
    virtual = [
        str(own["model"])
        for path in sorted((data.folder("rootfs") / "architectures").glob("*.yaml"))
        if isinstance(own := _fields(path).get("virtual"), dict) and "model" in own
    ]
    return list(dict.fromkeys([*virtual, *_stems(data.folder("profiles") / "machines")]))


def tests() -> list[str]:
    """Return the names of the groups of tests that a driver can pass, as ``--test`` takes them."""
    script = data.folder("module") / "tests" / "guest.sh"
    text = script.read_text(encoding="utf-8")
    return re.findall(r"^test_(\w+)\(\)", text, re.MULTILINE)


def suite(name: str) -> list[str]:
    """Return the names of the groups of tests that a suite has."""
    script = data.folder("module") / "tests" / "guest.sh"
    text = script.read_text(encoding="utf-8")
    found = re.search(rf'^{name}="([^"]*)"', text, re.MULTILINE)
    return found[1].split() if found else []


def _stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _definition(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return an environment's fields, with those of the definitions that it extends."""
    own = _fields(data.folder("rootfs") / f"{name}.yaml")
    other = own.get("extends")
    if not isinstance(other, str) or other in seen:
        return own
    return {**_definition(other, (*seen, name)), **own}


def _fields(path: Path) -> dict[str, Any]:
    """Return the fields of a YAML file; none of one that can't be read."""
    import yaml  # noqa: PLC0415 - most of what is completed needs no file's content

    # libyaml, where PyYAML was built with it, takes a tenth of the time.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), loader)  # noqa: S506 - both are safe
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
