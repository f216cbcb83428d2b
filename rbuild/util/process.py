"""The one place that starts processes: scrubbed, logged, measured, and ended with their parent."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rbuild.errors import Cancelled, MissingDependency, ProcessFailed, TimedOut
from rbuild.util import data, rusage

TAIL_LINES = 400
"""How many of a program's last lines are kept in memory for a failure's message."""

MAX_LINE = 128 << 10
"""The bytes of the longest line; of one that is longer, or never ends, each such part is a line."""

PIPE_BYTES = 64 << 10
"""How much is read or moved at once: what a pipe holds."""

GRACE_S = 3.0
"""How long a program that is told to end may take before it is killed."""

POLL_S = 0.5
"""How often somebody who may want a program to end is asked."""


@dataclass(frozen=True)
class Usage:
    """What a finished process and all its waited-for descendants used.

    Times are in seconds; ``wall_s`` comes from a monotonic clock, the CPU times from wait4(2).
    ``max_rss_bytes`` is the largest resident set of any single process among them.
    """

    wall_s: float
    user_s: float
    system_s: float
    max_rss_bytes: int


@dataclass(frozen=True)
class Limits:
    """How long a program may take (``total_s``), and be silent (``silence_s``), in seconds."""

    total_s: float | None = None
    silence_s: float | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Completed:
    """A process that has ended, with its last lines of output."""

    argv: tuple[str, ...]
    returncode: int
    usage: Usage
    tail: tuple[str, ...]

    @property
    def text(self) -> str:
        """The kept output as one string."""
        return "\n".join(self.tail)


INHERITED = re.compile(
    "PATH|HOME|USER|LOGNAME|TMPDIR|TERM|LD_LIBRARY_PATH|SSH_AUTH_SOCK|SSL_CERT_(?:FILE|DIR)"
    "|APT_CONFIG|XDG_[A-Z_]+|RBUILD_[A-Z_]+|(?i:[a-z]+_proxy)"
)
"""The caller's variables that a tool is told.  Others change what tools print and do, such as
TAR_OPTIONS, POSIXLY_CORRECT, GIT_TRACE and LD_PRELOAD, or are secrets."""

NOISE = re.compile(
    "LD_(?:PRELOAD|AUDIT|DEBUG.*|BIND_NOT|SHOW_AUXV|TRACE.*)|POSIXLY_CORRECT|RSYNC_.*"
)
"""Variables that not even a program which the user chose, such as ssh, is told."""


def environment(**more: str) -> dict[str, str]:
    """Return the environment that tools have: messages in English, no settings of the caller's."""
    kept = {name: value for name, value in os.environ.items() if INHERITED.fullmatch(name)}
    return {**kept, "LC_ALL": "C.UTF-8", **more}


def callers_environment() -> dict[str, str]:
    """Return the caller's environment for a program that needs it, such as ssh, less its noise."""
    return {name: value for name, value in os.environ.items() if not NOISE.fullmatch(name)}


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    log: IO[str] | None = None,
    check: bool = True,
    limits: Limits = NO_LIMITS,
    stdin: IO[bytes] | None = None,
    ends: bytes = b"\n",
    unwanted: Callable[[], bool] | None = None,
    descriptors: Sequence[int] = (),
    apart: bool = False,
) -> Completed:
    """Run a program to its end, its stdout and stderr together, line by line.

    The program gets no standard input but ``stdin``, a file, and a session of its own, so that
    Ctrl-C reaches rbuild alone, which then ends the program.  Each byte in ``ends`` ends a line.
    It keeps the open ``descriptors``, and has ``environment()`` unless ``env`` is another.  With
    ``apart`` its usage has nothing of rbuild's own: see ``rbuild.util.rusage``.
    Raises MissingDependency if the program isn't there, TimedOut if it had to be ended for its
    limits, Unwanted if ``unwanted`` came to say so, and, with ``check``, ProcessFailed if it ends
    with a status other than 0.
    """
    words = tuple(str(word) for word in argv)
    if log is not None:
        log.write(f"$ {shlex.join(words)}\n")
        log.flush()
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    started = time.monotonic()
    source = subprocess.DEVNULL if stdin is None else stdin
    with rusage.Reporter(words, is_wanted=apart) as reporter:
        more = (*descriptors, *reporter.descriptors)
        child = _start(tuple(reporter.argv), env=env, cwd=cwd, stdin=source, descriptors=more)
        assert child.stdout is not None
        try:
            for line in _lines(child.stdout, limits, ends, unwanted):
                tail.append(line)
                if log is not None:
                    log.write(line + "\n")
                if on_line is not None:
                    on_line(line)
            usage = _reap(child, started, reporter)
        except BaseException:
            terminate(child)
            raise
        finally:
            child.stdout.close()
            if log is not None:
                log.flush()
    done = Completed(words, child.returncode, usage, tuple(tail))
    if check and done.returncode != 0:
        raise ProcessFailed(done.argv, done.returncode, done.tail)
    return done


