"""Boots on a host of fakes: what a guest says, and what rbuild makes of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbuild.boot import tap, trace
from rbuild.boot.console import Listener
from rbuild.cache.directory import Cache
from rbuild.cli.boot import _is_ours
from rbuild.errors import MissingDependency
from rbuild.sandbox.context import BuildContext
from rbuild.sandbox.runtime import MODULE
from rbuild.ui.console import Console
from rbuild.util import data

from .conftest import Host, Result


@pytest.fixture
def boot(host: Host):  # type: ignore[no-untyped-def]
    """Return rbuild boot on a profile that has what a guest needs."""
    profile = host.write_bootable()

    def run(*words: object, code: int = 0) -> Result:
        return host(*words, "--profile", profile, code=code)

    return run


def test_a_guest_that_passes(host: Host, boot) -> None:
    found = boot("--json", "boot", "--driver", "c").json
    guest_said = found["boot"]
    assert guest_said["passed"]
    assert (guest_said["planned"], guest_said["ok"], guest_said["skipped"]) == (3, 2, 1)
    assert guest_said["up_s"] == 0.5
    assert [one["group"] for one in guest_said["tests"]] == ["loading"] * 3
    assert [phase["name"] for phase in found["phases"]][-2:] == ["module", "boot"]
    assert "MFRC522 version" in Path(guest_said["console"]).read_text()
    assert "functional soak" in (host.folder / "calls").read_text()


KUNIT = ("KTAP version 1", "1..2", "    ok 1 a_case", "ok 1 a_suite", "    not ok 1 a_case")


def test_the_kernel_s_own_tests_are_none_of_the_guest_s() -> None:
    listener = Listener()
    said = [*KUNIT, "rbuild: up after 0.50 s", "ok 1 - it loads", "1..1"]
    ended = ["rbuild: tests ended with 0", "rbuild: log begins", *KUNIT, "rbuild: log ends"]
    for line in [*said, *ended]:
        listener.hear(line)
    assert listener.verdict() == []
    assert listener.tap.report().planned == 1


def test_a_kernel_whose_own_test_fails_is_no_good() -> None:
    listener = Listener()
    listener.hear("[    0.5] not ok 2 a_suite")
    assert "the kernel's own test a_suite failed" in listener.verdict()


def test_the_guest_has_neither_network_nor_disk(host: Host, boot) -> None:
    boot("boot", "--driver", "c")
    line = next(
        line
        for line in (host.folder / "calls").read_text().splitlines()
        if line.startswith("qemu-system-aarch64 -machine")
    )
    assert "-nic none" in line
    assert "-sandbox on" in line
    assert "-drive" not in line
    assert "mfrc522 functional soak" in line


@pytest.fixture
def pi(host: Host) -> Path:
    """Return the file of a machine that needs what the fixture's kernel has not."""
    path = host.folder / "pi.yaml"
    path.write_text(
        "{model: raspi3b, architecture: arm64, console: ttyS1, serial_port: 1, processors: 4,"
        " memory_mib: 1024, device_tree: pi.dtb, arguments: quiet, needs: [SPI]}\n"
    )
    return path


def test_a_board_is_what_its_file_says(host: Host, boot, pi: Path) -> None:
    found = boot("--json", "boot", "--driver", "c", "--machine", pi).json
    assert found["machine"] == "raspi3b"
    line = (host.folder / "calls").read_text().splitlines()[-1]
    assert "-machine raspi3b -dtb " in line
    assert "boot/dts/pi.dtb -serial null -smp 4 -m 1024 " in line
    assert "-append console=ttyS1 rdinit=/init.sh" in line
    assert " quiet -- mfrc522 functional soak" in line
    assert "-cpu" not in line


def test_a_kernel_without_the_boards_console_is_not_booted(host: Host, boot, pi: Path) -> None:
    pi.write_text(pi.read_text().replace("[SPI]", "[SPI, SERIAL_8250_CONSOLE]"))
    refused = boot("boot", "--machine", pi, code=2)
    assert "on raspi3b: CONFIG_SERIAL_8250_CONSOLE not set" in refused.err


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ("raspi3", "There is no machine 'raspi3'. Did you mean 'raspi3b'?"),
        ("raspi2b", "runs kernels for arm, not arm64"),
    ],
)
def test_a_machine_that_is_not_there(boot, machine: str, words: str) -> None:
    assert words in boot("boot", "--machine", machine, code=2).err


