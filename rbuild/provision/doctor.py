"""What the host has and lacks, each lack with its remedy; remedies applied where asked for."""

from __future__ import annotations

import os
import pwd
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from rbuild.cache.directory import Cache
from rbuild.errors import InfrastructureError, MissingDependency, ProcessFailed
from rbuild.provision import qemu_user
from rbuild.sandbox import binfmt, cgroup, seccomp
from rbuild.sandbox.binfmt import EXIT_STATUS, exit_program
from rbuild.specs import architecture, environment
from rbuild.specs.architecture import Architecture
from rbuild.specs.environment import Environment
from rbuild.ui.format import size
from rbuild.util import data, process

if TYPE_CHECKING:
    from docker import DockerClient

DISK_WANTED = 12 * 1024**3
"""Bytes for three rootfses, a tree and a few KDIRs."""

MEMORY_WANTED = 2 * 1024**3
"""Bytes: rustc and the link of a kernel take about one; make runs several commands at once."""

TRIAL_S = 60.0
"""How long an engine that is busy may take for each step of a container's trial."""


class State(StrEnum):
    """What a check found."""

    OK = "ok"
    MISSING = "missing"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    ``packages`` are Debian packages that mend it; ``action`` what else does, as root.
    """

    name: str
    state: State
    text: str
    remedy: str = ""
    packages: tuple[str, ...] = ()
    action: Callable[[], None] | None = field(default=None, compare=False)


def examine(cache: Cache, needed: Sequence[Environment]) -> list[Finding]:
    """Make all checks; none of them changes anything.

    What builds in the environments ``needed`` lack is missing; what others lack is a warning.
    """
    host = architecture.host()
    found = [
        Finding("architecture", State.OK, host.machine),
        _program("mmdebstrap", "makes the environments", ["mmdebstrap", "--version"]),
        _program("bwrap", "enters the environments", ["bwrap", "--version"], "bubblewrap"),
        _program("setpriv", "ends children with rbuild", ["setpriv", "--version"], "util-linux"),
        _program("git", "fetches kernels from git", ["git", "--version"], optional=True),
        _keyring(),
        _namespaces(),
        _bounds(),
        *_emulation(needed),
        _program(
            "qemu-system-aarch64",
            "boots what was built",
            ["qemu-system-aarch64", "--version"],
            "qemu-system-arm",
        ),
        _program("gpgv", "checks signatures", ["gpgv", "--version"], optional=True),
        _program("find", "verifies what is cached", ["find", "--version"], "findutils"),
        _program("ssh", "deploys", ["ssh", "-V"], "openssh-client", optional=True),
        _program("rsync", "deploys", ["rsync", "--version"], optional=True),
        _disk(cache),
        _memory(),
        *_docker(cache),
    ]
    user = _user()
    if user is not None:
        found.insert(7, _subordinate_ids(user))
    return found


def _user() -> str | None:
    """Return the ordinary user that builds: the caller, or who called sudo."""
    if os.geteuid() == 0:
        return os.environ.get("SUDO_USER")
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def fix(findings: Sequence[Finding], say: Callable[[str], None]) -> None:
    """Apply the remedies of lacks and warnings: packages by apt, then the rest.

    Raises MissingDependency where that needs root or another distribution, InfrastructureError
    where apt fails.
    """
    lacking = [one for one in findings if one.state is not State.OK]
    packages = sorted({package for one in lacking for package in one.packages})
    if packages or any(one.action for one in lacking):
        _may_fix()
    if packages:
        _install(packages, say)
    for one in lacking:
        if one.action is not None:
            say(f"Mending: {one.name}")
            one.action()


def plan(findings: Sequence[Finding]) -> list[str]:
    """Return what ``fix`` would do, a line each."""
    lacking = [one for one in findings if one.state is not State.OK]
    packages = sorted({package for one in lacking for package in one.packages})
    lines = [f"apt-get install {' '.join(packages)}"] if packages else []
    return lines + [one.remedy for one in lacking if one.action is not None]


def _may_fix() -> None:
    if os.geteuid() != 0:
        raise MissingDependency(
            "Only root can install packages and register interpreters.",
            hint=f"Run `{data.as_root('doctor --fix')}`, or apply the remedies by hand.",
        )


def _install(packages: Sequence[str], say: Callable[[str], None]) -> None:
    if shutil.which("apt-get") is None:
        raise MissingDependency(
            "This host has no apt: install by its own means what provides "
            + ", ".join(packages)
            + "."
        )
    env = process.environment(DEBIAN_FRONTEND="noninteractive")
    for words in (
        ["apt-get", "update", "-q"],
        ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages],
    ):
        say(" ".join(words))
        try:
            process.run(words, env=env)
        except ProcessFailed as error:
            raise InfrastructureError(
                f"`{' '.join(words)}` failed.", detail="\n".join(error.tail[-10:])
            ) from error


def _program(
    name: str, purpose: str, argv: Sequence[str], package: str = "", *, optional: bool = False
) -> Finding:
    package = package or name
    if shutil.which(name) is None:
        state = State.WARNING if optional else State.MISSING
        return Finding(
            name, state, f"not installed ({purpose})", f"apt-get install {package}", (package,)
        )
    try:
        version = process.capture(argv).splitlines()[0]
    except (ProcessFailed, IndexError):
        version = "installed"
    return Finding(name, State.OK, version)


def _keyring() -> Finding:
    name = "Debian keyring"
    path = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if path.exists():
        return Finding(name, State.OK, str(path))
    package = "debian-archive-keyring"
    return Finding(
        name,
        State.MISSING,
        "not installed (verifies what is downloaded)",
        f"apt-get install {package}",
        (package,),
    )


def _bounds() -> Finding:
    """Tell whether a build's processes and system calls are bounded."""
    name = "bounds of a build"
    if not seccomp.is_known():
        machine = os.uname().machine
        return Finding(
            name,
            State.WARNING,
            f"no system call filter for {machine}",
            "build untrusted sources on a supported architecture",
        )
    if cgroup.is_exempt():
        with cgroup.bounded() as group:
            if group is None:
                return Finding(
                    name,
                    State.WARNING,
                    "root can't create a cgroup here, so the number of processes is unlimited",
                    "run rbuild as an ordinary user, or where /sys/fs/cgroup can be written",
                )
    return Finding(name, State.OK, f"{cgroup.max_tasks()} processes, common socket families")


