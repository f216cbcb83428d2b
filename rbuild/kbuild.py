"""Kbuild: the one place that knows the kernel's make variables, its output and its errors.

The variables are described in the kernel's Documentation/kbuild/kbuild.rst and, for LLVM and
Rust, in Documentation/kbuild/llvm.rst and Documentation/rust/quick-start.rst.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from rbuild import ccache, memory, outputs, process
from rbuild.architecture import Kernel
from rbuild.console import several
from rbuild.errors import FREE_SPACE, BuildFailed, InfrastructureError, ProcessFailed, TimedOut
from rbuild.process import Usage
from rbuild.profile import CONFIG_MOST
from rbuild.provision import Ready
from rbuild.sandbox import KDIR, MODULE, SRC, Bind, Job
from rbuild.sandbox.cgroup import max_tasks
from rbuild.session import CacheUse, Session
from rbuild.source import IN_TREE_FOLDER, Tree
from rbuild.store import digest, full, is_full, sha256_file
from rbuild.textfile import read_text

OBJECT = re.compile(r"^  (?P<what>[A-Z][A-Z0-9_]*(?: [A-Z]+)?) +(?:\[M\] +)?(?P<file>[^\s:]+)$")
"""A line with which Kbuild announces a command, such as ``  CC [M]  drivers/spi/spi.o``."""

ERROR = re.compile(
    r"\berror(\[E\d+\])?:|^ERROR: |\*\*\* |undefined (symbol|reference)|"
    r"No space left on device|^Killed\b|terminated by signal"
)
NOISE = re.compile(r"^(make(\[\d+\])?: (\*\*\*|Entering|Leaving)|  [A-Z][A-Z0-9_ ]+ \S+$)")

UNREAD = re.compile(
    "Documentation|drivers|fs|net|samples|sound|tools|arch/(?!arm$|arm64$).*|usr/(share|src)|var"
)
"""The parts of a tree, and of a rootfs, of which an external module's build reads nothing."""

CONTEXT_LINES = 8
"""How many lines before an error are shown with it, as far as Kbuild's own allow."""


def variables(ready: Ready, tree: Tree) -> dict[str, str]:
    """Return the make variables of every call: tools, and all that would vary by itself."""
    return {
        "ARCH": ready.environment.target.target.arch,
        "LLVM": ready.environment.llvm,
        # Host programs, too, by LLVM's linker: a hybrid's own ld is of its other architecture.
        "HOSTLDFLAGS": "-fuse-ld=lld",
        "KBUILD_BUILD_TIMESTAMP": tree.date.strftime("%a %b %d %H:%M:%S UTC %Y"),
        "KBUILD_BUILD_USER": "rbuild",
        "KBUILD_BUILD_HOST": "rbuild",
        "KBUILD_BUILD_VERSION": "1",
    }


@dataclass(frozen=True)
class Made:
    """A finished make: what it used, and how many commands it announced.

    ``ccache`` is None where ccache was not used.
    """

    usage: Usage
    objects: int
    ccache: CacheUse | None = None


