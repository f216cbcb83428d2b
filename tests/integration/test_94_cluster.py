"""The ways of a matrix on a cluster: Dask's own scheduler and workers, with fakes of rbuild that do as told."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rbuild.bench.plan import Target
from rbuild.cache.directory import Cache
from rbuild.errors import InfrastructureError
from rbuild.matrix import cluster
from rbuild.matrix.plan import Plan, combine
from rbuild.matrix.report import Row, State
from rbuild.matrix.scheduler import Scheduler
from rbuild.sandbox.bwrap import Bwrap
from rbuild.sandbox.context import BuildContext
from rbuild.specs import profile
from rbuild.specs.profile import Driver
from rbuild.ui.console import Console

FAKE = """\
import json, os, sys, time
words = sys.argv[1:]
store = words[words.index("--cache-dir") + 1]
with open(f"{store}/calls", "a") as file:
    file.write(f"{os.getpid()}\\n")
with open(f"{store}/told") as file:
    told = file.read()
if told == "hang":
    time.sleep(1000)
code = int(told)
print("compiling", file=sys.stderr)
print(json.dumps({"error": "No.", "exit_code": code} if code else {"phases": []}, indent=2))
sys.exit(code)
"""

WORKER = """\
import sys
from pathlib import Path
from rbuild.ui.console import Console
from rbuild.matrix.scheduler import Scheduler, require
require()
from rbuild.matrix import remote
from rbuild.matrix.task import Place
address, name, store, fake, other = sys.argv[1:]
if other:
    changed = Path(store).parent / "changed"
    remote.identity = lambda: "rbuild-changed" if changed.exists() else f"rbuild-{other}"
place = Place(name, Path(store), Path(store), (sys.executable, "-IS", fake))
remote.serve(Scheduler(address, None), place, Console())
"""


@dataclass
class Machine:
    """A worker with a cache of its own."""

    cache: Path
    process: subprocess.Popen[str]
    ready: bool = False
    said: list[str] = field(default_factory=list)

    def tell(self, what: object) -> None:
        (self.cache / "told").write_text(str(what))

    @property
    def calls(self) -> list[int]:
        """The processes that built here."""
        path = self.cache / "calls"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def until_called(self, times: int = 1) -> int:
        until(lambda: len(self.calls) >= times)
        return self.calls[-1]

    def end(self, number: int = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


def until(condition: Callable[[], object]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came so far")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@dataclass
class Cluster:
    """A scheduler with the machines of one test."""

    address: str
    folder: Path
    machines: list[Machine] = field(default_factory=list)

    def machine(self, name: str, told: object = 0, *, other: str = "") -> Machine:
        """Begin to start a machine; ``other`` is the identity of another rbuild."""
        cache = self.folder / name
        cache.mkdir()
        fake = self.folder / "fake.py"
        fake.write_text(FAKE)
        words = [self.address, name, str(cache), str(fake), other]
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *words], stderr=subprocess.PIPE, text=True
        )
        made = Machine(cache, process)
        self.machines.append(made)
        made.tell(told)
        return made

    def gather(self) -> None:
        """Wait for the machines that are on their way."""
        for one in self.machines:
            assert one.process.stderr is not None
            if not one.ready:
                first = one.process.stderr.readline()
                assert "takes builds" in first, first
                args = (one.process.stderr,)
                threading.Thread(target=one.said.extend, args=args, daemon=True).start()
                one.ready = True

    def matrix(self, count: int = 1, wait_s: float = 20) -> list[Row]:
        """Build that many things; return their ends in the order of the plan."""
        self.gather()
        plan = plan_of(count)
        cache = Cache(self.folder / "client", Console(verbosity=0))
        made = BuildContext("matrix", cache, Bwrap())
        try:
            rows = list(cluster.execute(plan, made, Scheduler(self.address, None), wait_s))
        finally:
            made.close()
        return sorted(rows, key=lambda row: plan.builds.index(row.build))

    def beside(self, count: int = 1, wait_s: float = 20) -> Callable[[], list[Row]]:
        """Do so in a thread; return what waits for it."""
        rows: list[Row] = []
        thread = threading.Thread(target=lambda: rows.extend(self.matrix(count, wait_s)))
        thread.start()

        def wait() -> list[Row]:
            thread.join(timeout=120)
            assert not thread.is_alive()
            return rows

        return wait


def plan_of(count: int) -> Plan:
    found = [profile.load("slim"), profile.load("slim-debug")]
    whole = combine(found, ["cross"], [Target.OUT_OF_TREE, Target.IN_TREE], list(Driver))
    return Plan(whole.builds[:count], ())


def documented(port: int) -> list[str]:
    """Return the options by which docs/how-to/matrix.md starts a scheduler, with another port."""
    text = (Path(__file__).parents[2] / "docs/how-to/matrix.md").read_text()
    (line,) = re.findall(r"^dask scheduler --host 127\.0\.0\.1 (?:.*\\\n)*.*$", text, re.MULTILINE)
    words = shlex.split(line, comments=True)[2:]
    words[words.index("--port") + 1] = str(port)
    return words


def family(pid: int) -> list[int]:
    """Return a process and all that it started, directly or not."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    return [
        pid,
        *(one for path in children for it in path.read_text().split() for one in family(int(it))),
    ]


