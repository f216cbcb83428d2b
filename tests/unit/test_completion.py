"""Completion: what is offered, by the shells themselves where they are installed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
import time
from pathlib import Path

import click
import pytest

from rbuild.cli import main
from rbuild.cli.complete import shells, table
from rbuild.cli.complete.types import NAMED
from rbuild.specs import architecture, catalogue, environment, profile

from .conftest import Host

PROGRAM = Path(sys.executable).with_name("rbuild")


def offered(line: str, monkeypatch, shell: str = "zsh") -> list[str]:
    """Return what is offered for a line that ends at the cursor."""
    monkeypatch.setenv("_RBUILD_LINE", line)
    found = shells.SHELLS[shell](table.read(), {}, "rbuild", shells.VARIABLE)
    return [item.split("\t")[1] for item in found.complete().splitlines()]


# The table and the names.


def test_the_table_is_what_the_commands_are() -> None:
    assert table.TABLE.read_text() == table.current(), (
        "write it anew: python -m rbuild.cli.complete.table"
    )


def test_names_are_those_that_can_be_loaded() -> None:
    for name in catalogue.profiles():
        assert profile.load(name).name == name
    for name in catalogue.environments_and_levels():
        assert environment.load(name)
    assert "hybrid-armhf:compilers" in catalogue.environments_and_levels()
    known = {name for arch in architecture.kernels() for name in architecture.machines(arch)}
    assert set(catalogue.machines()) == known


def test_tests_are_those_of_the_guest() -> None:
    assert {"dead_bus", "two_readers"} < set(catalogue.tests())


def test_nothing_heavy_is_imported() -> None:
    """What takes long: whoever pressed Tab waits for it."""
    program = (
        "import sys\nfrom rbuild.cli.complete import shells\n"
        "assert shells.answer('bash_complete') == 0\n"
        "print(*{'pydantic', 'docker', 'rich', 'rbuild.cli.main'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "_RBUILD_LINE": "rbuild kernel --env "},
        capture_output=True,
        text=True,
    )
    assert "hybrid:all" in done.stdout
    assert done.stderr.strip() == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rbuild ker", ["kernel"]),
        ("rbuild -v --json ker", ["kernel"]),
        ("rbuild --cache-dir /tmp ker", ["kernel"]),
        ("rbuild --cach", ["--cache-dir"]),
        ("rbuild module --driver ", ["rust", "c", "glue"]),
        ("rbuild module --driver=r", ["--driver=rust"]),
        ("rbuild kernel --env chroot-", ["chroot-armhf"]),
        ("rbuild kernel --env hybrid:c", ["hybrid:compilers"]),
        ("rbuild setup cross hybrid:n", ["hybrid:none"]),
        ("rbuild profiles sh", ["show"]),
        ("rbuild profiles show slim-n", ["slim-no-rust"]),
        ("rbuild boot --profile slim-d", ["slim-debug"]),
        ("rbuild boot --machine raspi3", ["raspi3b"]),
        ("rbuild boot --suite s", ["soak"]),
        ("rbuild boot --test two_", ["two_readers"]),
        ("rbuild bench --kind k", ["kernel"]),
        ("rbuild bench --scenario incremental-r", ["incremental-rust"]),
        ("rbuild package --format dk", ["dkms"]),
        ("rbuild clean --what kd", ["kdirs"]),
        ("rbuild clean --what kdirs --what ru", ["runs"]),
        ("rbuild shell --runtime d", ["docker"]),
        ("rbuild 'ker", ["kernel"]),
        ("rbuild nonsense --", ["--cache-dir", "--json"]),
    ],
)
def test_what_is_offered(line: str, expected: list[str], monkeypatch) -> None:
    assert offered(line, monkeypatch)[: len(expected)] == expected


def test_files_are_offered_beside_names(tmp_path: Path, monkeypatch) -> None:
    for name in ("slim-mine.yaml", "other.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert offered("rbuild kernel --profile slim-m", monkeypatch) == ["slim-mine.yaml"]
    assert "slim" in offered("rbuild kernel --profile ", monkeypatch)
    assert "other.txt" not in offered("rbuild kernel --profile ", monkeypatch)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("rbuild kernel --profile sub/x", "file"),
        ("rbuild module ", "file"),
        ("rbuild module --output ", "dir"),
        ("rbuild boot --tap=", "file"),
    ],
)
def test_paths_are_left_to_the_shell(line: str, kind: str, monkeypatch) -> None:
    monkeypatch.setenv("_RBUILD_LINE", line)
    found = shells.Bash(table.read(), {}, "rbuild", shells.VARIABLE).complete()
    assert found.startswith(f"{kind}\t")


def test_a_broken_definition_is_no_matter_of_the_shells(tmp_path: Path, monkeypatch, capfd) -> None:
    folder = tmp_path / "data"
    (folder / "machines").mkdir(parents=True)
    (folder / "architectures").mkdir()
    for name in ("mine", "architectures/odd"):
        (folder / f"{name}.yaml").write_text("extends: [\n")
    (folder / "again.yaml").write_text("extends: again\n")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe")
    monkeypatch.setattr("rbuild.util.data.folder", lambda name: folder)
    for line in ("kernel --env ", "kernel --profile ", "boot --machine ", "boot --test "):
        monkeypatch.setenv("_RBUILD_LINE", f"rbuild {line}")
        shells.answer("bash_complete")
    seen = capfd.readouterr()
    assert seen.err == ""
    assert "plain\tmine\t" in seen.out


@pytest.mark.parametrize("asked", ["", "bash", "bash_", "tcsh_complete", "bash_complete"])
def test_a_shell_that_asks_oddly_gets_nothing(asked: str, monkeypatch, capfd) -> None:
    monkeypatch.delenv("_RBUILD_LINE", raising=False)
    assert shells.answer(asked) == 1
    assert capfd.readouterr() == ("", "")


def test_every_named_type_is_known_to_the_table() -> None:
    """A name that isn't there would be completed by nothing."""
    text = table.TABLE.read_text()
    assert all(f'"named": "{name}"' in text for name in NAMED)


