"""What the caller's environment and the host's settings must not change: what tools print and do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from rbuild.cache import integrity
from rbuild.errors import InfrastructureError, ProcessFailed, TimedOut
from rbuild.provision import doctor, mirrors
from rbuild.provision.doctor import State
from rbuild.source import git
from rbuild.util import process
from rbuild.util.folders import GONE
from tests.unit.conftest import Host

LEAKS = ("LD_PRELOAD", "GIT_TRACE", "TAR_OPTIONS", "POSIXLY_CORRECT", "API_TOKEN", "LANGUAGE")


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a preloaded object that isn't there, of which each program complains."""
    monkeypatch.setenv("LD_PRELOAD", "libnope.so")


def test_tools_have_an_environment_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LEAKS:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    for printed in (process.capture(["env"]), process.run(["env"]).text):
        names = dict(line.split("=", 1) for line in printed.splitlines())
        assert not names.keys() & {*LEAKS}
        assert names["https_proxy"] == "http://proxy:3128"
        assert names["LC_ALL"].startswith("C")


def test_a_program_of_the_users_has_their_environment_without_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LD_PRELOAD", "libnope.so")
    monkeypatch.setenv("RSYNC_OLD_ARGS", "1")
    monkeypatch.setenv("SSHPASS", "secret")
    env = process.callers_environment()
    assert env["SSHPASS"] == "secret"
    assert not {"LD_PRELOAD", "RSYNC_OLD_ARGS"} & env.keys()


@pytest.mark.usefixtures("noisy")
def test_a_preloaded_object_that_is_missing_is_no_output() -> None:
    assert process.run(["sh", "-c", "echo out"]).tail == ("out",)


def test_only_stdout_is_captured() -> None:
    assert process.capture(["sh", "-c", "echo noise >&2; echo 1.0; echo noise >&2"]) == "1.0"


def test_what_is_captured_has_no_control_sequences() -> None:
    assert process.capture(["printf", r"\033[31m1.0\033[m\n"]) == "1.0"


def test_a_program_that_is_killed_is_never_excused() -> None:
    script = "echo 'find: x: No such file or directory' >&2; kill -KILL $$"
    with pytest.raises(ProcessFailed) as failed:
        process.output(["sh", "-c", script], excused=GONE)
    assert failed.value.returncode == -signal.SIGKILL
    assert (
        process.output(["sh", "-c", script.replace("kill -KILL $$", "exit 1")], excused=GONE) == b""
    )


def test_output_has_a_limit_of_time() -> None:
    with pytest.raises(TimedOut):
        process.output(["sleep", "60"], total_s=0.05)


IGNORED = (
    "N: Ignoring file '01proxy.off' in directory '/etc/apt/apt.conf.d/' as it has an invalid name"
)


@pytest.mark.parametrize("stream", [1, 2])
def test_only_proxies_are_taken_for_proxies(bare: Host, stream: int) -> None:
    line = 'Acquire::http::Proxy "http://proxy:3128/";'
    bare.tool("apt-config", f"echo \"{IGNORED}\" >&{stream}; echo '{line}'")
    assert mirrors.proxy_options() == [line]


@pytest.mark.parametrize("stream", [1, 2])
def test_only_mirrors_are_taken_for_mirrors(bare: Host, stream: int) -> None:
    noise = f'echo "{IGNORED}" >&{stream}; echo "W: Debian|odd" >&{stream}'
    bare.tool("apt-get", f"{noise}; echo 'Debian|http://mirror/debian/'")
    assert mirrors.host_mirrors("trixie")[0] == "deb http://mirror/debian/ trixie main"


@pytest.mark.parametrize("printed", ["hello", r"f 644 1 1.0 ./a\0noise: x\0"])
def test_an_entry_is_not_damaged_where_find_makes_noise(host: Host, printed: str) -> None:
    real = subprocess.check_output(["sh", "-c", "command -v find"], text=True).strip()
    entry = next((host.cache / "rootfs").glob("cross*"))
    host.tool("find", f"printf '{printed}'; exec {real} \"$@\"")
    said = host("status", "--verify", code=4)
    assert "wasn't verified" in said.err
    assert "is damaged" not in said.err
    assert "find(1) printed" in host("module", "--profile", host.profile, code=4).err
    assert entry.is_dir()
    (host.folder / "bin/find").unlink()
    host("status", "--verify")


