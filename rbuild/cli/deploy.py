"""``rbuild deploy``: bring the driver, or a whole kernel with it, to a board over ssh."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from rbuild import architecture, module, overlay, profile
from rbuild.cli import App
from rbuild.cli.options import (
    ccache_option,
    driver_option,
    env_option,
    jobs_option,
    kdir_for,
    kind_options,
    profile_option,
    runtime_option,
    session,
    summary,
)
from rbuild.console import joined, size
from rbuild.deploy import machine, plan, run
from rbuild.deploy.board import look
from rbuild.deploy.remote import remote
from rbuild.kernel import Kdir, build
from rbuild.profile import Driver, Kind
from rbuild.session import Session
from rbuild.stage import device_trees, extras, stage

EPILOG = """\b
Examples:
  rbuild deploy pi@raspberrypi --dry-run
  rbuild deploy pi@raspberrypi --driver c --load
  rbuild deploy pi@raspberrypi --kernel --profile rpi3bplus --reboot
  rbuild deploy pi@raspberrypi --rollback
"""


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
@click.pass_obj
def command(
    app: App,
    host: str,
    whole: bool,
    rollback: bool,
    dry_run: bool,
    load: bool,
    reboot: bool,
    kind: str | None,
    driver: str | None,
    env: str,
    profile_name: str,
    overlays: tuple[Path, ...],
    ssh: str,
    boot_dir: str,
    root: str,
    jobs: int | None,
    ccache: bool,
    runtime: str,
) -> None:
    """Bring the driver, or with --kernel all of a kernel, to the board HOST over ssh.

    HOST is [user@]host; what else ssh needs stands in ~/.ssh/config. Not as root, it takes a
    sudo that asks for no password. All is uploaded aside and verified, then brought into place
    by renames, config.txt last; what it replaces is kept.
    """
    _must_fit(whole, rollback, load or reboot, dry_run, boot_dir, root)
    there = remote(host, ssh, root, app.console.verbose)
    with app.console.step(f"Looking at {host}"):
        board = look(there, boot_dir)
    if rollback:
        back = run.roll_back(board, app.console, dry_run=dry_run)
        if reboot:
            run.reboot(board)
        data = {"command": "deploy", **back.as_json(), "rebooted": reboot}
        app.console.result(_back_lines(back), data)
        return
    made = session(app, "deploy", runtime, jobs, ccache=ccache)
    found = profile.load(profile_name)
    wanted, how = Driver(driver or found.driver), Kind(kind or found.kind)
    if board.other:
        there.must_be_quiet()
    warnings = machine.must_suit(board, architecture.of_kernel(found.architecture), whole=whole)
    _warn(warnings, app)
    kdir = kdir_for(found, env, made)
    machine.must_run_on(board, kdir, whole=whole)
    if whole:
        kdir = build(kdir, made)
        warnings += (more := machine.tree_warnings(board, device_trees(kdir)))
        _warn(more, app)
    else:
        board = plan.for_release(board, kdir.release)
        warnings += (more := machine.config_warnings(board, kdir))
        _warn(more, app)
    result = module.build_driver(kdir, wanted, how, made)
    brought = list(overlays) or _own_overlays(kdir, made)
    with tempfile.TemporaryDirectory(prefix="deploy-", dir=made.run_folder) as name:
        folder = Path(name)
        planner = _planner(whole, kdir, how, result.modules, brought, folder, made)
        (folder / "upload").mkdir()
        done = run.deploy(board, planner, folder / "upload", app.console, dry_run=dry_run)
    said = run.load(done.board, module.NAMES[wanted]) if load else None
    if reboot:
        run.reboot(done.board)
    data = summary("deploy", kdir, made) | done.as_json()
    data |= {"kind": how, "driver": wanted, "whole_kernel": whole}
    data["artefacts"] = [one.as_json() for one in result.modules]
    data["phases"] += [phase.as_json() for phase in result.phases]
    data |= {"dmesg": said, "rebooted": reboot, "warnings": warnings}
    app.console.result(_lines(done, kdir, whole, said, reboot), data)


def _warn(warnings: Sequence[str], app: App) -> None:
    for text in warnings:
        app.console.warn(text)


def _must_fit(
    whole: bool, rollback: bool, after: bool, dry_run: bool, boot_dir: str, root: str
) -> None:
    if rollback and whole:
        raise click.UsageError("--rollback undoes whatever came last; it goes without --kernel.")
    if after and (dry_run or root):
        raise click.UsageError("--load and --reboot need a system that runs what is deployed.")
    context = click.get_current_context()
    if context.params["load"] and (whole or rollback):
        raise click.UsageError("--load is for a driver alone; after --kernel, --reboot.")
    for option, path in (("--boot-dir", boot_dir), ("--root", root)):
        if path and (not path.startswith("/") or ".." in path.split("/") or not path.isprintable()):
            raise click.UsageError(f"{option}: {path!r} is no absolute path.")


def _own_overlays(kdir: Kdir, made: Session) -> list[Path]:
    found = overlay.compile_overlays(kdir, overlay.own_folder(), made)
    return [one.path for one in found.overlays]


def _planner(
    whole: bool,
    kdir: Kdir,
    how: Kind,
    modules: Sequence[module.Built],
    overlays: Sequence[Path],
    folder: Path,
    made: Session,
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
    lines += _listed("kept", back.kept)
    return joined(lines + [f"  {line}" for line in back.config_diff.splitlines()])


def _listed(title: str, names: Sequence[str]) -> list[str]:
    return [f"  {title}: {name}" for name in names]
