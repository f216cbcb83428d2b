"""Volumes without an engine: manifests, what differs between them, and archives that do harm."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import NotFound
from hypothesis import given
from hypothesis import strategies as st

from rbuild.cache.directory import Cache
from rbuild.cache.entry import EntryKind
from rbuild.errors import InfrastructureError, MissingDependency, UsageError
from rbuild.sandbox.docker import engine, volumes
from rbuild.sandbox.docker.archive import Stream, Unpacker, User, header, pack, parts_of
from rbuild.sandbox.docker.manifest import (
    Item,
    Type,
    difference,
    fingerprint,
    listed,
    nanoseconds,
    parse,
    scan,
    topmost,
)
from rbuild.sandbox.docker.synced import SyncedVolume, own, sweep, synced_volume
from rbuild.sandbox.docker.tunnel import tunnel
from rbuild.ui.console import Console

from .conftest import Host

NS = 1_700_000_000_123_456_789

part = st.binary(min_size=1, max_size=12).map(
    lambda raw: raw.replace(b"\0", b"n").replace(b"/", b"s").decode("utf-8", "surrogateescape")
)
names = st.lists(part.filter(lambda name: name not in {".", ".."}), min_size=1, max_size=3).map(
    "/".join
)
items = st.one_of(
    st.builds(
        Item,
        st.just(Type.FILE),
        st.integers(0, 0o777),
        st.integers(0, 2**40),
        st.integers(0, 2**33 * 10**9),
    ),
    st.builds(Item, st.just(Type.FOLDER), st.integers(0, 0o777)),
    st.builds(Item, st.just(Type.LINK), target=part),
)


@given(st.dictionaries(names, items))
def test_a_manifest_survives_being_listed(manifest: dict[str, Item]) -> None:
    assert parse(listed(manifest)) == manifest


@given(st.dictionaries(names, items), st.dictionaries(names, items))
def test_a_difference_makes_one_manifest_the_other(
    wanted: dict[str, Item], there: dict[str, Item]
) -> None:
    change = difference(wanted, there)
    made = {name: item for name, item in there.items() if name not in change.removed}
    made |= {name: wanted[name] for name in change.written}
    assert made == wanted
    assert (fingerprint(wanted) == fingerprint(there)) == (wanted == there) == (not change)


def test_what_is_in_a_folder_is_removed_before_it() -> None:
    there = {"a": Item(Type.FOLDER), "a/b": Item(Type.FOLDER), "a/b/c": Item(Type.FILE)}
    assert difference({"a": Item(Type.FILE)}, there).removed == ("a/b/c", "a/b", "a")


@pytest.mark.parametrize(
    ("text", "ns"),
    [("1700000000.1234567890", NS), ("5", 5 * 10**9), ("0", 0), ("1.5", 1_500_000_000)],
)
def test_a_time_is_not_rounded(text: str, ns: int) -> None:
    assert nanoseconds(text) == ns


@pytest.mark.parametrize("text", [b"f 0644 x 0 a//\0", b"f 0644\0", b"p 0644 0 0 a//\0"])
def test_a_list_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(InfrastructureError, match="list of files"):
        parse(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all that is odd."""
    path = tmp_path / "source"
    (path / "a folder/deeper").mkdir(parents=True)
    (path / "empty").mkdir(mode=0o700)
    for number, name in enumerate(["-rf", "new\nline", "quote'\"", "ümläut", "x" * 200]):
        file = path / name
        file.write_bytes(os.urandom(number * 700))
        os.utime(file, ns=(NS + number, NS + number))
    (Path(os.fsdecode(os.fsencode(path) + b"/latin\xff\xfe"))).write_text("bytes")
    (path / "a folder/deeper/program").write_text("#!/bin/sh\n")
    (path / "a folder/deeper/program").chmod(0o755)
    (path / "source").symlink_to("/src")
    (path / "dangling").symlink_to("../../nowhere")
    (path / ("deep/" * 30)).mkdir(parents=True)
    (path / ("deep/" * 30) / "file").write_text("deep")
    os.mkfifo(path / "pipe")
    return path


