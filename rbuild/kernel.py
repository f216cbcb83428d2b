"""KDIRs: a Tree configured, prepared for modules and built, in one environment.

A KDIR grows in two stages.  *Prepared* is what a module needs: the configuration, generated
headers, host tools and, with Rust, the kernel crate (Kbuild's modules_prepare).  *Built* has the
Image, the modules, the device trees, and the Module.symvers that tells which symbols exist.
Nothing in a KDIR's inputs ever changes (they are in its name), so an interrupted stage is
continued where it stopped.  A new KDIR starts from a copy of the nearest one that is there.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbuild import data, outputs, seed
from rbuild.architecture import Kernel, of_kernel
from rbuild.ccache import Share
from rbuild.errors import (
    BuildFailed,
    InfrastructureError,
    NotGranted,
    UsageError,
    ended_by_itself,
)
from rbuild.kbuild import (
    Kbuild,
    Made,
    config_of,
    forget_the_last,
    kernel_release,
    listed,
    locate,
    quote,
    read_config,
    unmet,
    variables,
    vermagic,
)
from rbuild.kept import Kept
from rbuild.process import Usage
from rbuild.profile import CONFIG_MOST, Config, Profile, Source, load
from rbuild.profile import names as profile_names
from rbuild.provision import Ready
from rbuild.reproduce import SCRIPT, Recipe, write
from rbuild.sandbox import KDIR, SRC
from rbuild.seed import Request
from rbuild.session import CacheUse, Phase, Session
from rbuild.source import IN_TREE_FOLDER, Tree
from rbuild.store import (
    Entry,
    Room,
    Store,
    boot_id,
    digest,
    read_json,
    remove_tree,
    sha256_file,
    write_json,
)
from rbuild.textfile import read_text

if TYPE_CHECKING:
    from rbuild.explain import Origin
    from rbuild.kconfig import Values

SPACE_NEEDED = 2 * 1024**3
"""Bytes that a slim KDIR takes at most; a whole defconfig needs several times that."""

BASE_CONFIG = "base.config"
"""In a KDIR: the configuration over which the fragments are merged."""

CONFIGURED = "configured.json"
"""Beside an unfinished KDIR's output: its configuration is finished, and what it took."""

TARGET = re.compile(r"(?!-)[A-Za-z0-9_-]*config")
"""The name of a configuration target, such as defconfig; other names of a base are a file's."""


BLOCKERS_SHOWN = 8
"""How many of the conditions that block an option a refusal shows."""


class Stage(StrEnum):
    """How far a KDIR is."""

    PREPARED = "prepared"
    BUILT = "built"


@dataclass(frozen=True)
class Kdir:
    """A KDIR in the Store.  ``path`` is the output directory itself (make's O=).

    ``targets`` are those of make that built it, [] if it isn't built.  ``seed`` names the KDIR that
    it started from, if it wasn't made from nothing.
    """

    entry: Entry
    profile: Profile
    tree: Tree
    ready: Ready
    stage: Stage
    release: str
    config_sha256: str
    phases: tuple[Phase, ...]
    artefacts: tuple[dict[str, Any], ...] = ()
    targets: tuple[str, ...] = ()
    seed: str | None = None

    @property
    def path(self) -> Path:
        """The output directory."""
        return self.entry.path / "build"

    @property
    def config(self) -> dict[str, str]:
        """The options that Kconfig granted."""
        return config_of(self.path)

    @property
    def vermagic(self) -> str:
        """The vermagic that its modules must have."""
        return vermagic(self.release, self.config, self.target)

    @property
    def target(self) -> Kernel:
        """What Kbuild calls its architecture and products."""
        return self.ready.environment.target.target

    @property
    def image(self) -> Path:
        """What a boot loader starts, once the kernel is built."""
        return self.path / self.target.image_path

    @property
    def device_trees(self) -> Path:
        """The folder of its device trees."""
        return self.path / self.target.device_trees


