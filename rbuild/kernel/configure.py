"""Configuring a kernel: a base, then Kconfig fragments by the kernel's own merge_config.sh.

What Kconfig refuses is explained: see ``kconfig.explain``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbuild.errors import KconfigError
from rbuild.kernel.config import config_of, locate, quote, read_config, unmet
from rbuild.kernel.identity import Kernel, base_config
from rbuild.kernel.kbuild import Kbuild, MakeResult
from rbuild.provision.jobs import run_job
from rbuild.sandbox.context import CacheUse, Phase
from rbuild.sandbox.runtime import KDIR, SRC
from rbuild.source.tree import Tree
from rbuild.specs import profile
from rbuild.specs.profile import MAX_CONFIG_BYTES, TARGET, Config, Profile
from rbuild.util import data
from rbuild.util.process import Usage
from rbuild.util.textfile import read_text

if TYPE_CHECKING:
    from rbuild.kernel.kconfig.explanation import Origin
    from rbuild.kernel.kconfig.values import Values

BASE_CONFIG = "base.config"
"""In a KDIR: the configuration over which the fragments are merged."""

BLOCKERS_SHOWN = 8
"""How many of the conditions that block an option a refusal shows."""


def configure(kernel: Kernel, kbuild: Kbuild) -> Phase:
    """Make .config in a KDIR: the base, then all fragments by the kernel's merge_config.sh.

    What a base target makes is kept as BASE_CONFIG.  A base KDIR is of the same base: its will do.
    Raises UsageError if Kconfig doesn't grant what the profile asks for.
    """
    base = kernel.base
    path = kbuild.kdir / BASE_CONFIG
    if "\n" in base:
        path.write_text(base, encoding="utf-8")
    elif not path.exists():
        made = kbuild.make(f"Configuring {kernel.title}: {base}", [base])
        shutil.copyfile(kbuild.kdir / ".config", path)
        return _add("configure", made, merge(kernel, kbuild, kernel.fragments, Path(BASE_CONFIG)))
    return merge(kernel, kbuild, kernel.fragments, Path(BASE_CONFIG))


def _add(name: str, made: MakeResult, phase: Phase) -> Phase:
    usage, other = made.usage, phase.usage
    both = Usage(
        usage.wall_s + other.wall_s,
        usage.user_s + other.user_s,
        usage.system_s + other.system_s,
        max(usage.max_rss_bytes, other.max_rss_bytes),
    )
    uses = [one for one in (made.ccache, phase.ccache) if one is not None]
    return Phase(name, both, ccache=sum(uses, start=CacheUse()) if uses else None)


def merge(kernel: Kernel, kbuild: Kbuild, fragments: list[tuple[str, str]], base: Path) -> Phase:
    """Merge fragments over ``base`` (relative to the KDIR), complete it, compare asked and got."""
    made, asked = _complete(kernel, kbuild, fragments, base)
    got = config_of(kbuild.kdir)
    if refused := unmet(asked, got):
        raise _refused(refused, kernel.profile, kbuild)
    return Phase("configure", made.usage, ccache=made.ccache)


def _complete(
    kernel: Kernel, kbuild: Kbuild, fragments: list[tuple[str, str]], base: Path
) -> tuple[MakeResult, dict[str, str]]:
    """Merge fragments over ``base``, and let Kconfig complete it; return what was asked, too."""
    folder = kbuild.kdir / "fragments"
    folder.mkdir(exist_ok=True)
    asked: dict[str, str] = {}
    names = []
    for number, (name, text) in enumerate(fragments):
        path = folder / f"{number:02d}-{name}"
        is_own = name.endswith(".options")  # the profile's own, not a file of the user's
        written = quote(text, kbuild.tree.path) if is_own else text
        path.write_text(written, encoding="utf-8")
        names.append(f"{KDIR}/fragments/{path.name}")
        asked |= read_config(written)
    script = f"{SRC}/scripts/kconfig/merge_config.sh"
    kbuild.run([script, "-m", "-O", KDIR, f"{KDIR}/{base}", *names], "Merging the fragments")
    title = f"Configuring {kernel.title}"
    return kbuild.make(title, ["olddefconfig"]), asked


def _refused(refused: list[Any], profile: Profile, kbuild: Kbuild) -> KconfigError:
    """Explain what Kconfig didn't grant, with rust_is_available.sh's words if it is Rust."""
    from rbuild.kernel.kconfig import parser, values  # noqa: PLC0415 - for an error only

    got = config_of(kbuild.kdir)
    known = values.values_of(got, parser.read(kbuild.tree.path, profile.architecture))
    lines = []
    for one in refused:
        where, depends = locate(one.option, kbuild.tree.path)
        lines.append(str(type(one)(one.option, one.asked, one.got, where, depends)))
        lines += _blockers(one.option, profile, kbuild, known)
    if any(one.option == "RUST" for one in refused):
        job = kbuild.job(["rustavailable"])
        done = run_job(job, kbuild.ready, kbuild.context, "rustavailable", check=False)
        lines += ["", "`make rustavailable` says:", *done.tail]
    count = "one option" if len(refused) == 1 else f"{len(refused)} options"
    first = next((one.option for one in refused if one.option == "RUST"), refused[0].option)
    is_own = profile.path.parent == data.folder("profiles")
    where = profile.name if is_own else str(profile.path)
    return KconfigError(
        f"Kconfig did not grant {count} that the profile {profile.name} asks for.",
        detail="\n".join(lines),
        hint=f"Change the fragments or options of {profile.path}, or what they depend on; "
        f"`rbuild kernel --profile {where} --explain {first}` walks the dependency.",
    )


def _blockers(option: str, profile: Profile, kbuild: Kbuild, known: Values) -> list[str]:
    from rbuild.kernel.kconfig.explain import explain  # noqa: PLC0415 - as in _refused
    from rbuild.kernel.kconfig.explanation import blockers  # noqa: PLC0415 - as in _refused

    try:
        found = explain(option, known, origins(profile, kbuild.tree))
    except KeyError:
        return []
    lines = [f"    {line}" for line in blockers(found)[:BLOCKERS_SHOWN]]
    return ["  what blocks it:", *lines] if lines else []


@dataclass(frozen=True)
class Attempt:
    """A configuration as far as Kconfig granted it, and the folder in which it was made."""

    config: Mapping[str, str]
    build: Path


def attempt_with(
    options: Mapping[str, str], before: Attempt, kernel: Kernel, kbuild: Kbuild
) -> Attempt:
    """Return what Kconfig makes of a profile with ``options`` besides, in ``kbuild``'s KDIR."""
    shutil.copyfile(before.build / BASE_CONFIG, kbuild.kdir / BASE_CONFIG)
    text = Config(options=dict(options)).as_fragment()
    _complete(kernel, kbuild, [*kernel.fragments, ("more.options", text)], Path(BASE_CONFIG))
    return Attempt(config_of(kbuild.kdir), kbuild.kdir)


