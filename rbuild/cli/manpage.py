"""The manual page rbuild(1): all commands on one page, in man(7), from what --help says of them.

The same command line gives the same bytes: the page carries the version, and no day.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping

import click

from rbuild import __version__
from rbuild.errors import (
    INTERRUPTED,
    BuildFailed,
    InfrastructureError,
    MissingDependency,
    UsageError,
)

EXIT_CODES = {
    0: "Done.",
    BuildFailed.exit_code: "The build failed, or a test in the guest, or with `--fail-above` "
    "something became slower.",
    UsageError.exit_code: "Wrong usage, or a profile or definition that is wrong.",
    MissingDependency.exit_code: "The host lacks something; `rbuild doctor` says what.",
    InfrastructureError.exit_code: "A mirror, the disk, an engine or a board failed.",
    INTERRUPTED: "Interrupted. The next run goes on from what was finished.",
}

FILES = {
    "~/.cache/rbuild": "The cache directory: environments, kernel trees, builds and logs "
    "($XDG_CACHE_HOME, --cache-dir). `rbuild status` lists it, `rbuild clean` empties it.",
    "rbuild.yaml": "A project's configuration, in this folder or one above: `rbuild config`.",
    "~/.local/state/rbuild/trusted": "Which projects' configuration you trust: `rbuild config "
    "trust` ($XDG_STATE_HOME).",
    "~/.config/rbuild/rbuild.yaml": "Your own configuration ($XDG_CONFIG_HOME, $RBUILD_CONFIG).",
    "profiles/*.yaml": "The profiles, beside rbuild's code: what is built.",
    "profiles/machines/*.yaml": "The machines that QEMU can be.",
    "rootfs/*.yaml": "The environments: where it is built.",
}

ENVIRONMENT = {
    "NO_COLOR": "Set to anything: no colours.",
    "RBUILD_CONFIG": "Your configuration file, if it isn't the usual one.",
    "SHELL": "Whose script `rbuild completion` prints.",
}
"""The variables that no option has for its own."""

SEE_ALSO = ("bwrap(1)", "make(1)", "qemu-system-aarch64(1)", "mmdebstrap(1)", "ssh_config(5)")

CONTINUED = re.compile(r" \\\n\s*")
"""What a shell takes for one line."""

MARKED = re.compile(r"`([^`]+)`")
ROOM = 69
"""How long a line may be that isn't broken, in 80 columns."""
UNBROKEN = "\b"
"""What begins a paragraph of click's that is left as it is."""