def prepare(
    profile: Profile, tree: Tree, ready: Ready, session: Session, *, seeded: bool = True
) -> Kdir:
    """Return a KDIR in which modules can be built; configure and prepare it if need be.

    With ``seeded`` it may start from a copy of another one, which gives the same bytes sooner.
    Raises UsageError if Kconfig doesn't grant what the profile asks for, BuildFailed if the
    kernel's own preparation fails.
    """
    fragments = profile.fragments()
    entry = _entry(profile, tree, ready, session, fragments)
    if (found := _found(entry, profile, tree, ready, session)) is not None:
        return found
    with session.store.lock(entry):
        if (found := _found(entry, profile, tree, ready, session)) is not None:
            return found
        session.store.need_space(SPACE_NEEDED, "A kernel's output directory")
        partial = session.store.partial(entry, keep=True)
        share = Share(provenance(profile, tree))
        kbuild = Kbuild(session, ready, tree, partial / "build", share=share)
        request = _request(profile, tree, ready, fragments)
        start = _started(partial, seeded=seeded)
        if start is None:
            start = _start(profile, kbuild, partial, fragments, request if seeded else None)
        else:
            session.console.note(f"Continuing {entry.name}, which was interrupted.")
            forget_the_last(kbuild.kdir)
        expected = None
        if not start.seed:
            expected = _expected(session, profile, "prepare", request.configuration)
        made = kbuild.make(
            f"Preparing {_title(tree, ready)} for modules",
            ["modules_prepare"],
            expected=expected,
        )
        phases = (*start.phases, Phase("prepare", made.usage, ccache=made.ccache))
        more: dict[str, Any] = {
            "request": request.as_json(),
            "seed": start.seed,
            "configuration": request.configuration,
        }
        _publish(entry, partial, kbuild, phases, _most(start.objects, "prepare", made), **more)
    kdir = _found(entry, profile, tree, ready, session)
    assert kdir is not None
    return _with_phases(kdir, phases)


def was_prepared(profile: Profile, environment: str, store: Store) -> bool:
    """Tell whether a KDIR of the profile was made in an environment, if of other inputs perhaps."""
    label = store.entry(Room.KDIRS, f"{profile.name}-{environment}", "").name
    return any(entry.name.startswith(label) for entry in store.entries(Room.KDIRS))


def prepare_in_tree(
    base: Kdir, origin: Path, overlay: Path, bring: Callable[[], None], session: Session
) -> Kdir:
    """Return a KDIR whose configuration has the driver's own options as modules.

    It starts as a copy of ``base``, so that only what those options change is made again.
    ``origin`` has the driver's Kconfig, Kbuild and sources; ``bring`` is called to bring them to
    ``overlay``, which then stands in the tree's folder for the driver.  Raises UsageError if the
    tree has no such folder, or if Kconfig refuses an option.
    """
    if not base.tree.has_in_tree_folder:
        raise UsageError(
            f"{base.tree.source} has no {IN_TREE_FOLDER}: the driver can't be built in-tree.",
            hint="A patch in module/patches/<kernel version>/ makes that folder.",
        )
    fragment = _in_tree_fragment(base)
    kconfigs = sorted(origin.rglob("Kconfig"))
    kconfig = [(str(path.relative_to(origin)), sha256_file(path)) for path in kconfigs]
    key = digest({"base": base.entry.name, "fragment": fragment, "kconfig": kconfig})
    label = f"{base.profile.name}-{base.ready.environment.name}-in-tree"
    entry = session.store.entry(Room.KDIRS, label, key)
    if (found := _found(entry, base.profile, base.tree, base.ready, session)) is not None:
        return found
    with session.store.lock(base.entry), session.store.lock(entry):
        if (found := _found(entry, base.profile, base.tree, base.ready, session)) is not None:
            return found
        session.store.need_space(SPACE_NEEDED, "A kernel's output directory")
        bring()
        if any(sha256_file(overlay / name) != content for name, content in kconfig):
            raise BuildFailed(
                f"A Kconfig of {origin} was changed while it was copied.", hint="Run it again."
            )
        session.store.check()
        partial = session.store.partial(entry)
        build = partial / "build"
        title = f"Copying the KDIR of {_title(base.tree, base.ready)}"
        with session.console.step(title, key=f"{base.entry.name} {base.stage}"):
            seed.copy(base.path, build)
            if base.entry.is_open:
                seed.forget_ends(build)
                forget_the_last(build)
        share = Share(provenance(base.profile, base.tree))
        kbuild = Kbuild(session, base.ready, base.tree, build, overlay, share=share)
        wanted = [*base.profile.fragments(), ("in-tree.options", fragment)]
        configured = _merge(base.profile, kbuild, wanted, Path(".config"))
        made = kbuild.make("Preparing the in-tree KDIR", ["modules_prepare"])
        phases = (configured, Phase("prepare", made.usage, ccache=made.ccache))
        # Each build of a driver writes into it.
        _publish(entry, partial, kbuild, phases, {}, sealed=False)
    kdir = _found(entry, base.profile, base.tree, base.ready, session)
    assert kdir is not None
    return _with_phases(kdir, phases)


