"""Images with the truth and the detections of each run, side by side."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from drloss.data.annotations import Annotations
from drloss.evaluation.drawing import draw_detections, mosaic
from drloss.structures import Detection


def gallery(val: Annotations, runs: Sequence[Sequence[Detection]], images: Sequence[int]) -> Image.Image:
    """A picture with a row for each image: the truth, then the detections of each run.

    Each run shows its best boxes, over all images as many as there are objects. A common threshold would be unfair,
    because the scores of different losses have different scales.

    Args:
        val: the split.
        runs: detections of every image, for each run.
        images: indices of the images to show.
    """
    thresholds = [fair_threshold(detections, counted(val)) for detections in runs]
    tiles = []
    for i in images:
        image = val.load_image(i)
        tiles.append(_with_boxes(val, i, image))
        for detections, threshold in zip(runs, thresholds, strict=True):
            tiles.append(draw_detections(image, detections[i], val.class_names, threshold=threshold))
    return mosaic(tiles, columns=1 + len(runs))


def truth(annotations: Annotations, images: Sequence[int], columns: int) -> Image.Image:
    """A picture of some images of a split, by their positions, each with its boxes."""
    return mosaic([_with_boxes(annotations, i, annotations.load_image(i)) for i in images], columns=columns)


def _with_boxes(annotations: Annotations, index: int, image: Tensor) -> Image.Image:
    """An image with its boxes; ignored ones get class names of their own."""
    names = [*annotations.class_names, *(f"{name}, ignored" for name in annotations.class_names)]
    own = annotations.boxes_of(index)
    boxes: Detection = {
        "boxes": torch.from_numpy(annotations.boxes[own]).float(),
        "scores": torch.ones(own.stop - own.start),
        "labels": torch.from_numpy(annotations.labels[own] + len(annotations.class_names) * annotations.ignore[own]),
    }
    return draw_detections(image, boxes, names, threshold=0.0, show_scores=False)


def counted(val: Annotations) -> int:
    """Number of objects to find: boxes that are not ignored."""
    return int((~val.ignore).sum())


def fair_threshold(detections: Sequence[Detection], objects: int) -> float:
    """The score that as many detections reach as there are objects."""
    scores = torch.cat([d["scores"] for d in detections]).sort(descending=True).values
    return float(scores[min(objects, len(scores)) - 1]) if len(scores) and objects else 1.0
