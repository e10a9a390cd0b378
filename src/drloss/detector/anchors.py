"""Anchor boxes of every pyramid level."""

from functools import lru_cache

import torch
from torch import Tensor

from drloss.detector.config import DetectorConfig


@lru_cache(maxsize=32)
def level_anchors(config: DetectorConfig, grids: tuple[tuple[int, int], ...], device: torch.device) -> list[Tensor]:
    """Anchors of each level, centred on the cells of its grid.

    Paper: §4.1, "each location has 3 scales and 3 aspect ratios". torchvision's generator is not used: it rounds the
    corners to whole pixels, which is 5 % of the side of a 16-pixel anchor, and centres anchors on cell corners.

    Args:
        config: strides, scale, octaves and ratios.
        grids: height and width of each level's feature map.
        device: where the anchors live.
    Returns:
        One (H_l * W_l * B, 4) float32 xyxy tensor per level, in pixels of the padded image; the B anchors of a
        location are neighbours, as in the heads' outputs: ratio by ratio, each in all octaves.
    """
    octaves = 2 ** (torch.arange(config.anchor_octaves) / config.anchor_octaves)
    ratios = torch.tensor(config.anchor_ratios).reshape(-1, 1)
    shapes = torch.stack([octaves / ratios.sqrt(), octaves * ratios.sqrt()], dim=2).reshape(
        -1, 2
    )  # (B, 2) width, height
    levels = []
    for stride, (height, width) in zip(config.strides, grids, strict=True):
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centres = stride * torch.stack([x, y], dim=2).reshape(-1, 1, 2)
        half = config.anchor_scale * stride * shapes / 2
        levels.append(torch.cat([centres - half, centres + half], dim=2).reshape(-1, 4).to(device))
    return levels
