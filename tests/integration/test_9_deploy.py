"""Deploying to a board: a real sshd, rsync and sudo, in a network namespace of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rbuild.cache.directory import Cache
from rbuild.provision.rootfs import provision
from rbuild.specs import architecture
from rbuild.specs.definitions import RootfsDefinition
from rbuild.specs.environment import Rootfs
from rbuild.ui.console import Console

from .conftest import Done, Rbuild

pytestmark = pytest.mark.root

PACKAGES = ("iproute2", "kmod", "openssh-server", "rsync", "sudo")
CONFIG = "# mine\r\ndtparam=audio=on\r\n[pi4]\r\narm_boost=1"

CUTTER = """\
#!{python}
# An ssh that is killed once it has sent so many bytes: of an upload, or of the switch's script.
import os, subprocess, sys, threading, time
ssh = ["ssh", "-F", {config!r}, *sys.argv[1:]]
where, limit = os.environ["CUT"].split()
child = subprocess.Popen(ssh, stdin=subprocess.PIPE)
data = os.read(0, 1 << 20)
is_switch = b"apply_tree() {{" in data
here = where == ("upload" if "rsync" in " ".join(ssh) else "switch" if is_switch else "")
limit = len(data) if limit == "all" else int(limit)
if not here:
    threading.Thread(target=lambda: os._exit(child.wait()), daemon=True).start()
sent = 0
while data:
    rest = data[: limit - sent] if here else data
    child.stdin.write(rest)
    child.stdin.flush()
    sent += len(rest)
    if here and sent >= limit:
        time.sleep(0.1)
        child.kill()
        sys.exit(255)
    data = os.read(0, 65536)
