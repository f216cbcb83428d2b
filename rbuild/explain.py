"""Why Kconfig grants an option or refuses it, and what would have to change.

The dependency is walked from the option down to what can be changed: an option that a profile
may set, or a tool of the environment.  Values are those of a .config that the kernel's own
Kconfig completed, also one in which it refused what was asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rbuild.kconfig import (
    LETTERS,
    TRISTATE,
    And,
    Compare,
    Definition,
    Expression,
    Kconfig,
    M,
    Macro,
    N,
    Name,
    Not,
    Option,
    Or,
    Select,
    Values,
    Y,
    evaluate,
)

DEEPEST = 8
"""How many options one after the other are walked: a dependency that is longer helps nobody."""

NEAREST_SHOWN = 6
"""How many of the options that could select one are shown."""

TOOLS = {
    "PAHOLE": ("pahole", "pahole, in the package dwarves"),
    "RUSTC": ("rustc", "rustc"),
    "RUSTC_LLVM": ("LLVM", "rustc's own LLVM"),
    "CLANG": ("clang", "clang"),
    "LLD": ("lld", "lld"),
    "GCC": ("gcc", "gcc"),
    "AS": ("the assembler", "the assembler"),
    "LD": ("the linker", "the linker"),
}
"""The tools whose versions Kconfig knows as numbers, by the option's name without _VERSION."""

LAST_RESORT = {"COMPILE_TEST", "EXPERT", "BROKEN"}
"""Options that open much else: nobody's first remedy."""

ANSWERS = {
    "RUST_IS_AVAILABLE": "rustc, bindgen and the Rust library's source; `make rustavailable` says "
    "what of them is missing or too old",
}
"""Options that ask the tools, and which."""


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


def explain(
    name: str, values: Values, origins: Sequence[Origin] = (), *, wanted: str | None = None
) -> Explanation:
    """Explain an option of ``values.kconfig``; KeyError if there is none of that name.

    ``wanted`` is what it should be, where no origin asks for it.
    """
    option = values.kconfig.options[name]
    if not option.definitions:
        raise KeyError(name)
    walk = _Walk(values, origins)
    asked = walk.asked(name)
    value = values.of(name)
    target = wanted or (asked.value if asked is not None else None)
    need = TRISTATE.get(target or "", N if target == "n" else M)
    if option.type == "bool" and need:
        need = Y
    where = ", ".join(one.where for one in option.definitions)
    if not option.is_switch:
        granted = target is None or value == target.strip('"')
    elif target == "n":
        granted = value == "n"
    else:
        granted = TRISTATE.get(value, N) >= need
    if target == "n" and not granted:
        node = walk.off(name, 0)
        return Explanation(name, value, asked, where, node.why, granted, node.children, node.plan)
    why = walk.reasons(option) if granted else ()
    conditions = walk.requirements(option, need, 0)
    plan = None
    if not granted:
        unmet = [one for one in conditions if not one.met]
        plan = _sum(unmet)
        if plan is not None and (asked is None or asked.value == "n") and walk.can_be_set(option):
            plan += Plan({name: LETTERS[need]})
    return Explanation(name, value, asked, where, why, granted, conditions, plan)


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


def _sum(nodes: Sequence[Node]) -> Plan | None:
    """Return what meets all of the nodes; None if there is one that nothing is known for."""
    whole = Plan()
    for node in nodes:
        if node.plan is None:
            return None
        whole += node.plan
    return whole


def _cheapest(nodes: Sequence[Node]) -> Plan | None:
    plans = [node.plan for node in nodes if node.plan is not None]
    return min(plans, key=lambda plan: plan.cost, default=None)


