"""The errors a user can cause, so that the command line can tell them from a fault of ours."""


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
