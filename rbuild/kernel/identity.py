"""A kernel that rbuild builds: what identifies it, and what may share its build's leftovers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rbuild.cache.entry import Entry, EntryKind
from rbuild.errors import UsageError
from rbuild.kernel.ccache import Share
from rbuild.kernel.config import read_config
from rbuild.kernel.kbuild import Kbuild, variables
from rbuild.kernel.reuse import Request
from rbuild.provision.prepared import PreparedEnvironment
from rbuild.sandbox.context import BuildContext
from rbuild.source.tree import Tree
from rbuild.specs.architecture import of_kernel
from rbuild.specs.profile import TARGET, Profile, Source
from rbuild.util.hashes import digest

PLAIN_OPTION = re.compile(r'CONFIG_\w+=("?)[\w.,:/+@=~() -]*\1', re.ASCII)
"""An option's line whose value neither make nor a shell takes for more than a text."""


@dataclass(frozen=True)
class Kernel:
    """A profile's kernel from a source tree, built in an environment by a context."""

    profile: Profile
    tree: Tree
    ready: PreparedEnvironment
    context: BuildContext

    @cached_property
    def fragments(self) -> list[tuple[str, str]]:
        """The profile's Kconfig fragments, each with its name."""
        return self.profile.fragments()

    @cached_property
    def base(self) -> str:
        """A configuration target's name, or the text of the file that ``config.base`` names.

        A text ends with a newline, which no target's name has.
        """
        return base_config(self.profile)

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.tree.version} in {self.ready.environment.name}"

    @property
    def targets(self) -> list[str]:
        """What make is asked for to build it."""
        image = of_kernel(self.profile.architecture).target.image
        return [image, "modules", *(self.profile.device_trees or ["dtbs"])]

    @property
    def builder(self) -> dict[str, Any]:
        """All but the configuration that decides what is in its KDIR."""
        make = variables(self.ready, self.tree)
        return {"tree": self.tree.key, **self.ready.inputs, "make": make}

    @property
    def entry(self) -> Entry:
        """The place of its KDIR in the cache."""
        wanted = {**self.builder, "base": self.base, "fragments": self.fragments}
        label = f"{self.profile.name}-{self.ready.environment.name}"
        return self.context.cache.entry(EntryKind.KDIRS, label, digest(wanted))

    @property
    def share(self) -> Share:
        """The ccache that its builds use."""
        return Share(provenance(self.profile, self.tree))

    def kbuild(self, kdir: Path, overlay: Path | None = None) -> Kbuild:
        """Return what calls make in an output directory; ``overlay`` as Kbuild has it."""
        return Kbuild(self.context, self.ready, self.tree, kdir, overlay, share=self.share)

    def request(self) -> Request:
        """Return what its KDIR is asked for, to be compared with what others were."""
        is_text = "\n" in self.base
        options = read_config(self.base) if is_text else {}
        for _, text in self.fragments:
            options |= read_config(text)
        common = {**self.builder, "base": "" if is_text else self.base}
        # A base KDIR's objects and host programs are run and linked in.
        if not _is_plain(self.profile):
            common["provenance"] = provenance(self.profile, self.tree)
        asked = {
            "tree": self.tree.key,
            "base": self.base,
            "fragments": self.fragments,
            "toolchain": dict(self.ready.toolchain),
        }
        return Request(digest(common), options, digest(asked))


def provenance(profile: Profile, tree: Tree) -> str:
    """Return a name for where a kernel's build has its commands from.

    Builds of the same provenance may share what they leave: Debian's sources have one together, any
    other source has its own.  Make expands the values of options, so that a profile with a value
    that is more than a plain text has its own, too.
    """
    found: dict[str, Any] = {}
    if not tree.is_debian:
        # Which of them the tree is of doesn't show: the same content may have come by another.
        found["sources"] = [
            {**source.model_dump(mode="json"), "directory": _place(profile, source)}
            for source in profile.source
        ]
    if not _is_plain(profile):
        found["profile"] = str(profile.path)
    return digest(found) if found else "debian"


def _place(profile: Profile, source: Source) -> str | None:
    """Return where a source's directory is, whichever folder the profile is written for."""
    if source.directory is None:
        return None
    return str((profile.path.parent / source.directory).resolve())


def _is_plain(profile: Profile) -> bool:
    """Tell whether nothing that a profile hands to make can be a command."""
    base = base_config(profile)
    texts = [base if "\n" in base else "", *(text for _, text in profile.fragments())]
    lines = [line.strip() for text in texts for line in text.split("\n")]
    return all(not line or line.startswith("#") or PLAIN_OPTION.fullmatch(line) for line in lines)


def base_config(profile: Profile) -> str:
    """Return a configuration target's name, or the text of the file that ``config.base`` names.

    A text ends with a newline, which no target's name has.
    """
    base = profile.config.base
    if TARGET.fullmatch(base):
        return base
    target = (
        "Use a kernel configuration target, such as defconfig, or a .config file with lines such "
        "as CONFIG_SPI=y."
    )
    try:
        text = profile.read(base, "config.base")
    except UsageError as error:
        error.hint = error.hint or target
        raise
    if "\0" in text or not read_config(text):
        path = profile.path.parent / base
        what = "is empty" if not text.strip() else "has no line that sets a CONFIG_ option"
        raise UsageError(
            f"{profile.path}: config.base: {path} is no configuration: it "
            f"{'is binary' if chr(0) in text else what}.",
            hint=target,
        )
    return text.rstrip("\n") + "\n"
