"""A kernel's .debs, by its own rules (bindeb-pkg), from a copy of a built KDIR.

The copy is packaged by programs of other names than those that built it, but of the same
versions: nothing of the kernel is compiled again, and what is in the .debs is what was built.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rbuild.board.packages import debian
from rbuild.board.staging import image
from rbuild.errors import BuildFailed, InfrastructureError, UsageError
from rbuild.kernel import reuse
from rbuild.kernel.kbuild import Kbuild
from rbuild.kernel.kdir import Kdir, Stage
from rbuild.provision.tools import DEFINITION, Tools
from rbuild.sandbox.runtime import OUT, PATH, Bind, Job
from rbuild.util.hashes import sha256_file

SHIMS = "/tmp/shims"  # noqa: S108 - the sandbox's own

PROGRAMS = {
    # The changelog's time: the kernel's script asks the clock.
    "date": 'exec /usr/bin/date "--date=@$SOURCE_DATE_EPOCH" "$@"\n',
    # The packages would come beside the KDIR, in the sandbox's root, which is read-only.
    "dh_builddeb": f'exec /usr/bin/dh_builddeb --destdir={OUT} "$@"\n',
}
"""Programs that stand before those of their name while the kernel's rules run."""


def check(kdir: Kdir, tools: Tools) -> None:
    """Raise UsageError or InfrastructureError unless the tools can go on with a KDIR as it is."""
    environment, own = kdir.ready.environment, tools.ready.environment
    if kdir.stage is not Stage.BUILT:
        raise UsageError(
            f"The kernel of {kdir.profile.name} isn't built in {environment.name}.",
            hint="`rbuild kernel` builds it.",
        )
    if environment.builder != own.builder:
        raise UsageError(
            f"What {environment.name} has built can't be made into .debs: its programs are of "
            f"{environment.builder.debian}, the packaging tools of {own.builder.debian}.",
            hint="Use --env cross or hybrid, which make the same bytes, or another --format.",
        )
    if environment.target != own.target:
        raise UsageError(
            f"The kernel's own rules can make .debs for {own.target.debian} here, not for "
            f"{environment.target.debian}.",
            hint="Use another --format: tar, module-deb or dkms.",
        )
    theirs, ours = kdir.ready.toolchain, tools.ready.toolchain
    differing = [
        f"{name}: {version} and {ours.get(name, 'none')}"
        for name, version in theirs.items()
        if ours.get(name) != version
    ]
    if differing:
        raise InfrastructureError(
            f"{environment.name} and the packaging tools have compilers of different versions, "
            "so that packaging would build the kernel again.",
            detail="\n".join(differing),
            hint=f"`rbuild setup --force {environment.name} rootfs/{DEFINITION}` makes both anew.",
        )


def build(kdir: Kdir, tools: Tools, work: Path) -> list[Path]:
    """Return a built kernel's packages, made in ``work``: image, headers, libc's headers.

    Raises BuildFailed if the kernel's rules fail, or if they have built the image anew.
    """
    copied, out, shims = work / "build", work / "out", work / "shims"
    cache = tools.context.cache
    title = f"Copying the KDIR of {kdir.release}"
    with cache.lock(kdir.entry), cache.console.step(title, key=kdir.entry.name):
        reuse.copy(kdir.path, copied)
    out.mkdir()
    shims.mkdir()
    for name, text in PROGRAMS.items():
        (shims / name).write_text(f"#!/bin/sh\n{text}")
        (shims / name).chmod(0o755)
    kbuild = Kbuild(tools.context, tools.ready, kdir.tree, copied)
    title = f"Packaging {kdir.release} by its own rules"
    # A package's links lead to where it will be installed.
    tools.run(_job(kbuild, kdir, out, shims), title, scratch=[copied])
    own, _ = image(kdir)
    again = copied / own.relative_to(kdir.path)
    if sha256_file(own) != sha256_file(again):
        raise BuildFailed(
            f"Packaging has built another {own.name} than the one that was there.",
            log=tools.context.log_path,
            hint="The log shows what was compiled again.",
        )
    return sorted(out.glob("*.deb"))


def _job(kbuild: Kbuild, kdir: Kdir, out: Path, shims: Path) -> Job:
    target = debian.architecture(kdir.profile)
    records = f"{OUT}/linux"
    variables = {
        "KBUILD_DEBARCH": target.debian,
        "KDEB_PKGVERSION": debian.version(kdir.release),
        "KDEB_CHANGELOG_DIST": kbuild.ready.environment.base.definition.suite,
        "KDEB_COMPRESS": debian.COMPRESSION,
        # The packages that the rules need are there, but not those that they would list.
        "DPKG_FLAGS": f"--no-check-builddeps --buildinfo-file={records}.buildinfo "
        f"--buildinfo-option=-u{OUT} --changes-file={records}.changes --changes-option=-u{OUT}",
    }
    if target != kbuild.ready.environment.builder:
        # The headers have programs that run on the board; gcc makes them of the same sources.
        variables["CROSS_COMPILE"] = f"{target.triplet}-"
    job = kbuild.job(["bindeb-pkg"], extra=[f"{name}={value}" for name, value in variables.items()])
    binds = [*job.binds, Bind(out, OUT, writable=True), Bind(shims, SHIMS)]
    return replace(
        job,
        binds=binds,
        variables={**job.variables, **debian.MAINTAINER_VARIABLES, "PATH": f"{SHIMS}:{PATH}"},
    )