def _in_tree_fragment(base: Kdir) -> str:
    """Return the driver's own options, as modules; the Rust driver's only in a Rust kernel."""
    options = ["MFRC522", "MFRC522_GLUE"]
    if base.config.get("RUST") == "y":
        options.append("MFRC522_RUST")
    return "".join(f"CONFIG_{option}=m\n" for option in options)


def build(kdir: Kdir, session: Session) -> Kdir:
    """Return the KDIR with its kernel built: Image, modules and device trees.

    Raises BuildFailed with the compiler's words.
    """
    store = session.store
    share = Share(provenance(kdir.profile, kdir.tree))
    kbuild = Kbuild(session, kdir.ready, kdir.tree, kdir.path, share=share)
    if _is_built(kdir):
        store.check()
        session.script = _reproducer(kdir, kbuild)
        return kdir
    with store.lock(kdir.entry):
        current = _found(kdir.entry, kdir.profile, kdir.tree, kdir.ready, session)
        if current is None:
            raise InfrastructureError(f"{kdir.entry.name} was removed while it was needed.")
        if _is_built(current):
            return current
        session.script = _reproducer(kdir, kbuild)
        expected = None
        if not kdir.seed:
            configuration = (current.entry.metadata or {}).get("configuration")
            expected = _expected(session, kdir.profile, "kernel", configuration)
        store.check()
        if store.open(kdir.entry):
            forget_the_last(kdir.path)
        try:
            made = kbuild.make(
                f"Building {_title(kdir.tree, kdir.ready)}",
                kernel_targets(kdir.profile),
                expected=expected,
            )
        except BuildFailed as error:
            if ended_by_itself(error):
                store.rest(kdir.entry)
            raise
        before = tuple(phase for phase in kdir.phases if phase.name != "kernel")
        phases = (*before, Phase("kernel", made.usage, ccache=made.ccache))
        store.close(
            kdir.entry,
            stage=Stage.BUILT,
            targets=kernel_targets(kdir.profile),
            artefacts=[_artefact(kdir.path, path) for path in _products(kdir)],
            phases=[phase.as_json() for phase in phases],
            objects=_most(_objects(current.entry.metadata), "kernel", made),
        )
    found = _found(kdir.entry, kdir.profile, kdir.tree, kdir.ready, session)
    assert found is not None
    return _with_phases(found, phases)


def _reproducer(kdir: Kdir, kbuild: Kbuild) -> Path | None:
    session = kbuild.session
    recipe = Recipe(session.store.root, session.runtime, kdir.ready.sandbox)
    jobs = [kbuild.job(["olddefconfig"]), kbuild.job(kernel_targets(kdir.profile))]
    title = f"Building {_title(kdir.tree, kdir.ready)}"
    lines = recipe.kernel(kdir.path, jobs)
    return write(recipe, title, session.line(), lines, kdir.entry.path / SCRIPT)