def test_the_table_parses_as_the_commands_do() -> None:
    made = table.read()
    assert list(made.commands) == main.main.list_commands(click.Context(main.main))


# The shells.


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Return a folder to type in: a profile, a folder and rbuild in PATH."""
    (tmp_path / "my-board.yaml").touch()
    (tmp_path / "its profiles").mkdir()
    (tmp_path / "its profiles" / "own.yaml").touch()
    monkeypatch.setenv("PATH", f"{PROGRAM.parent}:{os.environ['PATH']}")
    for one in shells.SHELLS:
        (tmp_path / f".script.{one}").write_text(shells.script(one))
    return tmp_path


def typed(argv: list[str], setup: str, lines: list[str], folder: Path) -> list[str]:
    """Type lines into a shell on a terminal; return what each is after the completion."""
    outer, inner = pty.openpty()
    env = {**os.environ, "TERM": "dumb", "PS1": "$ ", "HISTFILE": "", "HOME": str(folder)}
    with subprocess.Popen(
        argv,
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env=env,
        cwd=folder,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads
    ) as child:
        os.close(inner)
        try:
            # Not before its prompt is there does it read keys.
            os.write(outer, f"stty cols 300; {setup}; PS1='rea''dy> '\n".encode())
            until(outer, "ready> ")
            return [complete(outer, keys) for keys in lines]
        finally:
            child.kill()
            os.close(outer)


def complete(terminal: int, keys: str) -> str:
    # "@" behind the cursor shows where the completion ended; Ctrl-U takes the line away.
    os.write(terminal, f"{keys}\t@\x15".encode())
    return clean(until(terminal, "@"))


def until(descriptor: int, word: str) -> str:
    seen = ""
    end = time.monotonic() + 20
    while word not in seen.replace("\r", ""):
        ready, _, _ = select.select([descriptor], [], [], max(0, end - time.monotonic()))
        assert ready, f"{word!r} never came: {seen!r}"
        seen += os.read(descriptor, 65536).decode(errors="replace")
    return seen


TYPED = {
    "rbuild mod": "rbuild module ",
    "rbuild module --env hybrid:c": "rbuild module --env hybrid:compilers ",
    "rbuild module --env=hybrid:c": "rbuild module --env=hybrid:compilers ",
    "rbuild module --driver=ru": "rbuild module --driver=rust ",
    "rbuild kernel --profile my": "rbuild kernel --profile my-board.yaml ",
    "rbuild module --output=it": "rbuild module --output=its\\ profiles/",
    "rbuild kernel --profile its\\ profiles/o": "rbuild kernel --profile its\\ profiles/own.yaml ",
    "rbuild kernel --profile 'slim-d": "rbuild kernel --profile 'slim-debug' ",
    f"{PROGRAM} clean --what ru": f"{PROGRAM} clean --what runs ",
    "/no/such/rbuild clean --what ru": "/no/such/rbuild clean --what ru",
}
"""What is typed, and what the shell makes of it."""


def check(found: list[str]) -> None:
    for line, shown in zip(TYPED.values(), found, strict=True):
        assert f"{line}@" in shown


def test_bash(folder: Path) -> None:
    argv = [shell("bash"), "--norc", "--noprofile", "-i"]
    check(typed(argv, "source .script.bash", list(TYPED), folder))


def test_zsh(folder: Path) -> None:
    setup = "autoload -Uz compinit; compinit -u -D; source .script.zsh"
    check(typed([shell("zsh"), "-f", "-i"], setup, list(TYPED), folder))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rbuild mod", "module\tBuild the MFRC522 driver, or the module in PATH."),
        ("rbuild module --driver ", "rust\nc\nglue"),
        ("rbuild module --env hybrid:", "hybrid:none\nhybrid:compilers\nhybrid:all"),
        ("rbuild module --env=hybrid:c", "--env=hybrid:compilers"),
        ("rbuild kernel --profile my", "my-board.yaml"),
        ("rbuild module --output=it", "--output=its profiles/\tDirectory"),
        ("rbuild kernel --profile its\\ profiles/o", "its profiles/own.yaml"),
        (f"{PROGRAM} clean --what ru", "runs"),
        ("/no/such/rbuild clean --what ru", ""),
    ],
)
def test_fish(line: str, expected: str, folder: Path) -> None:
    done = subprocess.run(
        [shell("fish"), "-N", "-c", "source .script.fish; complete -C $argv[1]", line],
        cwd=folder,
        env={**os.environ, "HOME": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == expected
    assert done.stderr == ""


def clean(text: str) -> str:
    """Return what a terminal shows of it: what was gone back over is overwritten."""
    return re.sub(".\x08", "", text.replace("\x07", ""))


# The command.


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "BASH_COMPLETION_USER_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("name", shells.SHELLS)
def test_the_script_is_printed(name: str, bare: Host, monkeypatch) -> None:
    monkeypatch.setenv("SHELL", f"/opt/bin/{name}")
    assert bare("completion").out == shells.script(name) == bare("completion", name).out
    assert bare("--json", "completion", name).json["script"] == shells.script(name)


@pytest.mark.parametrize(
    ("name", "variable", "value", "path"),
    [
        ("bash", "XDG_DATA_HOME", "", ".local/share/bash-completion/completions/rbuild"),
        ("bash", "XDG_DATA_HOME", "d", "d/bash-completion/completions/rbuild"),
        ("bash", "BASH_COMPLETION_USER_DIR", "b", "b/completions/rbuild"),
        ("zsh", "XDG_DATA_HOME", "", ".local/share/zsh/site-functions/_rbuild"),
        ("fish", "XDG_CONFIG_HOME", "", ".config/fish/completions/rbuild.fish"),
        ("fish", "XDG_CONFIG_HOME", "c", "c/fish/completions/rbuild.fish"),
    ],
)
def test_the_script_is_installed(
    name: str, variable: str, value: str, path: str, home: Path, bare: Host, monkeypatch
) -> None:
    if value:
        monkeypatch.setenv(variable, str(home / value))
    for _ in range(2):
        found = bare("--json", "completion", name, "--install").json
    assert found["path"] == str(home / path)
    assert (home / path).read_text() == shells.script(name)
    assert [one.name for one in (home / path).parent.iterdir()] == [Path(path).name]
    assert str(home / path) in bare("completion", name, "--install").out


@pytest.mark.parametrize(("own", "said"), [("/bin/dash", "dash"), ("", "not set")])
def test_another_shell_is_refused(own: str, said: str, bare: Host, monkeypatch) -> None:
    monkeypatch.setenv("SHELL", own)
    found = bare("completion", code=2)
    assert said in found.err
    assert "bash, zsh, fish" in found.err


def test_a_home_that_cannot_be_written_is_4(home: Path, bare: Host) -> None:
    home.write_text("no folder")
    bare("completion", "fish", "--install", code=4)


def test_zsh_finds_what_was_installed(home: Path, bare: Host, folder: Path) -> None:
    """By the very lines that are shown."""
    argv = [shell("zsh"), "-f", "-i"]
    lines = bare("completion", "zsh", "--install").out.splitlines()[1:]
    setup = "; ".join(lines).replace("&& compinit", "&& compinit -u -D")
    assert "rbuild module @" in typed(argv, setup, ["rbuild mod"], folder)[0]


def test_fish_finds_what_was_installed(home: Path, bare: Host, folder: Path) -> None:
    bare("completion", "fish", "--install")
    done = subprocess.run(
        [shell("fish"), "-c", "complete -C 'rbuild clean --what ru'"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "runs"
