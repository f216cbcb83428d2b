"""The command line: global options, commands loaded when they are called, errors and exit codes."""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import Any

import click

from rbuild import __version__
from rbuild.cache.directory import Cache, CorruptEntry
from rbuild.cache.ownership import denied
from rbuild.cli.arguments import arranged, before_dashes
from rbuild.cli.defaults import TOLERATES_BAD_CONFIG, Defaults
from rbuild.cli.reproducer import reproduction
from rbuild.cli.suggest import Group
from rbuild.errors import (
    FREE_SPACE,
    INTERRUPTED,
    BuildFailed,
    InfrastructureError,
    Interruption,
    RbuildError,
)
from rbuild.specs.config import VARIABLES, pins
from rbuild.ui.console import Console, abandon
from rbuild.ui.estimates import Estimates
from rbuild.ui.format import visible
from rbuild.util.disk import full
from rbuild.util.home import at_home, user_path

COMMANDS = {
    "doctor": "Check what this host has and lacks; --fix installs it.",
    "setup": "Provision environments: cross, chroot, hybrid.",
    "kernel": "Build the kernel of a profile.",
    "module": "Build the MFRC522 driver, or the module in PATH.",
    "overlay": "Compile the reader's device tree overlay, or those in PATH.",
    "package": "Make packages for a board: .deb, tar, DKMS.",
    "boot": "Boot the kernel in QEMU, and test the driver there.",
    "bench": "Time the ways of building against each other.",
    "matrix": "Build every combination, here or on several machines.",
    "worker": "Make this machine one that a matrix is built on.",
    "deploy": "Bring the driver, or a whole kernel, to a board over ssh.",
    "ide": "Tell clangd and rust-analyzer how a module is built.",
    "shell": "Open a shell in an environment, as a build sees it.",
    "status": "Show what is provisioned and built, with sizes and ages.",
    "clean": "Remove what the cache directory holds.",
    "profiles": "List profiles; show one resolved, or their JSON Schema.",
    "config": "Show values from configuration files; trust a project's file.",
    "completion": "Make bash, zsh or fish complete rbuild's command line.",
    "man": "Print the manual page; --install lets man(1) find it.",
}
"""Each command with its line in the help; each lives in the module of its name."""

SESSION = "rbuild.session"
"""Where click's context keeps the BuildContext of the command that runs, if it has one."""

DAMAGES = 8
"""How many damaged entries of the cache are made anew in one run."""

EPILOG = """\b
Examples:
  rbuild doctor --fix            install what this host lacks
  rbuild setup chroot            provision an aarch64 chroot
  rbuild module --in-tree        build the driver as a part of the kernel
  rbuild boot                    prove in QEMU that the driver works
  rbuild bench                   compare the ways of building
"""


@dataclass(frozen=True)
class App:
    """What the global options decide."""

    cache: Cache
    console: Console


class Commands(Group):
    """A group that knows its commands' names and help, and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names in the order of their use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        found = importlib.import_module(f"rbuild.cli.{cmd_name}").command
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _cache_directory(given: str | None) -> Path:
    if given is None:
        return user_path("cache", "Set HOME, or name a place with --cache-dir.") / "rbuild"
    return at_home(given, "--cache-dir").absolute()


@click.group(
    cls=Commands,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@click.option(
    "--cache-dir",
    envvar="RBUILD_CACHE_DIR",
    metavar="DIR",
    help="Where environments, sources and builds are kept (RBUILD_CACHE_DIR).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON value on stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Show the programs' own output.")
@click.option("-q", "--quiet", is_flag=True, help="Show results, warnings and errors only.")
@click.version_option(__version__, "-V", "--version")
@click.pass_context
def main(
    ctx: click.Context, cache_dir: str | None, as_json: bool, verbose: bool, quiet: bool
) -> None:
    """Build a Linux kernel and a driver for a 64-bit Arm board, and measure each way.

    The options below may follow the command, too; `rbuild help COMMAND` shows a command's own.
    """
    if verbose and quiet:
        raise click.UsageError("--verbose and --quiet exclude each other.")
    root = _cache_directory(cache_dir)
    verbosity = 1 if verbose else -1 if quiet else 0
    console = Console(json=as_json, verbosity=verbosity, estimates=Estimates(root))
    _heed(ctx, console)
    cache = Cache(root, console)
    ctx.call_on_close(cache.release)
    ctx.obj = App(cache, console)


def _heed(ctx: click.Context, console: Console) -> None:
    """Say what is to be said of configuration files, and set what other programs read."""
    defaults = ctx.default_map
    if not isinstance(defaults, Defaults):
        return
    for note in defaults.notes:
        console.warn(note)
    command = str(ctx.invoked_subcommand)
    if defaults.fault is not None and not (command in TOLERATES_BAD_CONFIG or defaults.asks_help):
        raise defaults.fault
    if defaults.fault is not None and command != "config":  # which says it itself
        console.warn(defaults.fault.message)
    if texts := pins(defaults.files):
        from rbuild.util import textfile  # noqa: PLC0415 - most runs have no such file

        # Files may change while a command runs: what was trusted is what it reads.
        ctx.with_resource(textfile.pinned(texts.get))
    engine = defaults.found.get("docker_host")
    variable = VARIABLES["docker_host"]
    if engine is not None and variable not in os.environ:
        # The Docker SDK and docker(1) look there.
        os.environ[variable] = str(engine.value)
        defaults.exported.add(variable)


def run(arguments: list[str]) -> int:
    """Run the command line; return the exit code.  The one place where errors become messages."""
    console = Console(json="--json" in before_dashes(arguments))
    try:
        with _signals():
            return _invoke(arguments)
    except click.ClickException as error:
        _show_usage(error)
        return _answer(console, error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        words = (
            "Interrupted. What is finished is kept; the next run goes on from there. "
            "`rbuild status` lists what is unfinished, `rbuild clean` removes it."
        )
        console.error(words)
        result = error.result if isinstance(error, Interruption) else None
        return _answer(console, words, INTERRUPTED, result=result)
    except RbuildError as error:
        return _show(error, console)
    except BrokenPipeError:
        # Whoever read our output (head, less) has seen enough.
        abandon(1)
        return 0
    except OSError as error:
        return _show(_of_stdout(error) or _from_os(error), console)


def _invoke(arguments: list[str]) -> int:
    """Run the command; where it meets a damaged entry of the cache, remove that and run it again.

    A command finds in the cache what it has done already.
    """
    for _ in range(DAMAGES):
        try:
            return _attempt(arguments)
        except CorruptEntry as damaged:
            cache = damaged.cache
            cache.console.warn(f"{damaged.message} It is removed, and made anew.")
            cache.discard(damaged)
    return _attempt(arguments)


def _attempt(arguments: list[str]) -> int:
    """Run the command, without what click's own ``main`` makes of a closed pipe."""
    try:
        arguments = arranged(main, arguments)
        asks_help = bool({"-h", "--help"} & set(before_dashes(arguments)))
        defaults = Defaults(main, asks_help)
        with main.make_context("rbuild", arguments, default_map=defaults) as context:
            try:
                result = main.invoke(context)
            except RbuildError as error:
                made = context.meta.get(SESSION)
                if made is not None and made.has_log:
                    error.log = error.log or made.log_path
                if made is not None and error.exit_code == BuildFailed.exit_code:
                    reproducer_lines = reproduction(made.line(), error.script)
                    error.result = {"reproduce": reproducer_lines, **error.result}
                raise
            except PermissionError as error:
                app = context.find_object(App)
                raise (None if app is None else denied(app.cache.root, error)) or error from error
    except click.exceptions.Exit as end:
        return end.exit_code
    return result if isinstance(result, int) else 0


