"""Values of options: what a .config gives, and what expressions yield."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rbuild.kernel.kconfig.model import (
    TRISTATE,
    And,
    Compare,
    Expression,
    Kconfig,
    Macro,
    N,
    Name,
    Not,
    Or,
    Y,
)

COMPARISONS = {"=", "!=", "<", "<=", ">", ">="}


def evaluate(expression: Expression | None, values: Values) -> int:
    """Return n, m or y as 0, 1 or 2; nothing at all is y, a macro whose answer isn't known n."""
    match expression:
        case None:
            return Y
        case Name():
            return values.tristate(expression)
        case Macro(text):
            return TRISTATE.get(values.answers.get(text, "n"), N)
        case Not(part):
            return Y - evaluate(part, values)
        case And(parts):
            return min(evaluate(one, values) for one in parts)
        case Or(parts):
            return max(evaluate(one, values) for one in parts)
        case Compare(left, operator, right):
            return Y if _compare(values.text(left), operator, values.text(right)) else N


@dataclass(frozen=True)
class Values:
    """What each option is, from a .config (as ``kbuild.read_config`` returns it).

    ``answers`` is what macros yield, as far as it is known.
    """

    config: Mapping[str, str]
    kconfig: Kconfig
    answers: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str) -> str:
        """Return an option's value as a person writes it; one that isn't set is ``n`` or empty."""
        value = self.config.get(name)
        if value is not None:
            return value.strip('"')
        option = self.kconfig.options.get(name)
        return "n" if option is None or option.is_switch else ""

    def tristate(self, name: Name) -> int:
        """Return n, m or y of an option or a constant."""
        if name.quoted or name.text in TRISTATE:
            return TRISTATE.get(name.text, N)
        return TRISTATE.get(self.of(name.text), N)

    def text(self, word: Name | Macro) -> str:
        """Return what a comparison compares; a word that is no option stands for itself."""
        if isinstance(word, Macro):
            return self.answers.get(word.text, "")
        if word.quoted or word.text not in self.kconfig.options:
            return word.text
        return self.of(word.text)


def values_of(config: Mapping[str, str], kconfig: Kconfig) -> Values:
    """Return the values of a .config, with the answers of macros as far as it tells them.

    An option that is on tells that the macros which it depends on said yes; one whose default is
    a macro tells what that said.
    """
    values = Values(config, kconfig)
    answers: dict[str, str] = {}
    for option in kconfig.options.values():
        if len(option.definitions) != 1 or not option.is_switch:
            continue
        (definition,) = option.definitions
        value = values.of(option.name)
        asking = [one.expression for one in definition.conditions]
        macros = [one.text for one in asking if isinstance(one, Macro)]
        if value != "n" and not any(values.of(one.by) != "n" for one in option.selected_by):
            answers |= dict.fromkeys(macros, "y")
        first = definition.defaults[0] if definition.defaults else None
        if (
            definition.prompt is None
            and first is not None
            and first.condition is None
            and isinstance(first.value, Macro)
            and all(evaluate(one, values) for one in asking)
        ):
            answers.setdefault(first.value.text, value)
    return Values(config, kconfig, answers)


def _compare(left: str, operator: str, right: str) -> bool:
    a: int | str
    b: int | str
    try:
        a, b = int(left or "0", 0), int(right or "0", 0)
    except ValueError:
        a, b = left, right
    match operator:
        case "=":
            return a == b
        case "!=":
            return a != b
        case "<":
            return a < b  # type: ignore[operator]
        case "<=":
            return a <= b  # type: ignore[operator]
        case ">":
            return a > b  # type: ignore[operator]
        case _:
            return a >= b  # type: ignore[operator]
