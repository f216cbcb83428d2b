"""Modules: built against a KDIR, out-of-tree or in-tree, and checked before they are called good.

Sources are first brought into a folder of the Store's, where only what changed is written: the
user's folder stays as it was, and make rebuilds what it must.  A build whose inputs are those of
the last one isn't started at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbuild import data, folders, outputs, root, textfile
from rbuild.ccache import Share
from rbuild.console import visible
from rbuild.errors import BuildFailed, UsageError, ended_by_itself
from rbuild.export import copy
from rbuild.kbuild import Kbuild, Made, forget_the_last, listed
from rbuild.kept import Kept
from rbuild.kernel import Kdir, Stage, prepare_in_tree, profiles_with, provenance
from rbuild.profile import Driver, Kind
from rbuild.reproduce import SCRIPT, Recipe, write
from rbuild.root import Root
from rbuild.sandbox import MODULE, SRC
from rbuild.session import Phase, Session
from rbuild.source import IN_TREE_FOLDER
from rbuild.store import Entry, digest, read_json, remove_tree, sha256_file, write_json

if TYPE_CHECKING:
    from rbuild.symbols import Exports

NAMES = {Driver.RUST: "mfrc522_rust", Driver.C: "mfrc522", Driver.GLUE: "mfrc522_glue"}
"""The name of each driver's module, without .ko."""

PRODUCTS = re.compile(
    r".*\.(o|ko|mod|mod\.c|cmd|symvers|rlib)|modules\.order|\.tmp_.*|\.git|\.svn|"
    r"__pycache__"
)
"""What Kbuild or a version control system leaves in a module's folder: never an input."""

STATE = "state.json"
LEFT = "left.json"
"""Beside an output folder: the content of all files in it when make had last come to its end."""

SOURCES_MOST = 10_000
"""More files than this below a module's folder are a mistake in the path."""

EXTRA = ("KBUILD_MODPOST_WARN=1",)
"""Lets modpost only warn of a symbol that it doesn't know: ``check`` tells where it comes from."""

SYMBOLS_SHOWN = 20
"""How many symbols that a kernel lacks, or may lack, are named."""

NOT_A_MODULES = "PATH must be the module's own folder, not a folder above it."

SOURCE_MOST = 256 << 20
"""The bytes of the largest file that may be in a module's folder."""

SYMVERS_MOST = 64 << 20
"""The bytes of the largest Module.symvers: a whole distribution's kernel has 2 MiB."""


@dataclass(frozen=True)
class Built:
    """A .ko that was checked.

    ``symbols`` says against what its undefined symbols were checked: ``Module.symvers`` of a
    built kernel, or the ``source`` and its configuration where only a prepared KDIR is there, which
    doesn't tell of those that are ``undecided``.
    """

    path: Path
    sha256: str
    size_bytes: int
    vermagic: str
    license: str
    depends: str
    aliases: tuple[str, ...]
    symbols: str
    undecided: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the artefact as the command line's contract has it, with modinfo's fields."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "vermagic": self.vermagic,
            "license": self.license,
            "depends": self.depends,
            "aliases": list(self.aliases),
            "symbols_checked_against": self.symbols,
            "symbols_undecided": list(self.undecided),
        }


