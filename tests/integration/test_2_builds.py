"""Kernel and modules built for real, on the slim profile."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from rbuild.bench.compare import load
from rbuild.util.elf import module_info

from .conftest import Rbuild

DRIVERS = ("c", "rust", "glue")
MODES = [
    (env, kind, driver)
    for kind in ("out-of-tree", "in-tree")
    for driver in DRIVERS
    for env in ("cross", "hybrid")
]
BUILT: dict[tuple[str, str, str], str] = {}


@pytest.mark.parametrize(("env", "kind", "driver"), MODES)
def test_the_driver_builds_in_every_mode(rbuild: Rbuild, env: str, kind: str, driver: str) -> None:
    found = rbuild("--json", "module", f"--{kind}", "--driver", driver, "--env", env).json
    (module,) = found["artefacts"]
    info = module_info(Path(module["path"]))
    assert info.machine == "AArch64"
    assert module["license"].startswith("GPL")
    assert found["kernel_release"] in module["vermagic"]
    assert "spi:mfrc522" in module["aliases"]
    assert ("intree" in info.fields) == (kind == "in-tree")
    assert found["phases"][-1]["name"] == "module"
    if found["log"]:
        assert "warning:" not in _module_log(Path(found["log"]))
    BUILT[env, kind, driver] = module["sha256"]


def test_the_modes_made_the_same_bytes() -> None:
    if len(BUILT) < len(MODES):
        pytest.skip("not all modes were built")
    for kind in ("out-of-tree", "in-tree"):
        for driver in DRIVERS:
            assert BUILT["cross", kind, driver] == BUILT["hybrid", kind, driver]


def test_nothing_to_do_starts_no_make(rbuild: Rbuild) -> None:
    rbuild("module")
    again = rbuild("--json", "module").json
    assert again["phases"][-1]["cached"]
    assert again["log"] is None


MOUNT_NOSUID = """\
mount --bind "$0" "$0" && mount -o remount,bind,nosuid,nodev "$0" &&
grep -q " $0 .*nosuid,nodev" /proc/self/mounts && exec "$@"
"""


@pytest.mark.root
def test_a_cache_mounted_nosuid_and_nodev_will_do(rbuild: Rbuild, c_stranger: Path) -> None:
    """In a sandbox no program gains privileges (no_new_privs), wherever the cache is."""
    cache = rbuild("--json", "status").json["root"]
    prefix = ["unshare", "--mount", "sh", "-c", MOUNT_NOSUID, cache]
    found = rbuild("--json", "module", c_stranger, prefix=prefix).json
    assert not found["phases"][-1]["cached"]
    status = ["--scratch", "--", "grep", "NoNewPrivs", "/proc/self/status"]
    assert rbuild("shell", *status, prefix=prefix).out.split() == ["NoNewPrivs:", "1"]


def test_a_strangers_rust_module(rbuild: Rbuild, rust_stranger: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in rust_stranger.iterdir())
    rbuild("module", rust_stranger, "--output", tmp_path / "out")
    info = module_info(tmp_path / "out/stranger.ko")
    assert info.field("license") == "GPL"
    assert sorted(path.name for path in rust_stranger.iterdir()) == before


def test_a_strangers_c_module_in_hybrid(rbuild: Rbuild, c_stranger: Path) -> None:
    found = rbuild("--json", "module", c_stranger, "--env", "hybrid").json
    assert found["driver"] is None
    assert found["artefacts"][0]["size_bytes"] > 1000


def test_the_compilers_words_come_last(rbuild: Rbuild, c_stranger: Path) -> None:
    source = c_stranger / "stranger.c"
    good = source.read_text()
    source.write_text(good.replace('pr_info("hello\\n");', "no_such_thing;"))
    found = rbuild("module", c_stranger, code=1)
    assert "use of undeclared identifier 'no_such_thing'" in found.err
    log = re.search(r"The full log: (\S+)", found.err)
    assert log is not None
    assert "no_such_thing" in Path(log[1]).read_text()
    source.write_text(good)
    rbuild("module", c_stranger)


def test_a_symbol_that_nothing_exports_is_refused(rbuild: Rbuild, c_stranger: Path) -> None:
    source = c_stranger / "stranger.c"
    text = source.read_text().replace('pr_info("hello\\n");', "int nowhere(void); nowhere();")
    source.write_text(text)
    found = rbuild("module", c_stranger, code=1)
    assert "nowhere" in found.err


NUMBERS = """\
#include <linux/module.h>
#include <linux/random.h>

