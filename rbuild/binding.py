"""Device tree bindings, and what dt-schema says of them and of device trees.

``check`` does what the kernel's ``make dt_binding_check`` does for one binding, and ``validate``
what ``make dtbs_check`` does for the nodes that an overlay changes.  dt-schema's programs run on
the host, since they come from PyPI and only read; the C preprocessor and dtc run in the sandbox.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rbuild import fdt, process, root, textfile
from rbuild.errors import BuildFailed, HostLacks, ProcessFailed, UsageError
from rbuild.fdt import Node
from rbuild.kbuild import Kbuild
from rbuild.kernel import Kdir
from rbuild.overlay import Fitted, compile_device_trees, own_folder
from rbuild.root import Root
from rbuild.session import Session
from rbuild.source import Tree
from rbuild.store import remove_tree

BINDINGS = "Documentation/devicetree/bindings"
"""Where a kernel tree has its bindings."""

BINDING_MOST = 4 << 20
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


def check(kdir: Kdir, binding: Path, session: Session) -> None:
    """Check a binding as the kernel's dt_binding_check would if it were a part of the tree.

    It must be a schema such as the kernel's meta-schemas allow, be formatted as the kernel's
    yamllint configuration asks for, and its examples must compile and conform.  Raises
    BuildFailed with the tools' words, HostLacks where dt-schema isn't installed.
    """
    require(kdir.tree)
    build = _workplace(kdir, binding.stem)
    title = f"Checking the binding {binding.name}"
    with session.store.lock(kdir.entry):
        with session.console.step(title):
            (placed,), schemas = _bring(kdir.tree, [binding], (), build)
            faults = _complaints(session, placed, "dt-doc-validate", "-u", schemas)
            faults += _yamllint(kdir.tree, placed, session)
        faults = faults or _examples(kdir, placed, schemas, session)
    if faults:
        raise BuildFailed(
            f"{binding.name} is not a binding as the kernel wants it.",
            detail="\n".join(faults).replace(f"{build}/", ""),
            log=session.log_path,
        )


def validate(kdir: Kdir, fitted: Fitted, bindings: Sequence[Path], session: Session) -> list[str]:
    """Check the nodes that an overlay changed in a device tree; return the bindings' names.

    Those are the ones for the nodes' compatibles, of ``bindings`` and of the kernel's tree.  What
    was to be said of the device tree before doesn't count.  Raises BuildFailed with what is wrong,
    or if a new node has no binding, HostLacks where dt-schema isn't installed.
    """
    require(kdir.tree)
    name = f"{fitted.overlay.name}-{fitted.base.stem}"
    build = _workplace(kdir, name)
    title = f"Checking {fitted.overlay.path.name} on {fitted.base.name}"
    before, after = fdt.read(fitted.base), fdt.read(fitted.path)
    changed = changes(before, after)
    compatibles = sorted({one for _, node in changed for one in node.texts("compatible")})
    with session.console.step(title), session.store.lock(kdir.entry):
        placed, schemas = _bring(kdir.tree, bindings, compatibles, build)
        _known([one for one in changed if before.find(one[0]) is None], placed)
        ids = [str(one.relative_to(schemas)) for one in placed]
        processed = _processed(schemas, build, session)
        words: tuple[str | Path, ...] = ("dt-validate", "-s", processed, "-l", ":".join(ids))
        old = _complaints(session, _enabled(before, changed, build / "before.dtb"), *words)
        faults = [one for one in _complaints(session, fitted.path, *words) if one not in old]
    if faults:
        raise BuildFailed(
            f"{fitted.overlay.path.name} on {fitted.base.name} is not as the bindings say.",
            detail="\n".join(faults),
            log=session.log_path,
        )
    return ids


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


def require(tree: Tree) -> None:
    """Raise HostLacks unless dt-schema is installed, and new enough for a kernel tree."""
    version = process.capture([tool("dt-doc-validate"), "--version"])
    wanted = MIN_VERSION.search(_makefile(tree))
    if wanted is not None and _number(version) < _number(wanted[1]):
        raise HostLacks(
            f"Linux {tree.version} wants dt-schema {wanted[1]} or newer; installed is {version}.",
            hint="`pip install --upgrade dtschema` in rbuild's virtual environment.",
        )


def _makefile(tree: Tree) -> str:
    return (tree.path / BINDINGS / "Makefile").read_text()


def _number(version: str) -> list[int]:
    return [int(one) for one in re.findall(r"\d+", version)[:2]]


def tool(name: str) -> Path:
    """Return one of dt-schema's programs: beside this Python, as pip puts it, or in PATH."""
    beside = Path(sys.executable).with_name(name)
    if beside.is_file():
        return beside
    found = shutil.which(name)
    if found is None:
        raise HostLacks(
            f"dt-schema is not installed: there is no {name}.",
            hint="`pip install 'rbuild[dt]'` (or `pip install dtschema`) brings it.",
        )
    return Path(found)


