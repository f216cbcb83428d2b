"""What is fuzzed: one function each, that gives bytes to rbuild as a disk or a program would.

A function raises what rbuild raises: an RbuildError is a refusal, anything else is a fault.  What
was accepted is used, too, since it is there that a wrong type would come out.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any
from unittest import mock

from rbuild.bench import compare, stats
from rbuild.bench import report as words
from rbuild.bench.result import Report
from rbuild.board.deploy import board
from rbuild.board.deploy import config as config_txt
from rbuild.board.deploy import machine as board_machine
from rbuild.board.deploy.remote import OutputParser, Remote
from rbuild.boot import console, qemu, tap, trace
from rbuild.cache import gc, integrity, inventory
from rbuild.cache.directory import Cache
from rbuild.cache.entry import METADATA, Entry, EntryKind
from rbuild.devicetree import fdt, overlay, overlay_parameters
from rbuild.errors import ProcessFailed, RbuildError
from rbuild.ide import project
from rbuild.kernel import build, identity, kbuild, prepare, reuse
from rbuild.kernel import config as kconfigs
from rbuild.kernel import kdir as kdirs
from rbuild.kernel.kconfig import explain, explanation, parser, values
from rbuild.kernel.products import kernel_release
from rbuild.matrix import report as matrix
from rbuild.matrix import task
from rbuild.matrix.plan import Build
from rbuild.module import build as module_build
from rbuild.module import check, workplace
from rbuild.provision import apt, rootfs
from rbuild.provision.rootfs import entry_of
from rbuild.sandbox.context import BuildContext
from rbuild.sandbox.docker import manifest, synced, volumes
from rbuild.sandbox.docker.archive import header
from rbuild.sandbox.docker.manifest import Item, Type
from rbuild.sandbox.docker.runtime import Docker
from rbuild.sandbox.docker.synced import SyncedVolume
from rbuild.source import fetch, patches, resolve, tree
from rbuild.source.tree import Tree
from rbuild.specs import architecture, config, environment, profile
from rbuild.specs.architecture import machine
from rbuild.ui import estimates
from rbuild.ui.console import Console
from rbuild.ui.step import Step
from rbuild.util import process
from rbuild.util.disk import DiskUse
from rbuild.util.elf import machine as elf_machine
from rbuild.util.elf import module_info, section_digests
from rbuild.util.hashes import sha256_file
from rbuild.util.host import boot_id

from .mutate import JSON, YAML

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CORPUS = HERE / "corpus"

Try = Callable[[bytes], None]
"""Gives one input to rbuild."""


@dataclass(frozen=True)
class Target:
    """One thing that reads what others wrote.

    ``seeds`` are real inputs; ``how`` says how they are changed: as ``bytes``, as ``text``, as
    ``data`` (JSON) or as ``yaml`` (both).  ``prepared`` takes an empty folder and returns what
    tries an input.  ``share`` is how many of all cases are this target's, compared with others.
    """

    name: str
    prepared: Callable[[Path], Try]
    seeds: Callable[[], list[bytes]]
    how: str
    words: tuple[str, ...] = ()
    share: float = 1.0


def corpus(*names: str) -> list[bytes]:
    """Return files of the corpus."""
    return [(CORPUS / name).read_bytes() for name in names]


def store_in(folder: Path) -> Cache:
    """Return a cache that nobody hears."""
    return Cache(folder, Console(verbosity=-1, out=_nowhere(), err=_nowhere()))


def _nowhere() -> IO[str]:
    return Path(os.devnull).open("w", encoding="utf-8")


# YAML.


def _profiles() -> list[bytes]:
    found = [path.read_bytes() for path in sorted((ROOT / "profiles").glob("*.yaml"))]
    more = b"""\
