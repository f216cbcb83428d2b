"""What a module's folder may hold, and what becomes of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbuild.module.sync import sync
from rbuild.util.root import Root

from .conftest import Host, Result


def names(found: Result) -> list[str]:
    return [Path(one["path"]).name for one in found.json["artefacts"]]


def cached(found: Result) -> bool:
    return found.json["phases"][-1]["cached"]


def synced(target: Path) -> set[str]:
    files = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    return files - {".tmp_inputs"}


def test_modules_of_one_folder_may_need_each_other(host: Host) -> None:
    folder = host.write_module("EXPORT_SYMBOL(mine_start);\n")
    (folder / "user.c").write_text("NEED(mine_start)\n")
    (folder / "Kbuild").write_text("obj-m += mine.o user.o\n")
    assert names(host.module(folder)) == ["mine.ko", "user.ko"]
    # A module that is no longer built is no product, though its .ko is still there.
    (folder / "user.c").unlink()
    (folder / "Kbuild").write_text("obj-m += mine.o\n")
    assert names(host.module(folder)) == ["mine.ko"]


def test_a_symbol_is_missing_or_becomes_so_once_the_kernel_is_built(host: Host) -> None:
    """What the source exports is only a guess at what a configuration compiles."""
    folder = host.write_module("NEED(odd)\n")
    assert "nothing exports odd" in host.module(folder, code=1).err
    (host.tree / "kernel/odd.c").write_text("EXPORT_SYMBOL(odd);\n")
    host.module(folder)
    host("kernel", "--profile", host.profile)
    assert "nothing exports odd" in host.module(folder, code=1).err


def test_folders_of_one_name_are_different_modules(host: Host) -> None:
    one = host.write_module()
    other = host.folder / "else where/mine"
    other.parent.mkdir()
    one.rename(other)
    (other / "Kbuild").rename(other / "Makefile")
    first = host.module(other).json["artefacts"][0]["path"]
    assert host.module(host.write_module()).json["artefacts"][0]["path"] != first


@pytest.mark.parametrize(
    ("fault", "kbuild", "said"),
    [("", "# nothing\n", "obj-m"), ("no-license", "obj-m += mine.o\n", "MODULE_LICENSE")],
)
def test_what_is_no_module_is_refused(host: Host, fault: str, kbuild: str, said: str) -> None:
    folder = host.write_module()
    (folder / "Kbuild").write_text(kbuild)
    host.fault(fault)
    assert said in host.module(folder, code=1).err


def test_what_others_leave_in_the_folder_is_no_input(host: Host) -> None:
    folder = host.write_module()
    host.module(folder)
    (folder / ".git").mkdir()
    (folder / ".git/HEAD").write_text("ref: x\n")
    (folder / "mine.mod.c").write_text("old")
    (folder / ".#mine.c").symlink_to("someone@somewhere.4711:1700000000")
    os.mkfifo(folder / "fifo")
    (folder / "kernel").symlink_to(host.tree)
    (folder / "self").symlink_to(".")
    (folder / "above").symlink_to("..")
    assert cached(host.module(folder))


def test_a_file_name_that_is_not_utf8(host: Host) -> None:
    folder = host.write_module().rename(Path(os.fsdecode(os.fsencode(host.folder) + b"/\xe9")))
    odd = folder / os.fsdecode(b"caf\xe9.txt")
    odd.write_text("")
    found = host("module", folder, "--profile", host.profile)
    assert "mine.ko" in found.out
    odd.unlink()
    host.module(folder)
    assert not list(host.cache.glob("kdirs/*/modules/*/build/*.txt"))


def test_a_script_made_executable_is_executable_in_the_build(host: Host) -> None:
    folder = host.write_module()
    (folder / "generate.sh").write_text("#!/bin/sh\n")
    (folder / "Kbuild").write_text("obj-m += mine.o\nx := $(shell $(src)/generate.sh)\n")
    assert "Permission denied" in host.module(folder, code=1).err
    (folder / "generate.sh").chmod(0o755)
    host.module(folder)
    (folder / "generate.sh").chmod(0o644)
    host.module(folder, code=1)


def test_links_are_brought_as_what_they_lead_to(tmp_path: Path) -> None:
    one, two, target = (tmp_path / name for name in ("one", "two", "target"))
    for folder in (one, two):
        (folder / "sub").mkdir(parents=True)
    (two / "sub/shared.h").write_text("one")
    (one / "include").symlink_to("../two")
    (two / "back").symlink_to("../one")
    (one / "sub/file.h").symlink_to("../../two/sub/shared.h")
    sync(one, target, own=Root(tmp_path))
    assert synced(target) == {"include/sub/shared.h", "sub/file.h"}
    (two / "sub/shared.h").write_text("two")
    sync(one, target, own=Root(tmp_path))
    assert (target / "sub/file.h").read_text() == "two"
    assert not (target / "sub/file.h").is_symlink()


@settings(max_examples=25)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["a.c", "sub", "sub/c.h", "sub/deep", "sub/deep/d.h"]),
            st.binary(max_size=2),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_after_sync_the_inputs_are_the_sources(tmp_path_factory, states) -> None:
    """Whatever was there before, also where a file becomes a folder or the reverse."""
    folder = tmp_path_factory.mktemp("sync")
    target = folder / "target"
    for number, files in enumerate(states):
        origin = folder / str(number)
        origin.mkdir()
        for name, content in files.items():
            if not any(other.startswith(f"{name}/") for other in files):
                (origin / name).parent.mkdir(parents=True, exist_ok=True)
                (origin / name).write_bytes(content)
        sync(origin, target)
        assert synced(target) == synced(origin)
        assert all((target / name).read_bytes() == files[name] for name in synced(target))


def test_a_sync_that_was_interrupted_is_put_right_by_the_next(tmp_path: Path, monkeypatch) -> None:
    one, target = tmp_path / "one", tmp_path / "target"
    (one / "x").mkdir(parents=True)
    (one / "x/y.h").touch()
    sync(one, target)
    (one / "x/y.h").unlink()
    (one / "x").rmdir()
    (one / "x").touch()
    (one / "z").touch()
    done, real = [], os.replace

    def replace(old: str, new: str, **folders: int) -> None:
        if len(done) == 2:  # the list of names, then the first file
            raise KeyboardInterrupt
        done.append(real(old, new, **folders))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            sync(one, target)
    (one / "z").unlink()
    (one / "x").unlink()
    (one / "x").mkdir()
    (one / "x/y.h").touch()
    sync(one, target)
    assert synced(target) - {".tmp_rbuild"} == {"x/y.h"}


def test_output_is_copied_to_a_new_folder_also_without_a_build(host: Host) -> None:
    folder, out = host.write_module(), host.folder / "a/b"
    host.module(folder)
    found = host.module(folder, "--output", out)
    assert cached(found)
    assert found.json["artefacts"][0]["path"] == str(out / "mine.ko")
    sha256 = hashlib.sha256((out / "mine.ko").read_bytes()).hexdigest()
    assert found.json["artefacts"][0]["sha256"] == sha256


def test_a_damaged_module_is_built_again(host: Host) -> None:
    folder = host.write_module()
    path = Path(host.module(folder).json["artefacts"][0]["path"])
    path.write_bytes(b"damaged")
    assert not cached(host.module(folder))
    assert path.read_bytes()[:4] == b"\x7fELF"


def test_vermagic_follows_the_configuration(host: Host) -> None:
    path = host.write_profile(
        f"name: u\nsource: {{directory: {host.tree}}}\npatches: false\n"
        "config: {base: tinyconfig, options: {MODULE_UNLOAD: y}}\n",
        "u",
    )
    found = host("--json", "module", host.write_module(), "--profile", path).json
    assert found["artefacts"][0]["vermagic"] == "6.12.5 mod_unload aarch64"


def test_a_file_that_vanishes_before_it_is_read_is_no_input(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Editors write files for a moment, such as vim's 4913."""
    from rbuild.module import sync

    folder = host.write_module()
    (folder / "4913").write_text("")
    real = sync.list_inputs

    def files(*arguments: Any, **options: Any) -> Iterator[Path]:
        found = list(real(*arguments, **options))
        (folder / "4913").unlink(missing_ok=True)
        return iter(found)

    monkeypatch.setattr(sync, "list_inputs", files)
    host.module(folder)


