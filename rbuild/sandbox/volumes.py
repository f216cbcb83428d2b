"""Named volumes: how files reach an engine that shares none with this host, and come back.

A folder is carried in a volume that is kept in step with it.  What immutable Store entries hold is
sent once; of other folders only what changed, found by comparing manifests.  After a job, what it
changed comes back.  Folders outside the Store get a volume that is gone after the job.

A volume's labels can't be changed, so that it is whole is said by a second one, its mark: an empty
volume named ``<name>.whole``, made last.  It has the fingerprint of what the volume holds, and the
volume's birth, without which a mark that outlived its volume would vouch for the next one.  While
there is no mark (an upload was killed, or a job that wrote is under way) nothing is believed: the
engine is asked what the volume holds, and the host's folder is right.
"""

from __future__ import annotations

import filecmp
import gzip
import os
import shutil
import tarfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from docker.errors import APIError, NotFound
from docker.types import Mount
from filelock import FileLock

from rbuild.console import Step, size
from rbuild.errors import InfrastructureError
from rbuild.folders import MAX_DEPTH
from rbuild.sandbox import Bind
from rbuild.sandbox.archive import CHUNK, Stream, Unpacker, User, of_bytes, pack
from rbuild.sandbox.carrier import FOLDER
from rbuild.sandbox.engine import OURS, Owner, explained
from rbuild.sandbox.manifest import (
    FIND,
    Difference,
    Manifest,
    difference,
    fingerprint,
    listed,
    parse,
    scan,
    topmost,
)
from rbuild.store import Entry, Room, Store, digest

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container
    from docker.models.volumes import Volume

VOLUME, MARK = "volume", "mark"
"""What the label of all that is rbuild's says of a volume."""

STORE, ENTRY = "rbuild.store", "rbuild.entry"
"""The labels that say whose a volume is, and which entry of that Store it is of."""

BIRTH, HELD = "rbuild.birth", "rbuild.held"

IMMUTABLE = frozenset({Room.ROOTFS, Room.TREES, Room.EMULATORS})
"""The rooms whose entries never change once they are published."""

INSIDE = "rbuild-carrier"
"""Where in its root the helper has everything: volumes by number, and what it is to do."""

DEEPEST = MAX_DEPTH + 2
"""How deep a job's outputs are listed: so deep that those that are too deep are known as such."""

PATIENCE_S = 2.0
"""How long sending may take before it is shown."""

# The list of what changed has folders first, then files in the order of their making: if writing
# them on the host is cut short, what is there is what an interrupted make would have left.
SCRIPT = rf"""
set -eu
export LC_ALL=C
cd /{INSIDE}
rm -rf result
mkdir result
for wanted in ask/*.remove; do
    [ -e "$wanted" ] || continue
    number=$(basename "$wanted" .remove)
    (cd "$number" && xargs -0 rm -rf --) <"$wanted"
done
for before in ask/*.before; do
    [ -e "$before" ] || continue
    number=$(basename "$before" .before)
    sort -z "$before" >before
    (cd "$number" && find . -mindepth 1 -maxdepth {DEEPEST} {FIND}) | sort -z >after
    comm -z -23 before after >"result/$number.gone"
    comm -z -13 before after | sort -z -t ' ' -k1,1 -k4,4n -k5 >"result/$number.new"
    [ -e "ask/$number.fetch" ] || continue
    sed -z -e 's,^[^ ]* [^ ]* [^ ]* [^ ]* ,,' -e 's,//.*$,,' "result/$number.new" >names
    tar --create --file="result/$number.tar" --directory="$number" --format=posix \
        --pax-option=delete=atime,delete=ctime --hard-dereference --no-recursion \
        --numeric-owner --null --verbatim-files-from --files-from=names
done
"""


@dataclass(frozen=True)
class Parcel:
    """A folder of the host's and the volume that holds the same.

    ``identity`` says what is in it where that never changes; ``kept`` whether the next job may
    find it again.
    """

    source: Path
    volume: str
    entry: str
    writable: bool
    identity: str | None
    kept: bool

    @property
    def title(self) -> str:
        """What to call it in a message."""
        return self.entry.rpartition("/")[2] or self.source.name

    @property
    def mark(self) -> str:
        """The name of the volume that says that this one is whole."""
        return f"{self.volume}.whole"