def _complaints(session: Session, path: Path, name: str | Path, *words: str | Path) -> list[str]:
    """Return what one of the programs has to say of a file, without the file's name.

    Some end with status 0 whatever they say; others with 1, and have said why.
    """
    with session.log() as log:
        done = process.run([tool(str(name)), *words, path], log=log, check=False)
    found = _words(done.tail, path)
    return found or (list(done.tail) if done.returncode != 0 else [])


def _words(lines: Iterable[str], path: Path) -> list[str]:
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


def _run(session: Session, name: str, *words: str | Path) -> Sequence[str]:
    """Run one of the programs, which must succeed; return what it printed."""
    with session.log() as log:
        try:
            return process.run([tool(name), *words], log=log).tail
        except ProcessFailed as error:
            raise BuildFailed(
                f"{name} failed.", detail=error.detail, log=session.log_path
            ) from error


def _yamllint(tree: Tree, binding: Path, session: Session) -> list[str]:
    """Return what yamllint says; like the kernel's Makefile, nothing where it isn't installed."""
    try:
        tool("yamllint")
    except HostLacks:
        session.console.note("yamllint is not installed: the binding's format is not checked.")
        return []
    settings = tree.path / BINDINGS / ".yamllint"
    return _complaints(session, binding, "yamllint", "-f", "parsable", "-c", settings)


def _examples(kdir: Kdir, binding: Path, schemas: Path, session: Session) -> list[str]:
    """Compile a binding's examples and check them; return what is wrong."""
    title = f"Compiling the examples of {binding.name}"
    build = schemas.parent / "examples"
    build.mkdir()
    source = build / f"{binding.stem}.example.dts"
    lines = _run(session, "dt-extract-example", binding)
    source.write_text("".join(f"{line}\n" for line in lines))
    kbuild = Kbuild(session, kdir.ready, kdir.tree, kdir.path)
    flags = EXAMPLE_FLAGS.search(_makefile(kdir.tree))
    words = flags[1].replace("\\\n", " ").split() if flags is not None else []
    compile_device_trees(kbuild, build, title, " ".join(words))
    example = source.with_suffix(".dtb")
    with session.console.step(f"Checking the examples of {binding.name}"):
        processed = _processed(schemas, schemas.parent, session)
        limit = str(binding.relative_to(schemas))
        return _complaints(session, example, "dt-validate", "-s", processed, "-l", limit)


def _processed(schemas: Path, build: Path, session: Session) -> Path:
    """Return what dt-validate reads: all schemas of a folder, and dt-schema's own, in one file."""
    target = build / "processed-schema.json"
    _run(session, "dt-mk-schema", "-j", "-o", target, schemas)
    return target


def _workplace(kdir: Kdir, name: str) -> Path:
    return kdir.entry.path / "bindings" / name


def _bring(
    tree: Tree, bindings: Sequence[Path], compatibles: Sequence[str], build: Path
) -> tuple[list[Path], Path]:
    """Make a folder of bindings; return those that are meant, and the folder.

    Meant are ``bindings``, and the tree's that name one of the ``compatibles``; brought is also
    what they refer to.  All of a kernel's bindings would take dt-schema a minute.
    """
    if build.exists():
        remove_tree(build)
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
    return textfile.read_text(path, limit=BINDING_MOST, decoding="replace")


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
