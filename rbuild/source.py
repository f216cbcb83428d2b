"""Trees: kernel sources fetched, checked, extracted once, patched, and from then on immutable."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rbuild import apt, contents, data, git, outputs, process, textfile
from rbuild.console import Step, several
from rbuild.errors import (
    BuildFailed,
    InfrastructureError,
    ProcessFailed,
    RbuildError,
    UsageError,
)
from rbuild.home import at_home
from rbuild.kept import Kept
from rbuild.profile import Profile, Source
from rbuild.provision import Ready
from rbuild.sandbox import MODULE, SRC, Bind, Job
from rbuild.sought import Sought, forget, seek
from rbuild.store import Entry, Room, Store, digest, not_copied, remove_tree
from rbuild.unpack import unpack

SPACE_NEEDED = 3 * 1024**3
"""Bytes that a tree takes at most while it is being extracted."""

IN_TREE_FOLDER = "drivers/misc/mfrc522"
"""Where ``module/`` is bound for an in-tree build; a patch of ours makes the folder."""


@dataclass(frozen=True)
class Tree:
    """An extracted, patched kernel source.

    ``version`` is the kernel's own (6.12.117), ``date`` that of its source, from which builds
    take their time stamp; ``patches`` the names of those applied.
    """

    path: Path
    key: str
    source: str
    version: str
    date: datetime
    patches: tuple[str, ...]
    cached: bool
    is_debian: bool = False

    @property
    def has_in_tree_folder(self) -> bool:
        """Whether the driver can be built as a part of this tree."""
        return (self.path / IN_TREE_FOLDER).is_dir()


def obtain(profile: Profile, ready: Ready, store: Store) -> Tree:
    """Return the profile's Tree from the Store, or fetch, check, extract and patch it first.

    Of the profile's sources the first in the Store is used, else the first that can be had.
    Raises UsageError for a source that is wrong, InfrastructureError for one that can't be
    reached, BuildFailed for a patch that doesn't apply.
    """
    pristine = _pristine(profile, ready, store)
    patches = _patches(pristine.version) if profile.patches else []
    if patches:
        return _patched(pristine, patches, ready, store)
    store.rely(_entry_of(pristine))
    return pristine


def _pristine(profile: Profile, ready: Ready, store: Store) -> Tree:
    """Return the source as it was published."""
    origins: list[_Origin] = []
    failures: list[tuple[Source, RbuildError]] = []
    for source in profile.source:
        try:
            origin = _origin(profile, source, ready, store)
        except (UsageError, InfrastructureError) as error:  # a folder that isn't there, a mirror
            failures.append((source, error))
            continue
        if (found := _found(origin.entry, store.find)) is not None:
            return found
        origins.append(origin)
    if origins:
        for source, failure in failures:
            store.console.note(f"{source} is unavailable: {failure.message}")
    for origin in origins:
        with store.lock(origin.entry):
            if (found := _found(origin.entry, store.find)) is not None:
                return found
            try:
                return _fetched(profile, origin, ready, store)
            except InfrastructureError as error:
                failures.append((origin.source, error))
                if len(origins) > 1:
                    store.console.note(f"{origin.source} is unavailable: {error.message}")
    raise failures[-1][1]


@dataclass(frozen=True)
class _Origin:
    """What a source means today, and the place of its tree in the Store, which that names.

    ``inputs`` is all that decides what is in the tree; ``sought``, ``commit`` and ``content`` are
    there for a Debian package that was looked for, for git, and for a folder.
    """

    source: Source
    inputs: Mapping[str, Any]
    entry: Entry
    sought: Sought | None = None
    commit: str | None = None
    content: str | None = None

    def __str__(self) -> str:
        return str(self.sought or self.source)

    @property
    def remembered(self) -> dict[str, object]:
        """What the tree's metadata keeps of it, for when no mirror or repository answers."""
        if self.commit is not None:
            assert self.source.git is not None
            assert self.source.ref is not None
            return git.record(self.source.git, self.source.ref, self.commit)
        return {} if self.sought is None else self.sought.key


