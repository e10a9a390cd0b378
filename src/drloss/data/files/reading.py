"""Reading annotation files: regular files only, up to a size, and text as UTF-8."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drloss.errors import DataError, printable

_BLOCK = 16 * 1024**2
_PART = 256 * 1024
_NAMES = {b"": "bytes", b"\n": "lines", b"\r": "lines"}


@dataclass(frozen=True)
class Limit:
    """How often a byte may occur in a file.

    Attributes:
        base: number allowed in a file without records.
        each: number allowed in addition for each record.
        total: largest number in any file; None for no such limit.
    """

    base: int
    each: int = 0
    total: int | None = None

    def of(self, records: int) -> int:
        """The number allowed in a file with this many records."""
        allowed = self.base + self.each * records
        return allowed if self.total is None else min(allowed, self.total)


def read_bytes(
    path: Path, max_bytes: int, limits: Mapping[bytes, Limit] | None = None, records: Sequence[bytes] = ()
) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        max_bytes: largest size of the file.
        limits: byte to how often it may occur; ``b""`` stands for any byte. Checked before the file is in memory.
        records: keys that every record has one of; their number in the file is the number of records.

    Raises:
        DataError: if the file does not exist, is not a regular file, is too large or cannot be read.
    """
    require_limits(path, max_bytes, limits, records)
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def require_limits(
    path: Path, max_bytes: int, limits: Mapping[bytes, Limit] | None = None, records: Sequence[bytes] = ()
) -> None:
    """Raise DataError as :func:`read_bytes` does, without the content in memory."""
    name = printable(str(path))
    try:
        if not path.is_file():
            raise DataError(f"{name}: {'not a plain file' if path.exists() else 'no such file'}")
        size = path.stat().st_size
        if size > max_bytes:
            raise DataError(f"{name}: size, got {size:,} bytes; allowed: at most {max_bytes:,}")
        if limits:
            _check_limits(path, limits, records)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{printable(str(path))}: cannot be read ({error})")


def _check_limits(path: Path, limits: Mapping[bytes, Limit], records: Sequence[bytes]) -> None:
    """Read the file block by block; raise as soon as a byte has occurred too often for the records read so far."""
    found: Counter[bytes] = Counter()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            for mark in (*limits, *records):
                found[mark] += _count(block, mark)
            number = sum(found[key] for key in records)
            for mark, limit in limits.items():
                allowed = limit.of(number)
                if found[mark] > allowed:
                    keys = " or ".join(key.decode() for key in records)
                    rule = f" ({limit.base:,} and {limit.each:,} for each {keys})" if limit.each else ""
                    what = f"{printable(str(path))}: number of {_NAMES.get(mark) or mark.decode()}"
                    raise DataError(f"{what}, got more than {allowed:,}; allowed: at most {allowed:,}{rule}")


def _count(block: bytes, mark: bytes) -> int:
    """How often a mark is in a block; one byte is counted by numpy, which is faster if its part fits the cache."""
    if len(mark) != 1:
        return block.count(mark) if mark else len(block)
    values = np.frombuffer(block, dtype=np.uint8)
    return sum(int(np.count_nonzero(values[i : i + _PART] == mark[0])) for i in range(0, len(block), _PART))


def read_text(
    path: Path, max_bytes: int, limits: Mapping[bytes, Limit] | None = None, records: Sequence[bytes] = ()
) -> str:
    """The content of a regular file as text: UTF-8, with or without byte order mark.

    The arguments are those of :func:`read_bytes`.

    Raises:
        DataError: as :func:`read_bytes`, or if the file is not UTF-8.
    """
    data = read_bytes(path, max_bytes, limits, records)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte {error.start:,}, which is not UTF-8"
        raise DataError(f"{printable(str(path))}: encoding, got {what}; allowed: UTF-8") from None


def read_lines(
    path: Path, max_bytes: int, limits: Mapping[bytes, Limit] | None = None, records: Sequence[bytes] = ()
) -> list[str]:
    """The lines of a text file. Only line feeds and carriage returns end a line, unlike in ``str.splitlines``.

    Raises:
        DataError: as :func:`read_text`.
    """
    return read_text(path, max_bytes, limits, records).replace("\r\n", "\n").replace("\r", "\n").split("\n")
