"""The fields of a configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from rbuild.specs.profile import Driver
from rbuild.util import yaml_model
from rbuild.util.yaml_model import Strict, Word

MAX = 1_000_000
"""The largest number of anything, on the command line as well."""


class Settings(Strict):
    """What a configuration file may say; each field is the default of the options named alike."""

    profile: Word | None = Field(None, description="the profile: a name, or a YAML file's path")
    environment: Word | None = Field(
        None, description="the environment: a name, hybrid:LEVEL, or a YAML file's path"
    )
    driver: Driver | None = Field(None, description="which of our drivers")
    runtime: Literal["bwrap", "docker"] | None = Field(
        None, description="what enters the environments"
    )
    memory: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?[kmgtKMGT]?i?[bB]?$")] | None = Field(
        None, description="how much memory a build may take, such as 4g (docker only)"
    )
    cpus: Annotated[float, Field(ge=0.01, le=MAX)] | None = Field(
        None, description="how many processors' worth of time a build may take (docker only)"
    )
    jobs: Annotated[int, Field(ge=1, le=MAX)] | None = Field(
        None, description="how many commands make runs at once"
    )
    ccache: bool | None = Field(
        None, description="whether C that was compiled before is taken from ccache"
    )
    machine: Word | None = Field(
        None, description="what QEMU is: virt, raspi3b ..., or a YAML file's path"
    )
    runs: Annotated[int, Field(ge=1, le=MAX)] | None = Field(
        None, description="counted runs of each mode in a benchmark"
    )
    warmup: Annotated[int, Field(ge=0, le=MAX)] | None = Field(
        None, description="runs before those"
    )
    cache_dir: Word | None = Field(
        None, description="where environments, sources and builds are kept (user's file only)"
    )
    docker_host: Word | None = Field(
        None, description="the Docker engine, as DOCKER_HOST names it (user's file only)"
    )
    ssh: Word | None = Field(None, description="how to call ssh (user's file only)")
    scheduler: Word | None = Field(
        None, description="the Dask scheduler of a matrix (user's file only)"
    )


def read(path: Path) -> tuple[Settings, dict[str, int]]:
    """Read a configuration file; return it, and the line of each of its fields.

    Raises UsageError as ``definition.load`` does.  A file without any field is none that is wrong.
    """
    node, data = yaml_model.read(path)
    if data is None:
        return Settings(), {}
    found = yaml_model.load(path, Settings)
    assert isinstance(node, yaml.MappingNode)
    return found, {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
