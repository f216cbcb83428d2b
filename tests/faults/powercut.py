"""Power cuts: each file that a build has left is emptied, as a disk may have it, and built again.

A power cut can't be had here; what it leaves can: files whose names and lengths reached the disk
and whose content didn't.  For the machine that was started again stands another boot id in what
was being written to.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.kills import keep, restore
from tests.faults.lab import MODULE, Lab

SECOND = "int mine_second(void);\nint mine_second(void)\n{\n\treturn 2;\n}\n"
"""Another source of the module: what is edited isn't all that is built."""

CUT_SHORT = ("Module.symvers", "modules.order", ".config", "vmlinux.o")
"""Files of a kernel that are emptied besides objects, if they are there."""


@dataclass
class Cuts:
    """What came of the files that were cut off; a line for each fault."""

    of: str
    tried: int = 0
    faults: list[str] = field(default_factory=list)


def modules(lab: Lab, step: int = 1) -> Cuts:
    """Cut off every ``step``-th file that a module's build has left; build, edited and not."""
    found = Cuts("module")
    folder = lab.folder / "powercut"
    folder.mkdir()
    (folder / "Kbuild").write_text("obj-m += mine.o\nmine-y := one.o second.o\n")
    (folder / "one.c").write_text(MODULE)
    (folder / "second.c").write_text(SECOND)
    sound, product = _build(lab, folder)
    work = product.parent
    names = sorted(path.relative_to(work) for path in work.rglob("*") if path.is_file())
    names = [name for name in names if not (folder / name).exists()]
    for number, name in enumerate(names[::step]):
        os.truncate(work / name, 0)
        is_edited = bool(number % 2)
        if is_edited:
            (folder / "one.c").write_text(f"{MODULE}// {number}\n")
        else:
            # The product is looked at in each run; what else was lost shows once it is built.
            (work.parent / "state.json").write_bytes(b"")
        _try(found, f"{name}, {'edited' if is_edited else 'no record'}", sound, lab, folder)
    return found


def kernel(lab: Lab) -> Cuts:
    """Cut off a kernel's build and some of its files; build on after a start of the machine."""
    found = Cuts("kernel")
    words = ("--json", "kernel", "--profile", lab.profile)
    sound = _sums(lab.run(*words).json["artefacts"])
    keep(lab, "built")
    lab.discard("kdirs")
    running = lab.start("-v", *words)
    # Not while it is prepared, which is done aside.
    if not running.wait_for(r"==> Building [\s\S]*^  CC +kernel/", 1200):
        raise AssertionError(f"it never came to compile the kernel: {running.finish().err[-600:]}")
    running.end(signal.SIGKILL)
    running.finish()
    (entry,) = (path for path in (lab.cache / "kdirs").iterdir() if path.name[0] != ".")
    metadata = json.loads((entry / "metadata.json").read_text())
    if "open" not in metadata:
        found.faults.append("a kernel that is being built isn't marked so")
    (entry / "metadata.json").write_text(json.dumps({**metadata, "open": "another"}))
    for path in _some_of(entry / "build"):
        os.truncate(path, 0)
        found.tried += 1
    done = lab.run(*words)
    if done.code != 0:
        found.faults.append(f"kernel: {done.err.splitlines()[-1:]}")
    elif _sums(done.json["artefacts"]) != sound:
        found.faults.append("kernel: other bytes")
    restore(lab, "built")
    return found


def cut(lab: Lab, tell: Callable[[str], None] = print) -> Iterator[Cuts]:
    """Cut off a module's files, then a kernel's."""
    for one in (modules, kernel):
        found = one(lab)
        tell(f"powercut: {found}")
        yield found


def _some_of(build: Path) -> Iterator[Path]:
    yield from sorted(path for path in build.rglob("*.o") if path.is_file())[::10]
    yield from (path for name in CUT_SHORT if (path := build / name).exists())


def _build(lab: Lab, folder: Path) -> tuple[str, Path]:
    done = lab.run("--json", "module", folder, "--profile", lab.profile)
    assert done.code == 0, done.err
    (one,) = done.json["artefacts"]
    return one["sha256"], Path(one["path"])


def _try(found: Cuts, name: str, sound: str, lab: Lab, folder: Path) -> None:
    found.tried += 1
    done = lab.run("--json", "module", folder, "--profile", lab.profile)
    if done.code != 0:
        found.faults.append(f"{name}: {done.err.splitlines()[-1:]}")
        return
    (one,) = done.json["artefacts"]
    content = hashlib.sha256(Path(one["path"]).read_bytes()).hexdigest()
    if {one["sha256"], content} != {sound}:
        found.faults.append(f"{name}: other bytes")


def _sums(artefacts: list[dict[str, str]]) -> dict[str, str]:
    return {Path(one["path"]).name: one["sha256"] for one in artefacts}
