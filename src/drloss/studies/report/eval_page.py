"""The page of an evaluation: which threshold to take, what is confused with what, and the worst mistakes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from drloss.data.annotations import Annotations
from drloss.evaluation import figures
from drloss.evaluation.coco import METRICS, percent
from drloss.evaluation.drawing import draw_boxes
from drloss.evaluation.mistakes import KINDS, Mistake, find_mistakes
from drloss.evaluation.plotting import colours, to_svg
from drloss.inference.evaluate import PAGE, Evaluated
from drloss.io.atomic import write_text
from drloss.studies.report.rendering import picture, render

SHOWN = 8
"""Most pictures of each kind of mistakes."""
TILE = 300
"""Width and height of a picture of a mistake, in pixels."""
MOST_CLASSES = 20
"""Most classes in the confusion matrix of the page: those with the most mistakes."""
AROUND = 2.0
"""Side of what a picture shows, in sides of the boxes."""
LEAST_AROUND = 48
"""Least side of what a picture shows, in pixels of the image."""
_FILTERS: dict[str, Callable[..., Any]] = {"percent": percent, "share": lambda value: f"{100 * value:.1f}"}


def write_eval_page(out: Path, annotations: Annotations, found: Evaluated) -> Path:
    """Write the page of an evaluation into its folder, atomically.

    Args:
        out: folder of the evaluation.
        annotations: the split, whose images are read for the pictures.
        found: what :func:`~drloss.inference.evaluate.evaluate_run` gave.
    Returns:
        Path of the page.
    Raises:
        DataError: if an image cannot be read.
    """
    mistakes = find_mistakes(annotations, found.detections, found.used)
    loss, best = found.description.loss, found.curve.best()
    colour = colours([loss])[0]
    drawn = [
        (
            Markup(to_svg(figures.threshold_choice(found.curve, colour), "f1", "Precision, recall and F1")),
            "All classes together, at IoU .50.",
        ),
        (
            Markup(to_svg(figures.precision_recall(loss, loss, found.evaluation), "pr", "Precision against recall")),
            "Precision against recall at IoU .50.",
        ),
    ]
    kinds = [(kind, f"{sum(m.kind == kind for m in mistakes.all):,}", words) for kind, words in KINDS.items()]
    groups = [
        (
            kind,
            [(picture(_tile(annotations, one)), _caption(annotations, one)) for one in mistakes.worst(kind, SHOWN)],
        )
        for kind in KINDS
    ]
    metrics = found.evaluation.metrics
    page = render(
        "eval.html",
        _FILTERS,
        title=f"{annotations.name}: {loss} with {found.description.detector.backbone}",
        headline=f"AP {percent(metrics['AP'])}, AP50 {percent(metrics['AP50'])}; "
        + (
            "nothing is found"
            if best is None
            else f"the best F1 is {best.f1:.2f}, at a score of {best.threshold:.3f}"
        ),
        metrics=METRICS,
        rows=[("all", metrics, best), *((n, found.evaluation.per_class[n], b) for n, b in found.best.items())],
        threshold=found.used,
        drawn=drawn,
        confusion=_shown_confusion(mistakes.confusion, annotations.class_names),
        kinds=kinds,
        groups=groups,
    )
    write_text(out / PAGE, page)
    return out / PAGE


def _shown_confusion(
    confusion: np.ndarray[Any, Any], names: Sequence[str]
) -> tuple[list[str], list[tuple[str, list[int]]], int]:
    """Names of the columns, the rows with their names, and how many classes are left out."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    count = (wrong.sum(axis=0) + wrong.sum(axis=1))[:-1]
    chosen = np.sort(np.argsort(-count, kind="stable")[:MOST_CLASSES])
    shown = [*chosen.tolist(), len(names)]
    rows = [
        ("no object" if k == len(names) else names[k], [int(confusion[k, column]) for column in shown]) for k in shown
    ]
    return [*(names[k] for k in chosen), "not found"], rows, len(names) - len(chosen)


def _tile(annotations: Annotations, mistake: Mistake) -> Image.Image:
    """The part of an image around a mistake: the object in a white frame, the detection in a dark orange one."""
    image = annotations.load_image(mistake.image)
    boxes = np.stack([box for box in (mistake.object_box, mistake.box) if box is not None])
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    size = np.array([image.shape[2], image.shape[1]])
    side = min(max(float((high - low).max()) * AROUND, LEAST_AROUND), float(size.max()))
    # Inside the image where it fits, so that no corner is empty.
    corner = np.where(side < size, np.clip((low + high - side) / 2, 0, size - side), (size - side) / 2)
    left, top = corner.tolist()
    whole = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    part = whole.transform(
        (TILE, TILE), Image.Transform.EXTENT, (left, top, left + side, top + side), Image.Resampling.BICUBIC
    )
    scale = TILE / side
    frames = [
        (tuple(((box - (left, top, left, top)) * scale).tolist()), ink)
        for box, ink in ((mistake.object_box, "#FFFFFF"), (mistake.box, "#D55E00"))
        if box is not None
    ]
    return draw_boxes(part, frames)


def _caption(annotations: Annotations, mistake: Mistake) -> str:
    names = annotations.class_names
    name = names[mistake.label - 1]
    words = name if mistake.score is None else f"{name} {mistake.score:.2f}"
    if mistake.object_label not in (None, mistake.label):
        words += f", is {names[mistake.object_label - 1]}"
    return f"{words} · {Path(annotations.image_name(mistake.image)).name}"
