"""Deploying: the steps on the board, run for real by a shell, on a folder that plays the board."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rbuild.board.deploy import machine, run
from rbuild.board.deploy.board import Board, Hardware, _board, probe
from rbuild.board.deploy.plan import Plan, Planner, for_release, kernel_plan, module_plan
from rbuild.board.deploy.remote import Answer, Remote, remote
from rbuild.board.staging import SNIPPET, Staged
from rbuild.devicetree import fdt
from rbuild.errors import GuestFailed, InfrastructureError, MissingDependency, UsageError
from rbuild.module.check import BuiltModule
from rbuild.specs import architecture
from rbuild.specs.architecture import Architecture
from rbuild.ui.console import Console
from rbuild.util import data

from .conftest import Host

pytestmark = pytest.mark.skipif(
    any(shutil.which(one) is None for one in ("rsync", "flock")), reason="needs rsync and flock"
)

RELEASE = "6.12.5"
VERMAGIC = f"{RELEASE} SMP mod_unload aarch64"
CONFIG = "# mine\r\ndtparam=audio=on\r\n[pi4]\r\narm_boost=1"
OTHER_NAME = "a dir with 'quotes' $(and) more"

PROGRAMS = {
    "id": "echo 0",
    "uname": f'case $1 in -r) echo "${{FAKE_RELEASE:-{RELEASE}}}" ;; *) echo aarch64 ;; esac',
    "depmod": 'ls -R "$2/lib/modules/$3" | grep "[.]ko" >"$2/lib/modules/$3/modules.dep"',
    "modinfo": f"echo '{VERMAGIC} '",
    "sync": "exit 0",
}


@dataclass
class Pi:
    """A folder that plays a Pi's file system, and what deploys to it."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    @property
    def root(self) -> Path:
        return self.folder / OTHER_NAME

    @property
    def boot(self) -> Path:
        return self.root / "boot/firmware"

    @property
    def modules(self) -> Path:
        return self.root / "lib/modules"

    @property
    def config(self) -> str:
        return (self.boot / "config.txt").read_bytes().decode()

    def program(self, name: str, text: str) -> None:
        path = self.folder / "board" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def remote(self) -> Remote:
        return remote("pi@board", "ssh", str(self.root), lambda line: None)

    def probe(self) -> Board:
        return probe(self.remote(), "")

    def tree(self) -> dict[str, str]:
        """Return all that is there but locks: each path with its content."""
        return {
            str(path.relative_to(self.root)): path.read_bytes().hex() if path.is_file() else ""
            for path in sorted(self.root.rglob("*"))
            if path.parent.name != "run"
        }

    def system(self) -> dict[str, str]:
        """Return the tree without what rbuild keeps for itself."""
        return {
            path: content
            for path, content in self.tree().items()
            if "rbuild" not in path and path != "var/lib"
        }

    def deploy(self, planner: Planner, **more) -> run.Deployed:
        work = Path(self.folder, "work")
        work.mkdir(exist_ok=True)
        return run.deploy(self.probe(), planner, work, console(), **more)

    def roll_back(self, **more) -> run.RolledBack:
        return run.roll_back(self.probe(), console(), **more)

    def driver(self, text: str = "driver", name: str = "mfrc522_rust") -> Planner:
        path = self.folder / f"{name}.ko"
        path.write_text(text)
        overlay = self.folder / "mfrc522.dtbo"
        overlay.write_text(f"overlay for {text}")
        built = BuiltModule(path, "", 0, VERMAGIC, "GPL", "", (), "")
        return lambda board: module_plan(board, built, RELEASE, [overlay])

    def kernel(self, text: str = "kernel", release: str = RELEASE) -> Planner:
        stage = self.folder / f"stage-{text}"
        prefix = f"rbuild-{release}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        files = {
            f"firmware/{prefix}/kernel8.img": text,
            f"firmware/{prefix}/board.dtb": "tree",
            f"firmware/{prefix}/overlays/README": "here",
            f"firmware/{prefix}/overlays/mfrc522.dtbo": "overlay",
            f"firmware/{prefix}/{SNIPPET}": (
                f"# what it is\nos_prefix={prefix}/\ncmdline=/cmdline.txt\narm_64bit=1\n"
                "kernel=kernel8.img\ndtoverlay=mfrc522\n"
            ),
            f"modules/{release}/kernel/drivers/spi.ko": f"spi of {text}",
            f"modules/{release}/modules.dep": "spi.ko\n",
        }
        for name, content in files.items():
            path = stage / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        listed = [
            {"path": name, "sha256": hashlib.sha256(content.encode()).hexdigest()}
            for name, content in files.items()
        ]
        staged = Staged(stage, release, prefix, {"files": listed})
        return lambda board: kernel_plan(board, staged)


def console() -> Console:
    return Console(verbosity=-1, err=io.StringIO())


@pytest.fixture
def pi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: Path) -> Pi:
    found = Pi(tmp_path, monkeypatch)
    files = {
        "boot/firmware/config.txt": CONFIG,
        "boot/firmware/cmdline.txt": "root=/dev/mmcblk0p2\n",
        "boot/firmware/overlays/README": "the Pi's\n",
        "boot/firmware/overlays/other.dtbo": "other",
        f"lib/modules/{RELEASE}/kernel/drivers/spi/spi.ko": "spi",
        "run/x": "",
        "var/lib/x": "",
    }
    for name, text in files.items():
        path = found.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    for name, text in PROGRAMS.items():
        found.program(name, text)
    monkeypatch.setenv("PATH", f"{fakes}:{os.environ['PATH']}")
    monkeypatch.setenv("RBUILD_FAKE_BOARD", str(tmp_path / "board"))
    subprocess.run([tmp_path / "board/depmod", "-b", found.root, RELEASE], check=True)
    return found


