"""Symbols: what a kernel that isn't built would export, as its source and configuration tell.

A Module.symvers is written when a kernel is built.  Before that, the source is read for
EXPORT_SYMBOL and what expands to it (include/linux/export.h), and Kbuild's makefiles for the files
that the configuration compiles.  What can't be told so is neither accepted nor refused.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from rbuild import architecture, process, textfile
from rbuild.errors import ProcessFailed
from rbuild.kbuild import Kbuild
from rbuild.sandbox import KDIR, MODULE, SRC, Job
from rbuild.source import Tree
from rbuild.store import read_json, write_text

SOURCE_MOST = 256 << 20
"""The bytes of the largest source file of a kernel: drivers have tables of 20 MiB."""

FORMAT = 1
"""Of the index that is kept: another one is made anew."""

UNREAD = {"Documentation", "samples", "scripts", "tools"}
"""Folders of a tree in which nothing is exported."""

EXPORTER = re.compile(r"_*EXPORT_(?:PER_CPU_)?SYMBOL(?:_NS)?(?:_RUST)?(?:_GPL)?")
TRACEPOINT = re.compile(r"EXPORT_TRACEPOINT_SYMBOL\w*")
STATIC_CALL = re.compile(r"EXPORT_STATIC_CALL(?P<trampoline>_TRAMP)?\w*")

DIRECTIVE = r"#[ \t]*(?P<word>ifdef|ifndef|if|elif|else|endif|define)\b(?P<rest>[^\n]*)"
# What begins with one of a few characters is found several times faster.
CALL = re.compile(rf"[\n;{{}}][ \t]*(?:{DIRECTIVE}|(?P<macro>_*EXPORT_\w+)[ \t]*\()")
DEFINE = re.compile(rf"\n[ \t]*{DIRECTIVE}")
ARCH = re.compile(r"arch/(\w+)/.*\.h")
NAME = re.compile(r"\w+")
DEFINITION = re.compile(r"\s*(\w+)(?:\(([^)]*)\))?(.*)", re.S)
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.S)
QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*\bEXPORT_\w*SYMBOL\w*\(\s*(\w+)')
TOKEN = re.compile(r"\w+|##|.", re.S)
INCLUDE = re.compile(rb"^[ \t]*#[ \t]*include[ \t]+[\"<]([^\">\n]+\.[cS])[\">]", re.M)

ARGUMENTS_MOST = 2000
"""The characters in which the arguments of a macro end."""

PARTS_MOST = 5
"""How many parts of parts an object may have."""

LITERAL_LEAST = 4
"""The letters that a name with unknown parts must have to tell anything."""


MAKEFILE = Path(__file__).with_name("objects.mk")
OBJECT = re.compile(r"[\w./+,-]+\.o")

NOT_FOUND = 1
"""The exit status of grep(1) that has found nothing."""


COPY = "/tmp/kdir"  # noqa: S108 - in the sandbox
LIST_OBJECTS = (
    f"mkdir {COPY}; tar -C {KDIR} --exclude=./rust -cf - . | tar -C {COPY} -xf -; "
    f'"$@" >{MODULE}/objects'
)
"""Calls make on a copy of the KDIR: the kernel's Makefile writes there whatever it is asked for."""


