"""What a format makes of a folder, and what its recognition needs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from drloss.data.files.survey import WHOLE, in_order, split_of_file
from drloss.data.source import FileSource

CERTAIN, LIKELY, POSSIBLE = 3, 2, 1
"""How sure a format is of a folder: a mark of its own is there; its content is; it may be, or repeat another's."""
_HEAD = 64 * 1024


@dataclass(frozen=True)
class Layout:
    """What a format makes of a folder.

    Attributes:
        format: name of the format, as :attr:`drloss.data.source.DataSource.format`.
        sure: :data:`CERTAIN`, :data:`LIKELY` or :data:`POSSIBLE`.
        says: what it was recognised by, in words.
        open: gives the data set, under a name for messages.
    """

    format: str
    sure: int
    says: str
    open: Callable[[str], FileSource]


def grouped_by_split(files: Iterable[str]) -> dict[str, list[str]]:
    """Split to its files, by the names of files and folders; those that name none are the split ``all``."""
    found: dict[str, list[str]] = {}
    for name in files:
        found.setdefault(split_of_file(name) or WHOLE, []).append(name)
    return {split: found[split] for split in in_order(found)}


def head(path: Path, size: int = _HEAD) -> bytes:
    """The first bytes of a plain file; none of anything else, or if it cannot be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""
