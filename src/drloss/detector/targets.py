"""Targets of each anchor: matching with the objects, and box deltas. Nothing here waits for the device."""

from typing import NamedTuple

import torch
from torch import Tensor

from drloss.detector.boxes import area, encode
from drloss.detector.config import DetectorConfig
from drloss.structures import PaddedObjects

MOST_PAIRS = 2**25
"""Most pairs of an object and an anchor that are compared at a time, 134 MB for each tensor of them."""
_IN_CACHES = ("cpu",)
"""Devices that compare one image at a time, whose pairs stay in the caches."""
_UNREACHED = 2.0


class Targets(NamedTuple):
    """What the anchors of N images are to learn.

    Attributes:
        labels: (N, A) int64: -1 ignored, 0 background, 1..K.
        deltas: (N, A, 4) float32, 0 where an anchor is not positive.
        objects: (N, A) int64, index of a positive anchor's object among those of its image that are not ignored; -1
            where an anchor is not positive.
    """

    labels: Tensor
    deltas: Tensor
    objects: Tensor


def assign_targets(
    anchors: Tensor, objects: PaddedObjects, config: DetectorConfig, inside: Tensor | None = None
) -> Targets:
    """Match the anchors to the objects of N images.

    An anchor whose best IoU is at least ``positive_iou`` gets the class and box of that object; below
    ``negative_iou`` it is background; in between it is ignored. The anchors with the highest IoU of an object, ties
    included, become positive too, each for the object that it fits best (Detectron's rule); an object that overlaps
    no anchor has none. A background anchor with most of its area inside an ignored region is ignored.

    Args:
        anchors: (A, 4) float32 xyxy, with an area.
        objects: objects of the images, on the device of the anchors.
        config: thresholds.
        inside: (N, A) bool, the anchors of each image that are matched, the others are ignored; None for all.

    All images are compared at a time, or as many as :data:`MOST_PAIRS` allows: a batch of 16 on a GPU takes a few
    dozen kernels, and its memory is bounded. On a CPU it is one image at a time.
    """
    nothing = anchors.new_full((len(objects), len(anchors)), -1, dtype=torch.int64)
    if not nothing.numel():
        return Targets(nothing, anchors.new_zeros(*nothing.shape, 4), nothing)
    most = max(objects.boxes.shape[1], objects.regions.shape[1], 1) * len(anchors)
    step = 1 if anchors.device.type in _IN_CACHES else max(1, MOST_PAIRS // most)
    planes = anchors.T.contiguous()
    parts = []
    for first in range(0, len(objects), step):
        own = slice(first, first + step)
        parts.append(_assign(anchors, planes, objects[own], config, None if inside is None else inside[own]))
    return parts[0] if len(parts) == 1 else Targets(*map(torch.cat, zip(*parts, strict=True)))


def _assign(
    anchors: Tensor, planes: Tensor, objects: PaddedObjects, config: DetectorConfig, inside: Tensor | None
) -> Targets:
    """Targets of a few images; ``planes`` (4, A) are the coordinates of the anchors."""
    most = max(objects.counts)
    boxes, classes = objects.boxes[:, :most], objects.labels[:, :most]
    labels = classes.new_zeros(len(objects), len(anchors))
    own = torch.full_like(labels, -1)
    deltas = anchors.new_zeros(*labels.shape, 4)
    if most:
        overlap = _overlap(boxes, planes)
        iou = overlap / (area(boxes).unsqueeze(2) + area(anchors) - overlap)
        if inside is not None:
            iou = torch.where(inside.unsqueeze(1), iou, 0.0)
        best, matched = iou.max(dim=1)
        highest = iou.amax(dim=2, keepdim=True)
        wanted = (iou == torch.where(highest > 0, highest, _UNREACHED)).any(dim=1)
        positive = (best >= config.positive_iou) | wanted
        own = torch.where(positive, matched, -1)
        place = (matched + most * torch.arange(len(objects), device=matched.device).unsqueeze(1)).flatten()
        background = torch.where(best >= config.negative_iou, -1, 0)
        labels = torch.where(positive, classes.flatten().index_select(0, place).view_as(labels), background)
        target = encode(boxes.reshape(-1, 4).index_select(0, place).view_as(deltas), anchors)
        deltas = torch.where(positive.unsqueeze(2), target, 0.0)
    if objects.regions.shape[1]:
        share = _overlap(objects.regions, planes) / area(anchors)
        labels = torch.where((labels == 0) & (share.amax(dim=1) > 0.5), -1, labels)
    if inside is not None:
        labels = torch.where(inside, labels, -1)
    return Targets(labels, deltas, own)


def _overlap(boxes: Tensor, planes: Tensor) -> Tensor:
    """Area (n, M, A) that boxes (n, M, 4) share with the anchors."""
    left, top, right, bottom = boxes.unsqueeze(3).unbind(2)
    width = torch.minimum(right, planes[2]) - torch.maximum(left, planes[0])
    height = torch.minimum(bottom, planes[3]) - torch.maximum(top, planes[1])
    return width.clamp_(min=0) * height.clamp_(min=0)