def origins(profile: Profile, tree: Tree) -> list[Origin]:
    """Return the texts that ask for options, in the order in which one overrides another."""
    from rbuild.kernel.kconfig.explanation import Origin  # noqa: PLC0415 - as in _refused

    base = profile.config.base
    found = []
    if TARGET.fullmatch(base):
        path = tree.path / "arch" / profile.architecture / "configs" / base
        if path.is_file():
            found.append(Origin(base, read_text(path, limit=MAX_CONFIG_BYTES, decoding="replace")))
    else:
        found.append(Origin(base, base_config(profile)))
    fragments = profile.fragments()
    own = len(fragments) - bool(profile.config.options)
    found += [Origin(name, text) for name, text in fragments[:own]]
    options = f"config.options of {profile.path.name}"
    return [*found, *(Origin(options, text, numbered=False) for _, text in fragments[own:])]


def profiles_with(option: str, arch: str, tree: Tree) -> list[str]:
    """Return rbuild's own profiles for an ARCH that ask for an option, or for what needs it."""
    from rbuild.kernel.kconfig import parser  # noqa: PLC0415 - for an error only

    wanted = parser.read(tree.path, arch).with_on(option)
    found = []
    for name in profile.names():
        other = profile.load(name)
        asked: dict[str, str] = {}
        for origin in origins(other, tree) if other.architecture == arch else ():
            asked |= read_config(origin.text)
        if any(asked.get(one, "n") != "n" for one in wanted):
            found.append(name)
    return found
