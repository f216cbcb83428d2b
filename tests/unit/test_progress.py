"""What a person or a CI service sees of the work under way."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbuild.cache.directory import Cache
from rbuild.cache.entry import EntryKind
from rbuild.kernel import kdir
from rbuild.kernel.identity import Kernel
from rbuild.kernel.kbuild import Kbuild
from rbuild.provision.rootfs import _Watcher
from rbuild.sandbox.bwrap import Bwrap
from rbuild.sandbox.context import BuildContext
from rbuild.specs.profile import Objects, load
from rbuild.ui import console as console_module
from rbuild.ui import github_actions
from rbuild.ui.console import Console
from rbuild.ui.estimates import FILE, FORMAT, KEYS, RUNS, Estimate, Estimates, here, machine, read
from rbuild.ui.format import about
from rbuild.ui.step import Step
from rbuild.ui.view import View
from rbuild.util.host import machine_id

from .conftest import Host


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def github(monkeypatch) -> io.StringIO:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    return io.StringIO()


def test_a_step_is_a_group_with_the_programs_lines_in_it(github) -> None:
    console = Console(err=github)
    console.verbose("before")
    with console.step("Building") as step:
        console.teller(step)("  CC a.o")
    first, line, end, last = github.getvalue().splitlines()
    assert (first, line, end) == ("::group::Building", "  CC a.o", "::endgroup::")
    assert last.startswith("  ok Building (")


def test_groups_do_not_nest_and_end_when_the_work_fails(github) -> None:
    console = Console(err=github)
    with pytest.raises(ValueError), console.step("Outer"), console.step("Inner"):
        raise ValueError
    assert github.getvalue().splitlines() == ["::group::Outer", "==> Inner", "::endgroup::"]
    with console.step("Next"):
        pass
    assert "::group::Next\n" in github.getvalue()


def test_quiet_has_neither_groups_nor_lines(github) -> None:
    console = Console(verbosity=-1, err=github)
    with console.step("Building") as step:
        console.teller(step)("  CC a.o")
    assert github.getvalue() == ""


def test_nothing_that_a_program_prints_is_a_command(github) -> None:
    console = Console(err=github)
    with console.step("Building"):
        console.verbose("  ::error::forged")
        console.verbose("x ##[group]forged")
    console.error("broken", detail="::stop-commands::x")
    shown = github.getvalue().splitlines()
    assert "|   ::error::forged" in shown
    assert "x # #[group]forged" in shown
    assert "| ::stop-commands::x" in shown


def test_an_error_is_an_annotation_at_the_compilers_place(github) -> None:
    words = "In file included from b.h:1:\na.c:12:3: error: no ';'\na.c:20:1: error: more"
    Console(err=github).error("100 %\nfailed", hint="look", detail=words)
    last = github.getvalue().splitlines()[-1]
    assert last == r"::error title=rbuild,file=a.c,line=12::100 %25\nfailed%0Ahint: look"


def test_a_warning_is_an_annotation(github) -> None:
    Console(err=github).warn("a: b, c")
    assert github.getvalue() == "::warning title=rbuild::a: b, c\n"


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("a.c:3: error: x", ("a.c", 3)),
        ("a.c:3:1: fatal error: x", ("a.c", 3)),
        ("a.c:3:1: warning: x", None),
        ("error[E0425]: x\n  --> src/a.rs:10:5\n", ("src/a.rs", 10)),
        ("warning: x\n --> a.rs:1:1\nerror: y\n --> b.rs:2:2", ("b.rs", 2)),
        ("make: *** [Makefile:3: all] Error 2", None),
    ],
)
def test_the_place_of_the_first_error(words: str, place: tuple[str, int] | None) -> None:
    assert github_actions.place(words) == place


def test_a_property_cannot_end_early() -> None:
    found = github_actions.command("error", "m", file="a,b:c%\n")
    assert found == "::error file=a%2Cb%3Ac%25%0A::m"


def test_a_terminal_gets_no_commands(github) -> None:
    err = Terminal()
    Console(verbosity=1, err=err).warn("x")
    assert "::" not in err.getvalue()


def test_elsewhere_there_are_no_commands(monkeypatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    err = io.StringIO()
    console = Console(err=err)
    with console.step("Building") as step:
        console.teller(step)("  CC a.o")
    console.error("broken")
    assert "::" not in err.getvalue()
    assert "CC" not in err.getvalue()


# Lines, where there is no terminal.


def wait_until(said: io.StringIO, count: int) -> None:
    """Wait until so many lines were said."""
    for _ in range(1000):
        if said.getvalue().count("\n") >= count:
            return
        time.sleep(0.01)
    raise AssertionError(said.getvalue())


def test_a_step_says_now_and_then_how_far_it_is_though_nothing_happens(monkeypatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setattr(console_module, "PLAIN_INTERVAL_S", 0.02)
    err = io.StringIO()
    console = Console(err=err)
    with console.step("Building", total=10) as step:
        step.update("CC a.o", done=3)
        wait_until(err, 2)
        with console.step("Within"):
            wait_until(err, 5)
    lines = err.getvalue().splitlines()
    assert lines[0] == "==> Building"
    assert lines[1] == "    3 of about 10, 0 s: CC a.o"
    assert "    0 s" in lines
    assert lines[-1].startswith("  ok Building")
    after = err.getvalue()
    assert threading.active_count() == 1 or not any(
        "_beat" in thread.name for thread in threading.enumerate()
    )
    time.sleep(0.1)
    assert err.getvalue() == after


def test_a_step_that_fails_is_silent_afterwards(monkeypatch) -> None:
    monkeypatch.setattr(console_module, "PLAIN_INTERVAL_S", 0.01)
    err = io.StringIO()
    with pytest.raises(ValueError), Console(err=err).step("Building"):
        raise ValueError
    after = err.getvalue()
    time.sleep(0.05)
    assert err.getvalue() == after
    assert "ok" not in after


# The view on a terminal.


def drawn(step: Step, width: int) -> list[str]:
    view = View(Terminal(), lambda: step)
    screen = view.screen
    screen.width = width
    with screen.capture() as captured:
        screen.print(view, end="")
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_view_is_two_lines_however_wide_it_is(monkeypatch, width: int) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    step = Step("Building Linux 6.12.118 in hybrid:compilers", 2345, 1200)
    step.started -= 125
    step.estimate = Estimate(250.0, 2345)
    step.detail = "CC drivers/gpu/drm/amd/amdgpu/../display/dc/resource/dcn32/dcn32_resource.o"
    lines = drawn(step, width)
    assert len(lines) == 2
    assert all(len(line) <= width for line in lines)
    if width >= 80:
        assert "1200/2345" in lines[0] or "1200 of about 2345" in lines[0]
        assert "2 min left" in lines[0]
        assert "load " in lines[1]
    if width == 200:
        assert step.title in lines[0]
        assert step.detail in lines[1]
        assert "1200 of about 2345, 2 min 05 s, about 2 min left" in lines[0]


def test_an_estimate_that_was_too_low_is_not_exceeded() -> None:
    step = Step("x", 10, 12)
    assert (step.whole, step.part) == (None, None)
    assert step.far() == "12 so far, 0 s"
    assert Step("x", estimate=Estimate(1e-9)).part == 0.99
    assert "left" not in Step("x", estimate=Estimate(1e-9)).far()
    assert Step("x").part is None
    assert Step("x", 0).whole is None


def after(seconds: float, step: Step) -> str:
    """Return how far a step is said to be so long after its beginning."""
    step.started = time.monotonic() - seconds
    return step.far()


def test_a_count_that_is_reached_while_the_work_goes_on_promises_nothing() -> None:
    known = Estimate(100, 298)
    assert after(50, Step("x", None, 297, estimate=known)).startswith("297 of about 298, ")
    assert after(50, Step("x", None, 298, estimate=known)) == "298 so far, 50 s, about 50 s left"
    assert after(50, Step("x", 298, 298)) == "298 so far, 50 s"
    assert Step("x", 298, 298).part is None
    # What now takes longer than ever has no end that could be told.
    assert after(150, Step("x", None, 299, estimate=known)) == "299 so far, 2 min 30 s"


def test_what_comes_after_the_last_counted_is_learned_too(tmp_path: Path) -> None:
    learned = Estimates(tmp_path)
    learned.learn("x", 100, 298, tail_s=50)
    estimate = learned.of("x")
    assert estimate == Estimate(100, 298, 50)
    assert after(50, Step("x", None, 297, estimate=estimate)).endswith("about 50 s left")
    with Console(verbosity=-1, estimates=learned).step("y") as step:
        step.update(done=5)
        step.started -= 30
        step.counted -= 20
        step.update(done=5)
    estimate = learned.of("y")
    assert estimate is not None
    assert estimate.tail_s == pytest.approx(20, abs=1)
    (tmp_path / FILE).write_text(json.dumps({"format": FORMAT, "steps": {here("x"): [[9, 3]]}}))
    assert Estimates(tmp_path).of("x") == Estimate(9, 3)


def test_an_estimate_is_for_as_much_as_there_is_to_do_now() -> None:
    known = Estimate(1000, 5000)
    assert known.left_s(0, 0, 50) == 10
    assert known.left_s(5, 25, 50) == pytest.approx(5)


def test_what_has_a_unit_is_said_with_it() -> None:
    assert Step("x", 34, 12, unit="MiB").far() == "12 of about 34 MiB, 0 s"
    assert Step("x", 34, 34, unit="MiB").far() == "34 MiB so far, 0 s"
    assert Step("x", 100, 42, unit="%").far(brief=True) == "42 %, 0 s"
    assert Step("x", 100, 100, unit="%").far() == "100 %, 0 s"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.1, "5 s"), (12, "10 s"), (58, "60 s"), (61, "1 min"), (150, "2 min"), (7200, "2.0 h")],
)
def test_what_is_expected_is_said_no_more_exactly_than_it_is_known(
    seconds: float, words: str
) -> None:
    assert about(seconds) == words


@given(st.floats(0.5, 1e5), st.floats(0, 1e5), st.integers(0, 10_000), st.integers(0, 10_000))
def test_what_is_left_is_never_less_than_nothing(
    seconds: float, elapsed: float, done: int, total: int
) -> None:
    left = Estimate(seconds).left_s(elapsed, done, total)
    assert left is None or left >= 0
    if total and done >= total:
        assert left == (seconds - elapsed if seconds > elapsed else None)


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
@pytest.mark.parametrize("width", [80, 200])
def test_in_a_real_terminal(host: Host, tmp_path: Path, width: int) -> None:
    """While a step is under way its view is there, at the end nothing of it but what was done."""
    socket = ["tmux", "-L", f"rbuild-test-{os.getpid()}-{width}"]
    script = tmp_path / "show.py"
    script.write_text(
        "import sys, time, pathlib\n"
        "from rbuild.ui.console import Console\n"
        "gate = pathlib.Path(sys.argv[1])\n"
        "with Console().step('Building Linux', total=100) as step:\n"
        "    step.update('CC drivers/spi/spi.o', done=42)\n"
        "    while not gate.exists(): time.sleep(0.05)\n"
    )
    gate = tmp_path / "gate"
    words = ["env", "TERM=screen", "NO_COLOR=1", sys.executable, str(script), str(gate)]
    line = f"{shlex.join(words)}; echo ended; sleep 60"
    subprocess.run(
        [*socket, "new-session", "-d", "-x", str(width), "-y", "24", "sh", "-c", line], check=True
    )

    def screen(until: str) -> str:
        for _ in range(600):
            done = subprocess.run([*socket, "capture-pane", "-p"], capture_output=True, text=True)
            if until in done.stdout:
                return done.stdout
            time.sleep(0.05)
        raise AssertionError(done.stdout + done.stderr)

    try:
        during = [one for one in screen("spi.o").splitlines() if one.strip()]
        assert len(during) == 2
        assert "Building Linux" in during[0]
        assert "42" in during[0]
        assert "load" in during[1]
        gate.touch()
        after = [one for one in screen("ended").splitlines() if one.strip()]
        assert re.fullmatch(r"  ok Building Linux \(.*\)", after[0])
        assert after[1] == "ended"
    finally:
        subprocess.run([*socket, "kill-server"], capture_output=True)


# What is learned.


def test_a_step_is_learned_from_those_before(tmp_path: Path) -> None:
    err = io.StringIO()

    def run(seconds: float, done: int, *, failed: bool = False) -> Step:
        console = Console(err=err, estimates=Estimates(tmp_path))
        with console.step("Building") as step:
            step.started -= seconds
            step.update(done=done)
            step.failed = failed
        return step

    assert run(100, 50).estimate is None
    assert run(100, 25).part == 0.5
    for seconds in (10, 20, 3000):
        run(seconds, 60)
    run(5, 1, failed=True)
    estimate = run(1.5, 60).estimate
    assert estimate is not None
    assert estimate.seconds == pytest.approx(100, abs=1)
    assert estimate.count == 60
    assert len(json.loads((tmp_path / FILE).read_text())["steps"][here("Building")]) == RUNS
    assert {path.name for path in tmp_path.iterdir()} == {FILE, f".{FILE}.lock"}


def test_nothing_is_learned_of_what_is_short_or_where_no_store_is(tmp_path: Path) -> None:
    Estimates(tmp_path / "none").learn("x", 100, 1)
    Estimates(tmp_path).learn("x", 0.5, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "other", ["machine_id", "processor", "processors", "DOCKER_HOST"], ids=lambda one: one
)
def test_nothing_is_known_that_another_machine_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """A cache directory may be on a shared home, or have been copied."""
    monkeypatch.setattr("rbuild.ui.estimates.machine_id", lambda: "one")
    machine.cache_clear()
    Estimates(tmp_path).learn("x", 100, 1)
    if other == "processors":
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(99)))
    elif other == "DOCKER_HOST":
        monkeypatch.setenv("DOCKER_HOST", "ssh://far")
    else:
        monkeypatch.setattr(f"rbuild.ui.estimates.{other}", lambda: "another")
    machine.cache_clear()
    assert Estimates(tmp_path).of("x") is None
    Estimates(tmp_path).learn("x", 7, 1)
    assert Estimates(tmp_path).of("x") == Estimate(7, 1)
    monkeypatch.undo()
    monkeypatch.setattr("rbuild.ui.estimates.machine_id", lambda: "one")
    machine.cache_clear()
    assert Estimates(tmp_path).of("x") == Estimate(100, 1)
    machine.cache_clear()


def test_the_machine_s_id_stays_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "machine-id"
    monkeypatch.setattr("rbuild.util.host.MACHINE_IDS", (secret,))
    assert machine_id() == ""
    secret.write_text("uninitialized\n")
    assert machine_id() == ""
    secret.write_text(f"{'5e' * 16}\n")
    assert len(machine_id()) == 16
    machine.cache_clear()
    Estimates(tmp_path).learn("x", 100, 1)
    machine.cache_clear()
    assert "5e5e" not in (tmp_path / FILE).read_text()


def test_what_is_learned_of_one_key_is_not_said_of_another(tmp_path: Path) -> None:
    console = Console(verbosity=-1, estimates=Estimates(tmp_path))
    with console.step("Provisioning", key="cross-1") as step:
        step.started -= 100
    with console.step("Provisioning", key="cross-2") as step:
        assert step.estimate is None
    with console.step("Provisioning", key="cross-1") as step:
        assert step.estimate is not None


def make_key(folder: Path, **changes: Any) -> str:
    """Return the key of a make in an output directory of ``bench``, whose name isn't hashed."""
    config, module = changes.pop("config", "A=y"), changes.pop("module", None)
    (folder / "kernel-cross-2/build").mkdir(parents=True, exist_ok=True)
    (folder / "kernel-cross-2/build/.config").write_text(config)
    had = {
        "jobs": 2,
        "ccache": False,
        "memory": None,
        "cpus": None,
        "tree": "t",
        "inputs": {"packages": ["a"]},
    }
    has = SimpleNamespace(**{**had, "runtime": "bwrap", **changes})
    ready: Any = SimpleNamespace(inputs=has.inputs, runtime=SimpleNamespace(name=has.runtime))
    tree: Any = SimpleNamespace(key=has.tree)
    context: Any = SimpleNamespace(
        jobs=has.jobs, ccache=has.ccache, memory_bytes=has.memory, cpus=has.cpus
    )
    made = Kbuild(context, ready, tree, folder / "kernel-cross-2/build")
    return made._key(["all"], module)


