"""``rbuild deploy``: bring the driver, or a whole kernel with it, to a board over ssh."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from rbuild.board.deploy import machine, plan, run
from rbuild.board.deploy.board import Board, probe
from rbuild.board.deploy.remote import remote
from rbuild.board.staging import device_trees, extras, stage
from rbuild.cli.main import App
from rbuild.cli.options import (
    What,
    Where,
    ccache_option,
    driver_option,
    env_option,
    grouped,
    jobs_option,
    kind_options,
    profile_option,
    runtime_option,
    summary,
)
from rbuild.devicetree import overlay
from rbuild.kernel.build import build
from rbuild.kernel.kdir import Kdir
from rbuild.module.build import build_driver
from rbuild.module.check import BuiltModule
from rbuild.module.drivers import NAMES
from rbuild.sandbox.context import BuildContext
from rbuild.specs import architecture
from rbuild.specs.profile import Kind
from rbuild.ui.format import joined, size

EPILOG = """\b
Examples:
  rbuild deploy pi@raspberrypi --dry-run
  rbuild deploy pi@raspberrypi --driver c --load
  rbuild deploy pi@raspberrypi --kernel --profile rpi3bplus --reboot
  rbuild deploy pi@raspberrypi --rollback
"""


@dataclass(frozen=True)
class At:
    """Which board, how it is reached, and where its file systems are mounted."""

    host: str
    ssh: str
    boot_dir: str
    root: str


@dataclass(frozen=True)
class Action:
    """What is done to a board."""

    whole: bool
    rollback: bool
    dry_run: bool
    load: bool
    reboot: bool

    def check(self, at: At) -> None:
        """Raise click.UsageError for options that exclude each other, or a path that is none."""
        if self.rollback and self.whole:
            raise click.UsageError(
                "--rollback undoes whatever came last; it goes without --kernel."
            )
        if (self.load or self.reboot) and (self.dry_run or at.root):
            raise click.UsageError("--load and --reboot need a system that runs what is deployed.")
        if self.load and (self.whole or self.rollback):
            raise click.UsageError("--load is for a driver alone; after --kernel, --reboot.")
        for option, path in (("--boot-dir", at.boot_dir), ("--root", at.root)):
            is_plain = path.startswith("/") and ".." not in path.split("/") and path.isprintable()
            if path and not is_plain:
                raise click.UsageError(f"{option}: {path!r} is no absolute path.")


@click.command(epilog=EPILOG)
@click.argument("host")
@click.option("--kernel", "whole", is_flag=True, help="The kernel with all its modules, too.")
@click.option("--rollback", is_flag=True, help="Put back what the last deployment replaced.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing there.")
@click.option("--load", is_flag=True, help="Load the driver anew, and show the kernel's words.")
@click.option("--reboot", is_flag=True, help="Reboot the board at the end.")
@kind_options
@driver_option
@env_option
@profile_option
@click.option(
    "--overlay",
    "overlays",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="F.dtbo",
    help="Compiled overlays to load, may be repeated [default: rbuild's own].",
)
@click.option(
    "--ssh",
    default="ssh",
    show_default=True,
    envvar="RBUILD_SSH",
    metavar="COMMAND",
    help="How to call ssh, such as 'ssh -p 2222' (RBUILD_SSH).",
)
@click.option(
    "--boot-dir",
    default="",
    metavar="DIR",
    help="Where the board's boot partition is mounted there [default: found].",
)
@click.option(
    "--root",
    default="",
    metavar="DIR",
    help="Where the board's system is mounted there, if not on / (a card).",
)
@jobs_option
@ccache_option
@runtime_option
@grouped("at", At)
@grouped("action", Action)
@grouped("where", Where)
@grouped("what", What)
@click.pass_obj
def command(
    app: App,
    where: Where,
    what: What,
    action: Action,
    at: At,
    overlays: tuple[Path, ...],
) -> None:
    """Bring the driver, or with --kernel all of a kernel, to the board HOST over ssh.

    HOST is [user@]host; what else ssh needs stands in ~/.ssh/config. Not as root, it takes a
    sudo that asks for no password. All is uploaded aside and verified, then brought into place
    by renames, config.txt last; what it replaces is kept.
    """
    action.check(at)
    there = remote(at.host, at.ssh, at.root, app.console.verbose)
    with app.console.step(f"Looking at {at.host}"):
        board = probe(there, at.boot_dir)
    if action.rollback:
        back = run.roll_back(board, app.console, dry_run=action.dry_run)
        if action.reboot:
            run.reboot(board)
        data = {"command": "deploy", **back.as_json(), "rebooted": action.reboot}
        app.console.result(_back_lines(back), data)
        return
    if board.other:
        there.must_be_quiet()
    _deploy(app, where, what, action, board, overlays)


def _deploy(
    app: App, where: Where, what: What, action: Action, board: Board, overlays: Sequence[Path]
) -> None:
    made = where.build_context(app, "deploy")
    found = where.profile()
    wanted, how = what.chosen(found)
    whole = action.whole
    warnings = machine.must_suit(board, architecture.of_kernel(found.architecture), whole=whole)
    _warn(warnings, app)
    kdir = where.kdir(found, made)
    machine.must_run_on(board, kdir, whole=whole)
    if whole:
        kdir = build(kdir)
        warnings += (more := machine.tree_warnings(board, device_trees(kdir)))
        _warn(more, app)
    else:
        board = plan.for_release(board, kdir.release)
        warnings += (more := machine.config_warnings(board, kdir))
        _warn(more, app)
    result = build_driver(kdir, wanted, how, made)
    brought = list(overlays) or _own_overlays(kdir, made)
    with tempfile.TemporaryDirectory(prefix="deploy-", dir=made.run_folder) as name:
        folder = Path(name)
        planner = _planner(whole, kdir, how, result.modules, brought, folder, made)
        (folder / "upload").mkdir()
        done = run.deploy(board, planner, folder / "upload", app.console, dry_run=action.dry_run)
    said = run.load(done.board, NAMES[wanted]) if action.load else None
    if action.reboot:
        run.reboot(done.board)
    data = summary("deploy", kdir, made, result.script) | done.as_json()
    data |= {"kind": how, "driver": wanted, "whole_kernel": whole}
    data["artefacts"] = [one.as_json() for one in result.modules]
    data["phases"] += [phase.as_json() for phase in result.phases]
    data |= {"dmesg": said, "rebooted": action.reboot, "warnings": warnings}
    app.console.result(_lines(done, kdir, whole, said, action.reboot), data)


def _warn(warnings: Sequence[str], app: App) -> None:
    for text in warnings:
        app.console.warn(text)


def _own_overlays(kdir: Kdir, made: BuildContext) -> list[Path]:
    found = overlay.compile_overlays(kdir, overlay.own_folder(), made)
    return [one.path for one in found.overlays]


def _planner(
    whole: bool,
    kdir: Kdir,
    how: Kind,
    modules: Sequence[BuiltModule],
    overlays: Sequence[Path],
    folder: Path,
    made: BuildContext,
) -> plan.Planner:
    """Return what says what the board shall have; a kernel is laid out for it in ``folder``."""
    if whole:
        own = extras([one.path for one in modules], how)
        staged = stage(kdir, own, overlays, folder / "stage", made)
        return lambda board: plan.kernel_plan(board, staged)
    (built,) = modules
    return lambda board: plan.module_plan(board, built, kdir.release, overlays)


def _lines(
    done: run.Deployed, kdir: Kdir, whole: bool, said: list[str] | None, reboot: bool
) -> str:
    board = done.board
    what = f"Linux {kdir.release} with its modules" if whole else "The driver"
    lines = []
    if done.nothing:
        lines.append(f"{what} is on {board.remote.host} already: nothing to do")
    elif done.dry_run:
        lines.append(f"{what} would be deployed to {board.remote.host}; nothing was changed")
    else:
        lines.append(
            f"{what} is on {board.remote.host}: {len(done.sent.files)} files, "
            f"{size(done.sent.size_bytes)} uploaded; backup: {done.backup}"
        )
    lines += _listed("left by an interrupted deployment", done.undone)
    if done.dry_run:
        names = [f"{name} ({size(count)})" for name, count in done.sent.files]
        lines += _listed("to upload", names)
    lines += _listed("new", done.created)
    lines += _listed("replaced", done.replaced)
    lines += _listed("removed", done.removed)
    lines += [f"  {line}" for line in done.config_diff.splitlines()]
    if said is not None:
        lines += ["  loaded; its kernel says:", *(f"    {line}" for line in said)]
    if reboot:
        lines.append("  rebooting")
    elif done.config_diff and not done.dry_run:
        lines.append("  config.txt takes effect when the board reboots")
    return joined(lines)


def _back_lines(back: run.RolledBack) -> str:
    would = "would be put" if back.dry_run else "was put"
    lines = [f"Backup {back.backup} {would} back on {back.board.remote.host}"]
    lines += _listed("restored", back.restored)
    lines += _listed("removed", back.removed)
    lines += _listed("kept", back.left_alone)
    return joined(lines + [f"  {line}" for line in back.config_diff.splitlines()])


def _listed(title: str, names: Sequence[str]) -> list[str]:
    return [f"  {title}: {name}" for name in names]
