"""The options that several commands share, and what they resolve to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from rbuild import environment, export, root
from rbuild.cli import SESSION, App
from rbuild.cli.again import again, command_line
from rbuild.cli.size import Count, Number, Size
from rbuild.cli.typo import Choice
from rbuild.completion.types import ENVIRONMENT, PROFILE
from rbuild.errors import UsageError
from rbuild.kernel import Kdir, prepare
from rbuild.profile import Driver, Kind, Profile
from rbuild.provision import make_ready, runtime_for
from rbuild.root import Root
from rbuild.sandbox import Runtime
from rbuild.session import CacheUse, Phase, Session
from rbuild.source import obtain
from rbuild.store import Store

Function = TypeVar("Function", bound=Callable[..., Any])

env_option = click.option(
    "--env",
    "env",
    type=ENVIRONMENT,
    default="cross",
    show_default=True,
    envvar="RBUILD_ENV",
    metavar="E",
    help="The environment: cross, chroot, hybrid (hybrid:LEVEL), or a definition's path.",
)
profile_option = click.option(
    "--profile",
    "profile_name",
    type=PROFILE,
    default="slim",
    show_default=True,
    envvar="RBUILD_PROFILE",
    metavar="P",
    help="The profile: a name, or a YAML file's path.",
)
driver_option = click.option(
    "--driver",
    type=Choice([driver.value for driver in Driver]),
    envvar="RBUILD_DRIVER",
    help="Which of our drivers [default: the profile's].",
)
RUNTIMES = ("bwrap", "docker")
LIMITS = "rbuild.limits"
"""Where a context keeps what --memory and --cpus say."""


def _limit(ctx: click.Context, param: click.Parameter, value: Any) -> None:  # noqa: ANN401
    assert param.name is not None
    ctx.meta.setdefault(LIMITS, {})[param.name] = value


def limit_options(function: Function) -> Function:
    """Add --memory and --cpus, which ``session`` takes from the context."""
    for name, kind, text in (
        ("--cpus", Number(min=0.01), "How many processors' worth of time"),
        ("--memory", Size(), "How much memory, such as 4g,"),
    ):
        function = click.option(
            name,
            type=kind,
            callback=_limit,
            expose_value=False,
            envvar=f"RBUILD_{name.lstrip('-').upper()}",
            metavar=name.lstrip("-")[0].upper(),
            help=f"{text} a build may take (docker only).",
        )(function)
    return function


class Output(click.Path):
    """A file or a folder of the user's that is written to: it can be, and isn't in the cache.

    That is looked at before an hour of work, not after it.
    """

    def __init__(self, *, folder: bool = False, allow_dash: bool = False) -> None:
        super().__init__(
            file_okay=not folder, dir_okay=folder, allow_dash=allow_dash, path_type=Path
        )

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Path:
        """Return the path; raise UsageError, which names the option."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        app = None if ctx is None else ctx.find_object(App)
        try:
            if self.allow_dash and path == Path("-"):
                return path
            if app is not None:
                export.must_be_outside(path, app.store.root)
            if self.file_okay:
                export.must_be_writable(path)
        except UsageError as error:
            option = "" if param is None else f"{param.opts[0]}: "
            raise UsageError(f"{option}{error.message}", hint=error.hint) from error
        return path


root_option = click.option(
    "--root",
    "root_folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Allow links in PATH to anything below DIR [default: PATH's git work tree, else PATH].",
)


def root_of(path: Path | None, folder: Path | None) -> Root | None:
    """Return what --root says of PATH; None without PATH, which our own drivers don't have."""
    if path is not None:
        return root.named(folder, path)
    if folder is not None:
        raise click.UsageError("--root needs PATH.")
    return None


timeout_option = click.option(
    "--timeout",
    type=Number(min=0, min_open=True),
    callback=_limit,
    expose_value=False,
    envvar="RBUILD_TIMEOUT",
    metavar="S",
    help="End a call of make that takes longer than so many seconds.",
)


def runtime_option(function: Function) -> Function:
    """Add --runtime, and what limits the one that can be limited."""
    return click.option(
        "--runtime",
        type=Choice(RUNTIMES),
        default=RUNTIMES[0],
        show_default=True,
        envvar="RBUILD_RUNTIME",
        help="What enters the environments.",
    )(limit_options(function))


def runtime_named(name: str, store: Store) -> Runtime:
    """Return the runtime of that name, with the limits that the command line has for it."""
    asked = click.get_current_context().meta.get(LIMITS, {})
    memory, cpus = asked.get("memory"), asked.get("cpus")
    runtime = runtime_for(name, store, memory_bytes=memory, cpus=cpus)
    if name == "docker" and cpus is not None:
        from rbuild.sandbox.docker import Docker  # noqa: PLC0415 - loads slowly

        assert isinstance(runtime, Docker)
        runtime.must_have_cpus()
    return runtime


jobs_option = click.option(
    "-j",
    "--jobs",
    type=Count(min=1),
    envvar="RBUILD_JOBS",
    metavar="N",
    help="How many commands make runs at once [default: one a processor].",
)


ccache_option = click.option(
    "--ccache/--no-ccache",
    "ccache",
    default=True,
    show_default=True,
    envvar="RBUILD_CCACHE",
    help="Take C that was compiled before from ccache.",
)


