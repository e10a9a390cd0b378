"""Images with as many confident detections as the detector may keep, which is a sign of poor training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drloss.structures import Detection

CONFIDENT = 0.5
"""Score from which on ``drloss predict`` draws a detection by default."""
SHARE = 0.5
"""Share of full images from which on there is a warning. Fewer may just be crowded images."""


def full_images(detections: Sequence["Detection"], max_detections: int, threshold: float = CONFIDENT) -> str | None:
    """A warning if at least half of the images are full of detections with high scores.

    Args:
        detections: of each image, after non-maximum suppression.
        max_detections: most detections that the detector keeps of an image.
        threshold: score from which on a detection counts.
    Returns:
        Number of full images, likely reason and remedy; None below that share.
    """
    full = sum(int((image["scores"] >= threshold).sum()) >= max_detections for image in detections)
    if not full or full < SHARE * len(detections):
        return None
    return (
        f"{full} of {len(detections)} image(s) have {max_detections} detections of score {threshold:g} or more, "
        "the most that max_detections allows. Unless they have so many objects, the training was too short "
        "or its learning rate wrong: with a DR loss all scores start at 0.5, and those of the background "
        "have not fallen yet (P- in the log). More --max-iters help; a higher threshold only hides the problem"
    )
