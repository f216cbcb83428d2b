"""Single modules at their edges."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbuild.boot.console import Listener
from rbuild.cache.directory import Cache
from rbuild.cache.entry import EntryKind
from rbuild.errors import BuildFailed, MissingDependency, ProcessFailed
from rbuild.kernel.config import read_config, unmet
from rbuild.kernel.kconfig import parser
from rbuild.kernel.products import kernel_release, listed, vermagic
from rbuild.module.sync import sync
from rbuild.provision.rootfs import installed, same_version
from rbuild.sandbox import binfmt
from rbuild.sandbox.binfmt import exit_program
from rbuild.sandbox.build_output import OBJECT, compiler_words
from rbuild.sandbox.native import resolve
from rbuild.specs import architecture
from rbuild.specs.profile import Config
from rbuild.ui.console import Console
from rbuild.ui.format import duration, size
from rbuild.util import pipe, process
from rbuild.util.elf import machine, module_info
from rbuild.util.hashes import digest
from rbuild.util.process import run
from tests.faults.fuzz import judged

ROOT = Path(__file__).parents[2]


def test_read_config() -> None:
    text = 'CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="a b"\n# a comment\nCONFIG_D=0x10\n'
    assert read_config(text) == {"A": "y", "B": "n", "C": '"a b"', "D": "0x10"}


def test_unmet_counts_an_absent_option_as_unset() -> None:
    found = unmet({"A": "y", "B": "n", "C": "m"}, {"A": "y", "C": "y"})
    assert [(one.option, one.asked, one.got) for one in found] == [("C", "m", "y")]


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True),
        st.sampled_from(["y", "m", "n"])
        | st.integers(0, 99)
        | st.from_regex(r"[a-z]{2,5}", fullmatch=True),
    )
)
def test_options_survive_their_fragment(options) -> None:
    got = read_config(Config(options=options).as_fragment())
    assert {name: value.strip('"') for name, value in got.items()} == {
        name: str(value) for name, value in options.items()
    }


def test_yaml_booleans_mean_kconfigs() -> None:
    assert Config(options={"A": True, "B": False}).options == {"A": "y", "B": "n"}


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("  CC      init/main.o", "init/main.o"),
        ("  CC [M]  /module/mfrc522.o", "/module/mfrc522.o"),
        ("  RUSTC L rust/core.o", "rust/core.o"),
        ("  BINDGEN rust/bindings/bindings_generated.rs", "rust/bindings/bindings_generated.rs"),
        ("  HOSTCC  scripts/basic/fixdep", "scripts/basic/fixdep"),
    ],
)
def test_kbuilds_lines_are_progress(line: str, file: str) -> None:
    found = OBJECT.match(line)
    assert found is not None
    assert found["file"] == file


@pytest.mark.parametrize(
    "line", ["make[1]: Entering directory '/kdir'", "", "  hello there", "CC x"]
)
def test_other_lines_are_not_progress(line: str) -> None:
    assert OBJECT.match(line) is None


def test_compiler_words_are_the_error_with_what_led_to_it() -> None:
    lines = [
        "  CC      init/a.o",
        "  CC [M]  init/main.o",
        "In file included from init/main.c:1:",
        "include/x.h:3:1: error: expected ';'",
        "    3 | int x",
        "1 error generated.",
        "make[2]: *** [scripts/Makefile.build:229: init/main.o] Error 1",
        "make: *** [Makefile:234: __sub-make] Error 2",
    ]
    assert compiler_words(lines) == lines[2:6]


def test_compiler_words_of_a_linker_come_with_the_linkers_own() -> None:
    lines = ["  HOSTLD  x", "ld: unrecognised emulation mode", "clang: error: linker failed"]
    assert compiler_words(lines) == lines[1:]


@given(st.lists(st.text(max_size=40), max_size=50))
def test_compiler_words_takes_any_output(lines: list[str]) -> None:
    assert len(compiler_words(lines)) <= 60


def test_vermagic() -> None:
    config = {"SMP": "y", "PREEMPT_BUILD": "y", "MODULE_UNLOAD": "y", "MODVERSIONS": "n"}
    arm64 = architecture.known()["arm64"].target
    assert vermagic("6.12.5", config, arm64) == "6.12.5 SMP preempt mod_unload aarch64"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("CPU_32v7 CPU_32v6K ARM_PATCH_PHYS_VIRT", "ARMv7 p2v8"),
        ("CPU_32v7 CPU_32v6 CPU_32v6K ARM_PATCH_PHYS_VIRT", "ARMv6 p2v8"),
        ("CPU_32v7 CPU_32v6K THUMB2_KERNEL ARM_PATCH_PHYS_VIRT", "ARMv7 thumb2 p2v8"),
        ("CPU_32v7", "ARMv7"),
    ],
)
def test_vermagic_of_32_bits_tells_the_generation(options: str, expected: str) -> None:
    config = dict.fromkeys(options.split(), "y")
    arm = architecture.known()["armhf"].target
    assert vermagic("6.12.5", config, arm) == f"6.12.5 {expected}"


def test_binfmt_registration() -> None:
    text = "enabled\ninterpreter /usr/bin/qemu\nflags: OPF\noffset 0\nmagic 7f\n"
    found = binfmt.parse(text)
    assert found.enabled
    assert found.fixed
    assert found.interpreter == Path("/usr/bin/qemu")
    assert not binfmt.parse("disabled\ninterpreter /x\nflags: \n").fixed


@pytest.mark.parametrize("name", ["arm64", "armhf", "amd64"])
def test_exit_program_is_elf_as_the_kernel_recognises_it(tmp_path: Path, name: str) -> None:
    arch = architecture.known()[name]
    path = tmp_path / "exit42"
    path.write_bytes(exit_program(arch))
    assert machine(path) == arch.elf.name
    magic = re.sub(r"\\x(..)", lambda m: chr(int(m[1], 16)), binfmt.magic(arch)).encode("latin-1")
    mask = re.sub(r"\\x(..)", lambda m: chr(int(m[1], 16)), binfmt.MASK).encode("latin-1")
    head = path.read_bytes()[:20]
    assert bytes(a & b for a, b in zip(head, mask, strict=True)) == magic
    if arch == architecture.host():
        path.chmod(0o755)
        assert subprocess.run([path]).returncode == 42


def test_module_info(tmp_path: Path, elf) -> None:
    path = tmp_path / "x.ko"
    path.write_bytes(elf(0xB7, {"vermagic": "6.12.5 SMP ", "license": "GPL"}, ["b", "a"]))
    found = module_info(path)
    assert (found.machine, found.vermagic) == ("AArch64", "6.12.5 SMP")
    assert found.undefined == ("a", "b")
    assert found.field("none") == ""


def test_a_ko_cut_short_is_a_failed_build(tmp_path: Path, elf) -> None:
    path = tmp_path / "x.ko"
    whole = elf(0xB7, {"vermagic": "6.12.5", "license": "GPL"}, ["a"])
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(BuildFailed, match=r"x\.ko"):
            module_info(path)


def test_a_damaged_ko_is_read_or_refused(tmp_path: Path, elf) -> None:
    path = tmp_path / "x.ko"
    whole = elf(0xB7, {"vermagic": "6.12.5", "license": "GPL"}, ["a"])
    for position in range(0, len(whole), 8):
        for damage in (b"\0", b"\x7f", b"\xff", b"\xff" * 8):
            path.write_bytes(whole[:position] + damage + whole[position + len(damage) :])
            with contextlib.suppress(BuildFailed):
                module_info(path)


def test_resolve_stays_within_the_root(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/mawk").touch()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/awk").symlink_to("/usr/bin/mawk")
    (tmp_path / "usr/bin/awk").symlink_to("/etc/awk")
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "out").symlink_to("../../../../usr/bin/mawk")
    assert resolve(tmp_path, "/usr/bin/awk") == "/usr/bin/mawk"
    assert resolve(tmp_path, "/bin/awk") == "/usr/bin/mawk"
    assert resolve(tmp_path, "/out") == "/usr/bin/mawk"
    assert resolve(tmp_path, "/loop") is None
    assert resolve(tmp_path, "/bin/none") is None


def test_dpkg_status(tmp_path: Path) -> None:
    path = tmp_path / "var/lib/dpkg/status"
    path.parent.mkdir(parents=True)
    path.write_text(
        "Package: a\nStatus: install ok installed\nVersion: 1-1\nDescription: x\n more: y\n\n"
        "Package: b\nStatus: deinstall ok config-files\nVersion: 2\n"
    )
    assert installed(tmp_path) == {"a": "1-1"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("1-1", "1-1+b2", True), ("1-1", "1-2", False), ("14-19", "14-19cross1", True)],
)
def test_versions_of_the_same_source(one: str, other: str, same: bool) -> None:
    assert same_version(one, other) is same


def test_sync_writes_only_what_differs(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    (one / "a.c").write_text("a")
    (one / "b.c").write_text("b")
    sync(one, two)
    before = {path.name: path.stat().st_mtime_ns for path in two.glob("*.c")}
    (two / "a.o").write_text("built")
    (one / "a.c").write_text("A")
    sync(one, two)
    after = {path.name: path.stat().st_mtime_ns for path in two.glob("*.c")}
    assert after["a.c"] > before["a.c"]
    assert after["b.c"] == before["b.c"]
    assert (two / "a.o").exists()


def test_a_process_is_measured() -> None:
    done = run([sys.executable, "-c", "sum(range(10**6)); print('x')"])
    assert done.text == "x"
    assert done.usage.user_s > 0
    assert done.usage.max_rss_bytes > 1 << 20


def test_a_failed_process_keeps_its_words() -> None:
    with pytest.raises(ProcessFailed) as caught:
        run(["sh", "-c", "echo why; exit 3"])
    assert caught.value.returncode == 3
    assert caught.value.tail == ("why",)


STUBBORN = "trap '' TERM; echo $$; exec sleep 60"


def test_an_interrupt_ends_those_too_that_would_not_end(monkeypatch) -> None:
    """The shell ends at SIGTERM, the sleep that it started ignores it."""
    monkeypatch.setattr(process, "GRACE_S", 0.5)
    left = []

    def interrupt(line: str) -> None:
        left.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", f"sh -c {shlex.quote(STUBBORN)} & wait"], on_line=interrupt)
    for _ in range(100):
        path = Path(f"/proc/{left[0]}/stat")
        if not path.exists() or path.read_text().split()[2] == "Z":
            return
        time.sleep(0.02)
    pytest.fail("it still runs")


def test_both_ends_of_a_pipe_are_heard() -> None:
    lines: list[str] = []
    pipe.pipe(["sh", "-c", "echo one >&2; echo x"], ["cat"], lines.append)
    assert lines == ["one"]
    with pytest.raises(ProcessFailed) as caught:
        pipe.pipe(["yes"], ["sh", "-c", "echo No space left on device >&2; exit 2"], print)
    assert "No space left on device" in caught.value.detail
    with pytest.raises(MissingDependency, match="no-such-program"):
        pipe.pipe(["sleep", "60"], ["no-such-program"], print)


LATE = """\
import os, sys, time
archive, late = sys.argv[1], sys.argv[2]
with open(archive, "rb") as file:
    os.write(1, file.read())
