"""The command line at its edges: streams, exit codes, colours, and commands that only look."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from rbuild import __version__
from rbuild.cli import main
from rbuild.cli.arguments import arranged
from rbuild.cli.main import COMMANDS
from rbuild.errors import InfrastructureError, MissingDependency
from rbuild.provision import doctor
from rbuild.provision.doctor import Finding, State
from rbuild.specs import profile
from rbuild.ui.console import Console
from rbuild.util import data, yaml_model

from .conftest import Host


def rbuild(*words: object, **more) -> subprocess.CompletedProcess[str]:
    """Run rbuild as a shell would."""
    return subprocess.run(
        [sys.executable, "-m", "rbuild", *map(str, words)], text=True, timeout=60, **more
    )


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


# What each kind of failure looks like to a script.


@pytest.mark.parametrize(
    ("fault", "code"),
    [("kernel-error", 1), ("drop-rust", 2), ("no-namespaces", 3), ("kernel-full", 4)],
)
def test_json_of_a_failure_is_one_object(host: Host, fault: str, code: int) -> None:
    host.fault(fault)
    found = host("--json", "kernel", "--profile", host.profile, code=code)
    assert found.json["exit_code"] == code
    assert found.json["error"] in found.err


def test_json_of_a_failed_build_has_the_compilers_words_and_the_log(host: Host) -> None:
    found = host.module(host.write_module("oops\n"), code=1).json
    assert "mine.c:1:1: error: use of undeclared identifier 'oops'" in found["detail"]
    assert "undeclared identifier" in Path(found["log"]).read_text()
    host.fault("no-license")
    found = host.module(host.write_module(), code=1).json
    assert found["detail"] == ""
    assert Path(found["log"]).is_file()


@pytest.mark.parametrize("words", [["modul"], ["kernel", "-j", "0"], ["bench", "--runs", "x"]])
def test_json_of_wrong_usage_is_one_object(bare: Host, words: list[str]) -> None:
    found = bare("--json", *words, code=2)
    assert found.json["exit_code"] == 2
    assert found.json["error"] in found.err


def test_json_of_an_interrupt_is_one_object(bare: Host, monkeypatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main.main, "invoke", interrupt)
    assert bare("--json", "status", code=130).json["exit_code"] == 130


def test_a_run_that_is_to_outlive_its_terminal_does(bare: Host) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        bare("status")
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-v", "-q", "status"], "exclude each other"),
        (["bench", "--driver", "perl"], "'perl'"),
        (["clean", "--older-than", "-1"], "--older-than"),
        (["--nonsense"], "--nonsense"),
        (["kernel", "-j", "abc"], "'abc' is not a whole number, such as 4"),
        (["kernel", "--cpus", "x"], "'x' is not a number, such as 1.5"),
        (["module", "--in-tree", "--out-of-tree"], "exclude each other"),
        (["package", "--out-of-tree", "--in-tree", "--output", "."], "exclude each other"),
        (["status", "-v", "-q"], "exclude each other"),
        (["help", "modul"], "Did you mean 'module'?"),
        (["module", "--output", "{file}"], "--output"),
    ],
)
def test_wrong_usage_is_2_and_starts_nothing(bare: Host, words: list[str], said: str) -> None:
    found = bare(*(word.format(file=bare.profile) for word in words), code=2)
    assert said in found.err
    assert found.out == ""
    assert not bare.cache.exists()


def test_no_command_shows_help() -> None:
    shown = [rbuild(*words, stdout=subprocess.PIPE) for words in ([], ["-h"], ["--help"])]
    assert {(one.returncode, one.stdout) for one in shown} == {(0, shown[0].stdout)}


def test_version(bare: Host) -> None:
    assert __version__ in bare("--version").out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns(name: str) -> None:
    top = click.Context(main.main, info_name="rbuild")
    command = main.main.get_command(top, name)
    assert command is not None
    text = command.get_help(click.Context(command, top, name, terminal_width=80))
    assert max(map(len, text.splitlines())) <= 80


# Streams.


def test_quiet_shows_the_result_alone(host: Host) -> None:
    found = host("-q", "module", host.write_module(), "--profile", host.profile)
    assert found.err == ""
    assert "mine.ko" in found.out


def test_verbose_shows_the_programs_output(host: Host) -> None:
    found = host("-v", "module", host.write_module(), "--profile", host.profile)
    assert "  CC [M]  /module/mine.o" in found.err


@pytest.fixture
def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("words", [["profiles", "schema"], ["--help"], ["bench", "--help"]])
def test_a_reader_that_has_seen_enough_is_no_error(closed_pipe: int, words: list[str]) -> None:
    done = rbuild(*words, stdout=closed_pipe, stderr=subprocess.PIPE)
    assert done.stderr == ""
    assert done.returncode == 0


def test_a_build_goes_on_when_nobody_reads_its_progress(host: Host, closed_pipe: int) -> None:
    words = ["kernel", "--profile", host.profile]
    done = rbuild(*words, stdout=subprocess.PIPE, stderr=closed_pipe)
    assert "Linux 6.12.5" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize("words", [["--help"], ["status"], ["--json", "status"]])
def test_output_to_a_full_disk_is_4(words: list[str], bare: Host) -> None:
    with Path("/dev/full").open("w") as full:
        done = rbuild(*words, stdout=full, stderr=subprocess.PIPE)
    assert "can't be written to stdout: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 4


def test_a_result_that_is_not_utf_8_is_written() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, "utf-8")
    Console(out=out).result(os.fsdecode(b"/caf\xe9.ko"))
    assert raw.getvalue() == b"/caf\\udce9.ko\n"


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(
    monkeypatch, variables: dict[str, str], coloured: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    err = Terminal()
    Console(err=err).error("what", hint="how")
    assert ("\x1b" in err.getvalue()) is coloured


def test_progress_on_a_terminal_leaves_one_line_a_step(host: Host) -> None:
    outer, inner = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    words = [sys.executable, "-m", "rbuild", "kernel", "--profile", str(host.profile)]
    with subprocess.Popen(words, stdin=inner, stdout=inner, stderr=inner, env=env) as child:
        os.close(inner)
        shown = b""
        try:
            while block := os.read(outer, 65536):
                shown += block
        except OSError:  # the other end of a terminal is closed
            os.close(outer)
    text = shown.decode()
    assert child.returncode == 0, text
    assert not re.search(r"\x1b\[[0-9;]*m", text)
    assert text.count("ok Building 6.12.5 in cross") == 1


def test_a_step_that_fails_is_not_called_ok() -> None:
    err = io.StringIO()
    with pytest.raises(ValueError), Console(err=err).step("Building"):
        raise ValueError
    assert "ok" not in err.getvalue()


# doctor: what it makes of findings, whatever they are on this host.

LACKING = Finding("x", State.MISSING, "not installed", "install it", ("x-package",))


@pytest.fixture
def apt(bare: Host) -> Path:
    """Return where an apt-get that installs everything says what it was asked for."""
    bare.tool("apt-get", f'echo "$@" >> {bare.folder}/installed')
    return bare.folder / "installed"


def test_doctor_says_what_is_missing_and_how_to_get_it(bare: Host, monkeypatch) -> None:
    monkeypatch.setattr("rbuild.cli.doctor.examine", lambda cache, needed: [LACKING])
    found = bare("doctor", code=3)
    assert "LACK x: not installed" in found.out
    assert "-> install it" in found.out
    assert "doctor --fix" in found.err
    (one,) = bare("--json", "doctor", code=3).json
    assert one["state"] == "missing"
    assert one["packages"] == ["x-package"]


def test_doctor_fix_asks_first(bare: Host, apt: Path, monkeypatch) -> None:
    monkeypatch.setattr("rbuild.cli.doctor.examine", lambda cache, needed: [LACKING])
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert "apt-get install x-package" in bare("doctor", "--fix", code=130).err
    assert not apt.exists()


def test_doctor_fix_needs_root(bare: Host, apt: Path, monkeypatch) -> None:
    monkeypatch.setattr("rbuild.cli.doctor.examine", lambda cache, needed: [LACKING])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = bare("doctor", "--fix", "--yes", code=3)
    assert re.search(r"`sudo \S.* doctor --fix`", found.err)
    assert not apt.exists()


def test_fix_installs_all_packages_at_once_then_mends(apt: Path) -> None:
    mended = []
    findings = [
        Finding("a", State.MISSING, "", "", ("p", "q")),
        Finding("b", State.MISSING, "", "mend b", ("q",), lambda: mended.append("b")),
        Finding("c", State.OK, "", "", ("r",), lambda: mended.append("c")),
        Finding("d", State.WARNING, "", "", ("s",)),
    ]
    assert doctor.plan(findings) == ["apt-get install p q s", "mend b"]
    doctor.fix(findings, lambda line: None)
    assert apt.read_text().splitlines() == [
        "update -q",
        "install -q -y --no-install-recommends p q s",
    ]
    assert mended == ["b"]


def test_fix_says_what_a_failing_apt_says(bare: Host) -> None:
    bare.tool("apt-get", "echo 'E: Unable to locate package p'; exit 100")
    with pytest.raises(InfrastructureError) as caught:
        doctor.fix([LACKING], lambda line: None)
    assert "Unable to locate" in caught.value.detail


def test_fix_on_a_host_without_apt(bare: Host, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(bare.folder))
    with pytest.raises(MissingDependency, match="x-package"):
        doctor.fix([LACKING], lambda line: None)


# profiles, shell, status, clean.


def test_profiles_lists_shows_and_describes(bare: Host) -> None:
    assert {one["name"] for one in bare("--json", "profiles").json} == set(profile.names())
    assert "CONFIG_RUST=y" in bare("profiles", "show", "slim").out
    schema = json.loads(bare("profiles", "schema").out)
    assert schema == bare("--json", "profiles", "schema").json
    assert "source" in schema["properties"]


def test_a_shown_profile_can_be_read_again(bare: Host, tmp_path: Path) -> None:
    shown = bare("--json", "profiles", "show", "defconfig").json
    del shown["fragment_texts"]
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(shown))
    again = yaml_model.load(path, profile.Profile)
    assert again.model_dump() == profile.load("defconfig").model_dump()


def test_fragments_of_one_name_are_all_shown(bare: Host) -> None:
    for name in ("a", "b"):
        (bare.folder / name).mkdir()
        (bare.folder / name / "x.config").write_text(f"CONFIG_{name.upper()}=y\n")
    path = bare.write_profile(
        f"name: x\nsource: {{directory: {bare.tree}}}\n"
        "config: {fragments: [a/x.config, b/x.config]}\n"
    )
    shown = bare("--json", "profiles", "show", path).json["fragment_texts"]
    assert [one["text"] for one in shown] == ["CONFIG_A=y\n", "CONFIG_B=y\n"]


@pytest.mark.parametrize("status", [0, 3])
def test_shell_ends_as_its_command_does(host: Host, status: int) -> None:
    host("shell", "--profile", host.profile, "--", "bash", "-c", f"exit {status}", code=status)


@pytest.mark.parametrize(("program", "status"), [("nosuchprogram", 127), ("/etc/passwd", 126)])
def test_shell_ends_as_a_shell_where_a_program_cannot_be_run(
    host: Host, program: str, status: int
) -> None:
    host("shell", "--profile", host.profile, "--", program, code=status)


def test_status_marks_what_cannot_be_used(host: Host) -> None:
    (metadata,) = host.cache.glob("rootfs/*/metadata.json")
    metadata.write_text("{")
    (one,) = host("--json", "status").json["entries"]
    assert one["state"] == "unusable"
    host("setup", "cross")
    (one,) = host("--json", "status").json["entries"]
    assert one["state"] != "unusable"


def test_clean_says_how_much(host: Host) -> None:
    found = host("--json", "clean", "--what", "rootfs").json
    assert found["freed_bytes"] > 0
    assert len(found["removed"]) == 1
    assert host("--json", "clean", "--what", "all").json == {
        "removed": [],
        "freed_bytes": 0,
        "in_use": [],
    }


def test_a_cache_directory_with_a_space_and_an_umlaut(host: Host) -> None:
    cache = host.cache.rename(host.folder / "mein Überzug")
    found = host("--json", "--cache-dir", cache, "kernel", "--profile", host.profile).json
    assert found["artefacts"][0]["path"].startswith(str(cache))


def test_a_shell_gets_completions_not_help() -> None:
    """It calls rbuild without arguments, as somebody does who wants the help."""
    asked = {"_RBUILD_COMPLETE": "bash_complete", "_RBUILD_LINE": "rbuild mod"}
    done = subprocess.run(
        [sys.executable, "-m", "rbuild"],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("plain\tmodule\t")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(bare: Host, name: str) -> None:
    assert bare("help", name).out == bare(name, "--help").out


def test_help_alone() -> None:
    found = rbuild("help", stdout=subprocess.PIPE)
    assert found.stdout == rbuild("--help", stdout=subprocess.PIPE).stdout
    assert "trust" in rbuild("help", "config", "trust", stdout=subprocess.PIPE).stdout


def test_global_options_may_follow_the_command(bare: Host, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    for words in (
        ["status", "--json", "--cache-dir", elsewhere],
        ["status", f"--cache-dir={elsewhere}", "-q", "--json"],
        ["-q", "status", "--verify", "--cache-dir", elsewhere, "--json"],
    ):
        assert bare(*words).json["root"] == str(elsewhere)
    assert isinstance(bare("profiles", "--json").json, list)
    assert isinstance(bare("profiles", "--json", "show", "slim").json, dict)
    assert __version__ in bare("status", "--version").out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("module --json", "--json module"),
        ("-q module x -v", "-q -v module x"),
        ("module --profile --json -v", "-v module --profile --json"),
        ("module -- --json", "module -- --json"),
        ("module -j4 --cache-dir", "--cache-dir module -j4"),
        ("shell -v make -v", "-v shell make -v"),
        ("shell --env hybrid -v make --json", "-v shell --env hybrid make --json"),
        ("shell -x -v", "shell -x -v"),
        ("nonsense --json", "--json nonsense"),
        ("help", "--help"),
        ("--json help config trust", "--json config trust --help"),
        ("--cache-dir help status", "--cache-dir help status"),
        ("--cache-dir help help", "--cache-dir help --help"),
        ("-- help", "-- help"),
        ("", ""),
    ],
)
def test_words_are_arranged(line: str, expected: str) -> None:
    assert arranged(main.main, line.split()) == expected.split()


@pytest.mark.parametrize(
    ("program", "uid", "line"),
    [
        ("/usr/bin/rbuild", 1000, "sudo rbuild"),
        ("/home/me/a venv/bin/rbuild", 1000, "sudo '/home/me/a venv/bin/rbuild'"),
        ("/home/me/.local/bin/rbuild", 0, "/home/me/.local/bin/rbuild"),
        ("/work/rbuild/__main__.py", 1000, f"sudo {sys.executable} -m rbuild"),
    ],
)
def test_a_line_for_root_works_when_pasted(
    monkeypatch: pytest.MonkeyPatch, program: str, uid: int, line: str
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: path and f"/usr/bin/{name}")
    assert data.as_root("doctor --fix") == f"{line} doctor --fix"
