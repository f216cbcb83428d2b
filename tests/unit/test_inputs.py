"""Inputs beside the sandbox: files that lead elsewhere, never end, or aren't files at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rbuild.bench import compare
from rbuild.board.deploy.remote import Remote
from rbuild.boot import qemu
from rbuild.devicetree import dt_schema, fdt, overlay
from rbuild.errors import BuildFailed, InfrastructureError, UsageError
from rbuild.ide import project as ide_project
from rbuild.kernel import config, products, reuse
from rbuild.kernel.kconfig import parser
from rbuild.module import check, drivers, sync
from rbuild.source.download import download
from rbuild.source.tree import kernel_version
from rbuild.specs import profile
from rbuild.specs.profile import Driver
from rbuild.ui.console import Console
from rbuild.util import data, root, textfile
from rbuild.util import elf as elf_file

from .conftest import Host

TERABYTE = 1 << 40


def sparse(path: Path, size: int = TERABYTE) -> Path:
    """Make a file that claims to be large and takes no space."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def mkdir(path: Path) -> Path:
    path.mkdir()
    return path


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


class TestReadText:
    def test_a_small_file_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "a.yaml"
        path.write_bytes("a: ä\r\nb: 1\n".encode())
        assert textfile.read_text(path, limit=100) == "a: ä\nb: 1\n"

    def test_a_file_of_the_limit_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"x" * 100)
        assert len(textfile.read_bytes(path, limit=100)) == 100
        with pytest.raises(UsageError, match="it is 100 bytes; the limit is 99"):
            textfile.read_bytes(path, limit=99)

    def test_a_fifo_is_refused_without_waiting(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="a FIFO, not a regular file"):
            textfile.read_text(fifo(tmp_path / "a"), limit=100)

    @pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/dev/full"])
    def test_a_device_is_refused(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.symlink_to(name)
        with pytest.raises(UsageError, match=rf"{path} can't be read: it is a device"):
            textfile.read_text(path, limit=100)

    def test_a_folder_and_a_missing_file_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="it is a folder"):
            textfile.read_text(tmp_path, limit=100)
        with pytest.raises(UsageError, match=r"p.yaml: base: .*No such file"):
            textfile.read_text(tmp_path / "a", limit=100, where="p.yaml: base")

    def test_a_sparse_file_costs_no_memory(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="the limit is 1048576"):
            textfile.read_text(sparse(tmp_path / "a"), limit=1 << 20)

    def test_a_file_of_no_size_is_counted_as_it_comes(self) -> None:
        path = Path("/proc/kallsyms")
        assert path.stat().st_size == 0
        with pytest.raises(UsageError, match="larger than the limit of 1024 bytes"):
            textfile.read_text(path, limit=1024)

    def test_what_is_not_utf8_is_refused_or_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"ab\xff")
        with pytest.raises(BuildFailed, match="can't decode byte 0xff in position 2"):
            textfile.read_text(path, limit=100, error=BuildFailed)
        assert textfile.read_text(path, limit=100, decoding="replace") == "ab\ufffd"

    def test_the_check_sees_the_file_that_is_read(self, tmp_path: Path) -> None:
        real, link = tmp_path / "real", tmp_path / "link"
        real.write_text("real")
        (tmp_path / "secret").write_text("secret")
        link.symlink_to(real)
        seen: list[Path] = []

        def swap(path: Path) -> None:
            seen.append(path)
            link.unlink()
            link.symlink_to(tmp_path / "secret")

        with textfile.open_regular(link, swap) as file:
            assert file.read() == b"real"
        assert seen == [real]


SECRET = "CONFIG_SECRET_OF_THE_USER=y\n"


@pytest.fixture
def project(host: Host) -> Path:
    """Return a stranger's folder beside the user's own files, with a profile in it."""
    folder = host.folder / "project"
    folder.mkdir()
    (host.folder / "secret").write_text(SECRET)
    return folder


def repository(folder: Path) -> Path:
    """Make a folder a git work tree."""
    (folder / ".git").mkdir()
    (folder / ".git/HEAD").write_text("ref: refs/heads/main\n")
    return folder


def profile_in(folder: Path, source: str, config: str = "{base: tinyconfig}") -> Path:
    path = folder / "stranger.yaml"
    path.write_text(f"name: stranger\nsource: {source}\npatches: false\nconfig: {config}\n")
    return path