def _origin(profile: Profile, source: Source, ready: Ready, store: Store) -> _Origin:
    """Find out what a source means today; raises as ``obtain`` does."""
    sought = commit = content = None
    if source.is_sought:
        sought = seek(source, ready, store)
        label = sought.package
        inputs = sought.key
    elif source.git is not None:
        assert source.ref is not None
        commit = git.resolve(source.git, source.ref, store)
        label = Path(source.git).stem
        inputs = {"git": source.git, "commit": commit}
    elif source.directory is not None:
        directory = _directory(profile, source)
        content = _content(directory, store)
        label = directory.name
        # Builds take their time stamp from the Makefile's (see _fetch).
        inputs = {"content": content, "date": int((directory / "Makefile").stat().st_mtime)}
    elif source.debian is not None:
        label = source.debian
        inputs = {"debian": source.debian, "suite": ready.environment.base.definition.suite}
    else:
        assert source.tarball is not None
        label = Path(source.tarball).stem
        inputs = source.model_dump(mode="json", include={"tarball", "sha256", "signature"})
        if source.key is not None:
            inputs["key"] = hashlib.sha256(profile.key_content(source)).hexdigest()
    name = re.sub(r"[^A-Za-z0-9._-]", "_", label)
    entry = store.entry(Room.TREES, name, digest(inputs))
    return _Origin(source, inputs, entry, sought, commit, content)


def _content(directory: Path, store: Store) -> str:
    """Return what identifies a folder's content; an index in the Store says what was read."""
    name = f".content-{digest(str(directory))}"
    index = Entry(Room.TREES, name, store.root / Room.TREES / name)
    with store.lock(index):
        return contents.content(directory, index.path)


def _entry_of(tree: Tree) -> Entry:
    return Entry(Room.TREES, tree.key, tree.path.parent)


def _found(entry: Entry, find: Callable[[Entry], dict[str, Any] | None]) -> Tree | None:
    metadata = find(entry)
    if metadata is None:
        return None
    kept = Kept(metadata)
    try:
        return Tree(
            entry.path / "src",
            entry.name,
            kept.text("source"),
            kept.text("version"),
            kept.date("date"),
            kept.texts("patches"),
            cached=True,
            is_debian=metadata.get("is_debian") is True,
        )
    except ValueError:
        return None


def _fetched(profile: Profile, origin: _Origin, ready: Ready, store: Store) -> Tree:
    store.need_space(SPACE_NEEDED, "The kernel's source")
    store.check()
    entry, name = origin.entry, str(origin)
    partial = store.partial(entry)
    target = partial / "src"
    target.mkdir()
    at = f" at {origin.commit[:12]}" if origin.commit not in {None, origin.source.ref} else ""
    suite = origin.source.suite or ready.environment.base.definition.suite
    key = f"{suite} {ready.environment.name} {ready.runtime.name}"
    with store.console.step(f"Fetching {name}{at}", key=key) as step:
        date = _fetch(profile, origin, target, ready, store, step)
    tree = Tree(
        entry.path / "src",
        entry.name,
        name,
        kernel_version(target),
        date,
        (),
        cached=False,
        is_debian=origin.source.debian is not None,
    )
    _publish(tree, entry, partial, store, **origin.remembered)
    return tree


def _patched(pristine: Tree, patches: list[Path], ready: Ready, store: Store) -> Tree:
    """Return the tree with the patches applied; what they don't touch is shared by hard links."""
    contents = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in patches]
    key = digest({"pristine": pristine.key, "patches": contents})
    entry = store.entry(Room.TREES, f"linux-{pristine.version}-patched", key)
    if (found := _found(entry, store.rely)) is not None:
        return found
    with store.lock(entry):
        if (found := _found(entry, store.rely)) is not None:
            return found
        store.rely(_entry_of(pristine))
        store.check()
        series = patches[0].parent.name
        if not f"{pristine.version}.".startswith(f"{series}."):
            store.console.note(
                f"There are no patches for {pristine.version}: those for {series} are the nearest."
            )
        partial = store.partial(entry)
        target = partial / "src"
        own = f"{ready.environment.name} {ready.runtime.name}"
        title = f"Patching {pristine.version}"
        with store.console.step(title, total=len(patches), key=own) as step:
            _link(pristine.path, target)
            for number, path in enumerate(patches):
                step.update(path.name, done=number)
                apply_patch(path, target, ready)
            step.update(done=len(patches))
        names = tuple(path.name for path in patches)
        tree = replace(
            pristine, path=entry.path / "src", key=entry.name, patches=names, cached=False
        )
        _publish(tree, entry, partial, store)
    return tree


