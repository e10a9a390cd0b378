"""Images for ``drloss predict``, read and prepared in processes of their own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from drloss.data.order import Key
from drloss.data.workers import load_items
from drloss.detector.config import DetectorConfig
from drloss.errors import UserError, printable
from drloss.inference.views import Seen, Tiling, see

FEW = 4
"""Up to so many images are read without processes, whose start takes longer."""


@dataclass(frozen=True)
class Read:
    """An image that was read, or why it was not.

    Attributes:
        index: its position.
        seen: what of it goes through the detector; None if it could not be read.
        problem: the message that says why.
    """

    index: int
    seen: Seen | None
    problem: str = ""

    @property
    def parts(self) -> int:
        """Number of parts that go through the detector; 1 for an image that could not be read."""
        return self.seen.parts if self.seen else 1


class Pictures(Dataset[Read]):
    """Image files by :class:`Key`, prepared for a detector; a damaged one gives its problem, and raises nothing."""

    def __init__(
        self,
        paths: Sequence[Path],
        config: DetectorConfig,
        fixed: tuple[int, int] | None,
        tiling: Tiling | None,
    ) -> None:
        self.paths = paths
        self.config = config
        self.fixed = fixed
        self.tiling = tiling

    def path_of(self, index: int) -> Path:
        """The file of an image."""
        return self.paths[index]

    def __getitem__(self, key: Key) -> Read:
        try:
            return Read(key.index, see(self.paths[key.index], self.config, self.fixed, self.tiling))
        except UserError as error:
            return Read(key.index, None, str(error))
        except MemoryError:
            return Read(key.index, None, f"{printable(str(self.paths[key.index]))}: needs more memory than there is")


@contextmanager
def load_pictures(pictures: Pictures, workers: int) -> Iterator[Iterator[Read]]:
    """The images in their order, read by ``workers`` processes, which end with the context.

    Raises:
        DataError: if a process was killed or hangs, naming the images that were being read.
    """
    keys = ([Key(0, index, (0, 0))] for index in range(len(pictures.paths)))
    processes = workers if len(pictures.paths) > FEW else 0
    with load_items(pictures, keys, processes, collate=_only, name_of=pictures.path_of) as loaded:
        yield loaded


def _only(read: list[Any]) -> Any:
    return read[0]