def test_busybox_is_fetched_once_and_the_same_root_is_the_same_bytes(host: Host, boot) -> None:
    first = boot("--json", "boot", "--driver", "c").json["boot"]["initramfs"]
    again = boot("--json", "boot", "--driver", "c").json["boot"]["initramfs"]
    assert first["path"] != again["path"]
    assert first["sha256"] == again["sha256"]
    assert host.calls("busybox-static") == 1


FAULTS = {
    "test-fails": "one test of 3 failed, the first: loading: the version",
    "test-missing": "1 of 3 tests are missing, first 2",
    "no-plan": "without their plan",
    "splat": "the kernel said `WARNING: CPU: 0 PID: 71 at lib/refcount.c:28`",
    "panic": "the kernel said `Unable to handle kernel paging request",
    "no-init": "the kernel said `Kernel panic - not syncing: No working init found.`",
    "script-fails": "the test script ended with status 2",
    "log-cut": "before all of its log was seen",
    "qemu-crashes": "qemu-system-aarch64 ended with status 1",
}


def test_a_guest_that_fails_says_how(host: Host, boot) -> None:
    for fault, words in FAULTS.items():
        host.fault(fault)
        found = boot("boot", "--driver", "c", code=1)
        assert words in found.err, fault
        assert "The console's last lines:" in found.err
        assert "console.log" in found.err
        assert "  failed Testing" in found.err
        assert found.out == ""


def test_json_of_a_failure_is_one_value_with_all_tests(host: Host, boot) -> None:
    host.fault("test-fails")
    found = boot("--json", "boot", "--driver", "c", code=1)
    assert "not ok 2 - loading: the version" in found.err
    assert "expected: 145" in found.err
    assert found.json["boot"]["failed"] == 1
    assert found.json["boot"]["problems"]
    assert found.json["boot"]["tests"][1]["diagnostics"] == ["     got: 146", "expected: 145"]


def test_a_guest_that_is_never_done_is_ended(host: Host, boot, monkeypatch) -> None:
    for fault in ("guest-hangs", "chatter"):
        host.fault(fault)
        found = boot("boot", "--driver", "c", "--timeout", "1", code=1)
        assert "it was not done after 1 s and was ended" in found.err
        assert ("half a li" in found.err) == (fault == "guest-hangs")
    monkeypatch.setattr("rbuild.cli.boot.SILENCE_S", 0.5)
    host.fault("guest-hangs")
    assert "it wrote nothing for 0.5 s" in boot("boot", "--driver", "c", code=1).err


def test_a_qemu_that_refuses_is_no_failure_of_the_driver(host: Host, boot) -> None:
    host.fault("qemu-refuses")
    assert "could not load kernel" in boot("boot", "--driver", "c", code=4).err


def test_a_mirror_that_is_down(host: Host, boot) -> None:
    host.fault("no-mirror")
    assert "busybox-static could not be downloaded" in boot("boot", "--driver", "c", code=4).err
    host.fault()
    boot("boot", "--driver", "c")


def test_a_kernel_that_can_not_boot_is_wrong_usage(host: Host) -> None:
    found = host("boot", "--driver", "c", "--profile", host.profile, code=2)
    assert "CONFIG_BLK_DEV_INITRD" in found.err
    assert "tiny.yaml" in found.err
    assert host.calls("Image") == 0


def test_any_module_is_loaded_and_unloaded(host: Host, boot) -> None:
    found = boot("--json", "boot", host.write_module()).json
    assert found["driver"] is None
    assert "mine load" in (host.folder / "calls").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("--suite", "functional"),
        ("--suite", "load", "--suite", "soak"),
        ("--test", "dead_bus"),
    ],
)
def test_another_module_is_not_given_the_tests_of_our_driver(
    host: Host, boot, words: tuple[str, ...]
) -> None:
    found = boot("boot", host.write_module(), *words, code=2)
    assert f"{' '.join(words[-2:])} tests our driver" in found.err
    assert "--suite load" in found.err
    assert host.calls("make") == 0


def test_another_module_is_given_the_tests_of_any(host: Host, boot) -> None:
    boot("boot", host.write_module(), "--suite", "load", "--test", "module")
    assert "mine load module" in (host.folder / "calls").read_text()


@pytest.mark.parametrize("line", ["obj-m += mfrc522.o", "obj-$(X) := a.o mfrc522_rust.o"])
def test_a_copy_of_our_driver_is_given_its_tests(tmp_path: Path, line: str) -> None:
    (tmp_path / "Makefile").write_text(line)
    assert _is_ours(tmp_path)
    (tmp_path / "Makefile").write_text("obj-m += my-mfrc522.o mfrc522.obj\n")
    (tmp_path / "Kbuild").mkdir()
    assert not _is_ours(tmp_path)