def unpack(target: Path, archive: bytes, allowed: dict[str, Item]) -> None:
    target.mkdir(exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape") as tar:
        Unpacker(target, allowed).unpack(tar, allowed)


def test_a_folder_arrives_as_it_was(folder: Path, tmp_path: Path) -> None:
    before = scan(folder)
    assert "pipe" not in before
    unpack(tmp_path / "target", b"".join(pack(folder, before, User())), before)
    assert scan(tmp_path / "target") == before
    assert (tmp_path / "target/ümläut").read_bytes() == (folder / "ümläut").read_bytes()
    found = (tmp_path / "target/a folder/deeper/program").stat()
    assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())


def test_a_deep_folder_is_listed_and_its_top_removed(tmp_path: Path) -> None:
    here, name = os.open(tmp_path, os.O_RDONLY), "n" * 100
    for _ in range(1200):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.symlink("somewhere", "link", dir_fd=here)
    os.close(here)
    try:
        found = scan(tmp_path)
    finally:
        subprocess.run(["rm", "-rf", tmp_path / name], check=True)
    assert len(found) == 1201
    # One word for rm(1), short enough for it.
    assert topmost(difference({}, found).removed) == [name]


def test_what_is_below_what_is_removed_needs_no_naming() -> None:
    names = ["a/b", "a", "a-b/c", "a-b", "ab/c", "d/e/f", "d/e/f/g", "a/b/c"]
    assert topmost(names) == ["a", "a-b", "ab/c", "d/e/f"]


def test_a_file_that_shrinks_or_goes_meanwhile_breaks_no_archive(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("content")
    told = []
    blocks = pack(tmp_path, ["gone", "here"], User(7, 8), told=told.append)
    with tarfile.open(fileobj=io.BytesIO(b"".join(blocks))) as tar:
        (one,) = tar.getmembers()
    assert (one.name, one.uid, one.gid) == ("here", 7, 8)
    assert told == ["gone", "here"]


FILE = Item(Type.FILE, 0o644, 4, NS)


def member(
    name: str,
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    mode: int = 0o644,
    *,
    size: int = 4,
    mtime: str | None = None,
) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    info.size = size if kind == tarfile.REGTYPE else 0
    if mtime is not None:
        info.pax_headers = {"mtime": mtime}
    content = b"evil".ljust(512, b"\0") if info.size else b""
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + content


@pytest.mark.parametrize(
    "name", ["../out", "/etc/evil", "a/../../out", "a//b", "./a", "a/.", "..", ".", "", "a/"]
)
def test_a_path_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="could lead out"):
        parts_of(name)
    # tarfile drops a trailing slash itself; whatever it makes of a name, nothing is written.
    with pytest.raises(InfrastructureError):
        unpack(tmp_path / "target", member(name), {name: FILE})
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "target"]


def test_a_link_in_the_archive_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    archive = member("door", tarfile.SYMTYPE, str(tmp_path / "outside")) + member("door/evil")
    link = Item(Type.LINK, target=str(tmp_path / "outside"))
    with pytest.raises(InfrastructureError, match="below a link"):
        unpack(tmp_path / "target", archive, {"door": link, "door/evil": FILE})
    assert not list((tmp_path / "outside").iterdir())


def test_a_link_that_was_there_is_not_followed(tmp_path: Path) -> None:
    target, outside = tmp_path / "target", tmp_path / "outside"
    for path in (target, outside):
        path.mkdir()
    (outside / "precious").write_text("mine")
    (target / "door").symlink_to(outside)
    (target / "file").symlink_to(outside / "precious")
    with pytest.raises(InfrastructureError, match="below a link"):
        unpack(target, member("door/precious"), {"door/precious": FILE})
    # A file takes the link's place; a folder does not, and a removal takes the link alone.
    unpack(target, member("file"), {"file": FILE})
    assert (target / "file").read_text() == "evil"
    with pytest.raises((InfrastructureError, OSError)):
        unpack(target, member("door", tarfile.DIRTYPE), {"door": Item(Type.FOLDER, 0o777)})
    with pytest.raises(InfrastructureError, match="below a link"):
        Unpacker(target, {}).remove(["door/precious"])
    Unpacker(target, {}).remove(["door"])
    assert (outside / "precious").read_text() == "mine"
    assert outside.stat().st_mode & 0o022 == 0


