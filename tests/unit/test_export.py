"""What the user asks to have written is written there, and nowhere else."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rbuild.cache.directory import Cache
from rbuild.errors import UsageError
from rbuild.ide import project as ide_project
from rbuild.ui.console import Console
from rbuild.util import export, files, host
from rbuild.util.files import write_text

from .conftest import Host


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Return a file that nobody asked to have written."""
    path = tmp_path / "victim"
    path.write_text("mine")
    return path


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


WRITERS: dict[str, Callable[[Path], object]] = {
    "write": lambda path: export.write(path, "new"),
    "write_text": lambda path: write_text(path, "new"),
}


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    return WRITERS[request.param]


def test_a_link_is_replaced(tmp_path: Path, victim: Path, writer) -> None:
    path = tmp_path / "out.json"
    path.symlink_to(victim)
    writer(path)
    assert victim.read_text() == "mine"
    assert not path.is_symlink()
    assert path.read_text() == "new"


def test_a_dangling_link_is_replaced(tmp_path: Path, writer) -> None:
    path = tmp_path / "out.json"
    path.symlink_to(tmp_path / "nothing")
    writer(path)
    assert left(tmp_path) == ["out.json"]


def test_a_hard_link_is_cut(tmp_path: Path, victim: Path, writer) -> None:
    path = tmp_path / "out.json"
    path.hardlink_to(victim)
    writer(path)
    assert victim.read_text() == "mine"


def test_names_that_are_guessed_are_not_written_through(
    tmp_path: Path, victim: Path, writer
) -> None:
    for name in (f".out.json.{os.getpid()}", ".out.json", ".rbuild-out.json"):
        (tmp_path / name).symlink_to(victim)
    writer(tmp_path / "out.json")
    assert victim.read_text() == "mine"


def test_the_mode_is_the_umasks(tmp_path: Path, writer) -> None:
    before = os.umask(0o027)
    try:
        writer(tmp_path / "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_what_was_there_survives_a_write_that_fails(tmp_path: Path, monkeypatch, writer) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "aside")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        writer(path)
    assert path.read_text() == "old"
    assert left(tmp_path) == ["out.json"]


def test_an_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_text(path, "new")
    assert caught.value.filename == str(path)
    assert "rbuild-" not in str(caught.value)
    assert left(tmp_path) == ["out.json"]


def test_what_the_dead_have_left_aside_is_removed(tmp_path: Path, writer) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    here, elsewhere, end = host.realm(), "0123456789ab", "0" * 16
    own = ["notes.1999", f".out.json.{child.pid}", f".rbuild-{here}-{child.pid}-backup"]
    alive = f".rbuild-{here}-{os.getpid()}-{end}"
    # Of another container, where this number may be a process's.
    fresh, old = f".rbuild-{elsewhere}-{child.pid}-{end}", f".rbuild-{elsewhere}-1-{end}"
    for name in (*own, alive, fresh, old, f".rbuild-{here}-{child.pid}-{end}"):
        (tmp_path / name).write_text("")
    os.utime(tmp_path / old, (1, 1))
    writer(tmp_path / "out.json")
    assert left(tmp_path) == sorted([*own, alive, fresh, "out.json"])


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")
def test_a_file_that_was_there_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    os.chown(path, 1234, 1234)
    path.chmod(0o600)
    export.write(path, "new")
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 1234, 0o600)
    assert path.read_text() == "new"


