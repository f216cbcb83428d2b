"""What a person or a CI service sees of the work under way."""

import io

import pytest

from rbuild import workflow
from rbuild.console import Console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def github(monkeypatch) -> io.StringIO:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    return io.StringIO()


def test_a_step_is_a_group_with_the_programs_lines_in_it(github) -> None:
    console = Console(err=github)
    console.verbose("before")
    with console.step("Building") as step:
        console.teller(step)("  CC a.o")
    first, line, end, last = github.getvalue().splitlines()
    assert (first, line, end) == ("::group::Building", "  CC a.o", "::endgroup::")
    assert last.startswith("  ok Building (")


def test_groups_do_not_nest_and_end_when_the_work_fails(github) -> None:
    console = Console(err=github)
    with pytest.raises(ValueError), console.step("Outer"), console.step("Inner"):
        raise ValueError
    assert github.getvalue().splitlines() == ["::group::Outer", "==> Inner", "::endgroup::"]
    with console.step("Next"):
        pass
    assert "::group::Next\n" in github.getvalue()


def test_quiet_has_neither_groups_nor_lines(github) -> None:
    console = Console(verbosity=-1, err=github)
    with console.step("Building") as step:
        console.teller(step)("  CC a.o")
    assert github.getvalue() == ""


def test_nothing_that_a_program_prints_is_a_command(github) -> None:
    console = Console(err=github)
    with console.step("Building"):
        console.verbose("  ::error::forged")
        console.verbose("x ##[group]forged")
    console.error("broken", detail="::stop-commands::x")
    shown = github.getvalue().splitlines()
    assert "|   ::error::forged" in shown
    assert "x # #[group]forged" in shown
    assert "| ::stop-commands::x" in shown


def test_an_error_is_an_annotation_at_the_compilers_place(github) -> None:
    words = "In file included from b.h:1:\na.c:12:3: error: no ';'\na.c:20:1: error: more"
    Console(err=github).error("100 %\nfailed", hint="look", detail=words)
    last = github.getvalue().splitlines()[-1]
    assert last == "::error title=rbuild,file=a.c,line=12::100 %25%0Afailed%0Ahint: look"


def test_a_warning_is_an_annotation(github) -> None:
    Console(err=github).warn("a: b, c")
    assert github.getvalue() == "::warning title=rbuild::a: b, c\n"


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("a.c:3: error: x", ("a.c", 3)),
        ("a.c:3:1: fatal error: x", ("a.c", 3)),
        ("a.c:3:1: warning: x", None),
        ("error[E0425]: x\n  --> src/a.rs:10:5\n", ("src/a.rs", 10)),
        ("warning: x\n --> a.rs:1:1\nerror: y\n --> b.rs:2:2", ("b.rs", 2)),
        ("make: *** [Makefile:3: all] Error 2", None),
    ],
)
def test_the_place_of_the_first_error(words: str, place: tuple[str, int] | None) -> None:
    assert workflow.place(words) == place


def test_a_property_cannot_end_early() -> None:
    found = workflow.command("error", "m", file="a,b:c%\n")
    assert found == "::error file=a%2Cb%3Ac%25%0A::m"


def test_a_terminal_gets_no_commands(github) -> None:
    err = Terminal()
    Console(verbosity=1, err=err).warn("x")
    assert "::" not in err.getvalue()


def test_elsewhere_there_are_no_commands(monkeypatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    err = io.StringIO()
    console = Console(err=err)
    with console.step("Building") as step:
        console.teller(step)("  CC a.o")
    console.error("broken")
    assert "::" not in err.getvalue()
    assert "CC" not in err.getvalue()