# The scripts.

SCRIPTS = sorted((data.PACKAGE / "board/deploy/remote").glob("*.sh"))
assert SCRIPTS


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_posix_sh(path: Path) -> None:
    subprocess.run(["sh", "-n", path], check=True)
    text = path.read_text()
    for word in ("[[", "local ", "function ", "<<<", "echo -e", "source ", "$'"):
        assert word not in text


@pytest.mark.parametrize("name", [path.stem for path in SCRIPTS if path.stem != "lib"])
def test_a_script_that_is_cut_off_runs_nothing(tmp_path: Path, name: str) -> None:
    text = Remote("board", root=str(tmp_path)).script(name, "a", "b")
    trace = tmp_path / "trace"
    for length in {*range(1, len(text) - 2, 97), len(text) - 3, len(text) - 5}:
        with trace.open("w") as file:
            subprocess.run(["sh", "-xs"], input=text[:length], stderr=file, stdout=file)
        assert not [line for line in trace.read_text().splitlines() if line.startswith("+")]


@pytest.mark.parametrize("word", ["", "it's", '"$(touch x)`touch y`', "a\nb", "\\", "*", "\udcff"])
def test_arguments_arrive_as_they_are(tmp_path: Path, pi: Pi, word: str) -> None:
    monkey = 'main() { for one in "$@"; do say "got $(printf %s "$one" | base64)"; done; }'
    pi.monkeypatch.setattr(
        "rbuild.board.deploy.remote._source",
        lambda name: (
            monkey if name == "x" else (data.PACKAGE / f"board/deploy/remote/{name}.sh").read_text()
        ),
    )
    answer = pi.remote().step("x", word, "last")
    got = [base64.b64decode(one) for one in answer.all("got")]
    assert got == [word.encode("utf-8", "surrogateescape"), b"last"]


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "pi@-x", "", "a b", "a:22", "ssh://a", "a/b"])
def test_what_is_no_host_is_refused(pi: Pi, host: str) -> None:
    with pytest.raises(UsageError, match="no \\[user@\\]host"):
        remote(host, "ssh", "", lambda line: None)


@pytest.mark.parametrize("host", ["pi", "pi@10.0.0.2", "root@[fe80::1%eth0]", "a-b.c_d"])
def test_what_is_a_host_is_taken(pi: Pi, host: str) -> None:
    assert remote(host, "ssh -p 22", "", lambda line: None).ssh == ("ssh", "-p", "22")


# Looking.


def test_a_board_is_looked_at(pi: Pi) -> None:
    board = pi.probe()
    assert board.boot == "/boot/firmware"
    assert board.release == RELEASE
    assert board.vermagic == VERMAGIC
    assert board.config == CONFIG
    assert board.overlays == "/boot/firmware/overlays"
    assert board.modules_free > 0
    (pi.root / "boot/firmware").rename(pi.root / "boot/elsewhere")
    with pytest.raises(UsageError, match="doesn't look like a Raspberry Pi"):
        pi.probe()
    assert probe(pi.remote(), "/boot/elsewhere").boot == "/boot/elsewhere"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("config x", "can't be read"),
        ("boot_free -1", "is no number"),
        (f"modules_free {'9' * 5000}", "is no number"),
    ],
)
def test_an_answer_that_is_none_is_an_error(line: str, words: str) -> None:
    word, _, text = line.partition(" ")
    values = {"uid": ("0",), "boot": ("/boot",), "backup": ("odd",)}
    assert _board(Remote("pi"), "", Answer(values)).left == ("odd",)
    with pytest.raises(InfrastructureError, match=words):
        _board(Remote("pi"), "", Answer({**values, word: (text,)}))


def test_a_user_who_may_not_become_root_is_told(pi: Pi) -> None:
    pi.program("id", "echo 1000")
    pi.program("sudo", "exit 1")
    with pytest.raises(InfrastructureError, match="sudo -n true"):
        pi.probe()


def test_sudo_is_used_where_it_asks_for_nothing(pi: Pi) -> None:
    pi.program("id", 'echo "${FAKE_UID:-1000}"')
    pi.program("sudo", 'shift; SUDO_UID=1000 FAKE_UID=0 exec "$@"')
    assert pi.probe().remote.sudo
    pi.deploy(pi.driver())
    calls = (pi.folder / "ssh-calls").read_text()
    assert "sudo -n rsync --server" in calls
    assert "sudo -n sh -s" in calls


def test_what_the_board_lacks_is_named(pi: Pi) -> None:
    hidden = 'command() { [ "$2" != rsync ]; }\n'
    pi.program(
        "sh",
        f"exec /bin/sh -c 'cat >$0; (printf \"%s\\n\" \"$1\"; cat $0) | /bin/sh -s' {pi.folder}/in '{hidden}'",
    )
    with pytest.raises(InfrastructureError, match="lacks rsync") as caught:
        pi.probe()
    assert "rsync" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "words",
    [
        "ssh: connect to host board port 22: Connection refused",
        "Permission denied (publickey).",
        "Host key verification failed.",
    ],
)
def test_ssh_s_own_words_are_shown(pi: Pi, words: str) -> None:
    (pi.folder / "ssh-faults").write_text(words)
    with pytest.raises(InfrastructureError, match="can't be reached") as caught:
        pi.probe()
    assert words in caught.value.detail


