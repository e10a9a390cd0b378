"""``drloss completion``: the script with which a shell completes commands, options and their values.

shtab writes it from the parsers of all commands. The script stands alone: a shell that completes starts no Python.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from drloss.cli.options import Command, preset_name
from drloss.training.config import AUTO, OPTIONS
from drloss.training.presets import PRESETS

SHELLS = {
    "bash": "~/.local/share/bash-completion/completions/drloss",
    "zsh": "_drloss, in a folder of $fpath",
    "fish": "~/.config/fish/completions/drloss.fish",
}
"""The shells, and the file in which each looks for the script."""


def add_completion(parser: argparse.ArgumentParser, every_command: Callable[[], argparse.ArgumentParser]) -> Command:
    """``drloss completion SHELL``; ``every_command`` makes the parser that knows the options of all commands."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    files = "\n".join(f"  {shell:5} {file}" for shell, file in SHELLS.items())
    parser.epilog = f"a shell that is opened later reads it from\n{files}"
    parser.add_argument("shell", choices=tuple(SHELLS), help="the shell that is to complete")

    def completion(options: argparse.Namespace) -> int:
        import shtab

        whole = every_command()
        for action in _actions(whole):
            _say_values(action, shtab.FILE)
        print(shtab.complete(whole, options.shell))
        return 0

    return completion


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options and arguments of a parser and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action


def _say_values(action: argparse.Action, files: Any) -> None:
    """Tell shtab what an option takes that the parser does not list: files, presets, values of a setting."""
    kind = OPTIONS.get(action.dest) if action.nargs != 0 else None
    if action.type is preset_name:
        action.choices = tuple(PRESETS)
    elif get_origin(kind) is Literal:
        action.choices = (*get_args(kind), *(("auto",) if action.dest in AUTO else ()))
    elif action.type is Path or action.dest == "data":
        action.complete = files  # type: ignore[attr-defined]
