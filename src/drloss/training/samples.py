"""Pictures of a few images of the validation split in TensorBoard, at each evaluation."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from drloss.data.annotations import Annotations
from drloss.evaluation.drawing import draw_detections, draw_truth, mosaic
from drloss.evaluation.thresholds import counted, fair_threshold
from drloss.structures import Detection
from drloss.training.trainer import Trainer

LONGEST = 1280
"""Pixels to which the longer side of a picture, which has an image twice, is made smaller."""


def chosen_images(val: Annotations, count: int) -> list[int]:
    """Places of up to ``count`` images: the same in every evaluation, and in every run on this split."""
    return [int(i) for i in np.random.default_rng(0).permutation(len(val))[:count]]


def log_samples(trainer: Trainer, detections: Sequence[Detection]) -> None:
    """Have rank 0 show the images with their boxes and, beside them, with what was found in this evaluation.

    The best detections are drawn, over the whole split as many as it has objects.

    Args:
        trainer: the run, after an evaluation.
        detections: of every image of its validation split.
    """
    val = trainer.val
    if trainer.log is None or val is None or not trainer.config.log_images:
        return
    threshold = fair_threshold(detections, counted(val))
    for index in chosen_images(val, trainer.config.log_images):
        picture = side_by_side(val, index, detections[index], threshold)
        trainer.log.show(f"samples/{val.image_name(index)}", trainer.iteration, picture)


def side_by_side(val: Annotations, index: int, detection: Detection, threshold: float) -> Image.Image:
    """An image of a split with its own boxes, and again with its detections of score ``threshold`` or more."""
    image = val.load_image(index)
    found = draw_detections(image, detection, val.class_names, threshold=threshold)
    sheet = mosaic([draw_truth(val, index, image), found], columns=2)
    picture = Image.new("RGB", sheet.size, "white")
    picture.paste(sheet, mask=sheet)
    picture.thumbnail((LONGEST, LONGEST))
    return picture