def kernel_targets(profile: Profile) -> list[str]:
    """Return what make is asked for to build a profile's kernel."""
    image = of_kernel(profile.architecture).target.image
    return [image, "modules", *(profile.device_trees or ["dtbs"])]


def discard(profile: Profile, tree: Tree, ready: Ready, session: Session) -> None:
    """Remove the profile's KDIR in an environment, also an unfinished one."""
    entry = _entry(profile, tree, ready, session, profile.fragments())
    with session.store.lock(entry):
        remove_tree(session.store.partial(entry, keep=True))
        if entry.path.exists():
            with session.store.without_readers(entry.path / "modules"):
                session.store.remove(entry)


def profiles_with(option: str, arch: str, tree: Tree) -> list[str]:
    """Return rbuild's own profiles for an ARCH that ask for an option, or for what needs it."""
    from rbuild import kconfig  # noqa: PLC0415 - for an error only

    wanted = kconfig.read(tree.path, arch).with_on(option)
    found = []
    for name in profile_names():
        profile = load(name)
        asked: dict[str, str] = {}
        for origin in origins(profile, tree) if profile.architecture == arch else ():
            asked |= read_config(origin.text)
        if any(asked.get(one, "n") != "n" for one in wanted):
            found.append(name)
    return found


def origins(profile: Profile, tree: Tree) -> list[Origin]:
    """Return the texts that ask for options, in the order in which one overrides another."""
    from rbuild.explain import Origin  # noqa: PLC0415 - as in _refused

    base = profile.config.base
    found = []
    if TARGET.fullmatch(base):
        path = tree.path / "arch" / profile.architecture / "configs" / base
        if path.is_file():
            found.append(Origin(base, read_text(path, limit=CONFIG_MOST, decoding="replace")))
    else:
        found.append(Origin(base, _base_config(profile)))
    fragments = profile.fragments()
    own = len(fragments) - bool(profile.config.options)
    found += [Origin(name, text) for name, text in fragments[:own]]
    options = f"config.options of {profile.path.name}"
    return [*found, *(Origin(options, text, numbered=False) for _, text in fragments[own:])]


@dataclass(frozen=True)
class Attempt:
    """A configuration as far as Kconfig granted it, and the folder in which it was made."""

    config: Mapping[str, str]
    build: Path


def attempt(profile: Profile, tree: Tree, ready: Ready, session: Session) -> Attempt:
    """Return what Kconfig makes of a profile, whether it grants all that is asked or not."""
    fragments = profile.fragments()
    entry = _entry(profile, tree, ready, session, fragments)
    if (found := _found(entry, profile, tree, ready, session)) is not None:
        return Attempt(found.config, found.path)
    with session.store.lock(entry):
        if (found := _found(entry, profile, tree, ready, session)) is not None:
            return Attempt(found.config, found.path)
        session.store.need_space(SPACE_NEEDED, "A kernel's output directory")
        partial = session.store.partial(entry, keep=True)
        build = partial / "build"
        if _started(partial, seeded=True) is None:
            request = _request(profile, tree, ready, fragments)
            kbuild = Kbuild(session, ready, tree, build, share=Share(provenance(profile, tree)))
            with suppress(NotGranted):
                _start(profile, kbuild, partial, fragments, request)
        return Attempt(config_of(build), build)


def attempt_with(
    options: Mapping[str, str], before: Attempt, profile: Profile, kbuild: Kbuild
) -> Attempt:
    """Return what Kconfig makes of a profile with ``options`` besides, in ``kbuild``'s KDIR."""
    shutil.copyfile(before.build / BASE_CONFIG, kbuild.kdir / BASE_CONFIG)
    text = Config(options=dict(options)).as_fragment()
    _complete(kbuild, [*profile.fragments(), ("more.options", text)], Path(BASE_CONFIG))
    return Attempt(config_of(kbuild.kdir), kbuild.kdir)


