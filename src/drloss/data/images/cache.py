"""Decoded images kept for the next epoch: in memory that all loading processes share, or on the disk for later runs.

A cache gives the very pixels that were put into it or nothing: every entry has a checksum, so that an entry that is
half-written, damaged or of another image is read anew from its file. A cache that cannot be written is left alone.
"""

import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from multiprocessing import RawArray
from pathlib import Path
from shutil import disk_usage
from tempfile import gettempdir
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FORMAT = 1
"""Number of the rules by which images are decoded; another number makes every file of a disk cache invalid."""
_SHARE = 0.25
"""Largest part of the free memory that the cache in memory takes."""
MOST_DISK = 20 << 30
"""Largest number of bytes of the disk cache."""
_LEFT_FREE = 2 << 30
"""Bytes of the disk that the cache leaves free."""
_PREFIX = 16
"""Bytes before the pixels of a file: height, width and checksum, 4 each, and 4 that are 0."""


class ImageCache(Protocol):
    """Keeps decoded images, uint8 (3, H, W) with the three values of a pixel as neighbours."""

    def get(self, index: int, file: Path) -> Tensor | None:
        """The image if it is there, and it is that of this file as the file is now."""
        ...

    def put(self, index: int, file: Path, image: Tensor) -> None:
        """Keep an image, if there is room."""
        ...


def load_cached(cache: ImageCache | None, index: int, file: Path, load: Callable[[], Tensor]) -> Tensor:
    """The image from the cache, or else from ``load``, and then put into the cache."""
    if cache is None:
        return load()
    found = cache.get(index, file)
    if found is None:
        found = load()
        cache.put(index, file, found)
    return found


def _pixels_of(image: Tensor) -> npt.NDArray[np.uint8]:
    """The pixels (H, W, 3) in one piece."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


class MemoryCache:
    """Images in memory that is shared with the processes to which the cache is handed when they start.

    Args:
        sizes: height and width of every image as it is decoded; each has its place, as far as the memory goes.
        most: largest number of bytes; by default a quarter of what is free.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], most: int | None = None) -> None:
        self.sizes = sizes
        room = int(_SHARE * free_memory()) if most is None else most
        ends = np.cumsum([3 * height * width for height, width in sizes], dtype=np.int64)
        self.kept = int(np.searchsorted(ends, room, side="right"))
        self.starts = np.concatenate([[0], ends])[: self.kept + 1]
        self._pixels = RawArray("B", max(1, int(self.starts[-1])))
        self._sums = RawArray("Q", max(1, self.kept))

    @property
    def size(self) -> int:
        """Bytes of all its images."""
        return int(self.starts[-1])

    def _place(self, index: int) -> npt.NDArray[np.uint8]:
        height, width = self.sizes[index]
        whole = np.frombuffer(self._pixels, dtype=np.uint8)
        return whole[self.starts[index] : self.starts[index + 1]].reshape(height, width, 3)

    def get(self, index: int, file: Path) -> Tensor | None:
        """See :meth:`ImageCache.get`; the files are taken not to change during the run."""
        if index >= self.kept or not self._sums[index]:
            return None
        pixels = self._place(index).copy()
        return torch.from_numpy(pixels).permute(2, 0, 1) if self._sums[index] == _sum(pixels) else None

    def put(self, index: int, file: Path, image: Tensor) -> None:
        """See :meth:`ImageCache.put`."""
        if index < self.kept and tuple(image.shape[1:]) == tuple(self.sizes[index]):
            pixels = _pixels_of(image)
            self._place(index)[:] = pixels
            self._sums[index] = _sum(pixels)


def _sum(pixels: npt.NDArray[np.uint8]) -> int:
    """A checksum that is never 0."""
    return zlib.crc32(pixels.data) + 1


def free_memory() -> int:
    """Bytes of memory that are free, or could be; 4 GB where that is not known."""
    with suppress(OSError, ValueError, IndexError, StopIteration), open("/proc/meminfo", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith("MemAvailable:")).split()[1]) * 1024
    return 4 << 30


class DiskCache:
    """Images in the files of a folder, which later runs and runs at the same time use too.

    The name of a file says which image is in it: the path of the image's file, its size in bytes, its time of change
    and the size in pixels that was needed. A changed image has another name.

    Args:
        folder: the folder, made if it is not there.
        least: the height and width that are needed of each image.
    """

    def __init__(self, folder: Path, least: Sequence[tuple[int, int]]) -> None:
        self.folder = folder
        self.least = least
        self._room: int | None = None

    def _file(self, index: int, file: Path) -> Path:
        stat = file.stat()
        text = f"{FORMAT} {file.resolve()} {stat.st_size} {stat.st_mtime_ns} {self.least[index]}"
        name = sha256(text.encode(errors="surrogateescape")).hexdigest()
        return self.folder / name[:2] / name[2:]

    def get(self, index: int, file: Path) -> Tensor | None:
        """See :meth:`ImageCache.get`."""
        try:
            content = np.fromfile(self._file(index, file), dtype=np.uint8)
        except OSError:
            return None
        if len(content) < _PREFIX:
            return None
        height, width, checksum, zero = content[:_PREFIX].view("<u4").tolist()
        pixels = content[_PREFIX:]
        if zero or pixels.size != 3 * height * width or checksum != zlib.crc32(pixels.data):
            return None
        return torch.from_numpy(pixels.reshape(height, width, 3)).permute(2, 0, 1)

    def put(self, index: int, file: Path, image: Tensor) -> None:
        """See :meth:`ImageCache.put`; after the first failure and when there is no more room, it does nothing."""
        if self._room == 0:
            return
        pixels = _pixels_of(image)
        prefix = np.array([*pixels.shape[:2], zlib.crc32(pixels.data), 0], dtype="<u4")
        try:
            target = self._file(index, file)
            target.parent.mkdir(parents=True, exist_ok=True)
            if self._room is None:
                self._room = MOST_DISK - sum(f.stat().st_size for f in self.folder.glob("*/*"))
            if pixels.size > min(self._room, disk_usage(self.folder).free - _LEFT_FREE):
                self._room = 0
                return
            self._room -= pixels.size
            beside = target.with_name(f"{target.name}.{os.getpid()}.part")
            try:
                with beside.open("wb") as out:
                    out.write(prefix.tobytes())
                    out.write(pixels.data)
                os.replace(beside, target)
            finally:
                beside.unlink(missing_ok=True)
        except OSError:
            self._room = 0


def cache_folder() -> Path:
    """Where the disk cache is: in the user's cache folder, or in the one for temporary files if there is no home."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        home = Path(gettempdir())
    return home / "drloss" / "images"
