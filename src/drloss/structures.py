"""What the data and the detector both speak of: the objects of an image, its sizes, and what is found in it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Detection = dict[str, Tensor]
"""Detections in one image: ``boxes`` (D, 4) float32 xyxy in pixels of the original image, ``scores`` (D,) float32 in
descending order, ``labels`` (D,) int64 in 1..K."""


@dataclass(frozen=True)
class Objects:
    """Annotated objects of one image.

    Attributes:
        boxes: (G, 4) float32 xyxy, pixels of the image as the model sees it.
        labels: (G,) int64, 1..K.
        ignore: (G,) bool, crowd regions and difficult objects: neither target nor background.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor


@dataclass(frozen=True)
class PaddedObjects:
    """Annotated objects of N images in three tensors, which go to a device without waiting for it.

    Attributes:
        boxes: (N, M, 4) float32 xyxy of the objects to learn, M the most of an image; 0 in the padding.
        labels: (N, M) int64, 1..K; 0 in the padding.
        regions: (N, R, 4) float32 xyxy of the ignored ones; 0 in the padding.
        counts: number of objects to learn in each image.
    """

    boxes: Tensor
    labels: Tensor
    regions: Tensor
    counts: tuple[int, ...]

    @classmethod
    def of(cls, images: Sequence[Objects]) -> "PaddedObjects":
        """The objects of these images, in their order."""
        boxes = [objects.boxes[~objects.ignore] for objects in images]
        labels = [objects.labels[~objects.ignore] for objects in images]
        regions = [objects.boxes[objects.ignore] for objects in images]
        return cls(_padded(boxes), _padded(labels), _padded(regions), tuple(map(len, boxes)))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.counts)

    def __getitem__(self, images: slice) -> "PaddedObjects":
        """The objects of some of the images."""
        return PaddedObjects(self.boxes[images], self.labels[images], self.regions[images], self.counts[images])

    def to(self, device: torch.device) -> "PaddedObjects":
        """The same objects on another device; pinned ones are copied while the host goes on."""
        later = device.type != "cpu"  # what comes to the host must be there
        boxes, labels, regions = (t.to(device, non_blocking=later) for t in (self.boxes, self.labels, self.regions))
        return replace(self, boxes=boxes, labels=labels, regions=regions)

    def pin_memory(self) -> "PaddedObjects":
        """The same objects in page-locked memory."""
        boxes, labels, regions = (t.pin_memory() for t in (self.boxes, self.labels, self.regions))
        return replace(self, boxes=boxes, labels=labels, regions=regions)


def _padded(parts: list[Tensor]) -> Tensor:
    """Tensors (G_i, ...) as one (N, max G_i, ...), with 0 behind the shorter ones; at least one image."""
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)


@dataclass(frozen=True)
class Frame:
    """Sizes of one image, (height, width) each.

    Attributes:
        original: size of the file; detections are given in its pixels.
        resized: size inside the padded batch.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
