"""The packaging environment: Debian's tools for packages and device trees, to be entered."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbuild.provision.jobs import run_job
from rbuild.provision.prepare import prepare_environment
from rbuild.provision.prepared import PreparedEnvironment
from rbuild.sandbox.context import BuildContext
from rbuild.sandbox.runtime import OUT, Bind, Job
from rbuild.specs import environment
from rbuild.util import data
from rbuild.util.hashes import digest
from rbuild.util.process import Completed

DEFINITION = "tools/package.yaml"
"""The environment's definition, in the folder of definitions."""


@dataclass(frozen=True)
class Tools:
    """The packaging environment, ready to be entered by a context."""

    ready: PreparedEnvironment
    context: BuildContext

    def run(
        self, job: Job, title: str, *, check: bool = True, scratch: Collection[Path] = ()
    ) -> Completed:
        """Run a job with its output in the log; raises BuildFailed with the tool's words.

        Without ``check`` a failure is the caller's to look at; ``scratch`` as in ``run_job``.
        """
        context = self.context
        key = digest([job.argv, job.variables, self.ready.inputs, self.ready.runtime.name])
        with context.console.step(title, key=key):
            return run_job(job, self.ready, context, title, check=check, scratch=scratch)

    def run_in(
        self, folder: Path, argv: Sequence[str], title: str, variables: Mapping[str, str]
    ) -> Completed:
        """Run a command in a folder; its parent can be written, as Debian's tools expect.

        The folder is the caller's to remove: see ``run_job``'s ``scratch``.
        """
        binds = [Bind(folder.parent, OUT, writable=True)]
        job = Job(argv, binds, f"{OUT}/{folder.name}", variables)
        return self.run(job, title, scratch=[folder])

    def lint(self, packages: Sequence[Path]) -> None:
        """Let lintian judge packages; raises BuildFailed with what it finds."""
        binds = [Bind(path, f"{OUT}/{path.name}") for path in packages]
        words = ["lintian", "--fail-on", "error,warning", "--tag-display-limit", "0"]
        names = ", ".join(path.name for path in packages)
        job = Job([*words, *(bind.target for bind in binds)], binds, "/tmp")  # noqa: S108
        self.run(job, f"Examining {names}")


def provide(context: BuildContext) -> Tools:
    """Return the packaging environment; raises as ``prepare_environment`` does."""
    path = data.folder("rootfs") / DEFINITION
    ready = prepare_environment(environment.load(str(path)), context.cache, context.runtime)
    return Tools(ready, context)
