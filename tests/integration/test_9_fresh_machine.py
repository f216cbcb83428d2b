"""The README's commands where nothing is installed: in a minimal Debian of its own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SUITES = ("bookworm", "trixie")
PACKAGES = "python3,python3-venv,git,ca-certificates,sudo"

PASSED_ON = re.compile(
    r"PIP_\w+|(https?|ftp|no|all)_proxy|SSL_CERT_FILE|(REQUESTS|CURL)_CA_BUNDLE|GIT_SSL_CAINFO",
    re.IGNORECASE,
)
"""How this machine reaches package registries."""

# The root becomes a mount point, or bubblewrap's namespaces would be refused as in a chroot.
# Registering an interpreter would do it for the whole machine: binfmt_misc can only be read.
ENTER = """
set -eu
root=$1; shift
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --bind -o ro /proc/sys/fs/binfmt_misc "$root/proc/sys/fs/binfmt_misc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$root${1%/*}"; touch "$root$1"; fi
    mount --bind -o ro "$1" "$root$1"
    shift
done
shift
cd "$root"
pivot_root . .
umount -l .
cd /
exec "$@"
"""


class Machine:
    """A fresh machine: a root of a suite, with a clone of rbuild in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings = settings()

    def __call__(self, command: str, *, user: str = "root") -> str:
        """Run a command line in the clone, as a user's login shell would."""
        binds = sorted(sources(self.settings.values()))
        env = [f"{name}={value}" for name, value in self.settings.items()]
        home = "/root" if user == "root" else f"/home/{user}"
        env += [f"HOME={home}", f"USER={user}", f"PATH={os.defpath}:/usr/sbin:/sbin"]
        become = [] if user == "root" else ["setpriv", f"--reuid={user}", "--regid=1000"]
        become += [] if user == "root" else ["--init-groups"]
        done = subprocess.run(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
                *("sh", "-c", ENTER, "sh", str(self.root), *binds, "--"),
                *("env", "-i", *env, *become, "sh", "-c", f"cd {home}/rbuild && {command}"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
        assert "Traceback" not in done.stderr
        return done.stdout


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """Return a machine of the suite that the test is given by ``request.param``."""
    root = tmp_path / "root"
    words = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}"]
    subprocess.run([*words, request.param, root], check=True)
    for name in ("resolv.conf", "hosts"):
        shutil.copy(Path("/etc", name), root / "etc" / name)
    # Nothing is started there: it has this machine's network.
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    clone(root / "root/rbuild")
    try:
        yield Machine(root)
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)


def clone(target: Path) -> None:
    """Copy what git would check out."""
    target.mkdir(parents=True)
    list_files = ["git", "-C", CHECKOUT, "ls-files", "-z"]
    files = subprocess.run(list_files, capture_output=True, check=True).stdout
    pack = ["tar", "-C", CHECKOUT, "--null", "--files-from=-", "--ignore-failed-read", "-c"]
    packed = subprocess.run(pack, input=files, capture_output=True).stdout
    subprocess.run(["tar", "-C", target, "--no-same-owner", "-x"], input=packed, check=True)


def settings() -> dict[str, str]:
    """Return pip's settings on this machine, and what else is needed to reach a registry."""
    python = Path(sys.base_exec_prefix, "bin/python3")
    listed = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True)
    found = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        if name.startswith("global."):
            key = name.removeprefix("global.").upper().replace("-", "_")
            found[f"PIP_{key}"] = " ".join(" ".join(shlex.split(value)).split("\\n"))
    return found | {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}


def sources(values: Iterator[str]) -> set[str]:
    """Return the files and folders that settings name, of an index its whole folder."""
    found = set()
    for word in " ".join(values).split():
        path = word.removeprefix("file://")
        if not path.startswith("/") or not Path(path).exists():
            continue
        index = word.startswith("file://") and path.rstrip("/").endswith("/simple")
        found.add(str(Path(path).parent) if index else path)
    return found


def somebody(machine: Machine) -> str:
    """Make an ordinary user of sudo's, who has a clone."""
    machine("useradd --create-home --shell /bin/bash --uid 1000 somebody")
    machine("echo 'somebody ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/somebody")
    machine("cp -r . /home/somebody/rbuild && chown -R somebody: /home/somebody")
    return "somebody"


@pytest.mark.root
@pytest.mark.parametrize(
    ("machine", "is_root"), [("bookworm", True), ("trixie", False)], indirect=["machine"]
)
def test_the_set_up_of_the_main_job(machine: Machine, is_root: bool) -> None:
    """Without a compiler, and without what only the tests need."""
    user = "root" if is_root else somebody(machine)
    assert "LACK" not in machine("python3 tools/bootstrap.py doctor", user=user)
    listed = machine(".venv/bin/python -m pip list --format=freeze", user=user).split()
    assert not [one for one in listed if one.startswith(("pytest", "ruff", "dtschema"))]
    machine("! command -v gcc")


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("machine", SUITES, indirect=True)
def test_the_main_job(machine: Machine) -> None:
    assert "chroot takes" in machine("python3 tools/bootstrap.py bench")


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("machine", SUITES, indirect=True)
def test_the_unit_tests(machine: Machine) -> None:
    """None is left out for want of a package."""
    said = machine("python3 tools/bootstrap.py --test tests/unit")
    assert "not installed" not in said
    assert " needs " not in said.rpartition("short test summary")[2]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("machine", SUITES, indirect=True)
def test_an_installation_without_a_checkout(machine: Machine) -> None:
    """By pipx, and in a virtual environment: what rbuild then says to paste works for sudo, too."""
    user = somebody(machine)
    machine("apt-get update && apt-get install --yes --no-install-recommends pipx")
    machine("pipx install . && python3 -m venv ~/own && ~/own/bin/pip install .", user=user)
    for program in ("~/.local/bin/rbuild", "~/own/bin/rbuild"):
        assert machine(f"cd / && {program} --version", user=user).startswith("rbuild")
        said = machine(f"cd / && {program} doctor 2>&1 || true", user=user)
        (line,) = re.findall(r"sudo \S+/rbuild doctor --fix", said)[:1]
        assert machine(f"cd / && {line} --help", user=user).startswith("Usage")
