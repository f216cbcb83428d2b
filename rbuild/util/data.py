"""Where rbuild itself is, and its data folders: ``profiles``, ``rootfs`` and ``module``.

In a checkout (also an editable install) they stand beside the package; in a wheel, within it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def folder(name: str) -> Path:
    """Return the data folder ``name``; the packaged copy first, then the checkout's."""
    packaged = PACKAGE / "_data" / name
    return packaged if packaged.is_dir() else PACKAGE.parent / name


SUDO_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where sudo looks for programs on Debian (secure_path in sudoers(5)): in no user's folder."""


def as_root(words: str) -> str:
    """Return a line that runs this very rbuild as root when it is pasted into a shell."""
    program = Path(sys.argv[0])
    if program.name == "rbuild":
        is_root = os.geteuid() == 0
        found = shutil.which("rbuild", path=None if is_root else SUDO_PATH)
        is_found = found is not None and Path(found).resolve() == program.resolve()
        line = "rbuild" if is_found else shlex.quote(str(program.absolute()))
    else:
        line = f"{shlex.quote(sys.executable)} -m rbuild"
    return f"{'' if os.geteuid() == 0 else 'sudo '}{line} {words}"
