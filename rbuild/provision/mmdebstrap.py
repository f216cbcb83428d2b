"""Rootfses made by mmdebstrap: as root, or through a user namespace."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rbuild.errors import InfrastructureError, MissingDependency, ProcessFailed
from rbuild.provision.mirrors import host_mirrors, proxy_options
from rbuild.specs.environment import Rootfs
from rbuild.util import pipe, process
from rbuild.util.disk import is_noexec
from rbuild.util.folders import remove_tree
from rbuild.util.hashes import digest

# Manuals and translations make no difference to a build, and are a third of the files.
NOT_INSTALLED = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)


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
        pipe.pipe(process.dies_with_parent(pack), unpacking(root), watcher, env=env)
    fix_modes(root)


def _need_name() -> None:
    """Raise MissingDependency unless the user has a name, which newuidmap(1) looks up."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError as error:
        raise MissingDependency(
            f"User id {os.getuid()} has no entry in passwd, so that it has no subordinate ids.",
            hint=f"Add a user of that id (`useradd --uid {os.getuid()} NAME`), or run as another.",
        ) from error


def _environment() -> dict[str, str]:
    """Return what mmdebstrap, and so the packages' scripts, are told of the caller's environment.

    A proxy, which apt needs, and where programs are; no secret that may stand there.
    """
    proxies = {name for name in os.environ if name.lower().endswith("_proxy")}
    names = {"PATH", "HOME", *proxies} & os.environ.keys()
    return {"LC_ALL": "C.UTF-8", **{name: os.environ[name] for name in names}}


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
            raise MissingDependency(
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
        with suppress(MissingDependency, ProcessFailed):
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
    """Return what unpacks a rootfs's tar from its input, as an ordinary user: see ``fix_modes``.

    All is the user's own.  Nothing is set-user-ID, which would be for this user's rights.  Whatever
    the umask, others can read it: in a container it is root's, and its reader isn't.
    """
    words = ["tar", "--extract", f"--directory={root}", "--no-same-owner", "--no-same-permissions"]
    words += ["--anchored", "--exclude=./dev/*", "--exclude=dev/*"]
    return ["sh", "-c", 'umask 022; exec "$@"', "sh", *words]


def fix_modes(root: Path) -> None:
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


def _suites_hook(suite: str, others: Sequence[str]) -> str:
    """Return what adds further suites to a rootfs's sources, on the mirror of its own suite."""
    line = rf"s/^(deb .*) {re.escape(suite)} main$/\1 $other main/p"
    return (
        f"for other in {shlex.join(others)}; do "
        f'sed -nE "{line}" "$1/etc/apt/sources.list" >"$1/etc/apt/sources.list.d/$other.list"; done'
    )
