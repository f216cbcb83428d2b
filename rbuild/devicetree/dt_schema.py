"""Device tree bindings, and what dt-schema says of them and of device trees.

``check`` does what the kernel's ``make dt_binding_check`` does for one binding, and ``validate``
what ``make dtbs_check`` does for the nodes that an overlay changes.  dt-schema's programs are
Debian's, in the environment that has its packaging tools, too.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbuild.devicetree import fdt
from rbuild.devicetree.fdt import Node
from rbuild.devicetree.overlay import Fitted, compile_device_trees, own_folder
from rbuild.errors import BuildFailed, InfrastructureError, UsageError
from rbuild.kernel.kbuild import Kbuild
from rbuild.kernel.kdir import Kdir
from rbuild.provision.tools import Tools, provide
from rbuild.sandbox.context import BuildContext
from rbuild.sandbox.runtime import OUT, Bind, Job
from rbuild.source.tree import Tree
from rbuild.util import root, textfile
from rbuild.util.folders import remove_tree
from rbuild.util.process import Completed
from rbuild.util.root import Root

BINDINGS = "Documentation/devicetree/bindings"
"""Where a kernel tree has its bindings."""

MAX_BINDING_BYTES = 4 << 20
"""The bytes of the largest binding."""

ID = re.compile(r"^\$id: *[\"']?http://devicetree\.org/schemas/(?P<path>[^#\s\"']+)#?", re.M)
REFERENCE = re.compile(r"\$ref: *[\"']?(?P<path>[^#\s\"']+\.yaml)", re.M)
MIN_VERSION = re.compile(r"^DT_SCHEMA_MIN_VERSION *= *(\S+)", re.M)

EXAMPLE_FLAGS = re.compile(r"^override DTC_FLAGS := *((?:.*\\\n)*.*)", re.M)
"""What dtc is told for bindings' examples, in the Makefile of the kernel's bindings."""


def beside(source: Path, own: Root | None = None) -> list[Path]:
    """Return the bindings in an overlay's folder; raises UsageError for one out of ``own``."""
    own = own or root.of(source)
    folder = source if source.is_dir() else source.resolve().parent
    found = [one for one in sorted(folder.glob("*.yaml")) if one.is_file()]
    for one in found:
        own.check(one)
    return [one for one in found if _is_binding(one)]


def known(source: Path, own: Root | None = None) -> list[Path]:
    """Return the bindings in an overlay's folder, and ours where it has none of that place."""
    found = {_place(one): one for one in (*beside(own_folder()), *beside(source, own))}
    return list(found.values())