@dataclass
class Traffic:
    """The bytes that went to the engine and came from it."""

    sent: int = 0
    received: int = 0

    def __str__(self) -> str:
        return f"sent {size(self.sent)}, received {size(self.received)}"


@dataclass
class Volumes:
    """Carries the host's files to an engine that doesn't see them.

    ``image`` has tar, find and GNU's coreutils, which compare what a job left; ``user`` is whom
    a job runs as.
    """

    client: DockerClient
    image: str
    store: Store
    user: User = field(default_factory=User)
    platform: str | None = None
    traffic: Traffic = field(default_factory=Traffic)

    @contextmanager
    def carry(self, binds: Sequence[Bind]) -> Iterator[list[Mount]]:
        """Make ``binds`` visible in a container while the body runs.

        What it wrote into writable ones is in the host's folders at the end, also if the body
        raises.  Raises InfrastructureError if the engine fails, or sends what would do harm.
        """
        files = [bind for bind in binds if not bind.source.is_dir()]
        with ExitStack() as stack:
            desk = stack.enter_context(self.store.scratch("files")) if files else None
            parcels = self._parcels(binds, files, desk)
            trip = _Trip(self, tuple(parcels.values()))
            stack.enter_context(trip)
            trip.send()
            mounts = [self._mount(bind, parcels) for bind in binds if bind not in files]
            if desk is not None:
                mounts += self._single(files, parcels[desk])
            try:
                yield mounts
            finally:
                trip.fetch()
                for number, bind in enumerate(files):
                    if bind.writable and desk is not None:
                        _bring_back(desk / str(number), bind.source)
                self.store.console.verbose(f"To and from the engine: {self.traffic}.")

    @property
    def folder(self) -> Path:
        """Where the host keeps what it knows of volumes."""
        path = self.store.root / FOLDER
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _parcels(
        self, binds: Sequence[Bind], files: Sequence[Bind], desk: Path | None
    ) -> dict[Path, Parcel]:
        """Return each folder that must be carried, one that is bound twice once."""
        parcels: dict[Path, Parcel] = {}
        for bind in binds:
            if bind not in files:
                before = parcels.get(bind.source)
                writable = bind.writable or (before is not None and before.writable)
                parcels[bind.source] = parcel(self.store, bind.source, writable=writable)
        if desk is not None:
            for number, bind in enumerate(files):
                shutil.copy2(bind.source, desk / str(number))
            writable = any(bind.writable for bind in files)
            parcels[desk] = parcel(self.store, desk, writable=writable)
        return parcels

    def _mount(self, bind: Bind, parcels: Mapping[Path, Parcel]) -> Mount:
        volume = parcels[bind.source].volume
        # What the image has at the target is no part of the volume.
        return Mount(bind.target, volume, type="volume", read_only=not bind.writable, no_copy=True)

    def _single(self, files: Sequence[Bind], kept: Parcel) -> list[Mount]:
        """Return the mounts of single files, from where the engine itself has their volume.

        Mounting a part of a volume by its name needs Docker 26.
        """
        with explained("carry files"):
            place = self.client.volumes.get(kept.volume).attrs["Mountpoint"]
        return [
            Mount(bind.target, f"{place}/{number}", type="bind", read_only=not bind.writable)
            for number, bind in enumerate(files)
        ]


def _unasked(what: str) -> InfrastructureError:
    return InfrastructureError(f"The engine's answer has {what}.", hint="Try it again.")


def parcel(store: Store, source: Path, *, writable: bool) -> Parcel:
    """Return in which volume a folder is carried.

    An entry that is still being built has the same volume when it is published.
    """
    try:
        room, entry, *rest = source.resolve().relative_to(store.root.resolve()).parts
    except ValueError:
        room = entry = ""
    # What is in the Store for a moment only is like what isn't in it.
    if not room or (room == Room.RUNS and entry.startswith(".")):
        name = f"rbuild-{uuid.uuid4().hex}"
        return Parcel(source, name, "", writable, identity=None, kept=False)
    published = not entry.startswith(".")
    plain = entry if published else entry[1:].removesuffix(".partial")
    identity = None
    if published and not writable and room in {*IMMUTABLE}:
        metadata = Entry(Room(room), plain, store.root / room / plain).metadata
        if metadata is not None and "created" in metadata:
            identity = str(metadata["created"])
    place = [own(store), room, plain, *rest, identity]
    name = f"rbuild-{plain}-{digest(place)}"
    return Parcel(source, name, f"{room}/{plain}", writable, identity, kept=True)


