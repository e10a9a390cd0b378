"""EfficientDet of ``effdet`` with a loss of drloss, in its training bench.

    bench = adapt(effdet.create_model("tf_efficientdet_d0", bench_task="train", num_classes=20, bench_labeler=True))

effdet's own class loss is a focal loss with label smoothing, summed over the batch and divided by its number of
positives. It labels anchors -1 for background, -2 for ignored and 0..K-1 for the classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from drloss.adapters.classifier import as_loss, become, is_untrained, objects_of_boxes, of_batch, start_from
from drloss.losses import ImageLoss

try:
    from effdet import DetBenchTrain
    from effdet.loss import DetectionLoss
    from effdet.object_detection import BoxList, FasterRcnnBoxCoder
except ImportError as error:
    raise ImportError("drloss.adapters.effdet needs effdet: pip install effdet") from error


def adapt(model: nn.Module, loss: str | ImageLoss = "dr", *, reset: bool | None = None) -> nn.Module:
    """Replace the classification loss of a training bench.

    Args:
        model: a ``DetBenchTrain``; it is changed in place.
        loss: a loss module or its name.
        reset: whether to reset the classifier to the loss's prior; by default only if it was never trained.
    Returns:
        The model.
    Raises:
        TypeError: if the model has any other class.
        ValueError: if the loss does not fit.
    """
    chosen = as_loss(loss)
    if not isinstance(model, DetBenchTrain):
        raise TypeError(f'model must be a DetBenchTrain, of bench_task="train", got {type(model).__name__}')
    become(model.loss_fn, DetectionLoss, DRDetectionLoss)
    model.loss_fn.add_module("drloss", chosen)
    model.loss_fn.anchors = (model.anchors,)
    predict: Any = model.model.class_net.predict
    layer = [module for module in predict.modules() if isinstance(module, nn.Conv2d)][-1]
    if is_untrained([layer]) if reset is None else reset:
        start_from([layer], chosen.prior_probability, classes=model.num_classes)
    adapted: nn.Module = model
    return adapted


class DRDetectionLoss(DetectionLoss):  # type: ignore[misc]
    """effdet's loss, with a loss of drloss for the classes; the box loss is effdet's."""

    drloss: ImageLoss
    anchors: tuple[Any]  # no module of its own, whose buffers would be in the state dict twice

    def forward(
        self,
        cls_outputs: list[Tensor],
        box_outputs: list[Tensor],
        cls_targets: list[Tensor],
        box_targets: list[Tensor],
        num_positives: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Total loss, class loss and box loss of levels (N, A·K, H, W) and targets (N, H, W, A)."""
        # Detached: only the box loss of the host's losses is used.
        silent = [c.detach() for c in cls_outputs]
        _, _, box = super().forward(silent, box_outputs, cls_targets, box_targets, num_positives)
        labels = torch.cat([t.flatten(1) for t in cls_targets], dim=1)
        labels = torch.where(labels == -2, -1, labels + 1)
        extra = of_batch(self.drloss, lambda: objects_of_boxes(self._boxes(box_targets), labels, tolerance=0.05))
        cls = self.drloss(cls_outputs, labels, **extra)
        return cls + self.box_loss_weight * box, cls, box

    def _boxes(self, box_targets: list[Tensor]) -> Tensor:
        """(N, A, 4) boxes in pixels, of which the targets (N, H, W, A·4) are the distances from the anchors."""
        images = len(box_targets[0])
        codes = torch.cat([level.reshape(images, -1, 4) for level in box_targets], dim=1)
        anchors = BoxList(self.anchors[0].boxes.repeat(images, 1))
        boxes: Tensor = FasterRcnnBoxCoder().decode(codes.reshape(-1, 4), anchors).boxes()
        return boxes.view_as(codes)
