"""Verifying an environment: its compilers are tried, and what they make is run."""

from __future__ import annotations

from pathlib import Path

from rbuild.cache.directory import Cache
from rbuild.errors import InfrastructureError, ProcessFailed
from rbuild.provision.prepared import PreparedEnvironment
from rbuild.sandbox.runtime import MODULE, Bind, Job
from rbuild.specs.architecture import Architecture

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


def verify(ready: PreparedEnvironment, cache: Cache) -> None:
    """Compile a tiny C and a tiny Rust program for its target, and run them where they can run.

    Raises InfrastructureError with the compiler's words.
    """
    environment = ready.environment
    target = environment.target
    suffix = "" if environment.llvm == "1" else environment.llvm
    cc = environment.base.definition.cc
    native = environment.base.architecture == target
    with cache.scratch("verify") as folder:
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


def _try(ready: PreparedEnvironment, folder: Path, argv: list[str]) -> None:
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
    from rbuild.util.elf import machine  # noqa: PLC0415 - pyelftools is needed only this once

    found = machine(path)
    if found != target.elf.name:
        raise InfrastructureError(
            f"{name}: {path.name} was compiled for {found}, not {target.elf.name}."
        )
