"""From which score on to believe a detection.

How AP falls when low scores are dropped is Table 5 of the paper; the threshold with the best F1 is ours.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from drloss.data.annotations import Annotations
from drloss.evaluation.coco import evaluate
from drloss.evaluation.matching import Floats, Ints, MatchedDetections

if TYPE_CHECKING:
    from drloss.structures import Detection

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""The score thresholds of Table 5."""


@dataclass(frozen=True)
class OperatingPoint:
    """What a detector does whose detections are believed from a score on.

    Attributes:
        threshold: the score, in [0, 1].
        right: number of detections that find an object at IoU .50.
        wrong: number of those that do not.
        missed: number of objects that no detection finds.
    """

    threshold: float
    right: int
    wrong: int
    missed: int

    @property
    def precision(self) -> float:
        """Share of the detections that are right, in [0, 1]; 0 without detections."""
        return self.right / max(1, self.right + self.wrong)

    @property
    def recall(self) -> float:
        """Share of the objects that are found, in [0, 1]; 0 without objects."""
        return self.right / max(1, self.right + self.missed)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, in [0, 1]."""
        return 2 * self.right / max(1, 2 * self.right + self.wrong + self.missed)

    def to_json(self) -> dict[str, Any]:
        """All of it as a plain dict."""
        return asdict(self) | {"precision": self.precision, "recall": self.recall, "f1": self.f1}


@dataclass(frozen=True)
class ThresholdCurve:
    """Right and wrong detections from each of S thresholds on, one between each score and the next lower one.

    Attributes:
        threshold: (S,) falling.
        right: (S,) number of detections that find an object at IoU .50.
        wrong: (S,) number of those that do not.
        objects: number of objects to find.
    """

    threshold: Floats
    right: Ints
    wrong: Ints
    objects: int

    def points(self) -> list[OperatingPoint]:
        """The S points."""
        rows = zip(self.threshold.tolist(), self.right.tolist(), self.wrong.tolist(), strict=True)
        return [OperatingPoint(at, right, wrong, self.objects - right) for at, right, wrong in rows]

    def best(self) -> OperatingPoint | None:
        """The point with the largest F1, the highest threshold of several; None if nothing is found at any."""
        best = max(self.points(), key=lambda point: point.f1, default=None)
        return best if best is not None and best.right else None


def threshold_curve(matches: MatchedDetections, label: int | None = None) -> ThresholdCurve:
    """Right and wrong detections at each threshold (ours).

    Which object a detection finds does not depend on those of lower score, so the detections above a threshold are
    right or wrong as they are among all.

    Args:
        matches: detections of N images. Those on ignored boxes do not count.
        label: the class in 1..K; None for all classes together, in which each object counts the same.
    """
    own = matches.counted[0] if label is None else matches.counted[0] & (matches.label == label)
    score, found = matches.score[own], matches.found[0][own]
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True)) if len(score) else np.zeros(0, dtype=np.int64)
    scores = score[last]
    objects = matches.objects if label is None else matches.objects[:, label - 1]
    right = np.cumsum(found)[last]
    # Halfway to the next score, so that rounding does not decide; below the lowest there is no other.
    middle = (scores + np.append(scores[1:], 0.0)) / 2 if len(scores) else scores
    return ThresholdCurve(middle, right, last + 1 - right, int(objects.sum()))


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
