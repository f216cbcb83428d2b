"""What others wrote is shown on the terminal, not obeyed by it, and is no message of rbuild's."""

from __future__ import annotations

import io
import json
import re
import subprocess
from pathlib import Path

import click
import pytest

from rbuild.bench import report as words
from rbuild.bench.compare import load as load_report
from rbuild.cli import main
from rbuild.errors import BuildFailed, UsageError
from rbuild.sandbox.reproducer import guest
from rbuild.ui.console import Console
from rbuild.ui.format import joined, visible
from rbuild.ui.view import View
from rbuild.util import yaml_model

from .conftest import Host

REPORT = Path(__file__).parents[2] / "docs/bench/kernel.json"

EVIL = "a\x1b]0;t\x07\x1b[2J\x9b6n\x7f\u202eb\u2066c\u2028d\r\x08e"
SHOWN = r"a\x1b]0;t\x07\x1b[2J\x9b6n\x7f\u202eb\u2066c\u2028d\r\x08e"
FAKE = f"{EVIL}\nerror: fake [bold]x[/bold] :bomb:"
"""A name by which its owner would like to move the cursor, and to say something as rbuild."""

FAKE_SHOWN = rf"{SHOWN}\nerror: fake [bold]x[/bold] :bomb:"
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def no_github(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")


def said(console: Console) -> str:
    assert isinstance(console.out, io.StringIO)
    assert isinstance(console.err, io.StringIO)
    return console.out.getvalue() + console.err.getvalue()


def harmless(text: str) -> None:
    """Check that no line is obeyed, or begins as a message of rbuild's does."""
    assert not OBEYED.search(text), ascii(text)
    assert not re.search(r"^(error: fake|  ok fake)", text, re.MULTILINE), text


def test_each_character_that_is_obeyed_is_escaped() -> None:
    every = "".join(map(chr, range(0x10000)))
    shown = visible(every, lines=True)
    assert not OBEYED.search(shown)
    assert "\t" in shown and "\n" in shown
    assert "\n" not in visible(every)
    kept = OBEYED.sub("", every)
    assert re.sub(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|r)", "", shown) == re.sub(
        r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|r)", "", kept
    )


def test_what_is_plain_stays() -> None:
    for text in ("", "plain", "ä€ 漢字 🦀", "a\\b", "tab\there"):
        assert visible(text) == text
    assert visible("one\ntwo", lines=True) == "one\ntwo"
    assert visible("one\ntwo") == r"one\ntwo"
    assert joined(["one", "two\nthree"]) == "one\ntwo\\nthree"


def test_a_byte_that_is_no_utf8_is_escaped() -> None:
    assert visible(b"\x9b2J".decode(errors="surrogateescape")) == r"\udc9b2J"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
@pytest.mark.parametrize("verbosity", [0, 1])
def test_no_method_of_the_console_passes_it_on(stream, verbosity: int, monkeypatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console = Console(verbosity=verbosity, out=stream(), err=stream())
    console.note(FAKE)
    console.verbose(FAKE)
    console.warn(FAKE)
    console.error(FAKE, hint=FAKE, detail=EVIL)
    console.result(joined([FAKE]))
    console.result(EVIL)
    console.result(console.table(FAKE, [FAKE, FAKE], [[FAKE, FAKE]]))
    with console.step(FAKE) as step:
        step.update(FAKE, done=1)
    text = said(console)
    harmless(text)
    assert text.count(FAKE_SHOWN) >= 7 + verbosity
    assert "💣" not in text


def test_a_table_fits_what_it_shows() -> None:
    console = Console(out=io.StringIO(), err=io.StringIO())
    harmless(console.table(FAKE, ["[bold]a", "b"], [[FAKE, "[link=x]y[/link]"]]))
    assert "[link=x]y[/link]" in console.table("", ["a"], [["[link=x]y[/link]"]])


def test_the_view_passes_nothing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    err = Terminal()
    console = Console(err=err)
    with console.step(FAKE) as step:
        step.update(FAKE)
        shown = io.StringIO()
        view = View(shown, lambda: step)
        view.screen.print(view)
        console.note(FAKE)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err.getvalue() + shown.getvalue())
    harmless(text.replace("\r", ""))
    assert "[bold]x[/bold] :bomb:" in text


def test_json_has_ascii_only() -> None:
    console = Console(json=True, out=io.StringIO(), err=io.StringIO())
    console.result("", {FAKE: FAKE})
    text = said(console)
    harmless(text)
    assert text.isascii()
    assert json.loads(text) == {FAKE: FAKE}


def test_github_obeys_no_line_of_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    console = Console(verbosity=1, out=io.StringIO(), err=io.StringIO())
    evil = "::error::fake\r::error::fake\n::error::fake ##[error]fake"
    console.result(evil)
    console.result(joined([evil]))
    console.note(evil)
    console.verbose(evil)
    console.warn(evil)
    console.error(evil, hint=evil, detail=f"{evil}\nx,file=y:1:1: error: z")
    with console.step(evil):
        pass
    lines = [line for line in said(console).splitlines() if line.lstrip().startswith("::")]
    assert [re.match(r"::\w+", line)[0] for line in lines] == [  # type: ignore[index]
        "::warning",
        "::error",
        "::group",
        "::endgroup",
    ]
    assert not any("\r" in line for line in said(console).split("\n"))


