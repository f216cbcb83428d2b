"""Kconfig: a kernel tree's options as its Kconfig files define them, and what expressions yield.

The language is described in the kernel's Documentation/kbuild/kconfig-language.rst.  Only what
decides whether an option can be had is read.  Macros that ask a compiler aren't run: what they
answered stands in the .config that the kernel's own Kconfig wrote, and values come from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from rbuild.errors import UsageError
from rbuild.kernel.kconfig.model import (
    TYPES,
    And,
    Compare,
    Condition,
    Default,
    Definition,
    Expression,
    Kconfig,
    Macro,
    Name,
    Not,
    Option,
    Or,
    Scope,
    Select,
)
from rbuild.kernel.kconfig.values import COMPARISONS
from rbuild.util.textfile import read_text

ROOT = "Kconfig"

WORD = re.compile(
    r"&&|\|\||!=|<=|>=|[!=<>()]|\"(?:\\.|[^\"\\]){0,1000}\"|'(?:\\.|[^'\\]){0,1000}'|[\w.-]+"
)
MAX_DEPTH = 50
"""How many files, or parentheses, may stand one in the other."""

MAX_FILE_BYTES = 4 << 20
"""The bytes of the largest Kconfig file that is read."""

MAX_FILES = 20_000
"""How many files are read; Linux has a tenth of that."""

ENTRY = re.compile(
    r"(config|menuconfig|choice|endchoice|menu|endmenu|if|endif|source|comment|mainmenu)\b"
)
ASSIGNMENT = re.compile(r"([\w-]+)\s*(?:=|:=|\+=)\s*(.*)")


def read(tree: Path, architecture: str) -> Kconfig:
    """Read a tree's Kconfig files for SRCARCH ``architecture``.

    What isn't understood is passed over: an option too few is better than none at all.
    """
    reader = _Reader(tree, {"SRCARCH": architecture, "ARCH": architecture})
    reader.file(ROOT)
    return Kconfig(reader.options)


def parse(text: str) -> Expression | None:
    """Return an expression; None if there is none, or if it can't be understood."""
    return _Words(text).expression()


class _Words:
    """The words of a line, and the expressions that they make."""

    def __init__(self, text: str) -> None:
        self._words = list(_split(text))
        self._at = 0
        self._depth = 0

    def next(self) -> str:
        """Return the next word, and go on; empty at the end."""
        word = self.peek()
        self._at += 1
        return word

    def peek(self) -> str:
        """Return the next word; empty at the end."""
        return self._words[self._at] if self._at < len(self._words) else ""

    def condition(self) -> Expression | None:
        """Return the expression after ``if``; None if there is none."""
        if self.peek() != "if":
            return None
        self.next()
        return self.expression()

    def expression(self) -> Expression | None:
        """Return the expression that begins here, up to ``if``, ``)`` or the end."""
        return self._joined("||", self._conjunction, Or)

    def _conjunction(self) -> Expression | None:
        return self._joined("&&", self._one, And)

    def _joined(
        self, operator: str, one: Callable[[], Expression | None], whole: type[And | Or]
    ) -> Expression | None:
        parts = [one()]
        while self.peek() == operator:
            self.next()
            parts.append(one())
        known = tuple(part for part in parts if part is not None)
        return whole(known) if len(known) > 1 else known[0] if known else None

    def _one(self) -> Expression | None:
        word = self.peek()
        if word in {"", "if", ")", "&&", "||"}:
            return None
        self.next()
        if word in {"!", "("}:
            if self._depth >= MAX_DEPTH:
                return None
            self._depth += 1
            try:
                return self._inner(word)
            finally:
                self._depth -= 1
        left = _operand(word)
        if self.peek() in COMPARISONS:
            return Compare(left, self.next(), _operand(self.next()))
        return left

    def _inner(self, word: str) -> Expression | None:
        """Return what follows ``!`` or ``(``."""
        if word == "!":
            part = self._one()
            return None if part is None else Not(part)
        inner = self.expression()
        if self.peek() == ")":
            self.next()
        return inner


def _operand(word: str) -> Name | Macro:
    if word[:2] == "$(":
        return Macro(word)
    return Name(unquote(word), quoted=True) if word[:1] in {'"', "'"} else Name(word)


def unquote(word: str) -> str:
    """Return a text without its quotes."""
    return re.sub(r"\\(.)", r"\1", word[1:-1]) if word[:1] in {'"', "'"} else word


def _split(text: str) -> Iterator[str]:
    """Yield a line's words; a macro is one, whatever is in it; a comment ends the line."""
    at = 0
    while at < len(text):
        if text.startswith("$(", at):
            end = _closing(text, at)
            yield text[at:end]
            at = end
        elif found := WORD.match(text, at):
            yield found[0]
            at = found.end()
        elif text[at] == "#":
            return
        else:
            at += 1


