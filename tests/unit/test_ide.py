"""Paths of the sandbox become the host's: in commands, in crates, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rbuild.cache.directory import Cache
from rbuild.errors import BuildFailed, UsageError
from rbuild.ide import project as ide_project
from rbuild.ide.project import COMMANDS, PROJECT, Places, Project, understood
from rbuild.ui.console import Console

from .conftest import Host


@pytest.fixture
def where(tmp_path: Path) -> Places:
    (tmp_path / "own").mkdir()
    (tmp_path / "copy").mkdir()
    (tmp_path / "own/a.c").touch()
    (tmp_path / "copy/made.h").touch()
    behind = {
        "/src": [Path("/T")],
        "/kdir": [Path("/K")],
        "/module": [tmp_path / "own", tmp_path / "copy"],
    }
    return Places(behind, Path("/R"))


@pytest.mark.parametrize(
    ("word", "host"),
    [
        ("/src/include", "/T/include"),
        ("-I/src/include", "-I/T/include"),
        ("-I./include", "-I./include"),
        ("/srcs/x", "/R/srcs/x"),
        ("@/kdir/include/generated/rustc_cfg", "@/K/include/generated/rustc_cfg"),
        ("--sysroot=/usr", "--sysroot=/R/usr"),
        ("-isystem/usr/lib/clang/19/include", "-isystem/R/usr/lib/clang/19/include"),
        ('-DWHERE="/src/x"', '-DWHERE="/src/x"'),
        ("drivers/spi/spi.o", "drivers/spi/spi.o"),
    ],
)
def test_a_word_has_the_hosts_path(where: Places, word: str, host: str) -> None:
    assert where.word(word) == host


def test_a_modules_file_is_the_users_before_the_copy(where: Places, tmp_path: Path) -> None:
    assert where.host("/module/a.c") == f"{tmp_path}/own/a.c"
    assert where.host("/module/made.h") == f"{tmp_path}/copy/made.h"
    assert where.host("/module/new.c") == f"{tmp_path}/own/new.c"
    assert where.host("/module") == f"{tmp_path}/own"


def test_a_command_keeps_what_decides_the_meaning(where: Places) -> None:
    words = (
        "clang-19 -Wp,-MMD,a.d -I/src/include -include /src/k.h -DX='\"a b\"' -Werror=return-type "
        "-fmacro-prefix-map=/src/= -fstrict-flex-arrays=3 -ftrivial-auto-var-init=zero "
        "-Wa,-march=armv8.5-a -fshort-wchar -c -o a.o /src/a.c"
    )
    assert ide_project.command(
        {"directory": "/kdir", "file": "/src/a.c", "command": words}, where
    ) == {
        "directory": "/K",
        "file": "/T/a.c",
        "arguments": [
            *("/R/usr/bin/clang-19", "-Wno-unknown-warning-option", "-I/T/include"),
            *("-include", "/T/k.h", '-DX="a b"', "-fshort-wchar", "-c", "-o", "a.o", "/T/a.c"),
        ],
    }


CORE = {"display_name": "core", "root_module": "/usr/core/lib.rs", "deps": [], "cfg": []}
SAMPLE = {
    "display_name": "rust_minimal",
    "root_module": "/src/samples/rust/rust_minimal.rs",
    "deps": [{"crate": 0, "name": "core"}],
    "cfg": ["CONFIG_RUST"],
}
RUSTC = (
    "savedcmd_/module/mine.o := RUST_MODFILE=/module/mine rustc --cfg MODULE --cfg=seven {} ; x\n"
)


def test_a_modules_crate_is_like_a_drivers(tmp_path: Path) -> None:
    (tmp_path / "mine.rs").touch()
    (tmp_path / ".mine.o.cmd").write_text(RUSTC.format("/module/mine.rs"))
    (tmp_path / ".gone.o.cmd").write_text(RUSTC.format("/module/gone.rs"))
    (tmp_path / ".c.o.cmd").write_text("savedcmd_/module/c.o := clang /module/c.c\n")
    made = ide_project.with_module({"sysroot": "/usr", "crates": [CORE, SAMPLE]}, tmp_path)
    assert made["sysroot"] == "/usr"
    assert made["crates"] == [
        CORE,
        {
            **SAMPLE,
            "display_name": "mine",
            "root_module": "/module/mine.rs",
            "cfg": ["CONFIG_RUST", "MODULE", "seven"],
        },
    ]
    with pytest.raises(BuildFailed, match="no driver"):
        ide_project.with_module({"crates": [CORE]}, tmp_path)


def test_only_texts_that_are_paths_change(where: Places) -> None:
    assert where.within({"a": ["/src/x", 'CONFIG_P="/src"', 3, None]}) == {
        "a": ["/T/x", 'CONFIG_P="/src"', 3, None]
    }


def test_only_rbuilds_own_files_are_replaced(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", Console())
    tool = f"{cache.root}/rootfs/x/usr/bin/clang"
    project = Project([{"directory": "/K", "file": "/a.c", "arguments": [tool]}], None)
    folder = tmp_path / "mine"
    assert ide_project.write(project, folder, cache) == ide_project.write(project, folder, cache)
    for foreign in ("[]", "no JSON", json.dumps([{"command": "cc a.c"}]), "[7]"):
        (folder / ide_project.COMMANDS).write_text(foreign)
        with pytest.raises(UsageError, match="rbuild didn't make it"):
            ide_project.write(project, folder, cache)
        assert (folder / ide_project.COMMANDS).read_text() == foreign
    ide_project.write(project, folder, cache, force=True)
    assert json.loads((folder / ide_project.COMMANDS).read_text()) == project.commands


def test_wrong_usage_is_said_before_anything_is_built(bare: Host) -> None:
    assert "--driver" in bare("ide", bare.folder, "--driver", "c", code=2).err
    assert "--output" in bare("ide", "--force", code=2).err
    assert not bare.cache.exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (COMMANDS, "["),
        (COMMANDS, "[" * 5000),
        (COMMANDS, "{}x"),
        (COMMANDS, "[1]"),
        (COMMANDS, '[{"command": "\'", "directory": "", "file": ""}]'),
        (COMMANDS, '[{"command": "", "directory": "", "file": ""}]'),
        (COMMANDS, '[{"command": "cc", "directory": 1, "file": ""}]'),
        (PROJECT, '{"crates": 1}'),
        (PROJECT, '{"crates": [{"root_module": "/src/drivers/x.rs"}, {}]}'),
    ],
)
def test_what_a_trees_scripts_write_is_checked(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / COMMANDS).write_text("[]")
    (tmp_path / PROJECT).write_text("{}")
    (tmp_path / name).write_text(text)
    places = Places({"/src": [tmp_path]}, tmp_path)
    with pytest.raises(BuildFailed, match=f"The kernel's {name} can't be understood"):
        understood(tmp_path, tmp_path, places, has_rust=True)


def test_crates_stand_in_their_order(tmp_path: Path) -> None:
    (tmp_path / COMMANDS).write_text("[]")
    crates = [{"root_module": name, "cfg": []} for name in ("/src/drivers/x.rs", "/y.rs")]
    (tmp_path / PROJECT).write_text(json.dumps({"crates": crates}))
    with pytest.raises(BuildFailed, match="drivers stand before"):
        understood(tmp_path, tmp_path, Places({}, tmp_path), has_rust=True)
    (tmp_path / PROJECT).write_text(json.dumps({"crates": crates[::-1]}))
    (tmp_path / ".x.o.cmd").write_text("savedcmd_x.o := rustc 'no end\n")
    found = understood(tmp_path, tmp_path, Places({}, tmp_path), has_rust=True).crates
    assert found == {"crates": [{"root_module": f"{tmp_path}/y.rs", "cfg": []}]}
