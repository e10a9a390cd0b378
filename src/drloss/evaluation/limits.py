"""Images with as many confident detections as the detector may keep, which is a sign of poor training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drloss.structures import Detection

CONFIDENT = 0.5
"""Score from which on a detection is confident; ``drloss predict`` draws from there if the file has no threshold."""
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
    full = sum(is_full(image, max_detections, threshold) for image in detections)
    return full_message(full, len(detections), max_detections, threshold)


def is_full(image: "Detection", max_detections: int, threshold: float) -> bool:
    """Whether an image has as many detections of this score or more as the detector may keep."""
    return int((image["scores"] >= threshold).sum()) >= max_detections


def full_message(full: int, images: int, max_detections: int, threshold: float) -> str | None:
    """The warning of :func:`full_images` if ``full`` of so many images are full; None below that share."""
    if not full or full < SHARE * images:
        return None
    return (
        f"{full} of {images} image(s) have {max_detections} detections of score {threshold:g} or more, "
        "the most that max_detections allows. Unless they have so many objects, the training was too short "
        "or its learning rate wrong: with a DR loss all scores start at 0.5, and those of the background "
        "have not fallen yet (P- in the log). More --max-iters help; a higher threshold only hides the problem"
    )
