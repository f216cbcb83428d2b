"""Volumes on an engine: which of the cache's folders each has a copy of, and whose they are."""

from __future__ import annotations

import filecmp
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from docker import DockerClient
from docker.errors import APIError
from docker.models.volumes import Volume

from rbuild.cache.directory import Cache
from rbuild.cache.entry import Entry, EntryKind
from rbuild.sandbox.docker.engine import Owner, explained
from rbuild.sandbox.docker.manifest import FIND
from rbuild.sandbox.docker.transport import FOLDER
from rbuild.ui.format import size
from rbuild.util.hashes import digest
from rbuild.util.walk import MAX_DEPTH

INSIDE = "rbuild-transport"
"""Where in its root the helper has everything: volumes by number, and what it is to do."""

VOLUME, MARK = "volume", "mark"
"""What the label of all that is rbuild's says of a volume."""

STORE, ENTRY = "rbuild.store", "rbuild.entry"
"""The labels that say whose a volume is, and which entry of that cache it is of."""

BIRTH, HELD = "rbuild.birth", "rbuild.held"


FIND_DEPTH = MAX_DEPTH + 2
"""How deep a job's outputs are listed: so deep that those that are too deep are known as such."""


@dataclass(frozen=True)
class SyncedVolume:
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


def remove_volume(volume: Volume) -> None:
    """Remove a volume, once the engine has removed the container that had it.

    If it never does, the volume is left to ``sweep``.
    """
    for _ in range(50):
        with suppress(APIError):
            volume.remove()
            return
        time.sleep(0.1)


def labels_of(volume: Volume) -> dict[str, str]:
    """Return the labels of a volume that the engine has; {} if it has none."""
    return volume.attrs.get("Labels") or {}


IMMUTABLE = frozenset({EntryKind.ROOTFS, EntryKind.TREES, EntryKind.EMULATORS})
"""The rooms whose entries never change once they are published."""


def synced_volume(cache: Cache, source: Path, *, writable: bool) -> SyncedVolume:
    """Return in which volume a folder is carried.

    An entry that is still being built has the same volume when it is published.
    """
    try:
        kind, entry, *rest = source.resolve().relative_to(cache.root.resolve()).parts
    except ValueError:
        kind = entry = ""
    # What is in the cache for a moment only is like what isn't in it.
    if not kind or (kind == EntryKind.RUNS and entry.startswith(".")):
        name = f"rbuild-{uuid.uuid4().hex}"
        return SyncedVolume(source, name, "", writable, identity=None, kept=False)
    published = not entry.startswith(".")
    plain = entry if published else entry[1:].removesuffix(".partial")
    identity = None
    if published and not writable and kind in {*IMMUTABLE}:
        metadata = Entry(EntryKind(kind), plain, cache.root / kind / plain).metadata
        if metadata is not None and "created" in metadata:
            identity = str(metadata["created"])
    place = [own(cache), kind, plain, *rest, identity]
    name = f"rbuild-{plain}-{digest(place)}"
    return SyncedVolume(source, name, f"{kind}/{plain}", writable, identity, kept=True)


def sweep(client: DockerClient, cache: Cache) -> list[str]:
    """Remove the volumes whose cache entry is gone, and what killed rbuilds left in the engine.

    Those of other Stores and of other hosts stay.  Returns the volumes' names.
    """
    removed = []
    with explained("list volumes"):
        for volume in client.volumes.list(filters={"label": f"{STORE}={own(cache)}"}):
            labels = labels_of(volume)
            entry = labels.get(ENTRY, "")
            there = (cache.root / entry).is_dir() or _partial(cache, entry).is_dir()
            owner = Owner.from_labels(labels)
            if there if entry else owner is None or not owner.is_gone:
                continue
            with suppress(APIError):  # a container has it still
                volume.remove()
                removed.append(str(volume.name))
    for name in removed:
        for ending in ("manifest", "lock"):
            (cache.root / FOLDER / f"{name}.{ending}").unlink(missing_ok=True)
    return removed


@dataclass(frozen=True)
class Held:
    """A volume that a cache keeps in an engine: of which entry, how large, and made when.

    ``size_bytes`` is 0 where the engine doesn't say it, ``created`` the engine's own text.
    """

    volume: str
    entry: str
    size_bytes: int
    created: str


def held(client: DockerClient, cache: Cache) -> list[Held]:
    """Return the volumes that the engine has of a cache's entries, by their names."""
    with explained("list volumes"):
        found = client.volumes.list(filters={"label": f"{STORE}={own(cache)}"})
        asked = client.api.df().get("Volumes") or [] if found else []
    sizes = {one["Name"]: (one.get("UsageData") or {}).get("Size", 0) for one in asked}
    return [
        Held(name, entry, max(0, sizes.get(name, 0)), str(volume.attrs.get("CreatedAt", "")))
        for name, volume in sorted((str(one.name), one) for one in found)
        if (entry := labels_of(volume).get(ENTRY, ""))
    ]


def _partial(cache: Cache, entry: str) -> Path:
    kind, _, name = entry.partition("/")
    return cache.root / kind / f".{name}.partial"


def own(cache: Cache) -> str:
    """Return what names a cache of this host's."""
    return digest([Owner.this().machine, str(cache.root.resolve())])


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
    (cd "$number" && find . -mindepth 1 -maxdepth {FIND_DEPTH} {FIND}) | sort -z >after
    comm -z -23 before after >"result/$number.gone"
    comm -z -13 before after | sort -z -t ' ' -k1,1 -k4,4n -k5 >"result/$number.new"
    [ -e "ask/$number.fetch" ] || continue
    sed -z -e 's,^[^ ]* [^ ]* [^ ]* [^ ]* ,,' -e 's,//.*$,,' "result/$number.new" >names
    tar --create --file="result/$number.tar" --directory="$number" --format=posix \
        --pax-option=delete=atime,delete=ctime --hard-dereference --no-recursion \
        --numeric-owner --null --verbatim-files-from --files-from=names
done
"""


def bring_back(copy: Path, original: Path) -> None:
    """Give a file that is bound singly the content that a job left, in place as it wrote it."""
    if not filecmp.cmp(copy, original, shallow=False):
        shutil.copyfile(copy, original)
        shutil.copystat(copy, original)
