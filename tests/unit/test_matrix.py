"""A matrix: what is planned and skipped, what travels, how ends are told; on fakes of rbuild."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rbuild.bench import machine
from rbuild.bench.plan import Target
from rbuild.errors import Cancelled, UsageError
from rbuild.matrix import scheduler, task
from rbuild.matrix.bundle import ProfileBundle, pack, unpack
from rbuild.matrix.identity import identity
from rbuild.matrix.plan import Build, Plan, Skip, combine
from rbuild.matrix.report import Attempt, Report, Row
from rbuild.matrix.task import Outcome, Place, Task, run_task
from rbuild.specs import profile
from rbuild.specs.profile import Driver
from rbuild.ui.console import Console

from .conftest import Host

MODULES = [Target.OUT_OF_TREE, Target.IN_TREE]


# What is planned.


def test_all_combinations_once_those_of_a_group_together() -> None:
    plan = combine([profile.load("slim")], ["cross", "cross", "hybrid"], MODULES, list(Driver)[:2])
    assert [str(one) for one in plan.builds][:3] == [
        "slim out-of-tree rust, cross",
        "slim out-of-tree rust, hybrid",
        "slim out-of-tree c, cross",
    ]
    assert len(plan.builds) == 8
    assert plan.skipped == ()


def test_a_kernel_has_no_driver() -> None:
    plan = combine([profile.load("slim")], ["cross"], [Target.KERNEL], list(Driver))
    assert [(str(one), one.driver) for one in plan.builds] == [("slim kernel, cross", None)]


def test_rust_is_skipped_where_the_kernel_has_none() -> None:
    found = [profile.load("slim"), profile.load("slim-no-rust")]
    plan = combine(found, ["cross"], [Target.OUT_OF_TREE], [Driver.RUST, Driver.C])
    assert len(plan.builds) == 3
    (skip,) = plan.skipped
    assert str(skip.build) == "slim-no-rust out-of-tree rust, cross"
    assert skip.reason == "the profile has no Rust"


def test_an_environment_of_another_architecture_is_its_sibling_or_is_skipped() -> None:
    found = [profile.load("slim"), profile.load("slim-arm32")]
    plan = combine(found, ["cross", "cross-armhf"], MODULES[:1], [Driver.C])
    assert [(one.profile.name, one.environment) for one in plan.builds] == [
        ("slim", "cross"),
        ("slim-arm32", "cross-armhf"),
    ]
    (skip,) = plan.skipped
    assert str(skip.build) == "slim out-of-tree c, cross-armhf"
    assert skip.reason == "cross-armhf builds for armhf, and the profile is for arm64"


def test_an_unknown_environment_is_an_error_and_no_skip() -> None:
    with pytest.raises(UsageError, match=r"crosss.*Did you mean 'cross'"):
        combine([profile.load("slim")], ["cross", "crosss"], MODULES, [Driver.C])


def test_nothing_to_build_says_why() -> None:
    with pytest.raises(UsageError) as caught:
        combine([profile.load("slim-no-rust")], ["cross"], MODULES, [Driver.RUST])
    assert caught.value.detail.count("has no Rust") == 2


def test_profiles_of_one_name_are_refused(host: Host) -> None:
    other = host.folder / "other"
    other.mkdir()
    (other / "tiny.yaml").write_text(host.profile.read_text())
    words = ["matrix", "--profile", host.profile, "--profile", other / "tiny.yaml"]
    assert "named tiny" in host(*words, "--env", "cross", code=2).err


# Profiles that travel.


def test_a_profile_arrives_with_all_it_says(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    (home / "board.config").write_text("CONFIG_SPI=y\n")
    (home / "sub/board.config").write_text("CONFIG_I2C=y\n")
    (home / "my.base").write_text("CONFIG_RUST=y\n")
    (home / "mine.yaml").write_text(
        "name: mine\nsource: [{directory: ./linux}, {debian: linux-source-6.12}]\nconfig:\n"
        "  base: my.base\n  fragments: [board.config, sub/board.config]\n  options: {PM: n}\n"
    )
    origin = profile.load(str(home / "mine.yaml"))
    away = profile.load(str(unpack(pack(origin), tmp_path / "away")))
    assert away.fragments() == origin.fragments()
    base = away.path.parent / away.config.base
    assert base.read_text() == "CONFIG_RUST=y\n"
    assert away.source[0].directory == home / "linux"
    assert away.source[1] == origin.source[1]


@pytest.mark.parametrize("name", profile.names())
def test_every_profile_of_ours_is_the_same_after_its_journey(name: str, tmp_path: Path) -> None:
    origin = profile.load(name)
    away = profile.load(str(unpack(pack(origin), tmp_path)))
    assert away.fragments() == origin.fragments()
    assert away.model_dump(exclude={"config"}) == origin.model_dump(exclude={"config"})
    assert (away.config.base, away.config.options) == (origin.config.base, origin.config.options)


def test_a_base_configuration_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nsource: {debian: linux-source-6.12}\nconfig: {base: no.file}\n")
    with pytest.raises(UsageError, match=r"config\.base: .*no\.file can't be read"):
        pack(profile.load(str(path)))


def test_the_identity_is_of_code_and_definitions(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from rbuild.util import data

    before = identity()
    assert before == identity()
    for name in ("rootfs", "module"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(data, "folder", lambda name: tmp_path / name)
    empty = identity()
    assert empty != before
    (tmp_path / "module/a.o").write_text("left by a build")
    assert identity() == empty
    (tmp_path / "module/a.c").write_text("int x;")
    assert identity() != empty


# One build.

FAKE = """\
import json, sys, time
words = sys.argv[1:]
print("compiling", *words[3:], file=sys.stderr)
print(open(words[-1]).read(), file=sys.stderr)
{body}
"""


@pytest.fixture
def fake(tmp_path: Path) -> Callable[[str], Place]:
    """Return what makes a place whose rbuild does what it is told."""

    def make(body: str) -> Place:
        path = tmp_path / "fake.py"
        path.write_text(FAKE.format(body=body))
        return Place("here", tmp_path, tmp_path, (sys.executable, "-IS", str(path)))

    return make


TASK = Task(("module", "--out-of-tree"), ProfileBundle((("tiny.yaml", "name: tiny"),)))


def test_the_json_at_the_end_is_the_result_and_the_rest_is_the_log(fake) -> None:
    result = {"artefacts": [{"path": "a", "sha256": "0"}], "nested": {"x": {}}}
    outcome = run_task(TASK, fake(f"print('{{'); print(json.dumps({result}, indent=2))"))
    assert outcome.exit_code == 0
    assert outcome.result == result
    assert outcome.log.endswith("name: tiny\n{\n")
    assert "--out-of-tree --profile tiny.yaml" in outcome.log
    assert outcome.error is None
    assert outcome.machine == "here"


@pytest.mark.parametrize(
    ("code", "final"), [(0, True), (1, True), (2, True), (3, False), (4, False)]
)
def test_only_what_is_no_fault_of_the_builds_is_tried_elsewhere(fake, code, final) -> None:
    place = fake(f"print(json.dumps({{'error': 'No.', 'x': 1}}, indent=2)); sys.exit({code})")
    outcome = run_task(TASK, place)
    assert (outcome.exit_code, outcome.is_final) == (code, final)
    assert outcome.error == (None if code == 0 else "No.")


def test_an_rbuild_that_is_killed_is_no_failed_build(fake) -> None:
    outcome = run_task(TASK, fake("import os; os.kill(os.getpid(), 9)"))
    assert (outcome.exit_code, outcome.is_final) == (-9, False)
    assert outcome.error == "rbuild ended with status -9."


def test_output_that_is_no_json_is_all_log(fake) -> None:
    outcome = run_task(TASK, fake("print('{\\nnonsense'); sys.exit(1)"))
    assert outcome.result == {}
    assert "nonsense" in outcome.log


def test_a_log_is_bounded_and_says_so(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "LOG_BYTES", 1000)
    log = run_task(TASK, fake("[print(n) for n in range(10000)]; print('{\\n}')")).log
    first, _, rest = log.partition("\n")
    assert first.endswith("characters before this are left out]")
    assert rest.endswith("9998\n9999\n")
    assert len(rest) <= 1000


def test_an_unwanted_build_ends(fake, tmp_path: Path) -> None:
    asked = []
    with pytest.raises(Cancelled):
        run_task(TASK, fake("time.sleep(1000)"), unwanted=lambda: asked.append(1) or len(asked) > 2)
    assert not list(tmp_path.glob("build-*"))


# What is told.

NOW = machine.moment()
HERE = machine.describe(NOW, NOW, Path("/"))
SLIM = profile.load("slim")


def row(
    env: str,
    where: str = "one",
    code: int = 0,
    wall_s: float = 2.0,
    sha: str = "aa",
    cached: bool = False,
    hits: int = 0,
) -> Row:
    phase = {"name": "module", "wall_s": wall_s, "cached": cached, "ccache": {"hits": hits}}
    result = {
        "artefacts": [{"path": f"/x/{where}/build/m.ko", "sha256": sha * 32}],
        "phases": [phase],
    }
    failed = {"error": "It is broken."}
    outcome = Outcome(code, failed if code else result, "", where, HERE)
    build = Build(SLIM, env, env, Target.OUT_OF_TREE, Driver.C)
    return Row(build, outcome, (Attempt(where, code),), log="/l.log")


def report(*rows: Row, skipped: tuple[Skip, ...] = ()) -> Report:
    return Report(Plan(tuple(one.build for one in rows), skipped), rows, "tcp://h:1")


def words(found: Report) -> str:
    return found.text(Console().table)


def test_times_of_one_machine_are_compared() -> None:
    found = report(row("cross"), row("hybrid", wall_s=3.0))
    (times,) = found.times()
    assert times.ratios() == [("hybrid", 1.5)]
    assert "on one: cross 2.00 s, hybrid 1.50 x that" in words(found)


def test_times_of_different_machines_are_never_in_one_ratio() -> None:
    found = report(row("cross"), row("hybrid", "two", wall_s=3.0), row("chroot", wall_s=8.0))
    (times,) = found.times()
    assert times.machine == "one"
    assert times.ratios() == [("chroot", 4.0)]
    assert "on one and two; times of different machines aren't compared" in words(found)
    both = report(row("cross"), row("hybrid", "two"))
    assert both.times() == []
    assert both.as_json()["not_compared"] == [
        {"build": "slim out-of-tree c", "machines": ["one", "two"]}
    ]
    assert " x that" not in words(both)


@pytest.mark.parametrize("more", [{"cached": True}, {"hits": 1}, {"code": 1}])
def test_what_took_no_full_build_is_not_compared(more) -> None:
    assert report(row("cross"), row("hybrid", **more)).times() == []


def test_the_bytes_agree_or_the_report_says_which_do_not() -> None:
    same = report(row("cross"), row("hybrid", "two"))
    assert "slim out-of-tree c: yes, in cross on one and hybrid on two" in words(same)
    other = report(row("cross"), row("hybrid", "two", sha="bb"))
    assert f"NO, m.ko: {'a' * 12} in cross on one; {'b' * 12} in hybrid on two" in words(other)
    (one,) = other.as_json()["same_bytes"]
    assert not one["identical"]
    assert report(row("cross")).same() == []


def test_exit_codes_of_a_report() -> None:
    lost = Row(row("chroot").build, None, (Attempt("two", None),), error="two was lost.")
    assert report(row("cross")).exit_code == 0
    assert report(row("cross"), row("hybrid", code=2)).exit_code == 1
    assert report(row("cross"), row("hybrid", code=3)).exit_code == 4
    assert report(row("cross"), lost).exit_code == 4
    assert report(row("cross", code=1), lost).exit_code == 1
    assert "slim out-of-tree c, chroot: two was lost." in words(report(row("cross"), lost))


def test_the_whole_report_is_json() -> None:
    skip = Skip(row("chroot").build, "so it is")
    found = report(row("cross"), row("hybrid", code=1), skipped=(skip,))
    data = json.loads(json.dumps(found.as_json()))
    assert [one["state"] for one in data["builds"]] == ["built", "failed"]
    assert data["builds"][1]["error"] == "It is broken."
    assert data["skipped"][0]["reason"] == "so it is"
    assert [one["name"] for one in data["machines"]] == ["one"]


# The command on this machine.


def test_on_this_machine_one_after_another(host: Host) -> None:
    base = ["matrix", "--profile", host.profile, "--env", "cross", "--driver", "c"]
    target = host.folder / "matrix.json"
    found = host(
        "--json", *base, "--kind", "out-of-tree", "--kind", "kernel", "--export-json", target
    )
    assert found.json == json.loads(target.read_text())
    assert [one["kind"] for one in found.json["builds"]] == ["out-of-tree", "kernel"]
    for one in found.json["builds"]:
        assert one["state"] == "built"
        assert one["artefacts"][0]["sha256"]
        assert Path(one["log"]).is_file()
    host(*base, "--kind", "out-of-tree")  # now checked against the kernel's own symbols
    again = host(*base, "--kind", "out-of-tree")
    assert "nothing to do" in again.out


def test_each_build_is_told_what_the_command_line_says(host: Host) -> None:
    base = ["matrix", "--profile", host.profile, "--env", "cross", "--driver", "c"]
    words = ["--jobs", "3", "--no-ccache", "--kind", "kernel"]
    (found,) = host("--json", *base, *words).json["builds"]
    assert " --jobs 3 --no-ccache " in Path(found["log"]).read_text()
    assert host.calls(" -j3 ") > 0


def test_a_variable_for_another_time_is_no_wrong_usage(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RBUILD_TLS_CA", "/nowhere/ca.pem")
    words = ["--profile", host.profile, "--env", "cross", "--driver", "c", "--kind", "kernel"]
    host("matrix", *words)


def test_a_failure_does_not_keep_others_from_their_build(host: Host) -> None:
    other = host.write_profile(name="other")
    host.fault("kernel-error")
    found = host(
        *("matrix", "--profile", host.profile, "--profile", other, "--env", "cross"),
        *("--driver", "c", "--kind", "kernel", "--kind", "out-of-tree"),
        code=1,
    )
    assert found.out.count("failed") >= 2
    assert found.out.count("built") >= 2
    assert "Not built:" in found.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--export-json", "/nowhere/at/all.json"], "is not a folder"),
        (["--tls-key", "/dev/null"], "--tls-"),
        (["--insecure"], "--insecure needs --scheduler"),
        (["--scheduler", "tcp://h:1", "--env", "./mine.yaml"], "doesn't travel"),
        (["--scheduler", "nonsense"], "no scheduler's address"),
        (["--scheduler", "http://h:1"], "no scheduler's address"),
        (["--scheduler", "tls://h:1"], "needs --tls-ca"),
        (["--profile", "slimm"], "Did you mean 'slim'"),
    ],
)
def test_wrong_usage_is_named(bare: Host, words: list[str], said: str) -> None:
    if "--tls-key" in words:
        key = bare.folder / "key.pem"
        key.write_text("")
        words = ["--tls-key", str(key)]
    assert said in bare("matrix", *words, code=2).err


def test_addresses() -> None:
    files = [Path("ca"), Path("cert"), Path("key")]
    assert scheduler.scheduler_at("h:1", None, None, None).address == "tcp://h:1"
    assert scheduler.scheduler_at("h:1", *files).address == "tls://h:1"
    assert scheduler.scheduler_at("tcp://[::1]:1", None, None, None).address == "tcp://[::1]:1"
    with pytest.raises(UsageError, match="not encrypted"):
        scheduler.scheduler_at("tcp://h:1", *files)


@pytest.mark.parametrize("port", ["0", "65536", "99999999999", "\u00b2", "x", ""])
def test_a_port_that_is_none_is_named(port: str) -> None:
    with pytest.raises(UsageError, match="no scheduler's address"):
        scheduler.scheduler_at(f"tcp://127.0.0.1:{port}", None, None, None)


def resolved(address: str, *, insecure: bool = False) -> tuple[list[str], list[str]]:
    """Return what an address without TLS resolves to, and what was warned of."""
    warned: list[str] = []
    found = scheduler.scheduler_at(address, None, None, None, insecure=insecure).resolve(
        warned.append
    )
    return found, warned


def names(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every host have these addresses."""
    infos = [(0, 0, 0, "", (one, 0)) for one in addresses]
    monkeypatch.setattr(scheduler.socket, "getaddrinfo", lambda *_, **__: infos)


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("tcp://127.0.0.1:1", "tcp://127.0.0.1:1"),
        ("127.1.2.3:1", "tcp://127.1.2.3:1"),
        ("tcp://[::1]:1", "tcp://[::1]:1"),
        ("tcp://[::ffff:127.0.0.1]:1", "tcp://127.0.0.1:1"),
    ],
)
def test_loopback_needs_no_tls(address: str, found: str) -> None:
    assert resolved(address) == ([found], [])