class _Trip:
    """One journey of parcels to the engine and back, with the helper that it needs, if any."""

    def __init__(self, volumes: Volumes, parcels: tuple[Parcel, ...]) -> None:
        self.volumes = volumes
        self.client = volumes.client
        self.parcels = parcels
        self.before: dict[Parcel, Manifest] = {}
        self._helper: Container | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with explained("carry files"):
            if self._helper is not None:
                self._helper.remove(force=True)
            for one in self.parcels:
                if not one.kept and (found := self._volume(one.volume)) is not None:
                    _remove(found)

    def send(self) -> None:
        """Bring every volume in step with its folder."""
        # All of them are made before there is a helper: mounting would make them without labels.
        fresh = [one for one in self.parcels if self._make(one)]
        for one in self.parcels:
            with FileLock(self.volumes.folder / f"{one.volume}.lock"):
                self._send(one, fresh=one in fresh)

    def fetch(self) -> None:
        """Bring every writable folder in step with its volume."""
        written = [one for one in self.parcels if one.writable]
        if not written:
            return
        asked: dict[str, bytes] = {}
        for one in written:
            number = self.parcels.index(one)
            asked[f"{number}.before"] = listed(self.before[one])
            asked[f"{number}.fetch"] = b""
        after: dict[Parcel, Manifest] = {}
        with self._asked(asked) as answer:
            for one, content in self._read(answer, after):
                if one not in after:
                    raise _unasked("files before their list")
                unpacker = Unpacker(one.source, after[one])
                changed = difference(after[one], self.before[one])
                unpacker.remove(changed.removed)
                with tarfile.open(fileobj=content, mode="r|", errors="surrogateescape") as archive:
                    unpacker.unpack(archive, changed.written)
        for one in written:
            if one not in after:
                raise _unasked("no list of files")
            self._vouch(one, after[one])

    def _read(
        self, answer: tarfile.TarFile, after: dict[Parcel, Manifest]
    ) -> Iterator[tuple[Parcel, IO[bytes]]]:
        """Yield each parcel whose changed files come, as an archive; ``after`` has what is there.

        What is gone and what is new of a parcel comes before its files.
        """
        gone: Manifest = {}
        for member in answer:
            number, _, what = PurePosixPath(member.name).name.partition(".")
            content = answer.extractfile(member) if member.isreg() else None
            if content is None:
                continue
            if number not in {str(at) for at in range(len(self.parcels))}:
                raise _unasked(f"the file {member.name[:100]!r}")
            one = self.parcels[int(number)]
            if what == "gone":
                gone = parse(content.read())
            elif what == "new":
                kept = self.before.get(one, {})
                stayed = {name: item for name, item in kept.items() if name not in gone}
                after[one] = {**stayed, **parse(content.read())}
            elif what == "tar":
                yield one, content

    def _send(self, one: Parcel, *, fresh: bool) -> None:
        held = None if fresh else self._held(one)
        if held is not None and held == one.identity:
            return
        wanted = scan(one.source)
        if held != fingerprint(wanted):
            there = {} if fresh else self._there(one, held)
            self._deliver(one, wanted, difference(wanted, there), whole=not there)
            if not one.writable:
                self._vouch(one, wanted)
        self.before[one] = wanted
        if one.writable:
            self._unvouch(one)

    def _there(self, one: Parcel, held: str | None) -> Manifest:
        """Return what the volume holds: as the host knows it, or else as the engine says."""
        known = self.volumes.folder / f"{one.volume}.manifest"
        if held is not None and known.is_file():
            with suppress(InfrastructureError):  # a file that is broken tells nothing
                manifest = parse(known.read_bytes())
                if fingerprint(manifest) == held:
                    return manifest
        self._unvouch(one)
        number = self.parcels.index(one)
        there: dict[Parcel, Manifest] = {}
        with self._asked({f"{number}.before": b""}) as answer:
            for _ in self._read(answer, there):
                pass
        if one not in there:
            raise _unasked("no list of files")
        return there[one]

    def _deliver(self, one: Parcel, wanted: Manifest, changes: Difference, *, whole: bool) -> None:
        self._unvouch(one)
        number = self.parcels.index(one)
        if changes.removed:
            # Of a deep folder, no program could be told the paths of all that is in it.
            removed = "".join(f"{name}\0" for name in topmost(changes.removed))
            self._ask({f"{number}.remove": removed.encode("utf-8", "surrogateescape")})
        # The volume's own root comes first, so that it is the job's user's.
        names = (".", *changes.written) if whole else changes.written
        if not names:
            return
        count = sum(wanted[name].size for name in changes.written)
        title = f"Sending {one.title} to the engine ({size(count)})"
        with _Slow(self.volumes, title, len(names)) as slow:
            archive = pack(
                one.source, names, self.volumes.user, under=f"{INSIDE}/{number}/", told=slow.tell
            )
            self._put(self._counted(archive))

    def _counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.volumes.traffic.sent += len(chunk)
            yield chunk

    def _put(self, archive: Iterator[bytes]) -> None:
        with explained("carry files"):
            # From the root, which is there before the helper has ever run.
            if not self.helper.put_archive("/", archive):
                raise InfrastructureError("The engine took none of the files that it was sent.")

    @contextmanager
    def _asked(self, files: Mapping[str, bytes]) -> Iterator[tarfile.TarFile]:
        """Let the helper do what ``files`` say; have its answer to be read from front to end."""
        self._ask(files)
        with explained("carry files"):
            chunks, _ = self.helper.get_archive(f"/{INSIDE}/result", chunk_size=CHUNK)
            stream = Stream(chunks)
            try:
                with tarfile.open(fileobj=stream, mode="r|") as answer:  # type: ignore[call-overload]
                    yield answer
            except tarfile.TarError as error:
                raise InfrastructureError(
                    f"The engine's answer broke off: {error}.", hint="Try it again."
                ) from error
            finally:
                self.volumes.traffic.received += stream.count

    def _ask(self, files: Mapping[str, bytes]) -> None:
        """Run the helper with these files, and no others, in its folder ``ask``."""
        named = {"do": SCRIPT.encode(), **{f"ask/{name}": text for name, text in files.items()}}
        archive = of_bytes({f"{INSIDE}/{name}": text for name, text in named.items()})
        self._put(self._counted(iter([gzip.compress(archive, 1)])))
        with explained("carry files"):
            self.helper.start()
            status = self.helper.wait()["StatusCode"]
            if status != 0:
                words = self.helper.logs(tail=20).decode("utf-8", "replace")
                raise InfrastructureError(
                    f"The helper that compares files in the engine ended with status {status}.",
                    detail=words,
                )

    @property
    def helper(self) -> Container:
        """A container with all the volumes, that runs only to compare; made when needed."""
        if self._helper is None:
            mounts = [
                Mount(f"/{INSIDE}/{number}", one.volume, type="volume", no_copy=True)
                for number, one in enumerate(self.parcels)
            ]
            self._helper = self.client.containers.create(
                self.volumes.image,
                ["sh", "-c", f"sh /{INSIDE}/do && rm -rf /{INSIDE}/ask"],
                user="0:0",
                mounts=mounts,
                network_mode="none",
                working_dir="/",
                platform=self.volumes.platform,
                # Like a job: if this rbuild is killed, the next one removes it.
                labels=Owner.this().labels(),
            )
        return self._helper

    def _make(self, one: Parcel) -> bool:
        """Make the parcel's volume; tell whether there was none."""
        if self._volume(one.volume) is not None:
            return False
        labels = {**self._whose(one), OURS: VOLUME, BIRTH: uuid.uuid4().hex}
        with explained("carry files"):
            self.client.volumes.create(one.volume, labels=labels)
        return True

    def _whose(self, one: Parcel) -> dict[str, str]:
        return {**Owner.this().labels(), STORE: own(self.volumes.store), ENTRY: one.entry}

    def _held(self, one: Parcel) -> str | None:
        """Return what the volume is vouched to hold; None if nobody vouches for it."""
        volume, mark = self._volume(one.volume), self._volume(one.mark)
        if volume is None or mark is None or _labels(mark).get(BIRTH) != _labels(volume).get(BIRTH):
            return None
        return _labels(mark).get(HELD)

    def _vouch(self, one: Parcel, manifest: Manifest) -> None:
        """Mark the volume as whole, with what it holds."""
        if not one.kept:
            return
        held = one.identity or fingerprint(manifest)
        if one.identity is None:
            known = self.volumes.folder / f"{one.volume}.manifest"
            aside = known.with_name(f".{known.name}.{os.getpid()}")
            aside.write_bytes(listed(manifest))
            aside.replace(known)
        volume = self._volume(one.volume)
        assert volume is not None
        labels = {
            **self._whose(one),
            OURS: MARK,
            BIRTH: _labels(volume).get(BIRTH, ""),
            HELD: held,
        }
        self._unvouch(one)
        with explained("carry files"):
            self.client.volumes.create(one.mark, labels=labels)

    def _unvouch(self, one: Parcel) -> None:
        with explained("carry files"):
            if one.kept and (mark := self._volume(one.mark)) is not None:
                mark.remove()

    def _volume(self, name: str) -> Volume | None:
        with explained("carry files"):
            try:
                return self.client.volumes.get(name)
            except NotFound:
                return None