@pytest.mark.parametrize(
    "kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.SYMTYPE]
)
def test_what_is_no_file_is_not_written_as_one(kind: bytes, tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="no such thing"):
        unpack(tmp_path / "target", member("a", kind, "/etc/passwd"), {"a": FILE})
    assert not list((tmp_path / "target").iterdir())


def test_what_was_not_announced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="not asked for"):
        unpack(tmp_path / "target", member("b"), {"a": FILE})
    with pytest.raises(InfrastructureError, match="not asked for"):
        unpack(tmp_path / "target", member("a") * 2, {"a": FILE})
    with pytest.raises(InfrastructureError, match="left out 1"):
        unpack(tmp_path / "target", b"\0" * 1024, {"a": FILE})


@pytest.mark.parametrize(
    ("archive", "allowed"),
    [
        (member("a/b"), {"a/b": FILE}),
        (member("x" * 300), {"x" * 300: FILE}),
        (member("a", tarfile.SYMTYPE, "x" * 5000), {"a": Item(Type.LINK)}),
        (member("a", tarfile.SYMTYPE, ""), {"a": Item(Type.LINK)}),
        (member("a", mtime="x"), {"a": FILE}),
        (member("a", mtime="9" * 30), {"a": FILE}),
    ],
)
def test_what_can_not_stand_there_is_refused(archive, allowed, tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="nothing of it was written"):
        unpack(tmp_path / "target", archive, allowed)


@pytest.mark.parametrize(
    "names", [[], ["0.new"], ["0.tar"], ["x.new"], ["7.new"], ["-1.new"], ["\u0663.new", "0.new"]]
)
def test_an_answer_that_is_none_is_refused(cache: Cache, tmp_path: Path, names) -> None:
    synced = tuple(SyncedVolume(tmp_path, f"v{n}", "", True, None, kept=False) for n in (0, 1))
    trip = volumes.SyncSession(volumes.Volumes(SimpleNamespace(), "", cache), synced)
    trip.before = {key: {} for key in synced}
    answer = b"".join(member(name, size=0) for name in names)

    @contextlib.contextmanager
    def asked(_: object):
        with tarfile.open(fileobj=io.BytesIO(answer + bytes(1024)), mode="r|") as archive:
            yield archive

    trip._asked = asked
    with pytest.raises(InfrastructureError, match="The engine's answer has"):
        trip.fetch()


def test_a_list_of_the_hosts_that_is_broken_tells_nothing(cache: Cache, tmp_path: Path) -> None:
    one = SyncedVolume(tmp_path, "v", "", True, None, kept=False)
    trip = volumes.SyncSession(volumes.Volumes(SimpleNamespace(), "", cache), (one,))
    answer = member("0.new", size=0) + bytes(1024)

    @contextlib.contextmanager
    def asked(_: object):
        with tarfile.open(fileobj=io.BytesIO(answer), mode="r|") as archive:
            yield archive

    trip._asked = asked
    trip._mark_dirty = lambda _: None
    known = trip.volumes.folder / "v.manifest"
    for content in (b"f 0644", b"x y z\0", b"\xff"):
        known.write_bytes(content)
        assert trip._there(one, "whatever was held") == {}


def test_set_id_bits_do_not_arrive(tmp_path: Path) -> None:
    unpack(tmp_path / "target", member("a", mode=0o6755), {"a": Item(Type.FILE, 0o755, 4)})
    assert (tmp_path / "target/a").stat().st_mode & 0o7777 == 0o755


