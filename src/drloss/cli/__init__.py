"""The command line: ``drloss train | config | eval | predict | export | compare | reproduce | data | ...``.

``detector.py`` has the commands around one detector, ``studies.py`` those that train several, ``data.py`` those about
data, ``completion.py`` the one for shells; ``options.py`` has what they share. Nothing imports this room. Heavy
imports are inside the commands, so that ``--help`` answers at once. A user's error ends in a line or two and exit
code 2; a traceback is a bug of drloss.
"""

import argparse
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

from drloss.cli.completion import add_completion
from drloss.cli.data import add_data, add_make_shapes
from drloss.cli.detector import add_benchmark, add_config, add_eval, add_export, add_predict, add_train
from drloss.cli.options import INTERRUPTED, USER_ERROR, Command
from drloss.cli.studies import add_compare, add_demo, add_reproduce
from drloss.data.files.paths import following_links
from drloss.distributed.host import wait_passively
from drloss.errors import UserError, nearest


class _Parser(argparse.ArgumentParser):
    """Prints errors in two lines, not the whole usage, and suggests the option that may have been meant."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: error: {message}\n(see {self.prog} --help)\n")

    def unknown(self, arguments: Sequence[str]) -> NoReturn:
        """Exit with an error about arguments that the command does not know."""
        known = [option for action in self._actions for option in action.option_strings]
        first = next((a.partition("=")[0] for a in arguments if a.startswith("-")), "")
        meant = nearest(first, known) and f" ({first}{nearest(first, known)})"
        self.error(f"unrecognized arguments: {' '.join(arguments)}{meant}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    wait_passively()
    try:
        return _run(arguments)
    except UserError as error:
        where = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        print(f"drloss: error: {error}{where}", file=sys.stderr)
        return USER_ERROR
    except (MemoryError, RuntimeError) as error:
        # torch has errors of its own for full memory, of the GPU and of the CPU, and is not imported here.
        if type(error).__name__ not in ("MemoryError", "OutOfMemoryError") and _FULL not in str(error):
            raise
        print(f"drloss: error: {_NO_MEMORY}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:  # the reader of a pipe, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("drloss: interrupted", file=sys.stderr)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        package = (error.name or "drloss").split(".")[0]
        if package == "drloss":
            raise
        print(f"drloss: error: {package} is missing: {_INSTALL}", file=sys.stderr)
        return USER_ERROR


def _run(arguments: Sequence[str]) -> int:
    arguments = [_OLDER.get(a, a) if k == 0 else a for k, a in enumerate(arguments)]
    parser, asked = _parsers(arguments, arguments[:1])
    command = next((a for a in arguments[:1] if not a.startswith("-")), None)
    if command is not None and command not in _COMMANDS:
        meant = nearest(command, _COMMANDS)
        parser.error(f"argument COMMAND: invalid choice: {command!r}{meant} (choose from {', '.join(_COMMANDS)})")
    options, rest = parser.parse_known_args(arguments)
    if rest:
        asked.unknown(rest)
    if options.version:
        import drloss

        print(f"drloss {drloss.__version__}")
        return 0
    if options.command is None:
        parser.print_help()
        return 0
    with following_links(getattr(options, "follow_links", False)):
        code: int = options.run(options)
    return code


def _parsers(arguments: Sequence[str], with_options: Collection[str]) -> tuple[_Parser, _Parser]:
    """The parser, in which these commands have their options, and that of the last of them, or itself."""
    parser = _Parser(prog="drloss", description="Dense object detection with the DR loss.", allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    asked = parser
    for name, (describe, add) in _COMMANDS.items():
        sub = commands.add_parser(name, help=describe, description=describe, allow_abbrev=False)
        if name in with_options:
            asked = sub
            sub.set_defaults(run=add(sub, arguments))
    return parser, asked


def _add_completion(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Command:
    return add_completion(parser, lambda: _parsers(["--help"], _COMMANDS)[0])


_INSTALL = "run pip install '.[detector]' in the checkout of drloss, which is on no index"
_FULL = "DefaultCPUAllocator: can't allocate memory"
_NO_MEMORY = (
    "this needs more memory than there is: lower --micro-batch, --eval-batch-size, --short-side or, in predict, "
    "--batch-size"
)
_OLDER = {"check-data": "data"}
"""Older names of commands, which go on."""
_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser, Sequence[str]], Command]]] = {
    "train": ("Train a detector on images with boxes.", add_train),
    "config": ("Print the settings of a preset as JSON, for train --config.", add_config),
    "eval": ("Evaluate a trained detector: COCO metrics, results file, plots.", add_eval),
    "predict": ("Detect objects in images and videos, draw them and list them.", add_predict),
    "export": ("Write a run's detector to one file: safetensors, or ONNX for other runtimes.", add_export),
    "benchmark": ("Time a trained detector on this machine, in torch and in onnxruntime.", add_benchmark),
    "compare": ("Train several losses on your data and say in one page which is ahead.", add_compare),
    "data": ("Read a data set once; say what it is, what is in it and what is wrong; convert it.", add_data),
    "make-shapes": ("Write the generated data set to a folder.", add_make_shapes),
    "demo": ("Train focal, DR and DR+ on generated data and write a report.", add_demo),
    "reproduce": ("Draw the paper's figures, rerun its tables and put both numbers on one page.", add_reproduce),
    "completion": ("Print the script with which a shell completes drloss.", _add_completion),
}
