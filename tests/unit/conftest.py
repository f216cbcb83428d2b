"""A host of fakes: rbuild's whole way in a second, without root and without a network."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from rbuild.boot import initramfs
from rbuild.cache.directory import Cache
from rbuild.cache.entry import Entry, EntryKind
from rbuild.cli import main
from rbuild.source.download import RetryPolicy
from rbuild.specs import architecture
from rbuild.ui.console import Console

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("rbuild", deadline=None)
settings.load_profile("rbuild")

FAKES = Path(__file__).parents[1] / "fakes"


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Host:
    """rbuild on a host whose tools are fakes, with a kernel tree of a few files."""

    def __init__(
        self,
        folder: Path,
        capture: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.cache = folder / "cache"
        self.capture = capture
        self.tree = folder / "linux"
        self._tree()
        self.profile = self.write_profile()

    def __call__(self, *words: object, code: int = 0) -> Result:
        self.capture.readouterr()
        found = main.run([str(word) for word in words])
        seen = self.capture.readouterr()
        assert found == code, f"{words}: {found}\n{seen.err}"
        assert "Traceback" not in seen.err
        return Result(found, seen.out, seen.err)

    def anyhow(self, *words: object) -> Result:
        """Run rbuild, whatever its exit code."""
        self.capture.readouterr()
        found = main.run([str(word) for word in words])
        seen = self.capture.readouterr()
        return Result(found, seen.out, seen.err)

    def start(self, *words: object) -> subprocess.Popen[str]:
        """Start rbuild as a process of its own."""
        program = (
            "import sys, os; os.geteuid = lambda: 0\n"
            "from rbuild.cli import main as cli; sys.exit(cli.run(sys.argv[1:]))"
        )
        return subprocess.Popen(
            [sys.executable, "-c", program, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start_and_hold(self, *words: object) -> subprocess.Popen[str]:
        """Start rbuild, and return when its preparation of a KDIR waits for ``release``."""
        self.fault("hold")
        child = self.start(*words)
        for _ in range(1000):
            if (self.folder / "held").exists():
                return child
            assert child.poll() is None, child.communicate()[0]
            time.sleep(0.02)
        raise AssertionError("it never came so far")

    def release(self) -> None:
        (self.folder / "released").touch()

    def seal_anew(self, path: Path) -> None:
        """Let what a test has changed in an entry of the cache be as it was made."""
        cache = Cache(self.cache, Console())
        cache.close(Entry(EntryKind(path.parent.name), path.name, path))

    def tool(self, name: str, script: str) -> None:
        """Put a program of this test's own before all others of its name."""
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
        self.monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def fault(self, *names: str) -> None:
        """Let the fakes fail in these ways from now on."""
        (self.folder / "faults").write_text(" ".join(names))

    def calls(self, word: str) -> int:
        """Return how many times a fake was called with ``word`` in its command line."""
        path = self.folder / "calls"
        return sum(word in line for line in path.read_text().splitlines()) if path.exists() else 0

    def write_profile(self, text: str = "", name: str = "tiny") -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(
            text
            or f"name: {name}\nsource: {{directory: {self.tree}}}\npatches: false\n"
            "config:\n  base: tinyconfig\n  options: {RUST: y, SPI: y}\n"
        )
        return path

    def write_bootable(self) -> Path:
        """Write a profile that has what a guest needs."""
        needed = (*initramfs.NEEDED, *architecture.machine("virt", "arm64").needs)
        options = ", ".join(f"{name}: y" for name in needed)
        return self.write_profile(
            f"name: bootable\nsource: {{directory: {self.tree}}}\npatches: false\n"
            f"config:\n  base: tinyconfig\n  options: {{RUST: y, SPI: y, {options}}}\n",
            "bootable",
        )

    def write_module(self, text: str = "int x;\n") -> Path:
        folder = self.folder / "mine"
        folder.mkdir(exist_ok=True)
        (folder / "Kbuild").write_text("obj-m += mine.o\n")
        (folder / "mine.c").write_text(text)
        return folder

    def module(self, *words: object, code: int = 0) -> Result:
        return self("--json", "module", *words, "--profile", self.profile, code=code)

    def _tree(self) -> None:
        files = {
            "Makefile": "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 5\nEXTRAVERSION =\n",
            "Kbuild": "",
            "init/Kconfig": "config RUST\n\tbool\n\tdepends on !MODVERSIONS\n",
            "kernel/printk.c": "EXPORT_SYMBOL(_printk);\n",
            "scripts/kconfig/merge_config.sh": "",
            "drivers/misc/mfrc522/Kconfig": "",
        }
        for name, text in files.items():
            path = self.tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


@pytest.fixture(scope="session")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of the fakes, each run by this very Python without its site packages.

    They are started some thousand times: a wrapper around python3, as some hosts have, is slow,
    and so is compiling a script at each start.
    """
    folder = tmp_path_factory.mktemp("fakes")
    for path in FAKES.iterdir():
        fake = folder / path.name
        text = path.read_text()
        if text.startswith("#!/usr/bin/env python3"):
            module = f"fake_{path.name}".replace("-", "_")
            (folder / f"{module}.py").write_text(text)
            text = (
                f"#!{Path(sys.executable).resolve()} -IS\nimport sys\n"
                f"sys.path.insert(0, {str(folder)!r})\n"
                f"import {module}\nsys.exit({module}.main())\n"
            )
        fake.write_text(text)
        fake.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def elf() -> Callable[..., bytes]:
    """Return what makes the fakes' ELF files."""
    found: Callable[..., bytes] = runpy.run_path(str(FAKES / "bwrap"))["elf"]
    return found


@pytest.fixture(scope="session")
def provisioned(tmp_path_factory: pytest.TempPathFactory, fakes: Path) -> Path:
    """Return a cache directory in which ``cross`` was set up, to be copied."""
    folder = tmp_path_factory.mktemp("provisioned")
    with pytest.MonkeyPatch.context() as monkeypatch:
        _fake(monkeypatch, folder, fakes)
        assert main.run(["--quiet", "setup", "cross"]) == 0
    return folder / "cache"


@pytest.fixture
def bare(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fakes: Path,
) -> Host:
    """Return a host on which rbuild hasn't run yet."""
    _fake(monkeypatch, tmp_path, fakes)
    return Host(tmp_path, capfd, monkeypatch)


@pytest.fixture
def host(bare: Host, provisioned: Path) -> Host:
    """Return a host whose cache has the environment ``cross``, and nothing else."""
    shutil.copytree(provisioned, bare.cache)
    return bare


def _fake(monkeypatch: pytest.MonkeyPatch, folder: Path, fakes: Path) -> None:
    monkeypatch.setenv("PATH", f"{fakes}:{os.environ['PATH']}")
    monkeypatch.setenv("RBUILD_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setenv("RBUILD_FAKE", str(folder / "faults"))
    monkeypatch.setattr("rbuild.source.download.DEFAULT_RETRIES", RetryPolicy(tries=1, stalls_s=2))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    # Nothing is made in the host's cgroups.
    monkeypatch.setattr("rbuild.sandbox.cgroup._bounding", lambda *_: None)