def _publish(
    tree: Tree,
    entry: Entry,
    partial: Path,
    store: Store,
    **more: Any,  # noqa: ANN401
) -> None:
    store.publish(
        entry,
        partial,
        {
            "source": tree.source,
            "version": tree.version,
            "date": tree.date.isoformat(),
            "patches": tree.patches,
            "is_debian": tree.is_debian,
            **more,
        },
    )


def _link(source: Path, target: Path) -> None:
    """Copy a tree by hard links, or, where the file system has none, by content.

    patch(1) replaces files rather than writing into them, so that the original stays as it is.
    """
    try:
        process.run(["cp", "-al", "--", str(source), str(target)])
    except ProcessFailed:
        if target.exists():
            remove_tree(target)
        try:
            process.run(["cp", "-a", "--reflink=auto", "--", str(source), str(target)])
        except ProcessFailed as error:
            raise not_copied(error, source, target) from error


def _fetch(
    profile: Profile, origin: _Origin, target: Path, ready: Ready, store: Store, step: Step
) -> datetime:
    """Put the source into ``target``; return its date."""
    source, sought = origin.source, origin.sought
    if sought is not None:
        package = f"{sought.package}={sought.version}"
        try:
            _fetch_debian(package, sought.suite, target, ready, store.console.teller(step))
        except apt.NoPackage as error:
            forget(source, ready, store)
            error.hint = "It had it not long ago: run it again to look for what it has now."
            raise
    elif source.debian is not None:
        _fetch_debian(source.debian, "", target, ready, store.console.teller(step))
    elif source.tarball is not None:
        _fetch_tarball(source, profile, target, ready, step)
    elif source.git is not None:
        assert source.ref is not None
        assert origin.commit is not None
        tell = store.console.teller(step)
        try:
            date = git.fetch(source.git, source.ref, origin.commit, target, tell)
        except git.MovedError:
            git.forget(source.git, source.ref, store)
            raise
        if faults := outputs.settle(target):
            raise InfrastructureError(
                f"{source} contains files that rbuild refuses: {several(faults)}.",
                hint="Choose another ref, or remove them from the repository.",
            )
        return date
    else:
        _copy_directory(_directory(profile, source), origin.content, target, ready)
        # Of a user's own tree, what leads out of it or isn't a file may just lie there.
        if faults := outputs.settle(target):
            store.console.note(f"Not copied from {source}: {several(faults)}.")
    if not (target / "Makefile").is_file():
        raise UsageError(f"{source} is not a kernel tree: it has no Makefile.")
    return datetime.fromtimestamp((target / "Makefile").stat().st_mtime, UTC)


EXTRACT_DEBIAN = """\
set -e -o pipefail
dpkg-deb --fsys-tarfile ./*.deb | tar -x --wildcards './usr/src/*.tar.*'
tar -x --strip-components=1 -C /src -f usr/src/*.tar.*
"""


def _fetch_debian(
    package: str, suite: str, target: Path, ready: Ready, tell: Callable[[str], None]
) -> None:
    """Download a source package through the environment's apt, which checks its signature."""
    work = target.parent / "download"
    work.mkdir()
    hint = "Name another source in the profile; `apt-cache search linux-source`."
    apt.download(package, work, ready, tell, suite=suite, hint=hint)
    binds = (Bind(work, MODULE, True), Bind(target, SRC, True))
    try:
        ready.runtime.run(ready.sandbox, Job(["bash", "-c", EXTRACT_DEBIAN], binds, MODULE))
    except ProcessFailed as error:
        raise InfrastructureError(
            f"{package} could not be unpacked.",
            detail="\n".join(error.tail[-6:]),
            hint="Check the free space, then run it again.",
        ) from error
    remove_tree(work)


