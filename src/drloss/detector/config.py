"""Settings of a detector: everything that is needed to rebuild it for a file of weights."""

from dataclasses import dataclass, fields
from math import inf
from typing import Literal

from drloss.errors import UserError

LARGEST = {"anchor_octaves": 32, "head_depth": 64, "short_side": 8192, "max_side": 8192, "anchor_ratios": 32}
"""Largest value of some settings, or largest number of values: limits for files from untrusted sources."""
_MAY_BE_ZERO = ("frozen_stride",)
_COLOURS = ("image_mean", "image_std")


@dataclass(frozen=True)
class DetectorConfig:
    """RetinaNet's structure and its settings at test time. The defaults are the paper's (§4.1) with ResNet-50."""

    backbone: str = "resnet50"
    """Backbone: resnet10 (for CPUs), resnet18, resnet34, resnet50, resnet101 or resnext101_32x8d, or a model of timm
    that has features at strides 8, 16 and 32, such as tf_efficientnet_lite0 or convnext_tiny."""
    norm: Literal["auto", "frozen", "group"] = "auto"
    """What the backbone's batch norms become: frozen, for pretrained weights; group norm, which trains from random
    weights and does not look at the rest of the batch; auto is frozen where there are pretrained weights, group where
    not. Layer norms stay as they are, and train."""
    fpn_channels: int = 256
    """Channels of every pyramid level."""
    top_level: Literal[5, 7] = 7
    """Last pyramid level: 7 (P3-P7, the paper's) or 5 (P3-P5, for small images)."""
    head_depth: int = 4
    """Hidden convolutions of each head."""
    head_channels: int = 256
    """Channels of the heads' hidden convolutions."""
    anchor_scale: float = 4.0
    """Side of a level's smallest square anchor, in strides of the level: 4 gives 32 pixels at P3."""
    anchor_octaves: int = 3
    """Anchor sizes per level, spaced by 2^(1/n). The paper: 3."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width of the anchors. The paper: 0.5,1,2."""
    positive_iou: float = 0.5
    """Overlap (IoU) with an object from which an anchor is positive."""
    negative_iou: float = 0.4
    """Overlap (IoU) with every object below which an anchor is background; anchors in between are ignored."""
    short_side: int = 800
    """Images are resized until their short side has this many pixels. The paper: 800."""
    max_side: int = 1333
    """Longest side of a resized image, in pixels. If --short-side and this cannot both hold, this one wins."""
    score_threshold: float = 0.05
    """Detections below this score are dropped before NMS. The paper: 0.05 (Table 5)."""
    nms_threshold: float = 0.5
    """Overlap (IoU) above which the lower-scored of two detections of a class is dropped."""
    level_candidates: int = 1000
    """Detections that each pyramid level may hand to NMS."""
    max_detections: int = 100
    """Detections kept per image."""
    frozen_stride: Literal[0, 2, 4, 8, 16, 32] = 4
    """With frozen norms, backbone stages up to this stride are not trained; 0 trains all. The paper: 4, the stem and
    the first stage."""
    image_mean: tuple[float, ...] = ()
    """Mean of the image's red, green and blue in [0, 1]; empty for the one of the backbone's weights."""
    image_std: tuple[float, ...] = ()
    """Deviation of the image's red, green and blue in [0, 1]; empty for the one of the backbone's weights."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the pyramid levels, in pixels."""
        return tuple(2**level for level in range(3, self.top_level + 1))

    @property
    def anchors_per_location(self) -> int:
        """Anchors at each location of each level."""
        return self.anchor_octaves * len(self.anchor_ratios)


def check_detector(config: DetectorConfig) -> None:
    """Raise UserError for the first setting that has the wrong type, is not positive or is too large."""
    for field in fields(DetectorConfig):
        name, value, default = field.name, getattr(config, field.name), field.default
        if name in _COLOURS:
            _check_colours(name, value)
            continue
        numbers = value if isinstance(default, tuple) and isinstance(value, tuple) else (value,)
        kinds = {str: (str,), int: (int,)}.get(type(default), (int, float))
        if not all(type(number) in kinds for number in numbers):
            raise UserError(f"{name} must be of type {' or '.join(k.__name__ for k in kinds)}, got {value!r:.80}")
        if str in kinds:
            continue
        size = len(numbers) if isinstance(default, tuple) else value
        limit = LARGEST.get(name, 1_000_000)
        least = 0 if name in _MAY_BE_ZERO else 1e-300
        if not all(least <= number < inf for number in numbers) or size > limit:
            raise UserError(f"{name} must be positive and at most {limit}, got {value!r:.80}")


def _check_colours(name: str, value: object) -> None:
    """Raise UserError unless the value is empty or three numbers in [0, 1]; a deviation is not 0."""
    numbers = value if isinstance(value, tuple) else (None,)
    if not (len(numbers) in (0, 3) and all(type(n) in (int, float) and 0 <= n <= 1 for n in numbers)):
        raise UserError(f"{name} must be empty or three numbers from 0 to 1 (red,green,blue), got {value!r:.80}")
    if name == "image_std" and 0 in numbers:
        raise UserError(f"{name} must not be 0, got {value!r:.80}")
