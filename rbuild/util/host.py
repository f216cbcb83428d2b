"""What names this machine, its run since it was started, and where a PID means something."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rbuild.util.hashes import digest

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


def boot_id() -> str:
    """Return what names the time since the machine was started (random(4)).

    What was written before that and not synced may be lost, by a power cut or a crash.
    """
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"


def machine_id() -> str:
    """Return what names this machine without telling its machine-id(5), which is a secret.

    It is empty where there is none, such as in many a container.
    """
    for path in MACHINE_IDS:
        try:
            secret = path.read_bytes().strip()
        except OSError:
            continue
        if secret and secret != b"uninitialized":
            return hashlib.sha256(b"rbuild:" + secret).hexdigest()[:16]
    return ""


def realm() -> str:
    """Return what names this machine's run and PID namespace, in which a PID means something."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return digest([boot_id(), namespace])
