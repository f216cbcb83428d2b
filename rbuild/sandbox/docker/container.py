"""A job's container: started, read, waited for, removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import Any

from docker import DockerClient

from rbuild.errors import TimedOut
from rbuild.sandbox.docker.engine import explained
from rbuild.util import process
from rbuild.util.process import MAX_LINE

FRAME = 8
"""Bytes before each piece of an attached container's output: which stream, and how long."""


class JobContainer:
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


def _window() -> tuple[int, int]:
    """Return the rows and columns of the user's terminal."""
    rows, columns = struct.unpack(
        "HHxxxx", fcntl.ioctl(sys.stdin.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
    )
    return rows, columns


def _lines(chunks: Iterator[bytes], mark: str, ending: list[str]) -> Iterator[str]:
    """Yield the lines of a job's output; put its keeper's last words, behind the mark, aside."""
    wanted = b"\0" + mark.encode() + b" "
    pending = b""
    for chunk in chunks:
        *lines, pending = (pending + chunk).split(b"\n")
        for raw in lines:
            text, found, words = raw.partition(wanted)
            if found:
                ending.append(words.decode("utf-8", "replace"))
            if text or not found:
                yield process.plain(text)
        # The keeper's words come last: a line that is cut here has none.
        while len(pending) > 2 * MAX_LINE:
            yield process.plain(pending[:MAX_LINE])
            pending = pending[MAX_LINE:]
    if pending:
        yield process.plain(pending)