def test_the_first_error_is_said_whatever_follows_it(host: Host) -> None:
    mine = host.write_module("oops\n")
    host.fault("chatty")
    done = host("module", mine, "--profile", host.profile, code=1)
    assert f"{mine}/mine.c:1:1: error: use of undeclared identifier 'oops'" in done.err


def test_a_file_that_is_outside_of_the_build_is_not_called_missing(host: Host) -> None:
    mine = host.write_module()
    (host.folder / "inc").mkdir()
    (host.folder / "inc/x.mk").write_text("")
    (mine / "Kbuild").write_text("include $(src)/../inc/x.mk\nobj-m += mine.o\n")
    done = host("module", mine, "--profile", host.profile, code=1)
    assert f"{mine}/Kbuild:1: /module/../inc/x.mk: No such file" in done.err
    assert f"sees the module's folder only, not {host.folder}/inc/x.mk" in done.err


def test_a_prebuilt_object_is_not_called_missing(host: Host) -> None:
    mine = host.write_module()
    (mine / "blob.o").write_text("")
    (mine / "Kbuild").write_text("obj-m += bl.o\nbl-y := mine.o blob.o\n")
    done = host("module", mine, "--profile", host.profile, code=1)
    assert "'/module/blob.o'" in done.err
    assert f"{mine}/blob.o was not brought into the build" in done.err
    assert "blob.o_shipped" in done.err


def test_versions_that_a_module_lacks_are_told_with_what_to_do(host: Host) -> None:
    folder = host.write_module()
    profile = host.write_profile(
        f"name: versions\nsource: {{directory: {host.tree}}}\npatches: false\n"
        "config: {base: tinyconfig, options: {MODVERSIONS: y}}\n",
        "versions",
    )
    found = host("module", folder, "--profile", profile)
    assert "CONFIG_MODVERSIONS" in found.err
    assert "Run `rbuild kernel`" in found.err
    host("kernel", "--profile", profile)
    (folder / "mine.c").write_text("int y;\n")
    assert "MODVERSIONS" not in host("module", folder, "--profile", profile).err