class Answer(Enum):
    """Whether a kernel exports a symbol."""

    YES = "exported"
    NO = "not exported"
    UNKNOWN = "not to be told by reading"


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

    ``places`` has the numbers of the file and the condition of each site, by the symbol's name;
    ``patterns`` are regular expressions of names that are put together in ways that weren't
    understood; ``included`` has, for a .c or .S file's name, the files that include one of it.
    """

    conditions: Sequence[str]
    files: Sequence[str]
    places: Mapping[str, Sequence[tuple[int, int]]]
    patterns: Sequence[str]
    included: Mapping[str, Sequence[str]]

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """All patterns in one."""
        return re.compile("|".join(self.patterns) or r"(?!)")

    def sites(self, name: str) -> list[Site]:
        """Return the places that export a symbol."""
        found = self.places.get(name, ())
        return [Site(self.files[file], self.conditions[condition]) for file, condition in found]


@dataclass(frozen=True)
class Exports:
    """What a configured kernel exports: an index, the objects it consists of, and its options.

    ``objects`` is None where Kbuild didn't tell them.
    """

    index: Index
    objects: frozenset[str] | None
    config: Mapping[str, str]
    more: frozenset[str] = frozenset()
    """Names that are exported besides: those of Rust's crates."""

    def find(self, name: str) -> Answer:
        """Tell whether a symbol is exported."""
        if name in self.more:
            return Answer.YES
        answers = {self._at(site) for site in self.index.sites(name)}
        for one in (Answer.YES, Answer.UNKNOWN):
            if one in answers:
                return one
        return Answer.UNKNOWN if self.index.pattern.fullmatch(name) else Answer.NO

    def _at(self, site: Site) -> Answer:
        holds = truth(site.condition, self.config)
        if holds is False:
            return Answer.NO
        if self.objects is None:
            return Answer.UNKNOWN
        if site.object in self.objects:
            return Answer.YES if holds else Answer.UNKNOWN
        return Answer.UNKNOWN if self._may_be_included(site.file, set()) else Answer.NO

    def _may_be_included(self, file: str, seen: set[str]) -> bool:
        """Tell whether a file may be a part of another one that is compiled."""
        if file.endswith(".h"):
            return True
        seen.add(file)
        assert self.objects is not None
        return any(
            Site(one).object in self.objects or self._may_be_included(one, seen)
            for one in self.index.included.get(Path(file).name, ())
            if one not in seen
        )


EMPTY = Index((), (), {}, (), {})


def listed(names: frozenset[str]) -> Exports:
    """Return what a kernel exports that has a list of it: a Module.symvers."""
    return Exports(EMPTY, frozenset(), {}, names)


RULE = re.compile(
    r"^[ \t]*(?P<head>[\w.-]+?)-(?:y|m|objs|\$\(CONFIG_(?P<option>\w+)\))[ \t]*[:+]?="
    r"(?P<parts>.*)$",
    re.M,
)
"""What something consists of, in a Kbuild file (Documentation/kbuild/makefiles.rst)."""


def option_off(tree: Path, file: str, config: Mapping[str, str]) -> str | None:
    """Return the option for want of which a file of a tree isn't compiled, if a rule names one."""
    folder, target = tree / Path(file).parent, f"{Path(file).stem}.o"
    while folder != tree and tree in folder.parents:
        above = f"{folder.name}/"
        for _ in range(PARTS_MOST):
            rules = [
                one for one in RULE.finditer(_makefile(folder)) if target in one["parts"].split()
            ]
            for one in rules:
                if one["option"] is not None and config.get(one["option"], "n") == "n":
                    return one["option"]
            heads = [one["head"] for one in rules if one["head"] not in {"obj", "lib"}]
            if not heads:
                break
            target = f"{heads[0]}.o"
        folder, target = folder.parent, above
    return None


def _makefile(folder: Path) -> str:
    for name in ("Kbuild", "Makefile"):
        if (folder / name).is_file():
            text = textfile.read_text(folder / name, limit=SOURCE_MOST, decoding="replace")
            return text.replace("\\\n", " ")
    return ""


# Conditions.

MEANING = re.compile(
    r"(?:defined\s*\(\s*(?P<defined>\w+)\s*\)|defined\s+(?P<bare>\w+)|"
    r"(?P<asked>IS_ENABLED|IS_BUILTIN|IS_MODULE|IS_REACHABLE)\s*\(\s*CONFIG_(?P<option>\w+)\s*\))"
)
LOGIC = re.compile(r"&&|\|\||[!()]|\b[01]\b|[\w.]+(?:\s*\([^()]*\))?|[^\s\w]+")
KNOWN = {"__KERNEL__": True, "__CHECKER__": False, "__GENKSYMS__": False}
SIMPLE = {"0", "1", "&&", "||", "!", "(", ")"}


