"""Reading annotation files: plain files only, up to a size, and text as UTF-8."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drloss.errors import DataError, printable

_BLOCK = 16 * 1024**2
_NAMES = {b"": "bytes", b"\n": "lines", b"\r": "lines"}


@dataclass(frozen=True)
class Most:
    """How often a byte may occur in a file.

    Attributes:
        free: so often in any file.
        each: so often more for each record.
        in_all: the limit of both together; None for none.
    """

    free: int
    each: int = 0
    in_all: int | None = None

    def of(self, records: int) -> int:
        """The number for a file with so many records."""
        allowed = self.free + self.each * records
        return allowed if self.in_all is None else min(allowed, self.in_all)


def read_bytes(
    path: Path, limit: int, most: Mapping[bytes, Most] | None = None, records: Sequence[bytes] = ()
) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Args:
        path: the file.
        limit: its largest size.
        most: how often a byte may occur, and how many there may be for ``b""``; told before the file is in memory.
        records: keys that records have, by which their number is told.

    Raises:
        DataError: if there is no such file, it is none, it is too large or it cannot be read.
    """
    name = printable(str(path))
    try:
        if not path.is_file():
            raise DataError(f"{name}: {'not a plain file' if path.exists() else 'no such file'}")
        size = path.stat().st_size
        if size > limit:
            raise DataError(f"{name}: size, got {size:,} bytes; allowed: at most {limit:,}")
        if most:
            _count(path, most, records)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: cannot be read ({error})") from None


def _count(path: Path, most: Mapping[bytes, Most], records: Sequence[bytes]) -> None:
    """Raise at the first block by which a byte has occurred too often for the records up to there."""
    found: Counter[bytes] = Counter()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            for mark in (*most, *records):
                found[mark] += block.count(mark) if mark else len(block)
            number = sum(found[key] for key in records)
            for mark, limits in most.items():
                allowed = limits.of(number)
                if found[mark] > allowed:
                    keys = " or ".join(key.decode() for key in records)
                    rule = f" ({limits.free:,} and {limits.each:,} for each {keys})" if limits.each else ""
                    what = f"{printable(str(path))}: number of {_NAMES.get(mark) or mark.decode()}"
                    raise DataError(f"{what}, got more than {allowed:,}; allowed: at most {allowed:,}{rule}")


def read_lines(path: Path, limit: int, most: Mapping[bytes, Most] | None = None) -> list[str]:
    """The lines of :func:`read_text`: ended by line feeds and carriage returns only, unlike ``str.splitlines``.

    Raises:
        DataError: as there.
    """
    return read_text(path, limit, most).replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_text(path: Path, limit: int, most: Mapping[bytes, Most] | None = None) -> str:
    """The same as text: UTF-8, with or without byte order mark.

    Raises:
        DataError: as :func:`read_bytes`, or if the file is not UTF-8.
    """
    data = read_bytes(path, limit, most)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte {error.start:,}, which is not UTF-8"
        raise DataError(f"{printable(str(path))}: encoding, got {what}; allowed: UTF-8") from None