def test_a_time_needs_no_record_unless_it_has_nanoseconds() -> None:
    whole = header("a", Item(Type.FILE, 0o644, 0, 10**9), User())
    assert len(whole) == 512
    assert b"mtime=1700000000.123456789" in header("a", Item(Type.FILE, 0o644, 0, NS), User())


@given(st.lists(st.binary(max_size=9)), st.integers(1, 20))
def test_a_stream_is_read_in_any_pieces(chunks: list[bytes], size: int) -> None:
    chunks = [chunk for chunk in chunks if chunk]
    stream = Stream(chunks)
    assert b"".join(iter(lambda: stream.read(size), b"")) == b"".join(chunks)
    assert stream.count == sum(map(len, chunks))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", Console(verbosity=-1))


def publish(cache: Cache, kind: EntryKind, key: str = "key") -> Path:
    entry = cache.entry(kind, "one", key)
    with cache.lock(entry):
        partial = cache.partial(entry)
        (partial / "build").mkdir()
        cache.publish(entry, partial, {})
    return entry.path


def test_what_never_changes_is_named_by_its_birth(cache: Cache) -> None:
    path = publish(cache, EntryKind.TREES)
    first = synced_volume(cache, path / "build", writable=False)
    assert first.identity is not None
    assert first.entry == "trees/one-key"
    assert synced_volume(cache, path / "build", writable=False) == first
    publish(cache, EntryKind.TREES)
    assert synced_volume(cache, path / "build", writable=False).volume != first.volume


def test_a_kdir_has_one_volume_from_its_first_job_on(cache: Cache) -> None:
    entry = cache.entry(EntryKind.KDIRS, "one", "key")
    with cache.lock(entry):
        young = synced_volume(cache, cache.partial(entry) / "build", writable=True)
    path = publish(cache, EntryKind.KDIRS)
    for writable in (True, False):
        grown = synced_volume(cache, path / "build", writable=writable)
        assert (grown.volume, grown.entry, grown.identity) == (young.volume, young.entry, None)


def test_a_folder_outside_the_store_has_a_volume_for_once(cache: Cache, tmp_path: Path) -> None:
    one, other = (synced_volume(cache, tmp_path, writable=True) for _ in range(2))
    assert not one.kept
    assert one.volume != other.volume


class FakeVolume:
    def __init__(self, engine: FakeEngine, name: str, labels: dict[str, str]) -> None:
        self.engine, self.name = engine, name
        self.attrs = {"Labels": labels, "CreatedAt": "2026-11-27T10:00:00Z"}

    def remove(self) -> None:
        self.engine.names.remove(self.name)


class FakeEngine:
    """As much of a client as a sweep needs."""

    def __init__(self, volumes: dict[str, dict[str, str]]) -> None:
        self.names = list(volumes)
        self._labels = volumes
        self.volumes = self.api = self

    def df(self) -> dict[str, Any]:
        return {"Volumes": [{"Name": "there", "UsageData": {"Size": 5 << 20, "RefCount": 0}}]}

    def list(self, all: bool = False, filters: dict[str, str] | None = None) -> list[FakeVolume]:
        key, _, value = (filters or {})["label"].partition("=")
        return [
            FakeVolume(self, name, labels)
            for name, labels in self._labels.items()
            if labels.get(key) == value and name in self.names
        ]

    def get(self, name: str) -> None:
        raise NotFound(name)


def test_a_sweep_takes_what_nobody_has_any_more(cache: Cache) -> None:
    publish(cache, EntryKind.KDIRS)
    mine = {"rbuild.store": own(cache)}
    working = {**mine, **engine.Owner.this().labels(), "rbuild.entry": ""}
    client = FakeEngine(
        {
            "there": {**mine, "rbuild.entry": "kdirs/one-key"},
            "gone": {**mine, "rbuild.entry": "kdirs/one-other"},
            "working": working,
            "killed": {**working, "rbuild.started": "1"},
            "another host's": {"rbuild.store": "x", "rbuild.entry": "kdirs/one-other"},
            "another host's work": {**working, "rbuild.machine": "x"},
        }
    )
    assert sweep(client, cache) == ["gone", "killed"]
    assert client.names == ["there", "working", "another host's", "another host's work"]