def test_what_a_test_got_is_whole_in_the_file_and_short_on_the_terminal(host: Host, boot) -> None:
    long = "x" * 5000
    host.fault("test-fails")
    host.tool("true", "")
    fake = host.folder / "bin/qemu-system-aarch64"
    said = ["rbuild: up after 0.5 s", "not ok 1 - it", f"#      got: {long}"]
    said += [f"# line {number}" for number in range(50)]
    said += ["# expected: 1", "1..1", "rbuild: tests ended with 1"]
    said += ["rbuild: log begins", "rbuild: log ends"]
    text = "".join(f"{line}\n" for line in said)
    (host.folder / "said").write_text(text)
    fake.write_text(f"#!/bin/sh\ncat {host.folder}/said\n")
    fake.chmod(0o755)
    found = boot("--json", "boot", "--driver", "c", code=1)
    assert max(map(len, found.err.splitlines())) < 400
    assert "more characters" in found.err
    assert "expected: 1" in found.err
    assert "more lines)" in found.err
    (test,) = found.json["boot"]["tests"]
    assert test["diagnostics"][0] == f"     got: {long}"
    assert long in Path(found.json["boot"]["tap"]).read_text()


def test_each_line_that_a_test_got_is_a_comment(tmp_path: Path) -> None:
    """So that none is lost, or taken for a test."""
    script = (data.folder("module") / "tests/guest.sh").read_text()
    functions = script[script.index("report() {") : script.index("skip() {")]
    call = (
        "count=0 failures=0\n" + functions + "is 'a\nok 9 - b' 'c\nd' it\nisnt 'e\nf' 'e\nf' that\n"
    )
    done = subprocess.run(["sh", "-c", call], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "not ok 1 - it",
        "#      got: a",
        "# ok 9 - b",
        "# expected: c",
        "# d",
        "not ok 2 - that",
        "# got: e",
        "# f",
    ]


# What the kernel reports.

PANIC = """\
[    0.9][   T54] rust_kernel: panicked at /module/pan.rs:9:43:
[    0.9][   T54] index out of bounds: the len is 1 but the index is 5
[    0.9][   T54] ------------[ cut here ]------------
[    0.9][   T54] kernel BUG at rust/helpers/bug.c:7!
[    0.9][   T54] Internal error: Oops - BUG: 00000000f2000800 [#1] SMP
[    0.9][   T54] pc : rust_helper_BUG+0x0/0x4
[    0.9][   T54] lr : _RNvMCs63Ul9L0Rw5_3panNtB2_4Deep5index+0x30/0x34 [pan]
[    0.9][   T54] Call trace:
[    0.9][   T54]  rust_helper_BUG+0x0/0x4
[    0.9][   T54]  init_module+0x14/0xfc4 [pan]
[    0.9][   T54] ---[ end trace 0000000000000000 ]---
[    0.9][   T54] Kernel panic - not syncing: Oops - BUG: Fatal exception
"""


def heard(text: str, up_s: float | None = 0.5) -> Listener:
    listener = Listener(up_s=up_s)
    for line in text.splitlines():
        listener.hear(line)
    listener.end()
    return listener


def test_a_panic_of_rusts_is_told_from_its_first_line() -> None:
    listener = heard(f"# Group: loading\n{PANIC}")
    assert listener.verdict()[0] == (
        "the kernel said `rust_kernel: panicked at /module/pan.rs:9:43: "
        "index out of bounds: the len is 1 but the index is 5`"
    )
    (report,) = listener.reports.values()
    assert report[0] == "rust_kernel: panicked at /module/pan.rs:9:43:"
    assert report[-1].startswith("---[ end trace")
    assert len(report) == 11


@pytest.mark.parametrize(
    "first",
    [
        "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000",
        "BUG: KASAN: slab-out-of-bounds in f+0x10/0x20 [pan]",
        "kernel BUG at lib/list_debug.c:56!",
        "WARNING: CPU: 0 PID: 71 at lib/refcount.c:28 refcount_warn_saturate+0xf4/0x144",
    ],
)
def test_a_report_begins_with_its_first_line(first: str) -> None:
    text = f"ok 1 - a\n{first}\nMore of it\n---[ end trace 0 ]---\nother\nok 2 - b\n"
    (report,) = heard(text).reports.values()
    assert report == [first, "More of it", "---[ end trace 0 ]---"]


def test_a_report_that_is_in_the_log_as_well_is_told_once_and_whole() -> None:
    text = "BUG: x\nok 1 - a\nrbuild: log begins\n[ 1.0] BUG: x\n[ 1.0] why\nrbuild: log ends\n"
    listener = heard(text)
    assert listener.reports == {"BUG: x": ["BUG: x", "why"]}


