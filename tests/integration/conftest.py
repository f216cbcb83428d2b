"""Real environments for the integration tests, in the cache directory that rbuild itself uses.

What is provisioned there already is used: on an empty cache the first test makes it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.lab import Lab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.integration)
            if item.get_closest_marker("root") and os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))


@dataclass(frozen=True)
class Done:
    """A finished rbuild: what it printed, and the JSON value on its stdout if it was asked for."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Rbuild:
    """Runs rbuild as a user's shell would."""

    cache: Path | None = None

    def argv(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "rbuild", *map(str, words)]

    def env(self) -> dict[str, str]:
        extra = {} if self.cache is None else {"RBUILD_CACHE_DIR": str(self.cache)}
        # A cache that begins empty costs a build time, and gives hardly any back within one run.
        return {"RBUILD_CCACHE": "0", **os.environ, **extra}

    def __call__(self, *words: str | Path, code: int = 0, prefix: Sequence[str] = ()) -> Done:
        found = subprocess.run(
            [*prefix, *self.argv(*words)], env=self.env(), capture_output=True, text=True
        )
        assert "Traceback" not in found.stderr, found.stderr
        assert found.returncode == code, f"{words}: {found.returncode}\n{found.stderr}"
        return Done(found.returncode, found.stdout, found.stderr)

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*words),
            env=self.env(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture(scope="session")
def rbuild() -> Rbuild:
    return Rbuild()


@pytest.fixture(scope="session")
def lab(rbuild: Rbuild, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A cache of its own with a small kernel's source: what is killed and attacked."""
    found = rbuild("--json", "module", "--driver", "c").json
    cache = Path(found["artefacts"][0]["path"]).parents[5]
    made = Lab(tmp_path_factory.mktemp("lab"), rootfs_from=cache)
    made.equip(next((cache / "trees").glob("linux-source-6.12-*/src")))
    yield made
    made.remove()


RUST_STRANGER = """\
// SPDX-License-Identifier: GPL-2.0
//! A stranger's module, the smallest that logs.

use kernel::prelude::*;

module! {
    type: Stranger,
    name: "stranger",
    author: "Somebody",
    description: "A module from outside",
    license: "GPL",
}

struct Stranger;

impl kernel::Module for Stranger {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        pr_info!("hello\\n");
        Ok(Stranger)
    }
}
"""

C_STRANGER = """\
// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>

static int __init stranger_init(void)
{
\tpr_info("hello\\n");
\treturn 0;
}
module_init(stranger_init);

static void __exit stranger_exit(void)
{
}
module_exit(stranger_exit);

MODULE_DESCRIPTION("A module from outside");
MODULE_LICENSE("GPL");
"""


@pytest.fixture
def rust_stranger(tmp_path: Path) -> Path:
    folder = tmp_path / "rust-stranger"
    folder.mkdir()
    (folder / "Kbuild").write_text("obj-m += stranger.o\n")
    (folder / "stranger.rs").write_text(RUST_STRANGER)
    return folder


@pytest.fixture
def c_stranger(tmp_path: Path) -> Path:
    folder = tmp_path / "c-stranger"
    folder.mkdir()
    (folder / "Makefile").write_text("obj-m += stranger.o\n")
    (folder / "stranger.c").write_text(C_STRANGER)
    return folder