for _ in range(1000):
    if os.path.exists(late):
        break
    time.sleep(0.01)
time.sleep(0.2)
try:
    for _ in range(200):
        os.write(1, bytes(1024))
except BrokenPipeError as error:
    sys.exit(f"W: creating tarball failed: {error.strerror}")
"""
"""Writes an archive, and its padding when a file is there."""


def test_a_consumer_that_has_enough_breaks_no_pipe(tmp_path: Path) -> None:
    """As tar at the end of an archive, if it doesn't read the padding, which comes late."""
    archive, late = tmp_path / "archive", tmp_path / "late"
    archive.write_bytes(b"x" * 4096)
    lines: list[str] = []
    producer = [sys.executable, "-c", LATE, str(archive), str(late)]
    consumer = ["sh", "-c", f"head -c 4096 >{tmp_path}/read; touch {late}"]
    pipe.pipe(producer, consumer, lines.append)
    assert lines == []
    assert (tmp_path / "read").read_bytes() == archive.read_bytes()


def test_who_fails_first_is_the_cause_in_its_own_words(tmp_path: Path) -> None:
    archive, late = tmp_path / "archive", tmp_path / "late"
    archive.write_bytes(b"x" * 4096)
    producer = [sys.executable, "-c", LATE, str(archive), str(late)]
    consumer = ["sh", "-c", f"head -c 4096; echo tar: Unaligned block >&2; touch {late}; exit 2"]
    lines: list[str] = []
    with pytest.raises(ProcessFailed) as caught:
        pipe.pipe(producer, consumer, lines.append)
    assert (caught.value.argv[0], caught.value.returncode) == ("sh", 2)
    assert caught.value.tail == ("tar: Unaligned block",)
    assert "W: creating tarball failed: Broken pipe" in lines
    # A producer that fails leaves the consumer without the rest.
    with pytest.raises(ProcessFailed) as caught:
        pipe.pipe(
            ["sh", "-c", "echo x; echo E: no mirror >&2; exit 5"],
            ["sh", "-c", "cat >&2; echo tar: Unexpected EOF >&2; exit 2"],
            lines.append,
        )
    assert (caught.value.returncode, caught.value.tail) == (5, ("E: no mirror",))