def test_without_rsync_here_nothing_is_begun(pi: Pi) -> None:
    pi.monkeypatch.setenv("PATH", str(pi.folder / "board"))
    pi.program("ssh", "exit 1")
    with pytest.raises(MissingDependency, match="rsync") as caught:
        pi.remote()
    assert caught.value.exit_code == 3
    assert "apt-get install rsync" in (caught.value.hint or "")


# The driver alone.


def test_a_driver_is_deployed(pi: Pi) -> None:
    done = pi.deploy(pi.driver())
    assert (pi.modules / RELEASE / "updates/mfrc522_rust.ko").read_text() == "driver"
    assert (pi.boot / "overlays/mfrc522.dtbo").read_text() == "overlay for driver"
    assert "mfrc522_rust.ko" in (pi.modules / RELEASE / "modules.dep").read_text()
    assert pi.config.startswith(CONFIG + "\r\n")
    assert "dtoverlay=mfrc522\r\n" in pi.config
    assert sorted(name for name, _ in done.sent.files) == ["mfrc522.dtbo", "mfrc522_rust.ko"]
    assert done.created and not done.replaced
    assert done.backup
    assert not list(pi.root.rglob(".rbuild-upload*"))
    json.dumps(done.as_json())


def test_what_is_there_is_not_sent_again(pi: Pi) -> None:
    pi.deploy(pi.driver())
    before = pi.tree()
    done = pi.deploy(pi.driver())
    assert done.nothing
    assert done.sent.files == ()
    assert pi.tree() == before


def test_only_what_changed_is_replaced(pi: Pi) -> None:
    pi.deploy(pi.driver())
    (pi.boot / "overlays/mfrc522.dtbo").write_text("overlay for new")
    done = pi.deploy(pi.driver("new"))
    assert [name for name, _ in done.sent.files] == ["mfrc522_rust.ko"]
    assert done.replaced == (f"/lib/modules/{RELEASE}/updates/mfrc522_rust.ko",)
    assert done.config_diff == ""


def test_an_overlay_that_an_included_file_loads_is_not_loaded_twice(pi: Pi) -> None:
    (pi.boot / "config.txt").write_text("include a.txt\r\nINCLUDE x\n")
    (pi.boot / "a.txt").write_text("\tinclude\tsub/b c.txt \r\ninclude a.txt\ninclude ../x.txt\n")
    (pi.boot / "sub").mkdir()
    (pi.boot / "sub/b c.txt").write_text("dtoverlay=mfrc522,speed=100\nos_prefix=mine/")
    (pi.boot.parent / "x.txt").write_text("secret")
    board = pi.probe()
    assert sorted(board.around.files) == ["a.txt", "sub/b c.txt"]
    pi.deploy(pi.driver())
    assert "dtoverlay=mfrc522" not in pi.config
    assert pi.deploy(pi.driver()).nothing
    pi.deploy(pi.kernel())
    assert "cmdline=/mine/cmdline.txt" in pi.config


def test_a_kernel_that_an_included_file_boots_is_not_pruned(pi: Pi) -> None:
    pi.deploy(pi.kernel("a"))
    (prefix,) = (path.name for path in pi.boot.glob("rbuild-*"))
    (pi.boot / "old.txt").write_text(f"os_prefix={prefix}/\n")
    for text in "bcdef":
        pi.deploy(pi.kernel(text))
    assert (pi.boot / prefix / "kernel8.img").read_text() == "a"


def test_another_of_our_drivers_goes_and_comes_back(pi: Pi) -> None:
    pi.deploy(pi.driver("c", "mfrc522"))
    before = pi.system()
    done = pi.deploy(pi.driver("c"))
    assert done.removed == (f"/lib/modules/{RELEASE}/updates/mfrc522.ko",)
    assert [path.name for path in (pi.modules / RELEASE / "updates").iterdir()] == [
        "mfrc522_rust.ko"
    ]
    pi.roll_back()
    assert pi.system() == before


def test_a_driver_for_another_kernel_is_refused(pi: Pi) -> None:
    before = pi.tree()
    board = replace(pi.probe(), remote=Remote("board"))
    planner = pi.driver()
    with pytest.raises(
        UsageError, match=f"runs Linux 6.1.0, but mfrc522_rust.ko is built for {RELEASE}"
    ):
        planner(replace(board, release="6.1.0"))
    with pytest.raises(UsageError, match=r"board runs Linux 6\.1\.0, but the driver is built for"):
        for_release(replace(board, release="6.1.0"), RELEASE)
    with pytest.raises(UsageError, match=r"vermagic .6\.12\.5 preempt., but .* has"):
        planner(replace(board, vermagic=f"{RELEASE} preempt"))
    with pytest.raises(UsageError, match=r"has modules of Linux 6\.1\.0, not of"):
        planner(replace(board, releases=("6.1.0",), remote=Remote("board", root="/mnt")))
    assert pi.tree() == before


def test_overlays_go_where_the_firmware_takes_them_from(pi: Pi) -> None:
    pi.deploy(pi.kernel())
    folder = pi.probe().overlays
    assert folder.startswith("/boot/firmware/rbuild-6.12.5-")
    (pi.root / folder.lstrip("/") / "README").unlink()
    assert pi.probe().overlays == "/boot/firmware/overlays"


