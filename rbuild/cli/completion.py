"""``rbuild completion``: what makes a shell complete rbuild's command line."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from rbuild.cli.complete.shells import SHELLS, script
from rbuild.cli.main import App
from rbuild.cli.suggest import Choice
from rbuild.util.files import write_text
from rbuild.util.home import user_path

EPILOG = """\b
Examples:
  rbuild completion --install          for the shell in $SHELL
  rbuild completion zsh --install
  rbuild completion fish               print the script
"""


@click.command(epilog=EPILOG)
@click.argument("shell", required=False, type=Choice(list(SHELLS)))
@click.option("--install", is_flag=True, help="Put it where the shell looks by itself.")
@click.pass_obj
def command(app: App, shell: str | None, install: bool) -> None:
    """Print a script that completes commands, options and names in SHELL.

    Without SHELL, it is for the one in $SHELL. With --install, it is written to a file in your
    home folder; a file of yours is never changed, and of zsh's the lines are shown that it needs.
    """
    chosen = shell or _own()
    text = script(chosen)
    if not install:
        app.console.result(text, {"shell": chosen, "script": text})
        return
    path = place(chosen)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    data = {"shell": chosen, "path": str(path)}
    app.console.result(f"{path}: written; {_then(chosen, path)}", data)


def _own() -> str:
    """Return the name of the user's own shell.  Raises UsageError if it isn't one of ours."""
    name = Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        what = f"$SHELL is {name}" if name else "$SHELL is not set"
        raise click.UsageError(f"{what}: name one of {', '.join(SHELLS)}.")
    return name


def place(shell: str) -> Path:
    """Return where a shell looks for a script of that kind, for this user."""
    hint = "Set HOME, or write the script to a file of your choice."
    if shell == "fish":
        return user_path("config", hint) / "fish" / "completions" / "rbuild.fish"
    if shell == "zsh":
        return user_path("data", hint) / "zsh" / "site-functions" / "_rbuild"
    own = os.environ.get("BASH_COMPLETION_USER_DIR")
    # It may be a list, as PATH is; what comes first wins.
    folder = Path(own.split(":")[0]) if own else user_path("data", hint) / "bash-completion"
    return folder / "completions" / "rbuild"


def _then(shell: str, path: Path) -> str:
    """Return what is left to do for the user, as the end of a line and further lines."""
    if shell == "fish":
        return "new shells know it."
    if shell == "bash":
        return (
            "new shells know it where the package\n"
            "bash-completion is installed; otherwise this line in ~/.bashrc does it:\n"
            f"  source {shlex.quote(str(path))}"
        )
    return (
        "these lines belong into ~/.zshrc, once:\n"
        f"  fpath=({shlex.quote(str(path.parent))} $fpath)\n"
        "  autoload -Uz compinit && compinit"
    )