def test_a_consumer_that_dies_while_nothing_comes_is_the_cause(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed) as caught:
        pipe.pipe(
            ["sh", "-c", "echo x; sleep 1; echo E: gave up >&2; exit 5"],
            ["sh", "-c", "read x; echo tar: killed >&2; kill -9 $$"],
            lambda _: None,
        )
    assert (caught.value.returncode, caught.value.tail) == (-9, ("tar: killed",))


def test_a_producer_that_has_failed_before_its_consumer_is_the_cause(tmp_path: Path) -> None:
    died = tmp_path / "died"
    waits = f"while [ ! -e {died} ]; do sleep 0.05; done; sleep 0.3"
    with pytest.raises(ProcessFailed) as caught:
        pipe.pipe(
            # What holds the pipe open still is the producer's child.
            ["sh", "-c", f"(sleep 2) 2>&- & touch {died}; echo E: no mirror >&2; exit 5"],
            ["sh", "-c", f"{waits}; echo tar: killed >&2; exit 2"],
            lambda _: None,
        )
    assert (caught.value.returncode, caught.value.tail) == (5, ("E: no mirror",))


def test_a_pipe_carries_all_and_long_lines_come_in_parts(tmp_path: Path) -> None:
    lines: list[str] = []
    size = 3 << 20
    pipe.pipe(
        ["head", "-c", str(size), "/dev/zero"],
        ["sh", "-c", f"wc -c >{tmp_path}/size; head -c 300000 /dev/zero | tr '\\0' x >&2"],
        lines.append,
    )
    assert int((tmp_path / "size").read_text()) == size
    assert "".join(lines) == "x" * 300000
    assert len(lines) > 1