def capture(argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> str:
    """Return what a short program prints to stdout, stripped; raise as ``output`` does."""
    printed = output([str(word) for word in argv], env=env)
    return "\n".join(plain(line) for line in printed.split(b"\n")).strip()


def output(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    excused: re.Pattern[str] | None = None,
    total_s: float | None = None,
) -> bytes:
    """Return all that a program prints to stdout, as it is; raise as ``run`` does.

    One that ends by itself with a failure, and complains of nothing but what ``excused`` is found
    in, has not failed.
    """
    env = environment(LC_ALL="C") if env is None else env
    child = _start(tuple(argv), env=env, cwd=cwd, stderr=subprocess.PIPE)
    try:
        printed, complaints = child.communicate(timeout=total_s)
    except subprocess.TimeoutExpired as error:
        terminate(child)
        raise TimedOut(error.timeout, silent=False) from error
    except BaseException:
        terminate(child)
        raise
    if child.returncode != 0:
        lines = [plain(line) for line in complaints.splitlines()]
        is_excused = child.returncode > 0 and excused is not None and bool(lines)
        if not is_excused or not all(excused and excused.search(line) for line in lines):
            raise ProcessFailed(tuple(argv), child.returncode, tuple(lines[-TAIL_LINES:]))
    return printed


def attached(argv: Sequence[str], descriptors: Sequence[int] = ()) -> int:
    """Run a program on rbuild's own standard streams; return its exit status."""
    with subprocess.Popen(list(argv), pass_fds=tuple(descriptors), env=environment()) as child:
        return child.wait()


@contextlib.contextmanager
def beside(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Have a program at rbuild's side, talked to through its standard streams, while the body runs.

    Its input is closed at the end, which it has a little while to heed.  Should rbuild be killed,
    its input closes too.
    """
    child = _start(tuple(argv), env=env, stdin=subprocess.PIPE)
    try:
        yield child
    finally:
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(OSError):
            child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=GRACE_S)
        terminate(child)
        child.stdout.close()


def terminate(child: subprocess.Popen[bytes]) -> None:
    """End a process and its session: politely, then by force, also whoever is left of it."""
    if child.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=GRACE_S)


def dies_with_parent(argv: Sequence[str]) -> list[str]:
    """Return the command line of ``argv`` such that SIGKILL of rbuild ends it too (setpriv(1))."""
    return ["setpriv", "--pdeathsig", "KILL", "--", *argv]


def _start(
    argv: tuple[str, ...],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.STDOUT,
    descriptors: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            env=environment() if env is None else dict(env),
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            pass_fds=tuple(descriptors),
        )
    except FileNotFoundError as error:
        if error.filename is not None and str(error.filename) != argv[0]:
            raise
        raise MissingDependency(
            f"The program {argv[0]} is not installed.",
            hint=f"`{data.as_root('doctor --fix')}` installs it.",
        ) from error


def _lines(
    out: IO[bytes],
    limits: Limits,
    ends: bytes = b"\n",
    unwanted: Callable[[], bool] | None = None,
) -> Iterator[str]:
    """Yield a program's lines as they come, the last one too if nothing ends it.

    Raises TimedOut when a limit is reached, after the line that was not finished, and Unwanted.
    """
    last = None if limits.total_s is None else time.monotonic() + limits.total_s
    newlines = bytes.maketrans(ends, b"\n" * len(ends))
    pending = b""
    while True:
        left = None if last is None else last - time.monotonic()
        waits = [one for one in (left, limits.silence_s) if one is not None]
        ready = _ready(out, max(0.0, min(waits)) if waits else None, unwanted)
        chunk = os.read(out.fileno(), 65536) if ready else b""
        *lines, pending = (pending + chunk).translate(newlines).split(b"\n")
        for raw in lines:
            yield from _parts(raw)
        while len(pending) > MAX_LINE:
            yield plain(pending[:MAX_LINE])
            pending = pending[MAX_LINE:]
        if not ready or not chunk:
            break
    if pending:
        yield plain(pending)
    if not ready:
        if limits.silence_s is not None and (left is None or left > limits.silence_s):
            raise TimedOut(limits.silence_s, silent=True)
        assert limits.total_s is not None
        raise TimedOut(limits.total_s, silent=False)


def _ready(out: IO[bytes], seconds: float | None, unwanted: Callable[[], bool] | None) -> bool:
    """Tell whether a program writes (or ends) within some time; raise Unwanted if it may end."""
    last = None if seconds is None else time.monotonic() + seconds
    while True:
        if unwanted is not None and unwanted():
            raise Cancelled
        left = None if last is None else max(0.0, last - time.monotonic())
        waits = [one for one in (left, None if unwanted is None else POLL_S) if one is not None]
        ready, _, _ = select.select([out], [], [], min(waits) if waits else None)
        if ready:
            return True
        if last is not None and time.monotonic() >= last:
            return False


def _parts(raw: bytes) -> Iterator[str]:
    """Yield a line, or the parts of one that is too long."""
    for at in range(0, max(len(raw), 1), MAX_LINE):
        yield plain(raw[at : at + MAX_LINE])


SEQUENCES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])?"
    r"|\x9b[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
"""Control sequences and characters (ECMA-48) but tabs: they would move a terminal's cursor, change
its title, or have it answer as if its user typed."""


def plain(raw: bytes) -> str:
    """Return a line of a program's output as it may be shown and logged, without its end."""
    line = raw.decode("utf-8", "replace").rstrip("\r\n")
    return line if line.isprintable() else SEQUENCES.sub("", line)


def _reap(child: subprocess.Popen[bytes], started: float, reporter: rusage.Reporter) -> Usage:
    """Wait for a child by wait4(2), which alone tells what it and its descendants used.

    Unless it was started by what tells better.
    """
    _, status, own = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.monotonic() - started
    if (used := reporter.used()) is not None:
        return Usage(wall_s, used.user_s, used.system_s, used.max_rss_bytes)
    return Usage(wall_s, own.ru_utime, own.ru_stime, own.ru_maxrss * 1024)
