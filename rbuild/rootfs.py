"""Provisioning: a Debian rootfs made by mmdebstrap from a definition, published in the Store."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rbuild import binfmt, process
from rbuild.console import Step
from rbuild.environment import Rootfs
from rbuild.errors import FREE_SPACE, HostLacks, InfrastructureError, ProcessFailed, RbuildError
from rbuild.kept import Kept
from rbuild.store import Entry, Store, digest, is_noexec, remove_tree

SPACE_NEEDED = 4 * 1024**3
"""Bytes that a rootfs takes at most while it is being made."""

NETWORK_WORDS = re.compile(
    r"Could not (connect|resolve)|Temporary failure|Failed to fetch|Unable to fetch|"
    r"Connection (failed|refused|timed out)|Network is unreachable|does not have a Release file"
)
MISMATCH_WORDS = re.compile(
    r"File has unexpected size|Hash Sum mismatch|Release file for \S+ is expired"
)
SPACE_WORDS = re.compile(r"No space left on device|enough (free )?space|Disk quota exceeded")

# Manuals and translations make no difference to a build, and are a third of the files.
NOT_INSTALLED = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)


@dataclass(frozen=True)
class Provisioned:
    """A rootfs that is in the Store: where, and the version of each of its packages."""

    path: Path
    key: str
    packages: dict[str, str]
    seconds: float
    cached: bool
    created: float


Make = Callable[[Rootfs, Path, Callable[[str], None]], None]
"""Makes a rootfs in a folder that isn't there yet, and tells each line of what it does."""


def provision(
    rootfs: Rootfs, store: Store, *, force: bool = False, make: Make | None = None
) -> Provisioned:
    """Return the rootfs from the Store, or make it first (``make``: by mmdebstrap).

    Raises HostLacks where mmdebstrap or emulation is missing, InfrastructureError where the
    mirror can't be reached or the disk is full.
    """
    entry = rootfs.entry(store)
    if not force and (found := _found(entry, store)) is not None:
        return found
    with store.lock(entry):
        if not force and (found := _found(entry, store)) is not None:
            return found
        if rootfs.emulated and make is None:
            binfmt.require(rootfs.architecture)
        store.need_space(SPACE_NEEDED, f"The {rootfs.definition.name} rootfs")
        return _make(rootfs, store, entry, make or debootstrap)


def _found(entry: Entry, store: Store) -> Provisioned | None:
    metadata = store.rely(entry)
    if metadata is None:
        return None
    kept = Kept(metadata)
    try:
        return Provisioned(
            entry.path / "root",
            entry.name,
            kept.by_name("packages"),
            kept.number("seconds"),
            cached=True,
            created=kept.number("created"),
        )
    except ValueError:
        return None


def _make(rootfs: Rootfs, store: Store, entry: Entry, make: Make) -> Provisioned:
    definition = rootfs.definition
    title = f"Provisioning {definition.name} ({definition.suite}, {rootfs.architecture.debian})"
    started = time.monotonic()
    partial = store.partial(entry)
    root = partial / "root"
    if warning := find_mirrors().warning:
        store.console.warn(warning)
    maker, parts = ("mmdebstrap", 2) if make is debootstrap else ("engine", 1)
    with store.console.step(title, key=f"{entry.name} {maker}") as step:
        try:
            make(rootfs, root, _Watcher(step, store, parts))
        except ProcessFailed as error:
            raise _explain(error, definition.name) from error
        packages = installed(root)
        seconds = time.monotonic() - started
        store.publish(
            entry,
            partial,
            {
                "definition": definition.model_dump(mode="json"),
                "architecture": rootfs.architecture.debian,
                "packages": packages,
                "seconds": seconds,
            },
        )
    found = _found(entry, store)
    assert found is not None
    return replace(found, cached=False)


def debootstrap(rootfs: Rootfs, root: Path, watcher: Callable[[str], None]) -> None:
    """Make a rootfs by mmdebstrap: as root in a folder, else through a user namespace."""
    root_user = os.geteuid() == 0
    words = ["mmdebstrap", "--verbose", "--variant=minbase"]
    words += [f"--architectures={rootfs.architecture.debian}"]
    words += [f"--mode={'root' if root_user else 'unshare'}"]
    words += [f"--include={','.join(rootfs.definition.all_packages)}"]
    words += [f"--dpkgopt={option}" for option in NOT_INSTALLED]
    words += [f"--aptopt={option}" for option in proxy_options()]
    # Nothing in a rootfs is ever upgraded in place: fsync would only cost time.
    words += ["--dpkgopt=force-unsafe-io"]
    words += [f"--customize-hook={_folders_hook(rootfs.mount_points)}"]
    if others := rootfs.definition.other_suites:
        words += [f"--setup-hook={_suites_hook(rootfs.definition.suite, others)}"]
    mirrors = host_mirrors(rootfs.definition.suite)
    # No other variable of a definition may reach a program of the host's.
    env = _environment() | rootfs.emulator_variables
    with _temporary(root.parent) as folder:
        env["TMPDIR"] = str(folder)
        if root_user:
            # In namespaces of its own, so that neither a mount nor a process outlives it.
            apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--"]
            argv = [*apart, *words, "--format=directory", "--", rootfs.definition.suite, str(root)]
            process.run(process.dies_with_parent([*argv, *mirrors]), env=env, on_line=watcher)
            return
        _need_name()
        # An ordinary user can't own files of other ids: what mmdebstrap packs in its user
        # namespace is unpacked as the user's own.
        root.mkdir()
        pack = [*words, "--format=tar", "--", rootfs.definition.suite, "-", *mirrors]
        process.pipe(process.dies_with_parent(pack), unpacking(root), watcher, env=env)
    settle(root)


def _need_name() -> None:
    """Raise HostLacks unless the user has a name, by which newuidmap(1) looks for its ids."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError as error:
        raise HostLacks(
            f"User id {os.getuid()} has no entry in passwd, so that it has no subordinate ids.",
            hint=f"Add a user of that id (`useradd --uid {os.getuid()} NAME`), or run as another.",
        ) from error


def _environment() -> dict[str, str]:
    """Return what mmdebstrap, and so the packages' scripts, are told of the caller's environment.

    A proxy, which apt needs, and where programs are; no secret that may stand there.
    """
    proxies = {name for name in os.environ if name.lower().endswith("_proxy")}
    kept = {"PATH", "HOME", *proxies} & os.environ.keys()
    return {"LC_ALL": "C.UTF-8", **{name: os.environ[name] for name in kept}}


@contextmanager
def _temporary(partial: Path) -> Iterator[Path]:
    """Have a folder for mmdebstrap's temporary files, of a name that the next run finds again.

    To an ordinary user's mmdebstrap, which has other ids in its user namespace, a home may be
    closed; so that its folder is where other temporary files are.
    """
    folder = partial / "tmp"
    if os.geteuid() != 0:
        name = f"rbuild-{os.getuid()}-{partial.name.strip('.')}-{digest(str(partial))}"
        folder = Path(tempfile.gettempdir()) / name
    try:
        _remove(folder)
        folder.mkdir(mode=0o755)
    except OSError as error:
        raise InfrastructureError(
            f"{folder} is in the way, and can't be removed: {error.strerror}.",
            hint="mmdebstrap needs it for its temporary files; TMPDIR says where such are.",
        ) from error
    try:
        if is_noexec(folder):
            raise HostLacks(
                f"{folder.parent} is on a file system that is mounted noexec: mmdebstrap can't run "
                "the packages' programs there.",
                hint="Set TMPDIR to a folder whose file system is mounted with exec.",
            )
        yield folder
    finally:
        with suppress(OSError):
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a temporary folder, also what subordinate ids (subuid(5)) own in it."""
    if not folder.is_symlink() and folder.is_dir() and os.geteuid() != 0:
        apart = ["unshare", "--user", "--map-root-user", "--map-auto", "--"]
        with suppress(HostLacks, ProcessFailed):
            process.run([*apart, "find", str(folder), "-mindepth", "1", "-delete"])
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        remove_tree(folder)


def _folders_hook(paths: Sequence[str]) -> str:
    # In the rootfs, where a link such as /var/run leads to no folder of the host's.
    hook = f'chroot "$1" /bin/mkdir -p -- {shlex.join(paths)}'
    if "/usr/lib64" in paths:
        hook += '; [ -e "$1/lib64" ] || ln -s usr/lib64 "$1/lib64"'
    return hook


def unpacking(root: Path) -> list[str]:
    """Return what unpacks a rootfs's tar from its input, as an ordinary user: see ``settle``.

    All is the user's own.  Nothing is set-user-ID, which would be for this user's rights.  Whatever
    the umask, others can read it: in a container it is root's, and its reader isn't.
    """
    words = ["tar", "--extract", f"--directory={root}", "--no-same-owner", "--no-same-permissions"]
    words += ["--anchored", "--exclude=./dev/*", "--exclude=dev/*"]
    return ["sh", "-c", 'umask 022; exec "$@"', "sh", *words]