@dataclass(frozen=True)
class Result:
    """What one build of a module gave; an in-tree build has ``prepared`` a KDIR of its own."""

    modules: tuple[Built, ...]
    phase: Phase
    prepared: tuple[Phase, ...] = ()

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All that was done for the module alone."""
        return (*self.prepared, self.phase)


def driver_source(driver: Driver) -> Path:
    """Return the folder of one of our drivers."""
    return data.folder("module") / driver


def simulator_source() -> Path:
    """Return the folder of the simulated device."""
    return data.folder("module") / "sim"


@dataclass(frozen=True)
class Workplace:
    """Where a module is built: its sources (brought there by ``sync``), and make's call for it.

    ``origin`` is the user's folder, ``sources`` its copy, ``outputs`` where make puts what it
    builds.  ``kdir`` is what the .ko is checked against, ``root`` where links of ``origin`` may
    lead to, if that isn't the folder's own.
    """

    kdir: Kdir
    kbuild: Kbuild
    title: str
    origin: Path
    sources: Path
    outputs: Path
    targets: tuple[str, ...]
    only: tuple[str, ...] = ()
    module: Path | None = None
    root: Root | None = None

    def sync(self) -> dict[str, str]:
        """Bring the sources to where they are built; return the fingerprint of each."""
        return sync(self.origin, self.sources, self.only, self.root)

    def wipe(self) -> None:
        """Throw away all that make has built.

        In-tree sources stay: a Kconfig file that is new would make Kbuild configure anew, which
        is no part of building a driver.
        """
        if self.outputs.exists():
            remove_tree(self.outputs)

    def make(self) -> Made:
        """Call make; raises as ``Kbuild.make`` does."""
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - where work is begun

        try:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(_load_checks)
                return self.kbuild.make(self.title, self.targets, module=self.module, extra=EXTRA)
        except BuildFailed as error:
            if self.module is not None:
                # The files to mend, as an editor or a terminal can open them.
                error.hint = error.hint or _not_in_the_build(error.detail, self.origin)
                error.detail = with_own_paths(error.detail, self.origin)
            raise

    def reproducer(self, path: Path) -> Path | None:
        """Write the script that builds this without rbuild; return its path, if it can be."""
        session = self.kbuild.session
        recipe = Recipe(session.store.root, session.runtime, self.kdir.ready.sandbox)
        job = self.kbuild.job(self.targets, module=self.module, extra=EXTRA)
        files = list(_files(self.origin, self.only, self.root))
        if self.module is not None:
            lines = recipe.module(self.origin, files, job)
        else:
            target = f"{SRC}/{IN_TREE_FOLDER}"
            lines = recipe.in_tree(self.origin, files, self.kbuild.kdir, self.outputs, job, target)
        return write(recipe, self.title, session.line(), lines, path)

    def products(self) -> tuple[Built, ...]:
        """Return the modules that make has built, each checked."""
        if self.module is not None:
            found = _listed(self.outputs)
        else:
            found = [
                path for path in (self.kbuild.kdir / one for one in self.targets) if path.is_file()
            ]
        if not found:
            raise BuildFailed(
                f"{self.origin} was built, but made no module.",
                log=self.kbuild.session.log_path,
                hint="Its Kbuild or Makefile needs a line such as `obj-m += name.o`.",
            )
        exports = self._exports()
        if self._lacks_versions:
            self.kbuild.session.console.warn(
                "This kernel has CONFIG_MODVERSIONS and isn't built: the module has no versions of "
                "its symbols, and the kernel will refuse it. Run `rbuild kernel` with the same "
                "--profile and --env, then build the module again."
            )
        built = tuple(check(path, self.kdir, exports) for path in found)
        if undecided := sorted({name for one in built for name in one.undecided}):
            named = ", ".join(undecided[:SYMBOLS_SHOWN])
            self.kbuild.session.console.warn(
                f"The source doesn't tell whether this kernel exports {named}: run `rbuild kernel` "
                "with the same --profile and --env, then build the module again."
            )
        return built

    def _exports(self) -> Exports:
        """Return what the kernel exports, and the modules that are built together."""
        from rbuild import symbols  # noqa: PLC0415 - not where there is nothing to do

        own = _symvers(self.outputs / "Module.symvers")
        if self.kdir.stage is Stage.BUILT:
            return symbols.listed(own | _symvers(self.kdir.path / "Module.symvers"))
        console, tree = self.kbuild.session.console, self.kdir.tree
        if not symbols.is_known(tree):
            with console.step("Reading what the source exports, once", key=tree.version):
                symbols.index(tree)
        objects = symbols.objects(self.kbuild, self.kdir.entry.path / "objects")
        more = own | _of_crates(self.kdir)
        arch = self.kdir.profile.architecture
        return symbols.Exports(symbols.index(tree), objects, self.kdir.config, arch, more)

    @property
    def _lacks_versions(self) -> bool:
        """Whether modpost had no list of symbols from which to take their versions."""
        is_asked = self.kdir.config.get("MODVERSIONS") == "y"
        return is_asked and not (self.kbuild.kdir / "Module.symvers").is_file()


def _load_checks() -> None:
    """Load what products are checked with, while make runs."""
    from rbuild import elf, symbols  # noqa: F401, PLC0415 - not where there is nothing to do


IN_SANDBOX = re.compile(rf"(?<![\w./-]){MODULE}/(?P<name>[^\s:'\"]+)")
"""A file of a module's as its build names it."""


