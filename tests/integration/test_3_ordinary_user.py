"""The way through as an ordinary user: no root anywhere."""

from __future__ import annotations

import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Rbuild
from .engine import Engine, engine

__all__ = ["engine"]

USER = "rbuild-test"
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home():  # type: ignore[no-untyped-def]
    """Make a user with subordinate ids, and remove it with all that it owns."""
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", USER], check=True)
    try:
        yield Path(pwd.getpwnam(USER).pw_dir)
    finally:
        subprocess.run(["userdel", "--remove", USER], check=True, capture_output=True)


@pytest.mark.root
def test_setup_and_module_as_an_ordinary_user(
    rbuild: Rbuild, home: Path, c_stranger: Path, tmp_path: Path
) -> None:
    """Provision, fetch, configure and build as the user, with nothing that root made."""
    del rbuild
    shared = _readable_copy(home)
    _as_user(home, shared, "doctor")
    _as_user(home, shared, "setup", "cross")
    profile = ("--profile", "slim-no-rust")
    done = _as_user(home, shared, "module", *profile, "--output", str(home / "out"))
    assert "vermagic" in done
    module = home / "out/mfrc522.ko"
    assert module.owner() == USER
    install = "apt-get -q update && apt-get -q -y install hello && hello && ls -l /usr/bin/hello"
    seen = _as_user(home, shared, "shell", *profile, "--scratch", "--", "sh", "-c", install)
    assert "Hello, world!" in seen
    assert "root root" in seen.splitlines()[-1]
    cache = home / ".cache/rbuild"
    foreign = subprocess.run(
        ["find", str(cache), "!", "-user", USER], capture_output=True, text=True, check=True
    )
    assert foreign.stdout == ""
    _as_user(home, shared, "clean", "--what", "all")
    assert not [path for path in (cache / "rootfs").iterdir() if path.is_dir()]


@pytest.mark.root
@pytest.mark.slow
def test_containers_of_an_ordinary_user(home: Path, engine: Engine) -> None:
    """Build by an engine whose socket the user may use: what comes out is the user's."""
    shared = _readable_copy(home)
    engine.folder.chmod(0o711)
    engine.socket.chmod(0o666)
    to = ("--runtime", "docker", "--profile", "slim-no-rust")
    _as_user(home, shared, "module", *to, "--output", str(home / "out"), engine=engine.host)
    assert (home / "out/mfrc522.ko").owner() == USER
    script = "id -u; for at in /kdir /src; do (echo x >$at/x) 2>/dev/null || echo no; done"
    seen = _as_user(home, shared, "-q", "shell", *to, "--", "sh", "-c", script, engine=engine.host)
    assert seen.split() == [str(pwd.getpwnam(USER).pw_uid), "no", "no"]
    foreign = subprocess.run(
        ["find", home / ".cache/rbuild", "!", "-user", USER], capture_output=True, text=True
    )
    assert foreign.stdout == ""


def _readable_copy(home: Path) -> Path:
    """Copy the checkout and the virtual environment's packages to where the user can read them."""
    target = home / "checkout"
    if target.exists():
        return target
    target.mkdir()
    for name in ("rbuild", "profiles", "rootfs", "module"):
        subprocess.run(["cp", "-a", str(CHECKOUT / name), str(target)], check=True)
    import click

    packages = Path(click.__file__).parents[1]
    subprocess.run(["cp", "-a", str(packages), str(target / "packages")], check=True)
    subprocess.run(["chown", "-R", f"{USER}:", str(target)], check=True)
    return target


def _as_user(home: Path, checkout: Path, *words: str, engine: str = "") -> str:
    env = [
        "env",
        "-i",
        f"PYTHONPATH={checkout}:{checkout / 'packages'}",
        f"HOME={home}",
        *([f"DOCKER_HOST={engine}"] if engine else []),
        "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    ]
    done = subprocess.run(
        ["runuser", "-u", USER, "--", *env, _python(), "-m", "rbuild", *words],
        capture_output=True,
        text=True,
        cwd=home,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _python() -> str:
    """Return a Python that the user may run: ours may be below root's home."""
    python = str(Path(sys.executable).resolve())
    tried = subprocess.run(
        ["runuser", "-u", USER, "--", "env", python, "-c", "pass"], capture_output=True
    )
    return python if tried.returncode == 0 else "/usr/bin/python3"
