"""What the kernel's own checkers say of the patches and the drivers: nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from rbuild.cache.directory import Cache
from rbuild.provision.prepare import prepare_environment, runtime_for
from rbuild.provision.prepared import PreparedEnvironment
from rbuild.sandbox.runtime import KDIR, SRC, Bind, Job
from rbuild.source.fetch import obtain
from rbuild.source.tree import Tree
from rbuild.specs import environment, profile
from rbuild.ui.console import Console

from .conftest import Rbuild

MODULE = Path(__file__).parents[2] / "module"
PATCHES = sorted((MODULE / "patches/6.12").glob("*.patch"))
ALL_PATCHES = sorted((MODULE / "patches").glob("*/*.patch"))
C_FILES = sorted(
    f"/module/{path.relative_to(MODULE)}"
    for path in MODULE.rglob("*.[ch]")
    if path.is_file() and not path.is_symlink()
)
RUST_FILES = sorted(f"/module/{path.relative_to(MODULE)}" for path in MODULE.rglob("*.rs"))
C_MODULES = sorted(
    folder for folder in ("c", "glue", "sim") if (MODULE / folder / "Kbuild").is_file()
)

IGNORED = [
    # A series is for a subsystem's maintainer; MAINTAINERS' entries are theirs to word.
    "FILE_PATH_CHANGES",
    # Device trees in the field say plain "mfrc522", which no binding may.
    "UNDOCUMENTED_DT_STRING",
]
"""The types of message that checkpatch may give."""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """Copy module/, so that a build leaves nothing in the checkout."""
    return shutil.copytree(MODULE, tmp_path / "module", symlinks=True)


@dataclass(frozen=True)
class Inside:
    """Runs a shell's command where the slim profile is built, with a folder as /module."""

    rbuild: Rbuild
    module: Path

    def __call__(self, command: str, code: int = 0) -> str:
        words = ["--quiet", "shell", "--module", self.module, "--", "sh", "-c", command]
        done = self.rbuild(*words, code=code)
        return done.out + done.err

    def make(self, folder: str, *words: str, code: int = 0) -> str:
        """Compile what a folder's modules consist of, without linking them into a .ko.

        That would need the list of what the kernel exports, for which it has to be built whole.
        """
        target = f"/module/{folder}/modules.order"
        return self(
            f"make -s -C /src O=/kdir M=/module/{folder} {' '.join(words)} {target} 2>&1", code
        )


@pytest.fixture
def inside(rbuild: Rbuild, module: Path) -> Inside:
    return Inside(rbuild, module)


def test_checkpatch_has_nothing_to_say(inside: Inside) -> None:
    checkpatch = f"/src/scripts/checkpatch.pl --strict --terse --ignore {','.join(IGNORED)}"
    assert PATCHES
    assert C_FILES
    assert set(PATCHES) < set(ALL_PATCHES)
    assert inside(f"cd /src && {checkpatch} /module/patches/*/*.patch 2>&1") == ""
    assert inside(f"cd /src && {checkpatch} --file {' '.join(C_FILES)} 2>&1") == ""


@pytest.mark.parametrize("folder", C_MODULES)
def test_sparse_and_more_warnings_have_nothing_to_say(inside: Inside, folder: str) -> None:
    assert inside.make(folder, "W=1", "C=2", "CHECK=sparse") == ""


def test_sparse_would_say_it(inside: Inside) -> None:
    source = inside.module / "sim/mfrc522_sim.c"
    with source.open("a") as file:
        file.write("int __user *wrong = (int *)4; static int unused;\n")
    found = inside.make("sim", "W=1", "C=2", "CHECK=sparse")
    assert "incorrect type in initializer (different address spaces)" in found
    assert "-Wunused-variable" in found


def test_rustfmt_has_nothing_to_say(inside: Inside) -> None:
    added = {name for patch in PATCHES for name in _touched(patch) if name.endswith(".rs")}
    files = [*RUST_FILES, *(f"/src/{name}" for name in sorted(added))]
    # One by one, since a file names others that are its modules.
    rustfmt = "rustfmt --check --edition 2021 --config-path /src/.rustfmt.toml"
    assert inside(f"for file in {' '.join(files)}; do {rustfmt} $file 2>&1; done") == ""


def test_clippy_has_nothing_to_say_of_the_driver(inside: Inside) -> None:
    assert inside.make("rust", "CLIPPY=1") == ""


def test_clippy_would_say_it(inside: Inside) -> None:
    source = inside.module / "rust/request.rs"
    text = source.read_text()
    assert "digits.is_empty()" in text
    source.write_text(text.replace("digits.is_empty()", "digits.len() == 0"))
    assert "clippy::len_zero" in inside.make("rust", "CLIPPY=1")


CLIPPY_KERNEL = """\
set -e
cp -a /kdir /tmp/kdir
cd /tmp/kdir
# So that make doesn't take the core library for one built otherwise, and build it again.
sed -i 's, OBJTREE=/kdir , OBJTREE=/tmp/kdir ,' rust/.*.cmd
/src/scripts/config -e SAMPLES -e SAMPLES_RUST -m SAMPLE_RUST_DRIVER_SPI
make -s -C /src O=/tmp/kdir olddefconfig
grep -q SAMPLE_RUST_DRIVER_SPI=m .config
make -s -j2 -C /src O=/tmp/kdir CLIPPY=1 prepare rust/ samples/rust/ 2>&1
ls samples/rust/rust_driver_spi.o
"""


