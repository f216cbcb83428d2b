"""An environment made ready: its rootfses provisioned, its layer laid, its compilers tried."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rbuild import binfmt, emulator, rootfs
from rbuild.architecture import Architecture
from rbuild.console import size
from rbuild.emulator import Emulator
from rbuild.environment import Environment
from rbuild.errors import InfrastructureError, ProcessFailed, UsageError
from rbuild.rootfs import Provisioned, same_version
from rbuild.sandbox import MODULE, Bind, Job, Runtime, Sandbox
from rbuild.sandbox.bwrap import Bwrap
from rbuild.sandbox.native import Layer, layer, merged
from rbuild.store import METADATA, Store, digest, read_json, write_json

TOOLCHAIN = re.compile(r"(clang|lld|llvm)-\d+|rustc|rust-src|bindgen|make|gcc|libc6-dev")
"""The packages whose versions decide what a build makes."""


@dataclass(frozen=True)
class Ready:
    """An environment that can be entered, and by what.

    ``toolchain`` has the versions of the packages that decide what a build makes, for people;
    ``inputs`` is the record of all that does.
    ``emulated_programs`` are those of a hybrid's list that have no native twin; ``emulator`` is
    which QEMU runs what is emulated, and as which CPU.
    """

    environment: Environment
    sandbox: Sandbox
    runtime: Runtime
    toolchain: Mapping[str, str]
    rootfs_keys: tuple[str, ...]
    inputs: Mapping[str, Any]
    emulated_programs: tuple[str, ...]
    emulator: str | None
    seconds: float
    cached: bool


def runtime_for(
    name: str, store: Store, *, memory_bytes: int | None = None, cpus: float | None = None
) -> Runtime:
    """Return the runtime of that name; raises UsageError where it can't keep the limits."""
    if name == "docker":
        from rbuild.sandbox.docker import MIN_MEMORY, Docker, Limits  # noqa: PLC0415 - loads slowly

        if memory_bytes is not None and memory_bytes < MIN_MEMORY:
            raise UsageError(
                f"--memory: {size(memory_bytes)} is too little: a container needs at least "
                f"{MIN_MEMORY >> 20}m, a compiler some hundred."
            )
        return Docker(store, Limits(memory_bytes, cpus))
    assert name == "bwrap"
    if (memory_bytes, cpus) != (None, None):
        raise UsageError("--memory and --cpus are for --runtime docker.")
    return Bwrap()


def maker(runtime: Runtime) -> rootfs.Make | None:
    """Return what makes rootfses instead of mmdebstrap, where a Docker engine has to."""
    if runtime.name != "docker" or shutil.which("mmdebstrap") is not None:
        return None
    from rbuild.sandbox.docker import Docker  # noqa: PLC0415 - loads slowly

    assert isinstance(runtime, Docker)
    return runtime.make_rootfs


