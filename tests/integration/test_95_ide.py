"""What editors are told is true on the host: each path is there, and clangd finds no fault."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import Rbuild

DRIVERS = Path(__file__).parents[2] / "module"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def clangd(folder: Path, *files: Path) -> None:
    program = shutil.which("clangd")
    if program is None:
        pytest.skip("clangd is not installed")
    for file in files:
        said = subprocess.run(
            [program, f"--check={file}", f"--compile-commands-dir={folder}"],
            capture_output=True,
            text=True,
        )
        assert "All checks completed, 0 errors" in said.stderr, said.stderr[-3000:]


def test_clangd_knows_a_c_module_and_its_kernel(rbuild: Rbuild, tmp_path: Path) -> None:
    mine = tmp_path / "with a space"
    shutil.copytree(DRIVERS / "c", mine)
    before = {path.name for path in mine.iterdir()}
    found = rbuild("--json", "ide", mine, "--output", mine).json
    (commands,) = found["artefacts"]
    assert commands["path"] == str(mine / "compile_commands.json")
    assert {path.name for path in mine.iterdir()} == before | {"compile_commands.json"}
    entries = read(mine / "compile_commands.json")
    files = {one["file"] for one in entries}
    assert str(mine / "mfrc522_main.c") in files
    for one in entries:
        assert Path(one["directory"]).is_dir()
        assert Path(one["file"]).is_file()
        assert Path(one["arguments"][0]).exists()
        for word in one["arguments"]:
            if word.startswith("-I/"):
                assert Path(word[2:]).is_dir(), word
    rbuild("ide", mine, "--output", mine)  # its own file, once more
    spi = next(Path(name) for name in files if name.endswith("/drivers/spi/spi.c"))
    clangd(mine, mine / "mfrc522_main.c", mine / "mfrc522_chip.c", spi)


def test_the_folder_stays_as_it_was_unless_asked_for(rbuild: Rbuild, c_stranger: Path) -> None:
    before = {path.name for path in c_stranger.iterdir()}
    found = rbuild("--json", "ide", c_stranger).json
    assert {path.name for path in c_stranger.iterdir()} == before
    (commands,) = found["artefacts"]
    assert str(c_stranger / "stranger.c") in {one["file"] for one in read(Path(commands["path"]))}


def test_a_file_that_rbuild_didnt_make_stays(rbuild: Rbuild, c_stranger: Path) -> None:
    (c_stranger / "compile_commands.json").write_text("[]")
    assert "--force" in rbuild("ide", c_stranger, "--output", c_stranger, code=2).err
    assert (c_stranger / "compile_commands.json").read_text() == "[]"


def test_a_module_with_a_fault_is_described(rbuild: Rbuild, tmp_path: Path) -> None:
    mine = tmp_path / "c"
    shutil.copytree(DRIVERS / "c", mine)
    (mine / "mfrc522_chip.c").write_text("int broken(void) { return nothing; }\n")
    done = rbuild("--json", "ide", mine, "-j", "1")
    assert "has faults" in done.err
    files = {one["file"] for one in read(Path(done.json["artefacts"][0]["path"]))}
    assert str(mine / "mfrc522_main.c") in files


def test_the_crate_graph_is_whole(rbuild: Rbuild, tmp_path: Path) -> None:
    rbuild("ide", "--driver", "rust", "--output", tmp_path)
    project = read(tmp_path / "rust-project.json")
    crates = project["crates"]
    (own,) = [one for one in crates if one["display_name"] == "mfrc522_rust"]
    assert own["root_module"] == str(DRIVERS / "rust/mfrc522_rust.rs")
    assert {"core", "kernel"} <= {dep["name"] for dep in own["deps"]}
    assert {"CONFIG_RUST", "MODULE"} <= set(own["cfg"])
    assert Path(project["sysroot"], "bin/rustc").exists()
    for number, crate in enumerate(crates):
        assert Path(crate["root_module"]).is_file(), crate["display_name"]
        for dep in crate["deps"]:
            assert dep["crate"] < number
            assert crates[dep["crate"]]["display_name"] == dep["name"]
        for folder in crate.get("source", {}).get("include_dirs", []):
            assert Path(folder).is_dir(), folder
        if "OBJTREE" in crate["env"]:
            assert Path(crate["env"]["OBJTREE"], "rust/bindings/bindings_generated.rs").is_file()
        if crate["is_proc_macro"]:
            assert Path(crate["proc_macro_dylib_path"]).is_file()
