"""Configuration files: values for options that weren't given, from a project and from the user.

A value is looked for on the command line, in the option's environment variable, in the project's
file, in the user's, and is else the option's default.  Each field stands for one variable: an
option takes a field if it has that variable (see ``Defaults`` in rbuild.cli.defaults).  A project's
file sets harmless values; others count once the user trusts it (see rbuild.specs.trust).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbuild.errors import MissingDependency, RefusedFileError, UsageError
from rbuild.util.home import at_home, user_path

if TYPE_CHECKING:
    from rbuild.specs.settings import Settings
    from rbuild.specs.trust import Verdict

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

NEEDS_TRUST = {
    "runtime": "it says what separates a build from your files",
    "memory": "it replaces a limit of yours",
    "cpus": "it replaces a limit of yours",
}
"""Fields that a project sets only if its file is trusted, each with the reason."""

NAMES_ONLY = {
    "profile": "a profile's file says what is downloaded and built",
    "environment": "a definition's file says what is installed, and what runs with which variables",
    "machine": "a machine's file says what QEMU is called with",
}
"""Fields in which a project can name what comes with rbuild; anything else needs trust."""

HARMLESS = {
    "driver": "all of them come with rbuild",
    "jobs": "a build can start as many processes by itself",
    "ccache": "the result has the same bytes",
    "runs": "Ctrl-C ends a benchmark that takes too long",
    "warmup": "Ctrl-C ends a benchmark that takes too long",
}
"""Fields that every project can set, each with the reason."""

BUILT_IN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
"""The name of a profile, an environment or a machine that comes with rbuild."""

DEFINITIONS = (".yaml", ".yml")


class Scope(StrEnum):
    """Whose file it is."""

    PROJECT = "project"
    USER = "user"


@dataclass(frozen=True)
class Layer:
    """A configuration file: its values as options take them, and the line of each.

    ``withheld`` are the fields of a project's file that don't count, each with the reason.
    """

    scope: Scope
    path: Path
    values: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)
    withheld: Mapping[str, str] = field(default_factory=dict)
    verdict: Verdict | None = None
    """Whether a project's file is trusted; the user's own needs no verdict."""


@dataclass(frozen=True)
class Origin:
    """A value from a file, and where in it that stands."""

    value: Any
    layer: Layer
    line: int

    @property
    def distrust(self) -> str:
        """Why the file isn't trusted, if it isn't."""
        return "" if self.layer.verdict is None else self.layer.verdict.reason

    def __str__(self) -> str:
        return f"{self.layer.scope} file {self.layer.path}:{self.line}"


def user_file() -> Path | None:
    """Return where the user's file is looked for; None where the user has no home."""
    if named := os.environ.get(CONFIG_VARIABLE):
        return at_home(named, CONFIG_VARIABLE).absolute()
    with suppress(MissingDependency):
        return user_path("config", "") / "rbuild" / NAME
    return None


def project_file(start: Path | None = None) -> Path | None:
    """Return the file of the project that ``start``, by default the current folder, is in.

    It is in that folder or the nearest one above, up to a repository's root or the user's home.
    """
    try:
        here = (start or Path.cwd()).absolute()
    except FileNotFoundError:  # the current folder was removed
        return None
    home = None
    with suppress(RuntimeError):
        home = Path.home()
    for folder in (here, *here.parents):
        if _is_there(folder / NAME):
            return folder / NAME
        if folder == home or (folder / ".git").exists():
            break
    return None


def _is_there(path: Path) -> bool:
    """Tell whether there is a file or a link, wherever that leads."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def layers() -> tuple[list[Layer], list[str]]:
    """Return the files that count, the strongest first, and what to say of one that doesn't.

    Raises UsageError with file, line and field for what is wrong in them.
    """
    found: list[Layer] = []
    notes: list[str] = []
    project, user = project_file(), user_file()
    if project is not None and project != user:
        try:
            found.append(load(project, Scope.PROJECT))
        except RefusedFileError as error:
            notes.append(error.message)
    if user is not None and user.is_file():
        try:
            found.append(load(user, Scope.USER))
        except RefusedFileError as error:
            if os.environ.get(CONFIG_VARIABLE):
                raise
            notes.append(error.message)
    elif os.environ.get(CONFIG_VARIABLE):
        raise UsageError(f"{CONFIG_VARIABLE}={user}: there is no such file.")
    return found, notes


def load(path: Path, scope: Scope, content: bytes | None = None) -> Layer:
    """Read one file; raises UsageError with file, line and field.

    Raises RefusedFileError, before anything of it is shown, where others may have written it.
    """
    # Most runs have no file, and these take a while to import.
    from rbuild.specs import trust  # noqa: PLC0415
    from rbuild.specs.settings import read  # noqa: PLC0415
    from rbuild.util import textfile  # noqa: PLC0415

    if content is None:
        content = _content(path, scope)
    with textfile.pinned({path.absolute(): content}.get):
        settings, lines = read(path)
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    if scope is Scope.PROJECT:
        for name, why in USER_ONLY.items():
            if name in given:
                raise UsageError(
                    f"{path}:{lines[name]}: {name}: a project can't set this: {why}.",
                    hint=f"Put it into your own file, {user_file() or NAME}, or set "
                    f"{VARIABLES[name]}.",
                )
    values = {name: value for name, value in _plain(settings, path, lines).items() if name in given}
    if scope is Scope.USER:
        return Layer(scope, path, values, lines)
    asked = {
        name: reason for name in values if (reason := needs_trust(name, getattr(settings, name)))
    }
    verdict = trust.check(path, content)
    return Layer(scope, path, values, lines, {} if verdict.is_trusted else asked, verdict)


def _content(path: Path, scope: Scope) -> bytes:
    from rbuild.specs import trust  # noqa: PLC0415 - see load

    try:
        if scope is Scope.USER:
            return trust.read_user_file(path)
        return trust.read_project_file(path)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror or error}.") from error


def needs_trust(name: str, value: object) -> str | None:
    """Return why a project's value of a field counts only if its file is trusted; None: it does."""
    if name in HARMLESS:
        return None
    if name in NAMES_ONLY and isinstance(value, str) and _is_built_in(name, value):
        return None
    return NAMES_ONLY.get(name) or NEEDS_TRUST[name]


