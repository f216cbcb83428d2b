"""``rbuild overlay``: compile device tree overlays, and prove that they fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from rbuild.cli.main import App
from rbuild.cli.options import (
    Output,
    What,
    Where,
    env_option,
    grouped,
    profile_option,
    root_option,
    runtime_option,
    summary,
    timeout_option,
)
from rbuild.devicetree import dt_schema, overlay
from rbuild.devicetree.dt_schema import Checker
from rbuild.devicetree.overlay import Fitted, Overlay
from rbuild.kernel.kdir import Kdir
from rbuild.sandbox.context import BuildContext, Phase
from rbuild.ui.format import duration, joined, size
from rbuild.util.root import Root

EPILOG = """\b
Examples:
  rbuild overlay --output .
  rbuild overlay --check
  rbuild overlay --param int_pin=24 --param reset_pin=25 --check
  rbuild overlay ~/my-board/sensor-overlay.dts
"""


@click.command(epilog=EPILOG)
@click.argument("path", required=False, type=click.Path(path_type=Path))
@root_option
@click.option(
    "--param",
    "params",
    multiple=True,
    metavar="NAME=N",
    help="Give a parameter here, not in config.txt; may be repeated.",
)
@click.option("--check", is_flag=True, help="Check binding and result with dt-schema, too.")
@env_option
@profile_option
@click.option(
    "--output",
    type=Output(folder=True),
    metavar="DIR",
    help="Copy the .dtbo there.",
)
@runtime_option
@timeout_option
@grouped("where", Where)
@grouped("what", What)
@click.pass_obj
def command(
    app: App,
    where: Where,
    what: What,
    params: tuple[str, ...],
    check: bool,
    output: Path | None,
) -> None:
    """Compile the reader's device tree overlay, or with PATH any.

    PATH is a source (.dts, .dtso) or a folder of them. dtc may not even warn. The overlay is then
    applied to each device tree of the profile. With --check, bindings that stand beside the source
    are checked as the kernel's dt_binding_check does, and the resulting device trees against them
    and the kernel's.
    """
    values = _values(params)
    made = where.build_context(app, "overlay")
    found = where.profile()
    source = what.path or overlay.own_folder()
    own = what.root
    overlay.sources(source, own)  # what is no overlay is said before a kernel is prepared
    kdir = where.kdir(found, made)
    checker = dt_schema.checker(kdir, made) if check else None
    result = overlay.compile_overlays(kdir, source, made, own)
    overlays = result.overlays
    if values:
        overlays = tuple(overlay.parametrised(one, values) for one in overlays)
    if checker is not None:
        for one in dt_schema.beside(source, own):
            checker.check(one)
    if found.device_trees or check:
        proofs = [_prove(kdir, one, (source, own), made, checker) for one in overlays]
    else:
        made.console.note(f"The profile {found.name} names no device trees: applied to none.")
        proofs = [_Proof() for _ in overlays]
    places = [one.path for one in overlays]
    if output is not None:
        places = overlay.export(overlays, output)
    data = summary("overlay", kdir, made)
    data["artefacts"] = [
        {
            **one.as_json(),
            "path": str(place),
            "fits": [
                {"base": str(fitted.base), "path": str(fitted.path)} for fitted in proof.fitted
            ],
            "bindings": list(proof.bindings),
        }
        for one, place, proof in zip(overlays, places, proofs, strict=True)
    ]
    data["phases"].append(result.phase.as_json())
    app.console.result(_lines(kdir, overlays, places, proofs, result.phase), data)


@dataclass(frozen=True)
class _Proof:
    """On which device trees an overlay fits, and by which bindings the result is right."""

    fitted: tuple[Fitted, ...] = ()
    bindings: tuple[str, ...] = ()


def _prove(
    kdir: Kdir,
    one: Overlay,
    source: tuple[Path, Root | None],
    made: BuildContext,
    checker: Checker | None,
) -> _Proof:
    fitted = overlay.fit(kdir, one, made)
    used: set[str] = set()
    if checker is not None:
        bindings = dt_schema.known(*source)
        for where in fitted:
            used |= set(checker.validate(where, bindings))
    return _Proof(tuple(fitted), tuple(sorted(used)))


def _values(params: Sequence[str]) -> dict[str, str]:
    values = {}
    for param in params:
        name, equals, value = param.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--param: {param!r} is not of the form NAME=N.")
        values[name] = value
    return values


def _lines(
    kdir: Kdir,
    overlays: Sequence[Overlay],
    places: Sequence[Path],
    proofs: Sequence[_Proof],
    phase: Phase,
) -> str:
    took = "nothing to do" if phase.cached else duration(phase.usage.wall_s)
    lines = []
    for one, place, proof in zip(overlays, places, proofs, strict=True):
        lines.append(
            f"{place.name} ({kdir.ready.environment.name}, {took}), {size(one.size_bytes)}: {place}"
        )
        lines += [f"  fits {fitted.base.name}" for fitted in proof.fitted]
        if proof.bindings:
            lines.append(f"  as {', '.join(proof.bindings)} say")
        lines.append(f"  sha256 {one.sha256}")
    return joined(lines)
