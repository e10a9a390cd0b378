"""Anchor boxes of every pyramid level."""

from math import sqrt

import torch
from torch import Tensor

from drloss.detector.config import DetectorConfig


def anchor_shapes(config: DetectorConfig, device: torch.device | None = None) -> Tensor:
    """Width and height (B, 2) float32 of the anchors of a location, ratio by ratio and each in all octaves.

    The unit is the side of the smallest square anchor of the level.
    """
    octaves = [2 ** (octave / config.anchor_octaves) for octave in range(config.anchor_octaves)]
    shapes = [(octave / sqrt(ratio), octave * sqrt(ratio)) for ratio in config.anchor_ratios for octave in octaves]
    return torch.tensor(shapes, dtype=torch.float32, device=device)


def level_anchors(config: DetectorConfig, shapes: Tensor, grids: list[tuple[int, int]]) -> list[Tensor]:
    """Anchors of each level, centred on the cells of its grid.

    Paper: §4.1, "each location has 3 scales and 3 aspect ratios". torchvision's generator is not used: it rounds the
    corners to whole pixels, which is 5 % of the side of a 16-pixel anchor, and centres anchors on cell corners.
    They are computed in every call: a tensor cached under inference_mode or tracing could not be used in training.

    Args:
        config: strides and scale.
        shapes: result of :func:`anchor_shapes`, on the device of the anchors.
        grids: height and width of each level's feature map.
    Returns:
        One (H_l * W_l * B, 4) float32 xyxy tensor per level, in pixels of the padded image; the B anchors of a
        location are neighbours, as in the heads' outputs.
    """
    device = shapes.device
    levels = []
    for stride, (height, width) in zip(config.strides, grids, strict=True):
        y = torch.arange(height, dtype=torch.float32, device=device) + 0.5
        x = torch.arange(width, dtype=torch.float32, device=device) + 0.5
        y, x = torch.meshgrid(y, x, indexing="ij")
        centres = stride * torch.stack([x, y], dim=2).reshape(-1, 1, 2)
        half = config.anchor_scale * stride * shapes / 2
        levels.append(torch.cat([centres - half, centres + half], dim=2).reshape(-1, 4))
    return levels