def test_a_missing_program() -> None:
    with pytest.raises(MissingDependency, match="no-such-program"):
        run(["no-such-program"])


def test_an_entry_with_foreign_metadata_is_not_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path, Console(verbosity=-1))
    entry = cache.entry(EntryKind.KDIRS, "x", digest({"a": 1}))
    with cache.lock(entry):
        cache.publish(entry, cache.partial(entry), {"stage": "built"})
    assert entry.metadata is not None
    (entry.path / "metadata.json").write_text('{"format": 99}')
    assert entry.metadata is None
    (entry.path / "metadata.json").write_text("{")
    assert entry.metadata is None


def test_publishing_replaces_an_older_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path, Console(verbosity=-1))
    entry = cache.entry(EntryKind.ROOTFS, "x", "1")
    for content in ("old", "new"):
        partial = cache.partial(entry)
        (partial / "file").write_text(content)
        cache.publish(entry, partial, {})
    assert (entry.path / "file").read_text() == "new"
    assert [path.name for path in (tmp_path / "rootfs").iterdir()] == [entry.name]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.417, "0.42 s"), (12.34, "12.3 s"), (245, "4 min 05 s"), (7500, "2 h 05 min")],
)
def test_durations_are_written_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_are_written_as_people_do() -> None:
    assert [size(n) for n in (12, 2048, 5 << 20, 3 << 30)] == [
        "12 B",
        "2.0 KiB",
        "5.0 MiB",
        "3.0 GiB",
    ]


