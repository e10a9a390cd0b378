"""The whole detector as one function of tensors, from pixels to boxes: what a file for another runtime holds."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import nms

from drloss.detector.detections import DROPPED, FoundBoxes, find_boxes
from drloss.detector.model import RetinaNet


class Deployed(nn.Module):
    """A detector with its normalisation, its decoding and, if wanted, its NMS. It looks at nothing but shapes.

    Args:
        model: the detector; it is used as it is, in evaluation mode.
        suppress: whether NMS is part of it.
    """

    def __init__(self, model: RetinaNet, *, suppress: bool) -> None:
        super().__init__()
        self.model = model
        self.suppress = suppress
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of a batch. A place in which nothing was found has a score, label and box of 0.

        Args:
            images: (N, 3, H, W) uint8 RGB, resized and padded; H and W multiples of 32.
        Returns:
            (N, D, 4) float32 boxes xyxy in pixels of ``images``, clipped to them; (N, D) float32 scores; (N, D) int64
            labels, 1..K. With NMS, best first, and D is ``max_detections``. Without, level by level, and D is at most
            ``level_candidates`` for each level.
        """
        height, width = images.shape[2], images.shape[3]
        sizes = torch.stack([torch.full((), side, dtype=torch.float32) for side in (height, width)])
        sizes = sizes.to(images.device).expand(images.shape[0], 2)
        found = find_boxes(self.model(images), sizes, self.model.config)
        if self.suppress:
            found = self._suppressed(found, torch.sym_max(height, width) + 1)
        there = found.scores > DROPPED
        return found.boxes * there.unsqueeze(2), found.scores * there, found.labels * there

    def _suppressed(self, found: FoundBoxes, beyond: int | torch.SymInt) -> FoundBoxes:
        """The best ``max_detections`` after NMS per class: boxes of two classes lie ``beyond`` pixels apart."""
        config = self.model.config
        apart = found.boxes + found.labels.unsqueeze(2) * beyond
        kept = kept_by_nms(apart, found.scores, config.nms_threshold, config.max_detections)
        scores = torch.where(kept, found.scores, DROPPED)
        scores = functional.pad(scores, (0, config.max_detections), value=DROPPED)  # as many as that, even of fewer
        scores, order = scores.topk(config.max_detections)
        order = order.clamp(max=found.boxes.shape[1] - 1)
        boxes = found.boxes.gather(1, order.unsqueeze(2).expand(-1, -1, 4))
        return FoundBoxes(boxes, scores, found.labels.gather(1, order))


@torch.library.custom_op("drloss::kept_by_nms", mutates_args=())
def kept_by_nms(boxes: Tensor, scores: Tensor, threshold: float, most: int) -> Tensor:
    """Which boxes NMS keeps in each image. One operator, because its result has a shape that is known beforehand.

    Args:
        boxes: (N, C, 4) xyxy.
        scores: (N, C); those of 0 and less are no boxes.
        threshold: overlap (IoU) above which the lower-scored box is dropped.
        most: most boxes kept in an image.
    Returns:
        (N, C) bool.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for image in range(len(boxes)):
        some = (scores[image] > 0).nonzero().squeeze(1)
        best = nms(boxes[image, some], scores[image, some], threshold)[:most]
        kept[image, some[best]] = True
    return kept


@kept_by_nms.register_fake
def _(boxes: Tensor, scores: Tensor, threshold: float, most: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)
