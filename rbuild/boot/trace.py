"""A kernel's report of a fault, made readable: names demangled, each with its file and line.

Names and offsets are looked up by LLVM's tools in the environment that built them; what can't be
looked up stays as the kernel printed it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rbuild.errors import RbuildError
from rbuild.kernel.kdir import Kdir
from rbuild.provision.jobs import run_job
from rbuild.sandbox.context import BuildContext
from rbuild.sandbox.runtime import KDIR, MODULE, SRC, Bind, Job
from rbuild.util.folders import remove_tree
from rbuild.util.process import Limits

FRAME = re.compile(
    r"(?<![\w$.])(?P<name>[A-Za-z_$.][\w$.]*)\+0x(?P<offset>[0-9a-f]{1,8})/0x[0-9a-f]{1,8}"
    r"(?: \[(?P<module>\w{1,64})(?: [^\]]*)?\])?"
)
"""A name with an offset, as vsprintf's %pS prints it."""

EXACT = re.compile(r"^\s*(pc :|PC is at|WARNING: )")
"""What names the instruction itself, which a trace begins with; else it is the one after a call."""

KERNEL = "vmlinux"
MAX_INLINED = 4
ENDS_WITHIN_S = 120.0

# A module's sections all begin at 0: linked, each has addresses of its own.
SYMBOLS = f"""
cd {MODULE} || exit
for one in *.ko; do
    [ -f "$one" ] || continue
    "ld.lld$1" --unresolved-symbols=ignore-all -e 0 -o "${{one%.ko}}" "$one" 2>/dev/null &&
        "llvm-nm$1" --defined-only "${{one%.ko}}" | sed "s/^/${{one%.ko}} /"
done
[ ! -f {KDIR}/{KERNEL} ] || "llvm-nm$1" --defined-only {KDIR}/{KERNEL} | sed 's/^/{KERNEL} /'
"""
LINES = f"""
cd {MODULE} || exit
for one in *.at; do
    object=${{one%.at}}
    [ "$object" != {KERNEL} ] || object={KDIR}/{KERNEL}
    "llvm-symbolizer$1" --output-style=JSON --obj="$object" <"$one"
done
"""
NAMES = f'exec "llvm-cxxfilt$1" <{MODULE}/report'


def readable(
    lines: Sequence[str], modules: Iterable[Path], kdir: Kdir, context: BuildContext
) -> list[str]:
    """Return the lines of a report with demangled names, and files and lines where they are known.

    ``modules`` are those that the kernel had.
    """
    folder = context.run_folder / "trace"
    folder.mkdir(exist_ok=True)
    tracer = _Tracer(kdir, folder, context)
    try:
        found = list(lines)
        if kdir.config.get("DEBUG_INFO") == "y":
            found = tracer.located(found, {path.stem.replace("-", "_"): path for path in modules})
        return tracer.demangled(found)
    finally:
        remove_tree(folder)


@dataclass
class _Tracer:
    """Runs the tools on a folder, which they see as that of a module."""

    kdir: Kdir
    folder: Path
    context: BuildContext
    symbols: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    exact: set[str] = field(default_factory=set)

    def located(self, lines: Sequence[str], modules: Mapping[str, Path]) -> list[str]:
        """Return the lines with the places that the debug information has for their names."""
        wanted: set[tuple[str, str]] = set()
        for line in lines:
            wanted |= {_key(match) for match in FRAME.finditer(line)}
            if EXACT.match(line):
                self.exact |= {match[0] for match in FRAME.finditer(line)}
        named = {name for name, _ in wanted}
        for name in named & modules.keys():
            shutil.copyfile(modules[name], self.folder / f"{name}.ko")
        self._load(wanted)
        asked: dict[str, set[int]] = {}
        for line in lines:
            for match in FRAME.finditer(line):
                if (address := self._address(match)) is not None:
                    asked.setdefault(_key(match)[0], set()).add(address)
        if not asked:
            return list(lines)
        places = self._places(asked)

        def with_place(match: re.Match[str]) -> str:
            place = places.get((_key(match)[0], self._address(match) or 0))
            return match[0] if place is None else f"{match[0]} ({place})"

        return [FRAME.sub(with_place, line) for line in lines]

    def demangled(self, lines: Sequence[str]) -> list[str]:
        """Return the lines with the names of Rust's and C++'s symbols as they are in the source."""
        if not any("_R" in line or "_Z" in line for line in lines):
            return list(lines)
        text = "".join(f"{line}\n" for line in lines)
        (self.folder / "report").write_text(text, encoding="utf-8")
        found = self._run(NAMES)
        return found if len(found) == len(lines) else list(lines)

    def _load(self, wanted: set[tuple[str, str]]) -> None:
        """Find the addresses of names; one that stands for several symbols has several."""
        for line in self._run(SYMBOLS):
            words = line.split()
            if len(words) == 4 and (words[0], words[3]) in wanted:
                self.symbols.setdefault((words[0], words[3]), set()).add(int(words[1], 16))

    def _address(self, match: re.Match[str]) -> int | None:
        found = self.symbols.get(_key(match), set())
        if len(found) != 1:
            return None
        return next(iter(found)) + int(match["offset"], 16) - (match[0] not in self.exact)

    def _places(self, asked: Mapping[str, set[int]]) -> dict[tuple[str, int], str]:
        for name, addresses in asked.items():
            text = "".join(f"{address:#x}\n" for address in sorted(addresses))
            (self.folder / f"{name}.at").write_text(text)
        places = {}
        for line in self._run(LINES):
            try:
                answer = json.loads(line)
                where = _where(answer["Symbol"])
                key = Path(answer["ModuleName"]).name, int(answer["Address"], 16)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                continue
            if where:
                places[key] = where
        return places

    def _run(self, script: str) -> list[str]:
        """Return the lines that a script prints; those so far if it fails."""
        ready = self.kdir.ready
        suffix = "" if ready.environment.llvm == "1" else ready.environment.llvm
        binds = [Bind(self.folder, MODULE, writable=True), Bind(self.kdir.path, KDIR)]
        job = Job(["sh", "-c", script, "trace", suffix], binds)
        lines: list[str] = []
        limits = Limits(total_s=ENDS_WITHIN_S)
        with suppress(RbuildError, OSError):
            run_job(
                job,
                ready,
                self.context,
                "Reading the debug information",
                on_line=lines.append,
                check=False,
                limits=limits,
            )
        return lines


def _key(match: re.Match[str]) -> tuple[str, str]:
    return match["module"] or KERNEL, match["name"]


def _where(frames: Sequence[Mapping[str, Any]]) -> str:
    """Return the place of a symbolizer's answer, the innermost of what was inlined first."""
    places = [
        f"{frame['FileName'].removeprefix(f'{SRC}/')}:{frame['Line']}"
        for frame in frames
        if frame["FileName"] and frame["Line"]
    ]
    return " in ".join(dict.fromkeys(places[:MAX_INLINED]))