def _namespaces() -> Finding:
    """Try what bubblewrap does; settings that forbid it differ from host to host."""
    name = "namespaces"
    if shutil.which("bwrap") is None:
        return Finding(name, State.MISSING, "not tried without bwrap", "", ("bubblewrap",))
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/"]
    words += ["--proc", "/proc", "--dev", "/dev", "--", "true"]
    tried = process.run(words, check=False)
    if tried.returncode == 0:
        return Finding(name, State.OK, "bwrap can make them")
    return Finding(
        name,
        State.MISSING,
        f"not allowed: {tried.text.strip()}",
        "sysctl kernel.unprivileged_userns_clone=1 (Debian), or "
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu); or run as root",
    )


def _subordinate_ids(user: str) -> Finding:
    """Check what mmdebstrap's unshare mode needs: newuidmap, and ids to map (subuid(5))."""
    name = "subordinate ids"
    if shutil.which("newuidmap") is None:
        return Finding(
            name, State.MISSING, "newuidmap is not installed", "apt-get install uidmap", ("uidmap",)
        )
    if user.isdecimal():
        return Finding(
            name,
            State.MISSING,
            f"user id {user} has no entry in passwd",
            f"useradd --uid {user} NAME, or run rbuild as another user",
        )
    entry = re.compile(rf"^{re.escape(user)}:\d+:\d{{5,}}$", re.MULTILINE)
    files = (Path("/etc/subuid"), Path("/etc/subgid"))
    lacking = [
        str(path) for path in files if not path.exists() or not entry.search(path.read_text())
    ]
    if not lacking:
        return Finding(name, State.OK, f"{user} has ranges in /etc/subuid and /etc/subgid")
    words = [
        "usermod",
        "--add-subuids",
        "100000-165535",
        "--add-subgids",
        "100000-165535",
        "--",
        user,
    ]

    def give() -> None:
        process.run(words)

    return Finding(
        name,
        State.MISSING,
        f"{user} has no range in {' and '.join(lacking)}",
        " ".join(words),
        action=give,
    )