def test_the_wheel_has_its_data(tmp_path: Path) -> None:
    """Build a wheel and load a profile from it, with nothing of the checkout in reach."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    program = (
        "from rbuild.specs import environment, profile\n"
        "from rbuild.util import data\n"
        "print(profile.load('slim').name, environment.load('cross').name)\n"
        "print((data.folder('module') / 'rust/Kbuild').is_file())\n"
        "print(sorted(one.name for one in (data.PACKAGE / 'board/deploy/remote').iterdir()))\n"
        "print(data.PACKAGE)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(unpacked)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        "slim cross",
        "True",
        str(sorted(one.name for one in (ROOT / "rbuild/board/deploy/remote").glob("*.sh"))),
        str(unpacked / "rbuild"),
    ]
    kept = subprocess.run(
        [sys.executable, "-m", "rbuild", "--help"],
        env={"PYTHONPATH": str(unpacked)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "Usage: rbuild" in kept.stdout


def test_a_line_that_never_ends_comes_in_parts(tmp_path: Path) -> None:
    size = 3 * process.MAX_LINE + 5
    words = [sys.executable, "-c", f"print('x' * {size}); print(); print('y' * {size}, end='')"]
    done = run(words)
    most, rest = "x" * process.MAX_LINE, "x" * 5
    assert done.tail[:4] == (most, most, most, rest)
    assert done.tail[4] == ""
    assert done.tail[5:] == tuple(line.replace("x", "y") for line in (most, most, most, rest))


@pytest.mark.parametrize("name", ["/etc/x.o", "../x.o", "a/../../x.o", ".", "/"])
def test_a_list_of_a_builds_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "modules.order"
    assert listed(path) == []
    path.write_bytes(b"drivers/a.o\n/module/b.o \xff.o\n")
    assert listed(path, root="/module/") == ["drivers/a.o", "b.o", "\ufffd.o"]
    path.write_text(f"a.o\n{name}\n")
    with pytest.raises(BuildFailed, match=r"modules\.order names '"):
        listed(path)


@pytest.mark.parametrize("name", ["", "../../x", "6.12/x", "a b", "x" * 65, "-rf"])
def test_a_release_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "include/config/kernel.release"
    path.parent.mkdir(parents=True)
    path.write_text("6.12.118-v8+\n")
    assert kernel_release(tmp_path) == "6.12.118-v8+"
    path.write_text(name)
    with pytest.raises(BuildFailed, match="release can't be"):
        kernel_release(tmp_path)


def test_half_a_block_of_dpkgs_is_no_package(tmp_path: Path) -> None:
    path = tmp_path / "var/lib/dpkg/status"
    path.parent.mkdir(parents=True)
    whole = "Package: a\nStatus: install ok installed\nVersion: 1\n"
    path.write_text(f"{whole}\nStatus: install ok installed\n\nPackage: b\nStatus: x installed\n")
    assert installed(tmp_path) == {"a": "1"}


SPACES = " " * 60_000


@pytest.mark.parametrize(
    "read",
    [
        lambda: compiler_words([f"  A{SPACES}\t", "error: x"]),
        lambda: read_config(f"CONFIG_A={SPACES}x"),
        lambda: OBJECT.match(f"  A{SPACES}:"),
        lambda: Listener().hear("INFO: task " * 10_000),
        lambda: parser.parse(f"A{SPACES}@"),
        lambda: parser.parse('"\\\\' * 20_000),
    ],
)
def test_no_line_of_its_length_takes_minutes(read) -> None:
    assert judged(lambda _: read(), b"") is None
