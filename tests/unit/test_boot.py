"""Boots on a host of fakes: what a guest says, and what rbuild makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbuild import tap
from rbuild.boot import Listener

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
