"""What a kernel's build leaves: its release, its lists of products, half-made targets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from rbuild.errors import BuildFailed, InfrastructureError
from rbuild.specs.architecture import KbuildNames
from rbuild.util import process
from rbuild.util.textfile import read_text

LAST_S = 30.0
"""How much of a killed make's work is done again."""

CHANGED = re.compile(rb"(-?[0-9.]+) (/.*)", re.DOTALL)
"""When a file was changed, and its path, as find(1) prints them."""


def forget_the_last(build: Path) -> None:
    """Remove the command lines of all targets that a killed make may have left half made.

    Kbuild writes ``.name.cmd`` when ``name`` is made, and makes again what has none.  It doesn't
    ask whether a target is newer than its .cmd file, of an earlier build perhaps, which holds the
    same command line (scripts/Kbuild.include, if_changed).  Some steps, such as the versions of
    symbols, come after the .cmd file.
    """
    words = ["find", str(build), "-name", ".*.cmd", "-type", "f", "-printf", r"%T@ %p\0"]
    *records, rest = process.output(words).split(b"\0")
    matches = [CHANGED.fullmatch(one) for one in records]
    found = [(match[1], match[2]) for match in matches if match is not None]
    if rest or len(found) != len(records):
        raise InfrastructureError(f"find(1) printed what it wasn't asked for, of {build}.")
    newest = max((float(changed) for changed, _ in found), default=0.0)
    for changed, name in found:
        path = Path(os.fsdecode(name))
        target = path.with_name(path.name[1:].removesuffix(".cmd"))
        is_half = target.is_file() and target.stat().st_mtime > path.stat().st_mtime
        if is_half or float(changed) > newest - LAST_S:
            path.unlink()


MAX_LIST_BYTES = 64 << 20
"""The bytes of the largest text that a build writes and rbuild reads."""


def read_product(path: Path) -> str:
    """Return a text that a build has written; raises BuildFailed if it can't be one."""
    return read_text(path, limit=MAX_LIST_BYTES, decoding="replace", error=BuildFailed)


RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~_-]{0,63}")
"""What uname -r can say: of that, names of folders and packages are made."""


def kernel_release(kdir: Path) -> str:
    """Return what uname -r says of the kernel that a prepared KDIR is of.

    Raises BuildFailed for one that is no release's: a kernel's Makefile may write anything.
    """
    found = read_product(kdir / "include/config/kernel.release").strip()
    if not RELEASE.fullmatch(found):
        raise BuildFailed(f"The kernel's release can't be {found[:100]!r}.")
    return found


def listed(path: Path, *, root: str = "") -> list[str]:
    """Return the files that a list of Kbuild's names, such as modules.order; none if there is none.

    They are relative to where make ran, or to ``root``.  Raises BuildFailed for one that leads
    elsewhere: a module's Makefile may write anything.
    """
    if not path.is_file():
        return []
    names = [one.removeprefix(root) for one in read_product(path).split()]
    for name in names:
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or not place.name or "\0" in name:
            raise BuildFailed(f"{path.name} names {name[:100]!r}, which no build makes.")
    return names


def vermagic(release: str, config: Mapping[str, str], kernel: KbuildNames) -> str:
    """Return the vermagic of modules for a kernel, as include/linux/vermagic.h composes it."""
    words = [release]
    if config.get("SMP") == "y":
        words.append("SMP")
    if config.get("PREEMPT_BUILD") == "y":
        words.append("preempt")
    elif config.get("PREEMPT_RT") == "y":
        words.append("preempt_rt")
    if config.get("MODULE_UNLOAD") == "y":
        words.append("mod_unload")
    if config.get("MODVERSIONS") == "y":
        words.append("modversions")
    return " ".join([*words, *(one.word for one in kernel.vermagic if one.applies(config))])