def listening(*pids: int) -> dict[str, int]:
    """Return the addresses on which processes and their children listen, and how many sockets do."""
    inodes = set()
    for pid in (one for it in pids for one in family(it)):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if found := re.fullmatch(r"socket:\[(\d+)\]", str(path.readlink())):
                    inodes.add(found[1])
    seen: dict[str, int] = {}
    for table, known in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                digits = fields[1].partition(":")[0]
                raw = b"".join(
                    int(digits[at : at + 8], 16).to_bytes(4, sys.byteorder)
                    for at in range(0, len(digits), 8)
                )
                address = socket.inet_ntop(known, raw)
                seen[address] = seen.get(address, 0) + 1
    return seen


@contextlib.contextmanager
def a_scheduler(host: str = "127.0.0.1") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    child = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", *documented(port), "--host", host],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    while "Scheduler at" not in (line := child.stderr.readline()):
        assert line
    threading.Thread(target=child.stderr.read, daemon=True).start()
    try:
        yield address, child
    finally:
        child.terminate()
        child.wait()


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    with a_scheduler() as (address, _):
        yield address


@pytest.fixture
def machines(scheduler: str, tmp_path: Path) -> Iterator[Cluster]:
    found = Cluster(scheduler, tmp_path)
    yield found
    for one in found.machines:
        if one.process.poll() is None:
            one.end()


def test_one_build_at_a_time_each_and_all_come_back(machines: Cluster) -> None:
    one, two = machines.machine("one"), machines.machine("two")
    rows = machines.matrix(8)
    assert [row.state for row in rows] == [State.BUILT] * 8
    assert len(one.calls) + len(two.calls) == 8
    assert one.calls
    assert two.calls
    for row in rows:
        assert row.log is not None
        assert "compiling" in Path(row.log).read_text()
        assert [one.ended for one in row.attempts] == [0]


def test_nothing_listens_beyond_loopback(tmp_path: Path) -> None:
    """Of a cluster that was started as the documentation says, idle and while it builds."""
    # Each has the port that Dask's messages come to, and an HTTP server.
    expected = {"127.0.0.1": 2}
    with a_scheduler() as (address, scheduler):
        at = ("--scheduler", address)
        with started(tmp_path / "real", "worker", *at) as worker:
            assert worker.stderr is not None
            assert "takes builds" in worker.stderr.readline()
            assert listening(scheduler.pid) == expected
            assert listening(worker.pid) == expected
        machines = Cluster(address, tmp_path)
        one = machines.machine("one", "hang")
        machines.gather()
        with started(tmp_path / "client", "matrix", *at, "--env", "cross") as client:
            one.until_called()
            assert listening(scheduler.pid) == expected
            assert listening(one.process.pid) == expected
            assert listening(client.pid) == {}
        one.end()