static int seed;
module_param(seed, int, 0);

static int __init numbers_init(void)
{
\treturn seed == (int)get_random_u16() + get_random_u32();
}
module_init(numbers_init);
MODULE_DESCRIPTION("Uses what macros export: param_ops_int, get_random_u16");
MODULE_LICENSE("GPL");
"""
SENSOR = """\
#include <linux/module.h>
#include <linux/hwmon.h>

static int __init sensor_init(void)
{
\treturn PTR_ERR_OR_ZERO(hwmon_device_register_with_groups(NULL, "sensor", NULL, NULL));
}
module_init(sensor_init);
MODULE_DESCRIPTION("Uses what slim lacks");
MODULE_LICENSE("GPL");
"""


def _modules_are_told_apart(rbuild: Rbuild, folder: Path) -> None:
    for name, text in (("numbers", NUMBERS), ("sensor", SENSOR)):
        (folder / name).mkdir()
        (folder / name / "Kbuild").write_text(f"obj-m += {name}.o\n")
        (folder / name / f"{name}.c").write_text(text)
    made = rbuild("--json", "module", folder / "numbers").json
    assert made["artefacts"][0]["symbols_undecided"] == []
    found = rbuild("module", folder / "sensor", code=1)
    assert "nothing exports hwmon_device_register_with_groups" in found.err
    assert "drivers/hwmon/hwmon.c, which needs CONFIG_HWMON; the profile " in found.err
    assert "rpi3bplus has it" in found.err


def test_symbols_are_told_without_a_kernel(rbuild: Rbuild, tmp_path: Path) -> None:
    _modules_are_told_apart(rbuild, tmp_path)


def test_a_whole_kernel_and_its_list_of_symbols(rbuild: Rbuild) -> None:
    found = rbuild("--json", "kernel").json
    image = Path(found["artefacts"][0]["path"])
    # The magic of an arm64 Image stands at offset 56 (Documentation/arch/arm64/booting.rst).
    assert image.read_bytes()[56:60] == b"ARM\x64"
    assert any(one["path"].endswith("bcm2837-rpi-3-b-plus.dtb") for one in found["artefacts"])
    again = rbuild("--json", "kernel").json
    assert all(phase["cached"] for phase in again["phases"])
    for driver in DRIVERS:
        for kind in ("out-of-tree", "in-tree"):
            module = rbuild("--json", "module", "--driver", driver, f"--{kind}").json
            assert module["artefacts"][0]["symbols_checked_against"] == "Module.symvers"


def test_symbols_are_told_alike_with_a_kernel(rbuild: Rbuild, tmp_path: Path) -> None:
    _modules_are_told_apart(rbuild, tmp_path)


def test_what_kconfig_refuses_is_an_error(rbuild: Rbuild, tmp_path: Path) -> None:
    profile = _profile(tmp_path, "refused", {"MODVERSIONS": "y", "SPI_NO_SUCH": "y"})
    found = rbuild("kernel", "--profile", profile, code=2)
    assert "CONFIG_RUST: asked for y, got n" in found.err
    assert "depends on !MODVERSIONS" in found.err
    assert "make rustavailable" in found.err
    assert "CONFIG_SPI_NO_SUCH" in found.err
    assert "no such option" in found.err


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_an_interrupted_preparation_goes_on_where_it_stopped(
    rbuild: Rbuild, tmp_path: Path, c_stranger: Path, number: signal.Signals
) -> None:
    # No run before this one has prepared a kernel of that name.
    hostname = f"{tmp_path.name}-{os.getpid()}"
    profile = _profile(
        tmp_path, f"again{number.value}", {"RUST": "n", "DEFAULT_HOSTNAME": hostname}
    )
    child = rbuild.start("-v", "module", c_stranger, "--profile", profile)
    assert child.stdout is not None
    for line in child.stdout:
        if "Preparing" in line:
            break
    # The first command that make announces: a preparation that started from a seed has few.
    for line in child.stdout:
        if re.match(r"  [A-Z]", line):
            break
    child.send_signal(number)
    child.stdout.read()
    assert child.wait(timeout=30) == (-9 if number is signal.SIGKILL else 130)
    found = rbuild("module", c_stranger, "--profile", profile)
    assert "Continuing" in found.err
    assert "Configuring" not in found.err


def test_bench_measures_and_exports(rbuild: Rbuild, tmp_path: Path) -> None:
    out, page = tmp_path / "bench.json", tmp_path / "bench.html"
    # Not the chroot: its KDIR takes minutes to prepare.
    words = ("--env", "cross", "--env", "hybrid", "--runs", "2", "--warmup", "0")
    found = rbuild("bench", *words, "--export-json", out, "--html", page)
    assert "cross out-of-tree c" in found.out
    report = load(out)
    # Unless asked otherwise, the drivers that are as the kernel itself would have them.
    assert {row.driver for row in report.rows} == {"c", "rust"}
    assert len(report.rows) == 4
    for row in report.rows:
        assert len(row.samples) == 2
        assert row.wall_s.median > 0
        assert row.user_s.median > 0
        assert row.max_rss_bytes > 1 << 20
        if os.geteuid() == 0:
            # The cgroup counts what wait4(2) does, and bubblewrap besides.
            cpu = row.user_s.mean + row.system_s.mean
            own = [one.cgroup_cpu_s for one in row.samples if one.cgroup_cpu_s is not None]
            assert all(0.7 * cpu < one < 1.5 * cpu for one in own)
    assert len(report.identity) == 2
    assert all(one.identical and len(one.sha256) == 2 for one in report.identity)
    assert page.read_text().startswith("<!doctype html>")


def test_bench_starts_each_scenario_from_what_it_says(rbuild: Rbuild) -> None:
    words = ["--env", "cross", "--driver", "c", "--runs", "1", "--warmup", "0"]
    scenarios = [word for one in ("clean", "incremental", "noop") for word in ("--scenario", one)]
    kinds = ("out-of-tree", "in-tree")
    words += [word for one in kinds for word in ("--kind", one)]
    data = rbuild("--json", "bench", *words, *scenarios).json
    for kind in kinds:
        rows = {one["scenario"]: one for one in data["rows"] if one["kind"] == kind}
        cpu = {name: row["user_s"]["median"] for name, row in rows.items()}
        assert cpu["clean"] > cpu["noop"]
        assert cpu["incremental"] > cpu["noop"]


@pytest.mark.slow
def test_bench_of_a_kernel_builds_what_its_scenario_says(rbuild: Rbuild) -> None:
    words = ["--env", "cross", "--kind", "kernel", "--runs", "1", "--warmup", "0"]
    scenarios = ["--scenario", "clean", "--scenario", "incremental", "--scenario", "noop"]
    data = rbuild("--json", "bench", *words, *scenarios).json
    cpu = {row["scenario"]: row["user_s"]["median"] for row in data["rows"]}
    assert cpu["clean"] > 20 * cpu["incremental-c"]
    assert cpu["incremental-c"] > cpu["noop"]
    assert cpu["incremental-rust"] > cpu["noop"]


def _profile(folder: Path, name: str, options: dict[str, object]) -> Path:
    """Write a profile that is slim with a few more options."""
    fragment = Path(__file__).parents[2] / "profiles/slim.config"
    lines = "".join(f"    {key}: {value}\n" for key, value in options.items())
    path = folder / f"{name}.yaml"
    # RUST is asked for by the slim fragment; an option set here comes after it.
    path.write_text(
        f"name: {name}\nsource: {{debian: linux-source-6.12}}\n"
        f"config:\n  base: tinyconfig\n  fragments: [{fragment}]\n  options:\n{lines}"
    )
    return path


def _module_log(log: Path) -> str:
    """Return the part of a log in which the module, not the kernel, was built."""
    text = log.read_text()
    start = max(text.rfind(" M=/module "), text.rfind("drivers/misc/mfrc522/"), 0)
    last = text.rfind("\n$ ", 0, start)
    return text[max(last, 0) :]