def _closing(text: str, start: int) -> int:
    """Return where the macro that begins at ``start`` ends."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0 and at > start + 1:
            return at + 1
    return len(text)


class _Reader:
    """Reads Kconfig files in the order in which Kconfig itself does."""

    def __init__(self, tree: Path, variables: dict[str, str]) -> None:
        self.options: dict[str, Option] = {}
        self._tree = tree
        self._variables = variables
        self._scopes: list[Scope] = []
        self._sources: list[str] = []
        self._files = 0
        self._option: Option | None = None
        self._definition: Definition | None = None

    def file(self, name: str) -> None:
        """Read a file of the tree; one that isn't there, or that is being read, is none."""
        self._files += 1
        too_many = len(self._sources) > MAX_DEPTH or self._files > MAX_FILES
        if too_many or name in self._sources:
            return
        try:
            text = read_text(self._tree / name, limit=MAX_FILE_BYTES, decoding="replace")
        except UsageError:  # a name that has a NUL, too
            return
        self._sources.append(name)
        for number, line in _lines(text):
            self._line(line, f"{name}:{number}")
        self._sources.pop()

    def _line(self, line: str, where: str) -> None:
        keyword, _, rest = line.partition(" ")
        rest = rest.strip()
        if found := ASSIGNMENT.fullmatch(line):
            if "$" not in found[2]:
                self._variables.setdefault(found[1], found[2])
        elif found := ENTRY.match(line):
            self._entry(found[1], line, where)
        elif self._definition is not None:
            self._attribute(keyword, rest, where)
        elif self._scopes:
            self._scope_attribute(keyword, rest, where)

    def _entry(self, keyword: str, line: str, where: str) -> None:
        rest = line[len(keyword) :].strip()
        self._option = self._definition = None
        match keyword:
            case "config" | "menuconfig":
                self._define(rest, where)
            case "source":
                self.file(self._expand(unquote(rest)))
            case "if":
                self._scopes.append(Scope("if", self._conditions(rest, where)))
            case "menu" | "choice":
                self._scopes.append(Scope(keyword))
            case "endif" | "endmenu" | "endchoice":
                if self._scopes:
                    self._scopes.pop()
            case "comment":
                # Its own `depends on` says nothing of an option.
                self._definition = Definition(where, ())

    def _define(self, name: str, where: str) -> None:
        option = self.options.setdefault(name, Option(name))
        self._option = option
        self._definition = Definition(where, tuple(reversed(self._scopes)))
        option.definitions.append(self._definition)
        choice = self._scopes[-1] if self._scopes else None
        if choice is not None and choice.keyword == "choice":
            option.choice = choice
            choice.members.append(name)

    def _attribute(self, keyword: str, rest: str, where: str) -> None:
        definition, option = self._definition, self._option
        assert definition is not None
        words = _Words(rest)
        if keyword in TYPES or keyword == "prompt":
            if option is not None and keyword in TYPES:
                option.type = option.type or keyword
            if words.peek()[:1] in {'"', "'"}:
                definition.prompt = unquote(words.next())
                condition = words.condition()
                definition.prompt_if += [] if condition is None else [condition]
        elif keyword in {"default", "def_bool", "def_tristate"}:
            if option is not None and keyword != "default":
                option.type = option.type or keyword.removeprefix("def_")
            value = words.expression()
            if value is not None:
                definition.defaults.append(Default(value, words.condition(), where))
        elif keyword == "depends":
            definition.depends += self._conditions(rest.removeprefix("on"), where)
        elif keyword == "select" and option is not None:
            target = self.options.setdefault(words.peek(), Option(words.next()))
            target.selected_by.append(Select(option.name, words.condition(), where))

    def _scope_attribute(self, keyword: str, rest: str, where: str) -> None:
        scope = self._scopes[-1]
        if keyword == "depends":
            scope.conditions += self._conditions(rest.removeprefix("on"), where)
        elif keyword == "visible":
            scope.visible += self._conditions(rest.removeprefix("if"), where)
        elif keyword in {"bool", "tristate", "prompt"}:
            words = _Words(rest)
            words.next()
            condition = words.condition()
            if condition is not None:
                scope.visible.append(Condition(condition, where))

    def _conditions(self, text: str, where: str) -> list[Condition]:
        words = _Words(text)
        expression = words.expression()
        condition = words.condition()
        if expression is None:
            return []
        # `depends on A if B` (since Linux 7.0) says nothing where B doesn't hold.
        if condition is not None:
            expression = Or((expression, Not(condition)))
        # The parts of a conjunction are conditions of their own: each can be met or not.
        parts = expression.parts if isinstance(expression, And) else (expression,)
        return [Condition(part, where) for part in parts]

    def _expand(self, text: str) -> str:
        return re.sub(r"\$\((\w+)\)|\$(\w+)", lambda m: self._variables.get(m[1] or m[2], ""), text)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines that mean something: joined, without helps."""
    lines = iter(enumerate(text.expandtabs().splitlines(), 1))
    help_indent: int | None = None
    in_help = False
    for number, line in lines:
        indent = len(line) - len(line.lstrip())
        if in_help:
            if not line.strip():
                continue
            if help_indent is None and indent > 0:
                help_indent = indent
            if help_indent is not None and indent >= help_indent:
                continue
            in_help, help_indent = False, None
        whole = line
        while whole.endswith("\\"):
            whole = whole[:-1] + " " + next(lines, (0, ""))[1]
        whole = whole.strip()
        if whole in {"help", "---help---"}:
            in_help = True
        elif whole and not whole.startswith("#"):
            yield number, whole
