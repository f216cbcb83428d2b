"""The docker runtime: a container for each job, on an engine that may be anywhere.

A container is as shut off as bubblewrap's sandbox: no network, a root that can't be written, no
capabilities, the caller's user id.  It ends with rbuild: it holds one end of a connection whose
other end is rbuild's, and ends when that is closed, even by SIGKILL.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rbuild.cache.directory import Cache
from rbuild.cache.entry import EntryKind
from rbuild.cache.records import Record, Text
from rbuild.errors import InfrastructureError, ProcessFailed, UsageError
from rbuild.sandbox import seccomp
from rbuild.sandbox.bwrap import CAPABILITIES
from rbuild.sandbox.cgroup import max_tasks
from rbuild.sandbox.docker import image
from rbuild.sandbox.docker.archive import User
from rbuild.sandbox.docker.container import JobContainer, _lines, _window
from rbuild.sandbox.docker.engine import (
    CANNOT_RUN,
    ENGINES,
    Owner,
    cannot_run,
    connect,
    explained,
    remove_orphans,
    tried,
    ulimits,
)
from rbuild.sandbox.docker.isolation import INIT, PLAIN, TMPFS, mount_option
from rbuild.sandbox.docker.transport import FileTransport, Shared, bind_mounts
from rbuild.sandbox.runtime import Job, Sandbox, variables_for
from rbuild.util import process
from rbuild.util.files import read_json, write_json
from rbuild.util.folders import remove_tree
from rbuild.util.hashes import digest
from rbuild.util.process import TAIL_LINES, Completed, Usage

if TYPE_CHECKING:
    from docker import DockerClient


ANSWERS_WITHIN_S = 3.0
"""How long an interrupt waits for the engine to say which container it has made."""


@dataclass(frozen=True)
class Limits:
    """What a container may use: ``memory_bytes``, and ``cpus`` processors' worth of time."""

    memory_bytes: int | None = None
    cpus: float | None = None


NO_LIMITS = Limits()
MIN_MEMORY = 6 << 20
"""The bytes that a container must have: Docker refuses fewer."""


