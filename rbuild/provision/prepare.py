"""An environment made ready: its rootfses provisioned, its layer laid, its compilers tried."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from rbuild.cache.directory import Cache
from rbuild.cache.entry import METADATA
from rbuild.errors import InfrastructureError, UsageError
from rbuild.provision import qemu_user, rootfs
from rbuild.provision.prepared import PreparedEnvironment
from rbuild.provision.qemu_user import Emulator
from rbuild.provision.rootfs import Provisioned, entry_of, same_version
from rbuild.provision.verify import verify
from rbuild.sandbox import binfmt
from rbuild.sandbox.bwrap import Bwrap
from rbuild.sandbox.native import Layer, layer, merged
from rbuild.sandbox.runtime import Runtime, Sandbox
from rbuild.specs.environment import Environment
from rbuild.ui.format import size
from rbuild.util.files import read_json, write_json
from rbuild.util.hashes import digest

TOOLCHAIN = re.compile(r"(clang|lld|llvm)-\d+|rustc|rust-src|bindgen|make|gcc|libc6-dev")
"""The packages whose versions decide what a build makes."""


def runtime_for(
    name: str, cache: Cache, *, memory_bytes: int | None = None, cpus: float | None = None
) -> Runtime:
    """Return the runtime of that name; raises UsageError where it can't keep the limits."""
    if name == "docker":
        from rbuild.sandbox.docker.runtime import MIN_MEMORY, Docker, Limits  # noqa: PLC0415 - loads slowly

        if memory_bytes is not None and memory_bytes < MIN_MEMORY:
            raise UsageError(
                f"--memory: {size(memory_bytes)} is too little: a container needs at least "
                f"{MIN_MEMORY >> 20}m, a compiler some hundred."
            )
        return Docker(cache, Limits(memory_bytes, cpus))
    assert name == "bwrap"
    if (memory_bytes, cpus) != (None, None):
        raise UsageError("--memory and --cpus are for --runtime docker.")
    return Bwrap()


def checked_runtime(
    name: str, cache: Cache, memory_bytes: int | None, cpus: float | None
) -> Runtime:
    """Return what ``runtime_for`` does; raise UsageError for more processors than it has."""
    runtime = runtime_for(name, cache, memory_bytes=memory_bytes, cpus=cpus)
    if name == "docker" and cpus is not None:
        from rbuild.sandbox.docker.runtime import Docker  # noqa: PLC0415 - loads slowly

        assert isinstance(runtime, Docker)
        runtime.must_have_cpus()
    return runtime


def maker(runtime: Runtime) -> rootfs.Make | None:
    """Return what makes rootfses instead of mmdebstrap, where a Docker engine has to."""
    if runtime.name != "docker" or shutil.which("mmdebstrap") is not None:
        return None
    from rbuild.provision.dockerfile import export  # noqa: PLC0415 - loads slowly
    from rbuild.sandbox.docker.runtime import Docker  # noqa: PLC0415 - loads slowly

    assert isinstance(runtime, Docker)
    return partial(export, runtime.client)


def prepare_environment(
    environment: Environment, cache: Cache, runtime: Runtime, *, scratch: Path | None = None
) -> PreparedEnvironment:
    """Provision what the environment lacks, and verify it once.

    With ``scratch``, an empty folder, it can be written: see Sandbox.
    Raises as ``rootfs.provision`` does, and InfrastructureError where its compilers don't work.
    """
    cache.need_programs()
    runs = qemu_user.obtain(environment, cache)
    make = maker(runtime)
    made = [rootfs.provision(part, cache, make=make) for part in environment.rootfses]
    own = Layer((), ())
    if environment.native is not None:
        _same_versions(environment, *made)
        own = layer(environment, made[0].path, made[1].path)
        if scratch is None:
            stamp = str([part.created for part in made])
            binds = merged(own.binds, made[0].path, made[0].path.parent / "layers", stamp)
            own = replace(own, binds=binds)
    sandbox = Sandbox(
        environment.name,
        made[0].path,
        own.binds,
        environment.emulator_variables,
        _registration(environment, runs),
        scratch,
    )
    ready = PreparedEnvironment(
        environment,
        sandbox,
        runtime,
        {
            name: version
            for name, version in sorted(made[-1].packages.items())
            if TOOLCHAIN.fullmatch(name)
        },
        tuple(part.key for part in made),
        {
            **environment.inputs,
            "rootfs": [part.key for part in made],
            # A rootfs that is made again may have other versions, under the same name.
            "packages": [digest(part.packages) for part in made],
        },
        own.emulated,
        None if runs is None else runs.describe(environment.emulator_variables),
        sum(part.seconds for part in made),
        all(part.cached for part in made),
    )
    runtime.prepare(sandbox)
    if scratch is None:
        _verify_once(ready, cache)
    return ready


def _registration(environment: Environment, runs: Emulator | None) -> str | None:
    """Return what a sandbox registers for itself, if it brings its own emulator."""
    if runs is None or runs.program is None:
        return None
    return binfmt.line(environment.base.architecture, runs.program, "PF")


def _same_versions(environment: Environment, base: Provisioned, native: Provisioned) -> None:
    """Check that a hybrid's parts are of one day: their shared libraries must match."""
    differing = [
        f"{name}: {version} and {native.packages[name]}"
        for name, version in sorted(base.packages.items())
        if name in native.packages and not same_version(version, native.packages[name])
    ]
    if differing:
        raise InfrastructureError(
            f"The two rootfses of {environment.name} have packages of different versions.",
            detail="\n".join(differing[:10]),
            hint=f"`rbuild setup --force {environment.name}` makes both anew.",
        )


def _verify_once(ready: PreparedEnvironment, cache: Cache) -> None:
    """Try the compilers, unless this very combination of rootfses has passed before."""
    environment = ready.environment
    base = entry_of(environment.base, cache)
    runtime = ready.runtime.name
    mark = base.path / f"verified-{environment.name.replace(':', '-')}-{runtime}.json"
    wanted = {
        "layer": [b.target for b in ready.sandbox.layer],
        "cc": environment.base.definition.cc,
        "inputs": digest(ready.inputs),
        "created": [
            (entry_of(part, cache).metadata or {}).get("created") for part in environment.rootfses
        ],
    }
    if read_json(mark) == wanted:
        return
    title = f"Verifying {environment.name}: its compilers, and what they make"
    with cache.console.step(title, key=f"{wanted['inputs']} {runtime}"):
        verify(ready, cache)
    assert (base.path / METADATA).exists()
    write_json(mark, wanted)
