"""The docker runtime: a container for each job, on an engine that may be anywhere.

A container is as shut off as bubblewrap's sandbox: no network, a root that can't be written, no
capabilities, the caller's user id.  It ends with rbuild: it holds one end of a connection whose
other end is rbuild's, and ends when that is closed, even by SIGKILL.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import select
import shlex
import signal
import struct
import sys
import termios
import threading
import time
import tty
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rbuild import process
from rbuild.environment import Rootfs
from rbuild.errors import HostLacks, InfrastructureError, ProcessFailed, TimedOut, UsageError
from rbuild.kept import Kept
from rbuild.process import LINE_MOST, TAIL_LINES, Completed, Usage
from rbuild.sandbox import Job, Sandbox, image, seccomp, variables_for
from rbuild.sandbox.archive import User
from rbuild.sandbox.bwrap import CAPABILITIES
from rbuild.sandbox.carrier import Carrier, Shared, bind_mounts
from rbuild.sandbox.cgroup import max_tasks
from rbuild.sandbox.engine import (
    CANNOT_RUN,
    Owner,
    cannot_run,
    connect,
    explained,
    remove_orphans,
    tried,
    ulimits,
)
from rbuild.store import Room, Store, digest, read_json, remove_tree, write_json

if TYPE_CHECKING:
    from docker import DockerClient

TMPFS = {"/tmp": "rw,exec,nosuid,nodev,mode=1777"}  # noqa: S108 - the sandbox's own

FILTER = r"""
use POSIX ();
my $filter = pack 'H*', shift @ARGV;
my %prctl = (x86_64 => 157, aarch64 => 167, armv7l => 172, armv8l => 172);
my $set = $prctl{(POSIX::uname())[4]};
syscall($set, 22, 2, pack('S x![L!] P', length($filter) / 8, $filter), 0, 0) if defined $set;
"""
"""Filters system calls by its first argument, from here on (PR_SET_SECCOMP), besides the engine's
own profile.  QEMU refuses that to emulated programs: they have the engine's profile only."""

PLAIN = (
    FILTER
    + r"""
exec {$ARGV[0]} @ARGV;
print STDERR "$ARGV[0]: $!\n";
POSIX::_exit(127);
"""
)
"""PID 1 of a container on the user's terminal: becomes its arguments."""

KEEPER = (
    """
my $mark = shift @ARGV;
"""
    + FILTER
    + r"""
open STDERR, '>&', \*STDOUT;
my $watch = fork // die;
if (!$watch) {
    close STDOUT;
    close STDERR;
    1 while sysread STDIN, my $byte, 1;
    kill 'KILL', -1;
    POSIX::_exit(0);
}
my $child = fork // die;
if (!$child) {
    delete $ENV{HOSTNAME};
    open STDIN, '<', '/dev/null';
    exec {$ARGV[0]} @ARGV;
    print "$ARGV[0]: $!\n";
    POSIX::_exit(127);
}
my $status = 0;
# Orphans come to PID 1, and count against the container's bound until somebody waits for them.
while ((my $ended = wait) != -1) {
    next if $ended != $child;
    $status = $?;
    last;
}
my %number = (x86_64 => 98, aarch64 => 165, armv7l => 77, armv8l => 77);
my $machine = (POSIX::uname())[4];
my $length = length pack 'l!', 0;
my $usage = "\0" x 256;
my @used = (0) x 5;
my $asked = $number{$machine};
@used = unpack 'l!5', $usage if defined $asked && $length == ($asked == 77 ? 4 : 8)
    && syscall($asked, -1, $usage) == 0;
syswrite STDOUT, "\0$mark $status @used\n";
POSIX::_exit(0);
"""
)
"""PID 1 of a container: runs its arguments, with stdout and stderr in one stream, and says at the
end how they ended and what they used (getrusage(2) of its children).  Once its own input ends,
since rbuild did, so does the container."""

ENGINES = "engines.json"
"""In the Store: what is known of each engine that was used with it."""

ANSWERS_WITHIN_S = 3.0
"""How long an interrupt waits for the engine to say which container it has made."""

FRAME = 8
"""Bytes before each piece of an attached container's output: which stream, and how long."""


@dataclass(frozen=True)
class Limits:
    """What a container may use: ``memory_bytes``, and ``cpus`` processors' worth of time."""

    memory_bytes: int | None = None
    cpus: float | None = None


NO_LIMITS = Limits()
MIN_MEMORY = 6 << 20
"""The bytes that a container must have: Docker refuses fewer."""


