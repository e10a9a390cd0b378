"""From images on disk to batches: read, resized, flipped, padded and stacked.

The augmentation of a training image depends on (seed, epoch, index) only, not on the process that reads it.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from drloss.data.annotations import Annotations
from drloss.data.order import Key
from drloss.data.transforms import Augmentation, pad, padded_size, resize, resized_size, transform_boxes
from drloss.errors import UserError
from drloss.structures import Frame, Objects

Sample = tuple[Tensor, Objects, Frame, int]
"""Padded image uint8 (3, H, W), its objects, its sizes and its position in the annotations."""


@dataclass(frozen=True)
class Batch:
    """The images of one step on one device.

    Attributes:
        images: (N, 3, H, W) uint8, each with its own padding, then padded to the largest of them.
        objects: objects of the N images, in pixels of the padded images.
        frames: sizes of the N images before and after resizing.
        indices: positions of the N images in the annotations.
    """

    images: Tensor
    objects: list[Objects]
    frames: list[Frame]
    indices: list[int]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of the N images with their own padding."""
        return [padded_size(frame.resized) for frame in self.frames]

    def pin_memory(self) -> "Batch":
        """The batch with its images in page-locked memory; called by the DataLoader."""
        return replace(self, images=self.images.pin_memory())


class TrainingImages(Dataset[Sample | UserError]):
    """Images by :class:`Key`, resized and flipped as the augmentation draws for the key's epoch and index."""

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
    """Images by :class:`Key`, resized to the test size, not flipped."""

    def __init__(self, annotations: Annotations, short_side: int, max_side: int) -> None:
        self.annotations = annotations
        self.short_side = short_side
        self.max_side = max_side

    def batches(self, batch_size: int) -> list[list[Key]]:
        """All images once, in batches of one padded size each, full batches first."""
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
    """An image with its objects, resized and padded; or the error, if the image cannot be read."""
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
    """The batch of these images, padded to the largest of them; or the first error among them."""
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        good.append(sample)
    images, objects, frames, indices = zip(*good, strict=True)
    size = (max(image.shape[1] for image in images), max(image.shape[2] for image in images))
    return Batch(torch.stack([pad(image, size) for image in images]), list(objects), list(frames), list(indices))
