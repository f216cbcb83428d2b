"""Kconfig's options and expressions, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

N, M, Y = 0, 1, 2

TRISTATE = {"n": N, "m": M, "y": Y}

LETTERS = "nmy"

TYPES = {"bool", "tristate", "string", "hex", "int"}


@dataclass(frozen=True)
class Name:
    """An option, or a word that stands for itself: a number, ``y``, a quoted text."""

    text: str
    quoted: bool = False

    def __str__(self) -> str:
        return f'"{self.text}"' if self.quoted else self.text


@dataclass(frozen=True)
class Macro:
    """What Kconfig's preprocessor asks the tools, such as ``$(cc-option,-fsanitize=kcfi)``."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Not:
    """``!part``."""

    part: Expression

    def __str__(self) -> str:
        return f"!({self.part})" if isinstance(self.part, And | Or | Compare) else f"!{self.part}"


@dataclass(frozen=True)
class And:
    """``a && b ...``."""

    parts: tuple[Expression, ...]

    def __str__(self) -> str:
        return " && ".join(f"({one})" if isinstance(one, Or) else str(one) for one in self.parts)


@dataclass(frozen=True)
class Or:
    """``a || b ...``."""

    parts: tuple[Expression, ...]

    def __str__(self) -> str:
        return " || ".join(f"({one})" if isinstance(one, And) else str(one) for one in self.parts)


@dataclass(frozen=True)
class Compare:
    """``a = b``, ``a >= b`` and so on, of an option's text or number."""

    left: Name | Macro
    operator: str
    right: Name | Macro

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right}"


Expression = Name | Macro | Not | And | Or | Compare


@dataclass(frozen=True)
class Condition:
    """An expression that something depends on; ``where`` is its file and line."""

    expression: Expression
    where: str


@dataclass(frozen=True)
class Default:
    """A value that an option has by itself where ``condition`` holds (None: always)."""

    value: Expression
    condition: Expression | None
    where: str


@dataclass(frozen=True)
class Select:
    """One option turns on another where ``condition`` holds, whatever that one depends on."""

    by: str
    condition: Expression | None
    where: str


@dataclass
class Scope:
    """What a ``menu``, an ``if`` or a ``choice`` says of all that is in it."""

    keyword: str
    conditions: list[Condition] = field(default_factory=list)
    visible: list[Condition] = field(default_factory=list)
    members: list[str] = field(default_factory=list)


@dataclass
class Definition:
    """One place that defines an option; it may have several."""

    where: str
    scopes: tuple[Scope, ...]
    depends: list[Condition] = field(default_factory=list)
    defaults: list[Default] = field(default_factory=list)
    prompt: str | None = None
    prompt_if: list[Expression] = field(default_factory=list)

    @property
    def conditions(self) -> list[Condition]:
        """All that it depends on: its own lines first, then those of what it is in."""
        return self.depends + [one for scope in self.scopes for one in scope.conditions]

    @property
    def visible_if(self) -> list[Expression]:
        """What its prompt depends on besides."""
        hidden = [one.expression for scope in self.scopes for one in scope.visible]
        return self.prompt_if + hidden


@dataclass
class Option:
    """An option with all its definitions, and who selects it."""

    name: str
    type: str = ""
    definitions: list[Definition] = field(default_factory=list)
    selected_by: list[Select] = field(default_factory=list)
    choice: Scope | None = None

    @property
    def is_switch(self) -> bool:
        """Whether it is on or off, and no text or number."""
        return self.type in {"bool", "tristate"}


@dataclass(frozen=True)
class Kconfig:
    """All options of a tree for one architecture."""

    options: Mapping[str, Option]

    def with_on(self, name: str) -> set[str]:
        """Return the option and those that can't be on without it, or turn it on themselves."""
        option = self.options.get(name)
        selecting = option.selected_by if option is not None else ()
        found = {name, *(one.by for one in selecting if one.condition is None)}
        for other in self.options.values():
            needs = [one.conditions for one in other.definitions]
            if needs and all(any(_requires(c.expression, name) for c in each) for each in needs):
                found.add(other.name)
        return found


def _requires(expression: Expression, name: str) -> bool:
    match expression:
        case Name(text):
            return text == name
        case And(parts):
            return any(_requires(one, name) for one in parts)
    return False