@dataclass(frozen=True)
class Kbuild:
    """A kernel tree and an output directory in an environment: where make can be run.

    ``overlay`` is a folder to be seen as the driver's folder of the tree, in an in-tree build;
    ``edits`` are single files to be seen instead of the tree's; ``jobs`` is make's -j, where it
    isn't the session's; ``share`` is the ccache that it uses, if any.
    """

    session: Session
    ready: Ready
    tree: Tree
    kdir: Path
    overlay: Path | None = None
    edits: tuple[Bind, ...] = ()
    jobs: int | None = None
    share: ccache.Share | None = None

    def job(
        self,
        targets: Sequence[str],
        *,
        module: Path | None = None,
        extra: Sequence[str] = (),
    ) -> Job:
        """Return the call of make for ``targets``, with ``module`` as external module if given."""
        words = ["make", "-C", SRC, f"O={KDIR}", f"-j{self.jobs or self.session.jobs}"]
        words += [f"{name}={value}" for name, value in variables(self.ready, self.tree).items()]
        if module is not None:
            words.append(f"M={MODULE}")
        return Job([*words, *extra, *targets], self.binds(module), SRC, self.environment())

    def binds(self, module: Path | None = None) -> list[Bind]:
        """Return what a build sees: an external module's build only reads the KDIR."""
        binds = [Bind(self.tree.path, SRC), Bind(self.kdir, KDIR, writable=module is None)]
        if self.overlay is not None:
            binds.append(Bind(self.overlay, f"{SRC}/{IN_TREE_FOLDER}"))
        binds += self.edits
        if module is not None:
            binds.append(Bind(module, MODULE, writable=True))
        return binds

    def environment(self) -> dict[str, str]:
        """Return the environment variables of a build: the environment's, and the source's date."""
        own = self.ready.environment.variables
        return {**own, "SOURCE_DATE_EPOCH": str(int(self.tree.date.timestamp()))}

    def make(
        self,
        title: str,
        targets: Sequence[str],
        *,
        expected: int | None = None,
        module: Path | None = None,
        extra: Sequence[str] = (),
    ) -> Made:
        """Run make with live progress.

        Raises BuildFailed with the compiler's words and the log's path, or InfrastructureError
        if the disk is full.
        """
        job = self.job(targets, module=module, extra=extra)
        console = self.session.console
        objects = 0
        last = ""
        killed = memory.kills()
        words = Words()
        with (
            self._checked(module),
            console.step(title, total=expected, key=self._key(targets, module)) as step,
            self.session.log() as log,
            ccache.opened(self.ready, self.session, self.share) as cache,
        ):
            if cache is not None:
                job = cache.around(job)

            def watch(line: str) -> None:
                nonlocal objects, last
                console.verbose(line)
                words.add(line)
                if found := OBJECT.match(line):
                    objects += 1
                    last = f"{found['what']} {found['file']}"
                    step.update(last, done=objects)

            try:
                with _settled(job, title, self.session.log_path):
                    done = self.ready.runtime.run(
                        self.ready.sandbox, job, on_line=watch, log=log, limits=self.session.limits
                    )
            except ProcessFailed as error:
                ran_out = memory.kills() > killed
                raise explain(
                    error, title, self.session.log_path, ran_out=ran_out, words=words
                ) from error
            except TimedOut as error:
                raise _hung(error, title, last, self.session.log_path) from error
            return Made(done.usage, objects, cache.use() if cache is not None else None)

    def _checked(self, module: Path | None) -> AbstractContextManager[None]:
        """Return the check of what a make relies on: before it, or beside an external module's.

        What that leaves is taken only if all was in order; a kernel's build would go on from it.
        """
        if module is not None:
            return self.session.store.checking(UNREAD)
        self.session.store.check()
        return nullcontext()

    def _key(self, targets: Sequence[str], module: Path | None) -> str:
        """Return what decides how long a make takes, besides what its title tells.

        A KDIR's name has most of it hashed, but not that of an output directory of ``bench``.
        """
        kdir = self.kdir.parent.name.removeprefix(".").removesuffix(".partial")
        config = self.kdir / ".config"
        content = sha256_file(config) if config.is_file() else ""
        limits = [self.session.settled.get(name) for name in ("memory", "cpus")]
        of = digest([self.tree.key, self.ready.inputs, content, limits])
        source = "" if module is None else f"{module.parent.name} "
        jobs = self.jobs or self.session.jobs
        cached = " ccache" if self.session.ccache else ""
        runtime = self.ready.runtime.name
        return f"{kdir} {of} {source}{' '.join(targets)} -j{jobs} {runtime}{cached}"

    def run(self, argv: Sequence[str], title: str, *, module: Path | None = None) -> str:
        """Run a short command where make would run; return what it prints."""
        job = Job(argv, self.binds(module), KDIR, self.environment())
        return self.do(job, title, external=module is not None)

    def do(self, job: Job, title: str, *, external: bool = False) -> str:
        """Run a job that was made of this one's; return what it prints, and log it.

        One that is ``external`` reads no more of the tree than an external module's build does.
        """
        session = self.session
        session.store.check(UNREAD if external else None)
        killed = memory.kills()
        words = Words()

        def watch(line: str) -> None:
            session.console.verbose(line)
            words.add(line)

        with session.log() as log:
            try:
                with _settled(job, title, session.log_path):
                    return self.ready.runtime.run(
                        self.ready.sandbox,
                        job,
                        on_line=watch,
                        log=log,
                        limits=session.limits,
                    ).text
            except ProcessFailed as error:
                ran_out = memory.kills() > killed
                raise explain(
                    error, title, session.log_path, ran_out=ran_out, words=words
                ) from error
            except TimedOut as error:
                raise _hung(error, title, "", session.log_path) from error


