"""A laboratory: a cache of its own with a small real kernel, and an eye on what is left behind."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rbuild.sandbox.cgroup import NAME
from rbuild.sandbox.cgroup import ROOT as GROUPS

CHECKOUT = Path(__file__).parents[2]
PR_SET_CHILD_SUBREAPER = 36
GONE_WITHIN_S = 10.0
"""How long what belonged to a killed rbuild may take to end by itself."""

LEFT_IN_STORE = re.compile(
    r"\..*(\.partial|\.trash-[0-9-]+)|\..*\.[0-9]+|\.rbuild-[0-9a-f]+-[0-9]+-[0-9a-f]+"
)
"""Names of what is unfinished in a cache: nothing of it stays after a run that succeeds."""

OF_RBUILD = re.compile(r"(?!rbuild-(engine|bait|fuzz)-).*(rbuild|mmdebstrap)", re.I)
"""Names of temporary files that rbuild may leave; engines, baits and fuzzing are of other tests."""

TRIMMED = (
    *("accel", "bluetooth", "comedi", "gpu", "iio", "infiniband", "isdn", "md", "media"),
    *("mtd", "net", "nvme", "scsi", "staging", "target", "usb"),
)
"""Folders of drivers of which a small kernel needs the Kconfig and Makefiles only."""

PROFILE = """\
name: small
source: {{tarball: "file://{tarball}", sha256: {sha256}}}
config:
  base: tinyconfig
  options: {{{options}}}
driver: c
"""

OPTIONS = (
    *("MODULES", "MODULE_UNLOAD", "OF", "SPI", "SPI_MASTER", "HIGH_RES_TIMERS", "TTY", "PRINTK"),
    *("SERIAL_AMBA_PL011", "SERIAL_AMBA_PL011_CONSOLE", "BLK_DEV_INITRD", "BINFMT_ELF"),
    *("BINFMT_SCRIPT", "PROC_FS", "SYSFS", "DEVTMPFS", "MULTIUSER", "FUTEX", "POSIX_TIMERS", "BUG"),
)
"""What a kernel needs to load the C driver in QEMU; all else is as tinyconfig has it."""

MODULE = """\
// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>

static int __init mine_init(void)
{
\tpr_info("hello\\n");
\treturn 0;
}
module_init(mine_init);

static void __exit mine_exit(void)
{
}
module_exit(mine_exit);

