"""The C preprocessor, as far as reading a kernel's source needs it: #if, macros, their arguments.

Nothing is expanded: a condition is kept as it is written, and looked at once a configuration is
known (include/linux/kconfig.h).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain

DIRECTIVE = r"#[ \t]*(?P<word>ifdef|ifndef|if|elif|else|endif|define)\b(?P<rest>[^\n]*)"
"""A line for the preprocessor, from its # on."""

ARCH = re.compile(r"arch/(\w+)/.*\.h")
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.S)
NAME = re.compile(r"\w+")
TOKEN = re.compile(r"\w+|##|.", re.S)

MAX_ARGUMENTS = 2000
"""The characters in which the arguments of a macro end."""


def walk(text: str, wanted: re.Pattern[str], file: str) -> Iterator[tuple[re.Match[str], str]]:
    """Yield what is found of a pattern, but #if and the like, and the C condition it is under.

    The pattern has the groups of DIRECTIVE in it.  The condition of what an architecture's header
    defines has that architecture's option in it.
    """
    stack: list[list[str]] = []
    of_all = [f"defined(CONFIG_{one[1].upper()})"] if (one := ARCH.match(file)) else []
    for found in wanted.finditer(text):
        word = found["word"]
        if word in {None, "define"}:
            yield found, " && ".join(chain(of_all, *stack))
            continue
        rest = COMMENT.sub("", found["rest"])
        if word in {"if", "ifdef", "ifndef"}:
            # The first of a header keeps it from being read twice.
            is_guard = file.endswith(".h") and not stack and word == "ifndef"
            stack.append([] if is_guard else [_condition(word, rest)])
        elif word == "endif":
            del stack[-1:]
        elif stack and stack[-1]:
            stack[-1][-1] = f"!({stack[-1][-1]})"
            if word == "elif":
                stack[-1].append(_condition("if", rest))


def _condition(word: str, rest: str) -> str:
    if word == "if":
        return f"({rest.strip()})"
    name = NAME.search(rest)
    return f"{'!' * (word == 'ifndef')}defined({name[0] if name else '?'})"


def arguments_at(text: str, start: int) -> list[str] | None:
    """Return the arguments between the parenthesis at ``start`` and its match, if that is near."""
    depth, begin = 0, start + 1
    found = []
    for at in range(start, min(len(text), start + MAX_ARGUMENTS)):
        char = text[at]
        if char == "(":
            depth += 1
        elif (char == ")" and depth == 1) or (char == "," and depth == 1):
            found.append(text[begin:at].strip())
            begin = at + 1
            if char == ")":
                return found
        elif char == ")":
            depth -= 1
    return None


def filled(name: str, parameters: Sequence[str], given: Sequence[str]) -> str:
    """Return a part of a macro's body with arguments in place of its parameters."""
    values = dict(zip(parameters, given, strict=False))
    return "".join(values.get(token, token) for token in TOKEN.findall(name))


MEANING = re.compile(
    r"(?:defined\s*\(\s*(?P<defined>\w+)\s*\)|defined\s+(?P<bare>\w+)|"
    r"(?P<asked>IS_ENABLED|IS_BUILTIN|IS_MODULE|IS_REACHABLE)\s*\(\s*CONFIG_(?P<option>\w+)\s*\))"
)
LOGIC = re.compile(r"&&|\|\||[!()]|\b[01]\b|[\w.]+(?:\s*\([^()]*\))?|[^\s\w]+")
HAS_ARCH = "__HAVE_ARCH_"
"""How a name begins with which an architecture's headers say that it has a function of its own."""

KNOWN = {"__KERNEL__": True, "__CHECKER__": False, "__GENKSYMS__": False}
SIMPLE = {"0", "1", "&&", "||", "!", "(", ")"}


def truth(
    condition: str, config: Mapping[str, str], has: Collection[str] | None = None
) -> bool | None:
    """Return whether a preprocessor's condition holds, as far as the options tell; "" does.

    ``has`` are the names with HAS_ARCH that headers define; None where that isn't known.
    """
    if not condition:
        return True
    words = LOGIC.findall(MEANING.sub(lambda found: _meaning(found, config, has), condition))
    return _Logic([word if word in SIMPLE else "?" for word in words]).value()


def _meaning(found: re.Match[str], config: Mapping[str, str], has: Collection[str] | None) -> str:
    name = found["defined"] or found["bare"]
    value: bool | None
    if name is not None:
        value = _is_defined(name, config, has)
    else:
        set_to = config.get(found["option"], "n")
        wanted = {"IS_BUILTIN": "y", "IS_MODULE": "m"}.get(found["asked"], "ym")
        value = set_to != "n" and set_to in wanted
        if found["asked"] == "IS_REACHABLE" and set_to == "m":
            value = None
    return " ? " if value is None else f" {int(value)} "


def _is_defined(name: str, config: Mapping[str, str], has: Collection[str] | None) -> bool | None:
    if has is not None and name.startswith(HAS_ARCH) and name not in has:
        return False
    if not name.startswith("CONFIG_"):
        return KNOWN.get(name)
    option = name.removeprefix("CONFIG_")
    if option.endswith("_MODULE") and option not in config:
        return config.get(option.removesuffix("_MODULE"), "n") == "m"
    return config.get(option, "n") not in {"n", "m"}


class _Logic:
    """Reads a condition of ``SIMPLE`` words and ``?``; None is what isn't known."""

    def __init__(self, words: list[str]) -> None:
        self.words = [*words, ""]
        self.at = 0

    def value(self) -> bool | None:
        found = self._either()
        return found if self.words[self.at] == "" else None

    def _next(self) -> str:
        self.at += 1
        return self.words[self.at - 1] if self.at < len(self.words) else ""

    def _either(self) -> bool | None:
        return self._joined("||", self._both, decisive=True)

    def _both(self) -> bool | None:
        return self._joined("&&", self._one, decisive=False)

    def _joined(self, word: str, part: Callable[[], bool | None], *, decisive: bool) -> bool | None:
        values = [part()]
        while self.words[self.at] == word:
            self._next()
            values.append(part())
        if decisive in values:
            return decisive
        return None if None in values else not decisive

    def _one(self) -> bool | None:
        word = self._next()
        if word == "!":
            found = self._one()
            return None if found is None else not found
        if word == "(":
            found = self._either()
            return found if self._next() == ")" else None
        value = {"0": False, "1": True}.get(word)
        # A comparison, or whatever else isn't understood, up to the next word that joins.
        while self.words[self.at] == "?" or (word == "?" and self.words[self.at] in {"0", "1"}):
            word = self._next()
            value = None
        return value
