"""From images on disk to batches: read, zoomed, resized, flipped, padded and stacked.

The augmentation of a training image depends on (seed, epoch, index) only, not on the process that reads it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from drloss.data.annotations import Annotations
from drloss.data.images.cache import DiskCache, ImageCache, MemoryCache
from drloss.data.images.decoding import jpeg_divisor
from drloss.data.order import Key
from drloss.data.transforms import (
    Augmentation,
    Rectangle,
    input_sizes,
    pad,
    padded_size,
    place,
    place_boxes,
    resize,
    resize_placed,
    resized_size,
    transform_boxes,
)
from drloss.errors import UserError
from drloss.structures import Frame, Objects, PaddedObjects

Sample = tuple[Tensor, Objects, Frame, int]
"""Padded image uint8 (3, H, W), its objects, its sizes and its position in the annotations."""


@dataclass(frozen=True)
class Batch:
    """The images of one step on one device.

    Attributes:
        images: (N, 3, H, W) uint8, each with its own padding, then padded to the largest of them.
        objects: objects of the N images, in pixels of the padded images; few tensors, because each that a worker
            sends takes a file descriptor.
        frames: sizes of the N images before and after resizing.
        indices: positions of the N images in the annotations.
    """

    images: Tensor
    objects: PaddedObjects
    frames: list[Frame]
    indices: list[int]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of the N images with their own padding."""
        return [padded_size(frame.resized) for frame in self.frames]

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; called by the DataLoader."""
        return replace(self, images=self.images.pin_memory(), objects=self.objects.pin_memory())


class TrainingImages(Dataset[Sample | UserError]):
    """Images by :class:`Key`, changed as the augmentation draws for the key's epoch and index.

    Args:
        annotations: the split to train on.
        augmentation: what is done to each image.
        seed: seed of the augmentation.
        cache: where decoded images are kept; made by :func:`image_cache`.
    """

    def __init__(
        self, annotations: Annotations, augmentation: Augmentation, seed: int, cache: ImageCache | None = None
    ) -> None:
        self.annotations = annotations
        self.augmentation = augmentation
        self.seed = seed
        self.cache = cache

    def __getitem__(self, key: Key) -> Sample | UserError:
        short, flip = self.augmentation.draw(self.seed, key.epoch, key.index)
        original = size_of(self.annotations, key.index)
        try:
            image = self.annotations.load_image(key.index, self.augmentation.needed_size(original), self.cache)
        except UserError as error:
            return error
        window = self.augmentation.draw_window(self.seed, key.epoch, key.index, (image.shape[1], image.shape[2]))
        size = resized_size(*original, short, self.augmentation.max_side)
        return _sample(self.annotations, key, image, size, flip, window)


def image_cache(
    kind: Literal["none", "ram", "disk"], annotations: Annotations, augmentation: Augmentation, folder: Path
) -> ImageCache | None:
    """A cache for the images of a split; None for ``"none"``, and for generated images on the disk.

    Args:
        kind: where decoded images are kept.
        annotations: the split.
        augmentation: decides how large the images are needed.
        folder: folder of the cache ``"disk"``.
    """
    drawn = annotations.draw is not None
    if kind == "none" or (drawn and kind == "disk"):
        return None
    originals = [size_of(annotations, index) for index in range(len(annotations))]
    needed = [augmentation.needed_size(size) for size in originals]
    if kind == "disk":
        return DiskCache(folder, originals, needed)
    return MemoryCache(
        [_decoded(*sizes, annotations.image_name(i)) for i, sizes in enumerate(zip(originals, needed, strict=True))]
    )


def _decoded(size: tuple[int, int], needed: tuple[int, int], name: str) -> tuple[int, int]:
    """The size of an image after decoding, as its file's suffix lets expect."""
    divisor = jpeg_divisor(size, needed) if name.lower().endswith((".jpg", ".jpeg", ".jpe", ".jfif")) else 1
    return -(-size[0] // divisor), -(-size[1] // divisor)


def size_of(annotations: Annotations, index: int) -> tuple[int, int]:
    """Height and width of an image's file in pixels."""
    return int(annotations.sizes[index, 0]), int(annotations.sizes[index, 1])


class EvaluationImages(Dataset[Sample | UserError]):
    """Images by :class:`Key`, resized to the test size, not flipped.

    Args:
        annotations: the split to test on.
        short_side, max_side, fixed: as for :func:`drloss.data.transforms.input_sizes`.
    """

    def __init__(
        self, annotations: Annotations, short_side: int, max_side: int, fixed: tuple[int, int] | None = None
    ) -> None:
        self.annotations = annotations
        self.short_side = short_side
        self.max_side = max_side
        self.fixed = fixed

    def batches(self, batch_size: int) -> list[list[Key]]:
        """All images once, in batches of one padded size each, full batches first."""
        groups: dict[tuple[int, int], list[Key]] = {}
        for index in range(len(self.annotations)):
            padded = self._sizes(index)[1]
            groups.setdefault(padded, []).append(Key(0, index, padded))
        batches = [g[i : i + batch_size] for g in groups.values() for i in range(0, len(g), batch_size)]
        return sorted(batches, key=len, reverse=True)

    def _sizes(self, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return input_sizes(size_of(self.annotations, index), self.short_side, self.max_side, self.fixed)

    def __getitem__(self, key: Key) -> Sample | UserError:
        size = self._sizes(key.index)[0]
        try:
            image = self.annotations.load_image(key.index, size)
        except UserError as error:
            return error
        return _sample(self.annotations, key, image, size)


def _sample(
    annotations: Annotations,
    key: Key,
    image: Tensor,
    size: tuple[int, int],
    flip: bool = False,
    window: Rectangle | None = None,
) -> Sample:
    """An image with its objects, zoomed, resized to ``size``, flipped and padded.

    An object whose centre is outside the window is not to be learnt, but what is seen of it is no background either.
    """
    frame = Frame(size_of(annotations, key.index), size)
    decoded = image.shape[1], image.shape[2]
    own = annotations.boxes_of(key.index)
    boxes, labels, ignore = annotations.boxes[own], annotations.labels[own], annotations.ignore[own]
    if window is None or window == Rectangle(0, 0, *decoded):
        image = resize(image, size)
        boxes = transform_boxes(boxes, frame.original, size, flip=False)
    else:
        placement = place(window, decoded, size)
        image = resize_placed(image, placement)
        boxes, lost, seen = place_boxes(transform_boxes(boxes, frame.original, decoded, flip=False), placement)
        boxes, labels, ignore = boxes[seen], labels[seen], (ignore | lost)[seen]
    if flip:
        image = image.flip(2)
        boxes = transform_boxes(boxes, size, size, flip=True)
    objects = Objects(
        boxes=torch.from_numpy(boxes).float(), labels=torch.from_numpy(labels), ignore=torch.from_numpy(ignore)
    )
    return pad(image, key.padded), objects, frame, key.index


def collate(samples: list[Sample | UserError]) -> Batch | UserError:
    """The batch of these images, padded to the largest of them; or the first error among them."""
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        good.append(sample)
    images, objects, frames, indices = zip(*good, strict=True)
    size = (max(image.shape[1] for image in images), max(image.shape[2] for image in images))
    padded = torch.stack([pad(image, size) for image in images])
    return Batch(padded, PaddedObjects.of(objects), list(frames), list(indices))