MODULE_DESCRIPTION("A module of the crash test");
MODULE_LICENSE("GPL");
"""


LAUNCH = """\
import fcntl, os, signal, sys, termios
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
if os.isatty(2):
    fcntl.ioctl(2, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Becomes rbuild as a user's shell starts it: no signal ignored, on a terminal if there is one."""


@dataclass(frozen=True)
class Done:
    """A finished rbuild."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Running:
    """An rbuild under way: what it has said so far is in ``log``."""

    process: subprocess.Popen[bytes]
    out: IO[bytes]
    log: Path
    began: float = field(default_factory=time.monotonic)
    terminal: int | None = None

    def said(self) -> str:
        """Return all that it has said on stderr so far."""
        if self.terminal is not None:
            with contextlib.suppress(OSError), self.log.open("ab") as file:
                while select.select([self.terminal], [], [], 0)[0]:
                    file.write(os.read(self.terminal, 65536))
        return self.log.read_text(errors="replace")

    def hang_up(self) -> None:
        """Close its terminal, as a window is closed."""
        assert self.terminal is not None
        os.close(self.terminal)
        self.terminal = None

    def wait_for(self, pattern: str, seconds: float) -> bool:
        """Wait until it says something; False if it ended without, or never did."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if re.search(pattern, self.said(), re.M):
                return True
            if self.process.poll() is not None:
                return bool(re.search(pattern, self.said(), re.M))
            time.sleep(0.005)
        return False

    def end(self, number: int) -> bool:
        """Send a signal, if it is still there to get it."""
        if self.process.poll() is not None:
            return False
        self.process.send_signal(number)
        return True

    def finish(self) -> Done:
        code = self.process.wait()
        self.out.seek(0)
        found = self.out.read().decode("utf-8", "replace")
        self.out.close()
        if self.terminal is not None:
            self.hang_up()
        return Done(code, found, self.said(), time.monotonic() - self.began)


@dataclass(frozen=True)
class Seen:
    """What of the host's may be left behind by a run."""

    mounts: frozenset[str]
    loops: frozenset[str]
    groups: frozenset[str]
    """Control groups of rbuilds that are gone."""
    temporary: frozenset[str]
    containers: frozenset[str]
    running: frozenset[str]
    """Those of the containers that run."""
    processes: frozenset[int]
    """Descendants of the test's process: an engine, or a cluster, that other tests have started."""

    def left(self, before: Seen) -> list[str]:
        """Return what is there now and wasn't before."""
        kinds = {
            "mount": self.mounts - before.mounts,
            "loop device": self.loops - before.loops,
            "control group": self.groups - before.groups,
            "temporary": self.temporary - before.temporary,
            "container": self.containers - before.containers,
        }
        return [f"{kind} {one}" for kind, found in kinds.items() for one in sorted(found)]


class Lab:
    """A cache with a small kernel's profile and a module, in a folder of its own."""

    def __init__(self, folder: Path, rootfs_from: Path | None = None) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.engine: Any = None
        self.killer: Any = None
        self.rootfs_from = rootfs_from
        self.profile = folder / "small.yaml"
        self.module = folder / "mine"
        self._number = 0
        self._own: set[int] = set()
        become_subreaper()

    # What is built.

    def equip(self, tree: Path) -> None:
        """Make the small kernel's tarball from an extracted ``tree``, the profile and the module."""
        tarball = self.folder / "small.tar"
        if not tarball.exists():
            trim(tree, tarball)
        sha256 = hashlib.file_digest(tarball.open("rb"), "sha256").hexdigest()
        options = ", ".join(f"{name}: y" for name in OPTIONS)
        text = PROFILE.format(tarball=tarball, sha256=sha256, options=options)
        self.profile.write_text(text)
        self.module.mkdir(exist_ok=True)
        (self.module / "Kbuild").write_text("obj-m += mine.o\n")
        (self.module / "mine.c").write_text(MODULE)
        if self.rootfs_from is not None:
            self.take_rootfses()

    def take_rootfses(self) -> None:
        """Share the rootfses of another cache by hard links: nobody ever writes into them."""
        assert self.rootfs_from is not None
        for kind in ("rootfs", "guests"):
            (self.cache / kind).mkdir(parents=True, exist_ok=True)
            for entry in sorted((self.rootfs_from / kind).glob("*")):
                wanted = entry.name.startswith(("cross-", "package-", "busybox-"))
                if wanted and not (self.cache / kind / entry.name).exists():
                    self.copy(entry, self.cache / kind / entry.name, links=True)

    @staticmethod
    def copy(source: Path, target: Path, *, links: bool = False) -> None:
        aside = target.with_name(f".{target.name}.copy")
        shutil.rmtree(aside, ignore_errors=True)
        subprocess.run(["cp", "-al" if links else "-a", source, aside], check=True)
        aside.rename(target)

    def touch(self) -> None:
        """Change a comment of the module: it must be built anew, into the same bytes."""
        self._number += 1
        (self.module / "mine.c").write_text(f"{MODULE}// {self._number}\n")

    # How it is run.

    def environment(self) -> dict[str, str]:
        found = {
            **os.environ,
            "RBUILD_CACHE_DIR": str(self.cache),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(CHECKOUT),
            "NO_COLOR": "1",
        }
        if self.engine is not None:
            found["DOCKER_HOST"] = self.engine.host
        return found

    def start(self, *words: str | Path, terminal: bool = False, cwd: Path | None = None) -> Running:
        """Start rbuild in a session of its own; on a terminal of its own if asked for."""
        log = self.folder / "said"
        out = (self.folder / "out").open("w+b")
        argv = [sys.executable, "-c", LAUNCH, "-m", "rbuild", *map(str, words)]
        master = slave = None
        with log.open("wb") as said:
            if terminal:
                master, slave = os.openpty()
            process = subprocess.Popen(
                argv,
                env=self.environment(),
                stdin=subprocess.DEVNULL if slave is None else slave,
                stdout=out,
                stderr=said if slave is None else slave,
                start_new_session=True,
                cwd=cwd,
            )
            if slave is not None:
                os.close(slave)
        self._own.add(process.pid)
        return Running(process, out, log, terminal=master)

    def run(self, *words: str | Path, cwd: Path | None = None) -> Done:
        return self.start(*words, cwd=cwd).finish()

    def run_here(self, *words: str) -> None:
        """Run rbuild on the cache that the user has."""
        argv = [sys.executable, "-m", "rbuild", "--quiet", *words]
        subprocess.run(argv, check=True, cwd=CHECKOUT, stdout=subprocess.DEVNULL)

    # What is left.

    def seen(self) -> Seen:
        places = [self.temporary, Path("/var/tmp"), Path("/dev/shm")]
        if self.temporary.parent != Path("/tmp"):
            places.append(Path("/tmp"))
        temporary = {
            str(path)
            for place in places
            if place.is_dir()
            for path in place.iterdir()
            if place == self.temporary or OF_RBUILD.match(path.name)
        }
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        mounts = {line.split(" ")[4] for line in lines}
        loops = {
            str(path.read_text()).strip()
            for path in Path("/sys/block").glob("loop*/loop/backing_file")
        }
        groups = {
            str(path)
            for path in [
                *GROUPS.glob("rbuild-*"),
                *GROUPS.glob("*/rbuild-*"),
                *GROUPS.glob("pids/**/rbuild-*"),
            ]
            if (found := NAME.fullmatch(path.name)) and not Path("/proc", found[1]).exists()
        }
        states = (
            {one["Id"][:12]: one["State"] for one in self.engine.containers()}
            if self.engine is not None
            else {}
        )
        # Others are of an engine, or of another lab beside this one.
        mounts = {one for one in mounts if self._is_own(Path(one))}
        return Seen(
            frozenset(mounts),
            frozenset(loops),
            frozenset(groups),
            frozenset(temporary),
            frozenset(states),
            frozenset(name for name, state in states.items() if state == "running"),
            frozenset(descendants(os.getpid())),
        )

    def left(self, before: Seen) -> list[str]:
        """Return what is left, and still is a moment later: other rbuilds here may just be ending."""
        found = self.seen().left(before)
        if found:
            time.sleep(1)
            after = self.seen().left(before)
            found = [one for one in found if one in after]
        return found

    def _is_own(self, mount: Path) -> bool:
        """Tell whether a mount is in this lab, or has a temporary name of rbuild's."""
        return self.folder in mount.parents or any(map(OF_RBUILD.match, mount.parts))

    def processes(self, before: Seen) -> list[str]:
        """Return the command lines of all that this process has begotten since ``before``."""
        found = []
        for number in descendants(os.getpid(), without=before.processes):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ")
                if line:
                    found.append(line.decode("utf-8", "replace")[:120])
        return found

    def end_all(self, before: Seen) -> None:
        """Kill whatever is left of what was started here since ``before``."""
        for number in list(descendants(os.getpid(), without=before.processes)):
            if number not in self._own:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)

    def remove(self) -> None:
        """Leave nothing of it on the disk."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def after_the_end(self, before: Seen, seconds: float = GONE_WITHIN_S) -> list[str]:
        """Wait until nothing runs any more; return the processes, containers and mounts that stay.

        A container that doesn't run, a control group and temporary files are for the next run to remove.
        """
        ends = time.monotonic() + seconds
        while True:
            reap(self._own)
            now = self.seen()
            stay = [f"process {one}" for one in self.processes(before)]
            stay += [f"running container {one}" for one in sorted(now.running - before.running)]
            stay += [
                one
                for one in now.left(before)
                if not one.startswith(("temporary", "container", "control group"))
            ]
            if not stay or time.monotonic() > ends:
                return stay
            time.sleep(0.02)

    def unfinished(self) -> list[str]:
        """Return what is unfinished in the cache, by its names."""
        return [
            str(path.relative_to(self.cache))
            for kind in self.cache.iterdir()
            if kind.is_dir()
            for folder in (kind, *(one for one in kind.iterdir() if one.is_dir()))
            for path in folder.iterdir()
            if LEFT_IN_STORE.fullmatch(path.name)
        ]

    def discard(self, kind: str, begins: str = "") -> None:
        """Remove a room's entries, and what is unfinished of them."""
        for path in (self.cache / kind).glob("*"):
            if path.is_dir() and path.name.lstrip(".").startswith(begins):
                shutil.rmtree(path)


