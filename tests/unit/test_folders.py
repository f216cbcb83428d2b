"""Folders that are too deep, that change while they are looked at, or that lead elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from rbuild.errors import UsageError
from rbuild.module.sync import inputs_list, sync
from rbuild.sandbox import outputs
from rbuild.source import contents, symbol_index
from rbuild.util import disk, folders, walk
from tests.unit.conftest import Host

DEEP = 1200
"""More levels than Python's recursion limit, and, with these names, a path beyond PATH_MAX."""


def nest(folder: Path, levels: int = DEEP, name: str = "n" * 100) -> None:
    here = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.symlink("/etc/passwd", "link", dir_fd=here)
    os.close(here)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "folder"
    made.mkdir()
    yield made
    # pytest's own removal can't.
    subprocess.run(["rm", "-rf", made], check=True)


@contextmanager
def churn(folder: Path, target: str = "/etc") -> Iterator[None]:
    """Create and remove files, links and folders while the body runs."""
    over = threading.Event()

    def change() -> None:
        number = 0
        while not over.is_set():
            number += 1
            path = folder / f"gone-{number % 7}"
            with suppress(OSError):
                path.write_text("x")
                (folder / f"way-{number % 5}").symlink_to(target)
                (folder / f"sub-{number % 3}/more").mkdir(parents=True)
                (folder / f"sub-{number % 3}/more/one").write_text("x")
            with suppress(OSError):
                path.unlink()
                (folder / f"way-{number % 5}").unlink()
                (folder / f"sub-{number % 3}/more/one").unlink()
                (folder / f"sub-{number % 3}/more").rmdir()
                (folder / f"sub-{number % 3}").rmdir()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_deep_folder_is_measured_and_removed(folder: Path) -> None:
    (folder / "deep").mkdir()
    nest(folder / "deep")
    assert sum(1 for _ in walk.walk(folder)) == DEEP + 2
    assert disk.tree_size(folder) >= 0
    folders.remove_tree(folder / "deep")
    assert list(folder.iterdir()) == []


def test_removal_never_follows_a_link(folder: Path) -> None:
    victim = folder / "victim"
    victim.mkdir()
    (victim / "file").write_text("mine")
    (folder / "build/sub").mkdir(parents=True)
    (folder / "build/sub/out").symlink_to(victim)
    folders.remove_tree(folder / "build")
    (folder / "build").symlink_to(victim)
    with pytest.raises(NotADirectoryError):
        folders.remove_tree(folder / "build")
    assert (victim / "file").read_text() == "mine"


def test_what_forbids_its_removal_is_removed(folder: Path) -> None:
    for name, mode in [("none", 0), ("read", 0o400), ("search", 0o100)]:
        (folder / f"build/{name}/sub").mkdir(parents=True)
        (folder / f"build/{name}/sub/file").write_text("x")
        (folder / f"build/{name}/sub").chmod(mode)
        (folder / f"build/{name}").chmod(mode)
    (folder / "build").chmod(0)
    folders.remove_tree(folder / "build")
    folders.remove_tree(folder / "build")
    assert list(folder.iterdir()) == []


def test_removal_beside_somebody_who_writes_there(folder: Path) -> None:
    for _ in range(24):
        build = folder / "build"
        build.mkdir(exist_ok=True)
        with churn(build), suppress(OSError):
            folders.remove_tree(build)
        folders.remove_tree(build)
        assert not build.exists()


def test_a_folder_that_moves_away_ends_no_walk(folder: Path) -> None:
    (folder / "a/b/c").mkdir(parents=True)
    (folder / "d").mkdir()
    found = []
    for visit in walk.walk(folder):
        found.append(visit.path())
        if visit.path() == "a/b":
            (folder / "a/b").rename(folder / "e")
    assert found[0] == ""
    assert {"a", "a/b", "d"} <= set(found)