def settle(root: Path) -> None:
    """Give an ordinary user's unpacked rootfs the modes that the umask and tar don't.

    Temporary folders are everybody's: runc gives a tmpfs the mode of what it covers.  The owner may
    remove all of it.
    """
    root.chmod(0o755)
    for name in ("tmp", "var/tmp"):
        path = root / name
        if path.is_dir() and path.resolve() == root.resolve() / name:
            path.chmod(0o1777)
    for folder, subfolders, _ in os.walk(root):
        for name in subfolders:
            path = Path(folder, name)
            if not path.is_symlink() and not os.access(path, os.W_OK | os.X_OK):
                path.chmod(path.stat().st_mode | 0o700)


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
    except HostLacks:
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


def _suites_hook(suite: str, others: Sequence[str]) -> str:
    """Return what adds further suites to a rootfs's sources, on the mirror of its own suite."""
    line = rf"s/^(deb .*) {re.escape(suite)} main$/\1 $other main/p"
    return (
        f"for other in {shlex.join(others)}; do "
        f'sed -nE "{line}" "$1/etc/apt/sources.list" >"$1/etc/apt/sources.list.d/$other.list"; done'
    )


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
    except (HostLacks, ProcessFailed):
        return []
    return [line for line in lines if PROXY.fullmatch(line)]


def installed(root: Path) -> dict[str, str]:
    """Return the version of each package that dpkg's status file calls installed."""
    found: dict[str, str] = {}
    for block in (root / "var/lib/dpkg/status").read_text(errors="replace").split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if re.match(r"[A-Z][\w-]*: ", line)
        )
        whole = {"Package", "Version"} <= fields.keys()
        if whole and fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields["Version"]
    return found


def same_version(one: str, other: str) -> bool:
    """Tell whether two Debian versions are of the same source.

    ``+b1`` marks a mere rebuild, ``cross1`` the cross compiler made of the same gcc.
    """
    rebuilt = re.compile(r"(\+b|cross)\d+$")
    return rebuilt.sub("", one) == rebuilt.sub("", other)


class _Watcher:
    """Reads mmdebstrap's and apt's output into progress: packages set up, of those to come.

    mmdebstrap lets apt install the essential packages first; only after them apt tells how many
    others there are.  ``parts`` is how often it has to tell until all are known.
    """

    def __init__(self, step: Step, store: Store, parts: int) -> None:
        self._step = step
        self._parts = parts
        self._console = store.console
        self._expected: list[int] = []
        self._done = 0

    def __call__(self, line: str) -> None:
        self._console.verbose(line)
        if found := re.search(r"(\d+) newly installed", line):
            self._expected.append(int(found[1]))
        if line.startswith(("Setting up ", "Unpacking ")):
            # Each package is first unpacked, then set up.
            self._done += 1
            whole = 2 * sum(self._expected) if len(self._expected) >= self._parts else None
            self._step.update(line, done=self._done, total=whole)
        elif line.startswith(("I: ", "Get:")):
            self._step.update(line.removeprefix("I: "))


def _explain(error: ProcessFailed, name: str) -> RbuildError:
    text = "\n".join(error.tail)
    own = [line for line in error.tail if line.startswith(("E: ", "W: ", "Err:", "tar: "))]
    detail = "\n".join(own[-8:] or error.tail[-8:])
    if SPACE_WORDS.search(text):
        return InfrastructureError(
            f"The disk filled up while {name} was being provisioned.",
            detail=detail,
            hint=FREE_SPACE,
        )
    if MISMATCH_WORDS.search(text):
        return InfrastructureError(
            f"The Debian mirror is not in order for {name}: what it has isn't what was signed.",
            detail=detail,
            hint="It happens while a mirror is brought up to date: try later, or another mirror.",
        )
    if NETWORK_WORDS.search(text):
        return InfrastructureError(
            f"The Debian mirror could not be reached while {name} was being provisioned.",
            detail=detail,
            hint="Check the network and the host's apt configuration, then run it again.",
        )
    if "subuid" in text or "newuidmap" in text:
        return HostLacks(
            "mmdebstrap can't make a user namespace for this user.",
            detail=detail,
            hint="Install uidmap and give the user a range in /etc/subuid and /etc/subgid "
            "(`rbuild doctor` checks both).",
        )
    if "tar" in error.argv:
        status = error.returncode
        ended = f"status {status}" if status >= 0 else f"ended by signal {-status}"
        return InfrastructureError(f"tar failed to unpack {name} ({ended}).", detail=detail)
    return InfrastructureError(f"mmdebstrap failed to provision {name}.", detail=detail)