def test_status_shows_the_volumes_of_the_stores_own_entries(
    bare: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(bare.cache, Console(verbosity=-1))
    mine = {"rbuild.store": own(cache)}
    client = FakeEngine(
        {
            "there": {**mine, "rbuild.entry": "kdirs/one-key"},
            "for once": {**mine, "rbuild.entry": ""},
            "another host's": {"rbuild.store": "x", "rbuild.entry": "kdirs/one-key"},
        }
    )
    monkeypatch.setattr("rbuild.sandbox.docker.leftovers.engine_of", lambda _: client)
    monkeypatch.setattr("rbuild.sandbox.docker.image.images", lambda _: [])
    (row,) = bare("--json", "status").json["entries"]
    assert (row["name"], row["room"], row["state"]) == ("there", "volume", "kdirs/one-key")
    assert row["size_bytes"] == 5 << 20
    assert row["age_s"] > 0
    assert "5.0 MiB" in bare("status").out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer", "ca.pem"),
        ("sslv3 alert bad certificate", "--tlscacert"),
        ("Client sent an HTTP request to an HTTPS server.", "DOCKER_TLS_VERIFY=1"),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", "unset DOCKER_TLS_VERIFY"),
        ("[SSL] record layer failure", "unset DOCKER_TLS_VERIFY"),
        ("TLS configuration is invalid", "cert.pem and key.pem"),
        ("Connection aborted.", "ssh://HOST/run/user/1000/docker.sock"),
    ],
)
def test_an_engine_that_does_not_answer_has_a_remedy(
    words: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://me@far")
    assert hint in str(engine.unreachable(OSError(words)).hint)


@pytest.mark.parametrize(
    ("place", "argv"),
    [
        ("ssh://far", ["-L", "SOCKET:/var/run/docker.sock", "--", "far"]),
        ("ssh://me@Far/", ["-L", "SOCKET:/var/run/docker.sock", "--", "me@Far"]),
        ("ssh://me@far:22/x/y", ["-p", "22", "-L", "SOCKET:/x/y", "--", "me@far"]),
        ("ssh://[fe80::1]:22", ["-p", "22", "-L", "SOCKET:/var/run/docker.sock", "--", "fe80::1"]),
    ],
)
def test_an_engine_behind_ssh_is_forwarded(
    place: str, argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fake = tmp_path / "ssh"
    # Told to listen at PATH:THERE, behind -L, it makes PATH.
    fake.write_text(
        f"#!/bin/sh\necho $$ >{tmp_path}/pid\nprintf '%s\\n' \"$@\" >{tmp_path}/argv\n"
        'while [ "$1" != -L ]; do shift; done\n>"${2%%:*}"\nexec sleep 100\n'
    )
    fake.chmod(0o755)
    killed = tmp_path / f"rbuild-ssh-{os.getuid()}-4194305-x"
    killed.mkdir()
    with tunnel(place) as near:
        socket = near.removeprefix("unix://")
        said = (tmp_path / "argv").read_text().replace(socket, "SOCKET").splitlines()
        assert said[-len(argv) :] == argv
        assert not killed.exists()
    assert not list(tmp_path.glob("rbuild-ssh-*"))
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


@pytest.mark.parametrize("place", ["ssh://", "ssh://far:x", "ssh://me:secret@far", "ssh://far?x"])
def test_a_place_behind_ssh_that_cannot_be(place: str) -> None:
    with pytest.raises(UsageError) as caught, tunnel(place):
        pass
    assert "[:PORT]" in str(caught.value.hint)


def test_an_ssh_that_is_refused_says_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "ssh").write_text("#!/bin/sh\necho 'Permission denied' >&2\nexit 255\n")
    (tmp_path / "ssh").chmod(0o755)
    with pytest.raises(MissingDependency) as caught, tunnel("ssh://me@far:22"):
        pass
    assert caught.value.detail == "Permission denied"
    assert "`ssh -p 22 me@far true`" in str(caught.value.hint)
