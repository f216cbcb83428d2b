"""What editors need to know of a KDIR and a module, with the host's paths instead of the sandbox's.

The kernel's own scripts say how each file is compiled (compile_commands.json, for clangd) and what
the crates are (rust-project.json, for rust-analyzer).  They run in the environment, where the
tree is /src, the KDIR /kdir and the module /module; here those become the places on the host, and
the module's files those that the user edits.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbuild.cache.directory import Cache
from rbuild.errors import BuildFailed, UsageError
from rbuild.kernel.kbuild import Kbuild
from rbuild.kernel.kdir import Kdir
from rbuild.module.build import build_out_of_tree, place_of
from rbuild.sandbox.context import BuildContext, Phase
from rbuild.sandbox.runtime import KDIR, MODULE, OUT, SRC, Bind, Job
from rbuild.util.export import must_be_writable
from rbuild.util.files import write_json
from rbuild.util.root import Root
from rbuild.util.textfile import read_text

COMMANDS = "compile_commands.json"
PROJECT = "rust-project.json"

GENERATOR = f"{SRC}/scripts/clang-tools/gen_compile_commands.py"

KEEP_PROJECT = f'"$@" && mv {KDIR}/{PROJECT} {OUT}/'
"""Runs make, which knows only one place for the file, and takes it from there."""

FOREIGN = re.compile(
    r"-Wp,-M|-Wa,|-fmacro-prefix-map=|-fstrict-flex-arrays|-fzero-init-padding-bits"
    r"|-ftrivial-auto-var-init|-fconserve-stack|-fno-allow-store-data-races|-fmin-function-alignment|-fplugin"
    r"|-fno-var-tracking|-femit-struct-debug|-mabi=lp64$|-Werror(=|$)"
)
"""Options that don't change what a file means, and that a clangd of another version, or one for
what gcc compiles, doesn't know or would take for a reason to fail."""

PREFIX = re.compile(r"(@|-I|-isystem|-iquote|-include|--sysroot=|-resource-dir=)?(/.*)")
"""A word with a path: the path, and what may stand directly before it."""


