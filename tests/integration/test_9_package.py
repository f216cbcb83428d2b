"""Packages of a real kernel: what is in them, what becomes of them, and that it is the same twice."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from rbuild import __version__
from rbuild.cache.directory import Cache
from rbuild.cli.main import _cache_directory
from rbuild.provision.prepare import prepare_environment, runtime_for
from rbuild.sandbox.runtime import KDIR, MODULE, PATH, SRC, Bind, Job
from rbuild.specs import environment
from rbuild.ui.console import Console
from rbuild.util import data
from rbuild.util.elf import machine, module_info
from rbuild.util.process import Completed

from .conftest import Rbuild

TOOLS = data.folder("rootfs") / "tools/package.yaml"
PI = "bcm2837-rpi-3-b-plus.dtb"

OF_THE_KERNEL = {"aliased-location", "initial-upload-closes-no-bugs"}
"""What lintian says of every kernel packaged by its own rules: modules are in /lib, and it isn't
for Debian's archive."""


@dataclass(frozen=True)
class Packages:
    """What one rbuild package made, and the KDIR that it made it from."""

    folder: Path
    artefacts: dict[str, str]
    release: str
    kdir: Path

    def path(self, start: str) -> Path:
        """Return the only package whose name starts so."""
        (found,) = (path for path in self.folder.iterdir() if path.name.startswith(start))
        return found


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return what identifies each file of a folder, without reading them all."""
    found = {}
    for path in folder.rglob("*"):
        one = path.lstat()
        found[str(path)] = (one.st_ino, one.st_mtime_ns, one.st_size)
    return found


def package(rbuild: Rbuild, folder: Path, *words: str) -> Packages:
    found = rbuild("--json", "package", "--driver", "c", "--output", folder, *words).json
    artefacts = {Path(one["path"]).name: one["sha256"] for one in found["artefacts"]}
    kernel = rbuild("--json", "kernel").json
    image = next(one["path"] for one in kernel["artefacts"] if one["path"].endswith("/Image"))
    kdir = Path(image).parents[3]
    return Packages(folder, artefacts, found["kernel_release"], kdir)


@pytest.fixture(scope="module")
def packages(rbuild: Rbuild, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    return package(rbuild, tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def board(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board's root file system, over which the archive was unpacked."""
    root = tmp_path_factory.mktemp("board")
    (root / "usr/lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    subprocess.run(["tar", "-C", root, "-xf", packages.path("rbuild-")], check=True)
    return root


def fields(path: Path) -> dict[str, str]:
    words = subprocess.run(["dpkg-deb", "-f", path], check=True, capture_output=True, text=True)
    lines = [line for line in words.stdout.splitlines() if not line.startswith(" ")]
    return dict(line.split(": ", 1) for line in lines)


def unpacked(path: Path, folder: Path) -> Path:
    subprocess.run(["dpkg-deb", "-R", path, folder], check=True)
    return folder


def members(path: Path) -> list[tarfile.TarInfo]:
    words = ["dpkg-deb", "--fsys-tarfile", path]
    with (
        subprocess.Popen(words, stdout=subprocess.PIPE) as child,
        tarfile.open(fileobj=child.stdout, mode="r|") as tar,
    ):
        return list(tar)


def inside(env: str, argv: Sequence[str], binds: Sequence[Bind], **variables: str) -> Completed:
    """Run a command in an environment; what it prints is shown if a test fails."""
    cache = Cache(_cache_directory(_given()), Console(out=sys.stderr))
    runtime = runtime_for("bwrap", cache)
    ready = prepare_environment(environment.load(env), cache, runtime)
    done = runtime.run(ready.sandbox, Job(argv, binds, MODULE, variables), check=False)
    sys.stderr.write(f"{done.text}\n")
    return done


def _given() -> str | None:
    return Rbuild().env().get("RBUILD_CACHE_DIR")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_all_that_is_asked_for_is_there(packages: Packages) -> None:
    release = packages.release
    (archive,) = (name for name in packages.artefacts if name.endswith(".tar.gz"))
    assert set(packages.artefacts) == {
        archive,
        f"linux-headers-{release}_{release}-1_arm64.deb",
        f"linux-image-{release}_{release}-1_arm64.deb",
        f"linux-libc-dev_{release}-1_arm64.deb",
        f"mfrc522-dkms_{__version__}-1_all.deb",
        f"mfrc522-modules-{release}_{__version__}-1_arm64.deb",
    }
    assert sorted(path.name for path in packages.folder.iterdir()) == sorted(packages.artefacts)
    for name, expected in packages.artefacts.items():
        assert sha256(packages.folder / name) == expected


@pytest.mark.slow
def test_the_same_bytes_come_out_twice_and_the_kdir_stays(
    rbuild: Rbuild, packages: Packages, tmp_path: Path
) -> None:
    build = packages.kdir
    before = state(build)
    again = package(rbuild, tmp_path)
    assert again.artefacts == packages.artefacts
    assert state(build) == before


def test_a_drivers_packages_from_hybrid_are_the_same_bytes(
    rbuild: Rbuild, packages: Packages, tmp_path: Path
) -> None:
    words = ("--env", "hybrid", "--format", "module-deb", "--format", "dkms")
    found = rbuild("--json", "package", "--driver", "c", "--output", tmp_path, *words).json
    for one in found["artefacts"]:
        assert one["sha256"] == packages.artefacts[Path(one["path"]).name]


# The kernel's own packages.


def test_the_image_package_has_the_kernel_that_was_built(
    packages: Packages, tmp_path: Path
) -> None:
    path = packages.path("linux-image-")
    release = packages.release
    found = unpacked(path, tmp_path / "image")
    image = gzip.decompress((found / f"boot/vmlinuz-{release}").read_bytes())
    assert image == (packages.kdir / "arch/arm64/boot/Image").read_bytes()
    config = (found / f"boot/config-{release}").read_bytes()
    assert config == (packages.kdir / ".config").read_bytes()
    assert (found / f"usr/lib/linux-image-{release}/broadcom/{PI}").is_file()
    assert (found / f"lib/modules/{release}/modules.dep").is_file()
    assert not (found / f"lib/modules/{release}/build").is_symlink()
    assert fields(path)["Architecture"] == "arm64"
    assert fields(path)["Version"] == f"{release}-1"


def test_nothing_in_a_package_tells_who_made_it(packages: Packages) -> None:
    for path in packages.folder.glob("*.deb"):
        found = members(path)
        assert {(one.uid, one.gid) for one in found} == {(0, 0)}
        date = (_source(packages) / "Makefile").stat().st_mtime
        assert max(one.mtime for one in found) <= date
        maintainer = fields(path)["Maintainer"]
        assert maintainer == "rbuild <rbuild@example.org>"


def test_lintian_has_nothing_new_to_say_of_the_kernel(packages: Packages) -> None:
    path = packages.path("linux-image-")
    words = ["lintian", "--tag-display-limit", "0", f"/tmp/{path.name}"]
    done = inside(str(TOOLS), words, [Bind(path, f"/tmp/{path.name}")])
    assert {line.split()[2] for line in done.tail if line[:3] in {"E: ", "W: "}} == OF_THE_KERNEL


def test_a_module_builds_against_the_headers_package(
    packages: Packages, board: Path, tmp_path: Path
) -> None:
    """On an aarch64 system, whose compilers are native here, and with the package's programs."""
    found = unpacked(packages.path("linux-headers-"), tmp_path / "headers")
    headers = found / f"usr/src/linux-headers-{packages.release}"
    for name in ("scripts/basic/fixdep", "scripts/mod/modpost"):
        assert machine(headers / name) == "AArch64"
    link = found / f"lib/modules/{packages.release}/build"
    assert str(link.readlink()) == f"/usr/src/{headers.name}"
    source = unpacked(packages.path("mfrc522-dkms_"), tmp_path / "dkms")
    source /= f"usr/src/mfrc522-{__version__}"
    binds = [Bind(headers, "/tmp/headers"), Bind(source, MODULE, writable=True)]
    words = ["make", "-C", "/tmp/headers", "ARCH=arm64", "LLVM=-19", f"M={MODULE}", "modules"]
    assert inside("hybrid", words, binds).returncode == 0
    own = board / f"usr/lib/modules/{packages.release}/updates/mfrc522.ko"
    assert (source / "mfrc522.ko").read_bytes() == own.read_bytes()


# The archive.


def test_the_archive_is_a_bootable_layout(packages: Packages, board: Path) -> None:
    (boot,) = (board / "boot/firmware").iterdir()
    assert f"{boot.name}.tar.gz" in packages.artefacts
    assert sha256(boot / "kernel8.img") == sha256(packages.kdir / "arch/arm64/boot/Image")
    built = packages.kdir / "arch/arm64/boot/dts/broadcom" / PI
    assert sha256(boot / PI) == sha256(built)
    assert (boot / "overlays/README").is_file()
    assert (boot / "overlays/mfrc522.dtbo").read_bytes()[:4] == b"\xd0\x0d\xfe\xed"
    assert f"os_prefix={boot.name}/" in (boot / "config-snippet.txt").read_text().splitlines()
    for one in json.loads((boot / "manifest.json").read_text())["files"]:
        assert sha256(board / one["path"]) == one["sha256"]


def test_the_archive_leaves_a_boards_links_alone(packages: Packages, board: Path) -> None:
    assert (board / "lib").is_symlink()
    modules = board / "lib/modules" / packages.release
    assert (modules / "modules.dep").read_text() == "updates/mfrc522.ko:\n"
    assert "alias of:N*T*Cnxp,mfrc522 mfrc522" in (modules / "modules.alias").read_text()
    assert not (modules / "build").is_symlink()


# The driver's packages.


def test_the_modules_package(packages: Packages, board: Path, tmp_path: Path) -> None:
    release = packages.release
    path = packages.path("mfrc522-modules-")
    found = unpacked(path, tmp_path / "modules")
    own = fields(path)
    assert own["Package"] == f"mfrc522-modules-{release}"
    assert own["Depends"] == f"kmod, linux-image-{release}"
    assert own["Conflicts"] == f"mfrc522-glue-modules-{release}, mfrc522-rust-modules-{release}"
    module = found / f"usr/lib/modules/{release}/updates/mfrc522.ko"
    assert module_info(module).vermagic.startswith(f"{release} ")
    unpacked_module = board / f"usr/lib/modules/{release}/updates/mfrc522.ko"
    assert sha256(module) == sha256(unpacked_module)
    overlay = found / f"usr/share/mfrc522-modules-{release}/overlays/mfrc522.dtbo"
    assert sha256(overlay) == sha256(next(board.glob("boot/firmware/*/overlays/mfrc522.dtbo")))
    for script in ("postinst", "postrm"):
        assert f"{release}\n\tfi" in (found / "DEBIAN" / script).read_text()
    assert (found / f"usr/share/doc/mfrc522-modules-{release}/copyright").is_file()


INSTALL = """\
mkdir -p /tmp/root/var/lib/dpkg/updates /tmp/root/usr/lib/modules/$1 /tmp/bin
touch /tmp/root/var/lib/dpkg/status /tmp/root/usr/lib/modules/$1/modules.order
printf '#!/bin/sh\\necho "depmod $*"\\n' > /tmp/bin/depmod
chmod +x /tmp/bin/depmod
forced='--force-depends --force-architecture --force-script-chrootless --force-not-root'
dpkg --root=/tmp/root --log=/tmp/log $forced --install /tmp/module.deb
find /tmp/root/usr/lib/modules -name '*.ko'
dpkg --root=/tmp/root --log=/tmp/log $forced --purge mfrc522-modules-$1
find /tmp/root/usr/lib/modules -name '*.ko'
"""


def test_the_modules_package_is_installed_and_removed(packages: Packages) -> None:
    """By dpkg, into a folder, with a depmod that only says what it is asked for."""
    binds = [Bind(packages.path("mfrc522-modules-"), "/tmp/module.deb")]
    argv = ["sh", "-ec", INSTALL, "install", packages.release]
    done = inside(str(TOOLS), argv, binds, PATH=f"/tmp/bin:{PATH}")
    assert done.returncode == 0
    assert done.text.count("updates/mfrc522.ko") == 1
    assert done.text.count(f"depmod -b /tmp/root {packages.release}") == 2


DKMS = """\
dpkg-deb -x /tmp/dkms.deb /tmp/x
mkdir /tmp/tree
dkms build --dkmstree /tmp/tree --sourcetree /tmp/x/usr/src --kernelsourcedir /kdir \\
    -k "$1/aarch64" -m mfrc522 -v "$2" || { cat /tmp/tree/mfrc522/*/build/make.log; exit 1; }
cp /tmp/tree/mfrc522/*/$1/aarch64/module/mfrc522.ko /module
"""


def test_dkms_builds_its_package(packages: Packages, tmp_path: Path) -> None:
    tree = (packages.kdir / "source").readlink()
    assert str(tree) == SRC
    binds = [
        Bind(packages.path("mfrc522-dkms_"), "/tmp/dkms.deb"),
        Bind(packages.kdir, KDIR),
        Bind(tmp_path, MODULE, writable=True),
        Bind(_source(packages), SRC),
    ]
    # DKMS knows LLVM's programs by their plain names.
    llvm = {"ARCH": "arm64", "LLVM": "1", "PATH": f"/usr/lib/llvm-19/bin:{PATH}"}
    argv = ["sh", "-ec", DKMS, "dkms", packages.release, __version__]
    assert inside(str(TOOLS), argv, binds, **llvm).returncode == 0
    assert module_info(tmp_path / "mfrc522.ko").vermagic.startswith(f"{packages.release} ")


def _source(packages: Packages) -> Path:
    """Return the tree that the KDIR was made of."""
    metadata = json.loads((packages.kdir.parent / "metadata.json").read_text())
    return packages.kdir.parents[2] / "trees" / metadata["tree"] / "src"


def test_the_dkms_package_asks_for_what_it_needs(
    rbuild: Rbuild, packages: Packages, tmp_path: Path
) -> None:
    path = packages.path("mfrc522-dkms_")
    found = unpacked(path, tmp_path / "dkms")
    assert fields(path)["Architecture"] == "all"
    assert "dkms" in fields(path)["Depends"]
    assert "common.postinst" in (found / "DEBIAN/postinst").read_text()
    assert "dkms remove" in (found / "DEBIAN/prerm").read_text()
    source = found / f"usr/src/mfrc522-{__version__}"
    assert rbuild("module", source).out.startswith("mfrc522.ko (cross")
