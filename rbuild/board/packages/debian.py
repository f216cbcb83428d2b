"""Debian packages of the driver: built for one kernel, or as source for DKMS.

Each is a source folder that debhelper makes a .deb of, as any of Debian's.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path

from rbuild import __version__
from rbuild.board.staging import OUT_OF_TREE_FOLDER, Extra
from rbuild.errors import BuildFailed, UsageError
from rbuild.kernel.kdir import Kdir
from rbuild.module.drivers import NAMES, driver_source
from rbuild.module.sync import PRODUCTS
from rbuild.provision.tools import Tools
from rbuild.specs.architecture import Architecture, of_kernel
from rbuild.specs.profile import Driver, Profile
from rbuild.util.folders import remove_tree

COMPRESSION = "gzip"
"""Every dpkg reads it, and its bytes don't depend on how many processors there are, as xz's do."""

NAME, EMAIL = "rbuild", "rbuild@example.org"
MAINTAINER_VARIABLES = {"DEBFULLNAME": NAME, "DEBEMAIL": EMAIL}
"""Who made a package: nobody in particular, so that it is the same wherever it was made."""

PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
"""Debian's policy, section 5.6.1."""

DKMS_NAME = "mfrc522"
DKMS_DRIVER = Driver.C
"""The driver that builds on any kernel: the one in Rust needs our patches, or a newer Linux."""


def architecture(profile: Profile) -> Architecture:
    """Return the architecture of the packages for a profile's kernel, as Debian names it."""
    return of_kernel(profile.architecture)


def check_release(release: str) -> None:
    """Raise UsageError unless a kernel's release can be in a package's name."""
    if not PACKAGE_NAME.fullmatch(f"linux-image-{release}"):
        raise UsageError(
            f"A package can't have the name linux-image-{release}.",
            hint="Set CONFIG_LOCALVERSION to lower-case letters, digits, +, - and dots.",
        )


def version(release: str) -> str:
    """Return the Debian version of a kernel: a release candidate sorts before the release."""
    return f"{release.replace('-rc', '~rc')}-1"


@dataclass(frozen=True)
class SourceFolder:
    """A Debian source package: its texts, and the files that it installs, each where it goes.

    ``architecture`` is None where the package is for all.
    """

    package: str
    architecture: Architecture | None
    date: datetime
    texts: Mapping[str, str]
    installs: Mapping[str, Path] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it to a new folder."""
        lines = []
        for number, (target, source) in enumerate(sorted(self.installs.items())):
            # In folders of their own: files of one name may go to several places.
            inside = f"files/{number}/{Path(target).name}"
            (folder / inside).parent.mkdir(parents=True)
            shutil.copyfile(source, folder / inside)
            lines.append(f"{inside} {Path(target).parent}\n")
        for name, text in {**self.texts, "install": "".join(lines)}.items():
            path = folder / "debian" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        (folder / "debian/rules").chmod(0o755)


def build(source: SourceFolder, tools: Tools, work: Path) -> list[Path]:
    """Return the package of a source folder, made in ``work``."""
    folder = work / "source"
    source.write(folder)
    argv = ["dpkg-buildpackage", "--build=binary", "--no-check-builddeps", "--unsigned-changes"]
    if source.architecture is not None:
        argv.append(f"--host-arch={source.architecture.debian}")
    variables = {
        "SOURCE_DATE_EPOCH": str(int(source.date.timestamp())),
        "DEB_BUILD_OPTIONS": "noautodbgsym nocheck",
    }
    tools.run_in(folder, argv, f"Packaging {source.package}", variables)
    remove_tree(folder)
    found = sorted(work.glob("*.deb"))
    if len(found) != 1:
        raise BuildFailed(
            f"{source.package}: {len(found)} packages were made.", log=tools.context.log_path
        )
    return found


def modules_package(driver: Driver, release: str) -> str:
    """Return the name of the package of a driver that is built for one kernel."""
    return f"{NAMES[driver].replace('_', '-')}-modules-{release}"


def of_modules(
    kdir: Kdir, driver: Driver, modules: Sequence[Extra], overlays: Sequence[Path]
) -> SourceFolder:
    """Return the source folder of a driver that is built for one kernel."""
    release = kdir.release
    package = modules_package(driver, release)
    others = [modules_package(other, release) for other in Driver if other is not driver]
    installs = {
        f"usr/lib/modules/{release}/{OUT_OF_TREE_FOLDER}/{extra.path.name}": extra.path
        for extra in modules
    }
    installs |= _overlays(package, overlays)
    names = " ".join(extra.path.stem for extra in modules)
    texts = {
        **_common(package, kdir.tree.date, f"The {driver} driver for Linux {release}."),
        "control": CONTROL_OF_MODULES.format(
            package=package,
            release=release,
            architecture=architecture(kdir.profile).debian,
            others=", ".join(others),
            maintainer=f"{NAME} <{EMAIL}>",
        ),
        "rules": RULES.format(options=""),
        "postinst": SCRIPT.format(what="configure", release=release),
        "postrm": SCRIPT.format(what="remove", release=release),
        "README.Debian": README.format(
            package=package,
            title=f"MFRC522 driver for Linux {release}",
            modules=f"sudo modprobe {names}",
            overlays=_overlay_words(package, overlays),
        ),
    }
    return SourceFolder(package, architecture(kdir.profile), kdir.tree.date, texts, installs)


def of_source(date: datetime, overlays: Sequence[Path]) -> SourceFolder:
    """Return the source folder of the driver's source, which DKMS builds on the board."""
    package = f"{DKMS_NAME}-dkms"
    origin = driver_source(DKMS_DRIVER)
    installs = {
        f"usr/src/{DKMS_NAME}-{__version__}/{path.name}": path
        for path in sorted(origin.iterdir())
        if path.is_file() and not PRODUCTS.fullmatch(path.name)
    }
    installs |= _overlays(package, overlays)
    texts = {
        **_common(package, date, "The driver's source."),
        "control": CONTROL_OF_SOURCE.format(package=package, maintainer=f"{NAME} <{EMAIL}>"),
        "rules": RULES.format(options=" --with dkms"),
        f"{package}.dkms": DKMS.format(name=DKMS_NAME, version=__version__),
        "README.Debian": README.format(
            package=package,
            title="MFRC522 driver, built on the board by DKMS",
            modules=f"sudo modprobe {NAMES[DKMS_DRIVER]}",
            overlays=_overlay_words(package, overlays),
        ),
    }
    return SourceFolder(package, None, date, texts, installs)