@contextmanager
def _settled(job: Job, title: str, log: Path) -> Iterator[None]:
    """Look at what the body leaves where a job may write, however it ends.

    Raises BuildFailed if it is what no build needs to leave.
    """
    faults: list[str] = []
    try:
        yield
    finally:
        for bind in job.binds:
            if bind.writable and bind.source.is_dir():
                faults += outputs.settle(bind.source)
    if faults:
        raise BuildFailed(
            f"{title} left what isn't taken from a build: {several(faults)}.",
            log=log,
            hint="It was removed, or made harmless. Look at what the Makefile does.",
        )


def _hung(error: TimedOut, title: str, last: str, log: Path) -> BuildFailed:
    """Say what a build was at when it had to be ended."""
    what = "wrote nothing" if error.silent else "was not done"
    at = f" The last that it began: {last}." if last else ""
    return BuildFailed(
        f"{title} {what} for {error.seconds:g} s, and was ended.{at}",
        log=log,
        hint="--timeout says how many seconds it may take; under emulation some programs hang.",
    )


NO_FORK = re.compile(
    r"(?i)(fork|spawn|thread|clone)[^\n]*resource temporarily unavailable|cannot fork"
)
"""What programs say that can't start a process or thread (EAGAIN, fork(2)), rustc and QEMU too."""

UNWRITTEN = re.compile(r"^\*\*\* Error (during|while) .*configuration", re.M)
"""What Kconfig says when it can't write what it made."""


def explain(
    error: ProcessFailed,
    title: str,
    log: Path,
    *,
    ran_out: bool = False,
    words: Words | None = None,
) -> BuildFailed | InfrastructureError:
    """Turn a failed make into an error that ends in the compiler's own words.

    ``words`` has heard all of its output, of which the error has only the end.  With ``ran_out``
    the kernel has killed a process for want of memory meanwhile.
    """
    first = [] if words is None else words.lines
    output = [*first, *error.tail]
    detail = "\n".join(first or compiler_words(error.tail))
    if found := memory.killed(output, ran_out=ran_out):
        return InfrastructureError(
            f"{title}: memory ran out, and the kernel killed {found}.",
            detail=detail,
            log=log,
            hint="Fewer jobs at once (-j) need less; --memory sets a container's limit.",
        )
    # Kconfig doesn't say why it can't write (scripts/kconfig/conf.c).
    silent = UNWRITTEN.search(detail) is not None and is_full(log.parent)
    if silent or "No space left on device" in detail:
        return InfrastructureError(
            f"{title}: {full(log.parent)}.",
            detail=detail,
            log=log,
            hint=FREE_SPACE,
        )
    hint = None
    if NO_FORK.search("\n".join(output)):
        hint = (
            f"A process or thread couldn't be started (limit: {max_tasks()} per build). Reduce -j."
        )
    if error.returncode < 0:
        hint = f"It was ended by signal {-error.returncode}; 9 may mean that memory ran out."
    return BuildFailed(f"{title} failed.", detail=detail, log=log, hint=hint)


@dataclass
class Words:
    """The part of make's output that says what went wrong: from the first error on.

    It is kept while make runs: any number of lines may follow the first error.
    """

    most: int = 60
    lines: list[str] = field(default_factory=list)
    _before: deque[str] = field(default_factory=lambda: deque(maxlen=CONTEXT_LINES))

    def add(self, line: str) -> None:
        """Take the next line of the output."""
        if len(self.lines) >= self.most:
            return
        if NOISE.match(line) or OBJECT.match(line):
            self._before.clear()
        elif self.lines:
            self.lines.append(line)
        elif ERROR.search(line):
            # What stands just before an error often explains it: the files through which a header
            # was reached, or the linker's words before those of the compiler that called it.
            self.lines += [*self._before, line]
        else:
            self._before.append(line)