@pytest.mark.parametrize("name", ["", ".", "..", "/etc/x", "a//b", "../x", "a/../../x", "x\0y"])
def test_a_name_that_leads_out_is_neither_removed_nor_written(folder: Path, name: str) -> None:
    with folders.opened(folder) as descriptor:
        for write in (
            lambda: folders.remove_below(descriptor, name),
            lambda: folders.write_below(descriptor, name, b"", 0o644),
            lambda: folders.read_below(descriptor, name),
        ):
            with pytest.raises(ValueError, match="is no name"):
                write()
    assert folders.names_of([name]) is None


def test_nothing_is_removed_through_a_link(folder: Path) -> None:
    (folder / "victim").mkdir()
    (folder / "victim/file").write_text("mine")
    (folder / "build").mkdir()
    (folder / "build/sub").symlink_to("../victim")
    with folders.opened(folder / "build") as descriptor:
        folders.remove_below(descriptor, "sub/file")
        folders.write_below(descriptor, "sub/file", b"new", 0o644)
    assert (folder / "victim/file").read_text() == "mine"
    assert (folder / "build/sub/file").read_text() == "new"


# The sources of a module, and what a build leaves.


def test_no_name_of_a_source_makes_sync_remove_a_file_of_the_users(folder: Path) -> None:
    source, target, home = folder / "source", folder / "build", folder / "home"
    home.mkdir()
    (home / "file.txt").write_text("mine")
    odd = source / f"evil\n{home}"
    odd.mkdir(parents=True)
    (odd / "file.txt").write_text("x")
    (source / "Kbuild").write_text("obj-m += mine.o\n")
    sync(source, target)
    subprocess.run(["rm", "-rf", source / "evil\n"], check=True)
    sync(source, target)
    assert (home / "file.txt").read_text() == "mine"
    assert [path.name for path in target.rglob("*") if path.is_file()] == ["Kbuild"]


@pytest.mark.parametrize("content", ["a.c\n{}\n", "", "[]", '{{"files": ["a.c", "{}"]}}'])
def test_a_list_of_names_that_is_not_believed(folder: Path, content: str) -> None:
    source, target, victim = folder / "source", folder / "build", folder / "victim"
    victim.write_text("mine")
    source.mkdir()
    (source / "a.c").write_text("one")
    (source / "old.h").write_text("one")
    sync(source, target)
    (target / "a.o").write_text("built")
    inputs_list(target).write_text(content.format(victim))
    (source / "old.h").unlink()
    sync(source, target)
    assert victim.read_text() == "mine"
    assert [path.name for path in target.iterdir()] == ["a.c"]
    (target / "a.o").write_text("built")
    sync(source, target)
    assert (target / "a.o").exists()


def test_the_list_is_a_record(folder: Path) -> None:
    source, target = folder / "source", folder / "build"
    source.mkdir()
    for name in ("a\nb", os.fsdecode(b"caf\xe9")):
        (source / name).write_text(name.replace("\udce9", "e"))
    sync(source, target)
    assert {path.name for path in target.iterdir()} == {path.name for path in source.iterdir()}
    assert json.loads(inputs_list(target).read_text()).keys() == {"files"}
    for path in source.iterdir():
        path.unlink()
    sync(source, target)
    assert list(target.iterdir()) == []


def test_a_deep_source_is_refused(folder: Path) -> None:
    source, target = folder / "source", folder / "build"
    source.mkdir()
    (source / "Kbuild").write_text("obj-m += mine.o\n")
    sync(source, target)
    nest(source, name="n")
    with pytest.raises(UsageError, match="nested deeper than 100"):
        sync(source, target)
    assert (target / "Kbuild").exists()


def test_a_source_of_a_path_that_is_too_long_is_refused(folder: Path) -> None:
    nest(folder, 40)
    with pytest.raises(UsageError, match="or with a path longer"):
        sync(folder, folder.parent / "build")


def test_a_deep_kernel_source_is_refused_and_read(folder: Path) -> None:
    nest(folder)
    (folder / "kernel").mkdir()
    (folder / "kernel/a.c").write_text("EXPORT_SYMBOL(a);\n")
    assert symbol_index.read(folder).sites("a")
    with pytest.raises(UsageError, match="nested deeper than 100"):
        contents.content(folder)