def with_own_paths(words: str, origin: Path) -> str:
    """Return a compiler's words with the module's files where the user has them."""

    def at_home(found: re.Match[str]) -> str:
        own = str(origin / found["name"])
        # os.path says of a name that no file can have that there is none.
        return visible(own) if _is_input(found["name"]) and os.path.lexists(own) else found[0]

    return IN_SANDBOX.sub(at_home, words)


def _is_input(name: str) -> bool:
    """Tell whether a file of that path in a module's folder is brought into its build.

    Otherwise the build's own file of that name, or none, is meant.
    """
    parts = Path(name).parts
    return ".." not in parts and not any(PRODUCTS.fullmatch(one) for one in parts)


def _not_in_the_build(words: str, origin: Path) -> str | None:
    """Return what to say of the first file of the user's that a build lacks, if it names one."""
    for found in IN_SANDBOX.finditer(words):
        own = origin / found["name"]
        if _is_input(found["name"]) or not os.path.lexists(own):
            continue
        place = visible(os.path.normpath(own))
        if ".." in Path(found["name"]).parts:
            return f"A build sees the module's folder only, not {place}: copy it into the folder."
        shipped = f": call it {visible(own.name)}_shipped" if own.suffix == ".o" else ""
        return f"{place} was not brought into the build, since Kbuild makes such files{shipped}."
    return None


def out_of_tree(
    kdir: Kdir, source: Path, folder: Path, session: Session, own: Root | None = None
) -> Workplace:
    """Return the place in ``folder`` where the module in ``source`` is built against a KDIR.

    Raises UsageError if ``source`` isn't the folder of a module.
    """
    _must_be_module(source)
    is_own = source.resolve().is_relative_to(data.folder("module").resolve())
    share = Share(provenance(kdir.profile, kdir.tree), writable=is_own)
    kbuild = Kbuild(session, kdir.ready, kdir.tree, kdir.path, share=share)
    build = folder / "build"
    title = f"Building {source.name} out-of-tree in {kdir.ready.environment.name}"
    return Workplace(
        kdir,
        kbuild,
        title,
        source,
        build,
        build,
        ("modules",),
        module=build,
        root=own or root.of(source),
    )


def in_tree(kdir: Kdir, output: Path, driver: Driver, overlay: Path, session: Session) -> Workplace:
    """Return the place where one of our drivers is built as a part of the tree.

    ``output`` is an in-tree KDIR's output directory, or a copy of it; the driver's .ko alone is
    asked for.
    """
    share = Share(provenance(kdir.profile, kdir.tree))
    kbuild = Kbuild(session, kdir.ready, kdir.tree, output, overlay, share=share)
    title = f"Building {NAMES[driver]} in-tree in {kdir.ready.environment.name}"
    target = f"{IN_TREE_FOLDER}/{driver}/{NAMES[driver]}.ko"
    return Workplace(
        kdir,
        kbuild,
        title,
        data.folder("module"),
        overlay,
        output / IN_TREE_FOLDER,
        (target,),
        only=IN_TREE_PARTS,
    )


def build_driver(kdir: Kdir, driver: Driver, kind: Kind, session: Session) -> Result:
    """Build one of our drivers in either way; raises as the two functions for that do."""
    if kind is Kind.IN_TREE:
        return build_in_tree(kdir, driver, session)
    return build_out_of_tree(kdir, driver_source(driver), session)


def build_out_of_tree(
    kdir: Kdir, source: Path, session: Session, own: Root | None = None
) -> Result:
    """Build the module in ``source``, a folder with a Kbuild or Makefile, against a KDIR.

    Links in it may lead to what is below ``own``, by default the folder's own root.  Raises
    UsageError if the folder isn't a module's, or has a link that leads elsewhere, BuildFailed with
    the compiler's words or with what is wrong with the .ko.
    """
    source = source.resolve()
    folder = place_of(kdir, source)
    place = out_of_tree(kdir, source, folder, session, own)
    return _build(place, kdir, folder, session)


def place_of(kdir: Kdir, source: Path) -> Path:
    """Return the Store's folder for the module in ``source``, a resolved path."""
    return kdir.entry.path / "modules" / f"{source.name}-{digest(str(source))}"