def _overlays(package: str, overlays: Sequence[Path]) -> dict[str, Path]:
    return {f"usr/share/{package}/overlays/{path.name}": path for path in overlays}


def _overlay_words(package: str, overlays: Sequence[Path]) -> str:
    if not overlays:
        return "The device tree must describe the reader (compatible: nxp,mfrc522)."
    lines = [
        "The firmware takes overlays from the boot partition, where no package",
        "of Debian's puts files.  Once, and after an upgrade that changes it:",
        "",
        *(
            f"    sudo cp /usr/share/{package}/overlays/{path.name} \\\n"
            "        /boot/firmware/overlays/"
            for path in overlays
        ),
        "",
        "and in /boot/firmware/config.txt:",
        "",
        *(f"    dtoverlay={path.stem}" for path in overlays),
    ]
    return "\n".join(lines)


def _common(package: str, date: datetime, words: str) -> dict[str, str]:
    """Return the texts that all packages have."""
    changelog = CHANGELOG.format(
        package=package,
        version=f"{__version__}-1",
        words=words,
        maintainer=f"{NAME} <{EMAIL}>",
        date=format_datetime(date),
    )
    return {
        "changelog": changelog,
        "copyright": COPYRIGHT,
        "source/format": "3.0 (quilt)\n",
        f"{package}.lintian-overrides": OVERRIDES.format(package=package),
    }


CHANGELOG = """\
{package} ({version}) unstable; urgency=medium

  * {words}

 -- {maintainer}  {date}
"""

OVERRIDES = """\
# No package of Debian's archive, where the first one closes the bug that asked for it.
{package}: initial-upload-closes-no-bugs *
"""

COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: mfrc522

Files: *
Copyright: 2026 The rbuild maintainers
License: GPL-2
 This program is free software; you can redistribute it and/or modify it under
 the terms of the GNU General Public License version 2, as published by the
 Free Software Foundation.
 .
 On Debian systems its text is in /usr/share/common-licenses/GPL-2.
"""

RULES = """\
#!/usr/bin/make -f
%:
\tdh $@{options}

# What the kernel loads stays as it was built and checked.
override_dh_strip:

override_dh_builddeb:
\tdh_builddeb -- -Zgzip
"""

CONTROL_OF_MODULES = """\
Source: {package}
Section: kernel
Priority: optional
Maintainer: {maintainer}
Build-Depends: debhelper-compat (= 13)
Standards-Version: 4.7.2
Rules-Requires-Root: no

Package: {package}
Architecture: {architecture}
Depends: kmod, linux-image-{release}, ${{misc:Depends}}
Conflicts: {others}
Description: NXP MFRC522 contactless reader's driver for Linux {release}
 The MFRC522 is a reader of contactless cards on an SPI bus.  Each reader has
 a character device that takes text commands.
 .
 This package has the driver for the kernel of linux-image-{release}
 alone, and the device tree overlay that tells a Raspberry Pi of the reader.
"""

CONTROL_OF_SOURCE = """\
Source: {package}
Section: kernel
Priority: optional
Maintainer: {maintainer}
Build-Depends: debhelper-compat (= 13), dh-sequence-dkms
Standards-Version: 4.7.2
Rules-Requires-Root: no

Package: {package}
Architecture: all
Depends: ${{misc:Depends}}
Description: NXP MFRC522 contactless reader's driver, as source for DKMS
 The MFRC522 is a reader of contactless cards on an SPI bus.  Each reader has
 a character device that takes text commands.
 .
 This package has the driver's source, which DKMS builds for each kernel whose
 headers are installed, and the device tree overlay that tells a Raspberry Pi
 of the reader.
"""

DKMS = """\
PACKAGE_NAME="{name}"
PACKAGE_VERSION="{version}"
BUILT_MODULE_NAME[0]="mfrc522"
DEST_MODULE_LOCATION[0]="/updates"
BUILD_EXCLUSIVE_CONFIG="CONFIG_SPI_MASTER"
AUTOINSTALL="yes"
"""

SCRIPT = """\
#!/bin/sh
set -e

case "$1" in
{what})
\tif [ -d "$DPKG_ROOT/usr/lib/modules/{release}" ]; then
\t\tdepmod ${{DPKG_ROOT:+-b "$DPKG_ROOT"}} {release}
\tfi
\t;;
esac

#DEBHELPER#
"""

README = """\
{title}
{package}

{overlays}

The kernel loads the driver by itself when it finds the reader; to load it by
hand:

    {modules}
"""
