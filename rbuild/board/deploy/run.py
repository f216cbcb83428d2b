"""Deploying to a board: uploaded aside, verified there, then brought into place by renames.

What is there keeps working until the last step, the rename of config.txt.  A deployment that is
interrupted before the first rename has changed nothing; one that is interrupted later (by a power
cut: the steps on the board don't end with the connection) is undone by the next one, from the
notes that it made before.  All that is replaced is kept, and `rbuild deploy --rollback` puts it
back.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rbuild.board.deploy import config
from rbuild.board.deploy.board import MODULES, Board, cleaned, decoded, encoded
from rbuild.board.deploy.plan import Part, Plan, Planner
from rbuild.board.deploy.remote import Answer, Sent
from rbuild.errors import GuestFailed, InfrastructureError, UsageError
from rbuild.module.drivers import NAMES
from rbuild.ui.console import Console
from rbuild.ui.format import size

MAX_BACKUPS = 3
"""How many deployments can be undone; the backups of older ones are removed."""

MARGIN = 8 * 1024**2
"""Bytes that must stay free on a file system there."""

STAMP = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True)
class Deployed:
    """What a deployment did, or with ``dry_run`` would do.

    ``backup`` is where what it replaced is, None if there was nothing to do.  ``undone`` is what
    an interrupted deployment had left.
    """

    board: Board
    dry_run: bool
    sent: Sent
    created: tuple[str, ...]
    replaced: tuple[str, ...]
    removed: tuple[str, ...]
    backup: str | None
    config_diff: str
    undone: tuple[str, ...] = ()

    @property
    def nothing(self) -> bool:
        """Whether all was there already."""
        return not (self.created or self.replaced or self.removed or self.config_diff)

    def as_json(self) -> dict[str, Any]:
        """Return the fields that the command line's contract has for it."""
        return {
            "host": self.board.remote.host,
            "release": self.board.release,
            "dry_run": self.dry_run,
            "uploaded": {
                "files": [name for name, _ in self.sent.files],
                "size_bytes": self.sent.size_bytes,
            },
            "created": list(self.created),
            "replaced": list(self.replaced),
            "removed": list(self.removed),
            "backup": self.backup,
            "config": f"{self.board.boot}/config.txt",
            "config_diff": self.config_diff,
            "undone": list(self.undone),
        }


def deploy(
    board: Board, planner: Planner, folder: Path, console: Console, *, dry_run: bool = False
) -> Deployed:
    """Bring to a board what ``planner`` says it shall have; ``folder`` is an empty one to work in.

    With ``dry_run``, find out what would be done.  Raises InfrastructureError if it can't be
    done; then the board is as it was, or the next deployment makes it so.
    """
    planner(board)
    remote = board.remote
    if dry_run:
        work, deployed = _compare(board, planner(board))
        sent = _upload(board, work, "dry-run", folder, console, dry_run=True)
        return replace(deployed, dry_run=True, sent=sent, undone=board.left)
    with remote.lock() as token:
        board, found = cleaned(board, token, board.release if remote.root else "")
        undone = (*found.all("undone"), *found.all("cleaned"))
        work, deployed = _compare(board, planner(board))
        if deployed.nothing:
            return replace(deployed, undone=undone)
        _must_have_room(board, work.parts)
        name = _name(board)
        sent = _upload(board, work, name, folder, console)
        with console.step(f"Switching {remote.host}"):
            done = _switch(board, work, name, token)
    return replace(deployed, sent=sent, backup=done.first("backup"), undone=undone)


@dataclass(frozen=True)
class RolledBack:
    """What putting a backup back did, or with ``dry_run`` would do."""

    board: Board
    dry_run: bool
    backup: str
    restored: tuple[str, ...]
    removed: tuple[str, ...]
    left_alone: tuple[str, ...]
    config_diff: str

    def as_json(self) -> dict[str, Any]:
        """Return the fields that the command line's contract has for it."""
        return {
            "host": self.board.remote.host,
            "release": self.board.release,
            "dry_run": self.dry_run,
            "backup": self.backup,
            "restored": list(self.restored),
            "removed": list(self.removed),
            "kept": list(self.left_alone),
            "config": f"{self.board.boot}/config.txt",
            "config_diff": self.config_diff,
        }


def roll_back(board: Board, console: Console, *, dry_run: bool = False) -> RolledBack:
    """Undo the newest deployment to a board; one that was interrupted, if there is one.

    Raises UsageError if there is no backup.
    """
    if dry_run:
        name, answer = _describe_backup(board)
        lines = (line.split(" ", 2) for line in answer.all("entry"))
        entries = [words for words in lines if len(words) == 3]
        return RolledBack(
            board,
            True,
            name,
            tuple(path for _, how, path in entries if how == "replaced"),
            tuple(path for kind, how, path in entries if how == "created" and kind != "folder"),
            (),
            _restored(board, answer)[1],
        )
    with board.remote.lock() as token:
        before = board
        board, found = cleaned(board, token)
        if undone := found.all("undone"):
            diff = config.difference(before.config, board.config, f"{board.boot}/config.txt")
            return _rolled_back(board, undone[0], found, diff)
        name, answer = _describe_backup(board)
        text, diff = _restored(board, answer)
        arguments = [_digest(board.config), encoded(text)] if diff else ["", ""]
        with console.step(f"Switching {board.remote.host} back"):
            done = board.remote.step("rollback", token, name, *arguments, board.boot)
    return _rolled_back(board, name, done, diff)


def load(board: Board, name: str) -> list[str]:
    """Load a module anew on the board; return what its kernel said meanwhile.

    Raises GuestFailed if it can't be loaded.
    """
    try:
        answer = board.remote.step("load", name, *NAMES.values())
    except InfrastructureError as error:
        raise GuestFailed(
            error.message,
            detail=error.detail,
            hint="It stays in its place; `rbuild deploy --rollback` takes it away.",
        ) from error
    return list(answer.all("dmesg"))


