"""Checks of single values of annotation files, and the columns that hold the boxes read so far.

``fit_box`` clips or refuses a box, ``is_normalised`` finds shares that should be pixels. ``integer_or_none``,
``number_or_none`` and ``number_in_text`` read numbers, ``flag_is_set`` reads flags such as ``iscrowd``.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

MIN_BOX_SIDE = 0.01
"""Pixels; a thinner box has no area to learn."""
ROUNDING = 1.0
"""Pixels that a box may reach beyond its image by rounding; such a box is clipped and noted."""
UNNOTED = 0.01
"""Pixels that a box may reach beyond its image without a note: files with six digits do."""
_LARGEST_SHARE = 1.001
"""Largest coordinate of a box in shares of its image's size, with rounding."""
_LEAST_SIDE = 8
"""Smallest image side in pixels at which a box of 1 px in the corner must be a mistake."""
_INT64 = 2**63
_NOT_SET = frozenset({"", "0", "no", "false", "none", "null", "unspecified"})

Floats = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]
"""xyxy in absolute pixels."""


@dataclass(frozen=True, slots=True)
class BoxProblem:
    """What is wrong with a box.

    Attributes:
        kind: what is wrong; empty if the box is over the border by a rounding error only, which is not reported.
        allowed: what would be right.
        refused: whether strict reading stops because of it.
        box: the clipped box to use instead; None if the box is left out.
    """

    kind: str
    allowed: str
    refused: bool
    box: Box | None


def fit_box(box: Box, height: int, width: int) -> BoxProblem | None:
    """What is wrong with a box in an image of this size, in pixels; None if nothing.

    >>> fit_box((0, 0, 8, 8), height=8, width=8)
    >>> fit_box((-0.5, 0, 8, 8), height=8, width=8).box
    (0.0, 0, 8, 8)
    """
    x1, y1, x2, y2 = box
    solid = x2 - x1 >= MIN_BOX_SIDE and y2 - y1 >= MIN_BOX_SIDE
    if solid and x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height:
        return None
    if not all(isfinite(v) for v in box):
        return BoxProblem("box with a coordinate that is not finite", "finite numbers", True, None)
    if not solid:
        allowed = f"x1 < x2 and y1 < y2, by {MIN_BOX_SIDE} px at least"
        return BoxProblem("box without width or height", allowed, True, None)
    allowed = f"a box within the image, {width} x {height} px, as x1, y1, x2, y2"
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height))
    if clipped[2] - clipped[0] < MIN_BOX_SIDE or clipped[3] - clipped[1] < MIN_BOX_SIDE:
        return BoxProblem("box outside its image", allowed, True, None)
    excess = max(abs(a - b) for a, b in zip(box, clipped, strict=True))
    if excess <= UNNOTED:
        return BoxProblem("", allowed, False, clipped)
    if excess <= ROUNDING:
        return BoxProblem("box over the image border by at most 1 px", allowed, False, clipped)
    return BoxProblem("box partly outside its image", allowed, True, clipped)


def is_normalised(box: Box, height: int, width: int) -> bool:
    """Whether the coordinates of a box look like shares of the image's size instead of pixels.

    >>> is_normalised((0.25, 0.5, 0.75, 1.0), height=480, width=640)
    True
    >>> is_normalised((0.25, 0.5, 8.75, 9.0), height=480, width=640)
    False
    """
    x1, y1, x2, y2 = box
    return min(height, width) >= _LEAST_SIDE and 0 <= x1 < x2 <= _LARGEST_SHARE and 0 <= y1 < y2 <= _LARGEST_SHARE