class _Slow:
    """Shows a step for what takes long, once it has."""

    def __init__(self, volumes: Volumes, title: str, total: int) -> None:
        self._console = volumes.store.console
        self._title, self._total = title, total
        self._done = 0
        self._started = time.monotonic()
        self._stack = ExitStack()
        self._step: Step | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def tell(self, name: str) -> None:
        """Count an item."""
        self._done += 1
        if self._step is None and time.monotonic() - self._started > PATIENCE_S:
            step = self._console.step(self._title, total=self._total)
            self._step = self._stack.enter_context(step)
        if self._step is not None:
            self._step.update(name, done=self._done)


def sweep(client: DockerClient, store: Store) -> list[str]:
    """Remove the volumes whose Store entry is gone, and what killed rbuilds left in the engine.

    Those of other Stores and of other hosts stay.  Returns the volumes' names.
    """
    removed = []
    with explained("list volumes"):
        for volume in client.volumes.list(filters={"label": f"{STORE}={own(store)}"}):
            labels = _labels(volume)
            entry = labels.get(ENTRY, "")
            there = (store.root / entry).is_dir() or _partial(store, entry).is_dir()
            owner = Owner.from_labels(labels)
            if there if entry else owner is None or not owner.is_gone:
                continue
            with suppress(APIError):  # a container has it still
                volume.remove()
                removed.append(str(volume.name))
    for name in removed:
        for ending in ("manifest", "lock"):
            (store.root / FOLDER / f"{name}.{ending}").unlink(missing_ok=True)
    return removed