def _emulation(needed: Sequence[Environment]) -> list[Finding]:
    """Try a program of each architecture that an environment emulates on this host."""
    bases = [environment.load(name).base for name in environment.names()]
    emulated = {base.architecture.debian: base.architecture for base in bases if base.emulated}
    wanted = {
        base.architecture.debian
        for base in (one.base for one in needed)
        if qemu_user.is_hosts(base)
    }
    return [_programs_of(one, is_needed=one.debian in wanted) for one in emulated.values()]


EMULATION_PACKAGES = ("qemu-user-static", "binfmt-support", "arch-test")


def _programs_of(arch: Architecture, *, is_needed: bool) -> Finding:
    name = f"{arch.machine} programs"
    problem = binfmt.problem(arch)
    if problem is None:
        found = binfmt.registration(arch)
        by = "" if found is None else f", by {found.interpreter} (flags {found.flags})"
        return Finding(name, State.OK, f"run in a rootfs{by}")
    return Finding(
        name,
        State.MISSING if is_needed else State.WARNING,
        problem if is_needed else f"{problem} (an environment needs it that isn't asked for)",
        f"update-binfmts --enable qemu-{arch.qemu}",
        EMULATION_PACKAGES,
        lambda: binfmt.enable(arch),
    )


def _disk(cache: Cache) -> Finding:
    folder = cache.root
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{size(free)} free for {cache.root}"
    if free < DISK_WANTED:
        return Finding(
            "disk",
            State.WARNING,
            text,
            f"all environments need about {size(DISK_WANTED)}; see --cache-dir",
        )
    return Finding("disk", State.OK, text)


def _memory() -> Finding:
    count = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if count < MEMORY_WANTED:
        remedy = f"{size(MEMORY_WANTED)} is comfortable"
        return Finding("memory", State.WARNING, size(count), remedy)
    return Finding("memory", State.OK, size(count))


def _docker(cache: Cache) -> list[Finding]:
    """Check the Docker engine, if there is one, and which programs its containers can run."""
    from rbuild.sandbox.docker.engine import LOOK_S, connect  # noqa: PLC0415 - the SDK loads slowly

    name = "docker (optional)"
    try:
        client = connect(LOOK_S)
        found = client.version()
    except MissingDependency as error:
        return [Finding(name, State.OK, f"no engine: {error.message}")]
    text = f"engine {found.get('Version')}, API {found.get('ApiVersion')}, {found.get('Os')}"
    findings = [Finding(name, State.OK, f"{text}/{found.get('Arch')}")]
    parts = [part for name in environment.names() for part in environment.load(name).rootfses]
    wanted = {part.architecture.debian: part.architecture for part in parts}
    wanted.pop(str(found.get("Arch")), None)
    client.api.timeout = TRIAL_S
    with cache.console.step("Trying containers of other architectures", total=len(wanted)) as step:
        for number, arch in enumerate(wanted.values()):
            step.update(arch.machine, done=number)
            findings.append(_in_container(arch, client))
    return findings


def _in_container(arch: Architecture, client: DockerClient) -> Finding:
    """Try a program of an architecture in a container.  What the engine lacks is no obstacle."""
    from rbuild.sandbox.docker.image import platform_of, status_of  # noqa: PLC0415 - only with an engine

    name = f"docker, {arch.machine} programs (optional)"
    try:
        status = status_of(client, exit_program(arch), platform_of(arch.debian))
    except (MissingDependency, InfrastructureError) as error:
        return Finding(name, State.WARNING, error.message, error.hint or "")
    if status == EXIT_STATUS:
        return Finding(name, State.OK, "run")
    return Finding(name, State.WARNING, _ended(status), "reinstall qemu-user-static")


def _ended(status: int) -> str:
    return f"ended with status {status}, not {EXIT_STATUS}"
