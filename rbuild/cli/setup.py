"""``rbuild setup``: provision environments."""

from __future__ import annotations

import click

from rbuild.cli.complete.types import ENVIRONMENT
from rbuild.cli.main import App
from rbuild.cli.options import build_context, runtime_option
from rbuild.provision.prepare import maker, prepare_environment
from rbuild.provision.prepared import PreparedEnvironment
from rbuild.provision.rootfs import entry_of, provision
from rbuild.specs import environment
from rbuild.specs.profile import DEFAULT_ARCHITECTURE
from rbuild.ui.format import duration, joined

EPILOG = """\b
Examples:
  rbuild setup                   the cross environment
  rbuild setup chroot hybrid
  rbuild setup --all --force     make all of them anew
  rbuild setup cross-armhf       for 32-bit Arm
  rbuild setup chroot --runtime docker --print-dockerfile
"""


@click.command(epilog=EPILOG)
@click.argument("names", nargs=-1, type=ENVIRONMENT, metavar="[cross|chroot|hybrid]...")
@click.option("--all", "every", is_flag=True, help="All environments for 64-bit Arm.")
@click.option("--force", is_flag=True, help="Make the rootfses anew, with today's packages.")
@click.option(
    "--print-dockerfile", "printed", is_flag=True, help="Print one for the environment instead."
)
@runtime_option
@click.pass_obj
def command(
    app: App, names: tuple[str, ...], every: bool, force: bool, printed: bool, runtime: str
) -> None:
    """Provision environments, and verify that their compilers work.

    What is provisioned already is left alone.  With --runtime docker, an image of each rootfs is
    made, too.
    """
    wanted = environment.names_for(DEFAULT_ARCHITECTURE) if every else list(names) or ["cross"]
    loaded = [environment.load(name) for name in wanted]
    if printed:
        if len(loaded) != 1:
            raise click.UsageError("--print-dockerfile is for one environment.")
        from rbuild.provision.dockerfile import dockerfile  # noqa: PLC0415 - needed for this only

        text = dockerfile(loaded[0])
        app.console.result(text, {"environment": loaded[0].name, "dockerfile": text})
        return
    made = build_context(app, "setup", runtime, None)
    if force:
        # Environments share rootfses: each is made once.
        parts = {entry_of(part, made.cache).name: part for one in loaded for part in one.rootfses}
        for part in parts.values():
            provision(part, made.cache, force=True, make=maker(made.runtime))
    found = [prepare_environment(one, made.cache, made.runtime) for one in loaded]
    app.console.result(
        joined(line for ready in found for line in _lines(ready)),
        [
            {
                "environment": ready.environment.name,
                "runtime": ready.runtime.name,
                "root": str(ready.sandbox.root),
                "rootfs": list(ready.rootfs_keys),
                "builder": ready.environment.builder.machine,
                "emulated": ready.environment.emulated,
                "emulator": ready.emulator,
                "level": ready.environment.level,
                "native_programs": len(ready.environment.programs) - len(ready.emulated_programs),
                "emulated_programs": list(ready.emulated_programs),
                "toolchain": dict(ready.toolchain),
                "seconds": round(ready.seconds, 1),
                "cached": ready.cached,
            }
            for ready in found
        ],
    )


def _lines(ready: PreparedEnvironment) -> list[str]:
    name = ready.environment.name
    how = "was there already" if ready.cached else f"took {duration(ready.seconds)}"
    compiler = ", ".join(
        f"{package} {version}"
        for package, version in ready.toolchain.items()
        if package.startswith(("clang-", "rustc"))
    )
    lines = [f"{name}: ready ({how}); {compiler}"]
    if ready.environment.emulated:
        lines.append(f"  emulated by {ready.emulator}")
    if ready.environment.native is not None:
        native = len(ready.environment.programs) - len(ready.emulated_programs)
        level = ready.environment.level
        lines.append(f"  level {level}: {native} programs are native, and LLVM")
    if ready.emulated_programs:
        lines.append(f"  no native twin, so emulated: {', '.join(ready.emulated_programs)}")
    return lines
