"""The errors a user can cause, so that the command line can tell them from a fault of ours."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something in the user's files, options or environment is wrong.

    The message names the file or option, the value found and what is allowed. The command line prints it
    without a traceback and exits with code 2.
    """


class DataError(UserError):
    """A data set, an annotation file or an image cannot be used as it is."""


class AbsentError(DataError):
    """A split's folder or file is not there, which matters to those who ask for that split."""


def first_line(error: BaseException) -> str:
    """What an exception of another library says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, allowed: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` for the allowed name that is most like ``name``, or ``""`` where none is."""
    found = get_close_matches(name, list(allowed), n=1)
    return f", did you mean {found[0]!r}?" if found else ""