@dataclass
class Docker:
    """Enters sandboxes by containers of a Docker engine, which is connected to when needed."""

    cache: Cache
    limits: Limits = NO_LIMITS
    name: str = "docker"
    _images: dict[Path, tuple[str, str]] = field(default_factory=dict, init=False)

    @functools.cached_property
    def client(self) -> DockerClient:
        """The engine's client; what earlier, killed rbuilds left there is removed first."""
        client = connect()
        with explained("list containers"):
            remove_orphans(client)
        return client

    @functools.cached_property
    def engine_id(self) -> str:
        """What tells this engine from others."""
        with explained("describe itself"):
            found = self.client.api.info()
        return str(found.get("ID") or found.get("Name"))

    def must_have_cpus(self) -> None:
        """Raise UsageError if the engine has fewer processors than its limit says."""
        with explained("describe itself"):
            found = self.client.api.info().get("NCPU")
        wanted = self.limits.cpus
        if wanted is not None and isinstance(found, int) and 0 < found < wanted:
            count = "one processor" if found == 1 else f"{found} processors"
            raise UsageError(f"--cpus {wanted:g}: the Docker engine has {count}.")

    def prepare(self, sandbox: Sandbox) -> None:
        """Make the image of a sandbox's rootfs, unless the engine has it."""
        self._image(sandbox)

    def argv(self, sandbox: Sandbox, job: Job) -> list[str]:
        """Return the command line of docker(1) that runs a job in the same way.

        Files are bind mounts: for an engine that sees this host's.
        """
        return self._words(sandbox, job, bind_mounts((*sandbox.layer, *job.binds)))

    def _words(self, sandbox: Sandbox, job: Job, mounts: Sequence[Mapping[str, Any]]) -> list[str]:
        name, platform = self._image(sandbox)
        options = self._options(sandbox, job)
        words = ["docker", "run", "--rm", "--platform", platform, "--hostname", "rbuild"]
        words += ["--network", options["network_mode"], "--user", options["user"]]
        words += ["--read-only"] if options["read_only"] else []
        words += ["--log-driver", options["log_config"]["Type"]]
        words += ["--pids-limit", str(options["pids_limit"])]
        for limit in options["ulimits"]:
            words += ["--ulimit", f"{limit['Name']}={limit['Soft']}:{limit['Hard']}"]
        words += [word for name in options["cap_drop"] for word in ("--cap-drop", name)]
        words += [word for name in options["cap_add"] for word in ("--cap-add", name)]
        words += [word for name in options["security_opt"] for word in ("--security-opt", name)]
        words += [word for path, how in TMPFS.items() for word in ("--tmpfs", f"{path}:{how}")]
        if self.limits.memory_bytes is not None:
            words += ["--memory", str(self.limits.memory_bytes)]
        if self.limits.cpus is not None:
            words += ["--cpus", str(self.limits.cpus)]
        for key, value in variables_for(sandbox, job).items():
            words += ["--env", f"{key}={value}"]
        for mount in mounts:
            words += ["--mount", mount_option(mount)]
        return [*words, "--workdir", job.cwd, name, *job.argv]

    def run(
        self,
        sandbox: Sandbox,
        job: Job,
        *,
        on_line: Callable[[str], None] | None = None,
        log: IO[str] | None = None,
        check: bool = True,
        limits: process.Limits = process.NO_LIMITS,
    ) -> Completed:
        """Run a job to its end.

        The usage's wall time is that of the whole container, from asking for it; its other figures
        are those of the job and its descendants, as wait4(2) has them.  Raises MissingDependency
        where no engine answers or it can't run the rootfs's architecture, InfrastructureError
        where it fails, TimedOut where a limit was reached, ProcessFailed (with ``check``) where
        the command does.
        """
        argv = tuple(str(word) for word in job.argv)
        mark = f"rbuild-{uuid.uuid4().hex}"
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        ending: list[str] = []
        command = ["/usr/bin/perl", "-e", INIT, mark, seccomp.program().hex(), *argv]
        started = time.monotonic()
        with self._container(sandbox, job, command, log=log) as container:
            for line in _lines(container.output(limits), mark, ending):
                tail.append(line)
                if log is not None:
                    log.write(line + "\n")
                if on_line is not None:
                    on_line(line)
            status, used = self._ended(container, ending, tail, sandbox)
        usage = Usage(time.monotonic() - started, *used)
        if log is not None:
            log.flush()
        done = Completed(argv, status, usage, tuple(tail))
        if check and status != 0:
            raise ProcessFailed(argv, status, done.tail)
        return done

    def interactive(self, sandbox: Sandbox, job: Job) -> int:
        """Run a job on the user's terminal, through one that the engine makes."""
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
        command = ["/usr/bin/perl", "-e", PLAIN, seccomp.program().hex(), *job.argv]
        with self._container(sandbox, job, command, attached=True, terminal=terminal) as container:
            container.relay()
            return container.wait()

    def _ended(
        self, container: JobContainer, ending: list[str], tail: deque[str], sandbox: Sandbox
    ) -> tuple[int, tuple[float, float, int]]:
        """Return a job's exit status and usage from its keeper's last words."""
        if not ending:
            if tail and CANNOT_RUN.search(tail[-1]):
                raise cannot_run()
            raise InfrastructureError(
                f"The container of {sandbox.name} was ended from outside, or ran out of memory.",
                detail="\n".join(list(tail)[-5:]),
                hint="--memory says how much it may use; the engine may have been restarted.",
            )
        container.is_over = True
        try:
            number, *used = [int(word) for word in ending[0].split()]
            status = os.waitstatus_to_exitcode(number)
            user = used[0] + used[1] / 1e6
            system = used[2] + used[3] / 1e6
            return status, (user, system, used[4] * 1024)
        except (ValueError, IndexError, OverflowError) as error:  # the job may write there, too
            raise InfrastructureError(
                f"How the job in {sandbox.name} ended can't be told: {ending[0][:100]!r}."
            ) from error

    @contextlib.contextmanager
    def _container(
        self,
        sandbox: Sandbox,
        job: Job,
        command: list[str],
        *,
        attached: bool = False,
        terminal: bool = False,
        log: IO[str] | None = None,
    ) -> Iterator[JobContainer]:
        """Have a container that runs a command while the body does, and no longer.

        One that is ``attached`` to the user's own streams stays until its status was asked for.
        The ``log`` gets the command line of docker(1) that does the same.
        """
        if sandbox.interpreter is not None:
            raise UsageError(
                f"{sandbox.name} brings an emulator of its own, which a container can't register.",
                hint="--runtime bwrap can.",
            )
        name, platform = self._image(sandbox)
        transport = self._transport(name, platform)
        with transport.mount((*sandbox.layer, *job.binds)) as mounts:
            if log is not None:
                log.write(f"$ {shlex.join(self._words(sandbox, job, mounts))}\n")
                log.flush()
            api = self.client.api
            options = self._options(sandbox, job)
            user = options.pop("user")
            how = api.create_host_config(
                auto_remove=not attached, mounts=mounts, tmpfs=TMPFS, **options
            )
            if terminal:
                # The SDK doesn't know it yet; an engine before API 1.42 passes over it.
                how["ConsoleSize"] = list(_window())
            create = functools.partial(
                api.create_container,
                name,
                command,
                hostname="rbuild",
                user=user,
                environment=variables_for(sandbox, job),
                working_dir=job.cwd,
                labels=Owner.this().labels(),
                stdin_open=True,
                tty=terminal,
                platform=platform,
                # Nothing of an image's own: a rootfs's has none, the suite's has a shell.
                entrypoint=[],
                host_config=how,
            )
            with explained("make a container"):
                made = self._made(create)
            container = JobContainer(self.client, made, terminal=terminal)
            try:
                container.start()
                yield container
            finally:
                container.remove()

    def _made(self, create: Callable[[], Mapping[str, str]]) -> str:
        """Return the id of a new container; none is left if we are interrupted meanwhile.

        The engine is asked in a thread: it makes the container in any case, and only its answer
        tells which it is.
        """
        answer: Future[Mapping[str, str]] = Future()

        def ask() -> None:
            try:
                answer.set_result(create())
            except BaseException as error:  # noqa: BLE001 - whoever waits for it raises it
                answer.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
        try:
            return answer.result()["Id"]
        except KeyboardInterrupt:
            with contextlib.suppress(Exception):  # the next run finds what we can't
                made = answer.result(timeout=ANSWERS_WITHIN_S)
                JobContainer(self.client, made["Id"], terminal=False).remove()
            raise

    def _options(self, sandbox: Sandbox, job: Job) -> dict[str, Any]:
        """Return what locks a container down, by the names that the SDK has for it."""
        scratch = sandbox.scratch is not None
        nano = None if self.limits.cpus is None else int(self.limits.cpus * 1e9)
        return {
            "user": "0:0" if scratch else f"{os.getuid()}:{os.getgid()}",
            "network_mode": "host" if job.network else "none",
            "read_only": not scratch,
            "cap_drop": ["ALL"],
            "cap_add": list(CAPABILITIES) if scratch else [],
            "security_opt": ["no-new-privileges"],
            "mem_limit": self.limits.memory_bytes,
            "nano_cpus": nano,
            "pids_limit": max_tasks(),
            "log_config": {"Type": "none"},
            "ulimits": ulimits(),
        }

    def _image(self, sandbox: Sandbox) -> tuple[str, str]:
        if sandbox.root not in self._images:
            self._images[sandbox.root] = image.obtain(self.client, sandbox.root, self.cache)
        return self._images[sandbox.root]

    def _transport(self, name: str, platform: str) -> FileTransport:
        """Return how files get into this engine's containers: found out once for each engine."""
        known = self.cache.root / ENGINES
        mine = f"{self.engine_id} {os.getuid()}"
        # It depends on where the cache is: a copy of this file may be elsewhere.
        place = digest(str(self.cache.root.resolve()))
        shared = _shares(read_json(known), mine, place)
        if shared is None:
            # Named as what interrupted runs leave, so that `clean` removes it, too.
            probe = self.cache.entry(EntryKind.RUNS, "engines", "probe")
            with self.cache.lock(probe):
                folder = self.cache.partial(probe)
                try:
                    shared = self._shares_files(name, platform, folder)
                finally:
                    remove_tree(folder)
                answer = {"shares_files": shared, "cache": place}
                write_json(known, {**(read_json(known) or {}), mine: answer})
        if shared:
            return Shared()
        from rbuild.sandbox.docker.volumes import Volumes  # noqa: PLC0415 - only for engines elsewhere

        user = User(os.getuid(), os.getgid())
        return Volumes(self.client, name, self.cache, user, platform=platform)

    def _shares_files(self, name: str, platform: str, folder: Path) -> bool:
        """Tell whether the engine sees a file that is made in ``folder``, by a mount of it."""
        from docker.errors import APIError  # noqa: PLC0415 - the SDK loads slowly
        from docker.types import Mount  # noqa: PLC0415

        token = uuid.uuid4().hex
        (folder / "token").write_text(token)
        mount = Mount("/module", str(folder), type="bind", read_only=True)
        try:
            _, said = tried(self.client, name, ["cat", "/module/token"], platform, mounts=[mount])
        except APIError as error:
            if CANNOT_RUN.search(str(error)):
                raise cannot_run() from error
            # Only this tells of an engine elsewhere; what else goes wrong may not the next time.
            if "bind source path does not exist" in str(error):
                return False
            raise InfrastructureError(
                f"The Docker engine can't run a container: {error}"
            ) from error
        if CANNOT_RUN.search(said):
            raise cannot_run()
        return said.strip() == token


class EngineRecord(Record):
    """What is known of an engine: whether it shares files with the host, for which store."""

    shares_files: bool
    cache: Text


def _shares(known: Mapping[str, Any] | None, mine: str, place: str) -> bool | None:
    """Return whether an engine shares files, as it was kept for ``place``; None if it wasn't."""
    record = EngineRecord.read((known or {}).get(mine))
    return record.shares_files if record is not None and record.cache == place else None
