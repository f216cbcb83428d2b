"""Why Kconfig grants an option or refuses it, and what would have to change.

The dependency is walked from the option down to what can be changed: an option that a profile
may set, or a tool of the environment.  Values are those of a .config that the kernel's own
Kconfig completed, also one in which it refused what was asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from rbuild.kernel.kconfig.explanation import NEAREST_SHOWN, Asked, Explanation, Node, Origin, Plan
from rbuild.kernel.kconfig.model import (
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
    Y,
)
from rbuild.kernel.kconfig.tools import TOOLS, version_of
from rbuild.kernel.kconfig.values import Values, evaluate

MAX_DEPTH = 8
"""How many options one after the other are walked: a dependency that is longer helps nobody."""


ANSWERS = {
    "RUST_IS_AVAILABLE": "rustc, bindgen and the Rust library's source; `make rustavailable` says "
    "what of them is missing or too old",
}
"""Options that ask the tools, and which."""


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
        if (name.text, need) in self._under_way or depth >= MAX_DEPTH:
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
        if key in self._under_way or depth >= MAX_DEPTH:
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
            have = version_of(name, left)
            if found.operator in {">", ">="}:
                wanted = f"{tool[1]}, of version {version_of(name, right)} or later"
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