def engine_of(store: Store) -> DockerClient | None:
    """Return the client of an engine that may have something of this Store's; None if none has."""
    if not (store.root / ENGINES).exists():
        return None
    try:
        return connect()
    except HostLacks as error:
        store.console.note(f"The images of the Docker engine were not looked at: {error.message}")
        return None


@dataclass
class Docker:
    """Enters sandboxes by containers of a Docker engine, which is connected to when needed."""

    store: Store
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

    def make_rootfs(self, rootfs: Rootfs, root: Path, on_line: Callable[[str], None]) -> None:
        """Make a rootfs by the engine, from the suite's own image."""
        image.export(self.client, rootfs, root, on_line)

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
            words += ["--mount", _mount_option(mount)]
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
        are those of the job and its descendants, as wait4(2) has them.  Raises HostLacks where no
        engine answers or it can't run the rootfs's architecture, InfrastructureError where it
        fails, TimedOut where a limit was reached, ProcessFailed (with ``check``) where the command
        does.
        """
        argv = tuple(str(word) for word in job.argv)
        mark = f"rbuild-{uuid.uuid4().hex}"
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        ending: list[str] = []
        command = ["/usr/bin/perl", "-e", KEEPER, mark, seccomp.program().hex(), *argv]
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
        self, container: _Container, ending: list[str], tail: deque[str], sandbox: Sandbox
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
    ) -> Iterator[_Container]:
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
        carrier = self._carrier(name, platform)
        with carrier.carry((*sandbox.layer, *job.binds)) as mounts:
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
            container = _Container(self.client, made, terminal=terminal)
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
                _Container(self.client, made["Id"], terminal=False).remove()
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
            self._images[sandbox.root] = image.obtain(self.client, sandbox.root, self.store)
        return self._images[sandbox.root]

    def _carrier(self, name: str, platform: str) -> Carrier:
        """Return how files get into this engine's containers: found out once for each engine."""
        known = self.store.root / ENGINES
        mine = f"{self.engine_id} {os.getuid()}"
        # It depends on where the Store is: a copy of this file may be elsewhere.
        place = digest(str(self.store.root.resolve()))
        shared = _shares(read_json(known), mine, place)
        if shared is None:
            # Named as what interrupted runs leave, so that `clean` removes it, too.
            probe = self.store.entry(Room.RUNS, "engines", "probe")
            with self.store.lock(probe):
                folder = self.store.partial(probe)
                try:
                    shared = self._shares_files(name, platform, folder)
                finally:
                    remove_tree(folder)
                answer = {"shares_files": shared, "store": place}
                write_json(known, {**(read_json(known) or {}), mine: answer})
        if shared:
            return Shared()
        from rbuild.sandbox.volumes import Volumes  # noqa: PLC0415 - only for engines elsewhere

        user = User(os.getuid(), os.getgid())
        return Volumes(self.client, name, self.store, user, platform=platform)

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