def test_reports_are_bounded() -> None:
    text = "".join(f"BUG: {number}\n" + "x\n" * 200 for number in range(50))
    reports = heard(text).reports
    assert len(reports) == 3
    assert max(map(len, reports.values())) <= 80


class Tools:
    """LLVM's tools, as a runtime has them."""

    def __init__(self, symbols: str = "", lines: str = "", names: dict[str, str] | None = None):
        self.symbols, self.lines, self.names = symbols, lines, names
        self.asked: dict[str, str] = {}

    def run(self, _, job, *, on_line, **more):  # type: ignore[no-untyped-def]
        folder = next(bind.source for bind in job.binds if bind.target == MODULE)
        self.asked |= {path.name: path.read_text() for path in folder.glob("*.at")}
        text = {trace.SYMBOLS: self.symbols, trace.LINES: self.lines}.get(job.argv[2])
        if text is None:
            if self.names is None:
                raise MissingDependency("no bwrap")
            text = (folder / "report").read_text()
            for name, readable in self.names.items():
                text = text.replace(name, readable)
        for line in text.splitlines():
            on_line(line)


SYMBOLS = """\
pan 0000000000210100 t _RNvMCs63Ul9L0Rw5_3panNtB2_4Deep5index
pan 0000000000210200 T init_module
vmlinux ffff800080010000 T rust_helper_BUG
vmlinux ffff800080020000 t twice
vmlinux ffff800080030000 t twice
"""


def place(module: str, address: int, *places: tuple[str, int]) -> str:
    frames = [{"FileName": name, "Line": line} for name, line in places]
    return json.dumps({"Address": hex(address), "ModuleName": f"/x/{module}", "Symbol": frames})


def read_report(tmp_path: Path, tools: Tools, text: str, debug: str = "y") -> list[str]:
    module = tmp_path / "pan.ko"
    module.write_text("elf")
    ready = SimpleNamespace(runtime=tools, sandbox=None, environment=SimpleNamespace(llvm="-19"))
    kdir = SimpleNamespace(ready=ready, path=tmp_path, config={"DEBUG_INFO": debug})
    cache = Cache(tmp_path / "cache", Console(verbosity=-1))
    context = BuildContext("boot", cache, tools)  # type: ignore[arg-type]
    (report,) = heard(text).reports.values()
    found = trace.readable(report, [module], kdir, context)  # type: ignore[arg-type]
    assert not (context.run_folder / "trace").exists()
    return found


def test_a_report_has_names_files_and_lines(tmp_path: Path) -> None:
    lines = [
        place("pan", 0x21012F, ("core/index.rs", 5), ("pan.rs", 9)),
        place("pan", 0x210213, ("pan.rs", 15)),
        place("vmlinux", 0xFFFF800080010000, ("/src/rust/helpers/bug.c", 7)),
        place("vmlinux", 0xFFFF80008000FFFF, ("", 0)),
        "[]",
        '{"Symbol": 3}',
        "[" * 100_000,
    ]
    names = {"_RNvMCs63Ul9L0Rw5_3panNtB2_4Deep5index": "<pan::Deep>::index"}
    tools = Tools(SYMBOLS, "\n".join(lines), names)
    found = read_report(tmp_path, tools, PANIC.replace("Call trace:", "twice+0x4/0x8"))
    assert "pc : rust_helper_BUG+0x0/0x4 (rust/helpers/bug.c:7)" in found
    assert "lr : <pan::Deep>::index+0x30/0x34 [pan] (core/index.rs:5 in pan.rs:9)" in found
    assert " init_module+0x14/0xfc4 [pan] (pan.rs:15)" in found
    # The first of the trace is the instruction itself.
    assert " rust_helper_BUG+0x0/0x4 (rust/helpers/bug.c:7)" in found
    assert "twice+0x4/0x8" in found
    assert tools.asked["pan.at"] == "0x21012f\n0x210213\n"


def test_a_report_without_debug_information_or_tools_stays_as_it_is(tmp_path: Path) -> None:
    plain = next(iter(heard(PANIC).reports.values()))
    assert read_report(tmp_path, Tools(), PANIC) == plain
    assert read_report(tmp_path, Tools(names={}), PANIC, "n") == plain
    assert read_report(tmp_path, Tools(SYMBOLS, names={"pan": "a\nb"}), PANIC) == plain