def fit_boxes(
    boxes: Floats, heights: npt.NDArray[np.int32], widths: npt.NDArray[np.int32]
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Boxes clipped to their images, and which of them :func:`fit_box` and :func:`is_normalised` say nothing of.

    Args:
        boxes: (M, 4) xyxy in absolute pixels; finite.
        heights, widths: (M,) of their images.
    """
    limits = np.stack([widths, heights, widths, heights], axis=1)
    clipped = np.clip(boxes, 0.0, limits)
    fine = (np.abs(clipped - boxes) <= UNNOTED).all(axis=1)
    for found in (boxes, clipped):
        fine &= (found[:, 2:] - found[:, :2] >= MIN_BOX_SIDE).all(axis=1)
    shares = (boxes[:, :2] >= 0).all(axis=1) & (boxes[:, 2:] <= _LARGEST_SHARE).all(axis=1)
    return clipped, fine & ~(shares & (np.minimum(heights, widths) >= _LEAST_SIDE))


@dataclass
class BoxColumns:
    """The boxes of a split while it is read, in any order of their images; columns of numbers, to save memory."""

    image: "array[int]" = field(default_factory=lambda: array("q"))
    xyxy: "array[float]" = field(default_factory=lambda: array("d"))
    label: "array[int]" = field(default_factory=lambda: array("q"))
    ignore: "array[int]" = field(default_factory=lambda: array("b"))
    area: "array[float]" = field(default_factory=lambda: array("d"))

    def append(self, image: int, box: Box, label: int, ignore: bool, area: float | None) -> None:
        """Add a box; if ``area`` is None, it is width times height."""
        self.image.append(image)
        self.xyxy.extend(box)
        self.label.append(label)
        self.ignore.append(ignore)
        self.area.append((box[2] - box[0]) * (box[3] - box[1]) if area is None else area)

    def extend(
        self,
        image: npt.NDArray[np.int64],
        boxes: Floats,
        label: npt.NDArray[np.int64],
        ignore: npt.NDArray[np.bool_],
        area: Floats | None,
    ) -> None:
        """Add boxes, as :meth:`append` does."""
        if area is None:
            area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        columns = (
            (self.image, image),
            (self.xyxy, boxes),
            (self.label, label),
            (self.ignore, ignore),
            (self.area, area),
        )
        for column, values in columns:
            column.frombytes(values.tobytes())

    def arrays(self, images: int, selected: Sequence[int]) -> tuple[npt.NDArray[Any], ...]:
        """The boxes of some of the images, sorted by image; within an image in the order they were added.

        Args:
            images: number of all images.
            selected: positions of the images wanted, ascending.

        Returns:
            ``first_box``, ``boxes``, ``labels``, ``ignore``, ``areas``, as :class:`.Annotations` has them.
        """
        place = np.full(images + 1, -1, dtype=np.int64)
        place[selected] = np.arange(len(selected))
        owner = place[np.array(self.image, dtype=np.int64)]
        order = np.argsort(owner, kind="stable")
        order = order[np.searchsorted(owner[order], 0) :]  # without those of other images, -1, which come first
        counts = np.bincount(owner[order], minlength=len(selected))
        return (
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.array(self.xyxy, dtype=np.float64).reshape(-1, 4)[order],
            np.array(self.label, dtype=np.int64)[order],
            np.array(self.ignore, dtype=np.bool_)[order],
            np.array(self.area, dtype=np.float64)[order],
        )


def integer_or_none(value: object) -> int | None:
    """``value`` if it is an int, or a float without fraction, that fits int64; else None."""
    if type(value) is int:  # nearly always
        return value if -_INT64 <= value < _INT64 else None
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and isfinite(value) and value == int(value):
        value = int(value)
    return value if isinstance(value, int) and -_INT64 <= value < _INT64 else None


def flag_is_set(value: object) -> tuple[bool, bool]:
    """Whether a flag such as ``iscrowd`` is set, and whether its value is 0, 1 or missing, as it should be.

    Any other value counts as set, unless it says "no", "false" or the like.

    >>> flag_is_set(1), flag_is_set("0"), flag_is_set("Unspecified"), flag_is_set("yes")
    ((True, True), (False, True), (False, False), (True, False))
    """
    if value in (0, 1, None, "", "0", "1"):
        return value in (1, "1"), True
    return not (isinstance(value, str) and value.strip().lower() in _NOT_SET), False


def number_or_none(value: object) -> float | None:
    """``value`` as float if it is a number (NaN and infinities too), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def number_in_text(text: str | None) -> float | None:
    """The number that a text stands for, or None; NaN and infinities are numbers.

    >>> number_in_text("1e3"), number_in_text("1_000"), number_in_text("one")
    (1000.0, None, None)
    """
    if text is None or not text.isascii() or "_" in text:
        return None
    try:
        return float(text)
    except ValueError:
        return None
