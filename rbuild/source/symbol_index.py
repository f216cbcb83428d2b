"""The index of a source tree's exported symbols, in whatever configuration.

The source is read for EXPORT_SYMBOL and its like (include/linux/export.h), and for the macros that
expand to it.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rbuild.errors import ProcessFailed
from rbuild.source.preprocessor import (
    ARCH,
    COMMENT,
    DIRECTIVE,
    HAS_ARCH,
    NAME,
    TOKEN,
    arguments_at,
    filled,
    walk,
)
from rbuild.specs import architecture
from rbuild.util import process, textfile

MAX_SOURCE_BYTES = 256 << 20
"""The bytes of the largest source file of a kernel: drivers have tables of 20 MiB."""

UNREAD = {"Documentation", "samples", "scripts", "tools"}
"""Folders of a tree in which nothing is exported."""

EXPORTER = re.compile(r"_*EXPORT_(?:PER_CPU_)?SYMBOL(?:_NS)?(?:_RUST)?(?:_GPL)?")
TRACEPOINT = re.compile(r"EXPORT_TRACEPOINT_SYMBOL\w*")
STATIC_CALL = re.compile(r"EXPORT_STATIC_CALL(?P<trampoline>_TRAMP)?\w*")

# What begins with one of a few characters is found several times faster.
CALL = re.compile(rf"[\n;{{}}][ \t]*(?:{DIRECTIVE}|(?P<macro>_*EXPORT_\w+)[ \t]*\()")
DEFINE = re.compile(rf"\n[ \t]*{DIRECTIVE}")
DEFINITION = re.compile(r"\s*(\w+)(?:\(([^)]*)\))?(.*)", re.S)
QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*\bEXPORT_\w*SYMBOL\w*\(\s*(\w+)')
INCLUDE = re.compile(rb"^[ \t]*#[ \t]*include[ \t]+[\"<]([^\">\n]+\.[cS])[\">]", re.M)

MIN_LITERAL = 4
"""The letters that a name with unknown parts must have to tell anything."""

NOT_FOUND = 1
"""The exit status of grep(1) that has found nothing."""


@dataclass(frozen=True)
class Site:
    """A place that exports a symbol: a source file, and the C condition it stands under."""

    file: str
    condition: str = ""

    @property
    def object(self) -> str:
        """The object that the file is compiled to."""
        return f"{self.file.rpartition('.')[0]}.o"


@dataclass(frozen=True)
class Index:
    """What a source tree exports, in whatever configuration.

    ``places`` has a line for each symbol: its name, and the numbers of the file and the condition
    of each site (one text, since a module asks for few of its many thousand lines);
    ``patterns`` are regular expressions of names that are put together in ways that weren't
    understood; ``included`` has, for a .c or .S file's name, the files that include one of it;
    ``has`` are, by architecture, the names with HAS_ARCH that its headers define, by "" all's.
    """

    conditions: Sequence[str]
    files: Sequence[str]
    places: str
    patterns: Sequence[str]
    included: Mapping[str, Sequence[str]]
    has: Mapping[str, Sequence[str]]

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """All patterns in one."""
        return re.compile("|".join(self.patterns) or r"(?!)")

    def sites(self, name: str) -> list[Site]:
        """Return the places that export a symbol."""
        start = self.places.find(f"\n{name} ")
        if start < 0:
            return []
        _, *pairs = self.places[start + 1 : self.places.index("\n", start + 1)].split()
        return [
            Site(self.files[int(file)], self.conditions[int(condition)])
            for file, _, condition in (pair.partition(":") for pair in pairs)
        ]


def read(root: Path) -> Index:
    """Read a source tree.  Raises ProcessFailed where grep(1) can't."""
    return _Reader(root).read()


@dataclass(frozen=True)
class _Template:
    """What a macro exports: names in terms of its parameters, where ``file`` defines it."""

    file: str
    parameters: Sequence[str]
    names: Sequence[str]
    condition: str


