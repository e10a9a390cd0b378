"""Targets of each anchor: matching with the objects, and box deltas."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_area, box_iou

from drloss.detector.config import DetectorConfig
from drloss.structures import Objects


class Targets(NamedTuple):
    """What the anchors of one image, or of N images with a first dimension N, are to learn.

    Attributes:
        labels: (A,) int64: -1 ignored, 0 background, 1..K.
        deltas: (A, 4) float32, 0 where an anchor is not positive.
        objects: (A,) int64, index of a positive anchor's object among those of its image that are not ignored; -1
            where an anchor is not positive.
    """

    labels: Tensor
    deltas: Tensor
    objects: Tensor


BOX_CODER = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
"""Deltas of a box relative to an anchor, weighted as in RetinaNet; log sizes are clipped at log(1000/16)."""


def assign_targets(anchors: Tensor, objects: Objects, config: DetectorConfig) -> Targets:
    """Match the anchors of one image to its objects.

    An anchor whose best IoU is at least ``positive_iou`` gets the class and box of that object; below
    ``negative_iou`` it is background; in between it is ignored. The anchors with the highest IoU of an object, ties
    included, become positive too, each for the object that it fits best (Detectron's rule). A background anchor with
    most of its area inside an ignored region is ignored.

    Args:
        anchors: (A, 4) float32 xyxy.
        objects: objects of the image, possibly none.
        config: thresholds.
    """
    labels = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
    deltas = torch.zeros_like(anchors)
    own = torch.full_like(labels, -1)
    boxes, classes = objects.boxes[~objects.ignore], objects.labels[~objects.ignore]
    if len(boxes) and len(anchors):
        iou = box_iou(boxes, anchors)
        matches = Matcher(config.positive_iou, config.negative_iou, allow_low_quality_matches=True)(iou)
        matches[iou.amax(dim=0) == 0] = Matcher.BELOW_LOW_THRESHOLD
        positive = matches >= 0
        matched = matches.clamp(min=0)
        own = torch.where(positive, matched, -1)
        labels = torch.where(positive, classes[matched], 0)
        labels = torch.where(matches == Matcher.BETWEEN_THRESHOLDS, -1, labels)
        deltas = torch.where(positive.unsqueeze(1), BOX_CODER.encode_single(boxes[matched], anchors), 0.0)
    regions = objects.boxes[objects.ignore]
    if len(regions):
        labels = torch.where((labels == 0) & (_share_inside(anchors, regions) > 0.5), -1, labels)
    return Targets(labels, deltas, own)


def _share_inside(anchors: Tensor, regions: Tensor) -> Tensor:
    """Largest share of each anchor's area (A,) that one of the regions (R, 4) covers."""
    corner = torch.maximum(anchors[:, None, :2], regions[None, :, :2])
    opposite = torch.minimum(anchors[:, None, 2:], regions[None, :, 2:])
    overlap = (opposite - corner).clamp(min=0).prod(dim=2)
    share: Tensor = overlap / box_area(anchors)[:, None]
    return share.amax(dim=1)