def compiler_words(lines: Sequence[str], most: int = 60) -> list[str]:
    """Return the part of make's output that says what went wrong, or else its last lines."""
    words = Words(most)
    for line in lines:
        words.add(line)
    return words.lines or list(lines[-15:])


OPTION = re.compile(
    r"^[ \t]*(?:CONFIG_(?P<set>\w+)=(?P<value>.*)|# CONFIG_(?P<unset>\w+) is not set)", re.MULTILINE
)


def read_config(text: str) -> dict[str, str]:
    """Return the options of a .config or a fragment, without CONFIG_; an unset one is ``n``."""
    return {
        found["set"] or found["unset"]: "n" if found["unset"] else found["value"].rstrip()
        for found in OPTION.finditer(text)
    }


TYPE = re.compile(r"^\s+(?:def_)?(bool|tristate|string|int|hex)\b", re.MULTILINE)
NEXT = re.compile(r"^\s*(?:menu)?config\s", re.MULTILINE)
QUOTABLE = re.compile(r'CONFIG_(\w+)=(?:"([0-9a-fA-F]+)"|([^"\n]+))')
"""A line whose value has quotes or none by its option's type: it may be a number or a text."""


def quote(fragment: str, tree: Path) -> str:
    """Return a fragment whose values have quotes as Kconfig wants them: strings alone.

    An option that the tree lacks stays as it is, and is refused later on.
    """
    matches = [QUOTABLE.fullmatch(line) for line in fragment.splitlines()]
    types = types_of({one[1] for one in matches if one is not None}, tree)
    lines = []
    for line, match in zip(fragment.splitlines(), matches, strict=True):
        kind = "" if match is None else types.get(match[1], "")
        if match is None or not kind:
            lines.append(line)
        else:
            value = match[2] or match[3]
            lines.append(f"CONFIG_{match[1]}=" + (f'"{value}"' if kind == "string" else value))
    return "".join(f"{line}\n" for line in lines)


def types_of(options: Collection[str], tree: Path) -> dict[str, str]:
    """Return the types of options that a tree defines: bool, tristate, string, int or hex."""
    if not options:
        return {}
    found: dict[str, str] = {}
    names = "|".join(map(re.escape, sorted(options)))
    opening = re.compile(rf"^\s*(?:menu)?config\s+({names})\s*$", re.MULTILINE)
    listed = process.output(["find", str(tree), "-name", "Kconfig*", "-type", "f", "-print0"])
    for path in sorted(listed.split(b"\0")[:-1]):
        text = read_text(Path(os.fsdecode(path)), limit=CONFIG_MOST, decoding="replace")
        for match in opening.finditer(text):
            below = TYPE.search(text, match.end())
            following = NEXT.search(text, match.end())
            if below is None or (following is not None and following.start() < below.start()):
                continue  # another definition has its type
            found.setdefault(match[1], below[1])
    return found


@dataclass(frozen=True)
class Unmet:
    """An option that a fragment asks for and Kconfig didn't grant."""

    option: str
    asked: str
    got: str
    where: str = ""
    depends: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        text = f"CONFIG_{self.option}: asked for {self.asked}, got {self.got}"
        if not self.where:
            return f"{text} (this kernel has no such option)"
        needs = "".join(f"\n    depends on {line}" for line in self.depends)
        return f"{text} ({self.where}){needs}"


def unmet(asked: dict[str, str], got: dict[str, str]) -> list[Unmet]:
    """Return what was asked and not granted; an option that isn't in the result counts as n."""
    return [
        Unmet(option, value, got.get(option, "n"))
        for option, value in sorted(asked.items())
        if got.get(option, "n") != value
    ]


