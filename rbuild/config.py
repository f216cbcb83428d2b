"""Configuration files: values for options that weren't given, from a project and from the user.

A value is looked for on the command line, in the option's environment variable, in the project's
file, in the user's, and is else the option's default.  Each field stands for one variable: an
option takes a field if it has that variable (see ``Defaults`` in rbuild.cli.defaults).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbuild.errors import UsageError
from rbuild.home import at_home

if TYPE_CHECKING:
    from rbuild.settings import Settings

NAME = "rbuild.yaml"
CONFIG_VARIABLE = "RBUILD_CONFIG"
"""Names the user's file, if it isn't the usual one."""

VARIABLES = {
    "profile": "RBUILD_PROFILE",
    "environment": "RBUILD_ENV",
    "driver": "RBUILD_DRIVER",
    "runtime": "RBUILD_RUNTIME",
    "memory": "RBUILD_MEMORY",
    "cpus": "RBUILD_CPUS",
    "jobs": "RBUILD_JOBS",
    "ccache": "RBUILD_CCACHE",
    "machine": "RBUILD_MACHINE",
    "runs": "RBUILD_RUNS",
    "warmup": "RBUILD_WARMUP",
    "cache_dir": "RBUILD_CACHE_DIR",
    "docker_host": "DOCKER_HOST",
    "ssh": "RBUILD_SSH",
    "scheduler": "RBUILD_SCHEDULER",
}
"""Each field's environment variable."""

USER_ONLY = {
    "cache_dir": "it says where on your disk files are written and removed",
    "docker_host": "it says which machine gets your sources",
    "ssh": "it is a command that is run",
    "scheduler": "it says which machines get your sources",
}
"""Fields that a project, which others may have written, can't set, each with the reason."""


class Scope(StrEnum):
    """Whose file it is."""

    PROJECT = "project"
    USER = "user"


@dataclass(frozen=True)
class Layer:
    """A configuration file: its values as options take them, and the line of each."""

    scope: Scope
    path: Path
    values: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """A value from a file, and where in it that stands."""

    value: Any
    layer: Layer
    line: int

    def __str__(self) -> str:
        return f"{self.layer.scope} file {self.layer.path}:{self.line}"


def user_file() -> Path:
    """Return where the user's file is looked for."""
    if named := os.environ.get(CONFIG_VARIABLE):
        return at_home(named, CONFIG_VARIABLE).absolute()
    from platformdirs import user_config_path  # noqa: PLC0415 - not needed to show help

    return user_config_path("rbuild") / NAME


def project_file(start: Path | None = None) -> Path | None:
    """Return the file of the project that ``start``, by default the current folder, is in.

    It is in that folder or the nearest one above, up to a repository's root or the user's home.
    """
    try:
        here = (start or Path.cwd()).absolute()
    except FileNotFoundError:  # the current folder was removed
        return None
    home = Path.home()
    for folder in (here, *here.parents):
        if (folder / NAME).is_file():
            return folder / NAME
        if folder == home or (folder / ".git").exists():
            break
    return None


def is_trusted(path: Path) -> bool:
    """Tell whether a project's file is the caller's own or root's, not some other user's."""
    trusted = {0, os.getuid()}
    if os.getuid() == 0 and (behind := os.environ.get("SUDO_UID", "")).isdigit():
        trusted.add(int(behind))
    return path.stat().st_uid in trusted


def layers() -> tuple[list[Layer], list[str]]:
    """Return the files that count, the strongest first, and what to say of one that doesn't.

    Raises UsageError with file, line and field for what is wrong in them.
    """
    found: list[Layer] = []
    notes: list[str] = []
    project, user = project_file(), user_file()
    if project is not None and project != user:
        if is_trusted(project):
            found.append(load(project, Scope.PROJECT))
        else:
            notes.append(f"{project} is another user's: it was ignored.")
    if user.is_file():
        found.append(load(user, Scope.USER))
    elif os.environ.get(CONFIG_VARIABLE):
        raise UsageError(f"{CONFIG_VARIABLE}={user}: there is no such file.")
    return found, notes


def load(path: Path, scope: Scope) -> Layer:
    """Read one file; raises UsageError with file, line and field."""
    # Most runs have no file, and these take a while to import.
    from rbuild.settings import read  # noqa: PLC0415

    settings, lines = read(path)
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    if scope is Scope.PROJECT:
        for name, why in USER_ONLY.items():
            if name in given:
                raise UsageError(
                    f"{path}:{lines[name]}: {name}: a project can't set this: {why}.",
                    hint=f"Put it into your own file, {user_file()}, or set {VARIABLES[name]}.",
                )
    values = {name: value for name, value in _plain(settings, path, lines).items() if name in given}
    return Layer(scope, path, values, lines)


def resolved(files: list[Layer]) -> dict[str, Origin]:
    """Return what the files say of each field, the stronger file's word counting."""
    return {
        name: Origin(value, layer, layer.lines.get(name, 1))
        for layer in reversed(files)
        for name, value in layer.values.items()
    }


def _plain(settings: Settings, path: Path, lines: Mapping[str, int]) -> dict[str, Any]:
    """Return the values as click takes them; paths are relative to the file."""

    def placed(name: str) -> str:
        return str(path.parent / at_home(values[name], f"{path}:{lines.get(name, 1)}: {name}"))

    values = settings.model_dump(mode="json", exclude_none=True)
    for name in ("profile", "environment", "machine"):
        value = values.get(name, "")
        if "/" in value or value.endswith((".yaml", ".yml")):
            values[name] = placed(name)
    if "cache_dir" in values:
        values["cache_dir"] = placed("cache_dir")
    return values