# The machine.

ARM64, ARM = architecture.of_kernel("arm64"), architecture.of_kernel("arm")
PI = {
    name: Hardware(machine, bits, 0, 4096, tuple(compatible.split()))
    for name, machine, bits, compatible in (
        ("pi1", "armv6l", 32, "raspberrypi,model-b brcm,bcm2835"),
        ("pi2", "armv7l", 32, "raspberrypi,2-model-b brcm,bcm2836"),
        ("pi3 32", "armv7l", 32, "raspberrypi,3-model-b brcm,bcm2837"),
        ("pi4 mixed", "aarch64", 32, "raspberrypi,4-model-b brcm,bcm2711"),
        ("pi4 linux32", "armv8l", 32, "raspberrypi,4-model-b brcm,bcm2711"),
        ("pi4", "aarch64", 64, "raspberrypi,4-model-b brcm,bcm2711"),
        ("pi5 mixed", "aarch64", 32, "raspberrypi,5-model-b brcm,bcm2712"),
        ("arm", "armv7l", 0, ""),
        ("pc", "x86_64", 64, ""),
        ("unknown", "", 0, ""),
    )
}


def playing(hardware: Hardware, root: str = "") -> Board:
    values = {"uid": ("0",), "boot": ("/boot",)}
    return replace(_board(Remote("pi", root=root), "", Answer(values)), hardware=hardware)


@pytest.mark.parametrize(
    ("name", "target", "whole", "words"),
    [
        ("pi1", ARM64, True, "32-bit kernel (armv6l); the kernel is built for aarch64"),
        ("pi2", ARM64, True, "32-bit kernel (armv7l); the kernel is built for aarch64"),
        ("arm", ARM64, True, "32-bit kernel (armv7l)"),
        ("pi3 32", ARM64, False, "32-bit kernel (armv7l); the module is built for aarch64"),
        ("pi4", ARM, False, "64-bit kernel (aarch64); the module is built for armv7l"),
        ("pi4", ARM, True, "64-bit ones, which no 32-bit kernel runs"),
        ("pi5 mixed", ARM, True, "64-bit kernel (aarch64); the kernel is built for armv7l"),
        ("pc", ARM64, False, "x86_64 machine"),
    ],
)
def test_what_the_machine_cannot_run_is_refused(
    name: str, target: Architecture, whole: bool, words: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        machine.must_suit(playing(PI[name]), target, whole=whole)


@pytest.mark.parametrize(
    ("name", "target", "whole", "words"),
    [
        ("pi1", ARM, True, []),
        ("pi2", ARM, False, []),
        ("pi3 32", ARM, True, []),
        ("pi3 32", ARM64, True, ["will run a 64-bit one", "32-bit ones under a 64-bit kernel"]),
        ("pi4 mixed", ARM64, False, ["32-bit ones under a 64-bit kernel"]),
        ("pi4 linux32", ARM64, False, ["32-bit ones under a 64-bit kernel"]),
        ("pi4 mixed", ARM, True, ["will run a 32-bit one"]),
        ("pi4", ARM64, True, []),
        ("unknown", ARM64, True, []),
    ],
)
def test_what_the_machine_can_run_is_taken(
    name: str, target: Architecture, whole: bool, words: list[str]
) -> None:
    warnings = machine.must_suit(playing(PI[name]), target, whole=whole)
    assert len(warnings) == len(words)
    assert all(word in text for word, text in zip(words, warnings, strict=True))


@pytest.mark.parametrize(
    ("number", "bits", "target", "words"),
    [
        (183, 2, ARM64, ""),
        (40, 1, ARM64, "32-bit ones"),
        (40, 1, ARM, ""),
        (183, 2, ARM, "no 32-bit kernel"),
        (62, 2, ARM64, "for another processor"),
    ],
)
def test_the_programs_of_a_card_are_looked_at(
    pi: Pi, number: int, bits: int, target: Architecture, words: str
) -> None:
    program = pi.root / "bin/dash"
    program.parent.mkdir()
    program.write_bytes(b"\x7fELF" + bytes([bits, 1, *[0] * 12, number, 0, 9, 9]))
    board = pi.probe()
    assert board.hardware == Hardware(bits=32 * bits, number=number)
    try:
        said = "".join(machine.must_suit(board, target, whole=True))
    except UsageError as error:
        said = error.message
    assert (words in said) if words else (said == "")


@dataclass
class Configured:
    """What of a KDIR is compared with a board."""

    config: dict[str, str]
    arch: Architecture
    release: str = RELEASE

    @property
    def profile(self):  # type: ignore[no-untyped-def]
        return SimpleNamespace(name="tiny", path="tiny.yaml")

    @property
    def ready(self):  # type: ignore[no-untyped-def]
        return SimpleNamespace(environment=SimpleNamespace(target=self.arch))


@pytest.mark.parametrize(
    ("name", "arch", "whole", "options", "words"),
    [
        ("pi4", ARM64, False, "ARM64_4K_PAGES", ""),
        ("pi4", ARM64, False, "ARM64_16K_PAGES", "pages of 4096 bytes; the module is built for"),
        ("pi4", ARM64, True, "ARM64_16K_PAGES", ""),
        ("pi4 mixed", ARM64, False, "", ""),
        ("pi4 mixed", ARM64, True, "COMPAT", ""),
        ("pi4 mixed", ARM64, True, "", "CONFIG_COMPAT is not set"),
        ("pi1", ARM, True, "CPU_V6", ""),
        ("pi1", ARM, True, "CPU_V7", "CONFIG_CPU_V6 is not set"),
        ("pi2", ARM, True, "CPU_V6K", "CONFIG_CPU_V7 is not set"),
        ("pi2", ARM, True, "CPU_V6K CPU_V7", ""),
    ],
)
def test_a_configuration_that_the_board_cannot_run_is_refused(
    name: str, arch: Architecture, whole: bool, options: str, words: str
) -> None:
    kdir = Configured(dict.fromkeys(options.split(), "y"), arch)
    try:
        machine.must_run_on(playing(PI[name]), kdir, whole=whole)  # type: ignore[arg-type]
        said = ""
    except UsageError as error:
        said = error.message
    assert (words in said) if words else (said == "")


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (None, ""),
        ("", ""),
        ("CONFIG_SMP=y\n# CONFIG_X is not set\nCONFIG_GCC_VERSION=1\nCONFIG_HZ=100\n", ""),
        ("CONFIG_SMP=y\nCONFIG_HZ=250\n", "of tiny: CONFIG_HZ=250, here 100. A module"),
        ("CONFIG_HZ=100\nCONFIG_KASAN=y", "CONFIG_KASAN=y, here n; CONFIG_SMP=n, here y. A"),
    ],
)
def test_a_kernel_of_the_same_release_but_configured_otherwise_is_warned_of(
    pi: Pi, there: str | None, words: str
) -> None:
    if there is not None:
        (pi.root / f"boot/config-{RELEASE}").write_text(there)
    kdir = Configured({"SMP": "y", "HZ": "100", "CC_VERSION_TEXT": "x"}, ARM64)
    said = "".join(machine.config_warnings(pi.probe(), kdir))  # type: ignore[arg-type]
    assert (words in said) if words else (said == "")


