"""Average precision as COCO defines it, and detections in the format of COCO's test server.

AP is the mean precision at 101 points of recall, averaged over the IoU thresholds .50, .55, ..., .95 and over the
classes that have objects. Every number is in percent, as the paper prints it.

The numbers equal those of pycocotools to 1e-9, except for input on which pycocotools is silently wrong:

==================================  ==========================================  ==============================
input                               pycocotools                                 here
==================================  ==========================================  ==============================
annotation id 0                     the box counts as never found               ids of annotations play no part
annotation id given twice           one box may replace another                 ids of annotations play no part
score NaN or infinite               ranked wherever sorting leaves it           refused
detection of an unknown class       ignored                                     refused
box with x1 > x2 or y1 > y2         counted, with a meaningless area            refused
no detections at all                IndexError                                  AP is 0
==================================  ==========================================  ==============================
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from drloss.data.annotations import Annotations
from drloss.io.atomic import write_text

if TYPE_CHECKING:
    from rich.table import Table

    from drloss.structures import Detection

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""AP; AP at IoU .50 and .75; AP of objects below 32², between 32² and 96², and above 96² square pixels."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """The result of a detector on a split of K classes.

    Attributes:
        metrics: the six of :data:`METRICS` in percent; NaN if the split has no such object.
        per_class: the same six for each class, by its name.
        precision: (K, 101) interpolated precision of each class at IoU .50, in [0, 1]; -1 if it has no object.
        recall_points: (101,) recalls from 0 to 1 at which ``precision`` is given.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    precision: Floats
    recall_points: Floats

    def to_json(self) -> dict[str, Any]:
        """The evaluation as plain lists and dicts, with None for NaN, which JSON does not have."""
        return {
            "metrics": _without_nan(self.metrics),
            "per_class": {name: _without_nan(metrics) for name, metrics in self.per_class.items()},
            "precision": self.precision.tolist(),
            "recall_points": self.recall_points.tolist(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Evaluation":
        """Undo :meth:`to_json`: None becomes NaN again, and lists become arrays."""
        names = list(value["per_class"])
        return cls(
            metrics=_with_nan(value["metrics"]),
            per_class={name: _with_nan(value["per_class"][name]) for name in names},
            precision=np.array(value["precision"], dtype=np.float64).reshape(len(names), -1),
            recall_points=np.array(value["recall_points"], dtype=np.float64),
        )


def evaluate(annotations: Annotations, detections: Sequence["Detection"], *, max_detections: int = 100) -> Evaluation:
    """Average precision of detections, in total and per class.

    Args:
        annotations: N images with their boxes. Detections on an ``ignore`` box (a crowd) do not count as false.
        detections: of each of the N images, in the same order.
        max_detections: number of detections that count for each image and class, those with the best scores.

    Raises:
        ValueError: if the numbers of images differ, a score or box is not finite, a box is reversed, or a label is
            outside 1..K.
    """
    precision, _ = accumulate(annotations, detections, max_detections=max_detections)
    best = precision[..., -1]  # (T, R, K, A): IoU thresholds, recall points, classes, areas (all, s, m, l)
    return Evaluation(
        metrics=_six(best),
        per_class={name: _six(best[:, :, k : k + 1]) for k, name in enumerate(annotations.class_names)},
        precision=np.ascontiguousarray(best[0, :, :, 0].T),
        recall_points=np.linspace(0.0, 1.0, 101),
    )


def accumulate(
    annotations: Annotations, detections: Sequence["Detection"], *, max_detections: int = 100
) -> tuple[Floats, Floats]:
    """The tables of which all COCO metrics are means; -1 where a class has no object of that area.

    Arguments and errors as in :func:`evaluate`.

    Returns:
        Precision (10, 101, K, 4, 3) and recall (10, K, 4, 3) over IoU thresholds, recall points (precision only),
        classes, areas (all, small, medium, large) and 1, 10 or ``max_detections`` detections per class and image.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    _check(annotations, detections)
    if max_detections <= 10:
        raise ValueError(f"max_detections must be above 10, got {max_detections}")
    if len(annotations) == 0:
        classes = len(annotations.class_names)
        return np.full((10, 101, classes, 4, 3), -1.0), np.full((10, classes, 4, 3), -1.0)
    frame = {
        "images": [{"id": i + 1, "height": int(h), "width": int(w)} for i, (h, w) in enumerate(annotations.sizes)],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(annotations.class_names)],
    }
    sets = []
    for entries in (_objects(annotations), _detected(detections)):
        coco = COCO(print_function=_silent)
        coco.dataset = {**frame, "annotations": entries}
        coco.createIndex()
        sets.append(coco)
    evaluator = COCOeval_faster(*sets, iouType="bbox", print_function=_silent)
    evaluator.params.maxDets = [1, 10, max_detections]
    evaluator.evaluate()
    evaluator.accumulate()
    return np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"])


def to_results(annotations: Annotations, detections: Sequence["Detection"]) -> list[dict[str, Any]]:
    """Detections in COCO's results format: one dict each, with the image and category ids of the annotation file.

    Arguments and errors as in :func:`evaluate`. Boxes become xywh in pixels.
    """
    _check(annotations, detections)
    results = _detected(detections)
    for entry in results:
        entry["image_id"] = int(annotations.image_ids[entry["image_id"] - 1])
        entry["category_id"] = int(annotations.category_ids[entry["category_id"] - 1])
        for ours in ("id", "area", "iscrowd"):
            del entry[ours]
    return results


def write_results(path: Path, annotations: Annotations, detections: Sequence["Detection"]) -> None:
    """Write :func:`to_results` as a JSON file with one detection per line."""
    lines = ",\n".join(json.dumps(entry, allow_nan=False) for entry in to_results(annotations, detections))
    write_text(path, f"[\n{lines}\n]\n" if lines else "[]\n")


def metrics_table(evaluation: Evaluation, title: str | None = None) -> "Table":
    """A table for the terminal: the six metrics over all classes and of each class."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    table.add_column("class", overflow="fold")
    for metric in METRICS:
        table.add_column(metric, justify="right", no_wrap=True)
    table.add_row("all", *(percent(evaluation.metrics[m]) for m in METRICS), end_section=True)
    for name, metrics in evaluation.per_class.items():
        table.add_row(Text(name), *(percent(metrics[m]) for m in METRICS))
    return table


def undefined_ap(annotations: Annotations) -> str | None:
    """A sentence if AP is undefined on a split, else None."""
    if not annotations.ignore.all():
        return None
    return f"no boxes in {annotations.name} that count: AP is undefined there"


def percent(value: float) -> str:
    """A metric for tables: one decimal, or a dash for NaN."""
    return "–" if isnan(value) else f"{value:.1f}"


def signed(difference: float) -> str:
    """A difference of metrics for tables: one decimal with its sign, or a dash for NaN."""
    if isnan(difference):
        return "–"
    text = f"{difference:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def _six(precision: Floats) -> dict[str, float]:
    """The six metrics, as means of the precisions (10, 101, K, 4) that are defined."""
    parts = (
        precision[..., 0],
        precision[0, ..., 0],
        precision[5, ..., 0],
        precision[..., 1],
        precision[..., 2],
        precision[..., 3],
    )
    return {name: _mean(part) for name, part in zip(METRICS, parts, strict=True)}


def _mean(values: Floats) -> float:
    defined = values[values > -1]
    return 100 * float(defined.mean()) if defined.size else nan


def _check(annotations: Annotations, detections: Sequence["Detection"]) -> None:
    if len(detections) != len(annotations):
        raise ValueError(f"{annotations.name} has {len(annotations)} images, got detections of {len(detections)}")
    classes = len(annotations.class_names)
    for index, detection in enumerate(detections):
        boxes, scores, labels = detection["boxes"], detection["scores"], detection["labels"]
        where = f"detections of image {index} of {annotations.name}"
        if boxes.shape != (len(scores), 4) or labels.shape != scores.shape:
            raise ValueError(
                f"{where}: need boxes (D, 4), scores (D,) and labels (D,), got "
                f"{tuple(boxes.shape)}, {tuple(scores.shape)} and {tuple(labels.shape)}"
            )
        if not scores.isfinite().all():
            raise ValueError(f"{where}: {int((~scores.isfinite()).sum())} of {len(scores)} scores are not finite")
        if not boxes.isfinite().all():
            raise ValueError(f"{where}: boxes must be finite")
        if (boxes[:, 2:] < boxes[:, :2]).any():
            raise ValueError(f"{where}: boxes must have x1 <= x2 and y1 <= y2")
        if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) <= classes:
            raise ValueError(f"{where}: labels must be in 1..{classes}, got {int(labels.min())}..{int(labels.max())}")


def _objects(annotations: Annotations) -> list[dict[str, Any]]:
    """The truth in COCO's format. Ids start at 1, because evaluators use id 0 for "no match"."""
    sizes = annotations.boxes[:, 2:] - annotations.boxes[:, :2]
    image_of_box = np.repeat(np.arange(len(annotations)), np.diff(annotations.first_box))
    return [
        {
            "id": m + 1,
            "image_id": int(image_of_box[m]) + 1,
            "category_id": int(annotations.labels[m]),
            "bbox": [*annotations.boxes[m, :2].tolist(), *sizes[m].tolist()],
            "area": float(annotations.areas[m]),
            "iscrowd": int(annotations.ignore[m]),
        }
        for m in range(len(annotations.boxes))
    ]


def _detected(detections: Sequence["Detection"]) -> list[dict[str, Any]]:
    """Detections in COCO's format, with image ids 1..N and category ids 1..K."""
    entries: list[dict[str, Any]] = []
    for index, detection in enumerate(detections):
        columns = (detection[key].tolist() for key in ("boxes", "scores", "labels"))
        for (left, top, right, bottom), score, label in zip(*columns, strict=True):
            entries.append(
                {
                    "id": len(entries) + 1,
                    "image_id": index + 1,
                    "category_id": label,
                    "bbox": [left, top, right - left, bottom - top],
                    "score": score,
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                }
            )
    return entries


def _silent(*_: object) -> None:
    """Print nothing, in place of the evaluator's messages."""


def _without_nan(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: None if isnan(value) else value for name, value in metrics.items()}


def _with_nan(metrics: dict[str, float | None]) -> dict[str, float]:
    return {name: nan if value is None else value for name, value in metrics.items()}