@given(st.text(max_size=200))
def test_any_line_of_a_report_is_taken(line: str) -> None:
    for match in trace.FRAME.finditer(line + "+0x1/0x2 [a b]"):
        assert match["name"]


def test_a_guest_that_panics_shows_the_report(host: Host, boot) -> None:
    host.fault("panic")
    found = boot("--json", "boot", "--driver", "c", code=1)
    assert "The kernel's report:\n    Unable to handle kernel paging request" in found.err
    (report,) = found.json["boot"]["reports"]
    assert report[0].startswith("Unable to handle kernel paging request")


def test_a_panic_names_the_users_own_file(host: Host, boot) -> None:
    host.fault("rust-panic")
    folder = host.write_module()
    found = boot("boot", folder, code=1)
    place = f"panicked at {folder}/mine.c:1:5:"
    assert f"the kernel said `rust_kernel: {place} index out of bounds`" in found.err
    assert f"The kernel's report:\n    rust_kernel: {place}\n    index out of" in found.err


def test_tap_on_stdout_and_in_a_file(host: Host, boot) -> None:
    out = boot("boot", "--driver", "c", "--tap", "-").out
    assert out.startswith("# Group: loading\nok 1 - the driver loads\n")
    assert out.endswith("1..3\n")
    boot("boot", "--driver", "c", "--tap", host.folder / "out.tap")
    assert (host.folder / "out.tap").read_text() == out
    host.fault("test-fails")
    assert "not ok 2" in boot("boot", "--driver", "c", "--tap", "-", code=1).out


def test_wrong_usage_is_refused_before_anything_is_built(host: Host, boot) -> None:
    for words in (
        ["--test", "a b"],
        ["--test", "x;reboot"],
        ["--tap", "/nowhere/at/all"],
        ["--suite", "all"],
        ["--in-tree", "."],
        ["--timeout", "0"],
    ):
        boot("boot", *words, code=2)
    assert host.calls("make") == 0


def read(text: str) -> tap.Report:
    reader = tap.Reader()
    for line in text.splitlines():
        reader.take(line)
    return reader.report()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ok 1 - a\nok 2 - b\n1..2", None),
        ("1..2\nok 1\nok 2", None),
        ("ok 1 - a\n1..2", "missing"),
        ("ok 1 - a\nok 1 - a\n1..1", "2 tests were seen"),
        ("ok 1 - a\nok 3 - c\n1..2", "missing"),
        ("ok 1 - a", "without their plan"),
        ("1..0", "no test"),
        ("", "without their plan"),
    ],
)
def test_what_tap_must_have(text: str, problem: str | None) -> None:
    problems = read(text).problems()
    assert (problems == []) if problem is None else (problem in problems[0])


NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1)


@given(st.lists(st.tuples(NAMES, st.booleans(), st.none() | NAMES)))
def test_tap_read_and_written_is_the_same(tests) -> None:
    made = tuple(
        tap.Test(number, "group", name, passed, skip)
        for number, (name, passed, skip) in enumerate(tests, start=1)
    )
    report = tap.Report(made, len(made))
    assert read(tap.write(report)) == report


@given(st.lists(st.text(st.characters(exclude_characters="\n")), max_size=50))
def test_no_console_output_passes_that_lacks_a_goodbye(lines) -> None:
    listener = Listener()
    for line in lines:
        listener.hear(line)
    assert listener.verdict()


@pytest.mark.parametrize(
    "line",
    [
        "rbuild: up after 1.2.3 s",
        f"rbuild: up after {'9' * 400} s",
        f"rbuild: tests ended with {'9' * 5000}",
        f"1..{'9' * 5000}",
        f"ok {'9' * 5000} - x",
    ],
)
def test_a_guests_number_that_is_none_is_no_line_of_its_own(line: str) -> None:
    listener = Listener(up_s=0.5)
    listener.hear(line)
    assert (listener.up_s, listener.status, listener.tap) == (0.5, None, tap.Reader())


def test_a_plan_of_a_billion_tests_takes_no_memory() -> None:
    reader = tap.Reader()
    for line in ("ok 1 - a", "ok 3 - b", "1..999999999"):
        reader.take(line)
    assert reader.report().problems() == ["999999997 of 999999999 tests are missing, first 2"]


def test_an_endless_console_is_not_kept_in_memory() -> None:
    listener = Listener()
    for line in ["not ok 1 a", "BUG: x"] * 2000:
        listener.hear(line)
    assert len(listener.problems) == len(listener.splats) == 1000
    reader = tap.Reader()
    for line in ["not ok 1 - a", *["# why"] * 2000]:
        reader.take(line)
    assert len(reader.tests[0].diagnostics) == 200
