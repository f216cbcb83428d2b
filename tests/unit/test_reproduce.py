"""Reproducers: command lines with all that counts, and scripts that a shell reads as meant."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbuild.cli.main import main
from rbuild.cli.reproducer import command_line, reproducer_lines
from rbuild.sandbox.bwrap import Bwrap
from rbuild.sandbox.reproducer import WORK, Recipe, write
from rbuild.sandbox.runtime import Bind, Job, Sandbox

from .conftest import Host


def line(*words: str, **settled: object) -> str:
    with main.make_context("rbuild", list(words)) as outer:
        name, command, rest = main.resolve_command(outer, [*outer._protected_args, *outer.args])
        assert command is not None
        with command.make_context(name, rest, parent=outer) as context:
            return command_line(context, settled)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RBUILD_CACHE_DIR", "RBUILD_CCACHE", "DOCKER_HOST", "RBUILD_ENV"):
        monkeypatch.delenv(name, raising=False)


def test_defaults_are_spelled_out() -> None:
    assert line("module", driver="rust", kind="out-of-tree", jobs=2) == (
        "rbuild module --out-of-tree --driver rust --env cross --profile slim --jobs 2 --ccache "
        "--runtime bwrap"
    )


def test_what_was_given_counts_more_than_what_was_settled(tmp_path: Path) -> None:
    found = line(
        "--json", "--cache-dir", "/c d", "module", "-j3", "--no-ccache", "--in-tree", jobs=2
    )
    assert found == (
        "rbuild --cache-dir '/c d' module --in-tree --env cross --profile slim --jobs 3 "
        "--no-ccache --runtime bwrap"
    )


def test_variables_count_as_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBUILD_ENV", "hybrid:all")
    monkeypatch.setenv("RBUILD_RUNTIME", "docker")
    monkeypatch.setenv("DOCKER_HOST", "tcp://x:1")
    monkeypatch.setenv("SECRET", "secret")
    found = line("kernel", memory=1 << 20, cpus=0.5)
    assert found.startswith("DOCKER_HOST=tcp://x:1 rbuild kernel --env hybrid:all ")
    assert " --memory 1048576" in found
    assert " --cpus 0.5" in found
    assert "secret" not in found


def test_paths_are_whole_and_lists_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")
    found = line(
        "bench", "--env", "cross", "--env", "chroot", "--export-json", "x", kinds=("kernel",)
    )
    assert "--env cross --env chroot --kind kernel" in found
    assert "--export-json /usr/x" in found
    assert line("shell", "--", "ls", "-l").endswith(" -- ls -l")


def test_a_line_says_the_same_again() -> None:
    first = line("boot", "--test", "probe", "--machine", "raspi3b", "--timeout", "2.5", jobs=2)
    assert line(*shlex.split(first)[1:]) == first


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_shell_reads_each_word_as_it_was(word: str) -> None:
    recipe = Recipe(Path("/st ore"), Bwrap(), Sandbox("cross", Path("/st ore/root")))
    script = f"cache='/else where' work=/w; printf %s {recipe.word(word)}"
    wanted = word.replace(str(WORK), "/w").replace("/st ore", "/else where")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == wanted.replace("\r\n", "\n").replace("\r", "\n")


def test_a_script_needs_neither_the_store_s_place_nor_its_own(tmp_path: Path) -> None:
    origin = tmp_path / "my module"
    (origin / "sub").mkdir(parents=True)
    (origin / "sub/a.c").write_text("int a;\n")
    cache = tmp_path / "store"
    recipe = Recipe(cache, Bwrap(), Sandbox("cross", cache / "root"))
    job = Job(["make", "x"], [Bind(cache / "k", "/kdir"), Bind(origin, "/module", writable=True)])
    lines = recipe.module(origin, [Path("sub/a.c")], job)
    path = write(recipe, "Building\nit", "rbuild module", lines, tmp_path / "reproduce.sh")
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nprintf "<%s>\\n" "$@"\n')
    fake.chmod(0o755)
    moved = tmp_path / "moved"
    moved.mkdir()
    done = subprocess.run(
        ["sh", path, moved],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    (work,) = tmp_path.glob("tmp.*")
    assert (work / "module/sub/a.c").read_text() == "int a;\n"
    words = done.stdout.splitlines()
    assert f"<{moved}/root>" in words
    assert words[words.index("</module>") - 2 : words.index("</module>")] == [
        "<--bind>",
        f"<{work}/module>",
    ]
    assert str(cache) not in done.stdout


def test_a_script_is_of_the_runtime_in_force(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the result is an earlier run's, made in another way."""
    folder = host.write_module()
    host.module(folder)
    again = host.module(folder, "-j7").json
    assert again["phases"][-1]["cached"]
    assert " -j7 " in Path(again["reproduce"]["script"]).read_text()


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    recipe = Recipe(tmp_path, Bwrap(), Sandbox("cross", tmp_path))
    assert write(recipe, "x", "x", [], tmp_path / "none/reproduce.sh") is None


def test_what_is_said() -> None:
    assert reproducer_lines({"rbuild": "rbuild x", "script": None}) == ["again: rbuild x"]
    assert reproducer_lines({"rbuild": "x", "script": "/a b"})[1] == "without rbuild: sh '/a b'"
