"""Why an option is granted or refused, as data and as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NEAREST_SHOWN = 6
"""How many of the options that could select one are shown."""

LAST_RESORT = {"COMPILE_TEST", "EXPERT", "BROKEN"}
"""Options that open much else: nobody's first remedy."""


@dataclass(frozen=True)
class Origin:
    """A text that asks for options: the base, a fragment, the profile's own options."""

    label: str
    text: str
    numbered: bool = True


@dataclass(frozen=True)
class Asked:
    """A value that an origin asks for."""

    value: str
    by: str


@dataclass(frozen=True)
class Plan:
    """What would have to change: options to be set, and tools to be had."""

    options: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()

    @property
    def cost(self) -> int:
        """How much is to change: a tool, or an option of last resort, is worth many options."""
        return len(self.options) + 10 * len([*self.tools, *(LAST_RESORT & self.options.keys())])

    def __add__(self, other: Plan) -> Plan:
        tools = (*self.tools, *(one for one in other.tools if one not in self.tools))
        return Plan({**self.options, **other.options}, tools)


@dataclass(frozen=True)
class Node:
    """A part of the walk: a condition with what it is, what that follows from, and the remedy.

    ``plan`` is None where nothing is known that would meet it.
    """

    text: str
    met: bool
    why: tuple[str, ...] = ()
    any_of: bool = False
    children: tuple[Node, ...] = ()
    plan: Plan | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the node for --json."""
        return {
            "condition": self.text,
            "met": self.met,
            "why": list(self.why),
            "any_of": self.any_of,
            "children": [child.as_json() for child in self.children],
        }


@dataclass(frozen=True)
class Explanation:
    """Why an option is what it is.  ``granted``: it is what was asked, or on if nothing was."""

    option: str
    value: str
    asked: Asked | None
    where: str
    why: tuple[str, ...]
    granted: bool
    conditions: tuple[Node, ...]
    plan: Plan | None

    def as_json(self) -> dict[str, Any]:
        """Return the explanation for --json."""
        return {
            "option": self.option,
            "value": self.value,
            "asked": None if self.asked is None else vars(self.asked),
            "where": self.where,
            "why": list(self.why),
            "granted": self.granted,
            "conditions": [node.as_json() for node in self.conditions],
            "lift": None
            if self.plan is None
            else {"options": dict(self.plan.options), "tools": list(self.plan.tools)},
        }


def blockers(found: Explanation) -> list[str]:
    """Return in a line each what stands between an option and what was asked."""
    lines = [line for node in found.conditions if not node.met for line in _leaves(node)]
    return list(dict.fromkeys(lines))


def tree(found: Explanation) -> list[str]:
    """Return an explanation as lines of text."""
    asked = ""
    if found.asked is not None:
        asked = f", as {found.asked.by} asks"
        if not found.granted:
            asked = f", though {found.asked.by} asks for {found.asked.value}"
    lines = [f"{found.option} is {found.value or 'empty'}{asked} ({found.where})"]
    lines += [f"  {line}" for line in found.why]
    lines += _branches(found.conditions, "")
    if not found.conditions and not found.why:
        lines.append("  it depends on nothing")
    return lines


def remedy(plan: Plan) -> list[str]:
    """Return a plan as lines of text: YAML for a profile, and tools for an environment."""
    lines = []
    if plan.options:
        lines += ["config:", "  options:"]
        lines += [f"    {name}: {value}" for name, value in sorted(plan.options.items())]
    return [*lines, *(f"and in the environment: {tool}" for tool in plan.tools)]


def _branches(nodes: Sequence[Node], indent: str) -> Iterator[str]:
    for number, node in enumerate(nodes):
        last = number == len(nodes) - 1
        below = indent + ("   " if last else "│  ")
        yield f"{indent}{'└─' if last else '├─'} {'ok' if node.met else 'NO'}  {node.text}"
        for line in node.why:
            yield f"{below}    {line}"
        if node.children and len(node.children) > 1 and not node.met:
            yield f"{below}    {'one of these would do:' if node.any_of else 'all of:'}"
        yield from _branches(node.children, f"{below}    ")


def _leaves(node: Node) -> Iterator[str]:
    failing = [child for child in node.children if not child.met]
    if not failing:
        yield f"{node.text}: {'; '.join(node.why)}"
    elif node.any_of and len(failing) > 1:
        yield f"{node.text}: " + ", or ".join(line for child in failing for line in _leaves(child))
    else:
        for child in failing:
            yield from _leaves(child)