@dataclass
class _Walk:
    """One explanation under way: ``_under_way`` are the options between it and where it is."""

    values: Values
    origins: Sequence[Origin]
    _under_way: list[tuple[str, int]] = field(default_factory=list)

    @property
    def kconfig(self) -> Kconfig:
        return self.values.kconfig

    def asked(self, name: str) -> Asked | None:
        """Return what the last origin that mentions an option asks for."""
        for origin in reversed(self.origins):
            lines = origin.text.splitlines()
            for number in range(len(lines), 0, -1):
                line = lines[number - 1].strip()
                by = f"{origin.label}:{number}" if origin.numbered else origin.label
                if line.startswith(f"CONFIG_{name}="):
                    return Asked(line.partition("=")[2], by)
                if line == f"# CONFIG_{name} is not set":
                    return Asked("n", by)
        return None

    def on(self, name: Name, need: int, depth: int) -> Node:
        """Explain that an option is at least ``need``, or how it would be."""
        option = self.kconfig.options.get(name.text)
        value = self.values.tristate(name)
        if value >= need:
            return Node(str(name), True)
        if name.quoted or name.text in TRISTATE or option is None or not option.definitions:
            why = () if name.text in TRISTATE else ("this kernel has no such option",)
            return Node(str(name), False, why)
        label = f"{name.text}" if need == M or option.type == "bool" else f"{name.text} = y"
        if (name.text, need) in self._under_way or depth >= DEEPEST:
            return Node(label, False, (f"{name.text} is {LETTERS[value]}: see above",))
        self._under_way.append((name.text, need))
        try:
            return self._turned_on(label, option, need, depth)
        finally:
            self._under_way.pop()

    def _turned_on(self, label: str, option: Option, need: int, depth: int) -> Node:
        where = option.definitions[0].where
        asked = self.asked(option.name)
        said = ""
        if asked is not None:
            said = f"; {asked.by} says so" if asked.value == "n" else f"; {asked.by} asks for more"
        why = [f"{option.name} is {self.values.of(option.name)} ({where}{said})"]
        unmet = tuple(one for one in self.requirements(option, need, depth + 1) if not one.met)
        if self.can_be_set(option):
            plan = _sum(unmet)
            setting = "y" if option.type == "bool" else LETTERS[need]
            if plan is not None:
                plan += Plan({option.name: setting})
            if not unmet:
                why.append(f"remedy: `{option.name}: {setting}`")
            return Node(label, False, tuple(why), False, unmet, plan)
        if option.name in ANSWERS:
            why.append(f"it asks the environment's tools: {ANSWERS[option.name]}")
            return Node(label, False, tuple(why), False, unmet, Plan(tools=(ANSWERS[option.name],)))
        return Node(label, False, tuple(why), False, unmet, _sum(unmet) if unmet else None)

    def off(self, name: str, depth: int) -> Node:
        """Explain that an option is n, or how it would be."""
        value = self.values.of(name)
        if value == "n":
            return Node(f"!{name}", True)
        option = self.kconfig.options[name]
        key = (name, -1)
        if key in self._under_way or depth >= DEEPEST:
            return Node(f"!{name}", False, (f"{name} is {value}: see above",))
        self._under_way.append(key)
        try:
            return self._turned_off(option, depth)
        finally:
            self._under_way.pop()

    def _turned_off(self, option: Option, depth: int) -> Node:
        name = option.name
        label = f"!{name}"
        value = self.values.of(name)
        why = [f"{name} is {value} ({option.definitions[0].where}): {self._cause(option)}"]
        selecting = self._selecting(option)
        if selecting:
            nodes = tuple(
                replace(self.off(one.by, depth + 1), text=f"!{one.by}, which selects {name}")
                for one in selecting
            )
            plan = _sum(nodes)
            if plan is not None and self.can_be_set(option):
                plan += Plan({name: "n"})  # what selects it may not be all that asks for it
            return Node(label, False, tuple(why), False, nodes, plan)
        if option.choice is not None:
            others = self._others(option)
            named = " or ".join(f"`{other}: y`" for other in others)
            why.append(f"remedy: another of its choice: {named}" if others else "it has no other")
            plan = Plan({others[0]: "y"}) if others else None
            return Node(label, False, tuple(why), plan=plan)
        if self.can_be_set(option):
            why.append(f"remedy: `{name}: n`")
            return Node(label, False, tuple(why), plan=Plan({name: "n"}))
        # Nobody chooses it: it follows from the default that holds, and from what it depends on.
        sources: list[Expression] = []
        for definition in option.definitions:
            sources += [one.expression for one in definition.conditions]
            for default in definition.defaults:
                if evaluate(default.condition, self.values) and evaluate(
                    default.value, self.values
                ):
                    sources += [one for one in (default.value, default.condition) if one]
                    break
        nodes = tuple(self.falsify(one, depth + 1) for one in sources if one != Name("y"))
        return Node(label, False, tuple(why), True, nodes, _cheapest(nodes))

    def satisfy(self, expression: Expression, need: int, depth: int) -> Node:
        """Explain that an expression is at least ``need``, or how it would be."""
        text = str(expression)
        met = evaluate(expression, self.values) >= need
        match expression:
            case _ if met:
                return Node(text, True)
            case Name():
                return self.on(expression, need, depth)
            case Not(part):
                node = self.falsify(part, depth)
                return replace(node, text=text, met=False)
            case And(parts):
                nodes = tuple(self.satisfy(one, need, depth) for one in parts)
                return Node(text, False, (), False, nodes, _sum([n for n in nodes if not n.met]))
            case Or(parts):
                nodes = tuple(self.satisfy(one, need, depth) for one in parts)
                return Node(text, False, (), True, nodes, _cheapest(nodes))
            case Compare():
                return self._compared(expression)
            case Macro():
                return self._macro(expression)

    def falsify(self, expression: Expression, depth: int) -> Node:
        """Explain that an expression is n, or how it would be."""
        text = str(expression.part) if isinstance(expression, Not) else str(Not(expression))
        if evaluate(expression, self.values) == N:
            return Node(text, True)
        match expression:
            case Name(name, quoted):
                fixed = quoted or name in TRISTATE or name not in self.kconfig.options
                return Node(text, False) if fixed else self.off(name, depth)
            case Not(part):
                return replace(self.satisfy(part, Y, depth), text=text)
            case And(parts):
                nodes = tuple(self.falsify(one, depth) for one in parts)
                return Node(text, False, (), True, nodes, _cheapest(nodes))
            case Or(parts):
                nodes = tuple(self.falsify(one, depth) for one in parts)
                return Node(text, False, (), False, nodes, _sum([n for n in nodes if not n.met]))
            case Compare():
                return replace(self._compared(expression), text=text, plan=None)
            case Macro():
                return replace(self._macro(expression), text=text, plan=None)

    def requirements(self, option: Option, need: int, depth: int) -> tuple[Node, ...]:
        """Return a node for each condition of an option being at least ``need``."""
        if len(option.definitions) == 1:
            return tuple(self._definition(option, option.definitions[0], need, depth))
        nodes = []
        for definition in option.definitions:
            parts = tuple(self._definition(option, definition, need, depth))
            unmet = [one for one in parts if not one.met]
            text = f"as {definition.where} defines it"
            nodes.append(Node(text, not unmet, (), False, parts, _sum(unmet)))
        if any(node.met for node in nodes):
            return tuple(node for node in nodes if node.met)
        return (Node("one of its definitions", False, (), True, tuple(nodes), _cheapest(nodes)),)

    def _definition(
        self, option: Option, definition: Definition, need: int, depth: int
    ) -> Iterator[Node]:
        # What a bool depends on may be m.
        limit = M if option.type == "bool" else need
        for expression in dict.fromkeys(one.expression for one in definition.conditions):
            yield self.satisfy(expression, limit, depth)
        if definition.prompt is not None:
            for expression in definition.visible_if:
                node = self.satisfy(expression, M, depth)
                yield replace(node, text=f"{node.text} (else there is nothing to choose)")
        elif option.is_switch and TRISTATE.get(self.values.of(option.name), N) < need:
            yield from self._sources(option, definition, need, depth)

    def _sources(
        self, option: Option, definition: Definition, need: int, depth: int
    ) -> Iterator[Node]:
        """Yield what would turn on an option that has no prompt: its defaults, other options."""
        nodes = []
        for default in definition.defaults:
            parts = [one for one in (default.value, default.condition) if one is not None]
            given = And(tuple(parts)) if len(parts) > 1 else parts[0]
            if given != Name("y"):
                nodes.append(self.satisfy(given, need, depth))
        selects = self._could_select(option)[:NEAREST_SHOWN]
        nodes += [self._selected(select, need, depth) for select in selects]
        if len(nodes) == 1:
            yield nodes[0]
        elif nodes:
            plan = _cheapest(nodes)
            yield Node("what turns it on", False, (), True, tuple(nodes), plan)

    def _could_select(self, option: Option) -> list[Select]:
        """Return who could select an option, those that are on first."""
        return sorted(option.selected_by, key=lambda one: self.values.of(one.by) == "n")

    def _selected(self, select: Select, need: int, depth: int) -> Node:
        text = f"{select.by} selects it"
        parts = [self.on(Name(select.by), need, depth + 1)]
        if select.condition is not None:
            text += f" if {select.condition}"
            parts.append(self.satisfy(select.condition, need, depth))
        unmet = tuple(one for one in parts if not one.met)
        return Node(f"{text} ({select.where})", False, (), False, unmet, _sum(unmet))

    def _compared(self, found: Compare) -> Node:
        """Explain a comparison that doesn't hold: of a tool's version, or of an option's value."""
        left, right = self.values.text(found.left), self.values.text(found.right)
        name = str(found.left)
        tool = TOOLS.get(name.removesuffix("_VERSION")) if name.endswith("_VERSION") else None
        if tool is not None:
            have = _version(name, left)
            if found.operator in {">", ">="}:
                wanted = f"{tool[1]}, of version {_version(name, right)} or later"
                why = (f"{name} is {left}: the environment has {have} {tool[0]}",)
                return Node(str(found), False, why, plan=Plan(tools=(wanted,)))
            return Node(str(found), False, (f"{name} is {left} ({have} {tool[0]})",))
        why = (f"{name} is {left or 'empty'}",)
        option = self.kconfig.options.get(name)
        if option is not None and found.operator == "=" and self.can_be_set(option):
            return Node(str(found), False, why, plan=Plan({name: right}))
        return Node(str(found), False, why)

    def _macro(self, found: Macro) -> Node:
        if found.text in self.values.answers:
            why = "the environment's tools were asked, and said no"
        else:
            why = "it asks the environment's tools; what they answered isn't known here"
        return Node(found.text, False, (why,), plan=Plan(tools=(f"tools that meet {found.text}",)))

    def reasons(self, option: Option) -> tuple[str, ...]:
        """Return where an option's value comes from."""
        return (f"it is {self.values.of(option.name) or 'empty'}: {self._cause(option)}",)

    def _cause(self, option: Option) -> str:
        selecting = self._selecting(option)
        if selecting:
            return ", ".join(f"{one.by} selects it ({one.where})" for one in selecting)
        asked = self.asked(option.name)
        if asked is not None and asked.value.strip('"') == self.values.of(option.name):
            return f"{asked.by} asks for it"
        if option.choice is not None:
            return "it is what its choice has by itself"
        for definition in option.definitions:
            for default in definition.defaults:
                if evaluate(default.condition, self.values) and (
                    not option.is_switch or evaluate(default.value, self.values)
                ):
                    return f"by default ({default.where})"
        return "by default"

    def _selecting(self, option: Option) -> list[Select]:
        """Return the options that turn one on just now."""
        return [
            one
            for one in option.selected_by
            if self.values.of(one.by) not in {"n", ""} and evaluate(one.condition, self.values)
        ]

    def can_be_set(self, option: Option) -> bool:
        """Tell whether a .config decides what an option is: whether it has a prompt."""
        return any(one.prompt is not None for one in option.definitions)

    def _others(self, option: Option) -> list[str]:
        """Return the other members of an option's choice that can be had as things are."""
        assert option.choice is not None
        found = []
        for name in option.choice.members:
            other = self.kconfig.options[name]
            conditions = [c.expression for d in other.definitions for c in d.conditions]
            if name != option.name and all(evaluate(one, self.values) for one in conditions):
                found.append(name)
        return found


def _version(name: str, number: str) -> str:
    """Return a tool's version as a person writes it: 124 of pahole is 1.24, 108501 of rustc 1.85.1.

    The kernel's scripts/*-version.sh say how each is made a number.
    """
    if not re.fullmatch("[0-9]{1,18}", number) or int(number) == 0:
        return "no"
    value = int(number)
    if name == "PAHOLE_VERSION":
        return f"{value // 100}.{value % 100:02d}"
    major, rest = divmod(value, 100000 if name == "RUSTC_VERSION" else 10000)
    minor, patch = divmod(rest, 100)
    return f"{major}.{minor}.{patch}"