@pytest.mark.parametrize("text", ["x", "eA==", "H4sIAAAA", "\udcff"])
def test_a_configuration_that_is_none_is_none(pi: Pi, text: str) -> None:
    pi.monkeypatch.setattr(Remote, "step", lambda *_: Answer({"kconfig": (text,)}))
    kdir = Configured({"SMP": "y"}, ARM64)
    assert machine.config_warnings(playing(PI["pi4"]), kdir) == []  # type: ignore[arg-type]


def test_a_kernel_with_the_device_tree_of_another_board_is_warned_of(tmp_path: Path) -> None:
    tree = tmp_path / "a.dtb"
    tree.write_bytes(fdt.pack(fdt.Node({"compatible": b"raspberrypi,3-model-b\0brcm,bcm2837\0"})))
    assert machine.tree_warnings(playing(PI["pi3 32"]), [tree]) == []
    assert machine.tree_warnings(playing(PI["unknown"]), [tree]) == []
    (said,) = machine.tree_warnings(playing(PI["pi4"]), [tree])
    assert "is a raspberrypi,4-model-b" in said


def test_a_board_of_another_machine_costs_no_build(host: Host, pi: Pi) -> None:
    pi.program("uname", f"case $1 in -r) echo {RELEASE} ;; *) echo armv7l ;; esac")
    words = ("deploy", "pi@board", "--boot-dir", pi.boot, "--profile", host.profile, "--dry-run")
    for more in ((), ("--kernel",)):
        found = host("--json", *words, *more, code=2)
        assert "pi@board runs a 32-bit kernel (armv7l)" in found.json["error"]
    assert host.calls("make") == 0


def test_32_bit_programs_under_a_64_bit_kernel_are_warned_of(host: Host, pi: Pi) -> None:
    pi.program("getconf", "case $1 in LONG_BIT) echo 32 ;; *) echo 4096 ;; esac")
    pi.program("modinfo", "exit 1")
    overlay = pi.folder / "mfrc522.dtbo"
    overlay.write_text("overlay")
    words = ("deploy", "pi@board", "--boot-dir", pi.boot, "--profile", host.profile)
    found = host("--json", *words, "--driver", "c", "--overlay", overlay, "--dry-run")
    # This host's /proc/config.gz is the board's, too.
    (said,) = (one for one in found.json["warnings"] if "32-bit ones under a 64-bit kernel" in one)
    assert f"warning: {said}" in found.err


# A login shell that prints.

BANNER = 'printf "Welcome to board"; exec /bin/sh "$@"'


def test_a_shell_that_prints_is_named_before_anything_is_built(host: Host, pi: Pi) -> None:
    pi.program("sh", BANNER)
    pi.monkeypatch.setenv("SHELL", "/bin/loud")
    found = host("deploy", "pi@board", "--root", pi.root, "--profile", host.profile, code=4)
    assert "/bin/loud prints to every command" in found.err
    assert "Welcome to board" in found.err
    assert "[ -t 1 ] || return" in found.err
    assert host.calls("make") == 0


def test_a_shell_that_prints_is_named_when_the_upload_fails(pi: Pi) -> None:
    board = pi.probe()
    pi.program("sh", BANNER)
    pi.monkeypatch.setenv("SHELL", "/bin/loud")
    with pytest.raises(InfrastructureError, match="/bin/loud prints") as caught:
        run.deploy(board, pi.driver(), pi.folder, console())
    assert "/bin/loud" in (caught.value.hint or "")
    pi.program("sh", 'echo "Welcome" >&2; exec /bin/sh "$@"')
    pi.probe().remote.must_be_quiet()