@dataclass
class _Reader:
    """Reads a source tree for what it exports."""

    root: Path
    sites: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    macros: dict[str, list[_Template]] = field(default_factory=dict)
    patterns: set[str] = field(default_factory=set)
    texts: dict[str, str] = field(default_factory=dict)

    def read(self) -> Index:
        """Return the index."""
        files = self._files_with("-F", "-e", "EXPORT_")
        for name in files:
            self._literal(name, self._text(name))
        # A macro may export by another one, which another file defines.
        new = self._define(files, {})
        users = self._users(new)
        while new := self._define(users, new):
            users |= self._users(new)
        self._expand(sorted(users))
        included = defaultdict(set)
        for name in self._files_with("-E", "-e", r"^[ \t]*#[ \t]*include[ \t]+.*\.[cS][\">]"):
            for one in INCLUDE.findall(
                textfile.read_bytes(self.root / name, limit=MAX_SOURCE_BYTES)
            ):
                included[os.path.basename(os.fsdecode(one))].add(name)  # noqa: PTH119
        numbers: dict[str, int] = {}
        texts: dict[str, int] = {}
        lines = [""]
        for name, found in sorted(self.sites.items()):
            pairs = [
                f"{numbers.setdefault(one, len(numbers))}:{texts.setdefault(other, len(texts))}"
                for one, other in dict.fromkeys(found)
            ]
            lines.append(" ".join([name, *pairs]))
        places = "\n".join([*lines, ""])
        return Index(
            list(texts),
            list(numbers),
            places,
            sorted(self.patterns),
            {name: sorted(found) for name, found in sorted(included.items())},
            self._has(),
        )

    def _has(self) -> dict[str, list[str]]:
        """Return what architectures say that they have, in headers; all may say it, in include/."""
        found: dict[str, set[str]] = defaultdict(set)
        for name in self._files_with("-F", "-e", HAS_ARCH):
            if not name.endswith(".h"):
                continue
            arch = ARCH.match(name)
            for match, _ in walk(self._text(name), DEFINE, name):
                if match["word"] == "define" and match["rest"].strip().startswith(HAS_ARCH):
                    found[arch[1] if arch else ""].add(match["rest"].split()[0].partition("(")[0])
        return {name: sorted(names) for name, names in sorted(found.items())}

    def _files_with(self, *expression: str) -> list[str]:
        """Return the source files in which an expression of grep(1) is found, in order."""
        argv = ["grep", "-rlZ", "--include=*.[chS]", *expression, "--", *self._folders()]
        try:
            found = process.output(argv, cwd=self.root)
        except ProcessFailed as error:
            if error.returncode != NOT_FOUND:
                raise
            return []
        return sorted(os.fsdecode(name) for name in found.split(b"\0")[:-1])

    def _folders(self) -> list[str]:
        found = [one.name for one in self.root.iterdir() if one.is_dir() and not one.is_symlink()]
        kept = [name for name in found if name not in UNREAD and name[0] != "." and name != "arch"]
        arches = [f"arch/{name}" for name in architecture.kernels()]
        return sorted(kept) + [name for name in arches if (self.root / name).is_dir()]

    def _text(self, name: str) -> str:
        """Return a file's text from a newline on, its continued lines joined."""
        if name not in self.texts:
            data = textfile.read_bytes(self.root / name, limit=MAX_SOURCE_BYTES)
            self.texts[name] = "\n" + data.decode(errors="replace").replace("\\\n", " ")
        return self.texts[name]

    # What stands there by its name.

    def _literal(self, file: str, text: str) -> None:
        self.patterns |= {re.escape(name) for name in QUOTED.findall(text)}
        for macro, arguments, condition in _calls(text, CALL, file):
            if (names := _exported(macro, arguments)) is None:
                continue
            for name in names:
                if NAME.fullmatch(name):
                    self.sites[name].append((file, condition))
                else:
                    self.patterns |= _with_words_of(name)

    # What macros put together.

    def _define(
        self, files: Iterable[str], known: Mapping[str, list[_Template]]
    ) -> dict[str, list[_Template]]:
        """Find the macros that export, directly or by those ``known``; return the new ones."""
        new: dict[str, list[_Template]] = {}
        wanted = re.compile(
            "|".join([r"EXPORT_", *(rf"\b{re.escape(name)}\b" for name in sorted(known))])
        )
        for file in files:
            for found, condition in walk(self._text(file), DEFINE, file):
                if found["word"] != "define" or not wanted.search(found["rest"]):
                    continue
                match = DEFINITION.match(found["rest"])
                if match is None or EXPORTER.fullmatch(match[1]) or match[1] in self.macros:
                    continue
                if names := list(self._names(match[3], known)):
                    parameters = [one.strip() for one in (match[2] or "").split(",")]
                    template = _Template(file, parameters, names, condition)
                    new.setdefault(match[1], []).append(template)
        self.macros |= new
        return new

    def _names(self, body: str, known: Mapping[str, list[_Template]]) -> Iterator[str]:
        """Yield what a macro's body exports, in terms of its parameters."""
        for found in re.finditer(r"\b(\w+)[ \t]*\(", body):
            arguments = arguments_at(body, found.end() - 1)
            if arguments is None:
                continue
            if (names := _exported(found[1], arguments)) is not None:
                yield from names
            for one in known.get(found[1], ()):
                yield from (filled(name, one.parameters, arguments) for name in one.names)

    def _users(self, macros: Mapping[str, list[_Template]]) -> set[str]:
        """Return the files that may use macros: of one that a header defines, all that name it."""
        found = {one.file for templates in macros.values() for one in templates}
        shared = [
            name
            for name, templates in macros.items()
            if any(one.file.endswith(".h") for one in templates)
        ]
        if shared:
            words = [word for name in shared for word in ("-e", name)]
            found |= set(self._files_with("-wF", *words))
        return found

    def _expand(self, users: Iterable[str]) -> None:
        """Add what the macros' uses export."""
        used = set()
        names = "|".join(re.escape(one) for one in sorted(self.macros, key=len, reverse=True))
        call = re.compile(rf"\n[ \t]*{DIRECTIVE}|\b(?P<macro>{names or '(?!)'})[ \t]*\(")
        for file in users:
            text = COMMENT.sub(" ", self._text(file))
            for macro, arguments, condition in _calls(text, call, file):
                for one in self.macros[macro]:
                    if one.file == file or one.file.endswith(".h"):
                        used.add((macro, one.file))
                        both = " && ".join(filter(None, (one.condition, condition)))
                        self._put_together(one, arguments, (file, both))
        # One that no use was found of is used by what is included after it.
        for macro, templates in self.macros.items():
            for one in templates:
                if (macro, one.file) not in used:
                    self.patterns |= {
                        pattern for name in one.names for pattern in _with_any(name, one.parameters)
                    }

    def _put_together(
        self, template: _Template, arguments: Sequence[str], site: tuple[str, str]
    ) -> None:
        for name in template.names:
            whole = re.sub(r"\s*##\s*", "", filled(name, template.parameters, arguments)).strip()
            if NAME.fullmatch(whole):
                self.sites[whole].append(site)
            else:
                self.patterns |= _with_words_of(whole)