@dataclass(frozen=True)
class Checker:
    """dt-schema's programs, new enough for a kernel's tree: see ``checker``."""

    kdir: Kdir
    tools: Tools

    def check(self, binding: Path) -> None:
        """Check a binding as the kernel's dt_binding_check would if it were a part of the tree.

        It must be a schema such as the kernel's meta-schemas allow, be formatted as the kernel's
        yamllint configuration asks for, and its examples must compile and conform.  Raises
        BuildFailed with the tools' words.
        """
        work = self._work(binding.stem)
        with self.tools.context.cache.reading(self.kdir.entry, work.folder):
            (placed,), schemas = _bring(self.kdir.tree, [binding], (), work.folder)
            title = f"Checking the binding {binding.name}"
            faults = work.complaints(title, "dt-doc-validate", "-u", schemas, of=placed)
            faults += self._format(work, placed)
            faults = faults or self._examples(work, placed, schemas)
        if faults:
            raise BuildFailed(
                f"{binding.name} is not a binding as the kernel wants it.",
                detail="\n".join(faults).replace(f"{OUT}/", ""),
                log=self.tools.context.log_path,
            )

    def validate(self, fitted: Fitted, bindings: Sequence[Path]) -> list[str]:
        """Check the nodes that an overlay changed in a device tree; return the bindings' names.

        Those are the ones for the nodes' compatibles, of ``bindings`` and of the kernel's tree.
        What was to be said of the device tree before doesn't count.  Raises BuildFailed with what
        is wrong, or if a new node has no binding.
        """
        work = self._work(f"{fitted.overlay.name}-{fitted.base.stem}")
        before, after = fdt.read(fitted.base), fdt.read(fitted.path)
        changed = changes(before, after)
        compatibles = sorted({one for _, node in changed for one in node.texts("compatible")})
        with self.tools.context.cache.reading(self.kdir.entry, work.folder):
            placed, schemas = _bring(self.kdir.tree, bindings, compatibles, work.folder)
            _known([one for one in changed if before.find(one[0]) is None], placed)
            ids = [str(one.relative_to(schemas)) for one in placed]
            processed = work.processed(schemas)
            words = ("dt-validate", "-s", processed, "-l", ":".join(ids))
            earlier = _enabled(before, changed, work.folder / "before.dtb")
            later = Path(shutil.copyfile(fitted.path, work.folder / "after.dtb"))
            old = work.complaints(f"Checking {fitted.base.name}", *words, of=earlier)
            title = f"Checking {fitted.overlay.path.name} on {fitted.base.name}"
            faults = [one for one in work.complaints(title, *words, of=later) if one not in old]
        if faults:
            raise BuildFailed(
                f"{fitted.overlay.path.name} on {fitted.base.name} is not as the bindings say.",
                detail="\n".join(faults),
                log=self.tools.context.log_path,
            )
        return ids

    def _work(self, name: str) -> _Work:
        folder = self.kdir.entry.path / "bindings" / name
        if folder.exists():
            remove_tree(folder)
        folder.mkdir(parents=True)
        return _Work(self.tools, folder)

    def _format(self, work: _Work, binding: Path) -> list[str]:
        settings = self.kdir.tree.path / BINDINGS / ".yamllint"
        own = Path(shutil.copyfile(settings, work.folder / "yamllint"))
        title = f"Checking the format of {binding.name}"
        return work.complaints(title, "yamllint", "-f", "parsable", "-c", own, of=binding)

    def _examples(self, work: _Work, binding: Path, schemas: Path) -> list[str]:
        """Compile a binding's examples and check them; return what is wrong."""
        build = work.folder / "examples"
        build.mkdir()
        source = build / f"{binding.stem}.example.dts"
        title = f"Extracting the examples of {binding.name}"
        lines = work.run(title, "dt-extract-example", binding).tail
        source.write_text("".join(f"{line}\n" for line in lines))
        kdir = self.kdir
        kbuild = Kbuild(self.tools.context, kdir.ready, kdir.tree, kdir.path)
        flags = EXAMPLE_FLAGS.search(_makefile(kdir.tree))
        extra = flags[1].replace("\\\n", " ").split() if flags is not None else []
        title = f"Compiling the examples of {binding.name}"
        compile_device_trees(kbuild, build, title, " ".join(extra))
        words = ("dt-validate", "-s", work.processed(schemas))
        limit = ("-l", str(binding.relative_to(schemas)))
        title = f"Checking the examples of {binding.name}"
        return work.complaints(title, *words, *limit, of=source.with_suffix(".dtb"))


def checker(kdir: Kdir, context: BuildContext) -> Checker:
    """Provide dt-schema; raises InfrastructureError if it is too old for the kernel's tree."""
    tools = provide(context)
    wanted = MIN_VERSION.search(_makefile(kdir.tree))
    if wanted is not None:
        done = tools.run(Job(["dt-doc-validate", "--version"]), "Looking at dt-schema")
        if _number(done.text) < _number(wanted[1]):
            raise InfrastructureError(
                f"Linux {kdir.tree.version} wants dt-schema {wanted[1]} or newer; the environment "
                f"{tools.ready.environment.name} has {done.text}."
            )
    return Checker(kdir, tools)


@dataclass(frozen=True)
class _Work:
    """A folder that dt-schema's programs see; all paths that they are given are below it."""

    tools: Tools
    folder: Path

    def run(self, title: str, *words: str | Path, check: bool = True) -> Completed:
        """Run a program, which must succeed if ``check``; raises BuildFailed with its words."""
        argv = [self._inside(one) if isinstance(one, Path) else one for one in words]
        job = Job(argv, [Bind(self.folder, OUT, writable=True)], OUT)
        return self.tools.run(job, title, check=check)

    def complaints(self, title: str, *words: str | Path, of: Path) -> list[str]:
        """Return what one of the programs has to say of a file, without the file's name.

        Some end with status 0 whatever they say; others with 1, and have said why.
        """
        done = self.run(title, *words, of, check=False)
        found = _words(done.tail, self._inside(of))
        return found or (list(done.tail) if done.returncode != 0 else [])

    def processed(self, schemas: Path) -> Path:
        """Return what dt-validate reads: a folder's schemas, and dt-schema's own, in one file."""
        target = self.folder / "processed-schema.json"
        self.run("Reading the bindings", "dt-mk-schema", "-j", "-o", target, schemas)
        return target

    def _inside(self, path: Path) -> str:
        return f"{OUT}/{path.relative_to(self.folder)}"