def mode_options(
    *, env_default: str, kind_default: str, driver_default: str
) -> Callable[[Function], Function]:
    """Add --env, --kind and --driver, each of them for several: ``envs``, ``kinds``, ``drivers``.

    A kernel is a kind here, too.  The defaults are the help's words: the command resolves them.
    """
    names = (*(kind.value for kind in Kind), "kernel")
    options = (
        ("driver", Choice([driver.value for driver in Driver]), "A driver", driver_default),
        ("kind", Choice(names), "What is built", kind_default),
        ("env", ENVIRONMENT, "An environment", env_default),
    )

    def add(function: Function) -> Function:
        for name, kind, text, default in options:
            function = click.option(
                f"--{name}",
                f"{name}s",
                multiple=True,
                type=kind,
                metavar="E" if name == "env" else None,
                help=f"{text}; may be repeated [default: {default}].",
            )(function)
        return function

    return add


class Alternative(click.Option):
    """A flag that gives a parameter one of its values; another of its flags excludes it."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:  # noqa: ANN401, ARG002
        """Keep what is given by the option's own name: a later flag would replace it."""
        dest = self.opts[0]
        parser.add_option(
            obj=self, opts=self.opts, dest=dest, action="store_const", const=self.flag_value
        )

    def consume_value(self, ctx: click.Context, opts: Any) -> Any:  # noqa: ANN401
        """Return the parameter's value; raise UsageError if it is given two."""
        flags = [
            one.opts[0]
            for one in ctx.command.params
            if isinstance(one, Alternative) and one.name == self.name and one.opts[0] in opts
        ]
        if len(flags) > 1:
            raise click.UsageError(f"{' and '.join(flags)} exclude each other.", ctx)
        given = {self.name: opts[flags[0]]} if flags else {}
        return super().consume_value(ctx, {**opts, **given})


def kind_options(function: Function) -> Function:
    """Add --out-of-tree and --in-tree, as the parameter ``kind``."""
    for kind, text in (
        (Kind.IN_TREE, "Build as a part of the kernel tree."),
        (Kind.OUT_OF_TREE, "Build beside the kernel tree."),
    ):
        function = click.option(
            f"--{kind.value}",
            "kind",
            cls=Alternative,
            flag_value=kind.value,
            type=str,
            help=text,
        )(function)
    return function


def cluster_options(*, required: bool) -> Callable[[Function], Function]:
    """Return what adds --scheduler, the three files that TLS needs, and --insecure."""

    def add(function: Function) -> Function:
        function = click.option(
            "--insecure",
            is_flag=True,
            help="Allow a scheduler on another machine without TLS: anyone on that network can "
            "then run programs here.",
        )(function)
        for name, text in (
            ("key", "The key of that certificate (RBUILD_TLS_KEY)."),
            ("cert", "This machine's certificate (RBUILD_TLS_CERT)."),
            ("ca", "For tls://, the certificate of the cluster's own CA (RBUILD_TLS_CA)."),
        ):
            function = click.option(
                f"--tls-{name}",
                type=click.Path(dir_okay=False, path_type=Path),
                envvar=f"RBUILD_TLS_{name.upper()}",
                metavar="F.pem",
                help=text,
            )(function)
        return click.option(
            "--scheduler",
            required=required,
            envvar="RBUILD_SCHEDULER",
            metavar="ADDRESS",
            help="The Dask scheduler, such as tls://buildbox:8786 (RBUILD_SCHEDULER).",
        )(function)

    return add


def session(
    app: App,
    command: str,
    runtime: str | Runtime,
    jobs: int | None,
    *,
    ccache: bool = False,
) -> Session:
    """Return the session of a command."""
    context = click.get_current_context()
    if isinstance(runtime, str):
        runtime = runtime_named(runtime, app.store)
    made = Session(command, app.store, runtime, ccache=ccache)
    context.call_on_close(made.close)
    context.meta[SESSION] = made
    if jobs is not None:
        made.jobs = jobs
    total = context.meta.get(LIMITS, {}).get("timeout")
    made.limits = replace(made.limits, total_s=total)
    made.settled.update(context.meta.get(LIMITS, {}), jobs=made.jobs)
    made.line = lambda: command_line(context, made.settled)
    return made


def was_typed(name: str) -> bool:
    """Tell whether the parameter was given on the command line, not by a variable or a file."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def kdir_for(found: Profile, env: str, made: Session) -> Kdir:
    """Return the profile's KDIR in an environment, provisioning whatever it lacks."""
    ready = make_ready(environment.load_for(env, found.architecture), made.store, made.runtime)
    return prepare(found, obtain(found, ready, made.store), ready, made)


def cache_words(phases: Iterable[Phase]) -> str:
    """Return what to say of ccache's part in the phases of this run; nothing if it had none."""
    uses = [one.ccache for one in phases if one.ccache is not None and not one.cached]
    use = sum(uses, start=CacheUse())
    asked = use.hits + use.misses
    return f", {use.hits} of {asked} compilations from ccache" if asked else ""


def told(made: Session) -> dict[str, str | None]:
    """Return how to have a run's result again; with -v it is said, too."""
    found = made.reproduce()
    for line in again(found):
        made.console.verbose(line)
    return found


def summary(command: str, kdir: Kdir, made: Session) -> dict[str, Any]:
    """Return the fields that every build's JSON has."""
    return {
        "command": command,
        "profile": kdir.profile.name,
        "environment": kdir.ready.environment.name,
        "runtime": made.runtime.name,
        "kind": None,
        "driver": None,
        "artefacts": [],
        "phases": [phase.as_json() for phase in kdir.phases],
        "toolchain": dict(kdir.ready.toolchain),
        "kernel_release": kdir.release,
        "log": str(made.log_path) if made.has_log else None,
        "reproduce": told(made),
    }
