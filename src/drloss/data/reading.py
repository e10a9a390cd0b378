"""Reading annotation files: plain files only, up to a size, and text as UTF-8."""

from collections.abc import Mapping
from pathlib import Path

from drloss.data.problems import printable
from drloss.errors import DataError

_BLOCK = 16 * 1024**2


def read_bytes(path: Path, limit: int, most: Mapping[bytes, int] | None = None) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Args:
        path: the file.
        limit: its largest size.
        most: how often a byte may occur; told before the file is in memory.

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
        for byte, allowed in (most or {}).items():
            _count(path, byte, allowed)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: cannot be read ({error})") from None


def _count(path: Path, byte: bytes, most: int) -> None:
    found = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found += block.count(byte)
            if found > most:
                name = printable(str(path))
                raise DataError(
                    f"{name}: number of {byte.decode()}, got more than {most:,}; allowed: at most {most:,}"
                )


def read_lines(path: Path, limit: int) -> list[str]:
    """The lines of :func:`read_text`: ended by line feeds and carriage returns only, unlike ``str.splitlines``.

    Raises:
        DataError: as there.
    """
    return read_text(path, limit).replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_text(path: Path, limit: int) -> str:
    """The same as text: UTF-8, with or without byte order mark.

    Raises:
        DataError: as :func:`read_bytes`, or if the file is not UTF-8.
    """
    data = read_bytes(path, limit)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte {error.start:,}, which is not UTF-8"
        raise DataError(f"{printable(str(path))}: encoding, got {what}; allowed: UTF-8") from None
