"""A file of JSON lines to which only whole lines are added, and which is good after a kill at any point."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from drloss.errors import UserError, printable, shown
from drloss.io.atomic import unwritable, write_atomic

Record = dict[str, Any]


PATIENCE = 1.0
"""After so many seconds it is made sure that the disk has the lines. A kill loses none of them in any case."""


class Journal:
    """Appends lines to a file; a context that closes it. What stands behind its last whole line is cut off first.

    Args:
        path: the file, which is made if there is none.
    Raises:
        UserError: if it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._synced = time.monotonic()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            self._length = _whole(path)
            self._file.truncate(self._length)
        except OSError as error:
            raise unwritable(path, error) from None

    def append(self, records: Sequence[Record]) -> None:
        """Write a line for each record, all of them or none.

        Raises:
            NoSpaceError: if there is no room on the disk; the file is then as before.
            UserError: if it cannot be written for another reason.
        """
        data = memoryview("".join(line_of(record) for record in records).encode("ascii"))
        length = len(data)
        try:
            while data:
                data = data[self._file.write(data) :]
            if time.monotonic() - self._synced > PATIENCE:
                self._sync()
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._length)
            raise unwritable(self.path, error) from None
        self._length += length

    def close(self) -> None:
        """Close the file once the disk has all of it."""
        try:
            self._sync()
            self._file.close()
        except OSError as error:
            raise unwritable(self.path, error) from None

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *why: object) -> None:
        self.close()


def line_of(record: Record) -> str:
    """A record as one line of ASCII; NaN and infinity, which JSON does not have, raise ValueError."""
    return json.dumps(record, allow_nan=False) + "\n"


def records_in(path: Path, *, strict: bool = True) -> Iterator[Record]:
    """The records of the whole lines of a file, one after the other; none if there is no file.

    Args:
        path: the file.
        strict: whether a damaged line is an error; else it is passed over.
    Raises:
        UserError: if it cannot be read, or a whole line is damaged.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):  # a write that was stopped
                    return
                if (record := _record(line)) is not None:
                    yield record
                elif strict:
                    raise UserError(
                        f"{printable(str(path))}: line {number} is damaged, no JSON object: {shown(line.rstrip())}; "
                        "mend or remove the line, or --overwrite all results"
                    )
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def keep_records(path: Path, keep: Callable[[Record], bool]) -> None:
    """Rewrite a file without the records that ``keep`` refuses."""

    def write(beside: Path) -> None:
        with beside.open("w", encoding="ascii") as file:
            file.writelines(line_of(record) for record in records_in(path) if keep(record))

    write_atomic(path, write)


def _record(line: bytes) -> Record | None:
    """The record of a line; None if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _whole(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    with path.open("rb") as file:
        return sum(len(line) for line in file if line.endswith(b"\n"))