def build_in_tree(kdir: Kdir, driver: Driver, session: Session) -> Result:
    """Build one of our drivers as a part of the tree; raises as ``build_out_of_tree`` does."""
    overlay, own = in_tree_kdir(kdir, session)
    place = in_tree(kdir, own.path, driver, overlay, session)
    result = _build(place, own, own.entry.path / "modules" / driver, session)
    prepared = tuple(replace(one, name=f"{one.name}-in-tree") for one in own.phases)
    return replace(result, prepared=prepared)


def in_tree_kdir(kdir: Kdir, session: Session) -> tuple[Path, Kdir]:
    """Return the folder that stands in the tree for the driver, and the KDIR configured for it."""
    origin, overlay = data.folder("module"), kdir.entry.path / "modules" / "in-tree"

    def bring() -> None:
        sync(origin, overlay, IN_TREE_PARTS)

    return overlay, prepare_in_tree(kdir, origin, overlay, bring, session)


def _build(place: Workplace, kdir: Kdir, folder: Path, session: Session) -> Result:
    """Build what changed since the result in ``folder``; where nothing did, wait for no one."""
    script = folder / SCRIPT
    if (found := _unchanged(kdir.entry, folder, _inputs(kdir, place))) is not None:
        session.script = place.reproducer(script)
        return found
    with _alone(place, kdir, folder, session):
        inputs = _inputs(kdir, place)
        if (found := _unchanged(kdir.entry, folder, inputs)) is not None:
            session.script = place.reproducer(script)
            return found
        folder.mkdir(parents=True, exist_ok=True)
        session.script = place.reproducer(script)
        return _build_locked(place, kdir, inputs, folder)


def _alone(
    place: Workplace, kdir: Kdir, folder: Path, session: Session
) -> contextlib.AbstractContextManager[None]:
    """Return what keeps others from what a build writes: an external module's only its folder."""
    if place.module is None:
        return session.store.lock(kdir.entry)
    return session.store.reading(kdir.entry, folder)


def _build_locked(place: Workplace, kdir: Kdir, inputs: dict[str, Any], folder: Path) -> Result:
    # From here on the old result no longer holds, whatever becomes of the build.
    (folder / STATE).unlink(missing_ok=True)
    # Drivers in a tree share their output folder.
    left = (folder if place.module is not None else folder.parent) / LEFT
    # make goes by names and times: it goes on from what a make has left that came to its end, not
    # from what was damaged since, or from what a killed one has half written.
    if not _is_as_left(left, place.outputs):
        place.wipe()
    left.unlink(missing_ok=True)
    # What is built is what was copied, regardless of later edits to the user's files.
    copied = {**inputs, "files": place.sync()}
    with _writing(place, kdir):
        try:
            made = place.make()
        except BuildFailed as error:
            if ended_by_itself(error):
                _keep_as_left(left, place.outputs)
            raise
    _keep_as_left(left, place.outputs)
    return _remember(kdir.entry, folder, copied, place.products(), made)


@contextlib.contextmanager
def _writing(place: Workplace, kdir: Kdir) -> Iterator[None]:
    """Let an in-tree build write to its KDIR; an external module's only reads it."""
    if place.module is not None:
        yield
        return
    with place.kbuild.session.store.writing(kdir.entry) as was_open:
        if was_open:
            forget_the_last(kdir.path)
        yield


def _is_as_left(record: Path, folder: Path) -> bool:
    known = (read_json(record) or {}).get("files")
    return known is not None and known == outputs.content(folder)


def _keep_as_left(record: Path, folder: Path) -> None:
    write_json(record, {"files": outputs.content(folder)})


IN_TREE_PARTS = ("Kconfig", "Kbuild", *Driver)
"""What of ``module/`` an in-tree build needs."""


