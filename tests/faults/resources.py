"""What runs out: the disk and its inodes at random moments, memory, time, and a mirror's honesty."""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.kills import artefacts, phases
from tests.faults.lab import CHECKOUT, Lab
from tests.faults.server import FAILURES, lying_server

ENOUGH = "8g"
FULL = r"The disk is full|the disk is full|No space left|disk filled up|no inodes|where .* are free"
NO_INODES = "has no inodes left"
GROUPS = Path("/sys/fs/cgroup/memory")

HOG = """\
obj-m += hog.o
$(obj)/hog.o: FORCE
\tpython3 -c "a = [bytearray(1 << 20) for _ in range(4096)]" || kill -9 $$$$
"""
HANG = "obj-m += hang.o\n$(obj)/hang.o: FORCE\n\tsleep 1000\n"


@dataclass
class Ended:
    """What came of a resource that ended, tried so many times; ``faults`` has a line for each."""

    resource: str
    tried: int = 0
    reached: int = 0
    """How often it really ended before rbuild was done."""
    faults: list[str] = field(default_factory=list)


@contextlib.contextmanager
def small_disk(lab: Lab) -> Iterator[Path]:
    """Have the lab's cache on a file system of its own, with the rootfses of before."""
    before = lab.cache
    place = lab.folder / "disk"
    place.mkdir(exist_ok=True)
    mounted: list[Path] = []
    try:
        _mount("-t", "tmpfs", "-o", f"size={ENOUGH}", "tmpfs", place)
        mounted.append(place)
        for kind in ("rootfs", "guests"):
            (place / kind).mkdir()
            for entry in (before / kind).iterdir():
                if entry.is_dir() and not entry.name.startswith("."):
                    (place / kind / entry.name).mkdir()
                    _mount("--bind", entry, place / kind / entry.name)
                    mounted.append(place / kind / entry.name)
        lab.cache = place
        yield place
    finally:
        lab.cache = before
        for path in reversed(mounted):
            subprocess.run(["umount", "--lazy", path], check=True)


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


def fill(place: Path, what: str) -> None:
    """Let a file system have next to nothing left, of bytes or of inodes."""
    status = os.statvfs(place)
    if what == "disk":
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        option = f"size={used + (64 << 10)}"
    else:
        option = f"nr_inodes={status.f_files - status.f_ffree + 4}"
    _mount("-o", f"remount,{option}", place)


def empty(place: Path) -> None:
    _mount("-o", f"remount,size={ENOUGH},nr_inodes=4000000", place)


ENDS = ("disk", "inodes")


def disks(
    lab: Lab,
    seed: int,
    count: int,
    tell: Callable[[str], None] = print,
    ends: Sequence[str] = ENDS,
) -> Iterator[Ended]:
    """Let the disk, or its inodes, run out at random moments of a module's way from nothing."""
    chance = random.Random(seed)
    module = next(phase for phase in phases(lab) if phase.name == "module")
    with small_disk(lab) as place:
        undisturbed = lab.run(*module.words)
        assert undisturbed.code == 0, undisturbed.err
        wanted = artefacts(lab, module, undisturbed)
        for what in ends:
            found = Ended(what)
            for _ in range(count):
                for kind in ("trees", "kdirs"):
                    lab.discard(kind)
                _fill_once(lab, place, what, chance.uniform(0, undisturbed.seconds), found)
                empty(place)
                again = lab.run(*module.words)
                if again.code != 0 or artefacts(lab, module, again) != wanted:
                    found.faults.append(f"the next run: {again.code}: {again.err[-300:]}")
                found.faults += [f"left in the cache: {one}" for one in lab.unfinished()]
                verified = lab.run("status", "--verify")
                if verified.code != 0:
                    found.faults.append(f"the cache isn't intact: {verified.err[-300:]}")
            tell(f"{what}: {found}")
            yield found


