"""Resizing, flipping and padding. Random numbers depend on (seed, epoch, index) only."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

PAD_MULTIPLE = 32
"""Images are padded to a multiple of the coarsest backbone stride."""
PAD_VALUES = (124, 116, 104)
"""ImageNet's mean colour, which the model's normalisation maps to 0 within half a grey level."""


@dataclass(frozen=True)
class Augmentation:
    """What training may do to an image; the defaults are the paper's for its ablations (§4.3).

    Attributes:
        short_sides: range in pixels, both ends included, from which an image's short side is drawn.
        max_side: largest long side in pixels.
        flip: probability of a horizontal flip.
    """

    short_sides: tuple[int, int] = (800, 800)
    max_side: int = 1333
    flip: float = 0.5

    def draw(self, seed: int, epoch: int, index: int) -> tuple[int, bool]:
        """Short side and flip of image ``index`` in ``epoch``; no process or global random state changes them."""
        rng = np.random.default_rng((seed, epoch, index))
        short = int(rng.integers(self.short_sides[0], self.short_sides[1] + 1))
        return short, bool(rng.random() < self.flip)


def resized_size(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """Height and width after resizing the short side to ``short_side``, or less if the long side would exceed
    ``max_side``. The ratio stays the same, and no side gets shorter than 1 pixel.

    >>> resized_size(480, 640, 800, 1333)
    (800, 1067)
    >>> resized_size(500, 2000, 800, 1333)
    (333, 1333)
    """
    scale = min(short_side / min(height, width), max_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def padded_size(size: tuple[int, int]) -> tuple[int, int]:
    """The smallest multiples of 32 that are at least (height, width).

    >>> padded_size((333, 1333))
    (352, 1344)
    """
    height, width = (-(-side // PAD_MULTIPLE) * PAD_MULTIPLE for side in size)
    return height, width


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W) to (3, *size), bilinear and antialiased."""
    return image if tuple(image.shape[1:]) == size else F.resize(image, list(size), antialias=True)


def pad(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W) to (3, *size): the image in the top left corner, the mean colour elsewhere."""
    if tuple(image.shape[1:]) == size:
        return image
    canvas = torch.tensor(PAD_VALUES, dtype=torch.uint8).reshape(3, 1, 1).repeat(1, *size)
    canvas[:, : image.shape[1], : image.shape[2]] = image
    return canvas


def transform_boxes(
    boxes: npt.NDArray[np.float64], old: tuple[int, int], new: tuple[int, int], flip: bool
) -> npt.NDArray[np.float64]:
    """Boxes (G, 4) xyxy of an image of size ``old`` (height, width) after resizing to ``new`` and flipping."""
    scaled: npt.NDArray[np.float64] = boxes * (np.array([new[1], new[0]] * 2) / np.array([old[1], old[0]] * 2))
    if flip:
        scaled[:, [0, 2]] = new[1] - scaled[:, [2, 0]]
    return scaled
