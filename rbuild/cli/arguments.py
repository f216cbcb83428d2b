"""The words of a command line, arranged as click wants them.

click takes a group's options only before the command's name; people write them behind it as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile

import click

HELP = "help"


def before_dashes(words: Iterable[str]) -> list[str]:
    """Return the words up to ``--``, behind which none is an option."""
    return list(takewhile(lambda word: word != "--", words))


def arranged(group: click.Group, words: Sequence[str]) -> list[str]:
    """Return the words with the group's options first, and ``help X`` as ``X --help``.

    A word is a group's option unless it is another's value, or the command has one of that name.
    Of a command that runs another program (``ignore_unknown_options``) the program's words are
    left as they are.
    """
    words = list(words)
    context = click.Context(group)
    own = _takes_value(group, context)
    at = _first_argument(words, own)
    if at is None:
        return words
    name, rest = words[at], words[at + 1 :]
    if name == HELP:
        return [*words[:at], *rest, "--help"]
    command = group.get_command(context, name)
    known: dict[str, bool] = {}
    while isinstance(command, click.Group):
        known |= _takes_value(command, context)
        inner = _first_argument(rest, {**own, **known})
        command = None if inner is None else command.get_command(context, rest[inner])
        if inner is None or command is None:
            break
    if command is not None:
        known |= _takes_value(command, context)
    moved, staying = _parted(rest, own, known, passes_on=_passes_on(command))
    return [*words[:at], *moved, name, *staying]


def _passes_on(command: click.Command | None) -> bool:
    return command is not None and bool(command.context_settings.get("ignore_unknown_options"))


def _takes_value(command: click.Command, context: click.Context) -> dict[str, bool]:
    """Return the names of a command's options, and whether each takes the word behind it."""
    return {
        name: not (one.is_flag or one.count)
        for one in command.get_params(context)
        if isinstance(one, click.Option) and "--help" not in one.opts
        for name in (*one.opts, *one.secondary_opts)
    }


def _first_argument(words: Sequence[str], options: dict[str, bool]) -> int | None:
    is_value = False
    for number, word in enumerate(words):
        if word == "--":
            return None
        if not is_value and not word.startswith("-"):
            return number
        is_value = not is_value and options.get(word, False)
    return None


def _parted(
    words: Sequence[str], own: dict[str, bool], known: dict[str, bool], *, passes_on: bool
) -> tuple[list[str], list[str]]:
    """Return the group's options among a command's words, and the other words."""
    moved: list[str] = []
    staying: list[str] = []
    rest = iter(words)
    for word in rest:
        name = word.split("=", 1)[0] if word.startswith("--") else word
        if word == "--" or (passes_on and not word.startswith("-")):
            return moved, [*staying, word, *rest]
        is_own = name in own and name not in known
        if passes_on and not is_own and name not in known:
            return moved, [*staying, word, *rest]
        takes_value = (own if is_own else known).get(word, False)
        into = moved if is_own else staying
        into.append(word)
        if takes_value:
            into += [value for value in [next(rest, None)] if value is not None]
    return moved, staying
