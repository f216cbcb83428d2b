"""ccache: where it is used, for whom, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rbuild.console import Console
from rbuild.sandbox.bwrap import Bwrap
from rbuild.session import CacheUse, Phase, Session
from rbuild.store import Entry, Room, Store

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


def test_a_module_is_compiled_through_it_too(host: Host) -> None:
    found = host.module(host.write_module()).json["phases"][-1]
    assert found["ccache"] == {"hits": 0, "misses": 1}
    found = host("module", host.write_module("int y;\n"), "--profile", host.profile)
    assert "1 of 1 compilations from ccache" in found.out


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
    assert not Session("x", Store(host.cache, Console()), Bwrap()).ccache


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
    with Store(host.cache, Console()).use(cache):
        host("clean", "--what", "ccache")
        assert caches(host) == [cache]
    assert host("--json", "clean", "--what", "ccache").json["removed"] == [cache.name]
    assert caches(host) == []
    host("kernel", "--profile", host.profile, "--clean")
    assert Entry(Room.CCACHE, cache.name, cache).metadata is not None


def test_a_log_of_statistics_is_left_nowhere(host: Host) -> None:
    host("kernel", "--profile", host.profile)
    assert not list(host.cache.glob("runs/*/ccache-*"))


def test_a_phase_that_was_kept_is_read_again() -> None:
    kept = Phase.from_json(
        {"name": "x", "wall_s": 1, "user_s": 1, "system_s": 0, "max_rss_bytes": 1}
    )
    assert kept.ccache is None
    again = Phase.from_json({**kept.as_json(), "ccache": {"hits": 1, "misses": 2}})
    assert again.ccache == CacheUse(1, 2)
