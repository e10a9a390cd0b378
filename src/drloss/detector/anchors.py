"""Anchor boxes of every pyramid level."""

from functools import lru_cache

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

from drloss.detector.config import DetectorConfig


@lru_cache(maxsize=32)
def level_anchors(config: DetectorConfig, grids: tuple[tuple[int, int], ...], device: torch.device) -> list[Tensor]:
    """Anchors of each level, centred on the cells of its grid.

    Paper: §4.1, "each location has 3 scales and 3 aspect ratios".

    Args:
        config: strides, scale, octaves and ratios.
        grids: height and width of each level's feature map.
        device: where the anchors live.
    Returns:
        One (H_l * W_l * B, 4) float32 xyxy tensor per level, in pixels of the padded image; the B anchors of a
        location are neighbours, as in the heads' outputs.
    """
    sizes = tuple(
        tuple(config.anchor_scale * stride * 2 ** (i / config.anchor_octaves) for i in range(config.anchor_octaves))
        for stride in config.strides
    )
    generator = AnchorGenerator(sizes, (config.anchor_ratios,) * len(sizes))
    corners = generator.grid_anchors(grids, [(stride, stride) for stride in config.strides])
    return [(a + stride / 2).to(device) for a, stride in zip(corners, config.strides, strict=True)]
