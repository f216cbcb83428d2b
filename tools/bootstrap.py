"""Set up a checkout on a fresh Debian machine, then run rbuild or its tests from it.

    python3 tools/bootstrap.py COMMAND...      what `rbuild COMMAND...` does, such as bench
    python3 tools/bootstrap.py --test [...]    the tests; further words are pytest's
    python3 tools/bootstrap.py --help          this text, and nothing else

Needs nothing but Python 3.11 and git: what is missing is installed by apt (as root, or with
sudo) and by pip into `.venv` in the checkout.  Whatever is there already is left alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
VENV = CHECKOUT / ".venv"

TEST_PACKAGES = {
    "clangd": "clangd",
    "dockerd": "docker.io",
    "fish": "fish",
    "gpg": "gnupg",
    "man": "man-db",
    "mandoc": "mandoc",
    "newuidmap": "uidmap",
    "rsync": "rsync",
    "ssh": "openssh-client",
    "tmux": "tmux",
    "zsh": "zsh",
}
"""What only the tests need: programs, and Debian's packages that have them."""

TELLS_FIRST_S, TELLS_EVERY_S = 2.0, 5.0


def main(arguments: list[str]) -> int:
    """Set up, then become what was asked for; return only if a step of the set-up failed."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        sys.stdout.write(f"{__doc__}")
        return 0 if arguments else 2
    is_test = arguments[0] == "--test"
    try:
        _virtual_environment("dev" if is_test else "")
        _host()
        if is_test:
            _tests()
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"error: failed: {' '.join(map(str, error.cmd))}\n")
        return 3
    except KeyboardInterrupt:
        return 130
    except FileNotFoundError as error:
        sys.stderr.write(f"error: {error.filename} is not installed, and this user isn't root.\n")
        return 3
    if is_test:
        words = [str(VENV / "bin/python"), "-m", "pytest", *arguments[1:]]
    else:
        words = [str(VENV / "bin/rbuild"), *arguments]
    os.chdir(CHECKOUT)
    os.execv(words[0], words)  # noqa: S606 - becomes what the user asked for
    return 0


def _host() -> None:
    """Let rbuild itself install what the host lacks, if it lacks anything."""
    rbuild = str(VENV / "bin/rbuild")
    needed = ["--env", "cross", "--env", "chroot", "--env", "hybrid"]
    if _run([rbuild, "--quiet", "doctor", *needed], "Looking at what the host has")[0] != 0:
        _as_root([rbuild, "doctor", *needed, "--fix", "--yes"], "Installing what the host lacks")


def _tests() -> None:
    """Install what only the tests need; a user who may not skips the tests that lack it."""
    lacking = sorted(
        package for program, package in TEST_PACKAGES.items() if not _is_installed(program)
    )
    if not lacking:
        return
    try:
        _apt(lacking, "Installing what the tests need")
    except (subprocess.CalledProcessError, FileNotFoundError):
        if os.geteuid() == 0:
            raise
        sys.stderr.write(f"warning: tests are skipped for want of: {', '.join(lacking)}\n")


def _is_installed(program: str) -> bool:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


def _virtual_environment(extra: str) -> None:
    """Make .venv with rbuild in it, and what an ``extra`` of this very pyproject.toml adds."""
    stamp = VENV / "bootstrapped"
    wanted = hashlib.sha256((CHECKOUT / "pyproject.toml").read_bytes()).hexdigest()
    known = stamp.read_text().split() if stamp.exists() else []
    if known[:1] == [wanted] and (not extra or extra in known):
        return
    if importlib.util.find_spec("ensurepip") is None:
        _apt(["python3-venv"], "Installing python3-venv")
    _step([sys.executable, "-m", "venv", str(VENV)], "Making .venv")
    target = f"{CHECKOUT}[{extra}]" if extra else str(CHECKOUT)
    pip = [str(VENV / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
    packages = "rbuild and what its tests need" if extra else "rbuild and what it needs"
    _step([*pip, "--editable", target], f"Installing {packages} into .venv")
    stamp.write_text(f"{wanted} {extra}\n")


def _apt(packages: list[str], title: str) -> None:
    _as_root(["apt-get", "update", "-q"], "Reading the lists of packages")
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-q", "-y"]
    _as_root([*apt, "--no-install-recommends", *packages], title)


def _as_root(argv: list[str], title: str) -> None:
    if os.geteuid() == 0:
        _step(argv, title)
        return
    # It may ask for a password, into which no sign of life should be written.
    subprocess.run(["sudo", "true"], check=True)  # noqa: S607 - the system's
    _step(["sudo", *argv], title)


def _step(argv: list[str], title: str) -> None:
    """Run a step of the set-up; show its words if it fails."""
    status, words = _run(argv, title)
    if status != 0:
        sys.stderr.write(words)
        raise subprocess.CalledProcessError(status, argv)


def _run(argv: list[str], title: str) -> tuple[int, str]:
    """Return a program's exit status and its words; tell now and then that it lives."""
    sys.stderr.write(f"==> {title}\n")
    begun = time.monotonic()
    pause = TELLS_FIRST_S
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(argv, stdout=said, stderr=subprocess.STDOUT)
        while True:
            try:
                status = child.wait(pause)
                break
            except subprocess.TimeoutExpired:
                sys.stderr.write(f"    {time.monotonic() - begun:.0f} s\n")
                pause = TELLS_EVERY_S
        said.seek(0)
        return status, said.read().decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
