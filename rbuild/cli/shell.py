"""``rbuild shell``: an interactive shell as a build sees it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click

from rbuild.cli.main import App
from rbuild.cli.options import Where, env_option, grouped, profile_option, runtime_option
from rbuild.kernel.kbuild import Kbuild, variables
from rbuild.provision.apt import resolver
from rbuild.provision.prepare import prepare_environment
from rbuild.sandbox.runtime import KDIR, MODULE, Bind, Job

EPILOG = """\b
Examples:
  rbuild shell --env hybrid
  rbuild shell -- make -C /src O=/kdir kernelrelease
  rbuild shell --module ~/src/my-driver   then: make -C /src O=/kdir M=/module
  rbuild shell --env hybrid --scratch     then: apt update, apt install ...
"""

EXEC = ("/bin/sh", "-c", 'exec "$@"', "sh")
"""A shell ends with 127 where it doesn't find a program, and with 126 where it may not run it."""


@click.command(epilog=EPILOG, context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND]...")
@env_option
@profile_option
@click.option(
    "--module",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="A folder to have, writable, as /module.",
)
@click.option("--write", is_flag=True, help="Let /kdir be written, too.")
@click.option(
    "--scratch",
    is_flag=True,
    help="Let the whole system be written, with the network: apt works; all is gone at the end.",
)
@runtime_option
@grouped("where", Where)
@click.pass_context
def command(
    ctx: click.Context,
    words: tuple[str, ...],
    where: Where,
    module: Path | None,
    write: bool,
    scratch: bool,
) -> None:
    """Open a shell in an environment: tree in /src, KDIR in /kdir, make's variables set.

    As in a build, there is no network and none of your files.  With COMMAND, run that instead.
    With --scratch it is a system to try things in: install packages, build some, break it.
    """
    app: App = ctx.obj
    made = where.build_context(app, "shell")
    kdir = where.kdir(where.profile(), made)
    kbuild = Kbuild(made, kdir.ready, kdir.tree, kdir.path)
    binds = [
        Bind(bind.source, bind.target, bind.writable and (write or bind.target != KDIR))
        for bind in kbuild.binds()
    ]
    if module is not None:
        binds.append(Bind(module.resolve(), MODULE, writable=True))
    ready = kdir.ready
    if scratch:
        folder = made.run_folder / "scratch"
        folder.mkdir()
        ready = prepare_environment(ready.environment, made.cache, made.runtime, scratch=folder)
        binds += resolver()
    prompt = {"PS1": rf"rbuild {where.env}:\w\$ ", "TERM": "xterm-256color"}
    job = Job(
        [*EXEC, *words] if words else ["bash", "--norc", "-i"],
        binds,
        MODULE if module is not None else KDIR,
        {**kbuild.environment(), **variables(kbuild.ready, kbuild.tree), **prompt},
        network=scratch,
    )
    # What is written by hand is what is wanted: it is recorded as it then is.
    with made.cache.writing(kdir.entry) if write else nullcontext():
        status = ready.runtime.interactive(ready.sandbox, job)
    ctx.exit(status)
