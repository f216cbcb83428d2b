"""Trees: kernel sources fetched, checked, extracted once, patched, and from then on immutable."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rbuild.cache.directory import Cache
from rbuild.cache.entry import Entry, EntryKind
from rbuild.errors import InfrastructureError, ProcessFailed, RbuildError, UsageError
from rbuild.provision import apt
from rbuild.provision.prepared import PreparedEnvironment
from rbuild.sandbox import outputs
from rbuild.sandbox.runtime import MODULE, SRC, Bind, Job
from rbuild.source import contents, git
from rbuild.source.patches import apply_patch, patches_for
from rbuild.source.resolve import ResolvedPackage, forget, resolve_package
from rbuild.source.tree import Tree, entry_of, find, kernel_version, publish
from rbuild.source.unpack import unpack
from rbuild.specs.profile import Profile, Source
from rbuild.ui.format import several
from rbuild.ui.step import Step
from rbuild.util import process
from rbuild.util.disk import not_copied
from rbuild.util.folders import remove_tree
from rbuild.util.hashes import digest
from rbuild.util.home import at_home

SPACE_NEEDED = 3 * 1024**3
"""Bytes that a tree takes at most while it is being extracted."""


def obtain(profile: Profile, ready: PreparedEnvironment, cache: Cache) -> Tree:
    """Return the profile's Tree from the cache, or fetch, check, extract and patch it first.

    Of the profile's sources the first in the cache is used, else the first that can be had.
    Raises UsageError for a source that is wrong, InfrastructureError for one that can't be
    reached, BuildFailed for a patch that doesn't apply.
    """
    pristine = _pristine(profile, ready, cache)
    patches = patches_for(pristine.version) if profile.patches else []
    if patches:
        return _patched(pristine, patches, ready, cache)
    cache.use(entry_of(pristine))
    return pristine


def _pristine(profile: Profile, ready: PreparedEnvironment, cache: Cache) -> Tree:
    """Return the source as it was published."""
    origins: list[_Origin] = []
    failures: list[tuple[Source, RbuildError]] = []
    for source in profile.source:
        try:
            origin = _origin(profile, source, ready, cache)
        except (UsageError, InfrastructureError) as error:  # a folder that isn't there, a mirror
            failures.append((source, error))
            continue
        if (found := find(origin.entry, cache.find)) is not None:
            return found
        origins.append(origin)
    if origins:
        for source, failure in failures:
            cache.console.note(f"{source} is unavailable: {failure.message}")
    for origin in origins:
        try:
            return cache.get_or_make(
                origin.entry,
                partial(find, origin.entry, cache.find),
                partial(_fetched, profile, origin, ready, cache),
            )
        except InfrastructureError as error:
            failures.append((origin.source, error))
            if len(origins) > 1:
                cache.console.note(f"{origin.source} is unavailable: {error.message}")
    raise failures[-1][1]


@dataclass(frozen=True)
class _Origin:
    """What a source means today, and the place of its tree in the cache, which that names.

    ``inputs`` is all that decides what is in the tree; ``resolved``, ``commit`` and ``content`` are
    there for a Debian package that was looked for, for git, and for a folder.
    """

    source: Source
    inputs: Mapping[str, Any]
    entry: Entry
    resolved: ResolvedPackage | None = None
    commit: str | None = None
    content: str | None = None

    def __str__(self) -> str:
        return str(self.resolved or self.source)

    @property
    def remembered(self) -> dict[str, object]:
        """What the tree's metadata keeps of it, for when no mirror or repository answers."""
        if self.commit is not None:
            assert self.source.git is not None
            assert self.source.ref is not None
            return git.record(self.source.git, self.source.ref, self.commit)
        return {} if self.resolved is None else self.resolved.key


def _origin(profile: Profile, source: Source, ready: PreparedEnvironment, cache: Cache) -> _Origin:
    """Find out what a source means today; raises as ``obtain`` does."""
    resolved = commit = content = None
    if source.is_pattern:
        resolved = resolve_package(source, ready, cache)
        label = resolved.package
        inputs = resolved.key
    elif source.git is not None:
        assert source.ref is not None
        commit = git.resolve(source.git, source.ref, cache)
        label = Path(source.git).stem
        inputs = {"git": source.git, "commit": commit}
    elif source.directory is not None:
        directory = _directory(profile, source)
        content = _content(directory, cache)
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
    entry = cache.entry(EntryKind.TREES, name, digest(inputs))
    return _Origin(source, inputs, entry, resolved, commit, content)


def _content(directory: Path, cache: Cache) -> str:
    """Return what identifies a folder's content; an index in the cache says what was read."""
    name = f".content-{digest(str(directory))}"
    index = Entry(EntryKind.TREES, name, cache.root / EntryKind.TREES / name)
    with cache.lock(index):
        return contents.content(directory, index.path)


def _fetched(profile: Profile, origin: _Origin, ready: PreparedEnvironment, cache: Cache) -> Tree:
    cache.need_space(SPACE_NEEDED, "The kernel's source")
    cache.check()
    entry, name = origin.entry, str(origin)
    aside = cache.partial(entry)
    target = aside / "src"
    target.mkdir()
    at = f" at {origin.commit[:12]}" if origin.commit not in {None, origin.source.ref} else ""
    suite = origin.source.suite or ready.environment.base.definition.suite
    key = f"{suite} {ready.environment.name} {ready.runtime.name}"
    with cache.console.step(f"Fetching {name}{at}", key=key) as step:
        date = _fetch(profile, origin, target, ready, cache, step)
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
    publish(tree, entry, aside, cache, **origin.remembered)
    return tree