PLAIN_OPTION = re.compile(r'CONFIG_\w+=("?)[\w.,:/+@=~() -]*\1', re.ASCII)
"""An option's line whose value neither make nor a shell takes for more than a text."""


def provenance(profile: Profile, tree: Tree) -> str:
    """Return a name for where a kernel's build has its commands from.

    Builds of the same provenance may share what they leave: Debian's sources have one together, any
    other source has its own.  Make expands the values of options, so that a profile with a value
    that is more than a plain text has its own, too.
    """
    found: dict[str, Any] = {}
    if not tree.is_debian:
        # Which of them the tree is of doesn't show: the same content may have come by another.
        found["sources"] = [
            {**source.model_dump(mode="json"), "directory": _place(profile, source)}
            for source in profile.source
        ]
    if not _is_plain(profile):
        found["profile"] = str(profile.path)
    return digest(found) if found else "debian"


def _place(profile: Profile, source: Source) -> str | None:
    """Return where a source's directory is, whichever folder the profile is written for."""
    if source.directory is None:
        return None
    return str((profile.path.parent / source.directory).resolve())


def _is_plain(profile: Profile) -> bool:
    """Tell whether nothing that a profile hands to make can be a command."""
    base = _base_config(profile)
    texts = [base if "\n" in base else "", *(text for _, text in profile.fragments())]
    lines = [line.strip() for text in texts for line in text.split("\n")]
    return all(not line or line.startswith("#") or PLAIN_OPTION.fullmatch(line) for line in lines)


def _entry(
    profile: Profile, tree: Tree, ready: Ready, session: Session, fragments: list[tuple[str, str]]
) -> Entry:
    wanted = {
        **_builder(tree, ready),
        "base": _base_config(profile),
        "fragments": fragments,
    }
    label = f"{profile.name}-{ready.environment.name}"
    return session.store.entry(Room.KDIRS, label, digest(wanted))


def _builder(tree: Tree, ready: Ready) -> dict[str, Any]:
    """Return all but the configuration that decides what is in a KDIR."""
    return {"tree": tree.key, **ready.inputs, "make": variables(ready, tree)}


def _request(
    profile: Profile, tree: Tree, ready: Ready, fragments: list[tuple[str, str]]
) -> Request:
    """Return what a KDIR is asked for, to be compared with what others were."""
    base = _base_config(profile)
    is_text = "\n" in base
    options = read_config(base) if is_text else {}
    for _, text in fragments:
        options |= read_config(text)
    common = {**_builder(tree, ready), "base": "" if is_text else base}
    # A seed's objects and host programs are run and linked in.
    if not _is_plain(profile):
        common["provenance"] = provenance(profile, tree)
    kin = digest(common)
    asked = {
        "tree": tree.key,
        "base": base,
        "fragments": fragments,
        "toolchain": dict(ready.toolchain),
    }
    return Request(kin, options, digest(asked))


def _base_config(profile: Profile) -> str:
    """Return a configuration target's name, or the text of the file that ``config.base`` names.

    A text ends with a newline, which no target's name has.
    """
    base = profile.config.base
    if TARGET.fullmatch(base):
        return base
    target = (
        "Use a kernel configuration target, such as defconfig, or a .config file with lines such "
        "as CONFIG_SPI=y."
    )
    try:
        text = profile.read(base, "config.base")
    except UsageError as error:
        error.hint = error.hint or target
        raise
    if "\0" in text or not read_config(text):
        path = profile.path.parent / base
        what = "is empty" if not text.strip() else "has no line that sets a CONFIG_ option"
        raise UsageError(
            f"{profile.path}: config.base: {path} is no configuration: it "
            f"{'is binary' if chr(0) in text else what}.",
            hint=target,
        )
    return text.rstrip("\n") + "\n"