@contextlib.contextmanager
def started(cache: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run rbuild beside the body."""
    argv = [sys.executable, "-m", "rbuild", "--cache-dir", str(cache), *words]
    child = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.terminate()
        child.communicate(timeout=60)


def test_a_scheduler_that_all_interfaces_reach_gets_no_worker(tmp_path: Path) -> None:
    """It is on this machine, but its strangers would run programs here."""
    with a_scheduler("0.0.0.0") as (address, _):
        words = ["--cache-dir", str(tmp_path / "store"), "worker", "--scheduler", address]
        found = subprocess.run(
            [sys.executable, "-m", "rbuild", *words], capture_output=True, text=True
        )
        assert found.returncode == 2
        assert "its scheduler listens on 0.0.0.0" in found.stderr


def test_a_build_that_fails_is_not_tried_again(machines: Cluster) -> None:
    one, two = machines.machine("one", 1), machines.machine("two", 1)
    (row,) = machines.matrix()
    assert row.state is State.FAILED
    assert row.why == "No."
    assert len(one.calls) + len(two.calls) == 1


def test_what_a_machine_lacks_another_one_tries_and_no_third(machines: Cluster) -> None:
    found = [machines.machine(name, 4) for name in ("one", "two", "three")]
    (row,) = machines.matrix()
    assert row.state is State.NOT_RUN
    assert sorted(len(one.calls) for one in found) == [0, 1, 1]
    assert [one.ended for one in row.attempts] == [4, 4]
    assert len({one.machine for one in row.attempts}) == 2


def test_what_a_machine_lacks_another_one_has(machines: Cluster) -> None:
    machines.machine("poor", 3)
    machines.machine("rich", 0)
    rows = machines.matrix(4)
    assert [row.state for row in rows] == [State.BUILT] * 4
    assert {row.attempts[-1].machine for row in rows} == {"rich"}


def test_the_builds_of_a_lost_machine_go_elsewhere(machines: Cluster) -> None:
    one = machines.machine("one", "hang")
    wait = machines.beside(2)
    build = one.until_called()
    two = machines.machine("two")
    one.end()
    first, second = wait()
    assert (first.state, second.state) == (State.BUILT, State.BUILT)
    assert [(one.machine, one.ended) for one in first.attempts] == [("one", None), ("two", 0)]
    assert [(one.machine, one.ended) for one in second.attempts] == [("two", 0)]
    assert len(two.calls) == 2
    until(lambda: not alive(build))


def test_a_build_that_loses_its_machines_ends(machines: Cluster) -> None:
    one, two = machines.machine("one", "hang"), machines.machine("two", "hang")
    three = machines.machine("three", "hang")
    wait = machines.beside()
    for _ in range(2):
        until(lambda: any(it.calls and it.process.poll() is None for it in (one, two, three)))
        next(it for it in (one, two, three) if it.calls and it.process.poll() is None).end()
    (row,) = wait()
    assert row.state is State.NOT_RUN
    assert "were lost while they built it" in str(row.why)
    assert [one.ended for one in row.attempts] == [None, None]
    last = next(it for it in (one, two, three) if it.process.poll() is None)
    until(lambda: not any(map(alive, last.calls)))


def test_a_machine_that_is_told_to_end_leaves_its_build_to_another(machines: Cluster) -> None:
    one = machines.machine("one", "hang")
    wait = machines.beside()
    build = one.until_called()
    machines.machine("two")
    machines.gather()
    assert one.end(signal.SIGTERM) == 0
    assert not alive(build)
    (row,) = wait()
    assert row.state is State.BUILT
    assert [(one.machine, one.ended) for one in row.attempts] == [("two", 0)]


def test_without_a_machine_what_is_left_is_not_run(machines: Cluster) -> None:
    one = machines.machine("one", "hang")
    wait = machines.beside(2, wait_s=1)
    one.until_called()
    one.end()
    first, second = wait()
    assert (first.state, second.state) == (State.NOT_RUN, State.NOT_RUN)
    assert "No machine was at" in str(second.why)
    with pytest.raises(InfrastructureError, match="No machine with this rbuild"):
        machines.matrix(wait_s=0)


def test_a_machine_with_another_rbuild_gets_nothing(
    machines: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    other = machines.machine("other", other="0.0.1-abc")
    machines.machine("same")
    rows = machines.matrix(3)
    assert {row.attempts[-1].machine for row in rows} == {"same"}
    assert other.calls == []
    assert "other has another rbuild (rbuild-0.0.1-abc" in capfd.readouterr().err
    until(lambda: "other gets no builds: a matrix has another rbuild" in "".join(other.said))


def test_a_scheduler_that_is_lost_ends_all(tmp_path: Path) -> None:
    with a_scheduler() as (address, child):
        machines = Cluster(address, tmp_path)
        one = machines.machine("one", "hang")
        wait = machines.beside(2)
        build = one.until_called()
        child.kill()
        first, second = wait()
        assert (first.state, second.state) == (State.NOT_RUN, State.NOT_RUN)
        assert "is gone" in str(first.why)
        assert one.process.wait(timeout=60) == 1  # by InfrastructureError: here, nobody catches it
        until(lambda: not alive(build))


def test_a_machine_whose_rbuild_was_changed_is_told_so(
    machines: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machines.machine("one", other="0.0.1-abc")
    machines.gather()
    # It joined with the one, and has the other now.
    monkeypatch.setattr(cluster, "identity", lambda: "rbuild-0.0.1-abc")
    changed = machines.folder / "changed"
    (row,) = machines.matrix()
    assert row.state is State.BUILT
    changed.touch()
    (row,) = machines.matrix()
    assert row.state is State.NOT_RUN
    assert "was changed" in str(row.why)
    assert len(one.calls) == 1


def test_who_stops_waiting_ends_what_is_under_way(machines: Cluster) -> None:
    one = machines.machine("one", "hang")
    program = (
        "import sys; from rbuild.cli import main as cli; sys.exit(cli.run(sys.argv[1:]))",
        *("--cache-dir", str(machines.folder / "client"), "matrix", "--scheduler"),
        *(machines.address, "--env", "cross"),
    )
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        child = subprocess.Popen([sys.executable, "-c", *program], stderr=subprocess.PIPE)
        calls = len(one.calls)
        build = one.until_called(calls + 1)
        child.send_signal(number)
        assert child.wait(timeout=60) == code
        assert child.stderr is not None
        assert b"Traceback" not in child.stderr.read()
        until(lambda pid=build: not alive(pid))
    one.tell(0)
    (row,) = machines.matrix()
    assert row.state is State.BUILT


def test_a_name_that_is_taken_is_named(machines: Cluster) -> None:
    machines.machine("one")
    machines.gather()
    cache = machines.folder / "store"
    words = ["--cache-dir", str(cache), "worker", "--scheduler", machines.address, "--name", "one"]
    found = subprocess.run(
        [sys.executable, "-m", "rbuild", *words], capture_output=True, text=True, env=os.environ
    )
    assert found.returncode == 4
    assert "has a worker named one already" in found.stderr
    assert "Traceback" not in found.stderr
