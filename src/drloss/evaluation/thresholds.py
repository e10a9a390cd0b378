"""How AP falls when detections of low score are dropped (Table 5 of the paper)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from drloss.data.annotations import Annotations
from drloss.evaluation.coco import evaluate

if TYPE_CHECKING:
    from drloss.structures import Detection

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""The score thresholds of Table 5."""


def threshold_sweep(
    annotations: Annotations, detections: Sequence["Detection"], thresholds: Sequence[float] = THRESHOLDS
) -> list[dict[str, float]]:
    """AP of the detections that score above each threshold.

    Paper: Table 5, §C, which filters candidates before non-maximum suppression (NMS). Filtering after NMS keeps the
    same boxes, so one run of the detector serves every threshold: NMS goes through a class from the highest score
    down, and only a box with a higher score can suppress another, so a box above the threshold never depends on one
    below it. Top-k limits, before or after NMS, also drop the lowest scores first. A threshold below the one
    that the detector ran with changes nothing.

    Args:
        annotations: N images with their boxes.
        detections: of each of the N images, in the same order.
        thresholds: scores in [0, 1). A detection stays if its score is above the threshold.

    Returns:
        One record per threshold: ``threshold``, the six metrics in percent, ``detections_per_image``.

    Raises:
        ValueError: if a threshold is outside [0, 1), and as in :func:`drloss.evaluation.coco.evaluate`.
    """
    records = []
    for threshold in thresholds:
        if not 0 <= threshold < 1:
            raise ValueError(f"thresholds must be in [0, 1), got {threshold}")
        kept = above(detections, threshold)
        count = sum(len(detection["scores"]) for detection in kept)
        metrics = evaluate(annotations, kept).metrics
        per_image = count / max(1, len(annotations))
        records.append({"threshold": float(threshold), **metrics, "detections_per_image": per_image})
    return records


def above(detections: Sequence["Detection"], threshold: float) -> list["Detection"]:
    """The detections whose score is above a threshold. NaN scores stay, so that :func:`evaluate` refuses them."""
    kept = []
    for detection in detections:
        keep = ~(detection["scores"] <= threshold)
        kept.append({key: value[keep] for key, value in detection.items()})
    return kept


def counted(annotations: Annotations) -> int:
    """Number of objects to find: boxes that are not ignored."""
    return int((~annotations.ignore).sum())


def fair_threshold(detections: Sequence["Detection"], objects: int) -> float:
    """The score that as many detections reach as there are objects."""
    scores = torch.cat([d["scores"] for d in detections]).sort(descending=True).values
    return float(scores[min(objects, len(scores)) - 1]) if len(scores) and objects else 1.0