class TestRoot:
    def test_a_folder_is_its_own_root(self, tmp_path: Path) -> None:
        assert root.of(tmp_path).folder == tmp_path

    def test_a_work_tree_is_the_root_of_what_is_in_it(self, tmp_path: Path) -> None:
        inner = repository(tmp_path) / "a/b"
        inner.mkdir(parents=True)
        assert root.of(inner).folder == tmp_path
        (tmp_path / "a/.git").write_text("gitdir: elsewhere\n")
        assert root.of(inner).folder == tmp_path / "a"

    def test_an_empty_git_folder_makes_no_work_tree(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / ".git").mkdir()
        assert root.of(tmp_path / "a").folder == tmp_path / "a"

    @pytest.mark.parametrize("home", ["home", "home/user", "home/user/deep"])
    def test_a_repository_that_has_the_home_does_not_count(
        self, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / home))
        module = repository(mkdir(tmp_path / "home")) / "user/src/module"
        module.mkdir(parents=True)
        assert root.of(module).folder == module
        assert root.of(tmp_path / "home").folder == tmp_path / "home"

    def test_a_work_tree_that_everybody_may_write_does_not_count(self, tmp_path: Path) -> None:
        inner = mkdir(repository(tmp_path) / "a")
        tmp_path.chmod(0o1777)
        assert root.of(inner).folder == inner

    def test_what_git_keeps_for_itself_is_not_seen(self, tmp_path: Path) -> None:
        repository(tmp_path)
        (tmp_path / ".git/config").write_text("token")
        (tmp_path / "link").symlink_to(".git/config")
        with pytest.raises(UsageError, match=r"leads to .*\.git/config"):
            root.of(tmp_path).read_text(tmp_path / "link", limit=100)

    def test_the_option_must_have_the_folder(self, tmp_path: Path) -> None:
        inner, other = mkdir(tmp_path / "inner"), mkdir(tmp_path / "other")
        assert root.named(tmp_path, inner).folder == tmp_path
        assert root.named(None, inner).folder == inner
        with pytest.raises(UsageError, match=r"--root: .*other does not contain"):
            root.named(other, inner)
        with pytest.raises(UsageError, match="is not a folder"):
            root.named(tmp_path / "none", inner)

    def test_a_link_that_is_swapped_after_the_look_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own = root.Root(mkdir(tmp_path / "own"))
        (tmp_path / "secret").write_text(SECRET)
        path = tmp_path / "own/file"
        path.symlink_to("../secret")
        # The first look sees what was there before.
        monkeypatch.setattr(os.path, "realpath", lambda name, **_: str(name))
        with pytest.raises(UsageError, match=r"leads to .*/secret"):
            own.read_bytes(path, limit=100)


class TestProfile:
    @pytest.mark.parametrize("name", ["../secret", "link", "{folder}/secret"])
    @pytest.mark.parametrize("field", ["fragments", "base"])
    def test_a_file_out_of_its_folder_is_refused(
        self, field: str, name: str, host: Host, project: Path
    ) -> None:
        (project / "link").symlink_to("../secret")
        name = name.format(folder=host.folder)
        value = f"[{name}]" if field == "fragments" else f"./{name}" if name == "link" else name
        path = profile_in(project, f"{{directory: {host.tree}}}", f"{{{field}: {value}}}")
        found = host("module", "--profile", path, code=2)
        assert f"{path}: config.{field}: " in found.err
        assert f"outside of {project}" in found.err
        assert "copy the file there" in found.err
        assert "SECRET" not in found.err + found.out

    def test_the_work_tree_that_has_it_counts(self, host: Host, project: Path) -> None:
        repository(host.folder)
        (project / "link").symlink_to("../secret")
        path = profile_in(project, f"{{directory: {host.tree}}}", "{fragments: [link]}")
        assert profile.load(str(path)).fragments() == [("link", SECRET)]

    def test_rbuild_s_own_fragments_may_be_named_from_anywhere(
        self, host: Host, project: Path
    ) -> None:
        own = data.folder("profiles") / "slim.config"
        path = profile_in(project, f"{{directory: {host.tree}}}", f"{{fragments: [{own}]}}")
        assert profile.load(str(path)).fragments() == [("slim.config", own.read_text())]

    def test_a_key_out_of_its_folder_is_refused(self, project: Path) -> None:
        source = f"{{tarball: 'file://{project}/x', key: ../secret}}"
        found = profile.load(str(profile_in(project, source)))
        with pytest.raises(
            UsageError, match=rf"stranger.yaml: source.key: .* outside of {project}"
        ):
            found.key_content(found.source[0])

    @pytest.mark.parametrize("kind", ["zero", "fifo", "sparse"])
    def test_a_fragment_without_end_is_refused(self, kind: str, host: Host, project: Path) -> None:
        repository(host.folder)
        path = project / "fragment"
        match kind:
            case "zero":
                path.symlink_to("/dev/zero")
            case "fifo":
                fifo(path)
            case "sparse":
                sparse(path)
        profile = profile_in(project, f"{{directory: {host.tree}}}", "{fragments: [fragment]}")
        found = host("module", "--profile", profile, code=2)
        assert f"config.fragments: {path}" in found.err