def test_a_file_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    for name in ("out.json", "a.ko"):
        (tmp_path / name).write_text("old")
        (tmp_path / name).chmod(0o600)
    export.write(tmp_path / "out.json", "new")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.ko").write_text("new")
    export.copy([tmp_path / "source/a.ko"], tmp_path)
    for name in ("out.json", "a.ko"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        assert (tmp_path / name).read_text() == "new"


# Copies.


def sources(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "built"
    folder.mkdir()
    for name in ("a.ko", "b.ko"):
        (folder / name).write_text(name)
        (folder / name).chmod(0o4777)
        os.utime(folder / name, (1, 1))
    return sorted(folder.iterdir())


def test_copies_replace_links(tmp_path: Path, victim: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.ko").symlink_to(victim)
    (out / "b.ko").hardlink_to(victim)
    made = export.copy(sources(tmp_path), out)
    assert victim.read_text() == "mine"
    assert [path.read_text() for path in made] == ["a.ko", "b.ko"]
    assert all(path.is_file() and not path.is_symlink() for path in made)
    assert {stat.S_IMODE(path.stat().st_mode) & 0o7111 for path in made} == {0}
    assert {path.stat().st_mtime for path in made} == {1}
    assert left(out) == ["a.ko", "b.ko"]


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


OBSTACLES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a socket": make_socket,
    "a link to a folder": lambda path: path.symlink_to("/etc"),
    "a link to a device": lambda path: path.symlink_to("/dev/null"),
}


@pytest.mark.parametrize("what", OBSTACLES)
def test_what_is_no_file_is_not_replaced_by_copies(tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    OBSTACLES[what](out / "b.ko")
    with pytest.raises(UsageError, match=rf"out/b\.ko is {what}, where a file is to be written"):
        export.copy(sources(tmp_path), out)
    # Nothing is copied before it is refused.
    assert left(out) == ["b.ko"]


def test_a_folder_that_is_a_file(tmp_path: Path, victim: Path) -> None:
    for folder in (victim, victim / "below"):
        with pytest.raises(UsageError, match="is not a folder"):
            export.copy([], folder)
    (tmp_path / "nowhere").symlink_to(tmp_path / "nothing")
    with pytest.raises(UsageError, match="is not a folder"):
        export.copy([], tmp_path / "nowhere")


# Streams.


@pytest.mark.parametrize("what", [one for one in OBSTACLES if one != "a pipe"])
def test_what_is_no_file_is_not_written(tmp_path: Path, what: str) -> None:
    OBSTACLES[what](tmp_path / "out")
    with pytest.raises(UsageError, match=f"out is {what}, where a file is to be written"):
        export.write(tmp_path / "out", "new")


def test_a_pipe_that_is_named_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    export.write(path, "new")
    reader.join()
    assert read == ["new"]
    assert stat.S_ISFIFO(path.lstat().st_mode)


def test_another_users_pipe_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    real = Path.lstat
    strange = os.stat_result((stat.S_IFIFO | 0o666, 0, 0, 1, 4242, 0, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "lstat", lambda self: strange if self == path else real(self))
    with pytest.raises(UsageError, match="is another user's pipe"):
        export.write(path, "new")


def test_a_device_that_is_named_is_written_to() -> None:
    export.write(Path("/dev/null"), "new")
    assert stat.S_ISCHR(os.lstat("/dev/null").st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_stream_of_our_own_is_written_to(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    print("before")  # noqa: T201
    export.write(Path(name), "new\n")
    print("after", flush=True)  # noqa: T201
    assert capfd.readouterr().out == "before\nnew\nafter\n"
    assert Path("/dev/stdout").is_symlink()


# The command line.


def test_a_module_is_not_written_through_a_link(host: Host, victim: Path) -> None:
    out = host.folder / "out"
    out.mkdir()
    (out / "mine.ko").symlink_to(victim)
    found = host.module(host.write_module(), "--output", out).json
    assert victim.read_text() == "mine"
    assert found["artefacts"][0]["path"] == str(out / "mine.ko")
    assert (out / "mine.ko").read_bytes().startswith(b"\x7fELF")


def test_a_report_is_not_written_through_a_link(host: Host, victim: Path) -> None:
    path = host.folder / "report.json"
    path.symlink_to(victim)
    words = ["--profile", host.profile, "--env", "cross", "--driver", "c", "--kind", "out-of-tree"]
    host("matrix", *words, "--export-json", path)
    assert victim.read_text() == "mine"
    assert json.loads(path.read_text())["command"] == "matrix"


def test_an_editors_file_that_is_a_link_is_not_ours(tmp_path: Path, victim: Path) -> None:
    path = tmp_path / "out/compile_commands.json"
    path.parent.mkdir()
    project, cache = ide_project.Project([], None), Cache(tmp_path / "cache", Console())
    for target in (tmp_path / "nothing", victim):
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        with pytest.raises(UsageError, match="rbuild didn't make it"):
            ide_project.write(project, path.parent, cache)
        assert path.is_symlink()
    ide_project.write(project, path.parent, cache, force=True)
    assert victim.read_text() == "mine"
    assert path.read_text() == "[]\n"


OPTIONS = [
    ("module", "--output"),
    ("overlay", "--output"),
    ("package", "--output"),
    ("ide", "--output"),
    ("boot", "--tap"),
    ("matrix", "--export-json"),
    *(
        ("bench", option)
        for option in ("--export-json", "--export-csv", "--export-markdown", "--plot", "--html")
    ),
]


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_no_output_goes_into_the_cache(bare: Host, command: str, option: str) -> None:
    bare.cache.mkdir()
    (bare.folder / "link").symlink_to(bare.cache)
    for folder in (bare.cache, bare.folder / "link", bare.folder / "x/../cache"):
        found = bare(command, option, folder / "x.svg", code=2)
        assert f"{option}: {folder / 'x.svg'} is in the cache directory {bare.cache}" in found.err
    assert left(bare.cache) == []


@pytest.mark.parametrize(("command", "option"), [one for one in OPTIONS if one[1] != "--output"])
def test_an_output_that_cant_be_is_refused_at_once(bare: Host, command: str, option: str) -> None:
    path = bare.folder / "out.svg"
    path.symlink_to("/dev/null")
    assert f"{option}: {path} is a link to a device" in bare(command, option, path, code=2).err
    found = bare(command, option, "/nowhere/at/all.svg", code=2)
    assert f"{option}: /nowhere/at is not a folder" in found.err
    assert not bare.cache.exists()


def test_every_option_that_writes_is_looked_at() -> None:
    """A new option for a file or folder of the user's must be an Output, or be named here."""
    import click

    from rbuild.cli.main import COMMANDS, main
    from rbuild.cli.options import Output

    read = {"path", "--compare", "--from", "--overlay", "--tls-ca", "--tls-cert", "--tls-key"}
    read |= {"--root", "--module"}  # what a build may see
    context = click.Context(main)
    found = []
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        for param in command.params:
            if isinstance(param.type, Output):
                found.append((name, param.opts[0]))
            elif isinstance(param.type, click.Path):
                assert param.opts[0] in read, f"{name} {param.opts[0]}"
    assert sorted(found) == sorted(OPTIONS)
