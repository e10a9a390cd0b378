"""The errors that a user can cause, and how their messages show names and values."""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

_LONGEST_VALUE = 80
_LONGEST_PATH = 4096


class UserError(Exception):
    """Something in the user's files, options or environment is wrong.

    The message names the file or option, the value that was found and what is allowed. The command line prints the
    message without a traceback and exits with code 2.
    """


class DataError(UserError):
    """A data set, an annotation file or an image cannot be used."""


class AbsentError(DataError):
    """The folder or file of a split does not exist; this stops only those who read that split."""


class NoSpaceError(UserError):
    """A file cannot be written because there is no room left for it, or its disk takes no writes any more."""


def printable(text: str) -> str:
    """``text``, quoted if it holds control characters, which a terminal might obey."""
    return text if text.isprintable() else ascii(text)


def shown(value: object) -> str:
    """A value from a file as messages show it: one line, escaped, at most about 80 characters."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"an integer of {value.bit_length():,} bits"
    if isinstance(value, str | bytes) and len(value) > _LONGEST_VALUE:
        value = value[: _LONGEST_VALUE + 1]
    elif isinstance(value, list | tuple | dict) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value):,} items"
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except (RecursionError, ValueError):
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_VALUE + 2 else text[:_LONGEST_VALUE] + "..."


def shown_path(path: Path) -> str:
    """A path as messages show it: without ``..`` parts, and in full unless it is too long for any file system."""
    text = os.path.normpath(path)
    return printable(text) if len(text) <= _LONGEST_PATH else shown(text)


def reason_of(error: DataError, file: str) -> str:
    """The message of an error about a file, without the file's name."""
    return str(error).removeprefix(f"{printable(file)}: ")


def first_line(error: BaseException) -> str:
    """The message of another library's exception, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, allowed: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` for the most similar allowed name, or ``""`` if none is similar."""
    bare = {option.lstrip("-"): option for option in allowed}
    found = get_close_matches(name.lstrip("-"), list(bare), n=1, cutoff=0.65)
    return f", did you mean {bare[found[0]]!r}?" if found else ""
