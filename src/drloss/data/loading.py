"""The order of training images, and how an image becomes a model's input.

Both are pure functions: the order of (seed, epoch), an image's augmentation of (seed, epoch, index). The batch of an
iteration is therefore the same on any number of workers and devices, and after any interruption.
"""

import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import RawArray, active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from drloss.data.annotations import Annotations
from drloss.data.transforms import Augmentation, pad, padded_size, resize, resized_size, transform_boxes
from drloss.errors import DataError, UserError
from drloss.structures import Frame, Objects

Sample = tuple[Tensor, Objects, Frame, int]
"""Padded image uint8 (3, H, W), its objects, its sizes and its position in the annotations."""
WORKER_TIMEOUT = 25
"""Seconds without a batch after which data-loading processes are waited for once more, and then given up."""
_TIMED_OUT = "DataLoader timed out"
_NOTHING = -1
_LOST: list[Any] = []
"""Loaders that lost a worker, kept from torch's own clearing up, which waits for ever for a lock the worker had."""


@dataclass(frozen=True)
class Key:
    """One image of one batch: which, in which epoch, and the size (height, width) that it is padded to by itself."""

    epoch: int
    index: int
    padded: tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Images of one step on one device.

    Attributes:
        images: (N, 3, H, W) uint8, each padded as it would be by itself, and then to the largest of them.
        objects: N, in pixels of the padded images; empty for evaluation.
        frames: N, the images' sizes before and after resizing.
        indices: N positions in the annotations.
    """

    images: Tensor
    objects: list[Objects]
    frames: list[Frame]
    indices: list[int]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """N, each image's height and width with its own padding."""
        return [padded_size(frame.resized) for frame in self.frames]

    def pin_memory(self) -> "Batch":
        """The batch with its images in page-locked memory; a DataLoader calls this."""
        return replace(self, images=self.images.pin_memory())


class TrainingOrder:
    """The endless sequence of training batches.

    Each epoch is one permutation of all images. Images wider than high and the others fill batches of their own
    (aspect-ratio grouping, as in the paper's codebase); a batch is complete when its group has enough images, so that
    every image comes once an epoch and none is dropped or repeated.

    Args:
        annotations: the images.
        augmentation: decides the sizes.
        batch_size: images of a batch over all devices and micro-batches.
        seed: of the order and the augmentation.
        keep_empty: also train on images without any object to learn.
    """

    def __init__(
        self,
        annotations: Annotations,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        keep_empty: bool = True,
    ) -> None:
        self.annotations = annotations
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.seed = seed
        self.candidates = np.arange(len(annotations))
        if not keep_empty:
            learnable = np.add.reduceat(np.append(~annotations.ignore, False), annotations.first_box[:-1])
            learnable = np.where(np.diff(annotations.first_box) > 0, learnable, 0)
            self.candidates = np.flatnonzero(learnable)
        if not len(self.candidates):
            raise UserError(
                f"{annotations.name}: there is no image {'' if keep_empty else 'with an object '}to train on"
            )

    def batches(self, start: int = 0) -> Iterator[list[Key]]:
        """Batches of iterations ``start``, ``start`` + 1, ... without end."""
        for samples in islice(self._groups(), start, None):
            yield [Key(epoch, index, padded_size(self._size(epoch, index))) for epoch, index in samples]

    def _groups(self) -> Iterator[list[tuple[int, int]]]:
        wide = self.annotations.sizes[:, 1] > self.annotations.sizes[:, 0]
        waiting: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        epoch = 0
        while True:
            for index in np.random.default_rng((self.seed, epoch)).permutation(self.candidates).tolist():
                group = waiting[bool(wide[index])]
                group.append((epoch, index))
                if len(group) == self.batch_size:
                    yield group.copy()
                    group.clear()
            epoch += 1

    def _size(self, epoch: int, index: int) -> tuple[int, int]:
        short, _ = self.augmentation.draw(self.seed, epoch, index)
        height, width = (int(s) for s in self.annotations.sizes[index])
        return resized_size(height, width, short, self.augmentation.max_side)


class TrainingImages(Dataset[Sample | UserError]):
    """Images by :class:`Key`: read, resized, flipped and padded as (seed, epoch, index) say."""

    def __init__(self, annotations: Annotations, augmentation: Augmentation, seed: int) -> None:
        self.annotations = annotations
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, key: Key) -> Sample | UserError:
        short, flip = self.augmentation.draw(self.seed, key.epoch, key.index)
        height, width = (int(v) for v in self.annotations.sizes[key.index])
        size = resized_size(height, width, short, self.augmentation.max_side)
        return _sample(self.annotations, key, size, flip)


class EvaluationImages(Dataset[Sample | UserError]):
    """Images by position: read, resized to the test size and padded."""

    def __init__(self, annotations: Annotations, short_side: int, max_side: int) -> None:
        self.annotations = annotations
        self.short_side = short_side
        self.max_side = max_side

    def batches(self, batch_size: int) -> list[list[Key]]:
        """All images once, in batches of one padded size, the fullest first; the same on any number of devices."""
        groups: dict[tuple[int, int], list[Key]] = {}
        for index in range(len(self.annotations)):
            padded = padded_size(self._size(index))
            groups.setdefault(padded, []).append(Key(0, index, padded))
        batches = [g[i : i + batch_size] for g in groups.values() for i in range(0, len(g), batch_size)]
        return sorted(batches, key=len, reverse=True)

    def _size(self, index: int) -> tuple[int, int]:
        height, width = (int(s) for s in self.annotations.sizes[index])
        return resized_size(height, width, self.short_side, self.max_side)

    def __getitem__(self, key: Key) -> Sample | UserError:
        return _sample(self.annotations, key, self._size(key.index), flip=False)