class TestTarball:
    @pytest.mark.parametrize("name", ["/dev/zero", "/dev/tty", "fifo", "."])
    def test_what_is_no_regular_file_is_refused_unopened(
        self, name: str, host: Host, project: Path
    ) -> None:
        if name == "fifo":
            fifo(project / name)
        url = f"file://{project / name}"
        path = profile_in(project, f"{{tarball: '{url}', sha256: '{'0' * 64}'}}")
        found = host("module", "--profile", path, code=2)
        assert f"{url.removesuffix('/.')}: it is a " in found.err

    def test_another_file_is_neither_quoted_nor_left(self, host: Host, project: Path) -> None:
        url = f"file://{host.folder}/secret"
        path = profile_in(project, f"{{tarball: '{url}', sha256: '{'0' * 64}'}}")
        found = host("module", "--profile", path, code=4)
        assert "is not what the profile asks for" in found.err
        assert "SECRET" not in found.err + found.out
        left = [one for one in host.cache.rglob("*") if one.is_file()]
        assert not [one for one in left if b"SECRET_OF_THE_USER" in one.read_bytes()]

    def test_its_copy_is_private(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text(SECRET)
        with Console().step("x") as step:
            download(f"file://{tmp_path}/secret", tmp_path / "copy", step)
        assert (tmp_path / "copy").read_text() == SECRET
        assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600

    def test_one_without_end_is_refused(self, tmp_path: Path) -> None:
        sparse(tmp_path / "x.tar")
        with Console().step("x") as step, pytest.raises(InfrastructureError, match=r"1024\.0 GiB"):
            download(f"file://{tmp_path}/x.tar", tmp_path / "copy", step)


class TestDirectory:
    def test_what_leads_out_of_a_tree_is_left_out(self, host: Host, project: Path) -> None:
        (host.tree / "Kconfig.local").symlink_to("../secret")
        fifo(host.tree / "pipe")
        (host.tree / "COPYING").symlink_to("Makefile")
        found = host.module()
        assert "Not copied from" in found.err
        assert "Kconfig.local is a link to '../secret', out of its folder" in found.err
        (copy,) = host.cache.glob("trees/*/src")
        assert not (copy / "Kconfig.local").is_symlink()
        assert not (copy / "pipe").exists()
        assert (copy / "COPYING").is_symlink()


class TestModule:
    @pytest.mark.parametrize("kind", ["file", "folder", "absolute", "chain", "device"])
    def test_a_link_out_of_its_folder_is_refused(self, kind: str, host: Host) -> None:
        folder = host.write_module()
        mkdir(host.folder / "private")
        secret = host.folder / "private/secret.h"
        secret.write_text(SECRET)
        link = folder / "more.h"
        match kind:
            case "file":
                link.symlink_to("../private/secret.h")
            case "folder":
                link.symlink_to("../private")
            case "absolute":
                link.symlink_to(secret)
            case "chain":
                (folder / "other.h").symlink_to("../private/secret.h")
                link = folder / "other.h"
                (folder / "a.h").symlink_to("other.h")
                link = folder / "a.h"
            case "device":
                secret = Path("/dev/zero")
                link.symlink_to(secret)
        found = host("module", folder, "--profile", host.profile, code=2)
        target = secret.parent if kind == "folder" else secret
        assert f"{link} leads to {target}, which is outside of {folder}." in found.err
        assert "--root DIR" in found.err
        left = [one for one in host.cache.rglob("*") if one.is_file()]
        assert not [one for one in left if b"SECRET_OF_THE_USER" in one.read_bytes()]

    def test_the_option_allows_it(self, host: Host) -> None:
        folder = host.write_module()
        mkdir(host.folder / "common")
        (host.folder / "common/more.h").write_text("int y;\n")
        (folder / "common").symlink_to("../common")
        host.module(folder, code=2)
        again = host.module(folder, "--root", host.folder).json["reproduce"]["rbuild"]
        assert f"--root {host.folder}" in again
        (copy,) = host.cache.glob("kdirs/*/modules/mine-*/build/common/more.h")
        assert copy.read_text() == "int y;\n"
        # What it was allowed for one run, it isn't for the next.
        host.module(folder, code=2)

    def test_a_work_tree_that_has_it_allows_it(self, host: Host) -> None:
        folder = host.write_module()
        (host.folder / "more.h").write_text("int y;\n")
        (folder / "more.h").symlink_to("../more.h")
        repository(host.folder)
        host.module(folder)

    def test_links_in_the_folder_are_followed(self, host: Host) -> None:
        folder = host.write_module()
        mkdir(folder / "real")
        (folder / "real/more.h").write_text("int y;\n")
        (folder / "link").symlink_to("real")
        (folder / "more.h").symlink_to(folder / "link/more.h")
        host.module(folder)
        (copy,) = host.cache.glob("kdirs/*/modules/mine-*/build")
        assert (copy / "link/more.h").read_text() == (copy / "more.h").read_text() == "int y;\n"

    def test_what_is_no_file_is_no_input(self, host: Host) -> None:
        folder = host.write_module()
        fifo(folder / "pipe.h")
        (folder / "linked.h").symlink_to("pipe.h")
        (folder / ".#mine.c").symlink_to("user@host.1234")
        host.module(folder)

    def test_an_endless_file_is_refused(self, host: Host) -> None:
        folder = host.write_module()
        sparse(folder / "image.bin")
        found = host("module", folder, "--profile", host.profile, code=2)
        assert f"{folder}/image.bin can't be read: it is {TERABYTE} bytes" in found.err

    def test_folders_that_links_multiply_are_refused(
        self, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sync, "MAX_SOURCES", 200)
        folder = host.write_module()
        for number in range(30):
            mkdir(folder / f"d{number}")
            for name in ("a", "b"):
                (folder / f"d{number}" / name).symlink_to(f"../d{number + 1}")
        mkdir(folder / "d30")
        found = host("module", folder, "--profile", host.profile, code=2)
        assert "has more than 200 folders" in found.err

    def test_a_link_that_is_swapped_while_it_is_copied_is_refused(
        self, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = host.write_module()
        (host.folder / "secret").write_text(SECRET)
        look = sync._must_be_within

        def swap(path: Path, own: root.Root) -> None:
            look(path, own)
            if path.name == "mine.c":
                path.unlink()
                path.symlink_to("../secret")

        monkeypatch.setattr(sync, "_must_be_within", swap)
        found = host("module", folder, "--profile", host.profile, code=2)
        assert f"mine.c leads to {host.folder}/secret" in found.err

    @pytest.mark.parametrize("command", ["module", "boot", "ide", "overlay"])
    def test_the_option_goes_with_a_path(self, command: str, host: Host) -> None:
        found = host(command, "--root", host.folder, code=2)
        assert "--root needs PATH" in found.err

    def test_our_own_drivers_may_be_links(self) -> None:
        assert root.of(drivers.driver_source(Driver.C)).folder == Path("/")


OVERLAY = '/dts-v1/;\n/plugin/;\n/ { compatible = "x"; };\n'


class TestOverlay:
    def test_a_source_out_of_its_folder_is_refused(self, tmp_path: Path) -> None:
        folder = mkdir(tmp_path / "mine")
        (tmp_path / "secret.dtso").write_text(OVERLAY)
        (folder / "x.dtso").symlink_to("../secret.dtso")
        with pytest.raises(UsageError, match=r"x\.dtso leads to .*/secret\.dtso"):
            overlay.sources(folder)
        # What the user names is what the user means.
        assert overlay.sources(folder / "x.dtso")
        assert overlay.sources(folder, root.Root(tmp_path))

    def test_an_included_file_out_of_its_folder_is_refused(self, host: Host) -> None:
        folder = mkdir(host.folder / "mine")
        (folder / "x.dtso").write_text(OVERLAY)
        (host.folder / "secret.h").write_text(SECRET)
        (folder / "secret.h").symlink_to("../secret.h")
        found = host("overlay", folder, "--profile", host.profile, code=2)
        assert f"{folder}/secret.h leads to {host.folder}/secret.h" in found.err

    def test_a_binding_out_of_its_folder_is_refused(self, tmp_path: Path) -> None:
        folder = mkdir(tmp_path / "mine")
        (tmp_path / "secret").write_text(SECRET)
        (folder / "x.yaml").symlink_to("../secret")
        fifo(folder / "y.yaml")
        with pytest.raises(UsageError, match=r"x\.yaml leads to"):
            dt_schema.beside(folder)

    def test_a_fifo_is_no_source(self, tmp_path: Path) -> None:
        fifo(tmp_path / "x.dtso")
        with pytest.raises(UsageError, match="has no overlay"):
            overlay.sources(tmp_path)


class TestOutputs:
    """What a build has written: any text, of any size."""

    @pytest.mark.parametrize(
        ("name", "read"),
        [
            ("modules.order", lambda folder: products.listed(folder / "modules.order")),
            ("include/config/kernel.release", products.kernel_release),
            (".config", config.config_of),
            (".config", reuse._config),
            ("Module.symvers", lambda folder: check.read_symvers(folder / "Module.symvers")),
            ("x.ko", lambda folder: elf_file.module_info(folder / "x.ko")),
            ("x.ko", lambda folder: elf_file.section_digests(folder / "x.ko")),
            (".x.o.cmd", lambda folder: list(ide_project._crates(folder))),
        ],
    )
    def test_a_sparse_file_is_refused(
        self, name: str, read: Callable[[Path], object], tmp_path: Path
    ) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        sparse(tmp_path / name)
        with pytest.raises(BuildFailed, match=f"it is {TERABYTE} bytes; the limit is"):
            read(tmp_path)

    def test_a_sparse_project_file_is_refused(self, tmp_path: Path) -> None:
        sparse(tmp_path / "compile_commands.json")
        places = ide_project.Places({}, tmp_path)
        with pytest.raises(BuildFailed, match="the limit is"):
            ide_project.understood(tmp_path, tmp_path, places, has_rust=False)

    def test_a_sparse_device_tree_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InfrastructureError, match="the limit is"):
            fdt.read(sparse(tmp_path / "x.dtbo"))

    def test_of_a_sparse_makefile_only_the_head_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 12\n")
        os.truncate(tmp_path / "Makefile", TERABYTE)
        assert kernel_version(tmp_path) == "6.12.0"

    def test_a_sparse_kconfig_is_none(self, tmp_path: Path) -> None:
        sparse(tmp_path / "Kconfig")
        reader = parser._Reader(tmp_path, {})
        reader.file("Kconfig")
        assert reader.options == {}


class TestBoard:
    def test_an_answer_without_end_is_refused(self, tmp_path: Path) -> None:
        program = tmp_path / "endless"
        program.write_text("#!/bin/sh\nexec yes 'rbuild: update mine.ko'\n")
        program.chmod(0o755)
        board = Remote("board", (str(program),))
        with pytest.raises(InfrastructureError, match="The board sent more than"):
            board.step("probe", "", "")
        with pytest.raises(InfrastructureError, match="The board sent more than"), board.lock():
            pass

    def test_a_line_without_end_is_refused(self, tmp_path: Path) -> None:
        program = tmp_path / "endless"
        program.write_text("#!/bin/sh\nexec tr '\\0' x </dev/zero\n")
        program.chmod(0o755)
        with pytest.raises(InfrastructureError, match="The board sent more than"):
            Remote("board", (str(program),)).step("probe", "", "")
        with (
            pytest.raises(InfrastructureError, match="The board sent more than"),
            Remote("board", (str(program),)).lock(),
        ):
            pass


def test_a_result_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the limit is"):
        compare.load(sparse(tmp_path / "result.json"))
    with pytest.raises(UsageError, match="a FIFO"):
        compare.load(fifo(tmp_path / "fifo.json"))


def test_a_console_without_end_is_cut(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "MAX_CONSOLE", 2 << 20)
    host.tool("qemu-system-aarch64", "exec yes 'still here'")
    found = host("boot", host.write_module(), "--profile", host.write_bootable(), code=1)
    assert "it wrote more than 2 MiB to its console and was stopped" in found.err