def test_more_names_than_a_command_line_holds(folder: Path) -> None:
    for number in range(os.sysconf("SC_ARG_MAX") // 200):
        (folder / f"{number:0200}").symlink_to("nowhere")
    before = contents.content(folder)
    (folder / "one-more").symlink_to("nowhere")
    assert contents.content(folder) != before


def test_content_beside_an_editor_that_saves(folder: Path) -> None:
    (folder / "a.c").write_text("one")
    before = contents.content(folder)
    for _ in range(24):
        with churn(folder, "a.c"):
            contents.content(folder, folder.parent / "index")
    subprocess.run(["find", folder, "-name", "*-*", "-delete"], check=True)
    assert contents.content(folder, folder.parent / "index") == before


def test_sync_beside_an_editor_that_saves(folder: Path) -> None:
    source, target = folder / "source", folder / "build"
    source.mkdir()
    (source / "a.c").write_text("one")
    for _ in range(24):
        with churn(source, "a.c"):
            sync(source, target)
    subprocess.run(["find", source, "-name", "*-*", "-delete"], check=True)
    sync(source, target)
    assert [path.name for path in target.rglob("*") if path.is_file()] == ["a.c"]


@pytest.mark.parametrize("target", ["a.c", "sub"])
def test_a_link_that_goes_while_it_is_followed_is_no_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """realpath(3) looks at a link and then reads it: an editor may remove it in between."""
    source, build, real = folder / "source", folder / "build", os.readlink
    (source / "sub").mkdir(parents=True)
    (source / "a.c").write_text("one")
    (source / "link").symlink_to(target)

    def readlink(path: os.PathLike[str]) -> str:
        (source / "link").unlink(missing_ok=True)
        return real(path)

    monkeypatch.setattr(os, "readlink", readlink)
    assert list(sync(source, build)) == ["a.c"]


def test_what_a_build_leaves_too_deep_is_removed(folder: Path) -> None:
    nest(folder)
    (folder / "mine.ko").write_text("x")
    (fault,) = outputs.sanitise(folder)
    assert "nested deeper than 100 levels, or with a path longer than 2048 bytes" in fault
    assert outputs.sanitise(folder) == []
    assert (folder / "mine.ko").exists()
    assert (
        subprocess.run(["find", folder], capture_output=True, check=True).stdout.count(b"\n") < 25
    )


def test_a_makefile_that_nests_folders_ends_nothing(host: Host) -> None:
    """As one that leaves unreadable ones: neither ends `status`, `clean` or the module."""
    source = host.write_module()
    host.fault("deep")
    for _ in range(2):
        found = host.module(source, code=1)
        assert "nested deeper than 100 levels" in found.err
        assert "left what isn't taken from a build" in found.err
    assert len(host("--json", "status", "--verify").json["entries"]) >= 3
    host.fault()
    assert [Path(one["path"]).name for one in host.module(source).json["artefacts"]] == ["mine.ko"]
    # One that was killed before anybody looked.
    (build,) = host.cache.glob("kdirs/*/modules/*/build")
    nest(build)
    host("status", "--verify")
    host("clean", "--what", "all")
    assert not list(host.cache.glob("kdirs/[!.]*"))


def test_what_is_written_to_a_shared_folder_meanwhile_is_no_fault(folder: Path) -> None:
    """Another build's ccache, say: what has gone is looked at no more."""
    (folder / "kept").write_text("x")
    for _ in range(24):
        with churn(folder):
            assert [one for one in outputs.sanitise(folder) if not one.startswith("way-")] == []
            assert disk.tree_size(folder) > 0


def test_a_folder_in_the_place_of_a_file_written_aside_is_no_obstacle(tmp_path: Path) -> None:
    """A Makefile may make one, which ended each later build of the module."""
    (tmp_path / folders.ASIDE / "below").mkdir(parents=True)
    with folders.opened(tmp_path) as folder:
        folders.write_below(folder, "a.c", b"text", 0o644)
    assert [path.name for path in tmp_path.iterdir()] == ["a.c"]