def _sample(annotations: Annotations, key: Key, size: tuple[int, int], flip: bool) -> Sample | UserError:
    """Read an image, with its objects, and pad it; one that cannot be read comes back as its error."""
    try:
        image = annotations.load_image(key.index)
    except UserError as error:
        return error
    frame = Frame((image.shape[1], image.shape[2]), size)
    image = resize(image, size)
    if flip:
        image = image.flip(2)
    own = annotations.boxes_of(key.index)
    boxes = transform_boxes(annotations.boxes[own], frame.original, size, flip)
    objects = Objects(
        boxes=torch.from_numpy(boxes).float(),
        labels=torch.from_numpy(annotations.labels[own]),
        ignore=torch.from_numpy(annotations.ignore[own]),
    )
    return pad(image, key.padded), objects, frame, key.index


def collate(samples: list[Sample | UserError]) -> Batch | UserError:
    """Stack images, padded to the largest of them; the first error among them wins."""
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        good.append(sample)
    images, objects, frames, indices = zip(*good, strict=True)
    size = (max(image.shape[1] for image in images), max(image.shape[2] for image in images))
    return Batch(torch.stack([pad(image, size) for image in images]), list(objects), list(frames), list(indices))


@contextmanager
def load_batches(
    images: TrainingImages | EvaluationImages, batches: Iterable[list[Key]], workers: int, device: torch.device
) -> Iterator[Iterator[Batch]]:
    """Batches of images, read by ``workers`` processes, which end with the context.

    Raises:
        DataError: in this process and without a worker's traceback, if an image cannot be read; or if a worker was
            killed or brought nothing for twice ``WORKER_TIMEOUT`` seconds, with the images that were being read.
        RuntimeError: with the worker's traceback and the image, if reading it showed a fault of ours.
    """
    reading = RawArray("q", [_NOTHING] * workers)
    others = active_children()
    loader: DataLoader[Batch | UserError] = DataLoader(
        _Noted(images, reading),  # type: ignore[arg-type]
        batch_sampler=_Batches(batches),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        timeout=WORKER_TIMEOUT if workers else 0,
        worker_init_fn=_ignore_signals,
    )
    with _signals_held():
        loaded = iter(loader)
    good = _good(loaded)
    own = [child for child in active_children() if child not in others]
    try:
        yield good
    except (RuntimeError, OSError, EOFError) as error:  # what a lost worker may bring about in the middle of anything
        if (words := _what_was_lost(own, error)) is None:
            raise
        _LOST.append(loaded)
        names = [images.annotations.image_path(i) for i in reading if i != _NOTHING]
        where = f"while reading {', '.join(names)}" if names else "between two images"
        raise DataError(f"{words} {where}; --workers 0 reads images without processes of their own") from None
    finally:
        good.close()
        _kill(own)


class _Noted(Dataset[Sample | UserError]):
    """Images by :class:`Key`, each worker keeping in ``reading`` which one it is at."""

    def __init__(self, images: TrainingImages | EvaluationImages, reading: Any) -> None:
        self.images = images
        self.reading = reading

    def __getitem__(self, key: Key) -> Sample | UserError:
        worker = get_worker_info()
        if worker is not None:
            self.reading[worker.id] = key.index
        try:
            sample = self.images[key]
        except Exception as error:
            raise RuntimeError(f"{self.images.annotations.image_path(key.index)}: reading it failed") from error
        if worker is not None:
            self.reading[worker.id] = _NOTHING
        return sample


def _good(loaded: Iterator[Batch | UserError]) -> Generator[Batch]:
    while True:
        try:
            batch = next(loaded, None)
        except RuntimeError as error:
            if _TIMED_OUT not in str(error):
                raise
            batch = next(loaded, None)  # once more: this process may have been stopped, and not the others
        if isinstance(batch, UserError):
            raise batch
        if batch is None:
            return
        yield batch


_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP wait meanwhile, also in the processes that are started, until those ignore them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_signals(worker: int) -> None:
    """A worker leaves it to the trainer to act on these signals, which a terminal sends to all processes."""
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


def _what_was_lost(workers: list[BaseProcess], error: Exception) -> str | None:
    """In words, if ``error`` means that a worker was killed or hangs."""
    if not isinstance(error, RuntimeError):  # a connection breaks a moment before its process has ended
        with suppress(RuntimeError):  # of torch, at the signal of that end
            ending = wait([worker.sentinel for worker in workers], timeout=1)
            for worker in workers:
                if worker.sentinel in ending:
                    worker.join()
    for worker in workers:
        if worker.exitcode:
            how = f"signal {-worker.exitcode}" if worker.exitcode < 0 else f"exit code {worker.exitcode}"
            memory = ", perhaps for want of memory," if worker.exitcode == -signal.SIGKILL else ""
            return f"a data-loading process was killed ({how}){memory}"
    if workers and _TIMED_OUT in str(error):
        return f"no data-loading process brought a batch for {2 * WORKER_TIMEOUT} s"
    return None


def _kill(workers: list[BaseProcess]) -> None:
    """End workers that are still there: one that hangs would not end otherwise, and none has anything to lose."""
    left = [worker for worker in workers if worker.is_alive()]
    if not left:
        return
    # torch's handler would take a worker that is killed here for one that was lost.
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if main else None
    for worker in left:
        worker.kill()
    for worker in left:
        worker.join()
    if main:
        signal.signal(signal.SIGCHLD, handler)


class _Batches:
    """Any iterable as a DataLoader's batch sampler."""

    def __init__(self, batches: Iterable[list[Key]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)
