"""The options that several commands share, and what they resolve to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from rbuild.cache.directory import Cache
from rbuild.cli.complete.types import ENVIRONMENT, PROFILE
from rbuild.cli.main import SESSION, App
from rbuild.cli.reproducer import command_line, reproducer_lines, reproduction
from rbuild.cli.size import Count, Number, Size
from rbuild.cli.suggest import Choice
from rbuild.errors import UsageError
from rbuild.kernel.identity import Kernel
from rbuild.kernel.kdir import Kdir
from rbuild.kernel.prepare import prepare
from rbuild.provision.prepare import checked_runtime, prepare_environment
from rbuild.sandbox.context import SILENCE_S, BuildContext, CacheUse, Phase
from rbuild.sandbox.runtime import Runtime
from rbuild.source.fetch import obtain
from rbuild.specs import environment, profile
from rbuild.specs.profile import Driver, Kind, Profile
from rbuild.util import export, root
from rbuild.util.process import Limits
from rbuild.util.root import Root

Function = TypeVar("Function", bound=Callable[..., Any])

Group = TypeVar("Group")


def grouped(name: str, kind: type[Group]) -> Callable[[Function], Function]:
    """Give a command the options that are called as a dataclass's fields as one parameter.

    It stands below those options; one that the command doesn't have is the field's default.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]

    def decorate(function: Function) -> Function:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            values = {one: kwargs.pop(one) for one in names if one in kwargs}
            return function(*args, **kwargs, **{name: kind(**values)})

        return cast("Function", call)

    return decorate


@dataclass(frozen=True)
class Where:
    """For which profile, in which environment and how a command builds."""

    env: str
    profile_name: str
    runtime: str
    jobs: int | None = None
    ccache: bool = False

    def profile(self) -> Profile:
        """Load the profile."""
        return profile.load(self.profile_name)

    def build_context(self, app: App, command: str) -> BuildContext:
        """Return the build context of a command."""
        return build_context(app, command, self.runtime, self.jobs, ccache=self.ccache)

    def kdir(self, profile: Profile, made: BuildContext) -> Kdir:
        """Return the profile's KDIR, provisioning whatever it lacks."""
        return prepare(self.kernel(profile, made))

    def kernel(self, profile: Profile, made: BuildContext) -> Kernel:
        """Return the profile's kernel, with its source and environment."""
        found = environment.load_for(self.env, profile.architecture)
        ready = prepare_environment(found, made.cache, made.runtime)
        return Kernel(profile, obtain(profile, ready, made.cache), ready, made)


@dataclass(frozen=True)
class What:
    """Which module a command builds: one of our drivers, or that in PATH."""

    path: Path | None = None
    root_folder: Path | None = None
    kind: str | None = None
    driver: str | None = None

    def check(self) -> None:
        """Raise click.UsageError for options that PATH excludes."""
        if self.path is not None and (was_typed("driver") or self.kind == Kind.IN_TREE):
            raise click.UsageError("PATH is built out-of-tree, and goes without --driver.")

    @property
    def root(self) -> Root | None:
        """What --root says of PATH; None without PATH, which our own drivers don't have."""
        if self.path is not None:
            return root.named(self.root_folder, self.path)
        if self.root_folder is not None:
            raise click.UsageError("--root needs PATH.")
        return None

    def chosen(self, profile: Profile) -> tuple[Driver, Kind]:
        """Return the driver and its kind, by default the profile's; PATH is out-of-tree."""
        kind = Kind(self.kind or profile.kind)
        return Driver(self.driver or profile.driver), Kind.OUT_OF_TREE if self.path else kind


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

RESOLVED = "rbuild.resolved"
"""Where it keeps what options that weren't given have become."""


def _limit(ctx: click.Context, param: click.Parameter, value: Any) -> None:  # noqa: ANN401
    assert param.name is not None
    ctx.meta.setdefault(LIMITS, {})[param.name] = value


def limit_options(function: Function) -> Function:
    """Add --memory and --cpus, which ``build_context`` takes from the context."""
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
                export.must_be_outside(path, app.cache.root)
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


def runtime_named(name: str, cache: Cache) -> Runtime:
    """Return the runtime of that name, with the limits that the command line has for it."""
    asked = click.get_current_context().meta.get(LIMITS, {})
    return checked_runtime(name, cache, asked.get("memory"), asked.get("cpus"))


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


def build_context(
    app: App,
    command: str,
    runtime: str | Runtime,
    jobs: int | None,
    *,
    ccache: bool = False,
) -> BuildContext:
    """Return the build context of a command."""
    context = click.get_current_context()
    if isinstance(runtime, str):
        runtime = runtime_named(runtime, app.cache)
    limits = context.meta.get(LIMITS, {})
    resolved = context.meta.setdefault(RESOLVED, {})
    made = BuildContext(
        command,
        app.cache,
        runtime,
        jobs or len(os.sched_getaffinity(0)),
        ccache,
        Limits(silence_s=SILENCE_S, total_s=limits.get("timeout")),
        lambda: command_line(context, resolved),
        limits.get("memory"),
        limits.get("cpus"),
    )
    resolved.update(limits, jobs=made.jobs)
    context.call_on_close(made.close)
    context.meta[SESSION] = made
    return made


def resolve_options(**values: Any) -> None:  # noqa: ANN401
    """Record what options that weren't given have become, for the line that reproduces a run."""
    click.get_current_context().meta.setdefault(RESOLVED, {}).update(values)


def was_typed(name: str) -> bool:
    """Tell whether the parameter was given on the command line, not by a variable or a file."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def cache_words(phases: Iterable[Phase]) -> str:
    """Return what to say of ccache's part in the phases of this run; nothing if it had none."""
    uses = [one.ccache for one in phases if one.ccache is not None and not one.cached]
    use = sum(uses, start=CacheUse())
    asked = use.hits + use.misses
    return f", {use.hits} of {asked} compilations from ccache" if asked else ""


def reproduce_info(made: BuildContext, script: Path | None) -> dict[str, str | None]:
    """Return how to have a run's result again; with -v it is said, too."""
    found = reproduction(made.line(), script)
    for line in reproducer_lines(found):
        made.console.verbose(line)
    return found


def summary(
    command: str, kdir: Kdir, made: BuildContext, script: Path | None = None
) -> dict[str, Any]:
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
        "reproduce": reproduce_info(made, script),
    }