def trim(tree: Path, tarball: Path) -> None:
    """Pack a kernel's source without what a small arm64 kernel needs none of."""
    kept = ("Makefile", "Kconfig", "Kbuild")
    names = []
    for folder, subfolders, files in os.walk(tree):
        here = Path(folder).relative_to(tree)
        # Links to folders are names, too, such as those of scripts/dtc/include-prefixes.
        files += [name for name in subfolders if Path(folder, name).is_symlink()]
        whole = _is_needed(here)
        names += [
            str(Path("linux", here, name)) for name in files if whole or name.startswith(kept)
        ]
    listed_path = tarball.parent / "with"
    listed_path.write_text("".join(f"{name}\n" for name in names))
    words: list[str | Path] = [
        "tar",
        "--create",
        "--file",
        tarball,
        "--transform",
        "s,^linux/,small/,",
    ]
    link = tarball.parent / "linux"
    link.unlink(missing_ok=True)
    link.symlink_to(tree)
    subprocess.run(
        [*words, "--directory", tarball.parent, "--no-recursion", "--files-from", listed_path],
        check=True,
    )
    link.unlink()


def _is_needed(folder: Path) -> bool:
    """Tell whether a small arm64 kernel needs more of a folder than its Kconfig and Makefile."""
    top, *below = folder.parts or ("",)
    if top in {"sound", "Documentation"}:
        return False
    if top == "tools":
        return below[:1] in (["include"], ["build"], ["scripts"])
    if top == "arch":
        return below[:1] in ([], ["arm64"])
    return top != "drivers" or not below or below[0] not in TRIMMED


def become_subreaper() -> None:
    """Let what a killed rbuild leaves become a child of this process (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(own: Collection[int]) -> None:
    """Wait for orphans that have ended; those in ``own`` somebody else waits for."""
    for number in descendants(os.getpid(), deep=False):
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z" and number not in own:
                os.waitpid(number, os.WNOHANG)


def descendants(root: int, *, deep: bool = True, without: Collection[int] = ()) -> Iterator[int]:
    """Yield the processes that descend from one; those ``without`` and their own not."""
    pending: list[Sequence[int]] = [_children(root)]
    while pending:
        for number in pending.pop():
            if number in without:
                continue
            yield number
            if deep:
                pending.append(_children(number))


def _children(number: int) -> list[int]:
    found: list[int] = []
    # It may end while it is looked at.
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{number}/task").glob("*/children"):
            found += [int(word) for word in path.read_text().split()]
    return found
