"""What the data and the detector both speak of: the objects of an image, its sizes, and what is found in it."""

from dataclasses import dataclass

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

    def to(self, device: torch.device) -> "Objects":
        """The same objects on another device."""
        return Objects(self.boxes.to(device), self.labels.to(device), self.ignore.to(device))


@dataclass(frozen=True)
class Frame:
    """Sizes of one image, (height, width) each.

    Attributes:
        original: size of the file; detections are given in its pixels.
        resized: size inside the padded batch.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
