"""Images with the truth and the detections of each run, side by side."""

from collections.abc import Sequence

from PIL import Image

from drloss.data.annotations import Annotations
from drloss.evaluation.drawing import draw_detections, draw_truth, mosaic
from drloss.evaluation.thresholds import counted, fair_threshold
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
        tiles.append(draw_truth(val, i, image))
        for detections, threshold in zip(runs, thresholds, strict=True):
            tiles.append(draw_detections(image, detections[i], val.class_names, threshold=threshold))
    return mosaic(tiles, columns=1 + len(runs))


def truth(annotations: Annotations, images: Sequence[int], columns: int) -> Image.Image:
    """A picture of some images of a split, by their positions, each with its boxes."""
    return mosaic([draw_truth(annotations, i, annotations.load_image(i)) for i in images], columns=columns)
