"""Decoded images kept for the next epoch: in memory that all loading processes share, or on the disk for later runs.

A cache gives the very pixels that were put into it or nothing: every entry has a checksum, so that an entry that is
half-written, damaged or of another image is read anew from its file. A cache that cannot be written is left alone.
"""

import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from mmap import mmap
from pathlib import Path
from shutil import disk_usage
from tempfile import gettempdir
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import PIL
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
_CGROUP = Path("/sys/fs/cgroup")
_RECOUNTED = 256
"""Number of images after which a process counts anew what the folder holds."""
_PREFIX = 16
"""Bytes before the pixels of a file: height, width and checksum, 4 each, and 4 that are 0."""


class ImageCache(Protocol):
    """Keeps decoded images, uint8 (3, H, W) with the three values of a pixel as neighbours."""

    def get(self, index: int, file: Path) -> Tensor | None:
        """The image of this file if it is there."""
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
    """Images in memory.

    Processes that are forked share it. Those that are started anew get an empty one of the same size each.

    Args:
        sizes: height and width of every image as it is decoded; each has its place, as far as ``most`` goes.
        most: largest number of bytes; by default a quarter of the free memory, shared by the ranks of this machine.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], most: int | None = None) -> None:
        self.sizes = sizes
        room = int(_SHARE * free_memory()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if most is None else most
        ends = np.cumsum([3 * height * width for height, width in sizes], dtype=np.int64)
        self.kept = int(np.searchsorted(ends, room, side="right"))
        self.starts = np.concatenate([[0], ends])[: self.kept + 1]
        # Pages of such a map take memory only once they are written.
        self._pixels = mmap(-1, max(1, self.size))
        self._sums = np.frombuffer(mmap(-1, 8 * max(1, self.kept)), dtype=np.uint64)

    def __reduce__(self) -> tuple[Any, ...]:
        return MemoryCache, (self.sizes, self.size)

    @property
    def size(self) -> int:
        """Bytes of all images that have a place."""
        return int(self.starts[-1])

    def _place(self, index: int) -> npt.NDArray[np.uint8]:
        height, width = self.sizes[index]
        whole = np.frombuffer(self._pixels, dtype=np.uint8)
        return whole[self.starts[index] : self.starts[index + 1]].reshape(height, width, 3)

    def get(self, index: int, file: Path) -> Tensor | None:
        """See :meth:`ImageCache.get`; a file that changes during the run is not looked at again."""
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
    """Bytes of memory that are free, or could be, within this container; 4 GB where that is not known."""
    free = 4 << 30
    with suppress(OSError, ValueError, IndexError, StopIteration), open("/proc/meminfo", encoding="ascii") as file:
        free = int(next(line for line in file if line.startswith("MemAvailable:")).split()[1]) * 1024
    with suppress(OSError, ValueError):  # "max" where there is no limit
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, max(0, limit - used))
    return free


class DiskCache:
    """Images in the files of a folder, which later runs and runs at the same time use too.

    The name of a file says which image is in it: the path of the image's file, its size in bytes, its time of change,
    its size in pixels as the data set lists it, the size that was needed, and the version of the decoder. A changed
    image has another name. When :data:`MOST_DISK` is reached, nothing more is added: the folder may be removed.

    Args:
        folder: the folder, made if it is not there.
        sizes: height and width of each image as the data set lists them.
        needed: the height and width that are needed of each image.
    """

    def __init__(self, folder: Path, sizes: Sequence[tuple[int, int]], needed: Sequence[tuple[int, int]]) -> None:
        self.folder = folder
        self.sizes = sizes
        self.needed = needed
        self._room: int | None = None
        self._added = 0

    def _file(self, index: int, file: Path) -> Path:
        stat = file.stat()
        image = (str(file.resolve()), stat.st_size, stat.st_mtime_ns, self.sizes[index], self.needed[index])
        text = f"{FORMAT} {PIL.__version__} {image}"
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
        if zero or not pixels.size or pixels.size != 3 * height * width or checksum != zlib.crc32(pixels.data):
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
            if self._room is None or self._added % _RECOUNTED == 0:  # other processes add images, too
                self._room = max(0, MOST_DISK - _size_of(self.folder))
            if pixels.size > min(self._room, disk_usage(self.folder).free - _LEFT_FREE):
                self._room = 0
                return
            self._room -= pixels.size
            self._added += 1
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


def _size_of(folder: Path) -> int:
    """Bytes of the files in the folder's folders."""
    total = 0
    for file in folder.glob("*/*"):
        with suppress(FileNotFoundError):  # another process has just renamed it
            total += file.stat().st_size
    return total


def cache_folder() -> Path:
    """Where the disk cache is: in the user's cache folder, or in the one for temporary files if there is no home."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        home = Path(gettempdir())
    return home / "drloss" / "images"