def make_ready(
    environment: Environment, store: Store, runtime: Runtime, *, scratch: Path | None = None
) -> Ready:
    """Provision what the environment lacks, and verify it once.

    With ``scratch``, an empty folder, it can be written: see Sandbox.
    Raises as ``rootfs.provision`` does, and InfrastructureError where its compilers don't work.
    """
    store.need_programs()
    runs = emulator.obtain(environment, store)
    make = maker(runtime)
    made = [rootfs.provision(part, store, make=make) for part in environment.rootfses]
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
    ready = Ready(
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
        _verify_once(ready, store)
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


def _verify_once(ready: Ready, store: Store) -> None:
    """Try the compilers, unless this very combination of rootfses has passed before."""
    environment = ready.environment
    base = environment.base.entry(store)
    runtime = ready.runtime.name
    mark = base.path / f"verified-{environment.name.replace(':', '-')}-{runtime}.json"
    wanted = {
        "layer": [b.target for b in ready.sandbox.layer],
        "cc": environment.base.definition.cc,
        "inputs": digest(ready.inputs),
        "created": [
            (part.entry(store).metadata or {}).get("created") for part in environment.rootfses
        ],
    }
    if read_json(mark) == wanted:
        return
    title = f"Verifying {environment.name}: its compilers, and what they make"
    with store.console.step(title, key=f"{wanted['inputs']} {runtime}"):
        verify(ready, store)
    assert (base.path / METADATA).exists()
    write_json(mark, wanted)


C_PROGRAM = """\
#include <stdio.h>
int main(void)
{
\tputs("works");
\treturn 0;
}
"""

# The cross rootfs has no std of its target (a kernel builds its own core), so its Rust is tried
# with none; RUSTC_BOOTSTRAP is what the kernel sets, too.
RUST_CORELESS = """\
#![feature(no_core, lang_items)]
#![no_core]
#![no_std]
#[lang = "sized"]
pub trait Sized {}
#[no_mangle]
pub extern "C" fn works() {}
"""

RUST_PROGRAM = """\
fn main() {
    println!("works");
}
"""


def verify(ready: Ready, store: Store) -> None:
    """Compile a tiny C and a tiny Rust program for its target, and run them where they can run.

    Raises InfrastructureError with the compiler's words.
    """
    environment = ready.environment
    target = environment.target
    suffix = "" if environment.llvm == "1" else environment.llvm
    cc = environment.base.definition.cc
    native = environment.base.architecture == target
    with store.scratch("verify") as folder:
        (folder / "hello.c").write_text(C_PROGRAM)
        (folder / "coreless.rs").write_text(RUST_CORELESS)
        (folder / "hello.rs").write_text(RUST_PROGRAM)
        steps = [
            ["make", "--version"],
            [
                f"clang{suffix}",
                f"--target={target.triplet}",
                "-O2",
                "-c",
                "hello.c",
                "-o",
                "clang.o",
            ],
            [cc, "-O2", "-o", "hello-c", "hello.c"],
            [
                "rustc",
                f"--target={target.rust_bare}",
                "--crate-type=lib",
                "--emit=obj",
                "-o",
                "coreless.o",
                "coreless.rs",
            ],
        ]
        products = ["clang.o", "hello-c", "coreless.o"]
        if native:
            steps += [
                ["./hello-c"],
                [
                    "rustc",
                    f"--target={target.rust_triplet}",
                    f"-Clinker={cc}",
                    "-o",
                    "hello-rust",
                    "hello.rs",
                ],
                ["./hello-rust"],
                ["uname", "-m"],
            ]
            products.append("hello-rust")
        for argv in steps:
            _try(ready, folder, argv)
        for product in products:
            _must_be_for(target, folder / product, environment.name)


def _try(ready: Ready, folder: Path, argv: list[str]) -> None:
    job = Job(argv, (Bind(folder, MODULE, writable=True),), MODULE, {"RUSTC_BOOTSTRAP": "1"})
    try:
        done = ready.runtime.run(ready.sandbox, job)
    except ProcessFailed as error:
        raise InfrastructureError(
            f"{ready.environment.name} was provisioned, but `{' '.join(argv)}` fails in it.",
            detail=error.detail,
            hint=f"`rbuild setup --force {ready.environment.name}` makes it anew.",
        ) from error
    machine = ready.environment.base.architecture.machine
    expected = {"./hello-c": "works", "./hello-rust": "works", "uname": machine}.get(argv[0])
    if expected is not None and expected not in (line.strip() for line in done.tail):
        raise InfrastructureError(
            f"{ready.environment.name}: `{' '.join(argv)}` prints {done.text!r}, not {expected!r}."
        )


def _must_be_for(target: Architecture, path: Path, name: str) -> None:
    from rbuild.elf import machine  # noqa: PLC0415 - pyelftools is needed only this once

    found = machine(path)
    if found != target.elf.name:
        raise InfrastructureError(
            f"{name}: {path.name} was compiled for {found}, not {target.elf.name}."
        )
