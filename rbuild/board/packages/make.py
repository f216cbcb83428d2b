"""Packages: what was built, in the forms in which a board takes it.

A set of .debs of the kernel, by the kernel's own rules; an archive laid out for a Pi; a .deb of
the driver alone for a Pi that keeps its kernel, and one of its source for DKMS.  The same inputs
give the same bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from rbuild.board.packages import archive, bindeb, debian
from rbuild.board.staging import Extra, stage
from rbuild.kernel.kdir import SPACE_NEEDED, Kdir
from rbuild.provision.tools import Tools, provide
from rbuild.sandbox.context import BuildContext
from rbuild.specs.profile import Driver
from rbuild.util import export
from rbuild.util.folders import remove_tree
from rbuild.util.hashes import sha256_file


class Format(StrEnum):
    """The forms of a package."""

    DEB = "deb"
    TAR = "tar"
    MODULE_DEB = "module-deb"
    DKMS = "dkms"


WHOLE_KERNEL = frozenset({Format.DEB, Format.TAR})
"""Those that have the kernel: it must be built, where a driver needs only a prepared KDIR."""

OURS = frozenset({Format.MODULE_DEB, Format.DKMS})
"""Those that rbuild makes itself, and lintian examines."""


@dataclass(frozen=True)
class Contents:
    """What goes into packages: a KDIR, one driver built against it, compiled overlays."""

    kdir: Kdir
    driver: Driver
    modules: tuple[Extra, ...]
    overlays: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Artefact:
    """A finished package."""

    format: Format
    path: Path
    sha256: str
    size_bytes: int

    def as_json(self) -> dict[str, Any]:
        """Return the artefact as the command line's contract has it."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "format": self.format,
        }


def make(
    contents: Contents, formats: Collection[Format], output: Path, context: BuildContext
) -> list[Artefact]:
    """Make packages in ``output``, each of which appears whole; what has its name is replaced.

    Raises UsageError if the contents can't have a form, BuildFailed if a tool refuses them.
    """
    debian.check_release(contents.kdir.release)
    tools = None
    if set(formats) != {Format.TAR}:
        tools = provide(context)
    if Format.DEB in formats:
        assert tools is not None
        bindeb.check(contents.kdir, tools)
    context.cache.need_space(SPACE_NEEDED, "Packaging a kernel")
    output.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="package-", dir=context.run_folder))
    try:
        found = [
            (form, path)
            for form in Format
            if form in formats
            for path in _made(form, contents, tools, work / form, context)
        ]
        # The kernel's own rules decide what is in its packages; ours are to be faultless.
        if ours := [path for form, path in found if form in OURS]:
            assert tools is not None
            tools.lint(ours)
        return _publish(found, output)
    finally:
        remove_tree(work)


def _made(
    form: Format, contents: Contents, tools: Tools | None, work: Path, context: BuildContext
) -> Sequence[Path]:
    """Return the packages of one form, made below ``work``."""
    work.mkdir()
    kdir = contents.kdir
    if form is Format.TAR:
        staged = stage(kdir, contents.modules, contents.overlays, work / "stage", context)
        return [archive.pack(staged, work, int(kdir.tree.date.timestamp()))]
    assert tools is not None
    if form is Format.DEB:
        return bindeb.build(kdir, tools, work)
    if form is Format.MODULE_DEB:
        source = debian.of_modules(kdir, contents.driver, contents.modules, contents.overlays)
    else:
        source = debian.of_source(kdir.tree.date, contents.overlays)
    return debian.build(source, tools, work)


def _publish(found: Sequence[tuple[Format, Path]], output: Path) -> list[Artefact]:
    """Bring packages to where the user wants them: all are written aside, then renamed."""
    aside = Path(tempfile.mkdtemp(prefix=".rbuild-", dir=output))
    try:
        places = []
        for form, path in found:
            place = output / path.name
            export.must_be_writable(place, named=False)
            (copied,) = export.copy([path], aside)
            places.append(Artefact(form, place, sha256_file(copied), copied.stat().st_size))
        for one in places:
            (aside / one.path.name).replace(one.path)
        return places
    finally:
        remove_tree(aside)
