"""Two programs in a pipe, and what either says."""

from __future__ import annotations

import os
import select
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

from rbuild.errors import ProcessFailed
from rbuild.util.process import MAX_LINE, PIPE_BYTES, TAIL_LINES, _parts, _start, terminate


def pipe(
    producer: Sequence[str],
    consumer: Sequence[str],
    on_line: Callable[[str], None],
    *,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run ``producer | consumer``; the stderr of both goes to ``on_line``, line by line.

    A consumer that ends before its input does, successfully, has had enough, as tar has at the end
    of an archive that padding follows: the rest is discarded, so that the producer's pipe
    doesn't break.  Raises ProcessFailed, with its own last lines, for the one
    that failed first: a consumer that fails breaks the producer's pipe, and a producer that fails
    cuts short what the consumer reads.
    """
    tails: list[deque[str]] = [deque(maxlen=TAIL_LINES), deque(maxlen=TAIL_LINES)]
    children: list[subprocess.Popen[bytes]] = []
    early = threading.Event()
    try:
        first = _start(tuple(producer), env=env, stderr=subprocess.PIPE)
        children.append(first)
        second = _start(
            tuple(consumer),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        children.append(second)
        # A daemon: should a stranger keep the pipe open, an interrupt doesn't wait for it.
        pump = threading.Thread(target=_pump, args=(first, second, early), daemon=True)
        pump.start()
        for which, line in _merged(children):
            tails[which].append(line)
            on_line(line)
        pump.join()
        for child in children:
            child.wait()
    except BaseException:
        for child in children:
            terminate(child)
        raise
    finally:
        for child in children:
            assert child.stderr is not None
            child.stderr.close()
    order = ((1, consumer), (0, producer)) if early.is_set() else ((0, producer), (1, consumer))
    for which, argv in order:
        if (status := children[which].returncode) != 0:
            raise ProcessFailed(tuple(argv), status, tuple(tails[which]))


def _pump(
    first: subprocess.Popen[bytes], second: subprocess.Popen[bytes], early: threading.Event
) -> None:
    """Give a program's output to another's input; set ``early`` if that one closes it before.

    If it succeeded nevertheless, the rest of the output is read, and discarded.  That the input is
    closed is noticed at once, also while there is nothing to give: what becomes of the first
    program later is no cause of it, but a failure of before may be.
    """
    assert first.stdout is not None
    assert second.stdin is not None
    with first.stdout as source:
        try:
            with second.stdin as target:
                _wait_for_output(source, target)
                while os.splice(source.fileno(), target.fileno(), PIPE_BYTES):
                    _wait_for_output(source, target)
        except BrokenPipeError:
            if first.poll() in {None, 0}:
                early.set()
            if second.wait() == 0:
                while os.read(source.fileno(), PIPE_BYTES):
                    pass


def _wait_for_output(source: IO[bytes], target: IO[bytes]) -> None:
    """Wait for output, or its end; raise BrokenPipeError once nobody reads ``target``."""
    waiting = select.poll()
    waiting.register(source, select.POLLIN)
    waiting.register(target, 0)  # POLLERR is told anyway (poll(2))
    if any(number == target.fileno() for number, _ in waiting.poll()):
        raise BrokenPipeError


def _merged(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[tuple[int, str]]:
    """Yield the lines that programs write to their stderr as they come, each with whose it is."""
    pending: dict[int, bytes] = {}
    owners: dict[int, int] = {}
    for which, child in enumerate(children):
        assert child.stderr is not None
        owners[child.stderr.fileno()], pending[child.stderr.fileno()] = which, b""
    while owners:
        for stream in select.select(list(owners), [], [])[0]:
            chunk = os.read(stream, PIPE_BYTES)
            *lines, rest = (pending[stream] + chunk).split(b"\n")
            if len(rest) > MAX_LINE or (rest and not chunk):
                lines, rest = [*lines, rest], b""
            pending[stream] = rest
            for raw in lines:
                for line in _parts(raw):
                    yield owners[stream], line
            if not chunk:
                del owners[stream]