def test_a_name_of_several_addresses_is_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, "::1", "127.0.0.1", "127.0.0.1")
    assert resolved("tcp://h:1") == (["tcp://[::1]:1", "tcp://127.0.0.1:1"], [])
    names(monkeypatch, "127.0.0.1", "192.0.2.1")
    with pytest.raises(UsageError, match=r"not encrypted, and 192\.0\.2\.1 is beyond"):
        resolved("tcp://h:1")


@pytest.mark.parametrize(
    "address", ["192.0.2.1", "10.0.0.1", "169.254.0.1", "fe80::1%eth0", "::ffff:192.0.2.1"]
)
def test_beyond_loopback_needs_tls_or_the_option(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    names(monkeypatch, address)
    with pytest.raises(UsageError, match="not encrypted") as error:
        resolved("tcp://h:1")
    assert "--insecure" in str(error.value.hint)
    found, warned = resolved("tcp://h:1", insecure=True)
    assert len(found) == 1
    assert "others can run programs here" in warned[0]
    files = [Path("ca"), Path("cert"), Path("key")]
    assert len(scheduler.scheduler_at("tls://h:1", *files).resolve(pytest.fail)) == 1
    with pytest.raises(UsageError, match="uses TLS: omit --insecure"):
        scheduler.scheduler_at("tls://h:1", *files, insecure=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "0", "[::]", "[::ffff:0.0.0.0]"])