def _is_built_in(name: str, value: str) -> bool:
    plain = _without_level(name, value)
    return (
        "/" not in value
        and BUILT_IN.fullmatch(plain) is not None
        and not plain.endswith(DEFINITIONS)
    )


def _without_level(name: str, value: str) -> str:
    """Return an environment's name or path without its level, such as `hybrid` of `hybrid:all`."""
    return value.rpartition(":")[0] or value if name == "environment" else value


def resolved(files: list[Layer]) -> dict[str, Origin]:
    """Return what the files say of each field, the stronger file's word counting."""
    return {
        name: Origin(value, layer, layer.lines.get(name, 1))
        for layer in reversed(files)
        for name, value in layer.values.items()
        if name not in layer.withheld
    }


def withheld(files: list[Layer]) -> dict[str, Origin]:
    """Return the values that don't count since their file isn't trusted."""
    return {
        name: Origin(layer.values[name], layer, layer.lines.get(name, 1))
        for layer in files
        for name in layer.withheld
    }


def pins(files: list[Layer]) -> dict[Path, bytes]:
    """Return the content of all files that the trusted ones lead to, as it was compared."""
    verdicts = [layer.verdict for layer in files if layer.verdict is not None]
    return {path: content for verdict in verdicts for path, content in verdict.texts.items()}


def trust_project(path: Path) -> tuple[Layer, dict[Path, str]]:
    """Record that the user trusts a project's file; return it, and the SHA-256 of all its files.

    Raises UsageError where it, or a file that it leads to, is wrong, or isn't the project's own.
    """
    from rbuild.specs import trust  # noqa: PLC0415 - see load
    from rbuild.util import textfile  # noqa: PLC0415 - see load

    content = _content(path, Scope.PROJECT)
    layer = load(path, Scope.PROJECT, content)
    reader = _Reader(path)
    with textfile.pinned(reader):
        for name in NAMES_ONLY:
            if name in layer.values:
                _read_all(name, layer.values[name])
    return layer, trust.record(path, {path: content, **reader.files})


class _Reader:
    """Reads files of a project, and keeps what it has read; rbuild's own are none of those."""

    def __init__(self, path: Path) -> None:
        from rbuild.specs import trust  # noqa: PLC0415 - for this only
        from rbuild.util import data  # noqa: PLC0415 - for this only

        self.files: dict[Path, bytes] = {}
        self._root = trust.project_root(path)
        self._read = trust.read_named
        self._own = [Path(os.path.realpath(data.folder(name))) for name in ("profiles", "rootfs")]

    def __call__(self, path: Path) -> bytes | None:
        if any(Path(os.path.realpath(path)).is_relative_to(folder) for folder in self._own):
            return None
        if path not in self.files:
            self.files[path] = self._read(path, self._root)
        return self.files[path]


def _read_all(name: str, value: str) -> None:
    """Read what a field names, and every file that this leads to."""
    from rbuild.specs import architecture, environment, profile  # noqa: PLC0415
    from rbuild.util import yaml_model  # noqa: PLC0415

    if name == "environment":
        environment.load(value)
    elif name == "machine" and "/" in value:
        yaml_model.load(Path(value), architecture.Machine)
    elif name == "profile":
        found = profile.load(value)
        found.fragments()
        if not profile.TARGET.fullmatch(found.config.base):
            found.read(found.config.base, "config.base")
        for source in found.source:
            if source.key is not None:
                found.key_content(source)
        _read_all("machine", found.machine_name)


def _plain(settings: Settings, path: Path, lines: Mapping[str, int]) -> dict[str, Any]:
    """Return the values as click takes them; paths are relative to the file."""

    def placed(name: str) -> str:
        return str(path.parent / at_home(values[name], f"{path}:{lines.get(name, 1)}: {name}"))

    values = settings.model_dump(mode="json", exclude_none=True)
    for name in ("profile", "environment", "machine"):
        value = values.get(name, "")
        if "/" in value or _without_level(name, value).endswith(DEFINITIONS):
            values[name] = placed(name)
    if "cache_dir" in values:
        values["cache_dir"] = placed("cache_dir")
    return values