def changes(before: Node, after: Node) -> list[tuple[str, Node]]:
    """Return the nodes of a device tree that are new or other, with their paths.

    Other is one that has other properties, or a child that wasn't there.  Disabled ones don't
    count, nor what only dtc and fdtoverlay read (__symbols__).
    """
    found = []
    for path, node in after.walk():
        if path.startswith("/__") or node.text("status") == "disabled":
            continue
        old = before.find(path)
        if old is None or old.properties != node.properties or _named(old) != _named(node):
            found.append((path, node))
    return found


def _named(node: Node) -> set[str]:
    return {name for name in node.children if not name.startswith("__")}


def _enabled(before: Node, changed: Sequence[tuple[str, Node]], path: Path) -> Path:
    """Write the device tree as it was, but with those nodes on that an overlay has turned on.

    Of a node that is off, a binding's demands aren't made: they would read as the overlay's faults.
    """
    for place, node in changed:
        old = before.find(place)
        if old is not None and "status" in old.properties and "status" in node.properties:
            old.properties["status"] = node.properties["status"]
    path.write_bytes(fdt.pack(before))
    return path


def _makefile(tree: Tree) -> str:
    return (tree.path / BINDINGS / "Makefile").read_text()


def _number(version: str) -> list[int]:
    return [int(one) for one in re.findall(r"\d+", version)[:2]]


def _words(lines: Iterable[str], path: str) -> list[str]:
    """Return the lines that are about a file, each with those below it that belong to it."""
    found: list[str] = []
    mine = False
    for line in lines:
        if line.startswith((" ", "\t")):
            if mine:
                found[-1] += f"\n{line}"
            continue
        mine = line.startswith(f"{path}:")
        if mine:
            found.append(line.removeprefix(f"{path}:").strip())
    return found


def _bring(
    tree: Tree, bindings: Sequence[Path], compatibles: Sequence[str], build: Path
) -> tuple[list[Path], Path]:
    """Make a folder of bindings; return those that are meant, and the folder.

    Meant are ``bindings``, and the tree's that name one of the ``compatibles``; brought is also
    what they refer to.  All of a kernel's bindings would take dt-schema a minute.
    """
    schemas = build / "schemas"
    meant: dict[str, Path] = {}
    for binding in bindings:
        meant[_place(binding)] = binding
    folder = tree.path / BINDINGS
    for path in _naming(folder, compatibles):
        meant.setdefault(str(path.relative_to(folder)), path)
    pending, brought = dict(meant), set[str]()
    while pending:
        place, path = pending.popitem()
        target = schemas / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        brought.add(place)
        for other in _references(path, place):
            if other not in brought and (folder / other).is_file():
                pending.setdefault(other, folder / other)
    return [schemas / place for place in meant], schemas


def _read(path: Path) -> str:
    return textfile.read_text(path, limit=MAX_BINDING_BYTES, decoding="replace")


def _is_binding(path: Path) -> bool:
    return ID.search(_read(path)) is not None


def _place(binding: Path) -> str:
    """Return where a binding belongs below the kernel's bindings, by its $id."""
    found = ID.search(_read(binding))
    if found is None or ".." in found["path"].split("/"):
        raise UsageError(
            f"{binding} is not a binding.",
            hint="It needs a line such as "
            "`$id: http://devicetree.org/schemas/net/nfc/nxp,mfrc522.yaml#`.",
        )
    return str(Path(found["path"]).with_name(binding.name))


def _naming(folder: Path, compatibles: Sequence[str]) -> list[Path]:
    """Return the bindings in a folder that name one of the compatibles."""
    if not compatibles:
        return []
    return [path for path in sorted(folder.rglob("*.yaml")) if _names(path, compatibles)]


def _names(binding: Path, compatibles: Iterable[str]) -> bool:
    """Tell whether a binding, its examples aside, has one of the compatibles as a whole word."""
    text = _read(binding).partition("\nexamples:")[0]
    return any(
        one in text and re.search(rf"(?<![\w,.-]){re.escape(one)}(?![\w,.-])", text)
        for one in compatibles
    )


def _references(path: Path, place: str) -> list[str]:
    """Return where the bindings are that one refers to."""
    found = []
    for match in REFERENCE.finditer(_read(path)):
        other = match["path"]
        if other.startswith("/schemas/"):
            found.append(other.removeprefix("/schemas/"))
        elif not other.startswith(("/", "http")):
            found.append(str(Path(place).parent / other))
    return found


def _known(added: Sequence[tuple[str, Node]], placed: Sequence[Path]) -> None:
    """Raise BuildFailed if a node with a compatible has no binding among those given."""
    for path, node in added:
        names = node.texts("compatible")
        if names and not any(_names(one, names) for one in placed):
            raise BuildFailed(f"Nothing describes {path}: no binding names {names[0]}.")
