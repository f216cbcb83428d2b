"""Kbuild: the one place that knows the kernel's make variables, its output and its errors.

The variables are described in the kernel's Documentation/kbuild/kbuild.rst and, for LLVM and
Rust, in Documentation/kbuild/llvm.rst and Documentation/rust/quick-start.rst.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rbuild.kernel import ccache
from rbuild.provision.jobs import run_job
from rbuild.provision.prepared import PreparedEnvironment
from rbuild.sandbox.build_output import OBJECT
from rbuild.sandbox.context import BuildContext, CacheUse
from rbuild.sandbox.runtime import KDIR, MODULE, SRC, Bind, Job
from rbuild.source.tree import IN_TREE_FOLDER, Tree
from rbuild.util.hashes import digest, sha256_file
from rbuild.util.process import Usage

UNREAD = re.compile(
    "Documentation|drivers|fs|net|samples|sound|tools|arch/(?!arm$|arm64$).*|usr/(share|src)|var"
)
"""The parts of a tree, and of a rootfs, of which an external module's build reads nothing."""


def variables(ready: PreparedEnvironment, tree: Tree) -> dict[str, str]:
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
class MakeResult:
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
    isn't the context's; ``share`` is the ccache that it uses, if any.
    """

    context: BuildContext
    ready: PreparedEnvironment
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
        words = ["make", "-C", SRC, f"O={KDIR}", f"-j{self.jobs or self.context.jobs}"]
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
    ) -> MakeResult:
        """Run make with live progress.

        Raises BuildFailed with the compiler's words and the log's path, or InfrastructureError
        if the disk is full.
        """
        job = self.job(targets, module=module, extra=extra)
        console = self.context.console
        objects = 0
        last = ""
        with (
            console.step(title, total=expected, key=self._key(targets, module)) as step,
            ccache.opened(self.ready, self.context, self.share) as own_cache,
        ):

            def watch(line: str) -> None:
                nonlocal objects, last
                if found := OBJECT.match(line):
                    objects += 1
                    last = f"{found['what']} {found['file']}"
                    step.update(last, done=objects)

            done = run_job(
                job if own_cache is None else own_cache.around(job),
                self.ready,
                self.context,
                title,
                on_line=watch,
                # A kernel's build would go on from what was made of damaged files.
                beside=module is not None,
                unread=None if module is None else UNREAD,
                at=lambda: last,
            )
            return MakeResult(
                done.usage, objects, own_cache.use() if own_cache is not None else None
            )

    def _key(self, targets: Sequence[str], module: Path | None) -> str:
        """Return what decides how long a make takes, besides what its title tells.

        A KDIR's name has most of it hashed, but not that of an output directory of ``bench``.
        """
        kdir = self.kdir.parent.name.removeprefix(".").removesuffix(".partial")
        config = self.kdir / ".config"
        content = sha256_file(config) if config.is_file() else ""
        limits = [self.context.memory_bytes, self.context.cpus]
        of = digest([self.tree.key, self.ready.inputs, content, limits])
        source = "" if module is None else f"{module.parent.name} "
        jobs = self.jobs or self.context.jobs
        cached = " ccache" if self.context.ccache else ""
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
        unread = UNREAD if external else None
        return run_job(job, self.ready, self.context, title, unread=unread).text
