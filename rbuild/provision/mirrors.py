"""Debian mirrors and proxies, as the host's own apt knows them."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rbuild.errors import MissingDependency, ProcessFailed
from rbuild.util import process

INDEX = re.compile(r"(Debian|Debian-Security)\|([a-z+]+:\S+)")
"""A line of ``apt-get indextargets``, in the form that is asked for."""

NAMED = re.compile(
    r"(?P<uri>[a-z+]+:\S*/debian(?P<security>-security)?/)\|[a-z/-]+\|main"
    r"\|(?:\$\(SIGNED_BY\)|\S*/debian-archive-[^/|]*)?"
)
"""A line of ``apt-get indextargets`` of a repository of Debian's own; another's has its own key."""

APT = Path("/etc/apt")

PROXY = re.compile(r'Acquire::https?::Proxy(?:::\S+)? "[^"\n]*";', re.IGNORECASE)
"""A line of ``apt-config dump``, in the form that is asked for."""


@dataclass(frozen=True)
class Mirrors:
    """Debian's archives on the mirrors that the host uses, and what to say of how they were found.

    Both are None on a host that isn't Debian.
    """

    main: str | None = None
    security: str | None = None
    warning: str = ""


def host_mirrors(suite: str) -> list[str]:
    """Return apt source lines for ``suite`` on the mirrors that the host itself uses.

    Empty, so that mmdebstrap's default applies, on a host that isn't Debian.
    """
    mirrors = find_mirrors()
    if mirrors.main is None:
        return []
    lines = [f"deb {mirrors.main} {suite} main"]
    if suite not in {"sid", "unstable"}:
        lines.append(f"deb {mirrors.main} {suite}-updates main")
        if mirrors.security is not None:
            lines.append(f"deb {mirrors.security} {suite}-security main")
    return lines


def find_mirrors() -> Mirrors:
    """Find the host's mirrors: by what apt knows of them, else by what its files of sources name.

    apt knows nothing where its lists were never fetched, or where one of the files is malformed.
    """
    words = ["--format", "$(LABEL)|$(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    listed, complaint = "", ""
    try:
        listed = process.capture(["apt-get", "indextargets", *words])
    except MissingDependency:
        return Mirrors()
    except ProcessFailed as error:
        complaint = next((line for line in error.tail if line.startswith("E: ")), "")
    found = (INDEX.fullmatch(line) for line in reversed(listed.splitlines()))
    places = {match[1]: match[2] for match in found if match is not None}
    if places.keys() != {"Debian", "Debian-Security"}:
        places = _named_mirrors() | places
    main, security = places.get("Debian"), places.get("Debian-Security")
    if not complaint:
        return Mirrors(main, security)
    instead = f"taking {main}, as its files name it" if main else "taking Debian's default mirror"
    return Mirrors(
        main, security, f"The host's apt can't list its sources ({complaint}): {instead}."
    )


def _named_mirrors() -> dict[str, str]:
    """Return the mirrors that the host's files of sources name, each file read by apt alone.

    What a repository is can only be seen by its address here, and by the keyring that it names.
    """
    paths = [APT / "sources.list", *sorted((APT / "sources.list.d").glob("*.sources"))]
    paths += sorted((APT / "sources.list.d").glob("*.list"))
    form = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)"
    places: dict[str, str] = {}
    for path in filter(Path.is_file, paths):
        words = [f"-oDir::Etc::SourceList={path}", "-oDir::Etc::SourceParts=/dev/null"]
        words += ["indextargets", "--no-release-info", "--format", form, "Created-By: Packages"]
        with suppress(ProcessFailed):
            for line in process.capture(["apt-get", *words]).splitlines():
                if match := NAMED.fullmatch(line):
                    label = "Debian-Security" if match["security"] else "Debian"
                    places.setdefault(label, match["uri"])
    return places


def proxy_options() -> list[str]:
    """Return the host's apt proxies as options, so that a rootfs reaches what the host reaches."""
    try:
        lines = process.capture(
            [
                "apt-config",
                "dump",
                "--format",
                '%f "%v";%n',
                "Acquire::http::Proxy",
                "Acquire::https::Proxy",
            ]
        ).splitlines()
    except (MissingDependency, ProcessFailed):
        return []
    return [line for line in lines if PROXY.fullmatch(line)]