def test_a_shell_that_prints_hinders_no_rollback(host: Host, pi: Pi) -> None:
    pi.deploy(pi.driver())
    pi.program("sh", BANNER)
    host("deploy", "pi@board", "--root", pi.root, "--rollback")
    assert pi.probe().backups == ()


def test_an_account_without_a_shell_is_said_to_have_none(pi: Pi) -> None:
    pi.program("sh", "echo 'This account is currently not available.'; exit 1")
    with pytest.raises(InfrastructureError, match="status 1") as caught:
        pi.probe()
    assert "login" in (caught.value.hint or "")
    pi.program("sh", "echo menu")
    with pytest.raises(InfrastructureError, match="no answer that rbuild understands") as caught:
        pi.probe()
    assert caught.value.detail == "menu"


# A whole kernel.


def test_a_kernel_is_deployed_beside_the_old_one(pi: Pi) -> None:
    before = pi.system()
    done = pi.deploy(pi.kernel(release="6.12.99"))
    assert before.items() - pi.system().items() == {
        ("boot/firmware/config.txt", CONFIG.encode().hex())
    }
    prefix = next(path.name for path in pi.boot.glob("rbuild-*"))
    assert (pi.boot / prefix / "kernel8.img").read_text() == "kernel"
    assert (pi.modules / "6.12.99/kernel/drivers/spi.ko").read_text() == "spi of kernel"
    assert f"os_prefix={prefix}/" in pi.config
    assert "cmdline=/cmdline.txt" in pi.config
    assert pi.config.index("dtparam=spi=on") < pi.config.index("dtoverlay=mfrc522")
    kept = pi.boot / f"config.txt.rbuild-{Path(done.backup or '').name}"
    assert kept.read_bytes() == CONFIG.encode()


def test_modules_of_the_same_release_are_exchanged(pi: Pi) -> None:
    done = pi.deploy(pi.kernel())
    assert f"/lib/modules/{RELEASE}" in done.replaced
    assert (pi.modules / RELEASE / "kernel/drivers/spi.ko").exists()
    assert not (pi.modules / RELEASE / "kernel/drivers/spi/spi.ko").exists()
    (backup,) = pi.modules.glob(".rbuild-backup-*")
    assert (backup / "kernel/drivers/spi/spi.ko").read_text() == "spi"


EXCHANGING_MV = """\
if [ "$1" != --exchange ]; then exec /bin/mv "$@"; fi
echo exchanged >>{log}
exec {python} -c '
import ctypes, os, sys
old, new = map(os.fsencode, sys.argv[1:])
sys.exit(ctypes.CDLL(None).renameat2(-100, old, -100, new, 2) != 0)
' "$3" "$4"
"""


def test_folders_change_places_at_once_where_mv_can_do_that(pi: Pi) -> None:
    before = pi.system()
    log = pi.folder / "exchanges"
    pi.program("mv", EXCHANGING_MV.format(log=log, python=sys.executable))
    pi.deploy(pi.kernel())
    assert (pi.modules / RELEASE / "kernel/drivers/spi.ko").read_text() == "spi of kernel"
    pi.roll_back()
    assert pi.system() == before
    assert log.read_text() == "exchanged\n" * 2


def test_modules_that_are_there_already_are_not_sent_again(pi: Pi) -> None:
    pi.deploy(pi.kernel())
    spi = pi.modules / RELEASE / "kernel/drivers/spi.ko"
    (pi.modules / RELEASE / "modules.dep").write_text("damaged")
    done = pi.deploy(pi.kernel())
    assert [name for name, _ in done.sent.files] == [f"{RELEASE}/modules.dep"]
    assert spi.read_text() == "spi of kernel"
    assert pi.deploy(pi.kernel()).nothing


def test_a_command_line_of_the_board_s_own_stays(pi: Pi) -> None:
    (pi.boot / "config.txt").write_text("os_prefix=current/\ncmdline=mine.txt\n")
    pi.deploy(pi.kernel())
    assert "cmdline=/current/mine.txt" in pi.config
    assert pi.deploy(pi.kernel()).nothing


@pytest.mark.parametrize("release", [RELEASE, "6.12.99"])
def test_a_kernel_is_rolled_back(pi: Pi, release: str) -> None:
    before = pi.system()
    pi.deploy(pi.kernel(release=release))
    back = pi.roll_back()
    assert pi.system() == before
    assert "-os_prefix" in back.config_diff
    assert not list(pi.root.rglob("*.rbuild-*"))
    with pytest.raises(UsageError, match="no backup"):
        pi.roll_back()


def test_rolling_back_goes_one_step_at_a_time(pi: Pi) -> None:
    states = []
    for planner in (pi.kernel("a"), pi.driver("b"), pi.kernel("c")):
        states.append(pi.system())
        pi.deploy(planner)
    for state in reversed(states):
        pi.roll_back()
        assert pi.system() == state


def test_what_the_user_has_changed_since_outlives_a_rollback(pi: Pi) -> None:
    pi.deploy(pi.kernel())
    with (pi.boot / "config.txt").open("a") as file:
        file.write("gpu_mem=16\n")
    pi.roll_back()
    assert pi.config == CONFIG + "\r\n[all]\r\ngpu_mem=16\n"