def page(group: click.Group) -> str:
    """Return the page for a command line, in ASCII."""
    context = click.Context(group, info_name="rbuild", **group.context_settings)
    summary = _first_sentence(group)
    lines = [
        ".\\\" Written by `rbuild man` from rbuild's help.",
        f'.TH RBUILD 1 "" "rbuild {__version__}" "User Commands"',
        # Lines as they come are easier to read than with gaps.
        ".ad l",
        ".SH NAME",
        f"rbuild \\- {_escaped(summary[0].lower() + summary[1:].rstrip('.'))}",
        ".SH SYNOPSIS",
        _usage("rbuild", group, context),
        ".SH DESCRIPTION",
        *_paragraphs(group.help or ""),
        ".PP",
        "Every command provisions what it lacks, shows progress on stderr and its result on",
        "stdout. Errors end with a remedy where there is one, and one of the codes below.",
        ".SH OPTIONS",
        *_options(group, context, with_help=True),
        ".SH COMMANDS",
        *_commands("rbuild", group, context),
        ".SH ENVIRONMENT",
        *_listed(dict(sorted({**_variables(group, context), **ENVIRONMENT}.items()))),
        ".SH FILES",
        *_listed(FILES),
        ".SH EXIT STATUS",
        *_listed({str(code): text for code, text in EXIT_CODES.items()}),
        ".SH EXAMPLES",
        *_paragraphs((group.epilog or "").replace("Examples:\n", "")),
        ".SH SEE ALSO",
        _references(SEE_ALSO),
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _commands(name: str, group: click.Group, context: click.Context) -> Iterator[str]:
    """Yield each command of a group, and the commands of each that is a group itself."""
    for inner in group.list_commands(context):
        command = group.get_command(context, inner)
        assert command is not None
        full = f"{name} {inner}"
        own = click.Context(command, context, inner)
        yield f".SS {_escaped(full)}"
        yield _usage(full, command, own)
        yield ".PP"
        yield from _paragraphs(command.help or "")
        yield from _options(command, own)
        if command.epilog:
            yield ".PP"
            yield from _paragraphs(command.epilog)
        if isinstance(command, click.Group):
            yield from _commands(full, command, own)


def _usage(name: str, command: click.Command, context: click.Context) -> str:
    pieces = " ".join(command.collect_usage_pieces(context))
    return f"\\fB{_escaped(name)}\\fR {_escaped(pieces)}"


def _options(
    command: click.Command, context: click.Context, *, with_help: bool = False
) -> Iterator[str]:
    """Yield the options; --help, which every command has, only where it is asked for."""
    for param in command.get_params(context):
        record = param.get_help_record(context)
        # An argument is told of in the text.
        if (
            record is None
            or isinstance(param, click.Argument)
            or ("--help" in param.opts and not with_help)
        ):
            continue
        yield ".TP"
        yield " ".join(_font(word) for word in record[0].split())
        yield _prose(record[1])


def _font(word: str) -> str:
    """Return a word of an option's: its names bold, what stands for a value in italics."""
    if word == "/":
        return word
    bare = word.rstrip(",")
    comma = word[len(bare) :]
    return f"\\f{'B' if word.startswith('-') else 'I'}{_escaped(bare)}\\fR{comma}"


def _variables(group: click.Group, context: click.Context) -> dict[str, str]:
    """Return the environment variables that options are taken from, with what is said of these."""
    found: dict[str, str] = {}
    for param in group.get_params(context):
        if isinstance(param.envvar, str) and isinstance(param, click.Option):
            names = f"`{max(param.opts, key=len)}`"
            found.setdefault(param.envvar, f"As {names}: {_without_default(param.help or '')}")
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = command if isinstance(command, click.Group) else _alone(command)
        found = {**_variables(inner, click.Context(inner, context, name)), **found}
    return found


def _alone(command: click.Command) -> click.Group:
    return click.Group(command.name, params=command.params, add_help_option=False)


def _without_default(text: str) -> str:
    return re.sub(r"\s*(\[default: [^]]*\]|\(RBUILD_\w+\))", "", text)


def _listed(entries: Mapping[str, str]) -> Iterator[str]:
    for name, text in entries.items():
        yield from (".TP", f"\\fB{_escaped(name)}\\fR", _prose(text))


def _paragraphs(text: str) -> Iterator[str]:
    """Yield a help text's paragraphs; what click leaves unbroken is left so, and set in."""
    paragraphs = re.split(rf"\n\s*\n|(?={UNBROKEN}\n)", textwrap.dedent(text).strip("\n"))
    for number, paragraph in enumerate(one for one in paragraphs if one.strip()):
        unbroken = paragraph.startswith(UNBROKEN)
        if number and not unbroken:
            yield ".PP"
        if not unbroken:
            yield _prose(" ".join(paragraph.split()))
            continue
        whole = CONTINUED.sub(" ", paragraph.removeprefix(UNBROKEN))
        lines = whole.strip("\n").splitlines()
        if not lines[0].startswith(" "):
            yield from ([".PP"] if number else [])
            yield _prose(lines.pop(0))
        yield from (".RS 4", ".nf")
        for line in textwrap.dedent("\n".join(lines)).splitlines():
            yield from (_escaped(part) for part in _fitting(line))
        yield from (".fi", ".RE")


def _fitting(line: str) -> list[str]:
    """Return an example as lines that fit: what is said of it below, or as a shell goes on."""
    if len(line) <= ROOM:
        return [line]
    example, *said = re.split(r"\s{2,}", line, maxsplit=1)
    lines = textwrap.wrap(
        example, ROOM - 2, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return [*(f"{one} \\" for one in lines[:-1]), lines[-1], *(f"    {one}" for one in said)]


def _first_sentence(command: click.Command) -> str:
    return re.split(r"(?<=\.)\s", " ".join((command.help or "").split()))[0]


def _prose(text: str) -> str:
    """Return running text: what is in backquotes bold, each sentence on a line of its own."""
    marked = MARKED.sub(lambda found: f"\\fB{found[1]}\\fR", _escaped(text, mark="`"))
    return re.sub(r"(?<=[.:?])  ?(?=[A-Z\\])", "\n", marked)


def _references(pages: tuple[str, ...]) -> str:
    found = (one.split("(") for one in pages)
    return ",\n".join(f"\\fB{_escaped(name)}\\fR({section}" for name, section in found)


ESCAPES = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}


def _escaped(text: str, mark: str = "") -> str:
    """Return text that roff shows as it is, except ``mark``."""
    found = "".join(
        one if one == mark else ESCAPES.get(one, one if one.isascii() else f"\\[u{ord(one):04X}]")
        for one in text
    )
    return f"\\&{found}" if found.startswith(".") else found
