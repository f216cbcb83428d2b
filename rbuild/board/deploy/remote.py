"""The board at the other end of ssh: steps run there, files sent there, the lock held there.

A step is a script in the folder ``remote``, sent on the standard input of ``sh -s`` with its
arguments in it, so that no other shell ever reads them.  What it tells is in lines that begin with
``rbuild: ``; whatever else comes (a greeting, a program's own words) is shown if it fails.
"""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rbuild.errors import (
    InfrastructureError,
    MissingDependency,
    ProcessFailed,
    TimedOut,
    UsageError,
)
from rbuild.util import process
from rbuild.util.data import PACKAGE
from rbuild.util.process import Completed, Limits

PREFIX = "rbuild: "
UNREACHED = 255
"""The status that ssh ends with where it, not the command, failed."""

HOST = re.compile(r"(?:[^\s@:/-][^\s@:/]*@)?(?:\[[0-9a-fA-F:.%a-z]+\]|[^\s@:/\[\]-][^\s@:/\[\]]*)")
"""[user@]host; an IPv6 address in brackets."""

OPTIONS = ("-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15")
"""ssh's way to notice that the network is gone; whatever else, ~/.ssh/config says."""

PROBE = "probe"
EITHER = (
    "sh -c 'if [ $(id -u) -ne 0 ] && sudo -n true 2>/dev/null; then exec sudo -n sh -s;"
    " else exec sh -s; fi'"
)
"""The first step finds out whether root is to be had; it is root, if it is."""

KEEPALIVE_S = 20.0
"""How often the lock's holder there is told that rbuild is alive; it waits 90 s."""

REST_LINES = 10
"""How many of the last other lines are shown where a step fails."""

MAX_ANSWER = 16 << 20
"""The bytes of the longest answer of a board's: a thousand modules are 0.1 MiB."""

QUESTION = f'echo "{PREFIX}shell $SHELL"'
"""A command with an answer of one line, unless the login shell prints something by itself."""
ANSWERS_WITHIN_S = 60.0

LOGIN_OUTPUT = "Check what its shell prints at login (.bashrc, .profile)."

SENT = re.compile(r"rbuild: <f\S* (\d+) (.*)")
PROGRESS = re.compile(r"\s*[\d,.]+\w?\s+(\d+)%")


@dataclass(frozen=True)
class Answer:
    """What a step told: values by word, in their order; a word may come more than once.

    ``other`` are the last of the lines that were none of it.
    """

    values: Mapping[str, tuple[str, ...]]
    other: tuple[str, ...] = ()

    def all(self, word: str) -> tuple[str, ...]:
        """Return all values of a word."""
        return self.values.get(word, ())

    def first(self, word: str) -> str:
        """Return a word's first value, or ''."""
        return next(iter(self.all(word)), "")


def _ignore(_: object) -> None:
    """Listen to nothing."""


class OutputParser:
    """Takes a step's lines: what it told apart from all else."""

    def __init__(self, verbose: Callable[[str], None]) -> None:
        self.rest: deque[str] = deque(maxlen=REST_LINES)
        self._told: dict[str, list[str]] = {}
        self._verbose = verbose
        self._bytes = 0

    def __call__(self, line: str) -> None:
        """Take the next line of the output."""
        # What the login shell has printed before may not have ended its line.
        if not self._bytes and (at := line.find(PREFIX)) > 0:
            self(line[:at])
            line = line[at:]
        self._bytes += len(line) + 1
        if self._bytes > MAX_ANSWER:
            raise InfrastructureError(
                f"The board sent more than {MAX_ANSWER >> 20} MiB of output.",
                hint=LOGIN_OUTPUT,
            )
        self._verbose(line)
        if line.startswith(PREFIX):
            word, _, text = line.removeprefix(PREFIX).partition(" ")
            self._told.setdefault(word, []).append(text)
        elif line:
            self.rest.append(line)

    def has_said(self, word: str) -> bool:
        """Tell whether a word was told."""
        return word in self._told

    @property
    def answer(self) -> Answer:
        """What was told so far."""
        return Answer({word: tuple(texts) for word, texts in self._told.items()}, tuple(self.rest))