class _Container:
    """A container, and the connection that it lives as long as."""

    def __init__(self, client: DockerClient, name: str, *, terminal: bool) -> None:
        self._api = client.api
        self._name = name
        self._terminal = terminal
        self._socket: Any = None
        self._limits = process.NO_LIMITS
        self._ends: float | None = None
        self.is_over = False

    def start(self) -> None:
        """Attach to it, so that nothing it says is lost, and start it."""
        how = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        with explained("run a container"):
            self._socket = self._api.attach_socket(self._name, how)
            self._api.start(self._name)

    def output(self, limits: process.Limits = process.NO_LIMITS) -> Iterator[bytes]:
        """Yield what it writes, as it comes, until it ends; raise TimedOut at a limit."""
        self._limits = limits
        self._ends = None if limits.total_s is None else time.monotonic() + limits.total_s
        while header := self._read(FRAME):
            _, length = struct.unpack(">BxxxL", header)
            while length > 0:
                chunk = self._read(min(length, 65536))
                if not chunk:
                    return
                length -= len(chunk)
                yield chunk

    def relay(self) -> None:
        """Connect it with the user's terminal, or with what stands in for one, until it ends."""
        if not self._terminal:
            self._relay()
            return
        previous = signal.signal(signal.SIGWINCH, self._resize)
        settings = termios.tcgetattr(sys.stdin)
        try:
            tty.setraw(sys.stdin, termios.TCSADRAIN)  # what was typed ahead stays
            self._resize()
            self._relay()
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)
            signal.signal(signal.SIGWINCH, previous)

    def wait(self) -> int:
        """Return its exit status."""
        with explained("wait for a container"):
            return int(self._api.wait(self._name)["StatusCode"])

    def remove(self) -> None:
        """End it, if it has not ended, and leave nothing of it."""
        if self.is_over:  # and the engine removes it by itself
            self._close()
            return
        from docker.errors import DockerException  # noqa: PLC0415 - the SDK loads slowly
        from requests.exceptions import RequestException  # noqa: PLC0415

        self._close()
        with contextlib.suppress(DockerException, RequestException):
            self._api.remove_container(self._name, force=True, v=True)

    def _close(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self._socket.close()

    def _relay(self) -> None:
        connection = getattr(self._socket, "_sock", self._socket)
        sources = [connection, sys.stdin.fileno()]
        while True:
            ready, _, _ = select.select(sources, [], [])
            if sys.stdin.fileno() in ready:
                data = os.read(sys.stdin.fileno(), 65536)
                if data:
                    connection.sendall(data)
                else:
                    sources.remove(sys.stdin.fileno())
                    with contextlib.suppress(OSError):
                        connection.shutdown(1)
            if connection in ready:
                chunk = connection.recv(65536) if self._terminal else next(self.output(), b"")
                if not chunk:
                    return
                os.write(sys.stdout.fileno(), chunk)

    def _read(self, count: int) -> bytes:
        """Return ``count`` bytes of the connection, fewer only at its end."""
        connection = getattr(self._socket, "_sock", self._socket)
        take = getattr(connection, "recv", None) or connection.read
        data = b""
        while len(data) < count:
            self._wait_no_longer(connection)
            try:
                chunk = take(count - len(data))
            except TimeoutError as error:
                raise self._timed_out() from error
            if not chunk:
                break
            data += chunk
        return data

    def _wait_no_longer(self, connection: Any) -> None:  # noqa: ANN401 - of whatever kind
        """Let a connection wait as long as the limits allow."""
        left = None if self._ends is None else max(0.001, self._ends - time.monotonic())
        waits = [one for one in (left, self._limits.silence_s) if one is not None]
        if waits and hasattr(connection, "settimeout"):
            connection.settimeout(min(waits))

    def _timed_out(self) -> TimedOut:
        if self._ends is None or time.monotonic() < self._ends:
            assert self._limits.silence_s is not None
            return TimedOut(self._limits.silence_s, silent=True)
        assert self._limits.total_s is not None
        return TimedOut(self._limits.total_s, silent=False)

    def _resize(self, *_: Any) -> None:  # noqa: ANN401 - a signal handler's arguments
        rows, columns = _window()
        from docker.errors import DockerException  # noqa: PLC0415 - the SDK loads slowly

        with contextlib.suppress(DockerException):
            self._api.resize(self._name, rows, columns)


def _shares(known: Mapping[str, Any] | None, mine: str, place: str) -> bool | None:
    """Return whether an engine shares files, as it was kept for ``place``; None if it wasn't."""
    try:
        kept = Kept(known or {}).part(mine)
        return kept.flag("shares_files") if kept.text("store") == place else None
    except ValueError:
        return None


def _mount_option(mount: Mapping[str, Any]) -> str:
    """Return what docker(1) has behind --mount for one of the API's mounts."""
    words = [f"type={mount['Type']}", f"source={mount['Source']}", f"target={mount['Target']}"]
    if mount.get("ReadOnly"):
        words.append("readonly")
    if (mount.get("VolumeOptions") or {}).get("NoCopy"):
        words.append("volume-nocopy")
    return ",".join(words)


def _window() -> tuple[int, int]:
    """Return the rows and columns of the user's terminal."""
    rows, columns = struct.unpack(
        "HHxxxx", fcntl.ioctl(sys.stdin.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
    )
    return rows, columns


def _lines(chunks: Iterator[bytes], mark: str, ending: list[str]) -> Iterator[str]:
    """Yield the lines of a job's output; put its keeper's last words, behind the mark, aside."""
    sought = b"\0" + mark.encode() + b" "
    pending = b""
    for chunk in chunks:
        *lines, pending = (pending + chunk).split(b"\n")
        for raw in lines:
            text, found, words = raw.partition(sought)
            if found:
                ending.append(words.decode("utf-8", "replace"))
            if text or not found:
                yield process.plain(text)
        # The keeper's words come last: a line that is cut here has none.
        while len(pending) > 2 * LINE_MOST:
            yield process.plain(pending[:LINE_MOST])
            pending = pending[LINE_MOST:]
    if pending:
        yield process.plain(pending)