@dataclass(frozen=True)
class Held:
    """A volume that a Store keeps in an engine: of which entry, how large, and made when.

    ``size_bytes`` is 0 where the engine doesn't say it, ``created`` the engine's own text.
    """

    volume: str
    entry: str
    size_bytes: int
    created: str


def held(client: DockerClient, store: Store) -> list[Held]:
    """Return the volumes that the engine has of a Store's entries, by their names."""
    with explained("list volumes"):
        found = client.volumes.list(filters={"label": f"{STORE}={own(store)}"})
        asked = client.api.df().get("Volumes") or [] if found else []
    sizes = {one["Name"]: (one.get("UsageData") or {}).get("Size", 0) for one in asked}
    return [
        Held(name, entry, max(0, sizes.get(name, 0)), str(volume.attrs.get("CreatedAt", "")))
        for name, volume in sorted((str(one.name), one) for one in found)
        if (entry := _labels(volume).get(ENTRY, ""))
    ]


def _partial(store: Store, entry: str) -> Path:
    room, _, name = entry.partition("/")
    return store.root / room / f".{name}.partial"


def _remove(volume: Volume) -> None:
    """Remove a volume, once the engine has removed the container that had it.

    If it never does, the volume is left to ``sweep``.
    """
    for _ in range(50):
        with suppress(APIError):
            volume.remove()
            return
        time.sleep(0.1)


def own(store: Store) -> str:
    """Return what names a Store of this host's."""
    return digest([Owner.this().machine, str(store.root.resolve())])


def _labels(volume: Volume) -> dict[str, str]:
    return volume.attrs.get("Labels") or {}


def _bring_back(copy: Path, original: Path) -> None:
    """Give a file that is bound singly the content that a job left, in place as it wrote it."""
    if not filecmp.cmp(copy, original, shallow=False):
        shutil.copyfile(copy, original)
        shutil.copystat(copy, original)
