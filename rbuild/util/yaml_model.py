"""YAML files checked against a model: every fault is shown with its file, line and field."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
)
from pydantic_core import CoreSchema, core_schema
from yaml.composer import Composer

from rbuild.errors import UsageError
from rbuild.util.suggest import nearest
from rbuild.util.textfile import read_text

Model = TypeVar("Model", bound=BaseModel)

NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""What no file's name and no program's argument can have."""

MAX_BYTES = 256 << 10
"""The size of the largest file that is read: the largest of ours has 3 KiB."""

MAX_VALUES = 10_000
"""How many values a file may have, and mean: with aliases, a few lines can mean gigabytes."""

MAX_NAME = 64
"""Of a name, files are named with more behind it."""

INTEGER, MAX_DIGITS = "tag:yaml.org,2002:int", 100
"""Python doesn't write numbers of thousands of digits, nor does anything here need one."""

NUMBERS = (INTEGER, "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
"""Kinds of values that aren't written in one way only."""

SHORT = reprlib.Repr()
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 2, 100, 100
"""How a value is shown that is wrong."""


class Strict(BaseModel):
    """The base of everything that is read from YAML: frozen, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


@dataclass(frozen=True)
class Form:
    """What a text or path in a definition must look like, for Annotated: a regular expression.

    ``accepts`` says it in words, for the message: `'--x' is not <accepts>`.  Whatever becomes a
    part of a command line has one that lets no option, no other word and no line in.
    """

    pattern: str
    accepts: str

    def fits(self, value: object) -> bool:
        """Tell whether a text or path, as a whole, is of this form."""
        return re.fullmatch(self.pattern, str(value)) is not None

    def check(self, value: Any) -> Any:  # noqa: ANN401 - a text or a path, as it came
        """Return ``value``; raise ValueError if it isn't of this form."""
        if not self.fits(value):
            raise ValueError(f"{SHORT.repr(str(value))} is not {self.accepts}")
        return value

    def __get_pydantic_core_schema__(
        self,
        source: Any,  # noqa: ANN401 - pydantic's protocol
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "pattern": f"^(?:{self.pattern})$"}


CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
"""Characters that end a line or steer a terminal, for a set in a regular expression."""

Line = Annotated[str, Form(f"[^{CONTROL}]*", "a line of text without control characters")]
Word = Annotated[
    str,
    Form(f"(?!-)[^{CONTROL}]+", "a text without control characters that doesn't begin with a dash"),
]
FilePath = Annotated[
    Path,
    Form(f"(?!-)[^{CONTROL}]+", "a path without control characters that doesn't begin with a dash"),
]
Suite = Annotated[
    str, Form("[a-z][a-z0-9]*(?:[./-][a-z0-9]+)*", "a Debian suite, such as trixie-backports")
]
Option = Annotated[
    str, Form("(?!CONFIG_)[A-Z0-9][A-Za-z0-9_]*", "an option's name without CONFIG_, such as SPI")
]
DeviceTree = Annotated[
    str,
    Form(
        r"(?:[A-Za-z0-9_][A-Za-z0-9_.,+-]*/)*[A-Za-z0-9_][A-Za-z0-9_.,+-]*\.dtb",
        "a device tree in the kernel source, such as broadcom/bcm2837-rpi-3-b.dtb",
    ),
]
Arch = Annotated[str, Form("[a-z][a-z0-9_]*", "the name of an architecture, such as arm64")]


def load(
    path: Path,
    model: type[Model],
    *,
    under: Mapping[str, Any] | None = None,
    verbatim: tuple[str, ...] = (),
) -> Model:
    """Read a YAML file into ``model``; a field that it hasn't is taken from ``under``.

    The values of the mapping at ``verbatim`` are texts as they are written, where YAML would take
    them for numbers or dates.  Raises UsageError naming the file, and for each fault its line, its
    field and what is accepted there.
    """
    node, data = read(path)
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected fields (`name: value`), got {_kind(data)}.")
    if verbatim:
        _keep_texts(node, data, verbatim)
    try:
        return model.model_validate({**(under or {}), **data})
    except ValidationError as error:
        faults = [_explain(fault, path, node, model) for fault in error.errors()]
        raise UsageError(faults[0], detail="\n".join(faults[1:])) from error


def _keep_texts(node: yaml.Node | None, data: Any, path: tuple[str, ...]) -> None:  # noqa: ANN401
    """Put into a mapping the texts of its values: `0x1b0` is a number to YAML, and 432 later on."""
    for name in path:
        if not isinstance(node, yaml.MappingNode) or not isinstance(data, dict):
            return
        below = (value for key, value in node.value if key.value == name)
        node, data = next(below, None), data.get(name)
    if isinstance(node, yaml.MappingNode) and isinstance(data, dict):
        for key, value in node.value:
            if value.tag in NUMBERS and key.value in data:
                data[key.value] = value.value


def read(path: Path) -> tuple[yaml.Node | None, Any]:
    """Return a YAML file's nodes, which know their lines, and its data.

    Raises UsageError naming the file, and the line of what can't be read.
    """
    text = read_text(path, limit=MAX_BYTES)
    try:
        return parse(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f":{mark.line + 1}:{mark.column + 1}"
        raise UsageError(f"{path}{line}: not valid YAML: {error.problem or error}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid YAML: {error}.") from error


def beside(path: Path, name: str) -> str:
    """Return a name as it is, or a YAML file's path as seen from ``path``, which names it."""
    is_path = "/" in name or Path(name).suffix in {".yaml", ".yml"}
    return str(path.parent / name) if is_path else name


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
    if yaml.__with_libyaml__:
        with suppress(yaml.YAMLError):
            return _parse(_FastLoader(text))
    # PyYAML's own parser says better what is wrong.
    return _parse(_Loader(text))


class _Counting:
    """A loader's composer, which ends where a text has too many values."""

    values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        self.values += 1
        if self.values > MAX_VALUES:
            mark = self.peek_event().start_mark  # type: ignore[attr-defined]
            problem = f"there are more than {MAX_VALUES} values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        return super().compose_node(parent, index)  # type: ignore[misc,no-any-return]


class _Loader(_Counting, yaml.SafeLoader):
    """PyYAML's loader."""


if yaml.__with_libyaml__:

    class _FastLoader(_Counting, Composer, yaml.CSafeLoader):
        """PyYAML's loader with libyaml's parser, which takes a fifth of the time."""

        def __init__(self, text: str) -> None:
            yaml.CSafeLoader.__init__(self, text)
            Composer.__init__(self)


def _parse(loader: Any) -> tuple[yaml.Node | None, Any]:  # noqa: ANN401
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
        if node.tag == INTEGER and len(node.value) > MAX_DIGITS:
            raise _fault(f"a number has more than {MAX_DIGITS} digits", node)
    elif isinstance(node, yaml.SequenceNode):
        weight = 1 + sum(_weigh(one, known) for one in node.value)
    else:
        _refuse_duplicates(node)
        weight = 1 + sum(_weigh(one, known) for pair in node.value for one in pair)
    if weight > MAX_VALUES:
        raise _fault(f"aliases expand to more than {MAX_VALUES} values", node)
    known[id(node)] = weight
    return weight


def _refuse_duplicates(node: yaml.Node) -> None:
    """Raise yaml.MarkedYAMLError for a key that a mapping has twice: the first would be lost."""
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            name = (key.tag, key.value)
            if name in lines:
                shown = SHORT.repr(key.value)
                raise _fault(f"duplicate key {shown}, first set in line {lines[name]}", key)
            lines[name] = key.start_mark.line + 1


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