def check(path: Path, kdir: Kdir, exports: Exports) -> Built:
    """Return what a .ko says of itself, or raise BuildFailed if the kernel would refuse it.

    It must be of the right machine and vermagic, and each undefined symbol must be exported.
    """
    from rbuild.elf import module_info  # noqa: PLC0415 - not where there is nothing to do
    from rbuild.symbols import Answer  # noqa: PLC0415

    info = module_info(path)
    faults = []
    machine = kdir.ready.environment.target.elf.name
    if info.machine != machine:
        faults.append(f"it is for {info.machine}, not {machine}")
    if not (info.vermagic + " ").startswith(kdir.vermagic + " "):
        faults.append(f"its vermagic is {info.vermagic!r}, the kernel's {kdir.vermagic!r}")
    if not info.field("license"):
        faults.append("it has no MODULE_LICENSE")
    answers = {name: exports.find(name) for name in info.undefined}
    missing = [name for name, answer in answers.items() if answer is Answer.NO]
    if missing:
        faults.append("nothing exports " + ", ".join(missing[:SYMBOLS_SHOWN]))
    if faults:
        raise BuildFailed(
            f"{path.name} was built, but a kernel would refuse it: {'; '.join(faults)}.",
            detail="\n".join(_where_exported(missing[:SYMBOLS_SHOWN], kdir)),
        )
    return Built(
        path,
        sha256_file(path),
        path.stat().st_size,
        info.vermagic,
        info.field("license"),
        info.field("depends"),
        info.fields.get("alias", ()),
        "Module.symvers" if kdir.stage is Stage.BUILT else "source",
        tuple(name for name, answer in answers.items() if answer is Answer.UNKNOWN),
    )


def _where_exported(names: list[str], kdir: Kdir) -> Iterator[str]:
    """Yield, for each symbol that a kernel lacks, where it would come from."""
    from rbuild import symbols  # noqa: PLC0415 - not where there is nothing to do

    found = symbols.index(kdir.tree)
    for name in names:
        for site in found.sites(name)[:1]:
            line = f"{name} is exported by {site.file}"
            if option := symbols.option_off(kdir.tree.path, site.file, kdir.config):
                line += f", which needs CONFIG_{option}"
                if profiles := profiles_with(option, kdir.profile.architecture, kdir.tree):
                    line += f"; the profile {' or '.join(profiles)} has it"
            yield f"{line}."


def _of_crates(kdir: Kdir) -> frozenset[str]:
    """Return what Rust's crates export: a prepared KDIR has lists of it."""
    crates: set[str] = set()
    if kdir.config.get("RUST") != "y":
        # A KDIR that started from one with Rust still has its lists.
        return frozenset()
    for path in (kdir.path / "rust").glob("exports_*_generated.h"):
        crates |= set(
            re.findall(
                r"EXPORT_SYMBOL_RUST_GPL\((\w+)\)",
                textfile.read_text(path, limit=SYMVERS_MOST, decoding="replace", error=BuildFailed),
            )
        )
    return frozenset(crates)


def _listed(folder: Path) -> list[Path]:
    """Return the modules that make has just built in a folder, not those of builds before it."""
    order = folder / "modules.order"
    if not order.is_file():
        found = sorted(folder.rglob("*.ko"))
        return [outputs.named(folder, str(path.relative_to(folder))) for path in found]
    names = listed(order, root=f"{MODULE}/")
    return sorted({outputs.named(folder, name).with_suffix(".ko") for name in names})


def _symvers(path: Path) -> frozenset[str]:
    """Return the symbols of a Module.symvers (Documentation/kbuild/modules.rst, section 6)."""
    if not path.is_file():
        return frozenset()
    text = textfile.read_text(
        path,
        limit=SYMVERS_MOST,
        where="The build's list of symbols",
        decoding="replace",
        error=BuildFailed,
    )
    fields = (line.split("\t") for line in text.splitlines())
    return frozenset(line[1] for line in fields if len(line) > 1)


def _must_be_module(source: Path) -> None:
    if not source.is_dir():
        raise UsageError(f"{source} is not a folder.", hint="Name the folder of the module.")
    if not any((source / name).is_file() for name in ("Kbuild", "Makefile")):
        raise UsageError(
            f"{source} has neither a Kbuild nor a Makefile.",
            hint="A module's folder needs a Kbuild file with a line such as `obj-m += name.o`.",
        )
    if (source / "init/Kconfig").exists():
        raise UsageError(f"{source} is a kernel tree, not a module.")


