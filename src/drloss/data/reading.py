"""Reading annotation files: plain files only, up to a size, and text as UTF-8."""

from pathlib import Path

from drloss.data.problems import printable
from drloss.errors import DataError


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

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
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: cannot be read ({error})") from None


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
