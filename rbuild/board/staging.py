"""A staging folder: a kernel with its modules, device trees and overlays, laid out for a Pi.

Its ``firmware`` goes to the boot partition, its ``modules`` to ``/lib/modules``.  The firmware
takes the kernel, its device trees and overlays from a folder of their own (``os_prefix`` in
config.txt), so that kernels stand beside each other and one file decides which of them boots:

    firmware/<os_prefix>/kernel8.img, *.dtb, overlays/*.dtbo, config-snippet.txt
    modules/<release>/...
    manifest.json
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rbuild.errors import BuildFailed, InfrastructureError, UsageError
from rbuild.kernel.kbuild import Kbuild
from rbuild.kernel.kdir import Kdir, Stage
from rbuild.sandbox import outputs
from rbuild.sandbox.context import BuildContext
from rbuild.sandbox.runtime import KDIR, OUT, Bind, Job
from rbuild.source.tree import IN_TREE_FOLDER
from rbuild.specs.profile import Kind
from rbuild.ui.format import several
from rbuild.util import walk
from rbuild.util.files import write_json
from rbuild.util.folders import remove_tree
from rbuild.util.hashes import digest, sha256_file

MANIFEST = "manifest.json"
SNIPPET = "config-snippet.txt"
OUT_OF_TREE_FOLDER = "updates"
"""Where depmod prefers modules to those that came with the kernel (depmod.d(5))."""

OVERLAYS_README = """\
The firmware takes overlays from this folder only if it has a file of this name.
"""


@dataclass(frozen=True)
class Extra:
    """A module that isn't the kernel's own, and the folder it has below ``modules/<release>``."""

    path: Path
    folder: str = OUT_OF_TREE_FOLDER


@dataclass(frozen=True)
class Staged:
    """A staging folder; ``manifest`` is what its manifest.json says."""

    path: Path
    release: str
    os_prefix: str
    manifest: dict[str, Any]

    @property
    def firmware(self) -> Path:
        """What belongs on the boot partition: a folder named as ``os_prefix``."""
        return self.path / "firmware" / self.os_prefix

    @property
    def modules(self) -> Path:
        """What belongs in /lib/modules: a folder named as the release."""
        return self.path / "modules" / self.release

    @property
    def snippet(self) -> str:
        """The lines for config.txt that boot this kernel."""
        return (self.firmware / SNIPPET).read_text(encoding="utf-8")


def extras(modules: Iterable[Path], kind: Kind) -> list[Extra]:
    """Return built modules with the folders where ``make modules_install`` would put them."""
    if kind is Kind.OUT_OF_TREE:
        return [Extra(path) for path in modules]
    return [Extra(path, f"kernel/{IN_TREE_FOLDER}/{path.parent.name}") for path in modules]


def image(kdir: Kdir) -> tuple[Path, str]:
    """Return the image of a built KDIR, and the name by which the Pi's firmware looks for it."""
    return kdir.image, kdir.target.board_image


def stage(
    kdir: Kdir,
    modules: Sequence[Extra],
    overlays: Sequence[Path],
    target: Path,
    context: BuildContext,
) -> Staged:
    """Lay out a built KDIR, further modules and compiled overlays in ``target``, a new folder.

    It appears whole or not at all.  The same inputs give the same bytes, names and times.  Raises
    UsageError if the KDIR isn't built, if two files would have one name, or if ``target`` exists.
    """
    _must_be_built(kdir)
    _must_differ([extra.path for extra in modules], "modules")
    _must_differ(overlays, "overlays")
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} is there already.", hint="Name a folder that isn't.")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with (
            context.cache.lock(kdir.entry),
            context.console.step(f"Laying out {kdir.release} for the board", key=kdir.entry.name),
        ):
            staged = _lay_out(kdir, modules, overlays, aside, context)
        aside.chmod(0o755)
        aside.rename(target)
    except BaseException:
        remove_tree(aside)
        raise
    return replace(staged, path=target)


def _must_be_built(kdir: Kdir) -> None:
    if kdir.stage is not Stage.BUILT:
        raise UsageError(
            f"The kernel of {kdir.profile.name} isn't built in {kdir.ready.environment.name}.",
            hint="`rbuild kernel` builds it.",
        )


def _must_differ(paths: Sequence[Path], what: str) -> None:
    names = [path.name for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"Two {what} have the name {', '.join(twice)}.")


def _lay_out(
    kdir: Kdir,
    modules: Sequence[Extra],
    overlays: Sequence[Path],
    folder: Path,
    context: BuildContext,
) -> Staged:
    install_modules(kdir, modules, folder, context)
    boot = folder / "firmware" / "new"
    _firmware(kdir, overlays, boot)
    # The name stands for all of it: a folder of that name has just this kernel and these modules.
    content = [one for part in ("firmware", "modules") for one in _files(folder, folder / part)]
    prefix = f"rbuild-{kdir.release}-{digest(content)[:8]}"
    boot = boot.rename(boot.with_name(prefix))
    (boot / SNIPPET).write_text(_snippet(kdir, prefix, overlays), encoding="utf-8")
    manifest = {
        "format": 1,
        "kernel_release": kdir.release,
        "profile": kdir.profile.name,
        "config_sha256": kdir.config_sha256,
        "os_prefix": prefix,
        "files": _files(folder, folder),
    }
    write_json(folder / MANIFEST, manifest)
    normalise(folder, int(kdir.tree.date.timestamp()))
    return Staged(folder, kdir.release, prefix, manifest)


