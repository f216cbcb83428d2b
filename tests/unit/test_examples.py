"""Every example in the help and in the documentation is one that the command line accepts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from rbuild.cli import main
from rbuild.cli.arguments import arranged
from rbuild.cli.complete.types import ENVIRONMENT, PROFILE
from rbuild.cli.manpage import CONTINUED
from rbuild.specs import environment, profile

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("docs/*/*.md")),
]
END = {">", ">>", "<", "|", "&&", "||", ";"}


def commands() -> Iterator[tuple[str, click.Command]]:
    """Return every command by how it is called, those of groups too."""
    waiting: list[tuple[str, click.Command]] = [("rbuild", main.main)]
    while waiting:
        name, command = waiting.pop(0)
        yield name, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for inner in command.list_commands(context):
                found = command.get_command(context, inner)
                assert found is not None
                waiting.append((f"{name} {inner}", found))


COMMANDS = dict(commands())


def examples(text: str) -> list[str]:
    """Return the lines of a help text that call rbuild, without what is said of them."""
    whole = CONTINUED.sub(" ", text)
    lines = (re.split(r"\s{2,}", line.strip())[0] for line in whole.splitlines())
    return [line for line in lines if re.match(r"(sudo )?rbuild( |$)", line)]


def words(line: str) -> list[str]:
    """Return rbuild's arguments in a line of a shell's: up to a comment, pipe or redirection."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=">|;&")
    lexer.whitespace_split = True
    found = list(lexer)
    start = next(i for i, word in enumerate(found) if word.split("/")[-1] == "rbuild")
    rest = found[start + 1 :]
    return rest[: next((i for i, word in enumerate(rest) if word in END), len(rest))]


def in_blocks(path: Path) -> list[str]:
    """Return the lines of a page's shell blocks that call rbuild."""
    found = []
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    for block in (text for language, text in blocks if language in {"", "sh", "console"}):
        for line in CONTINUED.sub(" ", block).splitlines():
            bare = line.strip().removeprefix("$ ")
            if re.match(r"(sudo |[A-Z_]+=\S+ )*(\S*/)?rbuild( |$)", bare):
                found.append(bare)
    return found


def in_prose(path: Path) -> list[str]:
    """Return what a page's sentences and tables call rbuild with."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(one.split()) for one in re.findall(r"`((?:sudo )?rbuild\s[^`]+)`", text)]


def accepted(arguments: list[str]) -> None:
    """Parse a command line as click does before it calls the command; raise what it raises."""
    contexts = [main.main.make_context("rbuild", arranged(main.main, arguments))]
    while isinstance(group := contexts[-1].command, click.Group):
        rest = [*contexts[-1]._protected_args, *contexts[-1].args]
        if not rest:
            break
        name, command, rest = group.resolve_command(contexts[-1], rest)
        assert command is not None
        contexts.append(command.make_context(name, rest, parent=contexts[-1]))
    for context in contexts:
        for param in context.command.params:
            given = context.params.get(param.name or "")
            for value in given if isinstance(given, tuple) else [given]:
                if isinstance(value, str) and "/" not in value and ".yaml" not in value:
                    exists(param.type, value)


def exists(kind: object, value: str) -> None:
    if kind is PROFILE:
        profile.load(value)
    elif kind is ENVIRONMENT:
        environment.load(value)


@pytest.fixture(autouse=True)
def _files_are_there(monkeypatch) -> None:
    """An example's files are the reader's."""
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, context: value)
    for name in ("RBUILD_ENV", "RBUILD_PROFILE", "RBUILD_RUNTIME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_examples_that_work(name: str) -> None:
    command = COMMANDS[name]
    text = command.get_help(click.Context(command, info_name=name.rsplit(maxsplit=1)[-1]))
    assert "Examples:" in text
    found = examples(text.split("Examples:")[1])
    assert found
    for line in found:
        assert re.sub(r"^sudo | --json", "", line).startswith(name)
        accepted(words(line))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_documentation_shows_what_works(path: Path) -> None:
    for line in in_blocks(path):
        try:
            accepted(words(line))
        except click.exceptions.Exit:  # --help, --version
            continue
        except click.UsageError as error:
            pytest.fail(f"{path.name}: {line}: {error.format_message()}")
    for line in in_prose(path):
        if words(line)[0].isupper():
            continue  # COMMAND stands for any
        try:
            accepted(words(line))
        except (click.exceptions.Exit, click.MissingParameter, click.BadOptionUsage):
            continue  # a sentence may leave out what it isn't about
        except click.UsageError as error:
            pytest.fail(f"{path.name}: `{line}`: {error.format_message()}")


def test_the_readme_has_examples() -> None:
    assert len(in_blocks(ROOT / "README.md")) > 20
    assert len(in_prose(ROOT / "README.md")) > 20


@pytest.mark.parametrize(
    "line",
    [
        "rbuild modul",
        "rbuild module --driver perl",
        "rbuild module --nonsense",
        "rbuild setup a b --jobs 3",
        "rbuild clean --what",
        "rbuild profiles show",
    ],
)
def test_what_does_not_work_is_noticed(line: str) -> None:
    with pytest.raises(click.UsageError):
        accepted(words(line))


def test_an_example_ends_where_the_shell_says() -> None:
    assert words("sudo rbuild doctor --fix   # what '") == ["doctor", "--fix"]
    assert words("X=1 .venv/bin/rbuild profiles schema > 'a b'") == ["profiles", "schema"]
    assert words("rbuild deploy pi --ssh 'ssh -p 2222' && reboot")[-1] == "ssh -p 2222"