def _found(
    entry: Entry, profile: Profile, tree: Tree, ready: Ready, session: Session
) -> Kdir | None:
    metadata = session.store.rely(entry)
    if metadata is None:
        return None
    kept = Kept(metadata)
    try:
        return Kdir(
            entry,
            profile,
            tree,
            ready,
            Stage(kept.text("stage")),
            kept.text("release"),
            kept.text("config_sha256"),
            Phase.all_of(kept),
            _artefacts(kept),
            kept.texts("targets") if "targets" in metadata else (),
            kept.text_or_none("seed"),
        )
    except ValueError:
        return None


def _artefacts(kept: Kept) -> tuple[dict[str, Any], ...]:
    """Return what a KDIR's metadata says of its artefacts; raise ValueError if that is broken."""
    if "artefacts" not in kept.data:
        return ()
    return tuple(
        {
            "path": one.text("path"),
            "sha256": one.text("sha256"),
            "size_bytes": one.count("size_bytes"),
        }
        for one in kept.parts("artefacts")
    )


def _objects(metadata: Mapping[str, Any] | None) -> dict[str, int]:
    """Return how many objects each phase of a KDIR made, as far as its metadata tells."""
    try:
        return Kept(metadata or {}).counts("objects")
    except ValueError:
        return {}


def _with_phases(kdir: Kdir, phases: tuple[Phase, ...]) -> Kdir:
    """Return the KDIR with the phases as this run saw them, so that they don't read as cached."""
    return replace(kdir, phases=phases)


@dataclass(frozen=True)
class _Start:
    """How a KDIR began: configured, from nothing or from a seed with its counts of objects."""

    phases: tuple[Phase, ...]
    seed: str | None
    objects: Mapping[str, int]


def _started(partial: Path, *, seeded: bool) -> _Start | None:
    """Return how an interrupted preparation began, if it came to the end of its configuration.

    What was begun before that, a seed's half-made copy too, is of no use; nor is anything that a
    power cut may have taken a part of.
    """
    mark = Kept(read_json(partial / CONFIGURED) or {})
    if mark.data.get("boot") != boot_id():
        return None
    try:
        start = _Start(Phase.all_of(mark), mark.text_or_none("seed"), mark.counts("objects"))
    except ValueError:
        return None
    return None if start.seed is not None and not seeded else start


def _start(
    profile: Profile,
    kbuild: Kbuild,
    partial: Path,
    fragments: list[tuple[str, str]],
    request: Request | None,
) -> _Start:
    """Configure a KDIR in ``partial``, on a seed for ``request`` if there is one, and mark it."""
    (partial / CONFIGURED).unlink(missing_ok=True)
    if kbuild.kdir.exists():
        remove_tree(kbuild.kdir)
    planted = None
    if request is not None:
        planted = seed.plant(request, kbuild.kdir, kbuild.session.store)
    if planted is None:
        kbuild.kdir.mkdir()
        adopted = None
        if request is not None:
            adopted = seed.adopt(request.configuration, kbuild.kdir, kbuild.session.store)
        if adopted is None:
            configured = configure(profile, kbuild, fragments)
        else:
            configured = Phase("adopt", adopted[1])
        start = _Start((configured,), None, {})
    else:
        configured = configure(profile, kbuild, fragments)
        seed.forget_options(kbuild.kdir, planted)
        phases = (Phase("seed", planted.usage), configured)
        start = _Start(phases, planted.seed.entry.name, planted.seed.objects)
    mark = {
        "phases": [phase.as_json() for phase in start.phases],
        "seed": start.seed,
        "objects": dict(start.objects),
        "boot": boot_id(),
    }
    write_json(partial / CONFIGURED, mark)
    return start