def locate(option: str, tree: Path) -> tuple[str, tuple[str, ...]]:
    """Return where a tree defines an option (file:line) and its ``depends on`` lines."""
    opening = re.compile(rf"^\s*(?:menu)?config {re.escape(option)}\s*$")
    for path in sorted(tree.rglob("Kconfig*")):
        lines = read_text(path, limit=CONFIG_MOST, decoding="replace").splitlines()
        for number, line in enumerate(lines):
            if opening.match(line):
                block: list[str] = []
                for below in lines[number + 1 :]:
                    if re.match(r"\S", below) and not below.startswith("#"):
                        break
                    if found := re.match(r"\s+depends on (.*)", below):
                        block.append(found[1].rstrip("\\ "))
                return f"{path.relative_to(tree)}:{number + 1}", tuple(block)
    return "", ()


LAST_S = 30.0
"""How much of a killed make's work is done again."""


CHANGED = re.compile(rb"(-?[0-9.]+) (/.*)", re.DOTALL)
"""When a file was changed, and its path, as find(1) prints them."""


def forget_the_last(build: Path) -> None:
    """Remove the command lines of all targets that a killed make may have left half made.

    Kbuild writes ``.name.cmd`` when ``name`` is made, and makes again what has none.  It doesn't
    ask whether a target is newer than its .cmd file, of an earlier build perhaps, which holds the
    same command line (scripts/Kbuild.include, if_changed).  Some steps, such as the versions of
    symbols, come after the .cmd file.
    """
    words = ["find", str(build), "-name", ".*.cmd", "-type", "f", "-printf", r"%T@ %p\0"]
    *records, rest = process.output(words).split(b"\0")
    matches = [CHANGED.fullmatch(one) for one in records]
    found = [(match[1], match[2]) for match in matches if match is not None]
    if rest or len(found) != len(records):
        raise InfrastructureError(f"find(1) printed what it wasn't asked for, of {build}.")
    newest = max((float(changed) for changed, _ in found), default=0.0)
    for changed, name in found:
        path = Path(os.fsdecode(name))
        target = path.with_name(path.name[1:].removesuffix(".cmd"))
        is_half = target.is_file() and target.stat().st_mtime > path.stat().st_mtime
        if is_half or float(changed) > newest - LAST_S:
            path.unlink()


LIST_MOST = 64 << 20
"""The bytes of the largest text that a build writes and rbuild reads."""


def _read(path: Path) -> str:
    """Return a text that a build has written; raises BuildFailed if it can't be one."""
    return read_text(path, limit=LIST_MOST, decoding="replace", error=BuildFailed)


RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~_-]{0,63}")
"""What uname -r can say: of that, names of folders and packages are made."""


def kernel_release(kdir: Path) -> str:
    """Return what uname -r says of the kernel that a prepared KDIR is of.

    Raises BuildFailed for one that is no release's: a kernel's Makefile may write anything.
    """
    found = _read(kdir / "include/config/kernel.release").strip()
    if not RELEASE.fullmatch(found):
        raise BuildFailed(f"The kernel's release can't be {found[:100]!r}.")
    return found


def config_of(kdir: Path) -> dict[str, str]:
    """Return the options of a KDIR's .config."""
    return read_config(_read(kdir / ".config"))


def listed(path: Path, *, root: str = "") -> list[str]:
    """Return the files that a list of Kbuild's names, such as modules.order; none if there is none.

    They are relative to where make ran, or to ``root``.  Raises BuildFailed for one that leads
    elsewhere: a module's Makefile may write anything.
    """
    if not path.is_file():
        return []
    names = [one.removeprefix(root) for one in _read(path).split()]
    for name in names:
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or not place.name or "\0" in name:
            raise BuildFailed(f"{path.name} names {name[:100]!r}, which no build makes.")
    return names


def vermagic(release: str, config: Mapping[str, str], kernel: Kernel) -> str:
    """Return the vermagic of modules for a kernel, as include/linux/vermagic.h composes it."""
    words = [release]
    if config.get("SMP") == "y":
        words.append("SMP")
    if config.get("PREEMPT_BUILD") == "y":
        words.append("preempt")
    elif config.get("PREEMPT_RT") == "y":
        words.append("preempt_rt")
    if config.get("MODULE_UNLOAD") == "y":
        words.append("mod_unload")
    if config.get("MODVERSIONS") == "y":
        words.append("modversions")
    return " ".join([*words, *(one.word for one in kernel.vermagic if one.applies(config))])