@dataclass(frozen=True)
class Sent:
    """Files that rsync sent, or would send: name and size of each."""

    files: tuple[tuple[str, int], ...] = ()

    def __add__(self, other: Sent) -> Sent:
        return Sent(self.files + other.files)

    @property
    def size_bytes(self) -> int:
        """The bytes of all of them."""
        return sum(count for _, count in self.files)


@dataclass(frozen=True)
class Remote:
    """A host that can be deployed to.

    ``ssh`` is how ssh is called, ``root`` where the board's file system is mounted there, empty
    if it is the host's own.  With ``sudo``, steps that change something run under it.
    """

    host: str
    ssh: tuple[str, ...] = ("ssh",)
    root: str = ""
    sudo: bool = False
    verbose: Callable[[str], None] = field(default=_ignore, compare=False)

    def step(self, name: str, *words: str) -> Answer:
        """Run a step; raise InfrastructureError with the board's own words if it fails."""
        ear = OutputParser(self.verbose)
        with tempfile.TemporaryFile() as file:
            file.write(self.script(name, *words))
            file.seek(0)
            done = self._run(self._argv(EITHER if name == PROBE else ""), ear, file)
        if done.returncode != 0:
            raise self._failure(done.returncode, ear)
        return ear.answer

    def script(self, name: str, *words: str) -> bytes:
        """Return all of a step's script: what they share, its own, and its call.

        It is read to the end of the braces before any of it runs.
        """
        files = ("lib", PROBE, name) if name == "clean" else ("lib", name)
        parts = [f"ROOT={shlex.quote(self.root)}", *map(_source, files)]
        call = shlex.join(["main", *words])
        text = "\n".join(["{", *parts, call, "exit", "}", ""])
        return text.encode("utf-8", "surrogateescape")

    @contextmanager
    def lock(self) -> Iterator[str]:
        """Hold the board's lock; yield the word that names its holder.

        Raises InfrastructureError if another deployment has it.
        """
        token = secrets.token_hex(8)
        stop = threading.Event()
        with process.beside(self._argv(), env=process.callers_environment()) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            ear = OutputParser(self.verbose)
            # If it has ended already, its words say why.
            with suppress(OSError):
                child.stdin.write(self.script("lock", token))
                child.stdin.flush()
            while raw := child.stdout.readline(process.MAX_LINE):
                ear(raw.decode("utf-8", "replace").rstrip("\r\n"))
                if ear.has_said("locked"):
                    break
            else:
                raise self._failure(child.wait(), ear)

            def beat() -> None:
                assert child.stdin is not None
                while not stop.wait(KEEPALIVE_S):
                    try:
                        child.stdin.write(b"x")
                        child.stdin.flush()
                    except (OSError, ValueError):
                        return  # The next step finds that the lock is lost.

            heart = threading.Thread(target=beat, daemon=True)
            heart.start()
            try:
                yield token
            finally:
                stop.set()
                heart.join()

    def send(
        self,
        source: Path,
        target: str,
        *,
        like: str | None = None,
        dry_run: bool = False,
        progress: Callable[[int], None] = _ignore,
    ) -> Sent:
        """Bring a folder's content to a folder there; return what was sent.

        ``like`` is a folder there that may have some of the files already.  Raises
        MissingDependency without rsync, InfrastructureError if the connection breaks or the disk
        there is full.
        """
        sent: list[tuple[str, int]] = []

        most = sum(1 for _ in source.rglob("*")) + 1

        def listen(line: str) -> None:
            self.verbose(line)
            if len(sent) > most:
                raise InfrastructureError(
                    f"{self.host} reports more files than were sent.", hint=LOGIN_OUTPUT
                )
            if found := SENT.fullmatch(line):
                sent.append((found[2], int(found[1])))
            elif found := PROGRESS.match(line):
                progress(int(found[1]))

        argv = [
            *("rsync", "-rlt", "--checksum", "--protect-args", "--info=progress2"),
            f"--out-format={PREFIX}%i %l %n",
            *(["--dry-run"] if dry_run else []),
            *([f"--copy-dest={self.root}{like}"] if like else []),
            f"--rsh={shlex.join((*self.ssh, *OPTIONS))}",
            *(["--rsync-path=sudo -n rsync"] if self.sudo else []),
            "--",
            f"{source}/",
            f"{self._host(for_rsync=True)}:{self.root}{target}/",
        ]
        done = self._run(process.dies_with_parent(argv), listen)
        if done.returncode != 0:
            self.must_be_quiet()
            words = [
                line for line in done.tail if not SENT.match(line) and not PROGRESS.match(line)
            ]
            raise InfrastructureError(
                f"The upload to {self.host} was not finished.",
                detail="\n".join(line for line in words[-10:] if line),
                hint="Nothing was switched there: it boots what it did before, and the next "
                "`rbuild deploy` removes what is left.",
            )
        return Sent(tuple(sent))

    def must_be_quiet(self) -> None:
        """Raise InfrastructureError if the login shell there prints something by itself.

        rsync takes all that comes for its own protocol.
        """
        ear = OutputParser(self.verbose)
        # What goes to stderr does no harm.
        argv = ["sh", "-c", 'exec "$@" 2>/dev/null', "sh", *self._argv(QUESTION)]
        try:
            process.run(
                argv,
                env=process.callers_environment(),
                on_line=ear,
                limits=Limits(total_s=ANSWERS_WITHIN_S),
            )
        except (ProcessFailed, TimedOut):
            return
        if not ear.rest:
            return
        shell = ear.answer.first("shell") or "its login shell"
        raise InfrastructureError(
            f"On {self.host}, {shell} prints to every command, so that rsync can't work.",
            detail="\n".join(ear.rest),
            hint=f"Let {shell} print only to a terminal there: in .bashrc, .profile or what it "
            "reads else, `[ -t 1 ] || return` before the lines that print.",
        )

    def _run(
        self,
        argv: Sequence[str],
        listen: Callable[[str], None],
        file: IO[bytes] | None = None,
    ) -> Completed:
        return process.run(
            argv,
            env=process.callers_environment(),
            on_line=listen,
            check=False,
            stdin=file,
            ends=b"\r\n",
        )

    def _argv(self, shell: str = "") -> tuple[str, ...]:
        shell = shell or ("sudo -n sh -s" if self.sudo else "sh -s")
        return (*self.ssh, *OPTIONS, "--", self._host(), shell)

    def _host(self, *, for_rsync: bool = False) -> str:
        return self.host if for_rsync else self.host.replace("[", "").replace("]", "")

    def _failure(self, status: int, ear: OutputParser) -> InfrastructureError:
        detail = "\n".join(ear.rest)
        if (said := ear.answer.first("error")) == "busy":
            return InfrastructureError(
                f"Another deployment to {self.host} is under way.", hint="Wait until it is done."
            )
        if said == "lost":
            return InfrastructureError(
                f"The connection that held the lock on {self.host} was lost. Nothing was changed.",
                detail=detail,
            )
        if said:
            return InfrastructureError(f"{self.host}: {said}.", detail=detail)
        if status == UNREACHED:
            return InfrastructureError(
                f"{self.host} can't be reached by ssh, or the connection broke.",
                detail=detail,
                hint=f"`{shlex.join((*self.ssh, self._host()))} true` must work without asking: "
                "a key, a known host, and what else it needs in ~/.ssh/config.",
            )
        return InfrastructureError(
            f"A step on {self.host} ended with status {status}.",
            detail=detail,
            hint=None if ear.answer.values else f"{LOGIN_OUTPUT} It must run `sh`.",
        )


def remote(host: str, ssh: str, root: str, verbose: Callable[[str], None]) -> Remote:
    """Return a host to deploy to, as the command line names it.

    Raises UsageError for a name or a path that can't be one, MissingDependency without ssh or
    rsync.
    """
    if not HOST.fullmatch(host):
        raise UsageError(f"{host!r} is no [user@]host.", hint="A port belongs into --ssh.")
    try:
        words = tuple(shlex.split(ssh))
    except ValueError as error:
        raise UsageError(f"--ssh: {error}.") from error
    if not words:
        raise UsageError("--ssh names no program.")
    for program in (words[0], "rsync"):
        if shutil.which(program) is None:
            package = "openssh-client" if program == "ssh" else program
            raise MissingDependency(
                f"Deploying needs {program}, which is not installed.",
                hint=f"apt-get install {package}",
            )
    return Remote(host, words, root.rstrip("/"), verbose=verbose)


def _source(name: str) -> str:
    return (PACKAGE / "board/deploy/remote" / f"{name}.sh").read_text(encoding="utf-8")
