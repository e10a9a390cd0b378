"""Detections from the outputs of the heads: thresholds, decoding and non-maximum suppression (NMS)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from drloss.detector.boxes import decode
from drloss.detector.config import DetectorConfig
from drloss.detector.model import HeadOutputs
from drloss.structures import Detection, Frame

DROPPED = -1.0
"""Score of a candidate that is no detection."""


class FoundBoxes(NamedTuple):
    """The best candidates of N images before NMS, C for each, level by level and best first.

    Attributes:
        boxes: (N, C, 4) float32 xyxy in pixels of the resized image, clipped to it.
        scores: (N, C) float32, :data:`DROPPED` where a score is not above the threshold, or the box in the padding.
        labels: (N, C) int64, 1..K.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@torch.no_grad()
def detect(outputs: HeadOutputs, frames: Sequence[Frame], config: DetectorConfig) -> list[Detection]:
    """Detections of each image, best first.

    Paper: §C and [17]: per level the scores above ``score_threshold``, at most ``level_candidates`` of them; decode,
    clip to the image, NMS per class over all levels, and the best ``max_detections``. Boxes in the padding of the
    image are left out.

    Args:
        outputs: outputs for N images.
        frames: sizes of the N images.
        config: thresholds and numbers.
    """
    if len(frames) != len(outputs.maps[0]):
        raise ValueError(f"frames must be {len(outputs.maps[0])}, one for each image of outputs, got {len(frames)}")
    if not frames:
        return []
    sizes, scales = _sizes_and_scales(frames, outputs.maps[0].device)
    found = find_boxes(outputs, sizes, config)
    return [_suppress(*image, config) for image in zip(*found, scales, strict=True)]


def from_whole_input(
    found: FoundBoxes, frames: Sequence[Frame], config: DetectorConfig, *, suppressed: bool
) -> list[Detection]:
    """Detections of each image, best first, from boxes that were clipped to the padded input and not to the image.

    Args:
        found: boxes of N images, on the CPU.
        frames: sizes of the N images.
        config: thresholds and numbers.
        suppressed: whether the boxes have been through NMS, and come best first.
    """
    sizes, scales = _sizes_and_scales(frames, found.boxes.device)
    boxes = torch.minimum(found.boxes, sizes.flip(1).repeat(1, 2).unsqueeze(1))
    solid = (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
    scores = torch.where(solid & (found.scores > config.score_threshold), found.scores, DROPPED)
    finish = _scale if suppressed else _suppress
    return [finish(*image, config) for image in zip(boxes, scores, found.labels, scales, strict=True)]


def _sizes_and_scales(frames: Sequence[Frame], device: torch.device) -> tuple[Tensor, Tensor]:
    """Height and width (N, 2) of the resized images, and what scales boxes (N, 4) back to the original ones."""
    numbers = [[*f.resized, *(o / r for o, r in zip(f.original[::-1], f.resized[::-1], strict=True))] for f in frames]
    sizes_and_scales = torch.tensor(numbers, dtype=torch.float32, device=device)
    return sizes_and_scales[:, :2], sizes_and_scales[:, 2:].repeat(1, 2)


def find_boxes(outputs: HeadOutputs, sizes: Tensor, config: DetectorConfig) -> FoundBoxes:
    """The best candidates of each level, at most ``level_candidates``; their number depends on shapes alone.

    Args:
        outputs: outputs for N images.
        sizes: (N, 2) float32, height and width of the resized images.
        config: thresholds and numbers.
    """
    limits = sizes.flip(1).repeat(1, 2).unsqueeze(1)
    levels = zip(outputs.maps, outputs.deltas, outputs.anchors, strict=True)
    found = [_best_of_level(*level, limits, outputs.num_classes, config) for level in levels]
    return FoundBoxes(*(torch.cat(parts, dim=1) for parts in zip(*found, strict=True)))


def _best_of_level(
    maps: Tensor, deltas: Tensor, anchors: Tensor, limits: Tensor, num_classes: int, config: DetectorConfig
) -> FoundBoxes:
    """The best candidates of one level.

    They belong to the anchors with the highest best logits, of which as many are looked at: so that all anchors and
    classes are read once, and only a few are sorted.
    """
    box = torch.minimum(decode(deltas.float(), anchors).clamp(min=0), limits)
    solid = (box[..., 2:] > box[..., :2]).all(dim=2)
    images, per_place = maps.shape[0], maps.shape[1] // num_classes
    by_place = maps.reshape(images, per_place, num_classes, maps.shape[2] * maps.shape[3])
    highest = by_place.amax(dim=2).transpose(1, 2).flatten(1)
    highest = torch.where(solid & ~highest.isnan(), highest, -torch.inf)  # a NaN would be the first of all
    logit, anchor = highest.topk(_at_most(config.level_candidates, highest.shape[1]))
    image = torch.arange(images, device=maps.device).unsqueeze(1)
    rows = by_place.permute(0, 3, 1, 2)[image, anchor // per_place, anchor % per_place]
    rows = torch.where(logit.unsqueeze(2) > -torch.inf, rows, -torch.inf).flatten(1)
    best, order = rows.topk(_at_most(config.level_candidates, rows.shape[1]))
    score = best.float().sigmoid()
    return FoundBoxes(
        boxes=box[image, anchor.gather(1, order // num_classes)],
        scores=torch.where(score > config.score_threshold, score, DROPPED),
        labels=order % num_classes + 1,
    )


def _at_most(most: int, length: int | torch.SymInt) -> int | torch.SymInt:
    """The smaller number; where torch.export leaves ``length`` open, without a decision which one it is."""
    return torch.sym_min(most, length) if isinstance(length, torch.SymInt) else min(most, length)


def _scale(boxes: Tensor, scores: Tensor, labels: Tensor, scale: Tensor, config: DetectorConfig) -> Detection:
    """The candidates of one image that are detections; their boxes are scaled by ``scale`` (4,)."""
    some = (scores > DROPPED).nonzero().squeeze(1)[: config.max_detections]
    return {"boxes": boxes[some] * scale, "scores": scores[some], "labels": labels[some]}


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, scale: Tensor, config: DetectorConfig) -> Detection:
    """NMS among the candidates of one image; their boxes are scaled back to the original image by ``scale`` (4,)."""
    some = (scores > DROPPED).nonzero().squeeze(1)
    boxes, scores, labels = boxes[some], scores[some], labels[some]
    keep = batched_nms(boxes, scores, labels, config.nms_threshold)[: config.max_detections]
    return {"boxes": boxes[keep] * scale, "scores": scores[keep], "labels": labels[keep]}
