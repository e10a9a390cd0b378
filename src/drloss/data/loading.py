"""The order of training images, and how an image becomes a model's input.

Both are pure functions: the order of (seed, epoch), an image's augmentation of (seed, epoch, index). The batch of an
iteration is therefore the same on any number of workers and devices, and after any interruption.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from drloss.data.annotations import Annotations
from drloss.data.transforms import Augmentation, pad, padded_size, resize, resized_size, transform_boxes
from drloss.detector.detections import Frame
from drloss.detector.targets import Objects


@dataclass(frozen=True)
class Key:
    """One image of one batch: which, in which epoch, and the size (height, width) its batch is padded to."""

    epoch: int
    index: int
    padded: tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Images of one step on one device.

    Attributes:
        images: (N, 3, H, W) uint8, padded.
        objects: N, in pixels of the padded images; empty for evaluation.
        frames: N, the images' sizes before and after resizing.
        indices: N positions in the annotations.
    """

    images: Tensor
    objects: list[Objects]
    frames: list[Frame]
    indices: list[int]


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

    def batches(self, start: int = 0) -> Iterator[list[Key]]:
        """Batches of iterations ``start``, ``start`` + 1, ... without end."""
        for samples in islice(self._groups(), start, None):
            sizes = [self._size(epoch, index) for epoch, index in samples]
            padded = padded_size(sizes)
            yield [Key(epoch, index, padded) for epoch, index in samples]

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


class TrainingImages(Dataset[tuple[Tensor, Objects, Frame, int]]):
    """Images by :class:`Key`: read, resized, flipped and padded as (seed, epoch, index) say."""

    def __init__(self, annotations: Annotations, augmentation: Augmentation, seed: int) -> None:
        self.annotations = annotations
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, key: Key) -> tuple[Tensor, Objects, Frame, int]:
        data = self.annotations
        short, flip = self.augmentation.draw(self.seed, key.epoch, key.index)
        image = data.load_image(key.index)
        old = (image.shape[1], image.shape[2])
        new = resized_size(*old, short, self.augmentation.max_side)
        image = resize(image, new)
        if flip:
            image = image.flip(2)
        own = data.boxes_of(key.index)
        boxes = transform_boxes(data.boxes[own], old, new, flip)
        objects = Objects(
            boxes=torch.from_numpy(boxes).float(),
            labels=torch.from_numpy(data.labels[own]),
            ignore=torch.from_numpy(data.ignore[own]),
        )
        return pad(image, key.padded), objects, Frame(old, new), key.index


class EvaluationImages(Dataset[tuple[Tensor, Objects, Frame, int]]):
    """Images by position: read, resized to the test size and padded as their batch needs."""

    def __init__(self, annotations: Annotations, short_side: int, max_side: int) -> None:
        self.annotations = annotations
        self.short_side = short_side
        self.max_side = max_side

    def batches(self, batch_size: int) -> list[list[Key]]:
        """All images once, in batches of similar shape; the same batches on any number of devices."""
        sizes = self.annotations.sizes
        order = np.argsort(sizes[:, 1] / np.maximum(sizes[:, 0], 1), kind="stable").tolist()
        chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        return [[Key(0, i, padded_size([self._size(j) for j in chunk])) for i in chunk] for chunk in chunks]

    def _size(self, index: int) -> tuple[int, int]:
        height, width = (int(s) for s in self.annotations.sizes[index])
        return resized_size(height, width, self.short_side, self.max_side)

    def __getitem__(self, key: Key) -> tuple[Tensor, Objects, Frame, int]:
        image = self.annotations.load_image(key.index)
        new = self._size(key.index)
        frame = Frame((image.shape[1], image.shape[2]), new)
        own = self.annotations.boxes_of(key.index)
        boxes = transform_boxes(self.annotations.boxes[own], frame.original, new, flip=False)
        objects = Objects(
            boxes=torch.from_numpy(boxes).float(),
            labels=torch.from_numpy(self.annotations.labels[own]),
            ignore=torch.from_numpy(self.annotations.ignore[own]),
        )
        return pad(resize(image, new), key.padded), objects, frame, key.index


def collate(samples: list[tuple[Tensor, Objects, Frame, int]]) -> Batch:
    """Stack images of one padded size."""
    images, objects, frames, indices = zip(*samples, strict=True)
    return Batch(torch.stack(images), list(objects), list(frames), list(indices))