def test_a_make_is_known_by_all_that_decides_how_long_it_takes(tmp_path: Path) -> None:
    keys = [
        make_key(tmp_path),
        make_key(tmp_path, jobs=3),
        make_key(tmp_path, ccache=True),
        make_key(tmp_path, cpus=1.0),
        make_key(tmp_path, memory=1 << 30),
        make_key(tmp_path, tree="u"),
        make_key(tmp_path, inputs={"packages": ["a", "b"]}),
        make_key(tmp_path, runtime="docker"),
        make_key(tmp_path, config="A=n"),
        make_key(tmp_path, module=Path("/modules/c-1/build")),
        make_key(tmp_path, module=Path("/modules/c-2/build")),
    ]
    assert len(set(keys)) == len(keys)
    assert make_key(tmp_path) == keys[0]


def test_each_step_of_a_build_tells_what_it_is_of(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[str] = []
    monkeypatch.setattr(Estimates, "of", lambda self, key: noted.append(key))
    host("setup", "--force", "cross")
    host("kernel", "--profile", host.profile)
    host("module", "--profile", host.profile)
    assert any(
        re.match(r"Provisioning .* \(cross-trixie-\S+-[0-9a-f]{12} mmdebstrap\)", key)
        for key in noted
    )
    assert not [key for key in noted if not key.endswith(")")]


def test_a_rootfs_is_counted_to_its_end() -> None:
    """apt tells of what follows the essential packages only once they are set up."""
    step = Step("Provisioning")
    watch = _Watcher(step, Cache(Path("/nonexistent"), Console(verbosity=-1)), 2)
    watch("0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.")
    for line in ("Unpacking a", "Unpacking b", "Setting up a", "Setting up b"):
        watch(line)
    assert step.far().startswith("4 so far")
    watch("0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.")
    watch("Unpacking c")
    assert step.far().startswith("5 of about 6")
    watch("Setting up c")
    assert step.far().startswith("6 so far")


def test_a_kernel_counts_to_what_the_same_configuration_made(host: Host) -> None:
    """Neither another profile whose name begins alike, nor another version says how much."""
    cache = Cache(host.cache, Console(verbosity=-1))
    for name, configuration, count in (
        ("test-more-cross", "other", 5000),
        ("test-cross", "older", 700),
        ("test-hybrid", "same", 30),
    ):
        entry = cache.entry(EntryKind.KDIRS, name, "1")
        with cache.lock(entry):
            more = {"objects": {"kernel": count}, "configuration": configuration}
            cache.publish(entry, cache.partial(entry), more)
    profile = load(str(host.profile))
    kernel = Kernel(profile, None, None, BuildContext("kernel", cache, Bwrap()))  # type: ignore[arg-type]
    assert kdir.expected_objects(kernel, "kernel", "same") == 30
    assert kdir.expected_objects(kernel, "kernel", "new") is None
    assert kdir.expected_objects(kernel, "kernel", None) is None
    hinted = profile.model_copy(update={"objects": Objects(kernel=1012)})
    assert kdir.expected_objects(replace(kernel, profile=hinted), "kernel", "new") == 1012


def test_old_keys_fall_out(tmp_path: Path) -> None:
    known = {here(f"k{number}"): [[2.0, 1]] for number in range(KEYS)}
    (tmp_path / FILE).write_text(json.dumps({"format": FORMAT, "steps": known}))
    learned = Estimates(tmp_path)
    learned.learn("k0", 5, 1)
    learned.learn("new", 5, 1)
    found = read(tmp_path / FILE)
    assert len(found) == KEYS
    assert here("k0") in found
    assert here("new") in found
    assert here("k1") not in found


def test_a_newer_file_is_left_out_and_one_that_cannot_be_written_is_no_error(
    tmp_path: Path,
) -> None:
    (tmp_path / FILE).write_text(json.dumps({"format": FORMAT + 1, "steps": {here("x"): [[2, 1]]}}))
    assert Estimates(tmp_path).of("x") is None
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    Estimates(tmp_path).learn("x", 5, 1)


documents = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["format", "steps", "x"]), inner),
    ),
)


@given(st.one_of(st.text().map(str.encode), documents.map(lambda one: json.dumps(one).encode())))
def test_whatever_is_in_the_file_it_is_only_passed_over(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("x")
    (folder / FILE).write_bytes(content)
    learned = Estimates(folder)
    found = learned.of("x")
    assert found is None or found.seconds > 0
    learned.learn("x", 7, 3)
    assert Estimates(folder).of("x") is not None


def test_an_annotation_is_at_the_repository_s_file(github, monkeypatch) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", "/w/repo")
    console = Console(err=github)
    console.error("no", detail="/w/repo/my/a.c:3:1: error: x")
    console.error("no", detail="/kdir/b.c:4:1: error: x")
    shown = github.getvalue()
    assert "::error title=rbuild,file=my/a.c,line=3::no" in shown
    assert "::error title=rbuild,file=/kdir/b.c,line=4::no" in shown
