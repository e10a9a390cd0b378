"""Atomic writing of files: a half-written file never replaces a complete one."""

import errno
import json
import os
import re
from collections.abc import Callable
from math import isnan
from pathlib import Path
from typing import Any

from drloss.errors import NoSpaceError, UserError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomic(
    path: Path,
    write: Callable[[Path], object],
    check: Callable[[Path], object] | None = None,
    *,
    sync: bool = True,
) -> None:
    """Write a file beside ``path``, then rename it to ``path``, which always holds the old content or the new one.

    Args:
        path: file to write; its folder is made if it does not exist.
        write: writes the file that it is given. If it raises, ``path`` keeps its content and the new file is removed.
        check: is given the new file on the disk, and raises if it must not replace ``path``.
        sync: wait until the disk has it. Without, which is faster for many files, it is as safe against a kill, but a
            power cut may leave it empty.
    Raises:
        UserError: if the folder cannot be made or the file cannot be written: no space, no permission, not a folder.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(beside)
            if sync:
                with beside.open("rb") as file:
                    os.fsync(file.fileno())
            if check is not None:
                check(beside)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        if sync:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError) -> UserError:
    """The UserError for a file that cannot be written; a NoSpaceError if no other file could be, either."""
    reason = error.strerror or str(error)
    if error.errno in _NO_SPACE and "no space" not in reason.lower():
        reason = f"no space left: {reason}"
    kind = NoSpaceError if error.errno in (*_NO_SPACE, errno.EROFS) else UserError
    return kind(f"{path}: cannot be written: {reason}")


def remove_unfinished(folder: Path) -> None:
    """Remove files that a killed process left half-written; no other process may be writing into the folder."""
    for path in folder.glob(".*.part"):
        if re.search(r"\.\d+\.part$", path.name):
            path.unlink(missing_ok=True)


def json_of(path: Path) -> Any:
    """The content of a JSON file; None if there is no such file or it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Write UTF-8 text atomically; ``sync`` as for :func:`write_atomic`."""
    write_atomic(path, lambda beside: beside.write_text(text, encoding="utf-8"), sync=sync)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN becomes null, because JSON has no NaN, and infinities raise ValueError."""
    write_text(path, json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and isnan(value) else value