name: mine
source:
  - {directory: ../linux}
  - {debian: "linux-source-6.*", suite: trixie-backports}
  - {git: https://example.org/linux.git, ref: v6.12}
config:
  base: base.config
  fragments: [a.config]
  options: {SPI: y, NR_CPUS: 4, RUST: yes, LOCALVERSION: -x}
driver: glue
kind: in-tree
objects: {prepare: 100, kernel: 1000}
"""
    return [*found, more]


def of_profile(folder: Path) -> Try:
    path = folder / "profile.yaml"
    for one in (*(ROOT / "profiles").glob("*.config"), Path("a.config"), Path("base.config")):
        (folder / one.name).write_text("CONFIG_SPI=y\n")

    def try_it(content: bytes) -> None:
        path.write_bytes(content)
        found = profile.load(str(path))
        for one in found.source:
            str(one)
            if one.directory is not None:
                fetch._directory(found, one)
        identity.base_config(found)
        found.config.as_fragment()
        found.fragments()

    return try_it


def _definitions() -> list[bytes]:
    small = b"""\
name: small
suite: trixie
architecture: host
target: arm64
packages: [make, clang-19]
llvm: -19
variables: {A: b}
mount_points: ["/usr/lib/{triplet}"]
"""
    hybrid = b"""\
name: mixed
base: "@@/chroot.yaml"
native: "@@/cross.yaml"
level: most
levels:
  least: {programs: [make]}
  most: {folders: ["/usr/lib/llvm-19"], programs: [clang]}
"""
    variant = b"""\
base: "@@/chroot.yaml"
emulator: [trixie, sid]
emulated_variables: {QEMU_CPU: max}
"""
    extended = b'extends: chroot\nname: more\nmore_packages: [gdb]\nbase: "@@/self.yaml"\n'
    return [
        small,
        hybrid,
        hybrid,
        variant,
        extended,
        b"extends: self\nname: x\n",
        *small_rootfses(),
    ]


def small_rootfses() -> list[bytes]:
    names = ("cross", "chroot", "cross-armhf", "hybrid-armhf")
    return [(ROOT / "rootfs" / f"{name}.yaml").read_bytes() for name in names]


def of_environment(folder: Path) -> Try:
    path = folder / "self.yaml"
    small = "suite: trixie\npackages: [make]\n"
    (folder / "cross.yaml").write_text(f"name: cross\narchitecture: host\ntarget: arm64\n{small}")
    (folder / "chroot.yaml").write_text(f"name: chroot\narchitecture: arm64\n{small}")
    place = store_in(folder / "store")

    def try_it(content: bytes) -> None:
        path.write_bytes(content.replace(b"@@", os.fsencode(folder)))
        found = environment.load(str(path))
        for part in found.rootfses:
            entry_of(part, place)
        str((found.builder, found.target, found.llvm, found.variables, found.emulated))

    return try_it


def _machines() -> list[bytes]:
    folders = (ROOT / "profiles/machines", ROOT / "rootfs/architectures")
    return [path.read_bytes() for folder in folders for path in sorted(folder.glob("*.yaml"))]


def of_machine(folder: Path) -> Try:
    path = folder / "machine.yaml"

    def try_it(content: bytes) -> None:
        path.write_bytes(content)
        str(machine(str(path), "arm64"))

    return try_it


def _configurations() -> list[bytes]:
    return [
        b"profile: slim\nenvironment: hybrid:compilers\ndriver: c\njobs: 4\nccache: true\n",
        b"# mine\ncache_dir: ~/big/cache\ndocker_host: ssh://me@there\nssh: ssh -p 22\n",
        b"profile: ./mine.yaml\nmemory: 4g\ncpus: 1.5\nruntime: docker\nruns: 5\nwarmup: 1\n",
        b"machine: ~/machines/pi.yaml\nscheduler: tcp://there:8786\nenvironment: ../e.yml\n",
    ]


def of_config(folder: Path) -> Try:
    path = folder / "rbuild.yaml"

    def try_it(content: bytes) -> None:
        path.write_bytes(content)
        layer = config.load(path, config.Scope.USER)
        json.dumps({name: str(one) for name, one in config.resolved([layer]).items()})
        config.load(path, config.Scope.PROJECT)

    return try_it


# The cache.

KEPT = ("tree.json", "tree-patched.json", "rootfs.json", "kdir.json", "guest.json")


def of_metadata(folder: Path) -> Try:
    """Give each room an entry of the same broken metadata."""
    place = store_in(folder / "store")
    context = BuildContext("fuzz", place, SimpleNamespace(name="bwrap"))  # type: ignore[arg-type]
    shared = folder / "entry"
    (shared / "src").mkdir(parents=True)
    (shared / "build").mkdir()
    entries = {kind: place.entry(kind, "slim-x", "0") for kind in EntryKind}
    for entry in entries.values():
        entry.path.parent.mkdir(parents=True)
        entry.path.symlink_to(shared)
    kernel = identity.Kernel(profile.load("slim"), _tree(folder), ready_for(None), context)
    kept = json.loads((CORPUS / "kdir.json").read_text())
    asked = reuse.Request(kept["request"]["compatible_with"], {"SPI": "y"}, kept["configuration"])

    def try_it(content: bytes) -> None:
        (shared / METADATA).write_bytes(content)
        if (found := tree.find(entries[EntryKind.TREES], place.use)) is not None:
            patches.nearest_series(found.version, ["6.12"])
            f"{found.date:%Y}{found.source}".encode("utf-8", "surrogateescape")
            ", ".join(found.patches)
        if (made := rootfs._found(entries[EntryKind.ROOTFS], place)) is not None:
            str(sorted(made.packages.items()))
            f"{made.seconds + made.created:.2f}"
        if (kdir := kdirs.find(kernel, entries[EntryKind.KDIRS])) is not None:
            build._is_built(kdir)
            qemu.needed_modules((), kdir)
            json.dumps([one.as_json() for one in kdir.phases])
            f"{kdir.release} {kdir.config_sha256}".split()
        reuse.nearest(asked, place)
        kdirs.expected_objects(kernel, "kernel", kept["configuration"])
        kdirs.expected_objects(kernel, "prepare", kept["configuration"])
        resolve._newest("linux-*", resolve._in_store("trixie-backports", place))
        synced.synced_volume(place, entries[EntryKind.TREES].path / "src", writable=False)
        for entry in entries.values():
            gc.age_s(entry)
            row = inventory.row_of(entry, DiskUse())
            f"{row['age_s']:.0f}"
            " ".join([row["name"], row["state"]])
            if (recorded := entry.integrity) is not None:
                integrity.verify_quick(entry.path, recorded)
        place.release()

    return try_it


def _states() -> list[bytes]:
    state, other = (json.loads(one) for one in corpus("state.json", "overlay-state.json"))
    for one in (*state["modules"], *other["overlays"]):
        one |= {"path": PRODUCT, "sha256": sha256_file(CORPUS / PRODUCT)}
    other["inputs"] = state["inputs"]
    both = {**state, "overlays": other["overlays"]}
    kept = [json.dumps(one).encode() for one in (state, other, both)]
    start = json.loads((CORPUS / "configured.json").read_text()) | {"boot": boot_id()}
    kept.append(json.dumps(start).encode())
    return [*kept, *corpus("package-note.json", "estimates.json"), ENGINES_SEED]


PRODUCT = "Makefile"
"""A file of the corpus that the records of builds name."""

ENGINES_SEED = json.dumps({f"here {os.getuid()}": {"shares_files": True}}).encode()


def of_state(folder: Path) -> Try:
    """Try the small files beside entries: states, marks, answers, estimates, engines."""
    place = store_in(folder / "store")
    path = folder / "store" / "state.json"
    path.parent.mkdir()
    entry = Entry(EntryKind.KDIRS, "x", path.parent)
    shutil.copyfile(CORPUS / PRODUCT, path.parent / PRODUCT)
    others = (prepare.CONFIGURED, estimates.FILE, "engines.json")
    for name in others:
        (path.parent / name).symlink_to(path)
    inputs = json.loads((CORPUS / "state.json").read_text())["inputs"]
    names = [*json.loads((CORPUS / "estimates.json").read_text())["steps"], "x", ""]
    engine = Docker(place)
    engine.__dict__["engine_id"] = "here"

    def try_it(content: bytes) -> None:
        path.write_bytes(content)
        if (built := module_build._unchanged(entry, path.parent, inputs)) is not None:
            json.dumps([one.as_json() for one in built.modules])
            json.dumps(built.phase.as_json())
            ",".join([one.depends for one in built.modules])
        if (compiled := overlay._unchanged(entry, path.parent, inputs)) is not None:
            json.dumps([one.as_json() for one in compiled.overlays])
        if (start := prepare._started(path.parent, clone=True)) is not None:
            json.dumps([one.as_json() for one in start.phases])
            max(start.objects.get("prepare", 0), 1)
        with mock.patch.object(resolve.time, "time", lambda: 1795718094.0):
            str(resolve._remembered(path))
        learned = estimates.Estimates(path.parent)
        for name in names:
            if (known := learned.of(name)) is not None:
                known.left_s(1.0, 1, 2)
        with mock.patch.object(Docker, "_shares_files", lambda *_: True):
            engine._transport("image", "linux/amd64")

    return try_it


# Benchmarks and matrices.


def _benches() -> list[bytes]:
    found = []
    for name in ("levers-tmpfs", "kernel", "scaling"):
        data = json.loads((ROOT / f"docs/bench/{name}.json").read_text())
        data["rows"] = data["rows"][:2]
        for row in data["rows"]:
            row["samples"] = row["samples"][:2]
            for one in row["samples"]:
                one["phases"], one["products"] = one["phases"][:1], one["products"][:1]
        data["environments"] = data["environments"][:1]
        for one in data["environments"]:
            one["toolchain"] = dict(list(one["toolchain"].items())[:2])
            one["phases"] = one["phases"][:1]
        data["identity"], data["log_tail"] = data["identity"][:1], data["log_tail"][:2]
        found.append(json.dumps(data).encode())
    return found


class _Plain(Console):
    """A console whose tables are quick: what a table is given must be text."""

    def table(self, title: str, columns: Any, rows: Any) -> str:
        return "\n".join([title, "|".join(columns), *("|".join(row) for row in rows)])


@contextmanager
def _few_draws() -> Iterator[None]:
    """Let the bootstrap draw seldom: its figures don't matter here, its time does."""
    before, stats.DRAWS = stats.DRAWS, 10
    try:
        yield
    finally:
        stats.DRAWS = before


def of_bench(folder: Path) -> Try:
    path, good = folder / "bench.json", folder / "good.json"
    good.write_bytes(_benches()[0])
    now = compare.load(good)
    console = _Plain(out=_nowhere(), err=_nowhere())

    def show(report: Report) -> None:
        found = compare.compare(report, now)
        compare.table(found, console)
        compare.failures(found, 0.1)
        json.dumps(found.as_json())
        words.tables(report, console)
        words.markdown(report)
        words.csv(report)
        json.dumps(report.model_dump(mode="json"))

    def try_it(content: bytes) -> None:
        path.write_bytes(content)
        with _few_draws():
            show(compare.load(path))

    return try_it


def _answers() -> list[bytes]:
    result = {
        "command": "module",
        "artefacts": [{"path": "/x/mfrc522.ko", "sha256": "0" * 64, "size_bytes": 1}],
        "phases": [json.loads((CORPUS / "kdir.json").read_text())["phases"][0]],
        "toolchain": {"make": "4.4"},
        "kernel_release": "6.12.118",
        "runtime": "bwrap",
    }
    failed = {"error": "It failed.", "hint": None, "exit_code": 1, "log": None}
    said = b"  CC [M]  /module/a.o\nwarning: x\n"
    return [said + json.dumps(one, indent=2).encode() + b"\n" for one in (result, failed)]


def of_answer(folder: Path) -> Try:
    """Try what an rbuild that builds a part of a matrix prints."""
    del folder
    build = mock.Mock(Build)
    build.as_json.return_value = {}
    where = mock.Mock()
    where.load_before = 0.5

    def try_it(content: bytes) -> None:
        log, result = task._parted(content.decode("utf-8", "replace"))
        task._end(log)
        for code in (0, 1):
            row = matrix.Row(build, task.Outcome(code, result, log, "here", where))
            json.dumps([row.as_json(), row.fresh_s, row.comparable_s, row.checksums, row.why])

    return try_it


# What a build says and leaves.


@dataclass
class _Makes:
    """A runtime in which make prints what it is told to."""

    name: str = "bwrap"
    content: bytes = b""
    code: int = 0

    def run(self, _: Any, job: Any, **more: Any) -> Any:
        tail = []
        for line in lines_of(self.content):
            tail.append(line)
            if more.get("log") is not None:
                more["log"].write(line + "\n")
            if more.get("on_line") is not None:
                more["on_line"](line)
        if self.code:
            raise ProcessFailed(("make",), self.code, tuple(tail))
        usage = process.Usage(1.0, 1.0, 1.0, 1)
        return process.Completed(("make",), 0, usage, tuple(tail))


def lines_of(content: bytes, ends: bytes = b"\n") -> list[str]:
    """Return a program's lines as rbuild hears them: through a pipe."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as out:
        with os.fdopen(writer, "wb") as into:
            into.write(content)
        return list(process._lines(out, process.NO_LIMITS, ends))


def ready_for(runtime: _Makes | None) -> Any:
    """Return an environment that nobody enters."""
    where = environment.load("cross")
    found = SimpleNamespace(environment=where, runtime=runtime, sandbox=None, toolchain={})
    found.rootfs_keys, found.inputs = (), {}
    return found


def _tree(folder: Path) -> Tree:
    date = datetime(2026, 1, 1, tzinfo=UTC)
    return Tree(folder, "linux-6.12-0", "linux", "6.12.118", date, (), cached=True)


def of_kbuild(folder: Path) -> Try:
    runtime = _Makes()
    place = store_in(folder / "store")
    context = BuildContext("fuzz", place, runtime)  # type: ignore[arg-type]
    # No file grows from case to case.
    context.log = lambda: nullcontext(_nowhere())  # type: ignore[method-assign]
    where = kbuild.Kbuild(context, ready_for(runtime), _tree(folder), folder / "kdir")

    def try_it(content: bytes) -> None:
        runtime.content, runtime.code = content, (0, 2, -9, 137)[len(content) % 4]
        where.make("Building", ["all"], expected=20)

    return try_it


KCONFIG = b"""\
mainmenu "Linux"
config CC_OK
\tdef_bool $(cc-option,-fx)
config SPI
\tbool "SPI" if EXPERT && !(ARM || X86)
\tdepends on HAS_IOMEM && (RUST=y || CLANG_VERSION >= 190000)
\tselect CRC if SPI
\thelp
\t  Words.
if SPI
config SPI_X
\ttristate "X"
\tdefault m if RUST != "n"
endif
menu "A"
\tvisible if SPI
\tdepends on !CC_OK
choice
config ONE
\tbool "one"
config TWO
\tbool "two"
endchoice
endmenu
source "arch/$(SRCARCH)/Kconfig"
"""


def of_kconfig(folder: Path) -> Try:
    path = folder / "Kconfig"

    def try_it(content: bytes) -> None:
        path.write_bytes(content)
        options = kconfigs.read_config(content.decode("utf-8", "replace"))
        known = values.values_of({"SPI": "n", **options}, parser.read(folder, "arm64"))
        asked = [explanation.Origin("a.config", "CONFIG_SPI_X=m\n# CONFIG_ONE is not set\n")]
        for name in ("SPI", "SPI_X", "ONE"):
            if name in known.kconfig.options:
                found = explain.explain(name, known, asked)
                json.dumps(found.as_json())
                explanation.blockers(found)
        kconfigs.locate("SPI", folder)

    return try_it


def of_outputs(folder: Path) -> Try:
    """Try what a build leaves: the lists, the configuration, the release, the version."""
    (folder / "include/config").mkdir(parents=True)
    path = folder / "Makefile"
    names = ("Module.symvers", "modules.order", ".config", "include/config/kernel.release")
    for name in names:
        (folder / name).symlink_to(path)
    entry = SimpleNamespace(path=folder)
    (folder / "build").symlink_to(folder)
    kernel = identity.Kernel(profile.load("slim"), _tree(folder), ready_for(None), None)  # type: ignore[arg-type]
    kdir = kdirs.Kdir(kernel, entry, kdirs.Stage.BUILT, "", "", ())  # type: ignore[arg-type]
    kdir.image.parent.mkdir(parents=True)
    kdir.image.touch()

    def try_it(content: bytes) -> None:
        path.write_bytes(content)
        check.read_symvers(folder / "Module.symvers")
        str(kdir.vermagic)
        each(products, version, partial(kernel_release, folder))

    def products() -> None:
        for made in (*workplace._listed(folder), *build._products(kdir)):
            assert os.path.normpath(made).startswith(f"{folder}/"), made

    def version() -> None:
        found = tree.kernel_version(folder)
        patches.nearest_series(found, ["6.12", "7.3"])
        assert place.entry(EntryKind.TREES, found, "0").path.parent == folder / "trees"

    place = store_in(folder)
    return try_it


def each(*reads: Callable[[], object]) -> None:
    """Call each, also after one that refuses; raise the first refusal if all refuse."""
    refusals = []
    for read in reads:
        try:
            read()
        except RbuildError as error:
            refusals.append(error)
    if len(refusals) == len(reads):
        raise refusals[0]


def of_status(folder: Path) -> Try:
    """Try dpkg's status file, and versions that apt names."""
    (folder / "var/lib/dpkg").mkdir(parents=True)
    path = folder / "var/lib/dpkg/status"

    def try_it(content: bytes) -> None:
        path.write_bytes(content)
        for version in rootfs.installed(folder).values():
            apt.version_key(version)
            rootfs.same_version(version, "1")

    return try_it


def _described() -> list[bytes]:
    clang = "clang -c -o x.o -I/src/include -mabi=lp64 /module/x.c"
    commands = [{"directory": "/kdir", "file": "/module/x.c", "command": clang}]
    crates = [
        {"display_name": "core", "root_module": "/usr/lib/core.rs", "cfg": [], "deps": []},
        {"display_name": "d", "root_module": "/src/drivers/d.rs", "cfg": ["A"], "deps": [{}]},
    ]
    both = {"commands": commands, "project": {"sysroot": "/usr", "crates": crates}}
    both["cmd"] = "savedcmd_x.o := rustc --cfg=A --cfg B /module/x.rs ; true"  # type: ignore[assignment]
    return [json.dumps(both).encode()]


def of_editors(folder: Path) -> Try:
    """Try what the kernel's own scripts write for editors, and how Kbuild calls rustc."""
    (folder / "x.rs").touch()
    places = project.Places({"/src": [folder], "/module": [folder], "/kdir": [folder]}, folder)

    def try_it(content: bytes) -> None:
        try:
            both = json.loads(content)
            parts = [json.dumps(both[key]).encode() for key in ("commands", "project")]
            parts.append(str(both["cmd"]).encode("utf-8", "replace"))
        except (ValueError, LookupError, TypeError, RecursionError):
            parts = [content] * 3
        for name, part in zip((project.COMMANDS, project.PROJECT, ".x.o.cmd"), parts, strict=True):
            (folder / name).write_bytes(part)
        for name in (project.COMMANDS, project.PROJECT):
            project._is_ours(folder / name, place)
        json.dumps(asdict(project.understood(folder, folder, places, has_rust=True)))

    place = store_in(folder / "store")
    return try_it


# Guests and boards.


def of_console(folder: Path) -> Try:
    del folder
    step = Step("Testing")

    def try_it(content: bytes) -> None:
        listener = console.Listener()
        for line in lines_of(content):
            listener.hear(line, step)
        report = listener.tap.report()
        (*listener.verdict(), *console._failed(report))
        listener.end()
        for line in (line for lines in listener.reports.values() for line in lines):
            [trace._key(match) for match in trace.FRAME.finditer(line)]
        tap.write(report)
        step.far()

    return try_it


def of_lines(folder: Path) -> Try:
    del folder

    def try_it(content: bytes) -> None:
        for ends in (b"\n", b"\r\n"):
            found = lines_of(content, ends)
            assert all(len(line) <= process.MAX_LINE for line in found)
            "\n".join(found).encode()

    return try_it


CONFIG_TXT = b"""\
# For more options see the documentation
dtparam=spi=on
[pi4]
arm_boost=1
[all]
dtoverlay=mfrc522,int_pin=24
os_prefix=rbuild/
"""


def _config_txts() -> list[bytes]:
    block = config_txt.with_block(CONFIG_TXT.decode(), ["dtoverlay=x", "dtparam=i2c=on"])
    return [CONFIG_TXT, block.encode(), CONFIG_TXT.replace(b"\n", b"\r\n")]


def of_config_txt(folder: Path) -> Try:
    del folder
    lines = ["os_prefix=rbuild/", "dtparam=spi=on", "dtoverlay=mfrc522"]

    def try_it(content: bytes) -> None:
        text = content.decode("utf-8", "surrogateescape")
        new = config_txt.with_block(text, lines)
        config_txt.with_block_of(new, text)
        config_txt.with_block_of(text, new)
        config_txt.difference(text, new, "/boot/config.txt")
        for name in ("os_prefix", "dtoverlay", ""):
            config_txt.current(text, name)
        # Again is the same: lines don't pile up.
        assert config_txt.with_block(new, lines) == new

    return try_it


BOARD = b"""\
Welcome!
rbuild: uid 0
rbuild: release 6.12.47+rpt-rpi-v8
rbuild: machine aarch64
rbuild: bits 32
rbuild: page_size 4096
rbuild: compatible raspberrypi,4-model-b brcm,bcm2711
rbuild: elf 7f454c460101010000000000000000000200280001000000
rbuild: include aW5jbHVkZSBhCltwaTRdCmR0b3ZlcmxheT14Cg== a
rbuild: vermagic 6.12.47+rpt-rpi-v8 SMP preempt mod_unload modversions aarch64
rbuild: boot /boot/firmware
rbuild: config ZHRwYXJhbT1zcGk9b24Kb3NfcHJlZml4PXgvCg==
rbuild: overlays overlays/
rbuild: modules 6.12.47+rpt-rpi-v8
rbuild: update mfrc522.ko
rbuild: backup 20261127-010203 done
rbuild: backup 20261127-010204 begun
rbuild: left .rbuild-incoming
rbuild: boot_free 123456789
rbuild: modules_free 123456789
"""


def of_board(folder: Path) -> Try:
    """Try what a board answers when it is looked at."""
    del folder
    hosts = (Remote("pi@pi"), Remote("pi@pi", root="/mnt"))
    target = architecture.of_kernel("arm64")

    def try_it(content: bytes) -> None:
        ear = OutputParser(lambda _: None)
        for line in lines_of(content, b"\r\n"):
            ear(line)
        for there in hosts:
            found = board._board(there, "", ear.answer)
            str((found.overlays, found.boot_free + found.modules_free))
            config_txt.with_block(found.config, ["dtoverlay=x"], found.around)
            board_machine.must_suit(found, target, whole=True)

    return try_it


# Binary formats.


def _elves() -> list[bytes]:
    make = runpy.run_path(str(ROOT / "tests/fakes/bwrap"))["elf"]
    info = {"vermagic": "6.12.118 SMP preempt mod_unload aarch64", "license": "GPL", "depends": ""}
    return [make(modinfo=info, undefined=["_printk", "kfree"]), make(0x28, info), make()]


def of_elf(folder: Path) -> Try:
    path = folder / "module.ko"

    def try_it(content: bytes) -> None:
        path.write_bytes(content)
        each(*(partial(read, path) for read in (elf_machine, section_digests, module_info)))

    return try_it


def _device_trees() -> list[bytes]:
    cell = b"\0\0\0\1"
    device = fdt.Node({"compatible": b"nxp,mfrc522\0", "reg": cell, "phandle": cell, "int": cell})
    fragment = fdt.Node(
        {"target-path": b"/soc/spi\0"}, {"__overlay__": fdt.Node({}, {"reader@0": device})}
    )
    given = fdt.Node({"int_pin": cell + b"int:0\0", "off": b"\0\0\0\0-0\0"})
    root = fdt.Node(
        {"compatible": b"brcm,bcm2835\0"},
        {"fragment@0": fragment, "__overrides__": given, "__fixups__": fdt.Node({"gpio": b"x\0"})},
    )
    base = fdt.Node({"model": b"x\0"}, {"soc": fdt.Node({}, {"spi": device})})
    return [fdt.pack(root), fdt.pack(base)]


def of_device_tree(folder: Path) -> Try:
    path = folder / "overlay.dtbo"
    other = folder / "base.dtb"
    other.write_bytes(_device_trees()[1])
    base = fdt.read(other)

    def try_it(content: bytes) -> None:
        path.write_bytes(content)
        found = fdt.read(path)
        for place, node in found.walk():
            found.find(place)
            str((node.texts("compatible"), node.cells("reg")))
        overlay.lacking(found, base)
        fdt.pack(found)
        if values := dict.fromkeys(overlay_parameters.names(found), "3"):
            fdt.pack(overlay_parameters.given(found, values))

    return try_it


MEMBERS = [
    {"name": "result/0.gone", "text": "f 0644 1 1764000000.0000000000 old.o//\0"},
    {"name": "result/0.new", "text": "d 0755 0 0 sub//\0f 0644 2 1.5 sub/a.o//\0l 0 0 0 b//a\0"},
    {
        "name": "result/0.tar",
        "members": [
            {"name": "sub", "type": "d", "text": "", "link": "", "mtime": None},
            {"name": "sub/a.o", "type": "f", "text": "ab", "link": "", "mtime": "1.5"},
            {"name": "b", "type": "l", "text": "", "link": "a", "mtime": None},
        ],
    },
]


def _archives() -> list[bytes]:
    return [json.dumps(MEMBERS).encode(), _packed(MEMBERS)]


def _packed(members: Any) -> bytes:
    """Return a tar archive as it is described; raise where no archive can say so."""
    parts = []
    for one in members:
        inner = one.get("members")
        content = _packed(inner) if inner is not None else str(one["text"]).encode()
        kind = {"d": tarfile.DIRTYPE, "l": tarfile.SYMTYPE}.get(one.get("type"), tarfile.REGTYPE)
        info = tarfile.TarInfo(str(one["name"]))
        info.type, info.size, info.linkname = kind, len(content), str(one.get("link", ""))
        if one.get("mtime") is not None:
            info.pax_headers = {"mtime": str(one["mtime"])}
        padding = bytes(-len(content) % tarfile.BLOCKSIZE)
        parts += [info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"), content, padding]
    return b"".join([*parts, bytes(2 * tarfile.BLOCKSIZE)])


class _Trip(volumes.SyncSession):
    """A journey whose helper answers what it is told to."""

    content = b""

    def _ask(self, files: Any) -> None:
        del files

    @property
    def helper(self) -> Any:
        answer = ([self.content], {})
        return SimpleNamespace(get_archive=lambda *_, **__: answer)


def of_archive(folder: Path) -> Try:
    """Try what comes back from an engine that doesn't see this host's files."""
    inside = folder / "inside"
    inside.mkdir()
    (folder / "outside").mkdir()
    place = store_in(folder / "store")
    carrier = volumes.Volumes(None, "image", place)  # type: ignore[arg-type]
    synced_volume = SyncedVolume(
        inside, "volume", "kdirs/x", writable=True, identity=None, kept=False
    )

    def try_it(content: bytes) -> None:
        # Whatever is no description of an archive is taken for one.
        with suppress(ValueError, TypeError, AttributeError, KeyError, RecursionError):
            content = _packed(json.loads(content))
        trip = _Trip(carrier, (synced_volume,))
        trip.content = content
        trip.before[synced_volume] = {"old.o": Item(Type.FILE, 0o644, 1, 1764000000 * 10**9)}
        trip.fetch()

    return try_it


def of_manifest(folder: Path) -> Try:
    del folder

    def try_it(content: bytes) -> None:
        found = manifest.parse(content)
        manifest.fingerprint(found)
        manifest.difference(found, {})
        manifest.parse(manifest.listed(found))
        for name, item in list(found.items())[:3]:
            header(name, item, volumes.User())

    return try_it


MANIFEST = b"f 0644 12 1764000000.1234567890 a/b.o//\0d 0755 0 0 a//\0l 0 0 0 c//a/b.o\0"

TAP_WORDS = (
    *("1..3", "1..999999999999", "1..0", "ok 1 - x", "not ok 2 - y # SKIP z", "# Group: g"),
    *("rbuild: up after 1.2.3 s", "rbuild: up after 0.5 s", "rbuild: tests ended with 0"),
    *("rbuild: log begins", "BUG: x", "INFO: task a blocked for more than", "[    0.1] not ok 1 k"),
)
KBUILD_WORDS = (
    *("  CC [M]  a.o", "error: x", "make: *** [x] Error 2", "No space left on device"),
    *("  A" + " " * 4000 + ":", "Killed", "undefined reference", "INFO: task " * 300),
)
TAR_WORDS = ("ustar\x0000", "../../outside/x", "/outside", "path=", "11 size=9\n")


def _with(values: list[bytes]) -> Callable[[], list[bytes]]:
    return lambda: values


TARGETS = (
    Target("profile", of_profile, _profiles, "yaml", YAML),
    Target("environment", of_environment, _definitions, "yaml", (*YAML, "@@", "@@/self.yaml")),
    Target("machine", of_machine, _machines, "yaml", YAML),
    Target("config", of_config, _configurations, "yaml", YAML),
    Target("metadata", of_metadata, lambda: corpus(*KEPT), "data", JSON),
    Target("state", of_state, _states, "data", JSON),
    Target("bench", of_bench, _benches, "data", JSON),
    Target("answer", of_answer, _answers, "text", JSON),
    Target(
        "kbuild",
        of_kbuild,
        lambda: corpus("build-c.log", "build-rust.log", "build-kernel.log"),
        "text",
        KBUILD_WORDS,
    ),
    Target(
        "kconfig", of_kconfig, lambda: [KCONFIG, *corpus("config")], "text", ("source Kconfig",)
    ),
    Target(
        "outputs",
        of_outputs,
        lambda: corpus("Makefile", "Module.symvers", "modules.order", "config"),
        "text",
        ("VERSION = 6", "PATCHLEVEL = 12", "/../../x", "../x.ko"),
    ),
    Target("editors", of_editors, _described, "data", JSON),
    Target("status", of_status, lambda: corpus("status"), "text", ("Version: 1:2-3~b",)),
    Target(
        "console", of_console, lambda: corpus("console.log", "console-kunit.log"), "text", TAP_WORDS
    ),
    Target("lines", of_lines, lambda: corpus("build-c.log", "console.log"), "bytes"),
    Target("config_txt", of_config_txt, _config_txts, "text", (config_txt.BEGIN, config_txt.END)),
    Target("board", of_board, _with([BOARD]), "text", ("rbuild: backup x", "rbuild: boot_free x")),
    Target("elf", of_elf, _elves, "bytes"),
    Target("device_tree", of_device_tree, _device_trees, "bytes"),
    Target("archive", of_archive, _archives, "data", TAR_WORDS),
    Target("manifest", of_manifest, _with([MANIFEST]), "text", ("//", "f 0644 1 1.5 x//\0")),
)
