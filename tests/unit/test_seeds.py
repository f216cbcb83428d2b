"""KDIRs that start from another one, and what must not come with it."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from rbuild.cache.directory import Cache
from rbuild.cache.entry import Entry, EntryKind
from rbuild.kernel import reuse
from rbuild.kernel.reuse import Request, nearest
from rbuild.ui.console import Console

from .conftest import Host


def variant(host: Host, name: str, *options: str, base: str = "tinyconfig") -> Path:
    listed = ", ".join(("RUST: y", *options))
    return host.write_profile(
        f"name: {name}\nsource: {{directory: {host.tree}}}\npatches: false\n"
        f"config: {{base: {base}, options: {{{listed}}}}}\n",
        name,
    )


def kdir(host: Host, name: str) -> Path:
    (found,) = host.cache.glob(f"kdirs/{name}-cross-*")
    return found


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def compiled(host: Host, name: str, files: dict[str, str]) -> None:
    """Let a KDIR have been built with these files, too."""
    for path, text in files.items():
        write(kdir(host, name) / "build" / path, text)
    host.seal_anew(kdir(host, name))


def names(phases: list[dict[str, object]]) -> list[object]:
    return [one["name"] for one in phases]


def test_a_changed_option_starts_from_the_kernel_that_was_built(host: Host) -> None:
    first = host("--json", "kernel", "--profile", variant(host, "one", "A: y")).json
    assert first["seed"] is None
    compiled(host, "one", {"init/main.o": "compiled"})
    found = host("--json", "kernel", "--profile", variant(host, "two", "A: y", "B: m"))
    assert f"Starting from {kdir(host, 'one').name}: 1 option differs" in found.err
    assert found.json["seed"] == kdir(host, "one").name
    assert names(found.json["phases"]) == ["seed", "configure", "prepare", "kernel"]
    assert (kdir(host, "two") / "build/init/main.o").read_text() == "compiled"
    assert "CONFIG_B=m" in (kdir(host, "two") / "build/.config").read_text()
    # The base is what it was.
    assert host.calls("tinyconfig") == 1
    metadata = json.loads((kdir(host, "two") / "metadata.json").read_text())
    assert metadata["base_kdir"] == kdir(host, "one").name


def test_a_seed_is_left_as_it_was(host: Host) -> None:
    host("kernel", "--profile", variant(host, "one", "A: y"))
    before = contents(kdir(host, "one"))
    host("kernel", "--profile", variant(host, "two", "A: n"))
    assert contents(kdir(host, "one")) == before


def test_a_copy_keeps_the_times_by_which_make_tells_what_is_old(host: Host) -> None:
    host("kernel", "--profile", variant(host, "one"))
    compiled(host, "one", {"init/main.o": "compiled"})
    old = kdir(host, "one") / "build/init/main.o"
    host("module", host.write_module(), "--profile", variant(host, "two", "B: y"))
    new = kdir(host, "two") / "build/init/main.o"
    assert new.stat().st_mtime_ns == old.stat().st_mtime_ns
    assert new.stat().st_ino != old.stat().st_ino


def test_what_a_finished_kernel_left_is_not_taken_for_the_new_ones(host: Host) -> None:
    one = variant(host, "one", "A: y")
    host("kernel", "--profile", one)
    host("module", host.write_module(), "--profile", one)
    left = ("vmlinux.o", "vmlinux", ".vmlinux.objs", "arch/arm64/boot/dts/old.dtb")
    compiled(host, "one", dict.fromkeys(left, "old"))
    host("module", host.write_module(), "--profile", variant(host, "two", "A: n"))
    copy = kdir(host, "two") / "build"
    for name in (
        *("vmlinux.o", "vmlinux", ".vmlinux.objs", "Module.symvers", "modules.order"),
        *("arch/arm64/boot/Image", "arch/arm64/boot/dts/old.dtb"),
    ):
        assert not (copy / name).exists(), name
    assert [path.name for path in (copy / "fragments").iterdir()] == ["00-two.options"]
    modules = [path for path in (kdir(host, "two") / "modules").iterdir() if path.is_dir()]
    assert len(modules) == 1
    assert not (copy / "modules").exists()


def test_only_listed_modules_and_device_trees_are_artefacts(host: Host) -> None:
    host("kernel", "--profile", variant(host, "one", "A: m"))
    dts = "arch/arm64/boot/dts"
    files = {"net/gone.ko": "of a module that is off now", f"{dts}/kept.dtb": ""}
    files |= {f"{dts}/gone.dtb": "", f"{dts}/dtbs-list": f"{dts}/kept.dtb\n"}
    compiled(host, "one", files)
    found = host("--json", "kernel", "--profile", variant(host, "two", "A: n")).json
    made = [Path(one["path"]).name for one in found["artefacts"]]
    assert made == ["Image", "kept.dtb", "dummy.ko"]


@pytest.mark.parametrize("change", ["base", "tree", "toolchain"])
def test_a_kdir_of_other_origin_is_no_seed(host: Host, change: str) -> None:
    host("kernel", "--profile", variant(host, "one"))
    base = "tinyconfig"
    if change == "base":
        (host.folder / "my.config").write_text("CONFIG_MMU=y\n")
        base = "my.config"
    elif change == "tree":
        (host.tree / "kernel/new.c").write_text("")
    else:
        (rootfs,) = host.cache.glob("rootfs/cross-*/metadata.json")
        data = json.loads(rootfs.read_text())
        data["packages"]["clang-19"] = "2.0-1"
        rootfs.write_text(json.dumps(data))
    found = host("--json", "kernel", "--profile", variant(host, "two", "B: y", base=base))
    assert found.json["seed"] is None


def test_a_base_that_is_a_file_may_change_in_a_line(host: Host) -> None:
    (host.folder / "my.config").write_text("CONFIG_MMU=y\nCONFIG_A=y\n")
    host("kernel", "--profile", variant(host, "one", base="my.config"))
    (host.folder / "my.config").write_text("CONFIG_MMU=y\nCONFIG_A=m\n")
    found = host("kernel", "--profile", variant(host, "two", base="my.config"))
    assert ": 1 option differs" in found.err
    assert "CONFIG_A=m" in (kdir(host, "two") / "build/.config").read_text()


@pytest.mark.parametrize(("option", "made_again"), [("B: y", True), ("", False)])
def test_rust_constants_of_options_are_made_again(
    host: Host, option: str, made_again: bool
) -> None:
    host("kernel", "--profile", variant(host, "one", "A: y"))
    compiled(host, "one", {"rust/bindings/bindings_generated.rs": "const CONFIG_A: u32 = 1;"})
    more = (option,) if option else ()
    host("kernel", "--profile", variant(host, "two", "A: y", *more))
    copied = kdir(host, "two") / "build/rust/bindings/bindings_generated.rs"
    assert copied.exists() != made_again


def test_clean_starts_from_nothing(host: Host) -> None:
    host("kernel", "--profile", variant(host, "one"))
    two = variant(host, "two", "B: y")
    assert host("--json", "kernel", "--profile", two).json["seed"] is not None
    found = host("--json", "kernel", "--profile", two, "--clean")
    assert found.json["seed"] is None
    assert "Starting from" not in found.err
    assert names(found.json["phases"]) == ["configure", "prepare", "kernel"]


def test_switching_back_builds_nothing(host: Host) -> None:
    one, two = variant(host, "one"), variant(host, "two", "B: y")
    for path in (one, two):
        host("kernel", "--profile", path)
    before = host.calls("make")
    for path in (one, two, one):
        found = host("--json", "kernel", "--profile", path).json
        assert all(phase["cached"] for phase in found["phases"])
    assert host.calls("make") == before


def test_an_interrupted_configuration_of_a_copy_begins_again(host: Host) -> None:
    host("kernel", "--profile", variant(host, "one"))
    two = variant(host, "two", "B: y")
    host.fault("drop-rust")
    host("kernel", "--profile", two, code=2)
    (partial,) = host.cache.glob("kdirs/.two-*.partial")
    (partial / "build/half-copied").write_text("")
    host.fault()
    assert host("--json", "kernel", "--profile", two).json["seed"] == kdir(host, "one").name
    assert not (kdir(host, "two") / "build/half-copied").exists()


def test_an_interrupted_preparation_of_a_copy_goes_on(host: Host) -> None:
    host("kernel", "--profile", variant(host, "one"))
    two = variant(host, "two", "B: y")
    host.fault("prepare-error")
    host("kernel", "--profile", two, code=1)
    host.fault()
    found = host("--json", "kernel", "--profile", two)
    assert "Continuing two-cross" in found.err
    assert "Starting from" not in found.err
    assert found.json["seed"] == kdir(host, "one").name


def test_an_interrupted_copy_is_not_continued_with_clean(host: Host) -> None:
    host("kernel", "--profile", variant(host, "one"))
    two = variant(host, "two", "B: y")
    host.fault("prepare-error")
    host("kernel", "--profile", two, code=1)
    host.fault()
    found = host("--json", "kernel", "--profile", two, "--clean")
    assert "Continuing" not in found.err
    assert found.json["seed"] is None


def test_a_seed_that_another_rbuild_works_on_is_not_waited_for(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reuse, "WAIT_S", 0.1)
    host("kernel", "--profile", variant(host, "one"))
    cache = Cache(host.cache, Console(verbosity=-1))
    entry = Entry(EntryKind.KDIRS, kdir(host, "one").name, kdir(host, "one"))
    taken, done = threading.Event(), threading.Event()

    def build() -> None:
        with cache.lock(entry):
            taken.set()
            done.wait(60)

    other = threading.Thread(target=build)
    other.start()
    try:
        taken.wait(60)
        two = variant(host, "two", "B: y")
        assert host("--json", "kernel", "--profile", two).json["seed"] is None
    finally:
        done.set()
        other.join()


def test_the_bar_is_not_told_the_count_of_a_whole_build(host: Host) -> None:
    host("kernel", "--profile", variant(host, "one"))
    host("kernel", "--profile", variant(host, "two", "B: y"))
    counts = [
        json.loads((kdir(host, name) / "metadata.json").read_text())["objects"]
        for name in ("one", "two")
    ]
    # What a copy made is a part; what the next one from nothing may make is what its seed did.
    assert counts[0] == counts[1]


def test_the_nearest_is_the_one_that_differs_least(tmp_path: Path) -> None:
    cache = Cache(tmp_path, Console(verbosity=-1))

    def publish(name: str, kin: str, options: dict[str, str], stage: str) -> None:
        entry = cache.entry(EntryKind.KDIRS, name, "1")
        with cache.lock(entry):
            request = {"compatible_with": kin, "options": options}
            more = {"stage": stage, "objects": {}, "request": request}
            cache.publish(entry, cache.partial(entry), more)

    asked = {f"O{number}": "y" for number in range(20)}
    publish("stranger", "other", asked, "built")
    publish("prepared", "kin", asked, "prepared")
    publish("built", "kin", {**asked, "O1": "n", "X": "y"}, "built")
    publish("older", "kin", {**asked, "O1": "n"}, "built")
    publish("newer", "kin", {**asked, "O2": "n"}, "built")
    publish("far", "kin", {}, "built")
    order = [one.entry.name for one in nearest(Request("kin", asked), cache)]
    assert order == ["newer-1", "older-1", "built-1", "prepared-1", "far-1"]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def elsewhere(host: Host) -> Path:
    """Return the definition of an environment like cross, by another name."""
    text = (Path(__file__).parents[2] / "rootfs/cross.yaml").read_text()
    path = host.folder / "mine.yaml"
    path.write_text(text.replace("name: cross", "name: mine"))
    return path


def test_a_configuration_made_in_one_environment_serves_the_others(host: Host) -> None:
    profile, module = variant(host, "one", "A: y"), host.write_module()
    host("module", module, "--profile", profile)
    first = kdir(host, "one") / "build"
    compiled(host, "one", {"include/generated/autoconf.h": "#define CONFIG_A 1\n"})
    calls = host.calls("tinyconfig"), host.calls("olddefconfig")
    found = host("--json", "module", module, "--profile", profile, "--env", elsewhere(host))
    assert f"Taking the configuration of {first.parent.name}" in found.err
    assert (host.calls("tinyconfig"), host.calls("olddefconfig")) == calls
    (second,) = host.cache.glob("kdirs/one-mine-*/build")
    for name in (".config", "include/generated/autoconf.h"):
        assert (second / name).read_text() == (first / name).read_text()
        assert (second / name).stat().st_mtime_ns == (first / name).stat().st_mtime_ns
    assert names(found.json["phases"]) == ["adopt", "prepare", "module"]


def test_another_request_or_a_clean_build_adopts_no_configuration(host: Host) -> None:
    profile, module = variant(host, "one", "A: y"), host.write_module()
    host("module", module, "--profile", profile)
    compiled(host, "one", {"include/generated/autoconf.h": "#define CONFIG_A 1\n"})
    mine = elsewhere(host)
    other = host("kernel", "--profile", variant(host, "two", "A: n"), "--env", mine)
    assert "Taking the configuration" not in other.err
    clean = host("kernel", "--profile", profile, "--env", mine, "--clean")
    assert "Taking the configuration" not in clean.err


def test_half_a_configuration_is_not_adopted(host: Host) -> None:
    profile, module = variant(host, "one", "A: y"), host.write_module()
    host("module", module, "--profile", profile)
    assert not (kdir(host, "one") / "build/include/generated/autoconf.h").exists()
    found = host("module", module, "--profile", profile, "--env", elsewhere(host))
    assert "Taking the configuration" not in found.err