def _fetch_tarball(
    source: Source, profile: Profile, target: Path, ready: Ready, step: Step
) -> None:
    """Download a tarball, compare it with its checksum and signature, and unpack it."""
    from rbuild.download import download, shown  # noqa: PLC0415 - most runs need no HTTP and TLS

    assert source.tarball is not None
    # Not in the partial entry, which begins empty: what has come so far outlives a run.
    work = target.parent.with_name(f"{target.parent.name.removesuffix('.partial')}.download")
    work.mkdir(exist_ok=True)
    file = work / _file_name(source.tarball)
    found = download(source.tarball, file, step)
    if source.sha256 is not None and found != source.sha256:
        raise _not_it(source, file, found)
    if source.key is not None:
        step.update("checking the signature")
        _verify(source, profile, file, step)
    unpack(file, target, ready, shown(source.tarball))
    remove_tree(work)


def _file_name(url: str) -> str:
    """Return what a URL's file is called in a folder where its signature and its key are, too."""
    name = url.partition("?")[0].rpartition("/")[2]
    is_plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name) is not None
    taken = name in {"signature", "key.gpg"} or name.endswith(".validator")
    return name if is_plain and not taken else "tarball"


def _not_it(source: Source, file: Path, found: str) -> InfrastructureError:
    """Refuse a tarball that has another checksum, and remove it."""
    from rbuild.download import looks_like_a_page, shown  # noqa: PLC0415

    assert source.tarball is not None
    hint = "It looks like a web page: a proxy's, perhaps." if looks_like_a_page(file) else None
    file.unlink()
    return InfrastructureError(
        f"{shown(source.tarball)} is not what the profile asks for.",
        detail=f"expected sha256 {source.sha256}\ngot      sha256 {found}",
        hint=hint,
    )


def _verify(source: Source, profile: Profile, file: Path, step: Step) -> None:
    from rbuild import signature  # noqa: PLC0415 - most profiles name no key
    from rbuild.download import download  # noqa: PLC0415

    assert source.tarball is not None
    assert source.key is not None
    url = source.signature or signature.url_of(source.tarball)
    signed = file.with_name("signature")
    signed.unlink(missing_ok=True)
    download(url, signed, step)
    try:
        signature.verify(file, signed, profile.key(source), profile.key_content(source))
    except InfrastructureError:
        file.unlink()
        raise


def _copy_directory(directory: Path, content: str | None, target: Path, ready: Ready) -> None:
    """Copy a kernel tree of the user's whose content is ``content``.

    Raises UsageError if it was changed meanwhile: its copy must be what its name says.
    """
    try:
        process.run(["cp", "-a", "--reflink=auto", "--", f"{directory}/.", str(target)])
    except ProcessFailed as error:
        raise not_copied(error, directory, target) from error
    repository = target / ".git"
    # In a worktree it is a file, and some tools make it a link.
    if repository.is_dir() and not repository.is_symlink():
        remove_tree(repository)
    else:
        repository.unlink(missing_ok=True)
    if contents.content(target) != content:
        raise UsageError(
            f"{directory} changed while it was copied.",
            hint="Run the command again once the tree is no longer changing.",
        )
    # Kbuild refuses to build elsewhere from a tree that was itself built in.
    if (target / ".config").exists() or (target / "include/config").exists():
        job = Job(["make", "-C", SRC, "mrproper"], (Bind(target, SRC, True),), SRC)
        ready.runtime.run(ready.sandbox, job)


def _directory(profile: Profile, source: Source) -> Path:
    assert source.directory is not None
    named = at_home(source.directory, f"{profile.path}: source.directory")
    directory = (profile.path.parent / named).resolve()
    if not (directory / "Kbuild").is_file() or not (directory / "Makefile").is_file():
        raise UsageError(f"{profile.path}: source.directory: {directory} is not a kernel tree.")
    return directory


VERSION = re.compile(r"([0-9]{1,5}\.){2}[0-9]{1,5}[A-Za-z0-9.+~_-]{0,63}")
"""A kernel's version: of it, names in the Store are made."""


def kernel_version(tree: Path) -> str:
    """Return a tree's version, such as 6.12.117 or 7.3.0-rc1, from its top Makefile.

    Raises UsageError if that isn't a kernel's.
    """
    try:
        with textfile.open_regular(tree / "Makefile") as file:
            head = file.read(2000).decode(errors="replace")
    except OSError as error:
        raise UsageError(f"{tree} is not a kernel tree: it has no Makefile.") from error
    fields = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*)", head, re.M))
    if "VERSION" not in fields or "PATCHLEVEL" not in fields:
        raise UsageError(f"{tree} is not a kernel tree: its Makefile names no VERSION.")
    sublevel = fields.get("SUBLEVEL") or "0"
    found = f"{fields['VERSION']}.{fields['PATCHLEVEL']}.{sublevel}{fields.get('EXTRAVERSION', '')}"
    if not VERSION.fullmatch(found):
        raise UsageError(f"{tree} is not a kernel tree: its version can't be {found[:100]!r}.")
    return found


