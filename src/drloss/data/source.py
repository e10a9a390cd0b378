"""A data set with its splits, whatever its format; :mod:`drloss.data.formats.opening` finds the format."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from drloss.data.annotations import Annotations
from drloss.data.checks.problems import Report
from drloss.errors import AbsentError, DataError, UserError, printable, shown

VAL_NAMES = ("val", "valid", "validation")
"""Names of the validation split; it is shown as the first, and any of them opens it."""

Places = dict[str, dict[str, str | list[Path]]]
"""Split to the keys of a data file, each with a text or with paths."""
Read = Callable[[str, bool], tuple[Annotations, Report]]
"""Reads one split: (the split's name in messages, ``strict``) to its annotations and report."""


class DataSource(Protocol):
    """A data set with its splits.

    Attributes:
        name: name of the data set in messages: what ``--data`` was given.
        format: ``"coco"``, ``"voc"``, ``"yolo"``, ``"csv"``, ``"labelme"``, ``"createml"``, ``"cvat"``,
            ``"imagefolder"`` or ``"shapes"``.
        says: what it was recognised by, in words; may be empty.
        splits: the names that :meth:`read` takes.
    """

    @property
    def name(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def says(self) -> str: ...
    @property
    def splits(self) -> tuple[str, ...]: ...

    def read(self, split: str, *, strict: bool = True) -> tuple[Annotations, Report]:
        """Read a split.

        Args:
            split: one of :attr:`splits`.
            strict: read everything, then raise the first problem; otherwise leave out bad records.

        Raises:
            UserError: if there is no such split.
            AbsentError: if the split's folder or list does not exist.
            DataError: if its files cannot be read, or as ``strict`` says.
        """
        ...


@dataclass(frozen=True)
class FileSource:
    """A :class:`DataSource` on disk.

    Attributes:
        name, format, says: as in :class:`DataSource`.
        readers: split to the function that reads it.
        class_names: names of the classes, if they are known before a split is read.
        settings: further keys of its data file: ``root``, ``kpt_shape``.
        places: gives the keys of a data file for each split, :mod:`drloss.data.formats.data_toml`, if it has any.
    """

    name: str
    format: str
    readers: dict[str, Read]
    class_names: tuple[str, ...] | None = None
    says: str = ""
    places: Callable[[], Places] | None = None
    settings: dict[str, Path | list[int]] = field(default_factory=dict)

    def saying(self, says: str) -> "FileSource":
        """The same, with words on what it was recognised by."""
        return replace(self, says=says)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.readers)

    def read(self, split: str, *, strict: bool = True) -> tuple[Annotations, Report]:
        """Read a split; see :meth:`DataSource.read`."""
        wanted = (split, *VAL_NAMES) if split in VAL_NAMES else (split,)
        own = next((name for name in wanted if name in self.readers), None)
        if own is None:
            raise UserError(f"{printable(self.name)}: split, got {shown(split)}; allowed: {', '.join(self.splits)}")
        try:
            return self.readers[own](f"{self.name} {own}", strict)
        except OSError as error:
            raise unreadable(self.name, error) from None


def standard_name(split: str) -> str:
    """The split's name, with ``val`` in place of its other names."""
    return "val" if split in VAL_NAMES else split


def absent(message: str) -> Read:
    """A reader for a split that does not exist: it raises :class:`AbsentError` with ``message``."""

    def read(name: str, strict: bool) -> tuple[Annotations, Report]:
        raise AbsentError(message)

    return read


def unreadable(name: str, error: OSError) -> DataError:
    """The error for a data set that the system does not let us read: no permission, a failing disk, and the like."""
    return DataError(f"{printable(name)}: cannot be read ({printable(str(error))})")
