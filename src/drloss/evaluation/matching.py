"""Which detections find an object, by COCO's rules: what a bootstrap over images and a calibration curve are made of.

The evaluator of :mod:`drloss.evaluation.coco` gives the metrics; here each detection keeps its image, so that images
can be weighted. With equal weights the AP is the evaluator's.
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
class Matches:
    """D detections of N images and K classes, in the order of falling scores, images in order where they tie.

    Attributes:
        image: (D,) index of the image.
        label: (D,) 1..K.
        score: (D,) in [0, 1].
        found: (10, D), whether it finds an object, at each IoU threshold.
        counted: (10, D), whether it counts: it does not where it lies on an ignored box.
        objects: (N, K) objects to be found.
    """

    image: Ints
    label: Ints
    score: Floats
    found: Bools
    counted: Bools
    objects: Ints

    @property
    def images(self) -> int:
        """N."""
        return len(self.objects)


def match_detections(
    annotations: Annotations, detections: Sequence["Detection"], *, max_detections: int = 100
) -> Matches:
    """Match detections to objects, greedily by score.

    Args:
        annotations: N images; ``ignore`` boxes are crowds.
        detections: N of them, in the order of the images.
        max_detections: the best of each class that count in an image.
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
            found, counted = _match_one(found_boxes[chosen], boxes[truth].astype(np.float64), ignore[truth])
            image = np.full(len(chosen), n, dtype=np.int64)
            parts.append((image, found_labels[chosen].astype(np.int64), scores[chosen], found, counted))
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        empty = np.zeros((len(IOU_THRESHOLDS), 0), dtype=bool)
        return Matches(none, none, none.astype(np.float64), empty, empty, objects)
    image, label, score = (np.concatenate([part[i] for part in parts]) for i in range(3))
    found, counted = (np.concatenate([part[i] for part in parts], axis=1) for i in (3, 4))
    order = np.argsort(-score, kind="stable")
    return Matches(image[order], label[order], score[order], found[:, order], counted[:, order], objects)


def _match_one(detected: Floats, boxes: Floats, ignore: Bools) -> tuple[Bools, Bools]:
    """Found and counted, (10, D) each, of an image's detections of one class in the order of falling scores."""
    thresholds = len(IOU_THRESHOLDS)
    found = np.zeros((thresholds, len(detected)), dtype=bool)
    counted = np.ones((thresholds, len(detected)), dtype=bool)
    if not len(boxes):
        return found, counted
    overlap = _overlap(detected, boxes, ignore)
    taken = np.zeros((thresholds, len(boxes)), dtype=bool)
    rows = np.arange(thresholds)
    for d in range(len(detected)):
        enough = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None] <= overlap[d]
        free = enough & ~taken & ~ignore
        # Of equal overlaps the last is taken, as the reference implementation does.
        best = _last_best(np.where(free, overlap[d], -1.0))
        hit = free.any(axis=1)
        found[:, d] = hit
        taken[rows[hit], best[hit]] = True
        counted[:, d] = hit | ~(enough & ignore).any(axis=1)
    return found, counted


def _last_best(values: Floats) -> Ints:
    best: Ints = values.shape[1] - 1 - np.argmax(values[:, ::-1], axis=1)
    return best


def _overlap(detected: Floats, boxes: Floats, ignore: Bools) -> Floats:
    """IoU (D, G); for an ignored box the share of the detection that lies in it."""
    low = np.maximum(detected[:, None, :2], boxes[None, :, :2])
    high = np.minimum(detected[:, None, 2:], boxes[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    area, own = (np.clip(b[:, 2:] - b[:, :2], 0, None).prod(axis=1) for b in (detected, boxes))
    union = np.where(ignore, area[:, None], area[:, None] + own - common)
    overlap: Floats = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return overlap


def average_precision(matches: Matches, weights: Ints | None = None) -> float:
    """AP in percent, where image n counts ``weights[n]`` times; NaN where no object counts.

    Args:
        matches: of N images.
        weights: (N,) not negative, 1 for each by default.
    """
    weights = np.ones(matches.images, dtype=np.int64) if weights is None else weights
    objects = weights @ matches.objects
    values = [
        _class_precision(matches, weights, k + 1, int(objects[k])) for k in range(len(objects)) if objects[k] > 0
    ]
    return 100 * float(np.mean(values)) if values else nan


def _class_precision(matches: Matches, weights: Ints, label: int, objects: int) -> float:
    """Mean over thresholds and recall points of one class's interpolated precision, in [0, 1]."""
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
    """How often a detection of a score is right, at IoU .50.

    Attributes:
        score: (B,) mean score of the detections of each bin, NaN where there is none.
        precision: (B,) share of them that find an object, NaN likewise.
        count: (B,) detections.
        error: expected calibration error, the mean |score - precision| over the detections; NaN without detections.
    """

    score: Floats
    precision: Floats
    count: Ints
    error: float


def calibration(matches: Matches, bins: int = 10) -> Calibration:
    """Reliability of the scores, in equal bins over [0, 1].

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
