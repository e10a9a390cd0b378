"""What a detector does wrong at a threshold: the confusion matrix, and each mistake by its kind (ours).

All at IoU .50. A detection finds an object of its own class by COCO's rules (:mod:`drloss.evaluation.matching`), so
that the diagonal of the confusion matrix holds what recall and precision count. Of the rest, a detection on an object
of another class that nothing found is a wrong class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from drloss.data.annotations import Annotations
from drloss.evaluation.matching import Bools, Floats, Ints, match_class, overlaps

if TYPE_CHECKING:
    from drloss.structures import Detection

MISSED, WRONG_CLASS, BADLY_PLACED, DOUBLE, FALSE = "missed", "wrong class", "badly placed", "double", "false"
KINDS = {
    MISSED: "an object that no detection finds, and none of its class is near",
    WRONG_CLASS: "on an object of another class, found or not",
    BADLY_PLACED: "near an object of its class, with an IoU from .10 to .50",
    DOUBLE: "on an object of its class that another detection finds",
    FALSE: "on no object",
}
"""The kinds of mistakes."""
FOUND_IOU = 0.5
NEAR_IOU = 0.1
"""IoU from which a detection is near an object, as in TIDE (Bolya et al., ECCV 2020)."""


@dataclass(frozen=True, eq=False)
class Mistake:
    """One mistake.

    Attributes:
        kind: one of :data:`KINDS`.
        image: index of the image.
        label: class of the detection, or of the missed object; 1..K.
        score: of the detection; None for a missed object.
        box: (4,) xyxy of the detection in pixels; None for a missed object.
        object_label: class of the object that it is about; None if it is about none.
        object_box: (4,) xyxy of the object; None likewise.
    """

    kind: str
    image: int
    label: int
    score: float | None
    box: Floats | None
    object_label: int | None
    object_box: Floats | None

    @property
    def weight(self) -> float:
        """How bad it is among its kind: a detection by its score, a missed object by the root of its area."""
        if self.score is not None:
            return self.score
        assert self.object_box is not None
        return float(np.sqrt(np.prod(self.object_box[2:] - self.object_box[:2])))


@dataclass(frozen=True)
class Mistakes:
    """What a detector does wrong at a threshold.

    Attributes:
        confusion: (K + 1, K + 1) counts, each object and each detection once. Row k is an object of class k + 1,
            column k a detection as class k + 1; the last row is a detection on no object, or on one that another
            detection is on; the last column an object that is not found.
        all: the mistakes. A missed object that a badly placed detection is near counts as that only.
    """

    confusion: Ints
    all: list[Mistake]

    def worst(self, kind: str, most: int) -> list[Mistake]:
        """The worst of a kind, at most one of an image and class before others of it are shown."""
        own = sorted((m for m in self.all if m.kind == kind), key=lambda m: -m.weight)
        first: dict[tuple[int, int], Mistake] = {}
        for mistake in own:
            first.setdefault((mistake.image, mistake.label), mistake)
        return list(dict.fromkeys([*first.values(), *own]))[:most]


def find_mistakes(annotations: Annotations, detections: Sequence["Detection"], threshold: float) -> Mistakes:
    """The mistakes of detections that score at least a threshold.

    Args:
        annotations: N images; ``ignore`` boxes are crowds, on which nothing is a mistake.
        detections: of each of the N images, in the same order.
        threshold: lowest score that counts.
    """
    classes = len(annotations.class_names)
    confusion = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    found: list[Mistake] = []
    for index, detection in enumerate(detections):
        keep = np.flatnonzero(detection["scores"].numpy() >= threshold)
        scores = detection["scores"].double().numpy()[keep]
        order = np.argsort(-scores, kind="stable")
        boxes = detection["boxes"].double().numpy()[keep][order]
        labels = detection["labels"].numpy()[keep][order]
        own = annotations.boxes_of(index)
        truth = _Truth(
            annotations.boxes[own].astype(np.float64), annotations.labels[own], annotations.ignore[own].astype(bool)
        )
        found += _of_image(index, boxes, scores[order], labels, truth, confusion)
    return Mistakes(confusion, found)


@dataclass(frozen=True)
class _Truth:
    boxes: Floats
    labels: Ints
    ignore: Bools


def _of_image(
    image: int, boxes: Floats, scores: Floats, labels: npt.NDArray[np.int64], truth: _Truth, confusion: Ints
) -> list[Mistake]:
    """The mistakes in one image, whose counts are added to ``confusion``; detections by falling score."""
    background = len(confusion) - 1
    found, counted = _found_objects(boxes, labels, truth)
    right = found >= 0
    np.add.at(confusion, (labels[right] - 1, labels[right] - 1), 1)
    taken = np.zeros(len(truth.labels), dtype=bool)
    taken[found[right]] = True
    near = np.zeros(len(truth.labels), dtype=bool)
    overlap = overlaps(boxes, truth.boxes, np.zeros_like(truth.ignore))
    overlap[:, truth.ignore] = 0.0
    mistakes = []
    for d in np.flatnonzero(counted & ~right):
        label = int(labels[d])
        kind, about = _kind(overlap[d], truth.labels == label, taken)
        if kind == WRONG_CLASS and not taken[about]:
            assert about is not None
            taken[about] = True
            confusion[truth.labels[about] - 1, label - 1] += 1
        else:
            confusion[background, label - 1] += 1
        if kind == BADLY_PLACED:
            near[about] = True
        object_label = None if about is None else int(truth.labels[about])
        object_box = None if about is None else truth.boxes[about]
        mistakes.append(Mistake(kind, image, label, float(scores[d]), boxes[d], object_label, object_box))
    for g in np.flatnonzero(~taken & ~truth.ignore):
        label = int(truth.labels[g])
        confusion[label - 1, background] += 1
        if not near[g]:
            mistakes.append(Mistake(MISSED, image, label, None, None, label, truth.boxes[g]))
    return mistakes


def _found_objects(boxes: Floats, labels: npt.NDArray[np.int64], truth: _Truth) -> tuple[Ints, Bools]:
    """The object that each detection finds, -1 for none, and whether the detection counts; (D,) each."""
    found, counted = np.full(len(labels), -1, dtype=np.int64), np.ones(len(labels), dtype=bool)
    for label in np.unique(labels):
        chosen, objects = np.flatnonzero(labels == label), np.flatnonzero(truth.labels == label)
        own, counts = match_class(boxes[chosen], truth.boxes[objects], truth.ignore[objects], np.array([FOUND_IOU]))
        found[chosen] = np.where(own[0] >= 0, objects[own[0]] if len(objects) else -1, -1)
        counted[chosen] = counts[0]
    return found, counted


def _kind(overlap: Floats, same: Bools, taken: Bools) -> tuple[str, int | None]:
    """The kind of a detection that finds no object, and which object it is about.

    Args:
        overlap: (G,) IoU with each object; 0 with ignored ones.
        same: (G,) whether the object is of the detection's class.
        taken: (G,) whether another detection is on the object.
    """
    choices = (
        (WRONG_CLASS, (overlap >= FOUND_IOU) & ~taken & ~same),
        (DOUBLE, (overlap >= FOUND_IOU) & same),
        (WRONG_CLASS, (overlap >= FOUND_IOU) & ~same),
        (BADLY_PLACED, (overlap >= NEAR_IOU) & same),
    )
    for kind, those in choices:
        if those.any():
            return kind, int(np.argmax(np.where(those, overlap, -1.0)))
    return FALSE, None
