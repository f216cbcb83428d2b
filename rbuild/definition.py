"""YAML files checked against a model: every fault is shown with its file, line and field."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from rbuild.errors import UsageError
from rbuild.nearest import nearest

Model = TypeVar("Model", bound=BaseModel)

NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""What no file's name and no program's argument can have."""

MOST_VALUES = 10_000
"""How many values a file may mean: with aliases, a few lines can mean gigabytes."""

INTEGER, DIGITS_MOST = "tag:yaml.org,2002:int", 100
"""Python doesn't write numbers of thousands of digits, nor does anything here need one."""

SHORT = reprlib.Repr()
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 2, 100, 100
"""How a value is shown that is wrong."""


class Strict(BaseModel):
    """The base of everything that is read from YAML: frozen, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


def load(path: Path, model: type[Model], *, under: Mapping[str, Any] | None = None) -> Model:
    """Read a YAML file into ``model``; a field that it hasn't is taken from ``under``.

    Raises UsageError naming the file, and for each fault its line, its field and what is
    accepted there.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path} can't be read: {reason}.") from error
    try:
        node, data = parse(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f":{mark.line + 1}:{mark.column + 1}"
        raise UsageError(f"{path}{line}: not valid YAML: {error.problem or error}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid YAML: {error}.") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected fields (`name: value`), got {_kind(data)}.")
    try:
        return model.model_validate({**(under or {}), **data})
    except ValidationError as error:
        faults = [_explain(fault, path, node, model) for fault in error.errors()]
        raise UsageError(faults[0], detail="\n".join(faults[1:])) from error


def is_there(path: Path) -> bool:
    """Tell whether a file is there; one of a name that none can have isn't."""
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def parse(text: str) -> tuple[yaml.Node | None, Any]:
    """Return a YAML text's nodes, which know their lines, and its data.

    Raises yaml.YAMLError, ValueError or RecursionError for what can't be read.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, None
        _weigh(node, {})
        return node, loader.construct_document(node)
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:
        # PyYAML believes that a value is what its tag says, such as `!!int x`.
        raise ValueError(f"a value is not what its tag says: {error}") from error
    finally:
        loader.dispose()


def _weigh(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node means, one that is meant again counted again.

    Raises yaml.MarkedYAMLError where those are too many, where a value is a part of itself, or
    where a text has what no text may have.
    """
    if (weight := known.get(id(node))) is not None:
        if weight == 0:
            raise _fault("a value is a part of itself", node)
        return weight
    known[id(node)] = 0
    if isinstance(node, yaml.ScalarNode):
        weight = 1
        if (found := NO_TEXT.search(node.value)) is not None:
            raise _fault(f"a text has the character {found[0]!r}", node)
        if node.tag == INTEGER and len(node.value) > DIGITS_MOST:
            raise _fault(f"a number has more than {DIGITS_MOST} digits", node)
    elif isinstance(node, yaml.SequenceNode):
        weight = 1 + sum(_weigh(one, known) for one in node.value)
    else:
        weight = 1 + sum(_weigh(one, known) for pair in node.value for one in pair)
    if weight > MOST_VALUES:
        raise _fault(f"aliases mean more than {MOST_VALUES} values", node)
    known[id(node)] = weight
    return weight


def _fault(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _explain(fault: Any, path: Path, node: yaml.Node | None, model: type[BaseModel]) -> str:  # noqa: ANN401
    where = tuple(fault["loc"])
    line, field = _locate(node, where)
    if fault["type"] == "extra_forbidden":
        known = _fields(model, where[:-1])
        return f"{path}:{line}: {field}: unknown field.{nearest(str(where[-1]), known)}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "missing":
        message = "this field is required"
    got = (
        ""
        if fault["type"] in {"missing", "value_error"}
        else f" (got {SHORT.repr(fault['input'])})"
    )
    end = "" if message.endswith("?") else "."
    return f"{path}:{line}: {field}: {message}{got}{end}"


def _locate(node: yaml.Node | None, where: tuple[str | int, ...]) -> tuple[int, str]:
    """Return the line (from 1) and the dotted name of the deepest part of ``where`` in the file."""
    line = 1
    parts: list[str] = []
    for part in where:
        found = _child(node, part)
        if found is None:
            # The name of a union's member, or of a field that is missing from the file.
            if isinstance(node, yaml.MappingNode) and part == where[-1]:
                parts.append(str(part))
            continue
        key, node = found
        line = key.start_mark.line + 1
        parts.append(str(part))
    return line, ".".join(parts) or "(top)"


def _child(node: yaml.Node | None, part: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


def _fields(model: type[BaseModel], where: tuple[str | int, ...]) -> list[str]:
    """Return the names of the fields of the model that stands at ``where`` within ``model``."""
    current: type[BaseModel] = model
    for part in where:
        info = current.model_fields.get(str(part))
        if info is None:
            for inner in _models(current):
                if inner.__name__ == part:
                    current = inner
            continue
        inner_models = _inner(info.annotation)
        if len(inner_models) == 1:
            current = inner_models[0]
        else:
            named = [inner for inner in inner_models if inner.__name__ in where]
            current = named[0] if named else current
    return list(current.model_fields)


def _models(model: type[BaseModel]) -> list[type[BaseModel]]:
    return [inner for info in model.model_fields.values() for inner in _inner(info.annotation)]


def _inner(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401
    """Return the models named anywhere in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for part in getattr(annotation, "__args__", ()):
        found += _inner(part)
    return found


def _kind(data: object) -> str:
    return "nothing" if data is None else f"a {type(data).__name__}"
