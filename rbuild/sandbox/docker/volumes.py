"""Named volumes: how files reach an engine that shares none with this host, and come back.

A folder is carried in a volume that is kept in step with it.  What immutable cache entries hold is
sent once; of other folders only what changed, found by comparing manifests.  After a job, what it
changed comes back.  Folders outside the cache get a volume that is gone after the job.

A volume's labels can't be changed, so that it is whole is said by a second one, its mark: an empty
volume named ``<name>.whole``, made last.  It has the fingerprint of what the volume holds, and the
volume's birth, without which a mark that outlived its volume would vouch for the next one.  While
there is no mark (an upload was killed, or a job that wrote is under way) nothing is believed: the
engine is asked what the volume holds, and the host's folder is right.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Self

from docker.errors import NotFound
from docker.models.volumes import Volume
from docker.types import Mount
from filelock import FileLock

from rbuild.cache.directory import Cache
from rbuild.errors import InfrastructureError
from rbuild.sandbox.docker.archive import CHUNK, Stream, Unpacker, User, of_bytes, pack
from rbuild.sandbox.docker.engine import OURS, Owner, explained
from rbuild.sandbox.docker.manifest import (
    Difference,
    Manifest,
    difference,
    fingerprint,
    listed,
    parse,
    scan,
    topmost,
)
from rbuild.sandbox.docker.progress import Progress
from rbuild.sandbox.docker.synced import (
    BIRTH,
    ENTRY,
    HELD,
    INSIDE,
    MARK,
    SCRIPT,
    STORE,
    VOLUME,
    SyncedVolume,
    Traffic,
    bring_back,
    labels_of,
    own,
    remove_volume,
    synced_volume,
)
from rbuild.sandbox.docker.transport import FOLDER
from rbuild.sandbox.runtime import Bind
from rbuild.ui.format import size

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container


@dataclass
class Volumes:
    """Carries the host's files to an engine that doesn't see them.

    ``image`` has tar, find and GNU's coreutils, which compare what a job left; ``user`` is whom
    a job runs as.
    """

    client: DockerClient
    image: str
    cache: Cache
    user: User = field(default_factory=User)
    platform: str | None = None
    traffic: Traffic = field(default_factory=Traffic)

    @contextmanager
    def mount(self, binds: Sequence[Bind]) -> Iterator[list[Mount]]:
        """Make ``binds`` visible in a container while the body runs.

        What it wrote into writable ones is in the host's folders at the end, also if the body
        raises.  Raises InfrastructureError if the engine fails, or sends what would do harm.
        """
        files = [bind for bind in binds if not bind.source.is_dir()]
        with ExitStack() as stack:
            staging = stack.enter_context(self.cache.scratch("files")) if files else None
            synced = self._synced_volumes(binds, files, staging)
            sync = SyncSession(self, tuple(synced.values()))
            stack.enter_context(sync)
            sync.send()
            mounts = [self._mount(bind, synced) for bind in binds if bind not in files]
            if staging is not None:
                mounts += self._single(files, synced[staging])
            try:
                yield mounts
            finally:
                sync.fetch()
                for number, bind in enumerate(files):
                    if bind.writable and staging is not None:
                        bring_back(staging / str(number), bind.source)
                self.cache.console.verbose(f"To and from the engine: {self.traffic}.")

    @property
    def folder(self) -> Path:
        """Where the host keeps what it knows of volumes."""
        path = self.cache.root / FOLDER
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _synced_volumes(
        self, binds: Sequence[Bind], files: Sequence[Bind], staging: Path | None
    ) -> dict[Path, SyncedVolume]:
        """Return each folder that must be carried, one that is bound twice once."""
        synced: dict[Path, SyncedVolume] = {}
        for bind in binds:
            if bind not in files:
                before = synced.get(bind.source)
                writable = bind.writable or (before is not None and before.writable)
                synced[bind.source] = synced_volume(self.cache, bind.source, writable=writable)
        if staging is not None:
            for number, bind in enumerate(files):
                shutil.copy2(bind.source, staging / str(number))
            writable = any(bind.writable for bind in files)
            synced[staging] = synced_volume(self.cache, staging, writable=writable)
        return synced

    def _mount(self, bind: Bind, synced: Mapping[Path, SyncedVolume]) -> Mount:
        volume = synced[bind.source].volume
        # What the image has at the target is no part of the volume.
        return Mount(bind.target, volume, type="volume", read_only=not bind.writable, no_copy=True)

    def _single(self, files: Sequence[Bind], kept: SyncedVolume) -> list[Mount]:
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


class SyncSession:
    """One journey of parcels to the engine and back, with the helper that it needs, if any."""

    def __init__(self, volumes: Volumes, synced: tuple[SyncedVolume, ...]) -> None:
        self.volumes = volumes
        self.client = volumes.client
        self.synced = synced
        self.before: dict[SyncedVolume, Manifest] = {}
        self._helper: Container | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with explained("carry files"):
            if self._helper is not None:
                self._helper.remove(force=True)
            for one in self.synced:
                if not one.kept and (found := self._volume(one.volume)) is not None:
                    remove_volume(found)

    def send(self) -> None:
        """Bring every volume in step with its folder."""
        # All of them are made before there is a helper: mounting would make them without labels.
        fresh = [one for one in self.synced if self._make(one)]
        for one in self.synced:
            with FileLock(self.volumes.folder / f"{one.volume}.lock"):
                self._send(one, fresh=one in fresh)

    def fetch(self) -> None:
        """Bring every writable folder in step with its volume."""
        written = [one for one in self.synced if one.writable]
        if not written:
            return
        asked: dict[str, bytes] = {}
        for one in written:
            number = self.synced.index(one)
            asked[f"{number}.before"] = listed(self.before[one])
            asked[f"{number}.fetch"] = b""
        after: dict[SyncedVolume, Manifest] = {}
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
            self._mark_clean(one, after[one])

    def _read(
        self, answer: tarfile.TarFile, after: dict[SyncedVolume, Manifest]
    ) -> Iterator[tuple[SyncedVolume, IO[bytes]]]:
        """Yield each parcel whose changed files come, as an archive; ``after`` has what is there.

        What is gone and what is new of a parcel comes before its files.
        """
        gone: Manifest = {}
        for member in answer:
            number, _, what = PurePosixPath(member.name).name.partition(".")
            content = answer.extractfile(member) if member.isreg() else None
            if content is None:
                continue
            if number not in {str(at) for at in range(len(self.synced))}:
                raise _unasked(f"the file {member.name[:100]!r}")
            one = self.synced[int(number)]
            if what == "gone":
                gone = parse(content.read())
            elif what == "new":
                kept = self.before.get(one, {})
                stayed = {name: item for name, item in kept.items() if name not in gone}
                after[one] = {**stayed, **parse(content.read())}
            elif what == "tar":
                yield one, content

    def _send(self, one: SyncedVolume, *, fresh: bool) -> None:
        held = None if fresh else self._held(one)
        if held is not None and held == one.identity:
            return
        wanted = scan(one.source)
        if held != fingerprint(wanted):
            there = {} if fresh else self._there(one, held)
            self._deliver(one, wanted, difference(wanted, there), whole=not there)
            if not one.writable:
                self._mark_clean(one, wanted)
        self.before[one] = wanted
        if one.writable:
            self._mark_dirty(one)

    def _there(self, one: SyncedVolume, held: str | None) -> Manifest:
        """Return what the volume holds: as the host knows it, or else as the engine says."""
        known = self.volumes.folder / f"{one.volume}.manifest"
        if held is not None and known.is_file():
            with suppress(InfrastructureError):  # a file that is broken tells nothing
                manifest = parse(known.read_bytes())
                if fingerprint(manifest) == held:
                    return manifest
        self._mark_dirty(one)
        number = self.synced.index(one)
        there: dict[SyncedVolume, Manifest] = {}
        with self._asked({f"{number}.before": b""}) as answer:
            for _ in self._read(answer, there):
                pass
        if one not in there:
            raise _unasked("no list of files")
        return there[one]

    def _deliver(
        self, one: SyncedVolume, wanted: Manifest, changes: Difference, *, whole: bool
    ) -> None:
        self._mark_dirty(one)
        number = self.synced.index(one)
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
        with Progress(self.volumes.cache.console, title, len(names)) as slow:
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
                for number, one in enumerate(self.synced)
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

    def _make(self, one: SyncedVolume) -> bool:
        """Make the parcel's volume; tell whether there was none."""
        if self._volume(one.volume) is not None:
            return False
        labels = {**self._whose(one), OURS: VOLUME, BIRTH: uuid.uuid4().hex}
        with explained("carry files"):
            self.client.volumes.create(one.volume, labels=labels)
        return True

    def _whose(self, one: SyncedVolume) -> dict[str, str]:
        return {**Owner.this().labels(), STORE: own(self.volumes.cache), ENTRY: one.entry}

    def _held(self, one: SyncedVolume) -> str | None:
        """Return what the volume is vouched to hold; None if nobody vouches for it."""
        volume, mark = self._volume(one.volume), self._volume(one.mark)
        if (
            volume is None
            or mark is None
            or labels_of(mark).get(BIRTH) != labels_of(volume).get(BIRTH)
        ):
            return None
        return labels_of(mark).get(HELD)

    def _mark_clean(self, one: SyncedVolume, manifest: Manifest) -> None:
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
            BIRTH: labels_of(volume).get(BIRTH, ""),
            HELD: held,
        }
        self._mark_dirty(one)
        with explained("carry files"):
            self.client.volumes.create(one.mark, labels=labels)

    def _mark_dirty(self, one: SyncedVolume) -> None:
        with explained("carry files"):
            if one.kept and (mark := self._volume(one.mark)) is not None:
                mark.remove()

    def _volume(self, name: str) -> Volume | None:
        with explained("carry files"):
            try:
                return self.client.volumes.get(name)
            except NotFound:
                return None
