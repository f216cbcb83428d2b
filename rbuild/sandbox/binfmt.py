"""binfmt_misc: whether the kernel hands another architecture's programs to QEMU, or how it could.

The registration's fields are described in the kernel's Documentation/admin-guide/binfmt-misc.rst.
"""

from __future__ import annotations

import re
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rbuild.errors import MissingDependency, ProcessFailed, TimedOut
from rbuild.specs.architecture import Architecture
from rbuild.util import data, process
from rbuild.util.process import Limits

MOUNT_POINT = Path("/proc/sys/fs/binfmt_misc")
INTERPRETERS = (
    "/usr/libexec/qemu-binfmt/{qemu}-binfmt-P",
    "/usr/bin/qemu-{qemu}-static",
    "/usr/bin/qemu-{qemu}",
)

NOT_ENTERED = re.compile(r"bwrap: (?!execvp)")
"""What bubblewrap says where it can't even try a program."""

TRIAL_S = 20.0
"""How long a program may take that does nothing."""

PROGRAMS = ("qemu-{qemu}-static", "qemu-{qemu}")
"""QEMU's names; Debian 13 has no -static in them, there the plain program is linked statically."""

MASK = r"\xff" * 7 + r"\x00" + r"\xff" * 8 + r"\xfe\xff\xff\xff"
"""Lets OSABI and the ABI version vary, and the last bit of the type: EXEC or DYN."""

PRIVATE = ["unshare", "--user", "--map-root-user", "--mount", "--"]
"""Enters namespaces in which binfmt_misc can be mounted for their processes alone."""


@dataclass(frozen=True)
class Registration:
    """What the kernel says of a registered interpreter."""

    enabled: bool
    interpreter: Path
    flags: str

    @property
    def fixed(self) -> bool:
        """Whether the interpreter was opened at registration (F), and so needs no copy inside."""
        return "F" in self.flags


def parse(text: str) -> Registration:
    """Read the text of a file in binfmt_misc, such as /proc/sys/fs/binfmt_misc/qemu-aarch64."""
    fields = dict(line.partition(" ")[::2] for line in text.splitlines())
    return Registration(
        enabled=text.startswith("enabled"),
        interpreter=Path(fields.get("interpreter", "")),
        flags=fields.get("flags:", ""),
    )


def mounted() -> bool:
    """Tell whether binfmt_misc is mounted."""
    return (MOUNT_POINT / "status").exists()


def registration(arch: Architecture) -> Registration | None:
    """Return QEMU's registration for an architecture, or None."""
    try:
        return parse((MOUNT_POINT / f"qemu-{arch.qemu}").read_text())
    except OSError:
        return None


EXIT_STATUS = 42
"""What the programs end with that try whether an architecture's run."""


def exit_program(arch: Architecture) -> bytes:
    """Return an ELF program of some hundred bytes that exits with status 42.

    Made here so that emulation can be tried before there is a rootfs: an ELF header, one program
    header (elf(5)), and the architecture's few words of machine code.
    """
    code = bytes.fromhex(arch.elf.exit_42)
    wide = arch.elf.bits == 64
    header_size, segment_size = (64, 56) if wide else (52, 32)
    base, start = 0x400000, header_size + segment_size
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1, 1)) + bytes(9)
    address = "Q" if wide else "I"
    header = struct.pack(
        f"<HHI{address * 3}IHHHHHH",
        *(2, arch.elf.number, 1, base + start, header_size, 0),
        *(arch.elf.flags, header_size, segment_size, 1, 0, 0, 0),
    )
    length = start + len(code)
    # The segment's flags stand second where it is wide, else last but one.
    order = (5, 0, base, base, length, length) if wide else (0, base, base, length, length, 5)
    form = "<II" + "QQQQQQ" if wide else "<IIIIIIII"
    segment = struct.pack(form, 1, *order, 0x1000)
    return ident + header + segment + code