def truth(condition: str, config: Mapping[str, str]) -> bool | None:
    """Return whether a preprocessor's condition holds, as far as the options tell; "" does."""
    if not condition:
        return True
    words = LOGIC.findall(MEANING.sub(lambda found: _meaning(found, config), condition))
    return _Logic([word if word in SIMPLE else "?" for word in words]).value()


def _meaning(found: re.Match[str], config: Mapping[str, str]) -> str:
    name = found["defined"] or found["bare"]
    value: bool | None
    if name is not None:
        value = _is_defined(name, config)
    else:
        set_to = config.get(found["option"], "n")
        wanted = {"IS_BUILTIN": "y", "IS_MODULE": "m"}.get(found["asked"], "ym")
        value = set_to != "n" and set_to in wanted
        if found["asked"] == "IS_REACHABLE" and set_to == "m":
            value = None
    return " ? " if value is None else f" {int(value)} "


def _is_defined(name: str, config: Mapping[str, str]) -> bool | None:
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

    def _joined(self, word: str, part: Any, *, decisive: bool) -> bool | None:  # noqa: ANN401
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


# The index.


def index(tree: Tree) -> Index:
    """Return what a tree exports in any configuration; read once, then remembered."""
    path = _kept(tree)
    known = read_json(path)
    if known is None or known.get("format") != FORMAT:
        known = _Reader(tree.path).read()
        write_text(path, json.dumps(known), synced=True)
    del known["format"]
    return Index(**known)


def is_known(tree: Tree) -> bool:
    """Tell whether ``index`` answers at once."""
    return _kept(tree).exists()


def objects(kbuild: Kbuild, kept: Path) -> frozenset[str] | None:
    """Return the objects that a configured kernel consists of; asked once, then in ``kept``.

    None if its Makefile has another target than Linux 6.1's for all of the source.  Raises
    BuildFailed where Kbuild fails.
    """
    if not kept.exists():
        with kbuild.session.store.scratch("objects") as folder:
            listing = f"{MODULE}/{MAKEFILE.name}"
            (folder / MAKEFILE.name).write_bytes(MAKEFILE.read_bytes())
            own = ["-s", f"O={COPY}", f"build=-f {listing} list={listing} obj"]
            make = kbuild.job(["."], extra=own).argv
            argv = ["sh", "-euc", LIST_OBJECTS, "objects", *make]
            job = Job(argv, kbuild.binds(folder), SRC, kbuild.environment())
            kbuild.do(job, "Listing what the kernel consists of")
            listed = textfile.read_text(folder / "objects", limit=SOURCE_MOST)
        names = {os.path.normpath(line) for line in listed.splitlines() if OBJECT.fullmatch(line)}
        write_text(kept, "".join(f"{name}\n" for name in sorted(names)), synced=True)
    return frozenset(textfile.read_text(kept, limit=SOURCE_MOST).split()) or None


