"""A board that was looked at: its kernel, its boot folder with config.txt, its backups."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, replace

from rbuild.board.deploy import config
from rbuild.board.deploy.config import ALONE, Surroundings
from rbuild.board.deploy.remote import LOGIN_OUTPUT, Answer, Remote
from rbuild.errors import InfrastructureError, UsageError

MODULES = "/lib/modules"

ELF = re.compile("7f454c46(?:01|02)01[0-9a-f]{28}")
"""The first 20 bytes of a little-endian program (elf(5))."""


@dataclass(frozen=True)
class Hardware:
    """What runs a board's programs; a figure is 0, a text empty, where it isn't known.

    ``machine`` is what the kernel that runs calls it, as `uname -m`; ``bits`` are those of the
    programs' pointers, ``number`` the machine of a card's (elf(5)), ``page_size`` the kernel's;
    ``compatible`` is the board's device tree's.
    """

    machine: str = ""
    bits: int = 0
    number: int = 0
    page_size: int = 0
    compatible: tuple[str, ...] = ()


UNKNOWN = Hardware()


@dataclass(frozen=True)
class Board:
    """What a step told of a board.  Paths are the board's own, without ``Remote.root``.

    ``release`` is the kernel that runs, ``vermagic`` what its modules have, if any could be
    asked; ``updates`` are the modules beside the kernel's own.  ``backups`` are deployments that
    can be undone, the oldest first; ``left`` is what an interrupted one has left.  ``other`` are
    lines that came with the answer and were none of it.
    """

    remote: Remote
    release: str
    vermagic: str
    boot: str
    config: str
    overlay_folders: tuple[str, ...]
    releases: tuple[str, ...]
    updates: tuple[str, ...]
    backups: tuple[str, ...]
    left: tuple[str, ...]
    boot_free: int
    modules_free: int
    hardware: Hardware = UNKNOWN
    around: Surroundings = ALONE
    other: tuple[str, ...] = ()

    @property
    def overlays(self) -> str:
        """Where the firmware takes overlays from, as config.txt now is.

        From below ``os_prefix`` only if there is a README (Raspberry Pi's documentation).
        """
        prefix = config.current(self.config, "os_prefix", self.around) or ""
        folder = config.current(self.config, "overlay_prefix", self.around) or "overlays/"
        if prefix + folder in self.overlay_folders:
            folder = prefix + folder
        return f"{self.boot}/{folder.strip('/')}"


def probe(remote: Remote, boot: str, release: str = "") -> Board:
    """Look at a board, changing nothing; raise if it isn't one that can be deployed to.

    ``boot`` is its boot folder, empty to look for it; ``release`` the kernel whose modules
    matter, empty for the one that runs.
    """
    return _board(remote, boot, remote.step("probe", boot, release))


def cleaned(board: Board, token: str, release: str = "") -> tuple[Board, Answer]:
    """Undo and remove what an interrupted deployment has left; return the board as it is then."""
    answer = board.remote.step("clean", token, board.boot, release)
    return _board(board.remote, board.boot, answer), answer


def _board(remote: Remote, boot: str, answer: Answer) -> Board:
    host = remote.host
    if lacks := answer.all("lacks"):
        raise InfrastructureError(
            f"{host} lacks {', '.join(lacks)}.",
            hint="Install there what has them: " + ", ".join(_packages(lacks)) + ".",
        )
    if not answer.first("uid"):
        raise InfrastructureError(
            f"{host} gave no answer that rbuild understands.",
            detail="\n".join(answer.other),
            hint=LOGIN_OUTPUT,
        )
    if answer.first("uid") != "0":
        raise InfrastructureError(
            f"On {host}, this user may not become root without a password (`sudo -n true`).",
            hint="Log in as root, or give the user a line such as `pi ALL=(ALL) NOPASSWD: ALL` "
            "in /etc/sudoers.d there.",
        )
    remote = replace(remote, sudo=remote.sudo or bool(answer.first("sudo")))
    if not answer.first("boot"):
        where = boot or "/boot/firmware nor in /boot"
        raise UsageError(
            f"{host} has no config.txt in {where}: it doesn't look like a Raspberry Pi.",
            hint="--boot-dir names the folder where its boot partition is mounted.",
        )
    backups = [one.partition(" ")[::2] for one in answer.all("backup")]
    return Board(
        remote,
        answer.first("release"),
        answer.first("vermagic").strip(),
        answer.first("boot"),
        decoded(answer.first("config")),
        answer.all("overlays"),
        answer.all("modules"),
        answer.all("update"),
        tuple(name for name, state in backups if state == "done"),
        (*answer.all("left"), *(name for name, state in backups if state != "done")),
        _count(answer, "boot_free", host),
        _count(answer, "modules_free", host),
        hardware := _hardware(answer, remote),
        Surroundings(_included(answer), config.filters(hardware.compatible)),
        answer.other,
    )


def _hardware(answer: Answer, remote: Remote) -> Hardware:
    """Return what was told of a system that runs, or of a card's, which runs elsewhere."""
    if remote.root:
        if not ELF.fullmatch(header := answer.first("elf")):
            return UNKNOWN
        number = int.from_bytes(bytes.fromhex(header[36:40]), "little")
        return Hardware(bits=32 if header[8:10] == "01" else 64, number=number)
    return Hardware(
        answer.first("machine"),
        bits=_count(answer, "bits", remote.host),
        page_size=_count(answer, "page_size", remote.host),
        compatible=tuple(answer.first("compatible").split()),
    )


def _included(answer: Answer) -> dict[str, str]:
    """Return the files that config.txt includes, by their names there."""
    found = [one.partition(" ")[::2] for one in answer.all("include")]
    return {name: decoded(text) for text, name in found}


def _count(answer: Answer, word: str, host: str) -> int:
    text = answer.first(word) or "0"
    if not re.fullmatch("[0-9]{1,18}", text):
        raise InfrastructureError(f"{host} answered {text[:100]!r} for {word}, which is no number.")
    return int(text)


def decoded(text: str) -> str:
    """Return a file that was sent as base64, each byte kept.

    Raises InfrastructureError if it isn't base64.
    """
    try:
        return base64.b64decode(text).decode("utf-8", "surrogateescape")
    except ValueError as error:
        raise InfrastructureError(f"The board sent a file that can't be read: {error}.") from error


def encoded(text: str) -> str:
    """Return a text as base64, as ``decoded`` reads it."""
    return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()


def _packages(programs: tuple[str, ...]) -> list[str]:
    known = {"flock": "util-linux", "depmod": "kmod", "rsync": "rsync"}
    return sorted({known.get(name, "coreutils") for name in programs})