def problem(arch: Architecture) -> str | None:
    """Say in one sentence what keeps programs of ``arch`` from running in a rootfs, or None.

    One is tried where nothing else is to be seen, as it is for an interpreter in a rootfs: whatever
    the registration is called, and whether or not it can be seen from here.  Where that can't be
    tried, for want of bubblewrap, the registration tells.
    """
    with tempfile.TemporaryDirectory(prefix="rbuild-program-") as folder:
        program = Path(folder, "program")
        program.write_bytes(exit_program(arch))
        program.chmod(0o755)
        words = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", folder, "/", "--"]
        try:
            tried = process.run([*words, "/program"], check=False, limits=Limits(total_s=TRIAL_S))
        except TimedOut:
            return f"a program for {arch.machine} that should end at once doesn't"
        except MissingDependency:
            return _cause(arch)
    if tried.returncode == EXIT_STATUS:
        return None
    if found := _cause(arch):
        return found
    if NOT_ENTERED.match(tried.text):
        return None
    return f"a program for {arch.machine} ended with {tried.returncode}: {tried.text}"


def _cause(arch: Architecture) -> str | None:
    """Say what is wrong with the registration of an architecture's interpreter, if anything."""
    if not mounted():
        return "binfmt_misc is not mounted"
    found = registration(arch)
    if found is None:
        return f"no interpreter is registered for {arch.machine} programs"
    if not found.enabled:
        return f"the interpreter for {arch.machine} programs is disabled"
    if "qemu" not in str(found.interpreter):
        return f"{arch.machine} programs are handed to {found.interpreter}, which isn't QEMU"
    if not found.interpreter.exists():
        return f"the registered interpreter {found.interpreter} doesn't exist"
    if not found.fixed:
        return (
            f"qemu-{arch.qemu} is registered without the F flag, "
            "so it isn't found from within a rootfs"
        )
    return None


def require(arch: Architecture) -> None:
    """Raise MissingDependency unless programs of ``arch`` can run here."""
    found = problem(arch)
    if found is not None:
        raise MissingDependency(
            f"{arch.machine} programs can't run on this host: {found}.",
            hint=f"`{data.as_root('doctor --fix')}` mends it.",
        )


def private() -> bool:
    """Tell whether a sandbox can have a binfmt_misc of its own (Linux 6.7, user namespaces)."""
    words = [*PRIVATE, "mount", "-t", "binfmt_misc", "binfmt_misc", str(MOUNT_POINT)]
    try:
        return process.run(words, check=False).returncode == 0
    except MissingDependency:
        return False


def magic(arch: Architecture) -> str:
    """Return the first 20 bytes of a program's ELF file: class, little endian, EXEC, machine."""
    elf = arch.elf
    kind = r"\x02" if elf.bits == 64 else r"\x01"
    number = "".join(rf"\x{byte:02x}" for byte in elf.number.to_bytes(2, "little"))
    return rf"\x7fELF{kind}\x01\x01\x00" + r"\x00" * 8 + r"\x02\x00" + number


def line(arch: Architecture, interpreter: Path, flags: str) -> str:
    """Return what registers ``interpreter`` for ``arch``, with escapes as the kernel has them."""
    return f":qemu-{arch.qemu}:M::{magic(arch)}:{MASK}:{interpreter}:{flags}"


def enable(arch: Architecture) -> None:
    """Mount binfmt_misc and register QEMU, without any service; needs root.

    Raises MissingDependency if the kernel has no binfmt_misc or QEMU isn't installed.
    """
    if not mounted():
        try:
            process.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(MOUNT_POINT)])
        except ProcessFailed as error:
            raise MissingDependency(f"binfmt_misc can't be mounted: {error.detail}") from error
    if problem(arch) is None:
        return
    name = f"qemu-{arch.qemu}"
    if shutil.which("update-binfmts"):
        process.run(["update-binfmts", "--enable", name], check=False)
    if problem(arch) is not None:
        _register(arch, name)
    left = problem(arch)
    if left is not None:
        raise MissingDependency(f"QEMU could not be registered: {left}.")


def _register(arch: Architecture, name: str) -> None:
    existing = MOUNT_POINT / name
    found = [Path(path.format(qemu=arch.qemu)) for path in INTERPRETERS]
    interpreter = next((path for path in found if path.exists()), None)
    if interpreter is None:
        raise MissingDependency(f"qemu-user-static for {arch.machine} is not installed.")
    flags = "PF" if interpreter.name.endswith("-P") else "F"
    try:
        if existing.exists():
            existing.write_bytes(b"-1")
        (MOUNT_POINT / "register").write_text(line(arch, interpreter, flags))
    except OSError as error:
        raise MissingDependency(f"{name} can't be registered: {error.strerror}.") from error