def install_modules(
    kdir: Kdir, modules: Sequence[Extra], folder: Path, context: BuildContext
) -> Path:
    """Install a KDIR's modules and further ones, with depmod's lists; the KDIR is only read.

    Returns the folder that has them: modules/<release> in ``folder``.
    """
    if modules and kdir.config.get("MODULES") != "y":
        raise UsageError(f"The kernel of {kdir.profile.name} loads no modules: CONFIG_MODULES=n.")
    root = folder / "root"
    root.mkdir()
    kbuild = Kbuild(context, kdir.ready, kdir.tree, kdir.path)
    job = kbuild.job(["modules_install"], extra=[f"INSTALL_MOD_PATH={OUT}"])
    _run(kbuild, list(job.argv), root, "Installing the modules")
    installed = root / "lib/modules" / kdir.release
    _must_be_plain(root, installed)
    # These lead to where the kernel was built.
    for name in ("build", "source"):
        (installed / name).unlink(missing_ok=True)
    for extra in modules:
        place = installed / extra.folder / extra.path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(extra.path, place)
    if kdir.config.get("MODULES") == "y":
        argv = ["depmod", "-b", OUT, "-F", f"{KDIR}/System.map", kdir.release]
        _run(kbuild, argv, root, "Listing the modules")
    found = folder / "modules" / kdir.release
    found.parent.mkdir()
    installed.rename(found)
    remove_tree(root)
    # What led to another part of ``root``.
    if faults := outputs.sanitise(found):
        raise BuildFailed(f"Installed modules were rejected: {several(faults)}.")
    return found


def _must_be_plain(root: Path, installed: Path) -> None:
    """Raise BuildFailed for what can't be taken from where a kernel's Makefile has installed.

    On the board, names stand in lists that have a line or a word for each.
    """
    if installed.resolve() != root.resolve() / installed.relative_to(root):
        raise BuildFailed(
            f"The kernel installed {installed.relative_to(root)} as a link; it must be a folder."
        )
    for visit in walk.walk(installed):
        for name in [*visit.folders, *(entry.name for entry in visit.files)]:
            outputs.must_be_plain(visit.path(name))


def _run(kbuild: Kbuild, argv: Sequence[str], out: Path, title: str) -> None:
    """Run a command that reads the KDIR and fills ``out``."""
    binds = [
        *(replace(bind, writable=False) for bind in kbuild.binds()),
        Bind(out, OUT, writable=True),
    ]
    kbuild.do(Job(argv, binds, KDIR, kbuild.environment()), title)


def _firmware(kdir: Kdir, overlays: Sequence[Path], boot: Path) -> None:
    """Fill the folder that the firmware boots from."""
    (boot / "overlays").mkdir(parents=True)
    source, name = image(kdir)
    shutil.copyfile(source, boot / name)
    for tree in device_trees(kdir):
        shutil.copyfile(tree, boot / tree.name)
    (boot / "overlays/README").write_text(OVERLAYS_README, encoding="utf-8")
    for overlay in overlays:
        shutil.copyfile(overlay, boot / "overlays" / overlay.name)


def device_trees(kdir: Kdir) -> list[Path]:
    """Return the device trees that a built KDIR's profile asks for."""
    found = [kdir.path / one["path"] for one in kdir.artefacts if one["path"].endswith(".dtb")]
    _must_differ(found, "device trees")
    return found


def _snippet(kdir: Kdir, prefix: str, overlays: Sequence[Path]) -> str:
    """Return config.txt's lines for this kernel (Raspberry Pi's documentation of config.txt)."""
    trees = device_trees(kdir)
    _, name = image(kdir)
    lines = [
        f"# Linux {kdir.release}, built by rbuild from its profile {kdir.profile.name}.",
        # The prefix counts for all files of a kernel but those with an absolute path.
        f"os_prefix={prefix}/",
        "cmdline=/cmdline.txt",
        f"arm_64bit={int(kdir.ready.environment.target.elf.bits == 64)}",
        f"kernel={name}",
        # Linux' own names of device trees, not those of Raspberry Pi's kernel.
        f"device_tree={trees[0].name}" if len(trees) == 1 else "upstream_kernel=1",
        *(f"dtoverlay={overlay.stem}" for overlay in overlays),
    ]
    return "".join(f"{line}\n" for line in lines)


def _files(root: Path, folder: Path) -> list[dict[str, Any]]:
    """Return path (from ``root``), SHA-256 and size of each file below a folder, in order."""
    return [
        {
            "path": str(path.relative_to(root)),
            "sha256": sha256_file(path),
            "size_bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def normalise(folder: Path, epoch: int) -> None:
    """Give all below a folder the modes and times that don't tell who made it, and when."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_symlink():
            os.utime(path, (epoch, epoch), follow_symlinks=False)
            continue
        executable = path.is_dir() or path.stat().st_mode & 0o100
        try:
            path.chmod(0o755 if executable else 0o644)
            os.utime(path, (epoch, epoch))
        except OSError as error:
            raise InfrastructureError(f"{path} can't be written: {error.strerror}.") from error
    os.utime(folder, (epoch, epoch))
