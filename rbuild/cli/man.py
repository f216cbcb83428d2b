"""``rbuild man``: the manual page, made from the help."""

from __future__ import annotations

import click

from rbuild.cli.main import App, main
from rbuild.cli.manpage import page
from rbuild.util.files import write_text
from rbuild.util.home import user_path

EPILOG = """\b
Examples:
  rbuild man | man -l -       read it
  rbuild man --install        then: man rbuild
  rbuild man > rbuild.1
"""


@click.command(epilog=EPILOG)
@click.option("--install", is_flag=True, help="Put it where man(1) looks, in your home folder.")
@click.pass_obj
def command(app: App, install: bool) -> None:
    """Print the manual page rbuild(1): all commands and options on one page.

    It is made from the help, and so says the same.
    """
    text = page(main)
    if not install:
        app.console.result(text, {"page": text})
        return
    path = (
        user_path("data", "Set HOME, or write it to a file of your choice.")
        / "man"
        / "man1"
        / "rbuild.1"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    app.console.result(
        f"{path}: written; `man rbuild` finds it if ~/.local/bin is in PATH,\n"
        f"and `MANPATH={path.parents[1]}: man rbuild` always.",
        {"path": str(path)},
    )
