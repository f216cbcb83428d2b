"""Set up a checkout on a fresh Debian machine, then run rbuild or its tests from it.

    python3 rbuild/bootstrap.py bench        what `rbuild bench` does, after all set-up
    python3 rbuild/bootstrap.py --test       the tests, after all set-up

Needs nothing but Python 3.11 and git: what is missing is installed by apt (as root, or with
sudo) and by pip into ``.venv`` in the checkout.  Whatever is there already is left alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
VENV = CHECKOUT / ".venv"


def main(arguments: list[str]) -> int:
    """Set up, then become what was asked for; return only if a step of the set-up failed."""
    try:
        _virtual_environment()
        _host()
        if arguments[:1] == ["--test"]:
            _tests()
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"failed: {' '.join(map(str, error.cmd))}\n")
        return 3
    if arguments[:1] == ["--test"]:
        words = [str(VENV / "bin/python"), "-m", "pytest", *arguments[1:]]
    else:
        words = [str(VENV / "bin/rbuild"), *arguments]
    os.chdir(CHECKOUT)
    os.execv(words[0], words)  # noqa: S606 - becomes what the user asked for
    return 0


def _host() -> None:
    """Let rbuild itself install what the host lacks, if it lacks anything."""
    rbuild = str(VENV / "bin/rbuild")
    asked = subprocess.run([rbuild, "--quiet", "doctor"], check=False, capture_output=True)
    if asked.returncode != 0:
        _as_root([rbuild, "doctor", "--fix", "--yes"])


def _tests() -> None:
    """Install what only the tests need: as root they build as an ordinary user, and deploy."""
    needed = {"newuidmap": "uidmap", "rsync": "rsync", "ssh": "openssh-client"}
    lacking = [package for program, package in needed.items() if shutil.which(program) is None]
    if os.geteuid() == 0 and lacking:
        _as_root(["apt-get", "install", "-q", "-y", *lacking])


def _virtual_environment() -> None:
    """Make .venv with rbuild in it, unless it was made from this very pyproject.toml."""
    stamp = VENV / "bootstrapped"
    wanted = hashlib.sha256((CHECKOUT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    if importlib.util.find_spec("ensurepip") is None:
        _as_root(["apt-get", "update", "-q"])
        _as_root(["apt-get", "install", "-q", "-y", "python3-venv"])
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    subprocess.run(
        [
            VENV / "bin/pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--editable",
            f"{CHECKOUT}[dev]",
        ],
        check=True,
    )
    stamp.write_text(wanted)


def _as_root(argv: list[str]) -> None:
    words = argv if os.geteuid() == 0 else ["sudo", *argv]
    subprocess.run(words, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
