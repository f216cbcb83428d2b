"""Byte identity: whether every environment made the same files, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rbuild.bench.plan import Mode, Scenario
from rbuild.bench.result import Difference, Identity, Sample
from rbuild.util import elf

LISTED = 3
"""How many differing lines or bytes of a file that isn't ELF are shown."""


def compare(
    samples: Mapping[tuple[Mode, Scenario], Sequence[Sample]], products: Mapping[Mode, Path]
) -> list[Identity]:
    """Say of each product of the clean runs whether all environments made the same bytes.

    ``products`` has a folder for each mode with the products of its last clean run.  The first mode
    of a kind and driver is what the others are compared with.
    """
    groups: dict[tuple[str, str | None], list[Mode]] = {}
    for mode in products:
        groups.setdefault((mode.target.value, mode.driver), []).append(mode)
    found = []
    for group in groups.values():
        names = [one.name for one in samples[group[0], Scenario.CLEAN][-1].products]
        found += [_identity(name, group, samples, products) for name in names]
    return found


def _identity(
    name: str,
    group: Sequence[Mode],
    samples: Mapping[tuple[Mode, Scenario], Sequence[Sample]],
    products: Mapping[Mode, Path],
) -> Identity:
    checksums: dict[str, set[str]] = {}
    for mode in group:
        own = checksums.setdefault(mode.where, set())
        for sample in samples[mode, Scenario.CLEAN]:
            own |= {one.sha256 for one in sample.products if one.name == name}
    first = group[0]
    differences = []
    seen: set[str] = {first.where}
    for mode in group:
        if mode.where not in seen and checksums[mode.where] != checksums[first.where]:
            seen.add(mode.where)
            differences.append(
                difference(mode.where, products[first] / name, products[mode] / name)
            )
    return Identity(
        kind=first.target.value,
        driver=first.driver.value if first.driver else None,
        product=name,
        identical=len(set().union(*checksums.values())) == 1,
        sha256={env: tuple(sorted(own)) for env, own in checksums.items()},
        differences=tuple(differences),
    )


def difference(environment: str, reference: Path, other: Path) -> Difference:
    """Say in what ``other`` differs from ``reference``: ELF sections, lines or bytes."""
    for path in (reference, other):
        if not path.is_file():
            note = f"{path.name} was not made" if path == other else "the reference has none"
            return Difference(environment=environment, note=note)
    mine, theirs = elf.section_digests(reference), elf.section_digests(other)
    if mine is not None and theirs is not None:
        names = [n for n in [*mine, *theirs] if mine.get(n) != theirs.get(n)]
        return Difference(environment=environment, sections=tuple(dict.fromkeys(names)))
    one, two = reference.read_bytes(), other.read_bytes()
    if _is_text(one) and _is_text(two):
        lines = set(one.decode().splitlines()) ^ set(two.decode().splitlines())
        shown = "; ".join(sorted(lines)[:LISTED])
        return Difference(environment=environment, note=f"{len(lines)} lines differ: {shown}")
    offsets = [n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
    note = f"{len(offsets)} bytes differ" + (f", the first at {offsets[0]:#x}" if offsets else "")
    if len(one) != len(two):
        note += f"; sizes {len(one)} and {len(two)}"
    return Difference(environment=environment, note=note)


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in content