def _patches(version: str) -> list[Path]:
    """Return our patches for a kernel version, in the order of their names.

    They are those of the nearest version that has any.
    """
    folder = data.folder("module") / "patches"
    series = nearest_series(version, [path.name for path in folder.iterdir() if path.is_dir()])
    return [] if series is None else sorted((folder / series).glob("*.patch"))


def nearest_series(version: str, series: Sequence[str]) -> str | None:
    """Return the X.Y of ``series`` that is the fewest releases away from a kernel version.

    Of two that are as near it is the older, since a kernel rarely loses what patches build upon.
    """
    known = sorted((number, name) for name in series if (number := _release(name)) is not None)
    wanted = _release(".".join(version.split(".")[:2])) or 0
    return min(known, key=lambda one: abs(one[0] - wanted), default=(0, None))[1]


def _release(series: str) -> int | None:
    """Return the number of a release: of each X since 3 there were 20, give or take one."""
    found = re.fullmatch(r"([0-9]{1,5})\.([0-9]{1,5})(?:-.*)?", series)
    return None if found is None else 20 * int(found[1]) + int(found[2])


def apply_patch(path: Path, target: Path, ready: Ready) -> None:
    """Apply one patch, whole and without fuzz; one that is in the tree already is left alone.

    Raises BuildFailed naming the patch and the hunks that don't apply.
    """
    inside = f"/tmp/{path.name}"  # noqa: S108 - in the sandbox
    binds = (Bind(path, inside), Bind(target, SRC, True))
    words = ["patch", "-p1", "--batch", "--fuzz=0", "--no-backup-if-mismatch", "-i", inside]
    dry = [*words, "--dry-run"]
    tried = ready.runtime.run(ready.sandbox, Job([*dry, "--forward"], binds, SRC), check=False)
    if tried.returncode == 0:
        ready.runtime.run(ready.sandbox, Job([*words, "--forward"], binds, SRC))
        return
    back = ready.runtime.run(ready.sandbox, Job([*dry, "--reverse"], binds, SRC), check=False)
    if back.returncode != 0:
        raise BuildFailed(
            f"The patch {path.parent.name}/{path.name} does not apply to Linux "
            f"{kernel_version(target)}.",
            detail="\n".join(failed_hunks(path.read_text(), tried.tail) or tried.tail),
            hint="`patches: false` in the profile leaves our patches out; the Rust driver needs "
            "them.",
        )


CHECKING = re.compile(r"(?:checking|patching) file '?([^']*?)'?(?: \(.*)?")
FAILED = re.compile(r"Hunk #(\d+) (?:FAILED|ignored) at (\d+)")
MISSING = re.compile(r"(?:can't find file to patch at input line|The next patch would).*")


def failed_hunks(patch: str, said: Sequence[str]) -> list[str]:
    """Return, of what patch(1) said, which hunks don't apply: file, number and line.

    Each is found in the patch, too, so that it can be looked at.
    """
    found, file = [], ""
    for line in said:
        if name := CHECKING.fullmatch(line):
            file = name[1]
        elif hunk := FAILED.match(line):
            number, at = int(hunk[1]), hunk[2]
            where = _hunk_line(patch, file, number)
            there = f" (line {where} of the patch)" if where else ""
            found.append(f"{file}: hunk {number} fails at line {at}{there}")
        elif MISSING.match(line):
            found.append(line)
    return found


def _hunk_line(patch: str, file: str, number: int) -> int:
    """Return the line of a patch at which a file's n-th hunk begins; 0 if it isn't found."""
    here, count = False, 0
    for position, line in enumerate(patch.splitlines(), 1):
        if line.startswith("+++ "):
            here, count = line[4:].split("\t")[0].partition("/")[2] == file, 0
        elif here and line.startswith("@@ "):
            count += 1
            if count == number:
                return position
    return 0
