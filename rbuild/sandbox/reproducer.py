"""A reproducer: how to have a build again, by rbuild and without it.

With rbuild it is one command line with all defaults spelled out.  Without, it is a script of the
plain commands: copying, bubblewrap (or docker) and make, or QEMU.  A script stands beside the
result that it makes, builds in a folder of its own, and leaves the cache as it is.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbuild import __version__
from rbuild.sandbox.runtime import KDIR, MODULE, Bind, Job, Runtime, Sandbox
from rbuild.ui.format import visible

SCRIPT = "reproduce.sh"
WORK = Path("/@work@")
"""Stands in a command for the folder that the script makes to build in."""

NEEDS = {
    "bwrap": "bubblewrap",
    "docker": "a Docker engine that has its image and sees this host's files",
}
"""What runs a script's commands, by the name of the runtime."""

HEAD = """\
#!/bin/sh
# {title}
# With rbuild {version} the result came from:
#   {line}
# This does the same without it, in a folder of its own.  It needs
# {needs},
# and rbuild's cache directory as it was, or a copy of it as first argument.
set -eu
cache=$(realpath "${{1:-{cache}}}")
work=$(mktemp -d)
echo "Building in $work"
"""
FOOT = """
find "$work" -name '*.ko' -newer "$work/.begun" -exec sha256sum {} +
"""


@dataclass(frozen=True)
class Recipe:
    """What a script is made of: where commands are run, and how."""

    cache: Path
    runtime: Runtime
    sandbox: Sandbox

    def run(self, job: Job) -> str:
        """Return the line that runs a job, in which WORK may stand for a bind's source."""
        return self.words(self.runtime.argv(self.sandbox, job))

    def words(self, argv: Iterable[str]) -> str:
        """Return a command line for the script: the cache and WORK are variables there."""
        return " ".join(self.word(str(word)) for word in argv)

    def word(self, word: str) -> str:
        """Return one word for the script."""
        if not word:
            return "''"
        return _filled(word, [(str(WORK), '"$work"'), (str(self.cache), '"$cache"')])

    def kernel(self, kdir: Path, jobs: Sequence[Job]) -> list[str]:
        """Return the lines that build a kernel with a KDIR's configuration."""
        own = WORK / "kdir"
        lines = [
            "# The kernel, with the configuration that it has.",
            self.words(["mkdir", str(own)]),
            self.words(["cp", str(kdir / ".config"), str(own)]),
        ]
        return [*lines, *(self.run(_moved(job, {KDIR: own})) for job in jobs)]

    def module(self, origin: Path, files: Sequence[Path], job: Job) -> list[str]:
        """Return the lines that build an out-of-tree module of these files against a KDIR."""
        own = WORK / "module"
        return [
            "# The module: its sources are copied, the KDIR is only read.",
            self.words(["mkdir", str(own)]),
            *self._copied(origin, files, own),
            self.run(_moved(job, {MODULE: own})),
        ]

    def in_tree(
        self, origin: Path, files: Sequence[Path], kdir: Path, outputs: Path, job: Job, target: str
    ) -> list[str]:
        """Return the lines that build a driver as a part of the tree, in a copy of a KDIR.

        ``target`` is where the driver's folder of the tree is in a sandbox.
        """
        sources, own = WORK / "sources", WORK / "kdir"
        return [
            "# The driver, in a copy of the KDIR without what was built of it.",
            self.words(["mkdir", str(sources)]),
            *self._copied(origin, files, sources),
            self.words(["cp", "-a", str(kdir), str(own)]),
            self.words(["rm", "-rf", str(own / outputs.relative_to(kdir))]),
            self.run(_moved(job, {KDIR: own, target: sources})),
        ]

    def _copied(self, origin: Path, files: Sequence[Path], target: Path) -> list[str]:
        names = self.words(f"./{path}" for path in files)
        return [
            f"(cd {self.word(str(origin))} && cp -L --parents -- {names} {self.word(str(target))})"
        ]


def write(recipe: Recipe, title: str, line: str, lines: Sequence[str], path: Path) -> Path | None:
    """Write a script of these lines; return its path, or None where it can't be written."""
    head = HEAD.format(
        title=visible(title),
        version=__version__,
        line=visible(line),
        needs=NEEDS[recipe.runtime.name],
        cache=str(recipe.cache),
    )
    text = head + "\n".join(['touch "$work/.begun"', *lines]) + FOOT
    content = text.encode(errors="surrogateescape")
    # Results are looked up without their lock: another rbuild may write it at the same time.
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if not path.exists() or path.read_bytes() != content:
            aside.write_bytes(content)
            aside.chmod(0o755)
            aside.replace(path)
    except OSError:
        return None  # the result itself is no worse for it
    return path


def guest(argv: Sequence[str], title: str, line: str, path: Path) -> Path:
    """Write a script that boots a guest again; return its path."""
    text = (
        f"#!/bin/sh\n# {visible(title)}\n# With rbuild {__version__} the result came from:\n"
        f"#   {visible(line)}\n"
        f"# This boots the same files.\nexec {shlex.join(argv)}\n"
    )
    path.write_text(text)
    path.chmod(0o755)
    return path


def _moved(job: Job, places: Mapping[str, Path]) -> Job:
    """Return a job that has other folders at these targets, to write in."""
    binds = [
        Bind(places[bind.target], bind.target, bind.writable) if bind.target in places else bind
        for bind in job.binds
    ]
    return Job(job.argv, binds, job.cwd, job.variables, job.network)


def _filled(word: str, variables: Sequence[tuple[str, str]]) -> str:
    """Return a word quoted for a shell, in which paths that are variables stand as those."""
    if not variables:
        return shlex.quote(word) if word else ""
    (path, variable), *others = variables
    parts = [_filled(part, others) for part in word.split(path)]
    return variable.join(parts)
