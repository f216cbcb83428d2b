"""The guest's userland: an initramfs of busybox, modules and the test scripts, the same each time.

It is packed by gen_init_cpio, the kernel's own program for that, which needs no root to put
device nodes in it (Documentation/filesystems/ramfs-rootfs-initramfs.rst).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbuild.cache.entry import EntryKind
from rbuild.errors import BuildFailed, InfrastructureError, UsageError
from rbuild.kernel.kbuild import Kbuild
from rbuild.kernel.kdir import Kdir
from rbuild.module.check import BuiltModule
from rbuild.provision import apt
from rbuild.provision.jobs import run_job
from rbuild.provision.prepared import PreparedEnvironment
from rbuild.sandbox.context import BuildContext
from rbuild.sandbox.runtime import KDIR, MODULE, Bind, Job
from rbuild.specs.architecture import Machine
from rbuild.util import data
from rbuild.util.folders import remove_tree
from rbuild.util.hashes import digest

PACKAGE = "busybox-static"

OTHER_SUITE = "bookworm"
"""Where busybox is from if the mirror hasn't the environment's own suite in order.

It happens to architectures that few ask for: a mirror's index and its signature are of two days.
"""

NEEDED = (
    "BINFMT_ELF",
    "BINFMT_SCRIPT",
    "BLK_DEV_INITRD",
    "DEVTMPFS",
    "MODULES",
    "MODULE_UNLOAD",
    "PRINTK",
    "PROC_FS",
    "SYSFS",
)
"""What a kernel must have to run the tests, besides the console that its machine has."""

SCRIPTS = ("init.sh", "guest.sh")

PACK = 'exec "$1" -t "$SOURCE_DATE_EPOCH" list >initramfs.cpio'


@dataclass(frozen=True)
class Userland:
    """The program that is the guest's whole userland, and its Debian version."""

    busybox: Path
    version: str


def must_boot(kdir: Kdir, machine: Machine) -> None:
    """Raise UsageError if the configuration lacks what a guest needs on a machine."""
    config = kdir.config
    lacking = [option for option in (*NEEDED, *machine.needs) if config.get(option) != "y"]
    if lacking:
        names = ", ".join(f"CONFIG_{option}" for option in lacking)
        raise UsageError(
            f"A kernel of the profile {kdir.profile.name} can't run the tests on {machine.model}: "
            f"{names} not set.",
            hint=f"Set them to y in {kdir.profile.path}.",
        )


def userland(ready: PreparedEnvironment, context: BuildContext) -> Userland:
    """Return the target's busybox of the environment's suite; download it if it isn't there.

    Raises InfrastructureError where no mirror answers.
    """
    cache = context.cache
    suite = ready.environment.base.definition.suite
    architecture = ready.environment.target.debian
    key = digest({"package": PACKAGE, "suite": suite, "architecture": architecture})
    entry = cache.entry(EntryKind.GUESTS, f"{PACKAGE}-{suite}-{architecture}", key)

    def fetch() -> dict[str, Any]:
        partial = cache.partial(entry)
        return cache.publish(entry, partial, {"version": _fetch(partial, ready, context)})

    metadata = cache.get_or_make(entry, lambda: cache.use(entry), fetch)
    return Userland(entry.path / "busybox", str(metadata.get("version")))


def _fetch(folder: Path, ready: PreparedEnvironment, context: BuildContext) -> str:
    """Put busybox into ``folder``; return its version."""
    cache = context.cache
    architecture = ready.environment.target.debian
    suite = ready.environment.base.definition.suite
    key = f"{suite} {ready.environment.name} {ready.runtime.name}"
    with cache.console.step(f"Fetching {PACKAGE} for {architecture}", key=key) as step:
        tell = cache.console.teller(step)
        try:
            work = _download(folder, suite, ready, tell)
        except InfrastructureError as error:
            if suite == OTHER_SUITE:
                raise
            cache.console.note(f"{error.message} Taking the one of {OTHER_SUITE}.")
            try:
                work = _download(folder, OTHER_SUITE, ready, tell)
            except InfrastructureError:
                raise error from None
        script = "dpkg-deb -x ./*.deb . && dpkg-deb -f ./*.deb Version"
        job = Job(["sh", "-c", script], [Bind(work, MODULE, writable=True)], MODULE)
        try:
            done = run_job(job, ready, context, f"Unpacking {PACKAGE}")
        except BuildFailed as error:
            raise InfrastructureError(
                f"{PACKAGE} can't be unpacked.", detail=error.detail
            ) from error
        version = done.tail[-1].strip()
    found = next(path for path in (work / "bin/busybox", work / "usr/bin/busybox") if path.exists())
    found.rename(folder / "busybox")
    remove_tree(work)
    return version


def _download(
    folder: Path, suite: str, ready: PreparedEnvironment, tell: Callable[[str], None]
) -> Path:
    """Download the package of a suite itself: security updates of a test's shell don't matter."""
    work = folder / suite
    work.mkdir()
    architecture = ready.environment.target.debian
    apt.download(PACKAGE, work, ready, tell, architecture=architecture, suite=suite)
    return work


def initramfs(
    programs: Userland,
    modules: Sequence[BuiltModule],
    dependencies: Sequence[Path],
    kdir: Kdir,
    context: BuildContext,
) -> Path:
    """Pack the guest's root; return the archive (cpio, newc) in the run's folder.

    ``dependencies`` are the kernel's own modules that ``modules`` need, in the order of loading.
    """
    folder = context.run_folder / "initramfs"
    folder.mkdir()
    files = {"bin/busybox": programs.busybox}
    files |= {script: data.folder("module") / "tests" / script for script in SCRIPTS}
    files |= {f"modules/{one.path.name}": one.path for one in modules}
    for number, path in enumerate(dependencies):
        files[f"modules/needed/{number:03d}-{path.name}"] = path
    lines = [f"dir /{name} 0755 0 0" for name in ("dev", "proc", "sys", "tmp")]
    lines += ["nod /dev/console 0600 0 0 c 5 1", "slink /bin/sh busybox 0777 0 0"]
    for name in sorted({str(parent) for path in files for parent in Path(path).parents} - {"."}):
        lines.append(f"dir /{name} 0755 0 0")
    for name, path in files.items():
        staged = folder / name.replace("/", "-")
        shutil.copyfile(path, staged)
        lines.append(f"file /{name} {MODULE}/{staged.name} 0755 0 0")
    (folder / "list").write_text("".join(f"{line}\n" for line in lines))
    argv = ["sh", "-c", f"cd {MODULE} && {PACK}", "pack", f"{KDIR}/usr/gen_init_cpio"]
    Kbuild(context, kdir.ready, kdir.tree, kdir.path).run(
        argv, "Packing the initramfs", module=folder
    )
    archive = context.run_folder / "initramfs.cpio"
    (folder / "initramfs.cpio").rename(archive)
    remove_tree(folder)
    return archive