def _files(source: Path, only: tuple[str, ...] = (), own: Root | None = None) -> Iterator[Path]:
    """Yield the input files below a folder, relative to it, in order.

    Links are followed; what is neither a file nor a folder, such as an editor's lock that links
    to nothing, is no input.  Raises UsageError for a link that leads out of ``own``.
    """
    own = own or root.of(source)
    count = visited = 0
    # Where each folder really is: a path of many links takes long to resolve.
    places = {source: source.resolve()}
    for folder, subfolders, names in os.walk(source, followlinks=True, onerror=_must_be_read):
        here = Path(folder)
        top = here == source
        visited += 1
        if visited > SOURCES_MOST:
            raise UsageError(f"{source} has more than {SOURCES_MOST} folders.", hint=NOT_A_MODULES)
        if folders.is_too_deep(here.relative_to(source).as_posix()):
            raise UsageError(f"{source} has folders {folders.TOO_DEEP}.", hint=NOT_A_MODULES)
        kept = sorted(n for n in subfolders if not PRODUCTS.fullmatch(n))
        kept = [n for n in kept if not top or not only or n in only]
        for name in kept:
            with contextlib.suppress(FileNotFoundError):
                places[here / name] = root.resolved(places[here] / name)
        found = [n for n in kept if here / n in places]
        subfolders[:] = [n for n in found if not _leads_out(here / n, places)]
        for name in subfolders:
            own.check(here / name, file=places[here / name])
        for name in sorted(names):
            if PRODUCTS.fullmatch(name) or (top and only and name not in only):
                continue
            _must_be_within(here / name, own)
            if not (here / name).is_file():
                continue
            count += 1
            if count > SOURCES_MOST:
                raise UsageError(
                    f"{source} has more than {SOURCES_MOST} files.", hint=NOT_A_MODULES
                )
            yield (here / name).relative_to(source)


def _must_be_within(path: Path, own: Root) -> None:
    """Raise UsageError for a link to anything that isn't below ``own``."""
    if path.is_symlink() and path.exists():
        with contextlib.suppress(FileNotFoundError):
            own.check(path)


def _must_be_read(error: OSError) -> None:
    """Raise UsageError for a folder that can't be read, but not for one that has gone."""
    if error.errno not in folders.VANISHED:
        raise UsageError(
            f"{str(error.filename)[:200]} can't be read: {error.strerror}.",
            hint="A module's folder must be readable as a whole.",
        ) from error


def _leads_out(folder: Path, places: Mapping[Path, Path]) -> bool:
    """Tell whether a linked folder is one of those that led to it, or a kernel's."""
    if not folder.is_symlink():
        return False
    place = places[folder]
    if any((place / name).exists() for name in ("init/Kconfig", "include/config")):
        return True
    return any(place == places.get(parent, parent) for parent in folder.parents)


def inputs_list(copy: Path) -> Path:
    """Return the file with the names of what ``sync`` has brought into a folder.

    It is beside the folder, where no build can write, since these names are removed.
    """
    return copy.with_name(f".{copy.name}-inputs")


def sync(
    source: Path, target: Path, only: tuple[str, ...] = (), own: Root | None = None
) -> dict[str, str]:
    """Make the inputs in ``target`` those of ``source``; what make built there stays.

    Links may lead to what is below ``own``, by default the folder's own root.  Returns the
    fingerprint of each input as it was copied.

    A file is written only if its content differs, and then with the time of now: whatever make
    has built from the old content is older.  What was built in a future that the clock has come
    back from would be newer: it is removed.
    """
    own = own or root.of(source)
    wanted = {str(path) for path in _files(source, only, own)}
    target.mkdir(parents=True, exist_ok=True)
    # A build that was killed may have left links, and folders that can't be entered.
    outputs.settle(target)
    listed = inputs_list(target)
    known = _read_names(listed)
    if known is None:
        # Nothing tells the inputs of before from what make built.
        folders.empty(target)
        known = frozenset()
    with folders.opened(target) as copy:
        # What is gone goes first: a folder may now stand where a file was.
        for name in sorted(known - wanted):
            folders.remove_below(copy, name)
        # If this is interrupted, the next sync must know of all that may be there.
        if known != known | wanted:
            _write_names(listed, known | wanted)
        brought = {name: _bring(source / name, copy, name, own) for name in sorted(wanted)}
    if any(is_new for is_new, _ in brought.values()):
        _forget_the_future(target, wanted)
    if known != wanted:
        _write_names(listed, wanted)
    return {name: fingerprint for name, (_, fingerprint) in brought.items() if fingerprint}


def _forget_the_future(target: Path, wanted: Collection[str]) -> None:
    """Remove what was built later than now: make would take it for newer than any change."""
    now = time.time()
    for visit in folders.walk(target):
        for entry in visit.files:
            status = visit.status(entry)
            if status is None or not stat.S_ISREG(status.st_mode) or status.st_mtime <= now:
                continue
            if visit.path(entry.name) in wanted:
                os.utime(entry.name, dir_fd=visit.descriptor, follow_symlinks=False)
            else:
                folders.remove_below(visit.descriptor, entry.name)


