"""Areas of boxes, and the deltas of a box relative to an anchor, as RetinaNet learns them.

The deltas are those of torchvision's ``BoxCoder``, to the bit, which copies its numbers to the device in every call:
nothing here waits for the device.
"""

from math import log

import torch
from torch import Tensor

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Factors on the deltas of the centre (x, y) and of the logarithm of the size (width, height)."""
LARGEST = log(1000 / 16)
"""Largest logarithm of a decoded size over the anchor's."""


def area(boxes: Tensor) -> Tensor:
    """Areas (...) of boxes (..., 4) xyxy."""
    left, top, right, bottom = boxes.unbind(-1)
    return (right - left) * (bottom - top)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Deltas that lead from anchors to boxes; not finite where a box has no area.

    Args:
        boxes: (..., 4) xyxy.
        anchors: (A, 4) xyxy; the shapes broadcast.
    """
    x, y, width, height = _centred(boxes)
    anchor_x, anchor_y, anchor_width, anchor_height = _centred(anchors)
    parts = (
        WEIGHTS[0] * (x - anchor_x) / anchor_width,
        WEIGHTS[1] * (y - anchor_y) / anchor_height,
        WEIGHTS[2] * torch.log(width / anchor_width),
        WEIGHTS[3] * torch.log(height / anchor_height),
    )
    return torch.stack(parts, dim=-1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Boxes xyxy to which deltas lead from anchors, in the dtype of ``deltas``.

    Args:
        deltas: (..., 4).
        anchors: (A, 4) xyxy; the shapes broadcast.
    """
    dx, dy, dw, dh = (part / weight for part, weight in zip(deltas.unbind(-1), WEIGHTS, strict=True))
    x, y, width, height = _centred(anchors.to(deltas.dtype))
    x, y = dx * width + x, dy * height + y
    half_width = 0.5 * (torch.exp(dw.clamp(max=LARGEST)) * width)
    half_height = 0.5 * (torch.exp(dh.clamp(max=LARGEST)) * height)
    return torch.stack((x - half_width, y - half_height, x + half_width, y + half_height), dim=-1)


def _centred(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre x and y, width and height (...) of boxes (..., 4)."""
    left, top, right, bottom = boxes.unbind(-1)
    width, height = right - left, bottom - top
    return left + 0.5 * width, top + 0.5 * height, width, height
