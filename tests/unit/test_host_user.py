"""Users without a name or a home, streams that are closed or full, file systems without programs."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from rbuild.cli import main
from rbuild.errors import MissingDependency
from rbuild.provision import doctor, mmdebstrap
from tests.unit.conftest import Host

ROOT = Path(__file__).parents[2]


def rbuild(redirection: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run rbuild in a shell that redirects its streams."""
    argv = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "rbuild", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


LISTS = [("status",), ("--json", "status"), ("--help",), ("status", "--help"), ("--version",)]


@pytest.mark.parametrize("words", LISTS)
def test_a_closed_stdout_is_named(bare: Host, words: tuple[str, ...]) -> None:
    done = rbuild(">&-", *words)
    assert "stdout is closed" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 4


@pytest.mark.parametrize("words", LISTS)
def test_a_full_stdout_is_named(bare: Host, words: tuple[str, ...]) -> None:
    done = rbuild(">/dev/full", *words)
    assert "can't be written to stdout: No space left on device" in done.stderr
    assert "rbuild clean" not in done.stderr
    assert done.returncode == 4


@pytest.mark.parametrize("redirection", ["2>&-", "<&-", "<&- 2>&-", "2>/dev/full"])
def test_other_streams_may_be_closed(bare: Host, redirection: str) -> None:
    done = rbuild(redirection, "status")
    assert "Nothing is provisioned" in done.stdout
    assert done.returncode == 0


def test_no_file_takes_the_number_of_a_closed_stream(host: Host) -> None:
    before = {path: path.read_bytes() for path in host.cache.rglob("*") if path.is_file()}
    assert rbuild(">&- 2>&- <&-", "status", "--verify").returncode == 4
    assert {path: path.read_bytes() for path in before} == before


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a user id of which passwd knows nothing, without HOME."""

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    for name in ("HOME", "LOGNAME", "USER", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_a_cache_directory_must_be_named(
    bare: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bare.folder)
    bare("--cache-dir", bare.cache, "status")
    bare("--cache-dir", bare.cache, "config")
    bare("--cache-dir", bare.cache, "config", "path")
    monkeypatch.delenv("RBUILD_CACHE_DIR")
    said = bare("status", code=3).err
    assert "has no home directory" in said
    assert "--cache-dir" in said
    assert not (bare.folder / "~").exists()


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("words", [("man", "--install"), ("completion", "bash", "--install")])
def test_nothing_is_installed_for_a_user_without_a_home(
    bare: Host, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(bare.folder)
    monkeypatch.delenv("BASH_COMPLETION_USER_DIR", raising=False)
    assert "has no home directory" in bare(*words, code=3).err
    assert not (bare.folder / "~").exists()


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_name_has_no_subordinate_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    user = doctor._user()
    assert user == "54321"
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    finding = doctor._subordinate_ids(user)
    assert "no entry in passwd" in finding.text
    assert finding.action is None
    with pytest.raises(MissingDependency, match="no entry in passwd"):
        mmdebstrap._need_name()


@pytest.fixture
def noexec(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs

    def mounted(path: Path) -> os.statvfs_result:
        found = list(real(path))
        found[8] |= os.ST_NOEXEC
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", mounted)


@pytest.mark.usefixtures("noexec")
@pytest.mark.parametrize("words", [("setup", "cross"), ("module",)])
def test_a_cache_where_no_program_runs_is_named(host: Host, words: tuple[str, ...]) -> None:
    more = ("--profile", host.profile) if words == ("module",) else ()
    said = host(*words, *more, code=3).err
    assert "mounted noexec" in said
    assert "--cache-dir" in said


@pytest.mark.usefixtures("noexec")
def test_a_folder_for_temporary_files_where_no_program_runs_is_named(bare: Host) -> None:
    bare.cache.mkdir()
    with pytest.raises(MissingDependency, match="noexec"), mmdebstrap._temporary(bare.cache):
        pass
    assert main.run(["status"]) == 0