def configure(profile: Profile, kbuild: Kbuild, fragments: list[tuple[str, str]]) -> Phase:
    """Make .config in a KDIR: the base, then all fragments by the kernel's merge_config.sh.

    What a base target makes is kept as BASE_CONFIG.  A seed is of the same base: its will do.
    Raises UsageError if Kconfig doesn't grant what the profile asks for.
    """
    base = _base_config(profile)
    path = kbuild.kdir / BASE_CONFIG
    if "\n" in base:
        path.write_text(base, encoding="utf-8")
    elif not path.exists():
        made = kbuild.make(f"Configuring {_title(kbuild.tree, kbuild.ready)}: {base}", [base])
        shutil.copyfile(kbuild.kdir / ".config", path)
        return _add("configure", made, _merge(profile, kbuild, fragments, Path(BASE_CONFIG)))
    return _merge(profile, kbuild, fragments, Path(BASE_CONFIG))


def _merge(profile: Profile, kbuild: Kbuild, fragments: list[tuple[str, str]], base: Path) -> Phase:
    """Merge fragments over ``base`` (relative to the KDIR), complete it, compare asked and got."""
    made, asked = _complete(kbuild, fragments, base)
    got = config_of(kbuild.kdir)
    if refused := unmet(asked, got):
        raise _refused(refused, profile, kbuild)
    return Phase("configure", made.usage, ccache=made.ccache)


def _complete(
    kbuild: Kbuild, fragments: list[tuple[str, str]], base: Path
) -> tuple[Made, dict[str, str]]:
    """Merge fragments over ``base``, and let Kconfig complete it; return what was asked, too."""
    folder = kbuild.kdir / "fragments"
    folder.mkdir(exist_ok=True)
    asked: dict[str, str] = {}
    names = []
    for number, (name, text) in enumerate(fragments):
        path = folder / f"{number:02d}-{name}"
        is_own = name.endswith(".options")  # the profile's own, not a file of the user's
        written = quote(text, kbuild.tree.path) if is_own else text
        path.write_text(written, encoding="utf-8")
        names.append(f"{KDIR}/fragments/{path.name}")
        asked |= read_config(written)
    script = f"{SRC}/scripts/kconfig/merge_config.sh"
    kbuild.run([script, "-m", "-O", KDIR, f"{KDIR}/{base}", *names], "Merging the fragments")
    title = f"Configuring {_title(kbuild.tree, kbuild.ready)}"
    return kbuild.make(title, ["olddefconfig"]), asked


def _blockers(option: str, profile: Profile, kbuild: Kbuild, known: Values) -> list[str]:
    from rbuild.explain import blockers, explain  # noqa: PLC0415 - as in _refused

    try:
        found = explain(option, known, origins(profile, kbuild.tree))
    except KeyError:
        return []
    lines = [f"    {line}" for line in blockers(found)[:BLOCKERS_SHOWN]]
    return ["  what blocks it:", *lines] if lines else []


def _refused(refused: list[Any], profile: Profile, kbuild: Kbuild) -> NotGranted:
    """Explain what Kconfig didn't grant, with rust_is_available.sh's words if it is Rust."""
    from rbuild import kconfig  # noqa: PLC0415 - for an error only

    got = config_of(kbuild.kdir)
    known = kconfig.values_of(got, kconfig.read(kbuild.tree.path, profile.architecture))
    lines = []
    for one in refused:
        where, depends = locate(one.option, kbuild.tree.path)
        lines.append(str(type(one)(one.option, one.asked, one.got, where, depends)))
        lines += _blockers(one.option, profile, kbuild, known)
    if any(one.option == "RUST" for one in refused):
        job = kbuild.job(["rustavailable"])
        words = kbuild.ready.runtime.run(kbuild.ready.sandbox, job, check=False)
        lines += ["", "`make rustavailable` says:", *words.tail]
    count = "one option" if len(refused) == 1 else f"{len(refused)} options"
    first = next((one.option for one in refused if one.option == "RUST"), refused[0].option)
    is_own = profile.path.parent == data.folder("profiles")
    where = profile.name if is_own else str(profile.path)
    return NotGranted(
        f"Kconfig did not grant {count} that the profile {profile.name} asks for.",
        detail="\n".join(lines),
        hint=f"Change the fragments or options of {profile.path}, or what they depend on; "
        f"`rbuild kernel --profile {where} --explain {first}` walks the dependency.",
    )


