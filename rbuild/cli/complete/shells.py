"""The shells: what each sources, and what it is answered when somebody presses Tab."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stderr
from typing import ClassVar

from click.shell_completion import CompletionItem, ShellComplete, split_arg_string

from rbuild.cli.complete import table

VARIABLE = "_RBUILD_COMPLETE"
"""What a shell asks by: its name and ``_source`` or ``_complete``."""

LINE = "_RBUILD_LINE"
"""The line as it was typed, up to the cursor: bash splits words where we don't."""

# Each script calls the very rbuild that was typed, which may be in no folder of PATH.
BASH = """\
%(complete_func)s() {
    local line=${COMP_LINE:0:COMP_POINT} command=${1/#\\~/$HOME}
    local word=${line##*[[:space:]]} breaks=${COMP_WORDBREAKS//[^:=]/} before="" kind value
    # Bash takes what follows a ":" or "=" for a word of its own, and replaces that alone.
    if [[ -n $breaks && $word != [\\"\\']* && $word =~ ^.*[$breaks] ]]; then
        before=${BASH_REMATCH[0]}
    fi
    COMPREPLY=()
    while IFS=$'\\t' read -r kind value _; do
        case $kind in
            plain)
                printf -v value %%q "$value"
                COMPREPLY+=("${value#"$before"}")
                ;;
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
        esac
    done < <(%(complete_var)s=bash_complete _RBUILD_LINE=$line "$command" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

ZSH = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local answer kind value text
    local -a found
    local line="${(j: :)words[1,CURRENT-1]} $PREFIX"
    answer=$(%(complete_var)s=zsh_complete _RBUILD_LINE=$line ${~words[1]} 2>/dev/null)
    while IFS=$'\\t' read -r kind value text; do
        case $kind in
            plain) found+=("${value//:/\\\\:}${text:+:$text}") ;;
            # Behind an option's "=" a path begins.
            dir) compset -P '--*='; _path_files -/ ;;
            file) compset -P '--*='; _path_files ;;
        esac
    done <<< "$answer"
    (( $#found )) && _describe -V %(prog_name)s found
}

if [[ $funcstack[1] == _%(prog_name)s ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""

FISH = """\
function %(complete_func)s
    set -l command (string replace -r '^~' $HOME -- (commandline -opc)[1])
    type -q -- $command; or return
    set -lx %(complete_var)s fish_complete
    set -lx _RBUILD_LINE (commandline -cp | string collect)
    # Behind an option's "=" a path begins.
    set -l before (string match -r '^--[^=]*=' -- (commandline -ct))
    for line in ($command 2>/dev/null)
        set -l found (string split \\t -- $line)
        switch $found[1]
            case plain
                printf '%%s\\t%%s\\n' $found[2] $found[3]
            case dir
                printf '%%s\\n' "$before"(__fish_complete_directories $found[2])
            case file
                printf '%%s\\n' "$before"(__fish_complete_path $found[2])
        end
    end
end

complete --no-files --keep-order --command %(prog_name)s --arguments '(%(complete_func)s)'
"""


class Shell(ShellComplete):
    """A shell that gives the line up to the cursor, and takes lines of kind, value and help."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the complete words behind rbuild's name, and the one that the cursor is in."""
        line = os.environ[LINE]
        words = split_arg_string(line)[1:]
        if not words or (line[-1].isspace() and not line.endswith("\\ ")):
            return words, ""
        return words[:-1], words[-1]

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """Return whole words: in front of an option's value behind ``=``, the option."""
        option, equals, _ = incomplete.partition("=")
        found = super().get_completions(args, incomplete)
        if not equals or not option.startswith("--"):
            return found
        return [
            CompletionItem(f"{option}={one.value}", one.type, one.help)
            if one.type == "plain"
            else one
            for one in found
        ]

    def format_completion(self, item: CompletionItem) -> str:
        """Return a line for the script."""
        return f"{item.type}\t{item.value}\t{' '.join((item.help or '').split())}"


class Bash(Shell):
    """bash 4.4 or newer."""

    name: ClassVar[str] = "bash"
    source_template: ClassVar[str] = BASH


class Zsh(Shell):
    """zsh, with its completion system (compinit)."""

    name: ClassVar[str] = "zsh"
    source_template: ClassVar[str] = ZSH


class Fish(Shell):
    """fish 3.1 or newer."""

    name: ClassVar[str] = "fish"
    source_template: ClassVar[str] = FISH


SHELLS: dict[str, type[Shell]] = {one.name: one for one in (Bash, Zsh, Fish)}


def script(shell: str) -> str:
    """Return what a shell sources to complete rbuild's command line."""
    return SHELLS[shell](table.read(), {}, "rbuild", VARIABLE).source()


def answer(asked: str) -> int:
    """Write what a shell asked for on stdout; return the exit code.

    Whoever is typing wants no errors among the words: where something is wrong, nothing is offered.
    """
    shell, _, what = asked.partition("_")
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):  # noqa: PTH123
        try:
            if what == "source":
                text = script(shell)
            else:
                text = SHELLS[shell](table.read(), {}, "rbuild", VARIABLE).complete() + "\n"
            sys.stdout.write(text)
            sys.stdout.flush()
        except Exception:  # noqa: BLE001 - see above
            return 1
    return 0