def _bring(new: Path, copy: int, name: str, own: Root) -> tuple[bool, str | None]:
    """Make a file's copy, by its path below an open folder, equal to it, unless it is.

    Tell whether it was written, and its fingerprint.  A file that has gone meanwhile is no input.
    """
    try:
        content, mode = _read(new, own)
    except FileNotFoundError:
        folders.remove_below(copy, name)
        return False, None
    fingerprint = _fingerprint(content, mode)
    old = folders.read_below(copy, name)
    if old is not None and old == (content, mode):
        return False, fingerprint
    if old is not None and old[0] == content:
        with folders.parent_of(copy, name) as (parent, last):
            folders.chmod(parent, last, mode)
        return False, fingerprint
    folders.write_below(copy, name, content, mode)
    return True, fingerprint


def _read(path: Path, own: Root) -> tuple[bytes, int]:
    """Return an input's content and mode, both of the very file that lies below ``own``.

    Raises UsageError if it doesn't lie there or can't be read, FileNotFoundError if it has gone.
    """
    try:
        with own.open(path) as file:
            mode = os.fstat(file.fileno()).st_mode & 0o755
            return textfile.read_all(file, SOURCE_MOST), mode
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror or error}.") from error


def _read_names(path: Path) -> frozenset[str] | None:
    """Return the names of the inputs that a sync has left; None if that isn't known."""
    return folders.names_of((read_json(path) or {}).get("files"))


def _write_names(path: Path, names: Collection[str]) -> None:
    write_json(path, {"files": sorted(names)})


def _inputs(kdir: Kdir, place: Workplace) -> dict[str, Any]:
    """Return all that decides what a build makes."""
    source = place.origin
    own = place.root or root.of(source)
    files: dict[str, str] = {}
    for path in _files(source, place.only, own):
        # What an editor has there for a moment may be gone.
        with contextlib.suppress(FileNotFoundError):
            files[str(path)] = _fingerprint(*_read(source / path, own))
    return {
        "kdir": kdir.entry.name,
        "created": (kdir.entry.metadata or {}).get("created"),
        # What symbols are checked against: more is known of a kernel once it is built.
        "checked": [place.kdir.entry.name, place.kdir.stage],
        "files": files,
    }


def _fingerprint(content: bytes, mode: int) -> str:
    """Return what identifies an input: its content, and whether it can be run."""
    found = hashlib.sha256(content).hexdigest()
    return f"{found} x" if mode & 0o100 else found


def _unchanged(entry: Entry, work: Path, inputs: dict[str, Any]) -> Result | None:
    """Return the last build's result if its inputs were these and its products are intact."""
    state = read_json(work / STATE)
    if state is None or state.get("inputs") != inputs:
        return None
    kept = Kept(state)
    try:
        modules = tuple(_built(one, entry) for one in kept.parts("modules"))
        if not all(one.path.is_file() and sha256_file(one.path) == one.sha256 for one in modules):
            return None
        return Result(modules, Phase.from_json(kept.part("phase").data))
    except (ValueError, OSError):  # what was kept is broken, or names no file at all
        return None


def _built(kept: Kept, entry: Entry) -> Built:
    """Return a module as ``_remember`` kept it; raise ValueError if that is broken."""
    return Built(
        kept.path("path", entry),
        kept.text("sha256"),
        kept.count("size_bytes"),
        kept.text("vermagic"),
        kept.text("license"),
        kept.text("depends"),
        kept.texts("aliases"),
        kept.text("symbols"),
        kept.texts("undecided"),
    )


def _remember(
    entry: Entry, work: Path, inputs: dict[str, Any], modules: tuple[Built, ...], made: Made
) -> Result:
    phase = Phase("module", made.usage, ccache=made.ccache)
    root = entry.path
    kept = [{**vars(one), "path": str(one.path.relative_to(root))} for one in modules]
    write_json(work / STATE, {"inputs": inputs, "modules": kept, "phase": phase.as_json()})
    return Result(modules, phase)


def export(modules: tuple[Built, ...], folder: Path) -> list[Path]:
    """Copy modules into a folder of the user's, as ``export.copy`` does; return where they are."""
    return copy((one.path for one in modules), folder)
