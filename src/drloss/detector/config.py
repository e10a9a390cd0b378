"""What a detector is made of, as numbers: everything needed to rebuild it around a file of weights."""

from dataclasses import dataclass, fields
from math import inf

from drloss.errors import UserError

LARGEST = {"anchor_octaves": 32, "head_depth": 64, "short_side": 8192, "max_side": 8192, "anchor_ratios": 32}
"""Largest value of some settings, or largest number of values: what a file may ask of the machine that reads it."""


@dataclass(frozen=True)
class DetectorConfig:
    """RetinaNet's structure and test-time settings; the defaults are the paper's (§4.1) with ResNet-50.

    Attributes:
        backbone: one of :data:`drloss.detector.backbone.BACKBONES`.
        norm: ``"frozen"`` batch norm, for pretrained weights; ``"group"`` norm, which trains from scratch and does
            not look at the rest of the batch; or ``"auto"``: frozen where there are pretrained weights, group where
            there are none.
        fpn_channels: channels of every pyramid level.
        top_level: last pyramid level, 7 (P3-P7, as in the paper) or 5 (P3-P5, for small images).
        head_depth: hidden convolutions of each head.
        head_channels: their channels.
        anchor_scale: side of a level's smallest square anchor over its stride: 4 gives 32 pixels at P3.
        anchor_octaves: anchor sizes per level, spaced by 2^(1/n).
        anchor_ratios: height over width of the anchors.
        positive_iou: an anchor of at least this IoU with an object is positive.
        negative_iou: an anchor below this IoU with every object is background; those between are ignored.
        short_side: images are resized until their short side has so many pixels ...
        max_side: ... unless the long one would pass this.
        score_threshold: detections below this score are dropped before NMS.
        nms_threshold: IoU above which the lower-scored of two detections of a class is dropped.
        level_candidates: detections that each level may hand to NMS.
        max_detections: detections kept per image.
    """

    backbone: str = "resnet50"
    norm: str = "auto"
    fpn_channels: int = 256
    top_level: int = 7
    head_depth: int = 4
    head_channels: int = 256
    anchor_scale: float = 4.0
    anchor_octaves: int = 3
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    short_side: int = 800
    max_side: int = 1333
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    level_candidates: int = 1000
    max_detections: int = 100

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the pyramid levels, in pixels."""
        return tuple(2**level for level in range(3, self.top_level + 1))

    @property
    def anchors_per_location(self) -> int:
        """Anchors at each location of each level."""
        return self.anchor_octaves * len(self.anchor_ratios)


def check_detector(config: DetectorConfig) -> None:
    """Raise UserError for the first setting that is of another type than its default, not positive or too large."""
    for field in fields(DetectorConfig):
        name, value, default = field.name, getattr(config, field.name), field.default
        numbers = value if isinstance(default, tuple) and isinstance(value, tuple) else (value,)
        kinds = {str: (str,), int: (int,)}.get(type(default), (int, float))
        if not all(type(number) in kinds for number in numbers):
            raise UserError(f"{name} must be of type {' or '.join(k.__name__ for k in kinds)}, got {value!r:.80}")
        if str in kinds:
            continue
        size = len(numbers) if isinstance(default, tuple) else value
        limit = LARGEST.get(name, 1_000_000)
        if not all(0 < number < inf for number in numbers) or size > limit:
            raise UserError(f"{name} must be positive and at most {limit}, got {value!r:.80}")