@pytest.mark.usefixtures("noisy")
def test_entries_are_verified_with_a_preloaded_object_that_is_missing(host: Host) -> None:
    assert " 0 are damaged" in host("status", "--verify").out


def test_names_with_newlines_are_records(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/\nodd\n name").touch()
    (tmp_path / "src/\nlink").symlink_to("nowhere")
    found = integrity.record(tmp_path, "src")
    assert integrity.verify_quick(tmp_path, found) == integrity.verify_deep(tmp_path, found) == []


class Repository:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self("init", "--quiet", "--initial-branch=main")
        (folder / "Makefile").write_bytes(b"VERSION = 6\nPATCHLEVEL = 12\n")
        (folder / "script").symlink_to("Makefile")
        self("add", ".")
        self("commit", "--quiet", "--message=one")
        self.commit = self("rev-parse", "HEAD")

    def __call__(self, *words: str) -> str:
        names = {"name": "A", "email": "a@example.org"}
        settings = [word for key in names for word in ("-c", f"user.{key}={names[key]}")]
        argv = ["git", "-C", str(self.folder), *settings, *words]
        env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
        return subprocess.run(
            argv, check=True, capture_output=True, text=True, env=env
        ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def _fetched(repository: Repository, target: Path) -> Path:
    target.mkdir()
    date = git.fetch(
        f"file://{repository.folder}", "main", repository.commit, target, lambda _: None
    )
    assert date.year > 2000
    assert (target / "Makefile").read_bytes() == b"VERSION = 6\nPATCHLEVEL = 12\n"
    assert (target / "script").is_symlink()
    return target


SETTINGS = """\
[core]
	autocrlf = true
	eol = crlf
	symlinks = false
	hooksPath = {home}/hooks
	attributesFile = {home}/attributes
	fsmonitor = {home}/hooks/post-checkout
[filter "loud"]
	smudge = "touch {home}/ran; cat"
[log]
	showSignature = true
	date = relative
[color]
	ui = always
[init]
	templateDir = {home}/template
	defaultObjectFormat = sha256
[format]
	pretty = fuller
"""


def test_git_heeds_no_settings_of_the_users(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    for name in (
        "hooks/post-checkout",
        "hooks/reference-transaction",
        "template/hooks/post-checkout",
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"#!/bin/sh\ntouch {home}/ran\n")
        (home / name).chmod(0o755)
    (home / ".gitconfig").write_text(SETTINGS.format(home=home))
    (home / ".config/git").mkdir(parents=True)
    for path in (home / "attributes", home / ".config/git/attributes"):
        path.write_text("* text eol=crlf filter=loud\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    _fetched(repository, tmp_path / "target")
    assert not (home / "ran").exists()


VARIABLES = {
    "GIT_TRACE": "1",
    "GIT_DIR": "/nonexistent",
    "GIT_OBJECT_DIRECTORY": "/nonexistent",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "core.autocrlf",
    "GIT_CONFIG_VALUE_0": "true",
    "GIT_DEFAULT_HASH": "sha256",
    "GIT_EXTERNAL_DIFF": "/nonexistent",
    "GIT_TEMPLATE_DIR": "/nonexistent",
    "LD_PRELOAD": "libnope.so",
}


def test_git_heeds_no_variable_of_the_callers(
    repository: Repository, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rbuild.cache.directory import Cache
    from rbuild.ui.console import Console

    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    url = f"file://{repository.folder}"
    assert git.resolve(url, "main", Cache(host.cache, Console())) == repository.commit
    _fetched(repository, host.folder / "target")


def test_a_commit_without_a_date_is_no_traceback(
    repository: Repository, bare: Host, tmp_path: Path
) -> None:
    real = subprocess.check_output(["sh", "-c", "command -v git"], text=True).strip()
    bare.tool("git", f'case "$*" in *%cI*) echo odd;; *) exec {real} "$@";; esac')
    with pytest.raises(InfrastructureError, match=re.escape("no valid date")):
        _fetched(repository, tmp_path / "target")


APT_GET = r"""
sources=/nonexistent
for word; do case $word in -oDir::Etc::SourceList=*) sources=${{word#*=}};; esac; done
if [ $sources = /nonexistent ]; then
    {whole}
fi
grep -q nonsense $sources && {{ echo "E: Malformed entry 1" >&2; exit 100; }}
sed -n 's/^deb \([^ ]*[^ /]\)\/* \([^ ]*\) \([a-z]*\)$/\1\/|\2|\3|$(SIGNED_BY)/p' $sources
sed -n 's/^deb .signed-by=\([^ ]*\). \([^ ]*[^ /]\)\/* \([^ ]*\) \([a-z]*\)$/\2\/|\3|\4|\1/p' $sources
"""

EMPTY = "exit 0"
MALFORMED = 'echo "E: Malformed entry 1 in list file bad.list (Suite)" >&2; exit 100'


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "apt"
    (folder / "sources.list.d").mkdir(parents=True)
    (folder / "sources.list").write_text(
        "deb [signed-by=/usr/share/other.gpg] https://other.example/debian trixie main\n"
        "deb https://docker.example/linux/debian trixie stable\n"
        "deb http://mirror.example/debian trixie main\n"
    )
    (folder / "sources.list.d/security.list").write_text(
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
        " http://mirror.example/debian-security trixie-security main\n"
    )
    monkeypatch.setattr(mirrors, "APT", folder)
    return folder


LINES = [
    "deb http://mirror.example/debian/ trixie main",
    "deb http://mirror.example/debian/ trixie-updates main",
    "deb http://mirror.example/debian-security/ trixie-security main",
]


@pytest.mark.usefixtures("apt")
def test_the_hosts_mirror_is_found_without_lists(bare: Host) -> None:
    bare.tool("apt-get", APT_GET.format(whole=EMPTY))
    assert mirrors.host_mirrors("trixie") == LINES
    assert mirrors.find_mirrors().warning == ""


@pytest.mark.usefixtures("apt")
def test_a_mirror_whose_list_is_missing_is_found_as_well(bare: Host) -> None:
    whole = "echo 'Debian|http://mirror.example/debian/'; exit 0"
    bare.tool("apt-get", APT_GET.format(whole=whole))
    assert mirrors.host_mirrors("trixie") == LINES


def test_a_malformed_list_of_somebody_elses_hides_no_mirror(bare: Host, apt: Path) -> None:
    bare.tool("apt-get", APT_GET.format(whole=MALFORMED))
    (apt / "sources.list.d/bad.list").write_text("deb nonsense\n")
    assert mirrors.host_mirrors("trixie") == LINES
    said = bare("setup", "cross").err
    assert "Malformed entry 1 in list file bad.list (Suite)" in said
    assert "http://mirror.example/debian/" in said


def test_a_mirror_is_not_ignored_without_a_word(bare: Host, apt: Path) -> None:
    bare.tool("apt-get", APT_GET.format(whole=MALFORMED))
    (apt / "sources.list").write_text("deb nonsense\n")
    assert mirrors.host_mirrors("trixie") == []
    assert "taking Debian's default mirror" in bare("setup", "cross").err


def test_a_host_that_is_not_debian_needs_no_warning(bare: Host) -> None:
    assert "mirror" not in bare("setup", "cross").err


@pytest.mark.parametrize(("status", "state"), [(0, State.OK), (1, State.MISSING)])
def test_doctor_tries_bubblewrap_itself(bare: Host, status: int, state: State) -> None:
    bare.tool("unshare", "exit 1")
    bare.tool("bwrap", f"echo 'bwrap: No permissions' >&2; exit {status}")
    finding = doctor._namespaces()
    assert finding.state is state
    assert ("No permissions" in finding.text) == (status == 1)
