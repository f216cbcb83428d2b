"""Integrity: what was damaged in the cache is found before it is used, and made anew."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from rbuild.cache import integrity, verify
from rbuild.cache.directory import Cache, CorruptEntry
from rbuild.cache.entry import FORMAT, Entry, EntryKind
from rbuild.cache.locks import in_use
from rbuild.cli.main import run
from rbuild.errors import BuildFailed, NewerFormat, ProcessFailed
from rbuild.ui.console import Console
from rbuild.util import process
from rbuild.util.disk import freed_size, tree_size
from rbuild.util.folders import GONE
from rbuild.util.host import realm
from tests.unit.conftest import Host

FILES = {
    "src/Makefile": "VERSION = 6\n",
    "src/drivers/spi/spi.c": "int spi;\n",
    "src/with space\nand line": "x",
    "src/include/empty": "",
}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", Console())


def published(cache: Cache, name: str = "one") -> Entry:
    entry = cache.entry(EntryKind.TREES, name, "0123456789ab")
    with cache.lock(entry):
        partial = cache.partial(entry)
        for path, text in FILES.items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).write_text(text)
        (partial / "src/link").symlink_to("Makefile")
        cache.publish(entry, partial, {"version": "6.1"})
    return entry


def flip(path: Path) -> None:
    """Turn a bit as a disk does: the file's size and times stay."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def edit(path: Path) -> None:
    path.write_text("VERSION = 7\n")