def _fill_once(lab: Lab, place: Path, what: str, seconds: float, found: Ended) -> None:
    words = next(phase.words for phase in phases(lab) if phase.name == "module")
    running = lab.start(*words)
    time.sleep(seconds)
    if running.process.poll() is None:
        with contextlib.suppress(subprocess.CalledProcessError):  # it grew meanwhile
            fill(place, what)
    done = running.finish()
    found.tried += 1
    if done.code == 0:
        return
    found.reached += 1
    if done.code != 4 or "Traceback" in done.err or not re.search(FULL, done.err):
        found.faults.append(f"exit code {done.code}: {done.err[-400:]}")
    elif what == "inodes" and NO_INODES not in done.err:
        found.faults.append(f"not said to be inodes: {done.err[-300:]}")


def hostile(lab: Lab, name: str, text: str) -> Path:
    """Write a module whose Kbuild file does something else than to build."""
    folder = lab.folder / name
    folder.mkdir(exist_ok=True)
    (folder / "Kbuild").write_text(text)
    (folder / f"{name}.c").write_text("")
    return folder


def memory(lab: Lab) -> Ended:
    """Let a build run out of memory in a control group that has little."""
    found = Ended("memory", 1)
    group = GROUPS / f"rbuild-faults-{os.getpid()}"
    module = hostile(lab, "hog", HOG)
    words = ["--json", "module", module, "--profile", lab.profile]
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(400 << 20))
        script = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
        argv = ["sh", "-c", script, group, sys.executable, "-m", "rbuild", *words]
        done = subprocess.run(
            argv, env=lab.environment(), cwd=CHECKOUT, capture_output=True, text=True
        )
    finally:
        for _ in range(100):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)
    found.reached = int(done.returncode != 0)
    if done.returncode != 4 or "memory ran out, and the kernel killed" not in done.stderr:
        found.faults.append(f"exit code {done.returncode}: {done.stderr[-500:]}")
    return found


def hang(lab: Lab, *more: str) -> Ended:
    """Let a compiler hang, with a limit of time."""
    found = Ended("time", 1, 1)
    before = lab.seen()
    module = hostile(lab, "hang", HANG)
    words = ("module", module, "--profile", lab.profile, "--timeout", "5", *more)
    done = lab.run(*words)
    if done.code != 1 or "was not done for 5 s, and was ended" not in done.err:
        found.faults.append(f"exit code {done.code}: {done.err[-300:]}")
    found.faults += [f"left: {one}" for one in lab.after_the_end(before)]
    return found


def mirrors(lab: Lab) -> Ended:
    """Fetch a kernel's source from a server that fails in each of its ways."""
    found = Ended("mirror")
    slow = {"silent", "stalls", "drips"}  # as long as the usual patience; unit tests have those
    profile = lab.folder / "mirror.yaml"
    with lying_server() as server:
        for name, said in FAILURES.items():
            if name in slow:
                continue
            text = lab.profile.read_text().split("source:")[1].split("\n", 1)[1]
            source = f"source: {{tarball: '{server.url(name)}', sha256: '{'0' * 64}'}}\n"
            profile.write_text(f"name: mirror\n{source}{text}")
            done = lab.run("module", lab.module, "--profile", profile)
            found.tried += 1
            found.reached += done.code != 0
            words = said.removeprefix("after 2 tries: ")
            if done.code != 4 or "Traceback" in done.err or words not in done.err:
                found.faults.append(f"{name}: exit code {done.code}: {done.err[-300:]}")
    return found


def run(lab: Lab, seed: int, count: int, tell: Callable[[str], None] = print) -> list[Ended]:
    """Try all of it, the disks ``count`` times each."""
    done = [mirrors(lab), hang(lab)]
    if GROUPS.is_dir() and os.access(GROUPS, os.W_OK):
        done.append(memory(lab))
    if os.geteuid() == 0:
        done += disks(lab, seed, count, tell)
    return done