child.stdin.close()
sys.exit(child.wait())
"""


@dataclass
class Board:
    """A board that runs, and rbuild on the only network that reaches it."""

    rbuild: Rbuild
    pid: int
    folder: Path
    release: str

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.pid}/root")

    @property
    def boot(self) -> Path:
        return self.root / "boot/firmware"

    @property
    def modules(self) -> Path:
        return self.root / "lib/modules"

    def ssh(self, **options: str) -> str:
        """Return how to call ssh, with a configuration that has some options otherwise."""
        usual = {
            "HostName": "127.0.0.1",
            "User": "root",
            "IdentityFile": str(self.folder / "key"),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.folder / "known"),
            "StrictHostKeyChecking": "yes",
        }
        path = self.folder / f"config-{'-'.join(options)}"
        path.write_text("".join(f"{key} {value}\n" for key, value in (usual | options).items()))
        return f"ssh -F {path}"

    def argv(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--"]

    def deploy(self, *words: str | Path, code: int = 0, ssh: str = "") -> Done:
        return self.rbuild(
            *("--json", "deploy", "board", "--ssh", ssh or self.ssh(), *words),
            code=code,
            prefix=self.argv(),
        )

    def tree(self) -> dict[str, str]:
        """Return all that a deployment may touch: each path with its content."""
        return {
            str(path.relative_to(self.root)): path.read_bytes().hex() if path.is_file() else ""
            for folder in (self.boot, self.modules, self.root / "var/lib")
            for path in sorted(folder.rglob("*"))
            if "/dpkg/" not in str(path)
        }

    def system(self) -> dict[str, str]:
        """Return what the board boots and loads, without what rbuild keeps aside."""
        return {
            path: content
            for path, content in self.tree().items()
            if not path.startswith("var/") and ".rbuild" not in path
        }

    def uploads(self) -> list[Path]:
        return [*self.boot.glob(".rbuild-upload*"), *self.modules.glob(".rbuild-upload*")]

    def reset(self) -> None:
        """Make it a Pi that nobody has deployed to."""
        for folder in (self.boot, self.modules, self.root / "var/lib/rbuild"):
            for path in folder.glob("*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        files = {
            "boot/firmware/config.txt": CONFIG,
            "boot/firmware/cmdline.txt": "root=/dev/mmcblk0p2\n",
            "boot/firmware/kernel8.img": "the Pi's own kernel",
            "boot/firmware/overlays/README": "the Pi's own\n",
            f"lib/modules/{self.release}/modules.order": "",
            f"lib/modules/{self.release}/modules.builtin": "",
            "etc/kernel-release": self.release + "\n",
        }
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
        subprocess.run(["chroot", self.root, "/sbin/depmod", self.release], check=True)


@pytest.fixture(scope="module")
def running(rbuild: Rbuild, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    folder = tmp_path_factory.mktemp("board")
    cache = Cache(Path(rbuild("--json", "status").json["root"]), Console(verbosity=-1))
    host = architecture.host()
    definition = RootfsDefinition(
        name="board", suite="trixie", architecture="host", packages=PACKAGES
    )
    root = provision(Rootfs(definition, host, emulated=False, host=host), cache).path
    for name in ("key", "host-key", "stranger"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
        )
    known = (folder / "host-key.pub").read_text()
    (folder / "known").write_text(f"127.0.0.1 {known}")
    (folder / "other-known").write_text("")
    release = rbuild("--json", "kernel").json["kernel_release"]
    yield from started(rbuild, root, folder, release)


def started(rbuild: Rbuild, root: Path, folder: Path, release: str) -> Iterator[Board]:
    (folder / "mount").mkdir()
    script = Path(__file__).parent / "board/start.sh"
    apart = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--"]
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(
            [*apart, "sh", script, root, folder / "mount", folder],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        for _ in range(600):
            text = (folder / "log").read_text()
            assert child.poll() is None, text
            if "listening on 0.0.0.0" in text:
                break
            time.sleep(0.05)
        pid = int(Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text())
        yield Board(rbuild, pid, folder, release)
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def board(running: Board) -> Board:
    running.reset()
    return running


def test_ssh_s_own_words_say_why_a_board_cannot_be_reached(board: Board) -> None:
    before = board.tree()
    for options, words in (
        ({"UserKnownHostsFile": str(board.folder / "other-known")}, "Host key verification failed"),
        ({"IdentityFile": str(board.folder / "stranger")}, "Permission denied"),
        ({"Port": "1"}, "Connection refused"),
    ):
        found = board.deploy(ssh=board.ssh(**options), code=4)
        assert words in found.err
        assert found.json["exit_code"] == 4
    found = board.deploy(ssh=board.ssh(User="stranger"), code=4)
    assert "may not become root" in found.json["error"]
    assert board.tree() == before


def test_a_driver_for_another_kernel_is_refused(board: Board) -> None:
    (board.root / "etc/kernel-release").write_text("6.6.51+rpt-rpi-v8\n")
    before = board.tree()
    found = board.deploy(code=2).json["error"]
    assert "6.6.51+rpt-rpi-v8" in found
    assert board.release in found
    assert board.tree() == before


def test_a_driver_there_and_back(board: Board) -> None:
    before, system = board.tree(), board.system()
    would = board.deploy("--dry-run").json
    assert board.tree() == before
    done = board.deploy().json
    for name in ("uploaded", "created", "replaced", "removed", "config_diff"):
        assert would[name] == done[name]
    assert sorted(done["uploaded"]["files"]) == ["mfrc522.dtbo", "mfrc522_rust.ko"]
    listed = (board.modules / board.release / "modules.dep").read_text()
    assert "updates/mfrc522_rust.ko:" in listed
    after = board.tree()
    again = board.deploy().json
    assert again["uploaded"]["files"] == []
    assert again["backup"] is None
    assert board.tree() == after
    # Another driver takes its place.
    other = board.deploy("--driver", "c").json
    assert other["removed"] == [f"/lib/modules/{board.release}/updates/mfrc522_rust.ko"]
    board.deploy("--rollback")
    board.deploy("--rollback")
    assert board.system() == system
    board.deploy("--rollback", code=2)


def test_a_kernel_there_and_back_by_a_user_with_sudo(board: Board) -> None:
    ssh = board.ssh(User="pi")
    before, system = board.tree(), board.system()
    would = board.deploy("--kernel", "--dry-run", ssh=ssh).json
    assert board.tree() == before
    done = board.deploy("--kernel", ssh=ssh).json
    assert sorted(would["uploaded"]["files"]) == sorted(done["uploaded"]["files"])
    assert would["config_diff"] == done["config_diff"]
    (prefix,) = (path.name for path in board.boot.glob("rbuild-*"))
    assert (board.boot / prefix / "kernel8.img").stat().st_size > 1_000_000
    assert f"os_prefix={prefix}/" in (board.boot / "config.txt").read_text()
    assert (board.modules / board.release / "updates/mfrc522_rust.ko").exists()
    assert (board.modules / board.release / "modules.dep").stat().st_uid == 0
    after = board.tree()
    again = board.deploy("--kernel", ssh=ssh).json
    assert again["uploaded"]["files"] == []
    assert board.tree() == after
    back = board.deploy("--rollback", ssh=ssh).json
    assert f"/lib/modules/{board.release}" in back["restored"]
    assert board.system() == system


def test_a_connection_that_is_cut_leaves_the_board_as_it_was(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    cutter = board.folder / "cutter"
    config = board.ssh().split()[-1]
    cutter.write_text(CUTTER.format(python=sys.executable, config=config))
    cutter.chmod(0o755)
    before = board.system()
    for sent in ("1", "20000", "1500000"):
        monkeypatch.setenv("CUT", f"upload {sent}")
        found = board.deploy("--kernel", ssh=str(cutter), code=4)
        assert "Nothing was switched" in found.json["hint"]
        assert board.system() == before
    assert board.uploads()
    # A step that was not sent whole is not begun; one that was goes on to its end alone.
    monkeypatch.setenv("CUT", "switch 9000")
    board.deploy("--kernel", ssh=str(cutter), code=4)
    assert board.system() == before
    done = board.deploy("--kernel").json
    assert done["undone"]
    assert not board.uploads()
    after = board.system()
    board.deploy("--rollback")
    monkeypatch.setenv("CUT", "switch all")
    board.deploy("--kernel", ssh=str(cutter), code=4)
    eventually_deployed(board)
    assert board.system() == after
    board.deploy("--rollback")
    assert board.system() == before


def eventually_deployed(board: Board) -> None:
    """Deploy the kernel, once the board has noticed that who deployed before is gone."""
    for _ in range(50):
        found = subprocess.run(
            [
                *board.argv(),
                *board.rbuild.argv("deploy", "board", "--kernel", "--ssh", board.ssh()),
            ],
            env=board.rbuild.env(),
            capture_output=True,
            text=True,
        )
        if found.returncode == 0:
            break
        assert "Another deployment" in found.stderr, found.stderr
        time.sleep(0.1)
    assert not board.uploads()
    assert not board.deploy("--kernel").json["uploaded"]["files"]


def test_two_at_once_and_one_that_is_killed(board: Board) -> None:
    before = board.system()
    # The first is slow to send: it is stopped in the middle.
    argv = board.rbuild.argv("deploy", "board", "--kernel", "--ssh", board.ssh())
    first = subprocess.Popen(
        [*board.argv(), *argv],
        env=board.rbuild.env(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not board.uploads():
        assert first.poll() is None
        time.sleep(0.002)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        found = board.deploy("--kernel", code=4)
        assert "Another deployment" in found.json["error"]
    finally:
        first.kill()
        first.wait()
    assert board.system() == before
    eventually_deployed(board)