def truncate(path: Path) -> None:
    os.truncate(path, 3)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "truncated": (truncate, "src/Makefile", "Makefile has 3 bytes instead of 12"),
    "edited": (edit, "src/Makefile", "Makefile was written to"),
    "missing": (Path.unlink, "src/Makefile", "Makefile is missing"),
    "foreign": (Path.touch, "src/drivers/new", "drivers/new was not there"),
    "mode": (lambda path: path.chmod(0o4755), "src/Makefile", "has the mode 4755 instead of 644"),
    "folder": (replace_by_folder, "src/Makefile", "Makefile is another thing than it was"),
    "link": (Path.unlink, "src/link", "link is missing"),
    "odd name": (Path.unlink, "src/with space\nand line", r"with space\nand line is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_before_use(cache: Cache, name: str) -> None:
    entry = published(cache)
    assert cache.use(entry) is not None
    cache.check()
    cache.release()
    how, path, said = DAMAGES[name]
    how(entry.path / path)
    found = entry.integrity
    assert found is not None
    assert any(said in fault for fault in integrity.verify_quick(entry.path, found))
    assert cache.use(entry) is not None
    with pytest.raises(CorruptEntry, match="one-0123456789ab was damaged"):
        cache.check()


def test_a_flipped_bit_is_found_by_its_content(cache: Cache) -> None:
    entry = published(cache)
    found = entry.integrity
    assert found is not None
    assert integrity.verify_deep(entry.path, found) == []
    flip(entry.path / "src/drivers/spi/spi.c")
    assert integrity.verify_quick(entry.path, found) == []
    assert integrity.verify_deep(entry.path, found) == [
        "drivers/spi/spi.c has another content than was recorded"
    ]


def test_what_isnt_read_isnt_looked_at(cache: Cache) -> None:
    entry = published(cache)
    found = entry.integrity
    assert found is not None
    edit(entry.path / "src/drivers/spi/spi.c")
    assert integrity.verify_quick(entry.path, found, re.compile("drivers")) == []
    assert integrity.verify_quick(entry.path, found, re.compile("include")) != []


@pytest.mark.parametrize("how", [truncate, edit, Path.unlink])
def test_a_damaged_manifest_is_damage(cache: Cache, how) -> None:
    entry = published(cache)
    found = entry.integrity
    assert found is not None
    edit(entry.path / "src/Makefile")
    how(entry.path / integrity.MANIFEST)
    assert integrity.verify_quick(entry.path, found) == [
        "its manifest is gone, or isn't the one that was recorded"
    ]
    assert integrity.verify_deep(entry.path, found) == integrity.verify_quick(entry.path, found)


@pytest.mark.parametrize("value", [None, [], {}, {"folder": 1}, "x"])
def test_a_broken_seal_is_none(cache: Cache, value: object) -> None:
    entry = published(cache)
    cache.update(entry, integrity=value)
    assert entry.integrity is None
    assert cache.use(entry) is None


def test_an_entry_under_another_name_is_not_used(cache: Cache) -> None:
    entry = published(cache)
    other = cache.entry(EntryKind.TREES, "other", "0123456789ab")
    entry.path.rename(other.path)
    assert cache.use(other) is None


def test_an_opened_entry_may_change(cache: Cache) -> None:
    entry = published(cache)
    assert cache.use(entry) is not None
    with cache.lock(entry):
        cache.open(entry)
        edit(entry.path / "src/Makefile")
        cache.check()
        cache.close(entry, version="7.0")
    assert cache.use(entry) is not None
    cache.check()
    assert entry.raw["version"] == "7.0"
    edit(entry.path / "src/include/empty")
    cache.release()
    cache.use(entry)
    with pytest.raises(CorruptEntry):
        cache.check()


def test_what_a_newer_rbuild_made_is_refused_and_stays(cache: Cache) -> None:
    entry = published(cache)
    cache.update(entry, format=FORMAT + 1)
    before = (entry.path / "metadata.json").read_bytes()
    with pytest.raises(NewerFormat, match="made by a newer rbuild") as error:
        cache.use(entry)
    assert error.value.exit_code == 4
    assert (entry.path / "metadata.json").read_bytes() == before


def test_what_an_older_rbuild_made_is_sealed(cache: Cache) -> None:
    entry = published(cache)
    raw = entry.raw
    del raw["integrity"], raw["entry"]
    (entry.path / "metadata.json").write_text(json.dumps({**raw, "format": 1}))
    (entry.path / integrity.MANIFEST).unlink()
    metadata = cache.use(entry)
    assert metadata is not None
    assert metadata["format"] == FORMAT
    assert entry.integrity is not None
    assert metadata["created"] == raw["created"]


def test_a_name_of_the_shell_is_only_a_name(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache [x] *", Console())
    entry = published(cache)
    assert entry.integrity is not None
    assert integrity.verify_quick(entry.path, entry.integrity) == []


def test_what_is_used_is_not_removed_from_the_disk(cache: Cache) -> None:
    entry = published(cache)
    user = Cache(cache.root, Console())
    assert user.use(entry) is not None
    assert in_use(entry.path)
    with cache.lock(entry):
        cache.remove(entry)
    assert not entry.path.exists()
    (trash,) = cache.root.glob("trees/.one-*.trash-*")
    assert (trash / "src/Makefile").exists()
    user.release()
    with cache.lock(entry):
        pass
    assert not trash.exists()


def test_a_killed_writers_file_is_swept(cache: Cache) -> None:
    entry = published(cache)
    half = entry.path / f".rbuild-{realm()}-4194305-0123456789abcdef"
    half.write_text("half")
    cache.update(entry, version="8")
    assert not list(entry.path.glob(".rbuild-*"))


def test_a_killed_rbuilds_scratch_is_swept(cache: Cache) -> None:
    with cache.scratch("verify") as one:
        (one / "file").touch()
    assert not one.exists()
    left = one.with_name(".verify-1-2.partial")
    left.mkdir()
    (left / "file").touch()
    with cache.scratch("verify") as two, Cache(cache.root, Console()).scratch("verify") as three:
        assert not left.exists()
        assert two.is_dir()
        assert three.is_dir()


def test_status_counts_what_entries_share_once(host: Host) -> None:
    host("kernel", "--profile", host.profile)
    before = host("--json", "status").json
    tree = next((host.cache / "trees").glob("[!.]*"))
    twin = tree.with_name("other-0123456789ab")
    (tree / "src/large").write_bytes(b"x" * 400_000)
    shutil.copytree(tree, twin, copy_function=os.link)
    found = host("--json", "status").json
    sizes = {one["name"]: one["size_bytes"] for one in found["entries"]}
    assert sizes[twin.name] == sizes[tree.name] > 400_000
    assert 400_000 <= found["size_bytes"] - before["size_bytes"] < 600_000


def test_removing_gives_what_is_not_linked_from_elsewhere(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one/file").write_bytes(b"x" * 10_000)
    (tmp_path / "two/file").hardlink_to(tmp_path / "one/file")
    assert freed_size(tmp_path / "one") == 0
    assert freed_size(tmp_path) == tree_size(tmp_path) >= 10_000


@pytest.mark.parametrize("raised", [None, BuildFailed("No compiler."), KeyboardInterrupt()])
def test_what_is_checked_beside_work_is_told_instead(
    cache: Cache, raised: BaseException | None
) -> None:
    entry = published(cache)
    cache.use(entry)
    with cache.checking():
        done = True
    assert done
    edit(entry.path / "src/Makefile")
    other = Cache(cache.root, Console())
    other.use(entry)
    # Who has interrupted it wants nothing made anew.
    told = KeyboardInterrupt if isinstance(raised, KeyboardInterrupt) else CorruptEntry
    with pytest.raises(told), other.checking():
        if raised is not None:
            raise raised


def test_what_another_has_made_anew_is_not_removed(cache: Cache) -> None:
    entry = published(cache)
    edit(entry.path / "src/Makefile")
    cache.use(entry)
    with pytest.raises(CorruptEntry) as damaged:
        cache.check()
    again = Cache(cache.root, Console())
    again.discard(damaged.value)
    assert not entry.path.exists()
    published(again)
    cache.discard(damaged.value)
    assert cache.use(entry) is not None
    cache.check()


# By the command line.


def entry_of(host: Host, kind: str) -> Path:
    (found,) = (path for path in (host.cache / kind).iterdir() if not path.name.startswith("."))
    return found


def test_damage_is_made_anew(host: Host) -> None:
    source = host.write_module()
    first = host.module(source).json
    again = host.module(source)
    assert again.json["phases"][-1]["cached"]
    truncate(entry_of(host, "trees") / "src/Makefile")
    host.write_module("int y;\n")
    mended = host.module(source)
    assert "Makefile has 3 bytes instead of" in mended.err
    assert "made anew" in mended.err
    assert mended.json["kernel_release"] == first["kernel_release"]
    assert host.module(source).err.count("damaged") == 0


def test_a_damaged_rootfs_is_provisioned_again(host: Host) -> None:
    host("setup", "cross")
    calls = host.calls("mmdebstrap")
    next((entry_of(host, "rootfs") / "root").rglob("status")).unlink()
    found = host.module(host.write_module())
    assert "status is missing" in found.err
    assert host.calls("mmdebstrap") > calls


def test_status_verifies(host: Host) -> None:
    host.module(host.write_module())
    clean = host("--json", "status", "--verify").json
    assert not [row for row in clean["entries"] if row.get("damage")]
    flip(entry_of(host, "trees") / "src/Makefile")
    found = host("--json", "status", "--verify", code=1)
    (row,) = (row for row in found.json["entries"] if row.get("damage"))
    assert row["state"] == "damaged"
    assert row["damage"] == "Makefile has another content than was recorded"
    assert f"{row['name']} is damaged" in found.err
    # What is known to be damaged is never used.
    host.write_module("int z;\n")
    host.module(host.folder / "mine")
    assert host("status", "--verify").out.count("0 are damaged") == 1


def test_what_isnt_an_entry_is_told(host: Host) -> None:
    host.module(host.write_module())
    (host.cache / "trees/mine").mkdir()
    found = host("--json", "status", "--verify", code=1).json
    (row,) = (row for row in found["entries"] if row["name"] == "mine")
    assert row["damage"] == "it isn't an entry that rbuild made"


def test_a_newer_rbuilds_cache_is_refused(host: Host) -> None:
    host.module(host.write_module())
    path = entry_of(host, "trees") / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    host.write_module("int z;\n")
    found = host.module(host.folder / "mine", code=4)
    assert "made by a newer rbuild" in found.err
    assert json.loads(path.read_text())["format"] == 99
    assert "newer" in host("status").out


# Cleaning by age of use and by size.


def runs(host: Host, count: int) -> list[str]:
    for number in range(count):
        run = host.cache / "runs" / f"2026010{number}-000000-module-1"
        run.mkdir(parents=True)
        (run / "build.log").write_bytes(b"x" * 100_000)
        os.utime(run, (1e9 + number, 1e9 + number))
    return [path.name for path in sorted((host.cache / "runs").glob("2026*"))]


def test_the_last_ones_are_kept(host: Host) -> None:
    names = runs(host, 5)
    found = host("--json", "clean", "--what", "runs", "--keep-last", "2").json
    assert found["removed"] == names[:3]
    assert sorted(path.name for path in (host.cache / "runs").glob("2*")) == names[3:]


def test_the_cache_is_made_small_enough(host: Host) -> None:
    names = runs(host, 5)
    limit = tree_size(host.cache) - 150_000
    found = host("--json", "clean", "--max-size", str(limit)).json
    assert found["removed"] == names[:2]
    assert tree_size(host.cache) <= limit
    assert host("--json", "clean", "--max-size", "1g").json["removed"] == []


def test_what_is_in_use_stays(host: Host) -> None:
    host.module(host.write_module())
    tree = entry_of(host, "trees")
    cache = Cache(host.cache, Console())
    assert cache.use(Entry(EntryKind.TREES, tree.name, tree)) is not None
    found = host("--json", "clean", "--what", "trees").json
    assert found["in_use"] == [tree.name]
    assert tree.is_dir()
    cache.release()
    assert host("--json", "clean", "--what", "trees").json["removed"] == [tree.name]


# Verifying what somebody removes, or what can't be read.


def vanish_before(cache: Cache, entry: Entry, real, *args):
    cache.remove(entry)
    return real(*args)


def vanish_after(cache: Cache, entry: Entry, real, *args):
    faults = real(*args)
    cache.remove(entry)
    return faults


def vanish_between(cache: Cache, entry: Entry, real, *args):
    found = integrity._records

    def records(*args) -> list[bytes]:
        now = found(*args)
        cache.remove(entry)
        return now

    integrity._records = records
    try:
        return real(*args)
    finally:
        integrity._records = found


def vanish_and_come_back(cache: Cache, entry: Entry, real, *args):
    edit(entry.path / "src/Makefile")
    faults = real(*args)
    assert faults
    cache.remove(entry)
    published(cache)
    return faults


@pytest.mark.parametrize("how", [vanish_before, vanish_between, vanish_after, vanish_and_come_back])
def test_what_goes_while_it_is_verified_is_not_damaged(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys, how
) -> None:
    entry = published(cache)
    published(cache, "other")
    real = verify.verify_deep

    def verify_deep(path: Path, *args):
        return how(cache, entry, real, path, *args) if path == entry.path else real(path, *args)

    monkeypatch.setattr(verify, "verify_deep", verify_deep)
    assert run(["--cache-dir", str(cache.root), "--json", "status", "--verify"]) == 0
    rows = json.loads(capsys.readouterr().out)["entries"]
    back = how is vanish_and_come_back
    assert len(rows) == 1 + back
    assert not any(row.get("damage") or row["state"] == "damaged" for row in rows)
    assert (entry.metadata is not None) == back
    assert entry.raw.get("damage") is None


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_what_cant_be_read_is_not_damaged(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys, number: int
) -> None:
    entry = published(cache)
    real = integrity.sha256_file

    def sha256_file(path: Path) -> str:
        if path.name == "spi.c":
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(integrity, "sha256_file", sha256_file)
    assert run(["--cache-dir", str(cache.root), "--json", "status", "--verify"]) == 4
    found = capsys.readouterr()
    (row,) = json.loads(found.out)["entries"]
    assert row["state"] == "unreadable"
    assert "damage" not in row
    assert f"drivers/spi/spi.c can't be read: {os.strerror(number)}" in found.err
    cache.use(entry)
    with pytest.raises(OSError, match=os.strerror(number)):
        cache.check()
    # What was seen to be wrong is damage all the same.
    edit(entry.path / "src/Makefile")
    assert run(["--cache-dir", str(cache.root), "--json", "status", "--verify"]) == 1


def test_what_couldnt_be_read_when_it_was_sealed_is_not_damaged(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary user's rootfs, which root verifies."""
    real = integrity.sha256_file

    def sha256_file(path: Path) -> str:
        if path.name == "spi.c":
            raise PermissionError
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(integrity, "sha256_file", sha256_file)
        entry = published(cache)
    assert entry.integrity is not None
    assert integrity.verify_deep(entry.path, entry.integrity) == []
    flip(entry.path / "src/Makefile")
    assert integrity.verify_deep(entry.path, entry.integrity) != []


@pytest.mark.parametrize("name", ["metadata.json", "manifest"])
def test_an_entry_whose_record_cant_be_read_stays(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    entry = published(cache)
    cache.use(entry)
    real = Path.open

    def deny(self: Path, *args, **kwargs):
        if self.name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(PermissionError):
        cache.find(entry)
        edit(entry.path / "src/Makefile")
        cache.check()
    assert run(["--cache-dir", str(cache.root), "--json", "status", "--verify"]) == 4
    assert entry.path.exists()


def test_find_may_miss_what_vanishes(tmp_path: Path) -> None:
    """Each part is named to find(1), and another may have gone by then."""
    (tmp_path / "one").write_text("x")
    found = process.output(["find", "one", "two"], cwd=tmp_path, excused=GONE)
    assert found == b"one\n"
    with pytest.raises(ProcessFailed):
        process.output(["find", "one", "two"], cwd=tmp_path)
    with pytest.raises(ProcessFailed):
        process.output(["find", "one", "-nonsense"], cwd=tmp_path, excused=GONE)
