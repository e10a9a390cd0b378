"""Which detections find an object, by COCO's rules. The bootstrap over images and the calibration curve need it.

The metrics come from :mod:`drloss.evaluation.coco`. Here each detection keeps its image, so that images can have
weights. With equal weights the AP is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from drloss.data.annotations import Annotations

if TYPE_CHECKING:
    from drloss.structures import Detection

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class MatchedDetections:
    """D detections of N images and K classes, matched to objects; sorted by falling score, ties by image.

    Attributes:
        image: (D,) index of the image.
        label: (D,) 1..K.
        score: (D,) in [0, 1].
        found: (10, D) whether the detection finds an object, at each IoU threshold.
        counted: (10, D) whether the detection counts: it does not if it lies on an ignored box.
        objects: (N, K) number of objects to find.
    """

    image: Ints
    label: Ints
    score: Floats
    found: Bools
    counted: Bools
    objects: Ints

    @property
    def images(self) -> int:
        """N, which includes images without objects or detections."""
        return len(self.objects)


def match_detections(
    annotations: Annotations, detections: Sequence["Detection"], *, max_detections: int = 100
) -> MatchedDetections:
    """Match detections to objects, the detection with the highest score first.

    Args:
        annotations: N images; ``ignore`` boxes are crowds.
        detections: of each of the N images, in the same order.
        max_detections: number of detections that count for each image and class, those with the best scores.
    """
    classes = len(annotations.class_names)
    objects = np.zeros((len(annotations), classes), dtype=np.int64)
    parts: list[tuple[Ints, Ints, Floats, Bools, Bools]] = []
    for n, detection in enumerate(detections):
        own = annotations.boxes_of(n)
        boxes, labels, ignore = annotations.boxes[own], annotations.labels[own], annotations.ignore[own]
        np.add.at(objects[n], labels[~ignore] - 1, 1)
        found_boxes = detection["boxes"].double().numpy()
        scores, found_labels = detection["scores"].double().numpy(), detection["labels"].numpy()
        for k in np.unique(found_labels):
            chosen = np.flatnonzero(found_labels == k)
            chosen = chosen[np.argsort(-scores[chosen], kind="stable")][:max_detections]
            truth = labels == k
            objects_found, counted = match_class(found_boxes[chosen], boxes[truth].astype(np.float64), ignore[truth])
            image = np.full(len(chosen), n, dtype=np.int64)
            parts.append((image, found_labels[chosen].astype(np.int64), scores[chosen], objects_found >= 0, counted))
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        empty = np.zeros((len(IOU_THRESHOLDS), 0), dtype=bool)
        return MatchedDetections(none, none, none.astype(np.float64), empty, empty, objects)
    image, label, score = (np.concatenate([part[i] for part in parts]) for i in range(3))
    found, counted = (np.concatenate([part[i] for part in parts], axis=1) for i in (3, 4))
    order = np.argsort(-score, kind="stable")
    return MatchedDetections(image[order], label[order], score[order], found[:, order], counted[:, order], objects)


def match_class(
    detected: Floats, boxes: Floats, ignore: Bools, thresholds: Floats = IOU_THRESHOLDS
) -> tuple[Ints, Bools]:
    """Which object each detection of one image and class finds, by COCO's rules.

    Args:
        detected: (D, 4) boxes, highest score first.
        boxes: (G, 4) the objects.
        ignore: (G,) whether the object is a crowd.
        thresholds: (T,) IoU from which a detection finds an object.
    Returns:
        Position of the object that a detection finds, -1 for none, and whether the detection counts; (T, D) each.
    """
    found = np.full((len(thresholds), len(detected)), -1, dtype=np.int64)
    counted = np.ones((len(thresholds), len(detected)), dtype=bool)
    if not len(boxes):
        return found, counted
    overlap = overlaps(detected, boxes, ignore)
    taken = np.zeros((len(thresholds), len(boxes)), dtype=bool)
    rows = np.arange(len(thresholds))
    for d in range(len(detected)):
        enough = np.minimum(thresholds, 1 - 1e-10)[:, None] <= overlap[d]
        free = enough & ~taken & ~ignore
        # Of equal overlaps the last one wins, as in the reference implementation.
        best = _last_best(np.where(free, overlap[d], -1.0))
        hit = free.any(axis=1)
        found[hit, d] = best[hit]
        taken[rows[hit], best[hit]] = True
        counted[:, d] = hit | ~(enough & ignore).any(axis=1)
    return found, counted


def _last_best(values: Floats) -> Ints:
    best: Ints = values.shape[1] - 1 - np.argmax(values[:, ::-1], axis=1)
    return best


def overlaps(detected: Floats, boxes: Floats, ignore: Bools) -> Floats:
    """IoU (D, G) of each detection with each box; with an ignored box, the share of the detection inside it."""
    low = np.maximum(detected[:, None, :2], boxes[None, :, :2])
    high = np.minimum(detected[:, None, 2:], boxes[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    area, own = (np.clip(b[:, 2:] - b[:, :2], 0, None).prod(axis=1) for b in (detected, boxes))
    union = np.where(ignore, area[:, None], area[:, None] + own - common)
    overlap: Floats = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return overlap


def average_precision(matches: MatchedDetections, weights: Ints | None = None) -> float:
    """AP in percent, where image n counts ``weights[n]`` times; NaN if there is no object to find.

    Args:
        matches: detections of N images.
        weights: (N,) weights of the images, not negative; 1 each by default.
    """
    weights = np.ones(matches.images, dtype=np.int64) if weights is None else weights
    objects = weights @ matches.objects
    values = [
        _class_precision(matches, weights, k + 1, int(objects[k])) for k in range(len(objects)) if objects[k] > 0
    ]
    return 100 * float(np.mean(values)) if values else nan


def _class_precision(matches: MatchedDetections, weights: Ints, label: int, objects: int) -> float:
    """Interpolated precision of one class in [0, 1], as a mean over thresholds and recall points."""
    own = np.flatnonzero((matches.label == label) & (weights[matches.image] > 0))
    if not len(own):
        return 0.0
    weight = weights[matches.image[own]]
    found, counted = matches.found[:, own], matches.counted[:, own]
    right = np.cumsum(weight * found, axis=1)
    wrong = np.cumsum(weight * (counted & ~found), axis=1)
    precision = right / np.maximum(right + wrong, 1)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    total = 0.0
    for t in range(len(IOU_THRESHOLDS)):
        at = np.searchsorted(right[t] / objects, _RECALLS, side="left")
        total += float(precision[t, at[at < len(own)]].sum())
    return total / (len(IOU_THRESHOLDS) * len(_RECALLS))


@dataclass(frozen=True)
class Calibration:
    """How often detections with a given score are right at IoU .50, in B bins of the score.

    Attributes:
        score: (B,) mean score of the detections in each bin; NaN if the bin is empty.
        precision: (B,) share of the detections in each bin that find an object; NaN if the bin is empty.
        count: (B,) number of detections in each bin.
        error: expected calibration error, the mean |score - precision| over the detections; NaN without detections.
    """

    score: Floats
    precision: Floats
    count: Ints
    error: float


def calibration(matches: MatchedDetections, bins: int = 10) -> Calibration:
    """The calibration of scores, in equal bins over [0, 1].

    Source: Guo et al., ICML 2017, Eq. (3), taken over detections as in Küppers et al., CVPR Workshops 2020.
    """
    counted = matches.counted[0]
    score, found = matches.score[counted], matches.found[0][counted].astype(np.float64)
    index = np.minimum((score * bins).astype(np.int64), bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(index, weights=v, minlength=bins) / count for v in (score, found)]
    gap = np.abs(np.nan_to_num(means[0]) - np.nan_to_num(means[1]))
    error = float((gap * count).sum() / count.sum()) if count.sum() else nan
    return Calibration(means[0], means[1], count.astype(np.int64), error)
