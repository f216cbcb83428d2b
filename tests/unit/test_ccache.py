"""ccache: where it is used, for whom, and what is said of it."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pytest import MonkeyPatch

from rbuild.cache.directory import Cache
from rbuild.cache.entry import Entry, EntryKind
from rbuild.cache.locks import use
from rbuild.kernel import ccache, identity
from rbuild.kernel.identity import provenance
from rbuild.sandbox.bwrap import Bwrap
from rbuild.sandbox.context import BuildContext, CacheUse, PhaseRecord
from rbuild.source.tree import Tree
from rbuild.specs.profile import load
from rbuild.ui.console import Console

from .conftest import Host


def caches(host: Host) -> list[Path]:
    return sorted(host.cache.glob("ccache/[!.]*"))


def uses(phases: list[dict[str, object]]) -> dict[object, object]:
    return {one["name"]: one["ccache"] for one in phases}


def test_what_was_compiled_before_is_a_hit(host: Host) -> None:
    first = host("--json", "kernel", "--profile", host.profile).json
    assert uses(first["phases"]) == {
        "configure": {"hits": 0, "misses": 2},
        "prepare": {"hits": 0, "misses": 1},
        "kernel": {"hits": 0, "misses": 1},
    }
    again = host("--json", "kernel", "--profile", host.profile, "--clean").json
    assert uses(again["phases"]) == {
        "configure": {"hits": 2, "misses": 0},
        "prepare": {"hits": 1, "misses": 0},
        "kernel": {"hits": 1, "misses": 0},
    }
    found = host("kernel", "--profile", host.profile, "--clean")
    assert "4 of 4 compilations from ccache" in found.out


def test_a_driver_of_ours_is_compiled_through_it_too(host: Host) -> None:
    found = host.module("--driver", "c").json["phases"][-1]
    assert found["ccache"] == {"hits": 0, "misses": 1}
    for path in host.cache.glob("kdirs/*/modules/*/state.json"):
        path.unlink()
    found = host("module", "--driver", "c", "--profile", host.profile)
    assert "1 of 1 compilations from ccache" in found.out


def test_a_module_of_anybodys_only_reads_it(host: Host) -> None:
    host("kernel", "--profile", host.profile)
    (cache,) = caches(host)
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    for text in ("int y;\n", "int z;\n"):
        found = host.module(host.write_module(text)).json["phases"][-1]
        assert found["ccache"] == {"hits": 0, "misses": 1}
    assert {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()} == before
    assert caches(host) == [cache]


def test_a_configuration_in_the_cache_is_removed(host: Host) -> None:
    host.fault("hostile")
    host("kernel", "--profile", host.profile)
    (found,) = host.cache.glob("ccache/*/cache/ccache.conf")
    host.fault()
    host("kernel", "--profile", host.profile, "--clean")
    assert not found.exists()
    found.mkdir()
    (found / "x").touch()
    host("kernel", "--profile", host.profile, "--clean")
    assert not found.exists()


def test_each_source_has_a_cache_of_its_own(host: Host) -> None:
    host("kernel", "--profile", host.profile)
    other = host.folder / "other"
    shutil.copytree(host.tree, other)
    text = host.profile.read_text().replace(str(host.tree), str(other))
    host("kernel", "--profile", host.write_profile(text, "other"))
    same = host.write_profile(host.profile.read_text().replace("SPI: y", "SPI: n"), "same")
    host("kernel", "--profile", same)
    assert len(caches(host)) == 2


PLAIN = 'CONFIG_CMDLINE="console=ttyAMA0,115200 root=/dev/mmcblk0p2"'


def seen(folder: Path, source: str, name: str = "a", line: str = PLAIN, more: str = "") -> str:
    """Return the provenance of a kernel with this source and a fragment with this line."""
    home = folder / name
    home.mkdir(exist_ok=True)
    (home / "x.config").write_text(line)
    path = home / "p.yaml"
    path.write_text(
        f"name: {name}\nsource: {{{source}}}\nconfig: {{fragments: [x.config]}}\n{more}"
    )
    found = load(str(path))
    # Of any name: the same commit or content may have come into the cache by another source.
    is_debian = found.source[0].debian is not None
    now = datetime.now(UTC)
    tree = Tree(folder, "key", "x", "6.12", now, (), cached=True, is_debian=is_debian)
    return provenance(found, tree)


def test_provenance_tells_strangers_apart(tmp_path: Path) -> None:
    debian, git = "debian: linux-source-6.12", "git: https://example.org/linux, ref: v6.12"
    tree = f"directory: {tmp_path}/tree"
    known = {seen(tmp_path, debian), seen(tmp_path, debian, "b")}
    known |= {seen(tmp_path, "debian: linux-source-7.*, suite: trixie-backports")}
    assert len(known) == 1
    others = [
        seen(tmp_path, git),
        seen(tmp_path, git.replace("6.12", "0123456789abcdef")),
        seen(tmp_path, git.replace("example", "evil")),
        seen(tmp_path, tree),
        seen(tmp_path, f"{tree}2"),
        seen(tmp_path, f"tarball: https://example.org/x.tar, sha256: {'a' * 64}"),
    ]
    assert len({*others, *known}) == len(others) + 1
    assert seen(tmp_path, git, "b") == others[0]
    assert seen(tmp_path, f"directory: ../{(tmp_path / 'tree').name}") == others[3]


@pytest.mark.parametrize(
    "line",
    [
        'CONFIG_LOCALVERSION="$(shell touch /kdir/evil)"',
        "CONFIG_LOCALVERSION=$(shell touch /kdir/evil)",
        "CONFIG_BUILD_SALT=\"';touch /kdir/evil;'\"",
        'CONFIG_INITRAMFS_SOURCE="`touch /kdir/evil`"',
        "include /kdir/evil",
    ],
)
def test_an_option_that_is_a_command_shares_nothing(tmp_path: Path, line: str) -> None:
    debian = "debian: linux-source-6.12"
    assert seen(tmp_path, debian, line=line) != seen(tmp_path, debian)
    assert seen(tmp_path, debian, line=line) != seen(tmp_path, debian, "b", line=line)
    base = tmp_path / "a" / "base"
    base.write_text(f"CONFIG_A=y\n{line}\n")
    text = (tmp_path / "a" / "p.yaml").read_text()
    (tmp_path / "a" / "p.yaml").write_text(text.replace("{fragments: [x.config]}", "{base: base}"))
    assert not identity._is_plain(load(str(tmp_path / "a" / "p.yaml")))


def test_a_kernel_with_a_command_for_an_option_is_no_seed(host: Host) -> None:
    hostile = host.profile.read_text().replace("SPI: y", "LOCALVERSION: '$(shell id)'")
    assert (
        host("--json", "kernel", "--profile", host.write_profile(hostile, "x")).json["seed"] is None
    )
    assert host("--json", "kernel", "--profile", host.profile).json["seed"] is None


def test_a_log_without_end_is_read_to_a_bound(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(ccache, "MAX_LOG_BYTES", 1000)
    log = tmp_path / "log"
    log.write_text("cache_miss\ndirect_cache_hit\n" + "x" * 5000 + "\ncache_miss\n")
    assert ccache.Ccache(tmp_path, "x", log).use() == CacheUse(1, 1)


def test_what_the_store_has_keeps_its_figures(host: Host) -> None:
    host.module(host.write_module())
    phases = host.module(host.write_module()).json["phases"]
    assert all(one["cached"] and one["ccache"]["misses"] for one in phases)
    assert "ccache" not in host("module", host.write_module(), "--profile", host.profile).out


@pytest.mark.parametrize("how", ["option", "variable"])
def test_it_can_be_left_out(host: Host, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "variable":
        monkeypatch.setenv("RBUILD_CCACHE", "0")
    words = ["--no-ccache"] if how == "option" else []
    found = host("--json", "kernel", "--profile", host.profile, *words).json
    assert set(uses(found["phases"]).values()) == {None}
    found = host.module(host.write_module(), *words).json
    assert set(uses(found["phases"]).values()) == {None}
    assert caches(host) == []


def test_a_session_has_none_unless_it_asks(host: Host) -> None:
    host("bench", "--runs", "1", "--warmup", "0", "--env", "cross", "--profile", host.profile)
    assert caches(host) == []
    assert not BuildContext("x", Cache(host.cache, Console()), Bwrap()).ccache


def test_a_rootfs_without_it_builds_without_it(host: Host) -> None:
    (links,) = host.cache.glob("rootfs/*/root/usr/lib/ccache")
    links.rmdir()
    host.seal_anew(links.parents[3])
    found = host("--json", "kernel", "--profile", host.profile).json
    assert set(uses(found["phases"]).values()) == {None}


def test_makes_command_line_is_the_same_with_it(host: Host) -> None:
    def calls(*words: str) -> list[str]:
        (host.folder / "calls").unlink(missing_ok=True)
        host("kernel", "--profile", host.profile, "--clean", *words)
        return (host.folder / "calls").read_text().splitlines()

    assert calls() == calls("--no-ccache")


def test_each_compiler_has_a_cache_of_its_own(host: Host) -> None:
    host("kernel", "--profile", host.profile)
    (rootfs,) = host.cache.glob("rootfs/cross-*/metadata.json")
    data = json.loads(rootfs.read_text())
    data["packages"]["clang-19"] = "2.0-1"
    rootfs.write_text(json.dumps(data))
    host("kernel", "--profile", host.profile)
    words = {path.name: (path / "cache/modules_prepare").read_text() for path in caches(host)}
    assert len(words) == 2
    assert all(word == f"string:{name}" for name, word in words.items())


def test_status_and_clean_know_it(host: Host) -> None:
    host("kernel", "--profile", host.profile)
    (cache,) = caches(host)
    entries = host("--json", "status").json["entries"]
    assert [one["name"] for one in entries if one["room"] == "ccache"] == [cache.name]
    host("clean")
    assert caches(host) == [cache]
    with use(cache):
        host("clean", "--what", "ccache")
        assert caches(host) == [cache]
    assert host("--json", "clean", "--what", "ccache").json["removed"] == [cache.name]
    assert caches(host) == []
    host("kernel", "--profile", host.profile, "--clean")
    assert Entry(EntryKind.CCACHE, cache.name, cache).metadata is not None


def test_a_log_of_statistics_is_left_nowhere(host: Host) -> None:
    host("kernel", "--profile", host.profile)
    assert not list(host.cache.glob("runs/*/ccache-*"))


def test_a_phase_that_was_kept_is_read_again() -> None:
    kept = PhaseRecord.model_validate(
        {"name": "x", "wall_s": 1, "user_s": 1, "system_s": 0, "max_rss_bytes": 1}
    ).phase
    assert kept.ccache is None
    data = {**kept.as_json(), "ccache": {"hits": 1, "misses": 2}}
    assert PhaseRecord.model_validate(data).phase.ccache == CacheUse(1, 2)
