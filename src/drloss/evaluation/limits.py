"""Whether a detector says more than it is allowed to: images that are full of detections."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drloss.structures import Detection

CONFIDENT = 0.5
"""Score of a detection that a picture shows unless told otherwise."""
SHARE = 0.5
"""Of the images; fewer that are full may be crowded ones."""


def full_images(detections: Sequence["Detection"], max_detections: int, threshold: float = CONFIDENT) -> str | None:
    """What to say where half of the images or more have as many detections as are kept, all of high scores.

    Args:
        detections: of each image, after non-maximum suppression.
        max_detections: kept of an image.
        threshold: score from which on a detection counts.
    Returns:
        Number, reason and remedy in words; None where it is fewer.
    """
    full = sum(int((image["scores"] >= threshold).sum()) >= max_detections for image in detections)
    if not full or full < SHARE * len(detections):
        return None
    return (
        f"{full} of {len(detections)} image(s) have {max_detections} detections of score {threshold:g} or more, "
        "all that max_detections keeps. Unless there are so many objects in them, the training was too short "
        "or its learning rate wrong: the classifier of a DR loss starts from scores of 0.5, and those of background "
        "have not fallen yet (P- in the log). More --max-iters help; a higher threshold only hides it"
    )