def _add(name: str, made: Made, phase: Phase) -> Phase:
    usage, other = made.usage, phase.usage
    both = Usage(
        usage.wall_s + other.wall_s,
        usage.user_s + other.user_s,
        usage.system_s + other.system_s,
        max(usage.max_rss_bytes, other.max_rss_bytes),
    )
    uses = [one for one in (made.ccache, phase.ccache) if one is not None]
    return Phase(name, both, ccache=sum(uses, start=CacheUse()) if uses else None)


def _publish(
    entry: Entry,
    partial: Path,
    kbuild: Kbuild,
    phases: tuple[Phase, ...],
    objects: dict[str, int],
    *,
    sealed: bool = True,
    **more: Any,  # noqa: ANN401
) -> None:
    build = partial / "build"
    kbuild.session.store.publish(
        entry,
        partial,
        {
            "stage": Stage.PREPARED,
            "release": kernel_release(build),
            "config_sha256": sha256_file(build / ".config"),
            "phases": [phase.as_json() for phase in phases],
            "objects": objects,
            "environment": kbuild.ready.environment.name,
            "tree": kbuild.tree.key,
            "toolchain": dict(kbuild.ready.toolchain),
            **more,
        },
        sealed=sealed,
    )


def _most(before: Mapping[str, int], phase: str, made: Made) -> dict[str, int]:
    """Return the counts of objects with a phase's own, or the seed's where that is larger.

    A phase that started from a seed made only a part of what the next one may have to.
    """
    return {**before, phase: max(made.objects, before.get(phase, 0))}


def _expected(
    session: Session, profile: Profile, phase: str, configuration: str | None
) -> int | None:
    """Return how many objects a phase makes: as in a KDIR of the same configuration, or the hint.

    Another environment's makes as many.
    """
    known = [
        _objects(entry.metadata).get(phase)
        for entry in session.store.entries(Room.KDIRS)
        if configuration and (entry.metadata or {}).get("configuration") == configuration
    ]
    counts = [count for count in known if count]
    return max(counts) if counts else getattr(profile.objects, phase) or None


def _products(kdir: Kdir) -> list[Path]:
    """Return what a finished kernel build made: Image, device trees, modules.

    Kbuild's own lists tell which those are: a KDIR that began as a copy of another may have more.
    """
    image = kdir.image
    if not image.is_file():
        raise BuildFailed(f"make succeeded, but there is no {kdir.target.image_path}.")
    names = listed(kdir.path / "modules.order")
    modules = [outputs.named(kdir.path, name).with_suffix(".ko") for name in names]
    trees = [kdir.device_trees / name for name in kdir.profile.device_trees]
    if not trees:
        trees = _all_device_trees(kdir)
    return [image, *trees, *modules]


def _all_device_trees(kdir: Kdir) -> list[Path]:
    folder = kdir.device_trees
    names = folder / "dtbs-list"  # since Linux 6.12
    if names.is_file():
        return sorted(outputs.named(kdir.path, name) for name in listed(names))
    return sorted(folder.rglob("*.dtb"))


def _artefact(build: Path, path: Path) -> dict[str, Any]:
    return {
        "path": str(path.relative_to(build)),
        "sha256": sha256_file(path),
        "size_bytes": path.stat().st_size,
    }


def _is_built(kdir: Kdir) -> bool:
    """Tell whether all that the profile asks for was built and, cheaply, is still there."""
    if kdir.stage is not Stage.BUILT or list(kdir.targets) != kernel_targets(kdir.profile):
        return False
    try:
        return bool(kdir.artefacts) and all(
            (kdir.path / one["path"]).is_file()
            and (kdir.path / one["path"]).stat().st_size == one["size_bytes"]
            for one in kdir.artefacts
        )
    except OSError:  # a name that no file can have
        return False


def _title(tree: Tree, ready: Ready) -> str:
    return f"{tree.version} in {ready.environment.name}"