def _calls(text: str, call: re.Pattern[str], file: str) -> Iterator[tuple[str, list[str], str]]:
    """Yield the calls of macros: the name, the arguments, and the condition as ``walk`` does."""
    for found, condition in walk(text, call, file):
        if found["word"] is None and (arguments := arguments_at(text, found.end() - 1)) is not None:
            yield found["macro"], arguments, condition


def _exported(macro: str, arguments: Sequence[str]) -> list[str] | None:
    """Return what one of the kernel's own macros exports; None if it is none that does."""
    name = arguments[0]
    if TRACEPOINT.fullmatch(macro):
        return [f"{start}{name}" for start in ("__tracepoint_", "__traceiter_", "__SCK__tp_func_")]
    if found := STATIC_CALL.fullmatch(macro):
        return [f"__SCT__{name}"] if found["trampoline"] else [f"__SCK__{name}", f"__SCT__{name}"]
    return [name] if EXPORTER.fullmatch(macro) else None


def _with_any(name: str, parameters: Collection[str]) -> set[str]:
    """Return a pattern of a name whose parameters can be anything; none if that tells nothing."""
    words = [word for word in TOKEN.findall(name) if word not in {"##", " ", "\t"}]
    plain = "".join(word for word in words if word not in parameters)
    if len(plain) < MIN_LITERAL or not NAME.fullmatch(plain):
        return set()
    return {"".join(r"\w*" if word in parameters else re.escape(word) for word in words)}


def _with_words_of(name: str) -> set[str]:
    """Return patterns of names that have one of the words in an expression."""
    words = [word for word in NAME.findall(name) if len(word) >= MIN_LITERAL]
    return {rf"\w*{re.escape(word)}\w*" for word in words if not word.isupper()}
