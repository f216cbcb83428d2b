"""The packaging environment: Debian's tools for packages and device trees, to be entered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbuild import data, environment
from rbuild.errors import BuildFailed, ProcessFailed
from rbuild.kbuild import Words, explain
from rbuild.process import Completed
from rbuild.provision import Ready, make_ready
from rbuild.sandbox import Bind, Job
from rbuild.session import Session
from rbuild.stage import OUT
from rbuild.store import digest

DEFINITION = "tools/package.yaml"
"""The environment's definition, in the folder of definitions."""


@dataclass(frozen=True)
class Tools:
    """The packaging environment, ready to be entered by a session."""

    ready: Ready
    session: Session

    def run(self, job: Job, title: str, *, check: bool = True) -> Completed:
        """Run a job with its output in the log; raises BuildFailed with the tool's words.

        Without ``check`` a failure is the caller's to look at.
        """
        session = self.session
        words = Words()

        def watch(line: str) -> None:
            session.console.verbose(line)
            words.add(line)

        key = digest([job.argv, job.variables, self.ready.inputs, self.ready.runtime.name])
        with session.console.step(title, key=key), session.log() as log:
            try:
                return self.ready.runtime.run(
                    self.ready.sandbox, job, on_line=watch, log=log, check=check
                )
            except ProcessFailed as error:
                failure = explain(error, title, session.log_path, words=words)
                if isinstance(failure, BuildFailed) and not failure.detail:
                    failure.detail = "\n".join(error.tail[-20:])
                raise failure from error

    def run_in(
        self, folder: Path, argv: Sequence[str], title: str, variables: Mapping[str, str]
    ) -> Completed:
        """Run a command in a folder; its parent can be written, as Debian's tools expect."""
        binds = [Bind(folder.parent, OUT, writable=True)]
        return self.run(Job(argv, binds, f"{OUT}/{folder.name}", variables), title)

    def lint(self, packages: Sequence[Path]) -> None:
        """Let lintian judge packages; raises BuildFailed with what it finds."""
        binds = [Bind(path, f"{OUT}/{path.name}") for path in packages]
        words = ["lintian", "--fail-on", "error,warning", "--tag-display-limit", "0"]
        names = ", ".join(path.name for path in packages)
        job = Job([*words, *(bind.target for bind in binds)], binds, "/tmp")  # noqa: S108
        self.run(job, f"Examining {names}")


def provide(session: Session) -> Tools:
    """Return the packaging environment, provisioned if need be; raises as ``make_ready`` does."""
    path = data.folder("rootfs") / DEFINITION
    ready = make_ready(environment.load(str(path)), session.store, session.runtime)
    return Tools(ready, session)
