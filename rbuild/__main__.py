"""The entry point: shows help without loading anything, and maps every error to its exit code."""

from __future__ import annotations

import gc
import os
import os.path
import sys

HELP = os.path.join(os.path.dirname(__file__), "cli", "help.txt")  # noqa: PTH118, PTH120 - pathlib is slow
"""The text of ``rbuild --help``, kept beside the code (a test compares it with click's own).

Loading click takes several times as long as starting Python; whoever asks for help, or whose
shell runs rbuild to see whether it is there, needn't wait for it.
"""


def main() -> None:
    """Run the command line; never returns."""
    _open_closed_streams()
    arguments = sys.argv[1:]
    if (asked := os.environ.get("_RBUILD_COMPLETE")) is not None:
        from rbuild.cli.complete.shells import answer  # noqa: PLC0415 - see HELP

        sys.exit(answer(asked))
    if arguments in (["--help"], ["-h"], ["help"], []):
        try:
            with open(HELP, encoding="utf-8") as file:  # noqa: PTH123
                sys.stdout.write(file.read())
            sys.stdout.flush()
            sys.exit(0)
        except OSError:
            # Nobody reads, or the disk is full: the command line knows what to say of that.
            arguments = ["--help"]
    # Nearly all that is made is what is loaded, and stays: to look for garbage in it at every
    # step takes a tenth of the time until there is something to do.
    gc.set_threshold(50_000)
    # Plugins would be looked for in the files of every package that is installed.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        _take_signals()
        from rbuild.cli.main import run  # noqa: PLC0415 - see HELP

        code = run(arguments)
        _ignore_signals()
    except KeyboardInterrupt:
        # While it was being loaded, or a second one: nothing was begun, or all is said.
        code = 130
    if code == 130:
        _end_interrupted()
    sys.exit(code)


def _open_closed_streams() -> None:
    """Open what the caller has closed (``>&-``), lest a file takes its number and gets the output.

    stdout then can't be written, so that a result that is lost is an error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # The lowest number that is free is this one.
            flags = os.O_WRONLY if name == "stderr" else os.O_RDONLY
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def _take_signals() -> None:
    """Let SIGTERM and SIGHUP interrupt the loading, too, which takes longer than Python's start."""
    import signal  # noqa: PLC0415 - see HELP

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, interrupt)


def _ignore_signals() -> None:
    """Keep the exit code: all is done and said, and Python resets handlers before it has ended."""
    import signal  # noqa: PLC0415 - see HELP

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _end_interrupted() -> None:
    """End with 130 at once.

    By ``python -m``, CPython (Py_RunMain) would die of SIGINT instead, if the interrupt came while
    a dataclass was made: it remembers those that come inside of exec().
    """
    from contextlib import suppress  # noqa: PLC0415 - see HELP

    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(130)


if __name__ == "__main__":
    main()