def test_old_backups_and_kernels_are_pruned(pi: Pi) -> None:
    for text in "abcde":
        pi.deploy(pi.kernel(text))
    assert len(pi.probe().backups) == run.MAX_BACKUPS
    assert len(list(pi.modules.glob(".rbuild-backup-*"))) == run.MAX_BACKUPS
    assert len(list(pi.boot.glob("config.txt.rbuild-*"))) == run.MAX_BACKUPS
    assert len(list(pi.boot.glob("rbuild-*"))) == run.MAX_BACKUPS + 1
    for _ in range(run.MAX_BACKUPS):
        pi.roll_back()
    assert (pi.modules / RELEASE / "kernel/drivers/spi.ko").read_text() == "spi of b"


# Only looking.


@pytest.mark.parametrize("what", ["driver", "kernel"])
def test_a_dry_run_says_all_and_changes_nothing(pi: Pi, what: str) -> None:
    pi.deploy(pi.driver("old"))
    before, locks = pi.tree(), sorted((pi.root / "run").iterdir())
    would = pi.deploy(getattr(pi, what)("new"), dry_run=True)
    assert (pi.tree(), sorted((pi.root / "run").iterdir())) == (before, locks)
    done = pi.deploy(getattr(pi, what)("new"))
    assert would.as_json() | {"dry_run": False, "backup": done.backup} == done.as_json()
    before = pi.tree()
    would_back = pi.roll_back(dry_run=True)
    assert pi.tree() == before
    back = pi.roll_back()
    assert would_back.config_diff == back.config_diff
    assert set(would_back.restored) - {"/boot/firmware/config.txt"} == set(back.restored) - {
        "/boot/firmware/config.txt"
    }


# What goes wrong.


def test_what_arrives_damaged_is_not_brought_into_place(pi: Pi) -> None:
    before = pi.system()
    planner = pi.kernel()

    def wrong(board: Board) -> Plan:
        plan = planner(board)
        parts = [replace(part, files=(("0" * 64, part.files[0][1]),)) for part in plan.parts]
        return Plan(tuple(parts), plan.lines)

    with pytest.raises(InfrastructureError, match="is damaged"):
        pi.deploy(wrong)
    assert pi.system() == before
    pi.deploy(planner)
    assert not list(pi.root.rglob(".rbuild-upload*"))


def test_a_full_disk_is_noticed_before_anything_is_sent(pi: Pi) -> None:
    pi.program("df", "printf 'x\\n/dev/x 1 1 10 1%% /\\n'")
    before = pi.system()
    with pytest.raises(InfrastructureError, match=r"10\.0 KiB free"):
        pi.deploy(pi.kernel())
    assert pi.system() == before


def test_what_fails_on_the_board_is_undone(pi: Pi) -> None:
    before = pi.system()
    depmod = PROGRAMS["depmod"]
    pi.program(
        "depmod", f"if [ ! -e {pi.folder}/once ]; then touch {pi.folder}/once; exit 1; fi\n{depmod}"
    )
    with pytest.raises(InfrastructureError, match="it failed, and was undone"):
        pi.deploy(pi.driver())
    assert pi.system() == before
    assert pi.probe().backups == ()


def test_config_txt_that_somebody_edits_meanwhile_is_not_lost(pi: Pi) -> None:
    planner = pi.kernel()

    def send(*args, **more):
        (pi.boot / "config.txt").write_text("edited")
        return original(*args, **more)

    original = Remote.send
    pi.monkeypatch.setattr(Remote, "send", send)
    with pytest.raises(InfrastructureError, match=r"config\.txt was changed meanwhile"):
        pi.deploy(planner)
    assert pi.config == "edited"


def test_two_at_once_are_refused(pi: Pi) -> None:
    with pi.probe().remote.lock(), pytest.raises(InfrastructureError, match="under way"):
        pi.deploy(pi.driver())
    assert pi.deploy(pi.driver()).backup


def test_the_lock_dies_with_who_holds_it(pi: Pi) -> None:
    argv = pi.remote()._argv()
    holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write(pi.remote().script("lock", "x"))
    holder.stdin.flush()
    assert holder.stdout.readline() == b"rbuild: locked\n"
    with pytest.raises(InfrastructureError, match="under way"):
        pi.deploy(pi.driver())
    holder.stdin.close()
    holder.wait()
    assert pi.deploy(pi.driver()).backup


def test_a_lock_that_was_lost_stops_all(pi: Pi) -> None:
    before = pi.system()
    with pytest.raises(InfrastructureError, match="was lost"):
        pi.remote().step("switch", "not-the-holder", "x", "/boot/firmware", "", "", "3")
    with pi.remote().lock(), pytest.raises(InfrastructureError, match="was lost"):
        pi.remote().step("clean", "not-the-holder", "/boot/firmware", "")
    assert pi.system() == before


# The power fails.  A program that the switch uses dies, with its shell, at its n-th call.

CUT = """\
n=$(cat {count} 2>/dev/null || echo 0)
n=$((n + 1))
echo $n >{count}
if [ $n -eq {at} ] && [ {when} = before ]; then kill -9 $PPID; exit 1; fi
/bin/{name} "$@"
status=$?
if [ $n -eq {at} ] && [ {when} = after ]; then kill -9 $PPID; fi
exit $status
"""


def cut(pi: Pi, name: str, at: int, when: str) -> None:
    count = pi.folder / "count"
    count.unlink(missing_ok=True)
    pi.program(name, CUT.format(count=count, at=at, when=when, name=name))


