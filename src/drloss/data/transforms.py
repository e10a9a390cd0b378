"""Resizing, flipping, zooming and padding. Random numbers depend on (seed, epoch, index) only."""

from dataclasses import dataclass
from math import ceil

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
        zoom: range of a random zoom. Above 1, a random part of the image is enlarged to the whole image's size;
            below 1, the image is shrunk and placed at random on the padding's colour.
    """

    short_sides: tuple[int, int] = (800, 800)
    max_side: int = 1333
    flip: float = 0.5
    zoom: tuple[float, float] = (1.0, 1.0)

    def draw(self, seed: int, epoch: int, index: int) -> tuple[int, bool]:
        """Short side and flip of image ``index`` in ``epoch``; no process or global random state changes them."""
        rng = np.random.default_rng((seed, epoch, index))
        short = int(rng.integers(self.short_sides[0], self.short_sides[1] + 1))
        return short, bool(rng.random() < self.flip)

    def needed_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The height and width that are needed of an image of ``size`` so that it is never enlarged for its zoom."""
        height, width = resized_size(*size, self.short_sides[1], self.max_side)
        zoom = max(1.0, self.zoom[1])
        return ceil(height * zoom), ceil(width * zoom)

    def draw_window(self, seed: int, epoch: int, index: int, size: tuple[int, int]) -> "Rectangle":
        """The part of image ``index``, of ``size`` (height, width), that the zoom shows; it may reach outside."""
        height, width = size
        low, high = self.zoom
        if low == high == 1:
            return Rectangle(0, 0, height, width)
        rng = np.random.default_rng((seed, epoch, index, 1))
        zoom = np.exp(rng.uniform(np.log(low), np.log(high)))
        part = max(1, round(height / zoom)), max(1, round(width / zoom))
        top, left = (int(rng.integers(min(0, s - p), max(0, s - p) + 1)) for s, p in zip(size, part, strict=True))
        return Rectangle(top, left, *part)


@dataclass(frozen=True)
class Rectangle:
    """A rectangle of whole pixels; its top left corner may have negative coordinates."""

    top: int
    left: int
    height: int
    width: int

    @property
    def origin(self) -> npt.NDArray[np.float64]:
        """The top left corner as (x, y, x, y)."""
        return np.array([self.left, self.top] * 2, dtype=np.float64)


@dataclass(frozen=True)
class Placement:
    """Where an image goes when it is resized.

    Attributes:
        source: part of the image that is seen.
        target: where that part is put in the result.
        size: height and width of the result.
    """

    source: Rectangle
    target: Rectangle
    size: tuple[int, int]


def place(window: Rectangle, original: tuple[int, int], size: tuple[int, int]) -> Placement:
    """Placement of the part ``window`` of an image of size ``original`` in a result of size ``size``."""
    seen, put = [], []
    for start, length, whole, new in (
        (window.top, window.height, original[0], size[0]),
        (window.left, window.width, original[1], size[1]),
    ):
        first, end = max(0, start), min(whole, start + length)
        scale = new / length
        at = min(round((first - start) * scale), new - 1)
        seen.append((first, end - first))
        put.append((at, max(1, min(round((end - start) * scale), new) - at)))
    source, target = (Rectangle(y[0], x[0], y[1], x[1]) for y, x in (seen, put))
    return Placement(source, target, size)


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


def fitted_size(height: int, width: int, into: tuple[int, int]) -> tuple[int, int]:
    """The largest height and width of the same ratio that fit in a height and width; no side is shorter than 1 pixel.

    >>> fitted_size(480, 640, (256, 256))
    (192, 256)
    """
    scale = min(into[0] / height, into[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def input_sizes(
    original: tuple[int, int], short_side: int, max_side: int, fixed: tuple[int, int] | None = None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of an image for the detector after resizing, and after padding.

    Args:
        original: height and width of the image.
        short_side, max_side: as for :func:`resized_size`.
        fixed: the padded size of every image, in which each is fitted; None for one that suits the image.
    """
    if fixed is not None:
        return fitted_size(*original, fixed), fixed
    size = resized_size(*original, short_side, max_side)
    return size, padded_size(size)


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


def resize_placed(image: Tensor, placement: Placement) -> Tensor:
    """uint8 (3, H, W) to (3, *size): the seen part at its place, the padding's colour elsewhere."""
    source, target = placement.source, placement.target
    part = image[:, source.top : source.top + source.height, source.left : source.left + source.width]
    part = resize(part, (target.height, target.width))
    if (target.height, target.width) == placement.size:
        return part
    canvas = _canvas(placement.size)
    canvas[:, target.top : target.top + target.height, target.left : target.left + target.width] = part
    return canvas


def _canvas(size: tuple[int, int]) -> Tensor:
    return torch.tensor(PAD_VALUES, dtype=torch.uint8).reshape(3, 1, 1).repeat(1, *size)


def pad(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W) to (3, *size): the image in the top left corner, the mean colour elsewhere."""
    if tuple(image.shape[1:]) == size:
        return image
    canvas = _canvas(size)
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


def place_boxes(
    boxes: npt.NDArray[np.float64], placement: Placement
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Boxes (G, 4) xyxy of an image in pixels of the result, cut at its border; which of them lost their centre; and
    of which something is still seen.
    """
    source, target, (height, width) = placement.source, placement.target, placement.size
    sizes = (source.height, source.width), (target.height, target.width)
    moved = transform_boxes(boxes - source.origin, *sizes, flip=False) + target.origin
    limits = np.array([width, height] * 2)
    centres = (moved[:, :2] + moved[:, 2:]) / 2
    lost: npt.NDArray[np.bool_] = np.any((centres < 0) | (centres > limits[:2]), axis=1)
    moved = moved.clip(0, limits)
    seen: npt.NDArray[np.bool_] = np.all(moved[:, 2:] > moved[:, :2], axis=1)
    return moved, lost, seen
