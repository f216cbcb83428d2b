"""The answers for each symbol of a real kernel: those of Debian's, which has a Module.symvers.

Its headers' package has the configuration and the list, linux-source of that version the source;
no kernel is built.  ``pytest -s`` shows the figures.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from rbuild.kernel import symbols
from rbuild.kernel.config import read_config
from rbuild.kernel.symbols import Answer, Exports

from .conftest import Rbuild

HEADERS = """
set -eu
cd /module
dpkg --add-architecture arm64
apt-get -q update
apt-get -q download "linux-headers-$1+deb13-arm64:arm64"
dpkg -x ./*.deb .
mv "usr/src/linux-headers-$1+deb13-arm64" headers
"""
OBJECTS = """
set -eu
cp -r /module/headers/.config /module/headers/include /tmp
touch /tmp/include/config/auto.conf.cmd /tmp/include/config/auto.conf
touch /tmp/include/generated/*.h /tmp/include/generated/rustc_cfg
# With BTF, `make prepare` would build a program first.
make -s -C /src O=/tmp ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- CONFIG_DEBUG_INFO_BTF= \\
    . "build=-f /module/objects.mk list=/module/objects.mk obj" >/module/objects
"""
FUNCTION = re.compile(r"^(?:static )?(?:int|void|bool) (\w+)\(", re.M)
SEED = 7


@pytest.mark.slow
def test_every_symbol_of_debian_s_kernel(rbuild: Rbuild, tmp_path: Path) -> None:
    rbuild("module", "--driver", "c")
    cache = Path(rbuild("--json", "status").json["root"])
    tree = next((cache / "trees").glob("linux-source-6.12-*/src"))
    numbers = re.findall(
        r"^(?:VERSION|PATCHLEVEL|SUBLEVEL) = (\d+)", (tree / "Makefile").read_text(), re.M
    )
    words = ("shell", "--scratch", "--module", tmp_path, "--", "sh", "-c", HEADERS, "sh")
    rbuild(*words, ".".join(numbers))
    shutil.copy(symbols.MAKEFILE, tmp_path)
    rbuild("shell", "--module", tmp_path, "--", "sh", "-c", OBJECTS)

    index = symbols.index(SimpleNamespace(path=tree))  # type: ignore[arg-type]
    objects = {os.path.normpath(line) for line in (tmp_path / "objects").read_text().split()}
    config = read_config((tmp_path / "headers/.config").read_text())
    exports = Exports(index, frozenset(objects), config, "arm64")
    listed = (tmp_path / "headers/Module.symvers").read_text().splitlines()
    known = {line.split("\t")[1] for line in listed}
    assert len(known) > 26_000
    answers = Counter(exports.find(name) for name in known)
    sys.stdout.write(f"\n{len(known)} symbols: {_told(answers)}\n")
    assert answers[Answer.NO] == 0
    assert answers[Answer.UNKNOWN] < len(known) / 50

    # Names that are no symbols of it: what other configurations export, and functions.
    others = {line.split()[0] for line in index.places.splitlines() if line} - known
    answers = Counter(exports.find(name) for name in others)
    sys.stdout.write(f"{len(others)} symbols of other configurations: {_told(answers)}\n")
    assert answers[Answer.YES] == 0
    chance = random.Random(SEED)
    functions: set[str] = set()
    for path in chance.sample(sorted(tree.glob("drivers/**/*.c")), 4000):
        functions |= set(FUNCTION.findall(path.read_text(errors="replace")))
    sample = chance.sample(sorted(functions - known - others), len(known))
    answers = Counter(exports.find(name) for name in sample)
    sys.stdout.write(f"{len(sample)} functions that no kernel exports: {_told(answers)}\n")
    assert answers[Answer.YES] == 0
    assert answers[Answer.NO] > len(sample) * 0.99


def _told(answers: Counter[Answer]) -> str:
    return ", ".join(f"{answers[one]} {one.value}" for one in Answer)