def _kept(tree: Tree) -> Path:
    return tree.path.parent / "exports.json"


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

    def read(self) -> dict[str, Any]:
        """Return the index as JSON has it."""
        files = self._files_with("-F", "-e", "EXPORT_")
        for name in files:
            self._literal(name, self._text(name))
        # A macro may export by another one, which another file defines.
        defined = self._define(files, {})
        new = defined
        users = self._users(new)
        while new := self._define(users, new):
            defined |= new
            users |= self._users(new)
        self._expand(sorted(users))
        included = defaultdict(set)
        for name in self._files_with("-E", "-e", r"^[ \t]*#[ \t]*include[ \t]+.*\.[cS][\">]"):
            for one in INCLUDE.findall(textfile.read_bytes(self.root / name, limit=SOURCE_MOST)):
                included[os.path.basename(os.fsdecode(one))].add(name)  # noqa: PTH119
        numbers: dict[str, int] = {}
        texts: dict[str, int] = {}
        places = {
            name: [
                (numbers.setdefault(one, len(numbers)), texts.setdefault(other, len(texts)))
                for one, other in dict.fromkeys(found)
            ]
            for name, found in sorted(self.sites.items())
        }
        return {
            "format": FORMAT,
            "files": list(numbers),
            "conditions": list(texts),
            "places": places,
            "patterns": sorted(self.patterns),
            "included": {name: sorted(found) for name, found in sorted(included.items())},
        }

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
            data = textfile.read_bytes(self.root / name, limit=SOURCE_MOST)
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
            for found, condition in _walk(self._text(file), DEFINE, file):
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
            arguments = _arguments(body, found.end() - 1)
            if arguments is None:
                continue
            if (names := _exported(found[1], arguments)) is not None:
                yield from names
            for one in known.get(found[1], ()):
                yield from (_filled(name, one.parameters, arguments) for name in one.names)

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
            whole = re.sub(r"\s*##\s*", "", _filled(name, template.parameters, arguments)).strip()
            if NAME.fullmatch(whole):
                self.sites[whole].append(site)
            else:
                self.patterns |= _with_words_of(whole)


def _calls(text: str, call: re.Pattern[str], file: str) -> Iterator[tuple[str, list[str], str]]:
    """Yield the calls of macros in a file: the name, its arguments, the condition as ``_walk``."""
    for found, condition in _walk(text, call, file):
        if found["word"] is None and (arguments := _arguments(text, found.end() - 1)) is not None:
            yield found["macro"], arguments, condition


def _walk(text: str, wanted: re.Pattern[str], file: str) -> Iterator[tuple[re.Match[str], str]]:
    """Yield what is found of a pattern besides #if and the like, and the condition it is under."""
    stack: list[list[str]] = []
    # What an architecture's header defines holds there.
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


def _arguments(text: str, start: int) -> list[str] | None:
    """Return the arguments between the parenthesis at ``start`` and its match, if that is near."""
    depth, begin = 0, start + 1
    found = []
    for at in range(start, min(len(text), start + ARGUMENTS_MOST)):
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


def _exported(macro: str, arguments: Sequence[str]) -> list[str] | None:
    """Return what one of the kernel's own macros exports; None if it is none that does."""
    name = arguments[0]
    if TRACEPOINT.fullmatch(macro):
        return [f"{start}{name}" for start in ("__tracepoint_", "__traceiter_", "__SCK__tp_func_")]
    if found := STATIC_CALL.fullmatch(macro):
        return [f"__SCT__{name}"] if found["trampoline"] else [f"__SCK__{name}", f"__SCT__{name}"]
    return [name] if EXPORTER.fullmatch(macro) else None


def _filled(name: str, parameters: Sequence[str], arguments: Sequence[str]) -> str:
    values = dict(zip(parameters, arguments, strict=False))
    return "".join(values.get(token, token) for token in TOKEN.findall(name))


def _with_any(name: str, parameters: Collection[str]) -> set[str]:
    """Return a pattern of a name whose parameters can be anything; none if that tells nothing."""
    words = [word for word in TOKEN.findall(name) if word not in {"##", " ", "\t"}]
    plain = "".join(word for word in words if word not in parameters)
    if len(plain) < LITERAL_LEAST or not NAME.fullmatch(plain):
        return set()
    return {"".join(r"\w*" if word in parameters else re.escape(word) for word in words)}


def _with_words_of(name: str) -> set[str]:
    """Return patterns of names that have one of the words in an expression."""
    words = [word for word in NAME.findall(name) if len(word) >= LITERAL_LEAST]
    return {rf"\w*{re.escape(word)}\w*" for word in words if not word.isupper()}