@dataclass(frozen=True)
class Places:
    """Where on the host the sandbox's folders are; all others are in the rootfs at ``root``.

    Where more than one place is behind a folder, a file is in the first that has it.
    """

    behind: Mapping[str, Sequence[Path]]
    root: Path

    def host(self, path: str) -> str:
        """Return where a path of the sandbox's is on the host."""
        for folder, places in self.behind.items():
            if path == folder or path.startswith(f"{folder}/"):
                found = [place / path[len(folder) :].lstrip("/") for place in places]
                return str(next((one for one in found if one.exists()), found[0]))
        return f"{self.root}{path}"

    def word(self, word: str) -> str:
        """Return a word of a command line with the host's path."""
        found = PREFIX.fullmatch(word)
        return word if found is None else f"{found[1] or ''}{self.host(found[2])}"

    def within(self, value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
        """Return JSON with the host's paths in all of its texts that are paths."""
        if isinstance(value, str):
            return self.host(value) if value.startswith("/") else value
        if isinstance(value, list):
            return [self.within(one) for one in value]
        if isinstance(value, dict):
            return {name: self.within(one) for name, one in value.items()}
        return value


MAX_PROJECT = 256 << 20
"""The bytes of the largest project file: a whole kernel's has 10 MiB."""


@dataclass(frozen=True)
class Project:
    """What clangd is to know, and what rust-analyzer is, if the module is in Rust."""

    commands: list[dict[str, Any]]
    crates: dict[str, Any] | None


@dataclass(frozen=True)
class Described:
    """A project with the files in which the cache has it.

    ``failure`` is there if the module has faults; ``script`` is a reproducer of its build.
    """

    project: Project
    files: tuple[Path, ...]
    phases: tuple[Phase, ...]
    failure: BuildFailed | None
    script: Path | None


def describe(
    kdir: Kdir, source: Path, context: BuildContext, within: Root | None = None
) -> Described:
    """Build the module in ``source``, and write down how, for editors.

    A module with faults is described as far as it could be compiled.  ``within`` is where its links
    may lead to (see ``build_out_of_tree``).  Raises UsageError if the folder isn't a module's,
    BuildFailed if nothing of it could be compiled.
    """
    source = source.resolve()
    phases: tuple[Phase, ...] = ()
    failure = None
    try:
        built = build_out_of_tree(kdir, source, context, within)
        phases, script = (built.phase,), built.script
    except BuildFailed as error:
        failure, script = error, error.script
    folder = place_of(kdir, source)
    work = folder / "build"
    places = Places(
        {SRC: [kdir.tree.path], KDIR: [kdir.path], MODULE: [source, work]}, kdir.ready.sandbox.root
    )
    own = folder / "ide"
    own.mkdir(parents=True, exist_ok=True)
    project = _generate(kdir, work, places, context)
    mine = any(Path(one["file"]).is_relative_to(source) for one in project.commands)
    if failure is not None and not mine and not any(_crates(work)):
        raise failure
    return Described(project, tuple(_store(project, own)), phases, failure, script)


def _generate(kdir: Kdir, work: Path, places: Places, context: BuildContext) -> Project:
    kbuild = Kbuild(context, kdir.ready, kdir.tree, kdir.path)
    raw = context.run_folder / "ide"
    raw.mkdir(exist_ok=True)
    out = Bind(raw, OUT, writable=True)
    module = Bind(work, MODULE)
    tree, output = Bind(kdir.tree.path, SRC), Bind(kdir.path, KDIR)
    words = ["python3", GENERATOR, "-d", KDIR, "-o", f"{OUT}/{COMMANDS}", KDIR, MODULE]
    jobs = [Job(words, [tree, output, module, out], KDIR, kbuild.environment())]
    has_rust = kdir.config.get("RUST") == "y" and any(_crates(work))
    if has_rust:
        make = kbuild.job(["rust-analyzer"])
        words = ["sh", "-c", KEEP_PROJECT, "sh", *make.argv]
        jobs.append(Job(words, [*make.binds, out], make.cwd, make.variables))
    title = f"Describing {work.parent.name.rpartition('-')[0]} for editors"
    cache = context.cache
    step = context.console.step(title, key=kdir.entry.name)
    with cache.lock(kdir.entry), cache.writing(kdir.entry), step:
        for job in jobs:
            kbuild.do(job, title)
    return understood(raw, work, places, has_rust=has_rust)


def understood(raw: Path, work: Path, places: Places, *, has_rust: bool) -> Project:
    """Return what the kernel's own scripts have written in ``raw``.

    Raises BuildFailed for what can't be understood: a tree's scripts may write anything.
    """
    name = COMMANDS
    try:
        found = json.loads(read_text(raw / COMMANDS, limit=MAX_PROJECT, error=BuildFailed))
        commands = [command(one, places) for one in found]
        if not has_rust:
            return Project(commands, None)
        name = PROJECT
        crates = with_module(
            json.loads(read_text(raw / PROJECT, limit=MAX_PROJECT, error=BuildFailed)), work
        )
        return Project(commands, places.within(crates))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BuildFailed(
            f"The kernel's {name} can't be understood: {type(error).__name__}: {error}."
        ) from error


def command(entry: Mapping[str, str], places: Places) -> dict[str, Any]:
    """Return an entry of compile_commands.json as the host's clangd can use it."""
    compiler, *words = shlex.split(entry["command"])
    if not compiler.startswith("/"):
        compiler = f"/usr/bin/{compiler}"
    flags = [places.word(word) for word in words if not FOREIGN.match(word)]
    return {
        "directory": places.host(entry["directory"]),
        "file": places.host(entry["file"]),
        # An older clangd needn't know all of the warnings that are asked for.
        "arguments": [places.host(compiler), "-Wno-unknown-warning-option", *flags],
    }


def with_module(project: dict[str, Any], work: Path) -> dict[str, Any]:
    """Return a rust-project.json in which the crates of a module stand instead of the drivers'.

    ``make M=... rust-analyzer`` would do that, but in some kernels it doesn't find its Makefile.
    A module's crate is like a driver's, with what its own command line says.
    """
    crates = project["crates"]
    drivers = (f"{SRC}/samples/", f"{SRC}/drivers/")
    models = [one for one in crates if one["root_module"].startswith(drivers)]
    if not models:
        raise BuildFailed("The kernel's rust-project.json has no driver whose crates to go by.")
    flags = [one for one in crates if not one["root_module"].startswith(drivers)]
    # What drivers depend on stands before all of them: no number changes.
    if crates[: len(flags)] != flags:
        raise BuildFailed("In the kernel's rust-project.json, drivers stand before other crates.")
    return {**project, "crates": [*flags, *(_like(models[0], words) for words in _crates(work))]}


def _like(model: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Return a crate like ``model`` for what a command line of rustc's compiles."""
    root = words[-1]
    own = [words[n + 1] for n, word in enumerate(words) if word == "--cfg"]
    own += [word.removeprefix("--cfg=") for word in words if word.startswith("--cfg=")]
    return {
        **model,
        "display_name": Path(root).stem,
        "root_module": root,
        "cfg": [*model["cfg"], *(one for one in own if one not in model["cfg"])],
    }


def _crates(work: Path) -> Iterator[list[str]]:
    """Yield the command line of rustc for each crate of a module, as Kbuild has recorded it."""
    for path in sorted(work.rglob(".*.o.cmd")):
        text = read_text(path, limit=MAX_PROJECT, decoding="surrogateescape", error=BuildFailed)
        line = text.split("\n", 1)[0]
        try:
            words = shlex.split(line.partition(" := ")[2].partition(";")[0])
        except ValueError:  # no line of Kbuild's: a quote in it has no end
            continue
        if "rustc" in words and words[-1].endswith(".rs"):
            inside = words[-1].removeprefix(f"{MODULE}/")
            if (work / inside).is_file():
                yield words


def _store(project: Project, folder: Path) -> Iterator[Path]:
    """Write a project's files, each in one rename; yield where they are."""
    for name, content in ((COMMANDS, project.commands), (PROJECT, project.crates)):
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            write_json(folder / name, content)
            yield folder / name


def write(project: Project, folder: Path, cache: Cache, *, force: bool = False) -> list[Path]:
    """Write a project's files into a folder of the user's; return where they are.

    Raises UsageError where a file is there that rbuild didn't make, unless ``force``.
    """
    for name in (COMMANDS, PROJECT):
        path = folder / name
        if not force and os.path.lexists(path) and not _is_ours(path, cache):
            raise UsageError(
                f"{path} is there already, and rbuild didn't make it.",
                hint="--force replaces it; --output names another folder.",
            )
        if folder.is_dir():
            must_be_writable(path, named=False)
    folder.mkdir(parents=True, exist_ok=True)
    return list(_store(project, folder))


def _is_ours(path: Path, cache: Cache) -> bool:
    """Tell by the tools that it names whether a file is of rbuild's making."""
    try:
        found = json.loads(read_text(path, limit=MAX_PROJECT))
        tool = found[0]["arguments"][0] if path.name == COMMANDS else found["sysroot"]
        return Path(tool).is_relative_to(cache.root)
    except (UsageError, ValueError, LookupError, TypeError, RecursionError):
        return False