def _show_usage(error: click.ClickException) -> None:
    """Show what click has found wrong, which may be in a file of somebody's."""
    text = io.StringIO()
    error.show(text)
    message = error.format_message()
    shown = text.getvalue().replace(click.unstyle(message), visible(message))
    click.echo(visible(shown, lines=True), err=True, nl=False)


def _show(error: RbuildError, console: Console) -> int:
    log = "" if error.log is None else f" The full log: {error.log}"
    console.error(error.message + log, hint=error.hint, detail=error.detail)
    if "reproduce" in error.result:
        from rbuild.cli.reproducer import reproducer_lines  # noqa: PLC0415 - most runs don't fail

        for line in reproducer_lines(error.result["reproduce"]):
            console.note(line)
    result = {**error.result, "detail": error.detail}
    return _answer(console, error.message, error.exit_code, error.hint, error.log, result)


def _answer(
    console: Console,
    message: str,
    code: int,
    hint: str | None = None,
    log: Path | None = None,
    result: Mapping[str, Any] | None = None,
) -> int:
    """Give a script that asked for JSON an error as JSON; return the exit code."""
    if console.json:
        data = {
            "detail": "",
            **(result or {}),
            "error": message,
            "hint": hint,
            "exit_code": code,
            "log": log,
        }
        # Where stdout itself is what failed, the exit code has to do.
        with suppress(OSError):
            console.result("", data)
    return code


def _of_stdout(error: OSError) -> InfrastructureError | None:
    """Return what to say if the error is one of writing to stdout, by who has raised it."""
    writers = {click.echo.__code__, Console._print.__code__}
    if not any(frame.f_code in writers for frame, _ in walk_tb(error.__traceback__)):
        return None
    abandon(1)
    if error.errno == errno.EBADF:
        return InfrastructureError(
            "The result can't be printed: stdout is closed.",
            hint="To discard the result, use `>/dev/null`.",
        )
    return InfrastructureError(
        f"The result can't be written to stdout: {error.strerror}.",
        hint="Check the file, or the file system, that stdout leads to.",
    )


def _from_os(error: OSError) -> InfrastructureError:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        place = Path(str(error.filename or "")).absolute()
        what = full(next(one for one in (place, *place.parents) if one.is_dir()))
        return InfrastructureError(
            f"{what[0].upper()}{what[1:]}{where}.",
            hint=FREE_SPACE,
        )
    return InfrastructureError(f"{error.strerror or error}{where}.")


def _leave_terminal() -> None:
    """Write no more to a terminal that was closed: a write would fail, and hide the interrupt."""
    for descriptor in (1, 2):
        is_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
        if is_device and not os.isatty(descriptor):
            abandon(descriptor)


@contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a run as Ctrl-C does: children ended, nothing half done.

    One that is ignored, as nohup(1) makes SIGHUP, stays so.
    """

    def interrupt(number: int, _: Any) -> None:  # noqa: ANN401
        if number == signal.SIGHUP:
            _leave_terminal()
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    yield