def must_be_whole(pi: Pi, what: str, old: dict[str, str], new: dict[str, str]) -> None:
    """Check that each file is the old or the new one, and that a kernel's are of one kind.

    What a kernel's config.txt names must be there: its folder, or that of the one before.
    """
    found = pi.system()
    for path, content in found.items():
        assert content in (old.get(path), new.get(path)), path
    if what == "kernel":
        state = old if found["boot/firmware/config.txt"] == old["boot/firmware/config.txt"] else new
        named = {path: text for path, text in state.items() if path.startswith("boot/")}
        assert named.items() <= found.items()


CUTS = [
    pytest.param(
        what, name, when, marks=[] if name == "mv" and what == "kernel" else pytest.mark.slow
    )
    for what in ("driver", "kernel")
    for name in ("mv", "cp", "rm")
    for when in ("before", "after")
]


@pytest.mark.parametrize(("what", "name", "when"), CUTS)
def test_a_power_cut_at_any_step_is_undone_by_the_next(
    pi: Pi, what: str, name: str, when: str
) -> None:
    pi.deploy(pi.driver("old"))
    old = pi.system()
    planner = getattr(pi, what)("new")
    pi.deploy(planner)
    new = pi.system()
    pi.roll_back()
    at = 0
    while True:
        at += 1
        cut(pi, name, at, when)
        try:
            pi.deploy(planner)
        except InfrastructureError:
            (pi.folder / "board" / name).unlink()
            must_be_whole(pi, what, old, new)
            board = pi.probe()
            with board.remote.lock() as token:
                run.cleaned(board, token)
            if len(pi.probe().backups) == 1:
                assert pi.system() == old
                continue
            # All was done already but for the tidying up.
            pi.roll_back()
            assert pi.system() == old
        else:
            break
    assert at > 1
    (pi.folder / "board" / name).unlink()
    assert pi.system() == new
    assert pi.probe().left == ()
    pi.roll_back()
    assert pi.system() == old


@pytest.mark.parametrize(
    "name", ["mv", *(pytest.param(n, marks=pytest.mark.slow) for n in ("rm", "cp"))]
)
def test_a_power_cut_while_going_back_is_finished_by_the_next(pi: Pi, name: str) -> None:
    pi.deploy(pi.driver("old"))
    old = pi.system()
    at = 0
    while True:
        at += 1
        pi.deploy(pi.kernel("new"))
        cut(pi, name, at, "after")
        try:
            pi.roll_back()
        except InfrastructureError:
            (pi.folder / "board" / name).unlink()
            board = pi.probe()
            with board.remote.lock() as token:
                run.cleaned(board, token)
            if pi.system() != old:
                pi.roll_back()
            assert pi.system() == old
        else:
            break
    assert pi.system() == old


# The command line.


def test_the_command_line_deploys_and_goes_back(host: Host, pi: Pi) -> None:
    pi.program("modinfo", "exit 1")
    before = pi.system()
    overlay = pi.folder / "mfrc522.dtbo"
    overlay.write_text("overlay")
    words = ("deploy", "pi@board", "--root", pi.root)
    more = ("--profile", host.profile, "--driver", "c", "--overlay", overlay)
    would = host("--json", *words, *more, "--dry-run").json
    assert pi.system() == before
    done = host("--json", *words, *more).json
    assert done["uploaded"] == would["uploaded"]
    assert done["uploaded"]["files"] == ["mfrc522.dtbo", "mfrc522.ko"]
    assert done["kernel_release"] == done["release"] == RELEASE
    assert done["whole_kernel"] is False
    assert "nothing to do" in host(*words, *more).out
    back = host("--json", *words, "--rollback").json
    assert back["backup"] == Path(done["backup"]).name
    assert pi.system() == before
    host(*words, "--rollback", code=2)


def test_a_board_that_cannot_be_reached_costs_no_build(host: Host, pi: Pi) -> None:
    (pi.folder / "ssh-faults").write_text("ssh: Could not resolve hostname board")
    found = host("--json", "deploy", "board", "--profile", host.profile, code=4)
    assert "Could not resolve hostname" in found.err
    assert found.json["exit_code"] == 4
    assert host.calls("make") == 0


@pytest.mark.parametrize(
    "words",
    [
        ["board", "--rollback", "--kernel"],
        ["board", "--load", "--kernel"],
        ["board", "--reboot", "--dry-run"],
        ["board", "--load", "--root", "/mnt"],
        ["board", "--boot-dir", "boot"],
        ["board", "--root", "/mnt/../etc"],
        ["board", "--ssh", "'"],
        ["-x"],
        ["a b"],
    ],
)
def test_wrong_usage_reaches_no_board(bare: Host, pi: Pi, words: list[str]) -> None:
    bare("deploy", *words, code=2)
    assert not (pi.folder / "ssh-calls").exists()


def test_a_driver_is_loaded_anew(pi: Pi) -> None:
    log = pi.folder / "log"
    log.write_text("before\n")
    pi.program("dmesg", f"cat {log}")
    pi.program("modprobe", f'echo "modprobe $*" >>{log}; [ $1 != broken ]')
    pi.program("sleep", "exit 0")
    assert run.load(pi.probe(), "mfrc522_rust") == ["modprobe mfrc522_rust"]
    with pytest.raises(GuestFailed, match="broken can't be loaded"):
        run.load(pi.probe(), "broken")