@pytest.mark.parametrize("insecure", [False, True])
def test_an_address_to_listen_on_is_no_scheduler(host: str, insecure: bool) -> None:
    with pytest.raises(UsageError, match="wildcard address") as error:
        resolved(f"tcp://{host}:1", insecure=insecure)
    assert "tcp://127.0.0.1:1" in str(error.value.hint)


@pytest.mark.parametrize(
    ("listening", "called", "exposed"),
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "localhost", True),
        ("::", "127.0.0.1", True),
        ("::1", "[::1]", False),
    ],
)
def test_a_scheduler_on_all_interfaces_is_no_loopback(
    listening: str, called: str, exposed: bool
) -> None:
    family = socket.AF_INET6 if ":" in listening else socket.AF_INET
    with socket.create_server((listening, 0), family=family) as server:
        port = server.getsockname()[1]
        address = f"tcp://{called}:{port}"
        if not exposed:
            assert resolved(address)[1] == []
            return
        with pytest.raises(UsageError, match=f"its scheduler listens on {listening}"):
            resolved(address)
        assert f"listens on {listening}" in resolved(address, insecure=True)[1][0]


def test_nobody_speaks_to_a_stranger_without_tls(
    bare: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker and client refuse, and connect to no one before they do."""
    monkeypatch.setattr("rbuild.matrix.remote.connect", lambda *_, **__: pytest.fail("connected"))
    for words in (["matrix", "--env", "cross"], ["worker"]):
        found = bare(*words, "--scheduler", "tcp://192.0.2.1:1", code=2)
        assert "tcp://192.0.2.1:1 is not encrypted" in found.err
        assert "--insecure" in found.err


def test_a_stranger_that_is_accepted_is_warned_of(
    bare: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody(*_: object, **__: object) -> None:
        raise OSError("not there")

    monkeypatch.setattr("rbuild.matrix.remote.connect", nobody)
    for words in (["matrix", "--env", "cross"], ["worker"]):
        found = bare(*words, "--scheduler", "tcp://192.0.2.1:1", "--insecure", code=4)
        assert "warning: tcp://192.0.2.1:1 is not encrypted" in found.err
        assert "No scheduler answers at tcp://192.0.2.1:1: not there" in found.err


def test_a_scheduler_whose_name_is_unknown_is_named(
    bare: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(scheduler.socket, "getaddrinfo", unknown)
    found = bare("worker", "--scheduler", "tcp://nowhere:1", code=4)
    assert "No scheduler answers at tcp://nowhere:1: Name or service not known." in found.err


def test_without_dask_the_extra_is_named(bare: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    for words in (["matrix"], ["worker"]):
        found = bare(*words, "--scheduler", "tcp://127.0.0.1:1", code=3)
        assert "pip install 'rbuild[cluster]'" in found.err


def test_certificates_that_are_none_are_named(bare: Host) -> None:
    for name in ("ca", "cert", "key"):
        (bare.folder / name).write_text("nonsense")
    words = [f"--tls-{name}={bare.folder / name}" for name in ("ca", "cert", "key")]
    found = bare("worker", "--scheduler", "tls://127.0.0.1:1", *words, code=2)
    assert "can't be used for TLS" in found.err
    (bare.folder / "cert").unlink()
    found = bare("worker", "--scheduler", "tls://127.0.0.1:1", *words, code=2)
    assert f"--tls-cert: {bare.folder / 'cert'} can't be read" in found.err


def test_no_scheduler_is_no_traceback(bare: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbuild.matrix.remote.PROBE_S", 0.5)
    for words in (["matrix", "--env", "cross"], ["worker"]):
        found = bare(*words, "--scheduler", "127.0.0.1:1", code=4)
        assert "No scheduler answers at tcp://127.0.0.1:1" in found.err


@pytest.mark.parametrize(
    "result",
    [
        '{\n  "phases": [{"wall_s": "x"}]\n}',
        '{\n  "phases": 1\n}',
        '{\n  "artefacts": [{"path": "x"}]\n}',
        '{\n  "log": ' + "[" * 5000,
    ],
)
def test_json_that_no_rbuild_says_is_all_log(result: str) -> None:
    assert task._parted(f"said\n{result}\n") == (f"said\n{result}\n", {})


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a//x", ""])
def test_a_packed_profile_writes_only_into_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "away"
    with pytest.raises(UsageError, match="A packed profile has a file named"):
        unpack(ProfileBundle((("p.yaml", ""), (name, "text"))), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["away"]
