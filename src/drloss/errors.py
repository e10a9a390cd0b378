"""Errors that a user can cause, which the command line prints differently from bugs of drloss."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something in the user's files, options or environment is wrong.

    The message names the file or option, the value that was found and what is allowed. The command line prints the
    message without a traceback and exits with code 2.
    """


class DataError(UserError):
    """A data set, an annotation file or an image cannot be used."""


class AbsentError(DataError):
    """The folder or file of a split does not exist."""


def first_line(error: BaseException) -> str:
    """First line of an exception's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, allowed: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` for the most similar allowed name, or ``""`` if none is similar."""
    found = get_close_matches(name, list(allowed), n=1)
    return f", did you mean {found[0]!r}?" if found else ""