def _patched(pristine: Tree, patches: list[Path], ready: PreparedEnvironment, cache: Cache) -> Tree:
    """Return the tree with the patches applied; what they don't touch is shared by hard links."""
    contents = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in patches]
    key = digest({"pristine": pristine.key, "patches": contents})
    entry = cache.entry(EntryKind.TREES, f"linux-{pristine.version}-patched", key)

    def patch() -> Tree:
        cache.use(entry_of(pristine))
        cache.check()
        series = patches[0].parent.name
        if not f"{pristine.version}.".startswith(f"{series}."):
            cache.console.note(
                f"There are no patches for {pristine.version}: those for {series} are the nearest."
            )
        aside = cache.partial(entry)
        target = aside / "src"
        own = f"{ready.environment.name} {ready.runtime.name}"
        title = f"Patching {pristine.version}"
        with cache.console.step(title, total=len(patches), key=own) as step:
            _link(pristine.path, target)
            for number, path in enumerate(patches):
                step.update(path.name, done=number)
                apply_patch(path, target, ready)
            step.update(done=len(patches))
        names = tuple(path.name for path in patches)
        tree = replace(
            pristine, path=entry.path / "src", key=entry.name, patches=names, cached=False
        )
        publish(tree, entry, aside, cache)
        return tree

    return cache.get_or_make(entry, partial(find, entry, cache.use), patch)


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
    profile: Profile,
    origin: _Origin,
    target: Path,
    ready: PreparedEnvironment,
    cache: Cache,
    step: Step,
) -> datetime:
    """Put the source into ``target``; return its date."""
    source, resolved = origin.source, origin.resolved
    if resolved is not None:
        package = f"{resolved.package}={resolved.version}"
        try:
            _fetch_debian(package, resolved.suite, target, ready, cache.console.teller(step))
        except apt.NoPackage as error:
            forget(source, ready, cache)
            error.hint = "It had it not long ago: run it again to look for what it has now."
            raise
    elif source.debian is not None:
        _fetch_debian(source.debian, "", target, ready, cache.console.teller(step))
    elif source.tarball is not None:
        _fetch_tarball(source, profile, target, ready, step)
    elif source.git is not None:
        assert source.ref is not None
        assert origin.commit is not None
        tell = cache.console.teller(step)
        try:
            date = git.fetch(source.git, source.ref, origin.commit, target, tell)
        except git.MovedError:
            git.forget(source.git, source.ref, cache)
            raise
        if faults := outputs.sanitise(target):
            raise InfrastructureError(
                f"{source} contains files that rbuild refuses: {several(faults)}.",
                hint="Choose another ref, or remove them from the repository.",
            )
        return date
    else:
        _copy_directory(_directory(profile, source), origin.content, target, ready)
        # Of a user's own tree, what leads out of it or isn't a file may just lie there.
        if faults := outputs.sanitise(target):
            cache.console.note(f"Not copied from {source}: {several(faults)}.")
    if not (target / "Makefile").is_file():
        raise UsageError(f"{source} is not a kernel tree: it has no Makefile.")
    return datetime.fromtimestamp((target / "Makefile").stat().st_mtime, UTC)


EXTRACT_DEBIAN = """\
set -e -o pipefail
dpkg-deb --fsys-tarfile ./*.deb | tar -x --wildcards './usr/src/*.tar.*'
tar -x --strip-components=1 -C /src -f usr/src/*.tar.*
"""


def _fetch_debian(
    package: str, suite: str, target: Path, ready: PreparedEnvironment, tell: Callable[[str], None]
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
    source: Source, profile: Profile, target: Path, ready: PreparedEnvironment, step: Step
) -> None:
    """Download a tarball, compare it with its checksum and signature, and unpack it."""
    from rbuild.source.download import download, shown  # noqa: PLC0415 - most runs need no HTTP and TLS

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
    from rbuild.source.download import looks_like_a_page, shown  # noqa: PLC0415

    assert source.tarball is not None
    hint = "It looks like a web page: a proxy's, perhaps." if looks_like_a_page(file) else None
    file.unlink()
    return InfrastructureError(
        f"{shown(source.tarball)} is not what the profile asks for.",
        detail=f"expected sha256 {source.sha256}\ngot      sha256 {found}",
        hint=hint,
    )


def _verify(source: Source, profile: Profile, file: Path, step: Step) -> None:
    from rbuild.source.download import download  # noqa: PLC0415
    from rbuild.util import gpg  # noqa: PLC0415 - most profiles name no key

    assert source.tarball is not None
    assert source.key is not None
    url = source.signature or gpg.url_of(source.tarball)
    signed = file.with_name("signature")
    signed.unlink(missing_ok=True)
    download(url, signed, step)
    try:
        gpg.verify(file, signed, profile.key(source), profile.key_content(source))
    except InfrastructureError:
        file.unlink()
        raise


def _copy_directory(
    directory: Path, content: str | None, target: Path, ready: PreparedEnvironment
) -> None:
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