# What comes from where.


def test_an_error_is_shown_harmlessly(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    errors = [
        BuildFailed(FAKE, hint=FAKE, detail=EVIL, log=Path(FAKE)),
        OSError(2, FAKE, FAKE),
        click.UsageError(FAKE),
        click.BadParameter(FAKE, param_hint=EVIL),
        click.ClickException(FAKE),
    ]
    for error in errors:

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(main.main, "invoke", fail)
        assert main.run(["status"]) != 0
        text = capsys.readouterr().err
        harmless(text)
        assert SHOWN in text


def test_a_value_of_a_file_is_shown_harmlessly(bare: Host) -> None:
    (bare.folder / "rbuild.yaml").write_text(json.dumps({"env": FAKE, "runtime": FAKE}))
    bare.monkeypatch.setenv("RBUILD_CONFIG", str(bare.folder / "rbuild.yaml"))
    for command in (["config"], ["config", "path"], ["kernel"], ["setup", FAKE]):
        found = bare.anyhow(*command)
        harmless(found.out + found.err)


def test_a_definition_of_odd_names(tmp_path: Path) -> None:
    from rbuild.specs.profile import Profile

    path = tmp_path / "x.yaml"
    path.write_text(json.dumps({FAKE: FAKE, "name": FAKE}))
    with pytest.raises(UsageError) as caught:
        yaml_model.load(path, Profile)
    console = Console(out=io.StringIO(), err=io.StringIO())
    console.error(caught.value.message, hint=caught.value.hint, detail=caught.value.detail)
    assert not OBEYED.search(said(console))


@pytest.mark.parametrize("name", ["evil\x1b[2J\nerror: fake", "\u202eko.evil"])
def test_a_module_of_an_odd_folder(host: Host, name: str) -> None:
    folder = host.write_module()
    odd = folder.rename(folder.with_name(name))
    for asked in (["module", odd], ["-v", "module", odd], ["module", odd, "--env", name]):
        found = host.anyhow(*asked, "--profile", host.profile)
        harmless(found.out + found.err)


def test_a_license_fakes_no_line(host: Host) -> None:
    from rbuild.cli.module import _lines
    from rbuild.module.build import Result
    from rbuild.module.check import BuiltModule
    from rbuild.sandbox.context import Phase
    from rbuild.util.process import Usage

    class PreparedEnvironment:
        class environment:  # noqa: N801
            name = FAKE

    class Kdir:
        ready = PreparedEnvironment

    one = BuiltModule(Path(FAKE), "0", 1, FAKE, FAKE, FAKE, (FAKE,), "source")
    result = Result((one,), Phase("module", Usage(1, 1, 1, 1)))
    text = _lines(Kdir, FAKE, result, [Path(FAKE)])  # type: ignore[arg-type]
    harmless(text)
    assert len(text.splitlines()) == 4


def evil_report(tmp_path: Path) -> Path:
    """Return a report in which whatever may be a text is hostile."""
    data = json.loads(REPORT.read_text())

    def poison(value: object, key: str = "") -> object:
        if isinstance(value, dict):
            return {name: poison(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [poison(one, key) for one in value]
        free = ("command_line", "cpu", "governor", "host_kernel", "file_system", "source", "note")
        return FAKE if isinstance(value, str) and key in free else value

    path = tmp_path / "evil.json"
    path.write_text(json.dumps(poison(data)))
    return path


def test_a_report_of_somebodys_is_shown_harmlessly(bare: Host, tmp_path: Path) -> None:
    path = evil_report(tmp_path)
    found = bare("bench", "--from", path, "--compare", REPORT)
    assert FAKE_SHOWN in found.out
    harmless(found.out + found.err)
    harmless(words.markdown(load_report(path)))


def test_a_reproducer_has_no_line_of_somebodys(tmp_path: Path) -> None:
    path = guest(["true"], "x\ntouch title", "rbuild 'x\ntouch line'", tmp_path / "reproduce.sh")
    subprocess.run([path], cwd=tmp_path, check=True)
    assert [one.name for one in tmp_path.iterdir()] == ["reproduce.sh"]


def test_nothing_prints_beside_the_console() -> None:
    """What prints elsewhere must be known here, and say what of it is somebody's."""
    allowed = {
        "ui/console.py",
        "ui/view.py",  # what the console draws
        "__main__.py",  # the kept help
        "util/export.py",  # flushes
        "cli/complete/shells.py",  # a shell's words
        "sandbox/docker/runtime.py",
        "sandbox/docker/container.py",  # the user's own terminal: `rbuild shell`
        "sandbox/bwrap.py",
        "cli/main.py",  # click's errors, made visible
    }
    folder = Path(main.__file__).parents[1]
    found = {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if re.search(r"(?<![\w.])print\(|sys\.std(out|err)|click\.s?echo", path.read_text())
    }
    assert found <= allowed