def reboot(board: Board) -> None:
    """Let the board reboot."""
    board.remote.step("reboot")


@dataclass(frozen=True)
class _Work:
    """What is left to do: parts, and config.txt's new text if it changes."""

    parts: tuple[Part, ...]
    config: str | None


def _compare(board: Board, plan: Plan) -> tuple[_Work, Deployed]:
    """Return what of a plan is left to do, and what it will have done."""
    asked = [
        word
        for number, part in enumerate(plan.parts)
        for word in (str(number), part.target, part.folder, part.listed)
    ]
    answer = board.remote.step("diff", *asked)
    same, there = set(answer.all("same")), set(answer.all("there"))
    left = [(str(i), part) for i, part in enumerate(plan.parts) if str(i) not in same]
    if not any(part.kind != "depmod" and part.target.startswith(MODULES) for _, part in left):
        left = [(i, part) for i, part in left if part.kind != "depmod"]
    new = board.config
    if plan.lines:
        new = config.with_block(board.config, plan.lines, board.around)
    diff = config.difference(board.config, new, f"{board.boot}/config.txt")
    brought = [(i in there, part) for i, part in left if part.source is not None]
    work = _Work(tuple(part for _, part in left), new if diff else None)
    return work, Deployed(
        board,
        False,
        Sent(),
        tuple(part.target for old, part in brought if not old),
        tuple(part.target for old, part in brought if old),
        tuple(part.target for _, part in left if part.kind == "remove"),
        None,
        diff,
    )


def _areas(board: Board, parts: Sequence[Part]) -> list[tuple[str, list[Part]]]:
    """Return the two folders there that have a place aside, with the parts that go through it."""
    brought = [part for part in parts if part.source is not None]
    return [
        (area, [part for part in brought if part.target.startswith(f"{area}/")])
        for area in (board.boot, MODULES)
    ]


def _staging_path(area: str, name: str) -> str:
    return f"{area}/.rbuild-upload-{name}"


def _must_have_room(board: Board, parts: Sequence[Part]) -> None:
    free = {board.boot: board.boot_free, MODULES: board.modules_free}
    for area, brought in _areas(board, parts):
        needed = sum(part.size_bytes for part in brought)
        if brought and needed + MARGIN > free[area]:
            raise InfrastructureError(
                f"{area} on {board.remote.host} has {size(free[area])} free; "
                f"{size(needed + MARGIN)} are needed.",
                hint="What is replaced is kept until all is in its place.",
            )


def _name(board: Board) -> str:
    """Return a deployment's name: the time, but later than any before, whatever clocks say."""
    now = datetime.now(UTC)
    for backup in board.backups:
        try:
            other = datetime.strptime(backup, STAMP).replace(tzinfo=UTC)
        except ValueError:
            continue
        now = max(now, other + timedelta(seconds=1))
    return now.strftime(STAMP)


def _upload(
    board: Board, work: _Work, name: str, folder: Path, console: Console, *, dry_run: bool = False
) -> Sent:
    """Send the parts to their places aside."""
    sent = Sent()
    for area, parts in _areas(board, work.parts):
        if not parts:
            continue
        source = _gathered(parts, folder / area.strip("/").replace("/", "-"))
        like = MODULES if area == MODULES and parts[0].kind == "tree" else None
        title = f"Uploading to {board.remote.host}:{area}"
        key = " ".join(part.name for part in parts)
        with console.step(title, total=100, key=key, unit="%") as step:

            def progress(percent: int, step: Any = step) -> None:  # noqa: ANN401
                step.update(done=percent)

            sent += board.remote.send(
                source, _staging_path(area, name), like=like, dry_run=dry_run, progress=progress
            )
    return sent


def _gathered(parts: Sequence[Part], folder: Path) -> Path:
    """Return a folder that has the parts, and nothing else."""
    if len(parts) == 1 and parts[0].kind == "tree":
        assert parts[0].source is not None
        return parts[0].source.parent
    folder.mkdir(exist_ok=True)
    for part in parts:
        assert part.source is not None
        shutil.copyfile(part.source, folder / part.name)
    return folder


def _switch(board: Board, work: _Work, name: str, token: str) -> Answer:
    words = []
    for part in work.parts:
        area = board.boot if part.target.startswith(f"{board.boot}/") else MODULES
        aside = "" if part.source is None else f"{_staging_path(area, name)}/{part.name}"
        words += [part.kind, aside, part.target, part.listed]
    before, new = "", ""
    if work.config is not None:
        before, new = _digest(board.config), encoded(work.config)
    return board.remote.step(
        "switch", token, name, board.boot, before, new, str(MAX_BACKUPS), *words
    )


def _describe_backup(board: Board) -> tuple[str, Answer]:
    if not board.backups:
        raise UsageError(f"{board.remote.host} has no backup to go back to.")
    name = board.backups[-1]
    return name, board.remote.step("describe", name, board.boot)


def _restored(board: Board, answer: Answer) -> tuple[str, str]:
    """Return config.txt with the backup's block, and how that differs from what it is now."""
    if not (old := answer.first("config")):
        return board.config, ""
    text = config.with_block_of(board.config, decoded(old))
    return text, config.difference(board.config, text, f"{board.boot}/config.txt")


def _rolled_back(board: Board, name: str, answer: Answer, diff: str) -> RolledBack:
    restored, removed, left_alone = (answer.all(word) for word in ("restored", "removed", "kept"))
    return RolledBack(board, False, name, restored, removed, left_alone, diff)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