@pytest.mark.slow
def test_clippy_has_nothing_to_say_of_the_kernel_crate(inside: Inside) -> None:
    assert inside(CLIPPY_KERNEL) == "samples/rust/rust_driver_spi.o\n"


def test_the_rust_driver_has_no_unsafe_code() -> None:
    for path in sorted((MODULE / "rust").glob("*.rs")):
        code = re.sub(r"//.*", "", path.read_text())
        assert not re.search(r"\bunsafe\b", code), path


@dataclass(frozen=True)
class Series:
    """A git repository in which each patch is a commit, and the trees before and after."""

    profile: str
    patches: list[Path]
    ready: PreparedEnvironment
    pristine: Tree
    patched: Tree
    repository: Path
    commits: list[str]

    def git(self, *words: str | Path) -> str:
        return _git(self.repository, *words)


PLACES = ("rust", "samples/rust", "drivers/misc", "MAINTAINERS")
"""What the patches touch is in these folders, or these files."""


def apply_series(rbuild: Rbuild, name: str, patches: list[Path], repository: Path) -> Series:
    """Apply a profile's patches with git to the part of its pristine tree that they touch."""
    cache = Cache(Path(rbuild("--json", "status").json["root"]), Console(verbosity=-1))
    ready = prepare_environment(environment.load("cross"), cache, runtime_for("bwrap", cache))
    found = profile.load(name)
    patched = obtain(found, ready, cache)
    pristine = obtain(found.model_copy(update={"patches": False}), ready, cache)
    for place in PLACES:
        origin, copy = pristine.path / place, repository / place
        copy.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            shutil.copytree(origin, copy, symlinks=True)
        else:
            shutil.copy2(origin, copy)
    _git(repository, "init", "--quiet")
    _git(repository, "add", "--all", "--force")
    _git(repository, "commit", "--quiet", "--message=pristine")
    _git(repository, "am", "--quiet", "--whitespace=error-all", *patches)
    commits = _git(repository, "log", "--reverse", "--format=%H").split()[1:]
    return Series(name, patches, ready, pristine, patched, repository, commits)


@pytest.fixture(scope="module")
def series(rbuild: Rbuild, tmp_path_factory: pytest.TempPathFactory) -> Series:
    return apply_series(rbuild, "slim", PATCHES, tmp_path_factory.mktemp("series"))


def test_git_applies_the_series(series: Series) -> None:
    check_applied(series)


def check_applied(series: Series) -> None:
    """Git makes of the patches what rbuild made, and each is in the places that are looked at."""
    assert len(series.commits) == len(series.patches) == len(series.patched.patches)
    for place in PLACES:
        words = ["diff", "--recursive", "--no-dereference"]
        here, there = series.repository / place, series.patched.path / place
        found = subprocess.run([*words, here, there], capture_output=True, text=True)
        assert found.stdout == "", found.stdout
    touched = {name for patch in series.patches for name in _touched(patch)}
    assert all(name in PLACES or name.startswith(IN_PLACES) for name in touched)


IN_PLACES = tuple(f"{place}/" for place in PLACES)


@pytest.mark.slow
def test_the_kernel_crate_builds_after_each_patch(
    rbuild: Rbuild, series: Series, tmp_path: Path
) -> None:
    check_each_builds(rbuild, series, tmp_path)


def check_each_builds(rbuild: Rbuild, series: Series, kdir: Path, *options: str) -> None:
    """So that somebody who bisects never lands on a tree that doesn't build.

    ``options`` are set besides, as far as the patches up to there have them.
    """
    config = rbuild("--quiet", "shell", "--profile", series.profile, "--", "cat", "/kdir/.config")
    (kdir / ".config").write_text(config.out)
    binds = [
        Bind(series.pristine.path, SRC),
        *(Bind(series.repository / place, f"{SRC}/{place}") for place in PLACES),
        Bind(kdir, KDIR, writable=True),
    ]
    make = f"make -j2 -C {SRC} O={KDIR} ARCH=arm64 LLVM={series.ready.environment.llvm}"
    for commit in series.commits:
        series.git("checkout", "--quiet", commit)
        # Samples that this patch adds are taken, too.
        script = f"""set -e
            {SRC}/scripts/config -e SAMPLES -e SAMPLES_RUST {" ".join(f"-e {o}" for o in options)}
            for sample in $(grep -o 'SAMPLE_RUST_[A-Z_]*' {SRC}/samples/rust/Kconfig); do
                {SRC}/scripts/config -m $sample
            done
            {make} olddefconfig >/dev/null 2>&1
            {make} modules_prepare samples/rust/"""
        job = Job(["sh", "-c", script], binds, KDIR)
        done = series.ready.runtime.run(series.ready.sandbox, job, check=False)
        assert done.returncode == 0, (series.git("show", "--no-patch", commit), done.tail)
        assert "warning:" not in done.text, done.text


def _touched(patch: Path) -> list[str]:
    """Return the files that a patch adds or changes."""
    return re.findall(r"^\+\+\+ b/(\S+)$", patch.read_text(), re.M)


def _git(repository: Path, *words: str | Path) -> str:
    """Run git, whatever the user's configuration is."""
    identity = {
        f"GIT_{role}_{what}": value
        for role in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "rbuild"), ("EMAIL", "rbuild@example.org"))
    }
    done = subprocess.run(
        ["git", "-C", repository, *words],
        env={
            **os.environ,
            **identity,
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout
