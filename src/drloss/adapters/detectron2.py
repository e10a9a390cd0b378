"""RetinaNet and FCOS of detectron2 with a loss of drloss.

    model = adapt(build_model(cfg))

detectron2 divides its focal loss by a running mean of the number of positives. The box losses keep that normaliser.
"""

from typing import Any

import torch
from torch import Tensor, nn

from drloss.adapters.classifier import as_loss, become, is_untrained, objects_of_boxes, of_batch, start_from
from drloss.losses import ImageLoss

try:
    from detectron2.modeling.meta_arch.fcos import FCOS
    from detectron2.modeling.meta_arch.retinanet import RetinaNet
except ImportError as error:
    raise ImportError(
        "drloss.adapters.detectron2 needs detectron2, which is built from its source: "
        "pip install git+https://github.com/facebookresearch/detectron2"
    ) from error


def adapt(model: nn.Module, loss: str | ImageLoss = "dr", *, reset: bool | None = None) -> nn.Module:
    """Replace the classification loss of a RetinaNet or an FCOS.

    Args:
        model: a model of ``detectron2.modeling.meta_arch``; it is changed in place.
        loss: a loss module or its name.
        reset: whether to reset the classifier to the loss's prior; by default only if it was never trained.
    Returns:
        The model.
    Raises:
        TypeError: if the model has any other class.
        ValueError: if the loss does not fit.
    """
    chosen = as_loss(loss)
    adapted: Any = model
    if type(model) in (FCOS, DRFCOS):
        become(model, FCOS, DRFCOS)
    else:
        become(model, RetinaNet, DRRetinaNet)
    adapted.drloss = chosen
    layer = adapted.head.cls_score
    if is_untrained([layer]) if reset is None else reset:
        start_from([layer], chosen.prior_probability, classes=adapted.num_classes)
    return model


def step(model: Any, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Losses of a training step on a batch of detectron2's data loader."""
    losses: dict[str, Tensor] = model(batch)
    return losses


def _loss(
    loss: ImageLoss, logits: list[Tensor], gt_labels: list[Tensor], gt_boxes: list[Tensor], classes: int
) -> Tensor:
    """Loss of levels (N, A, K), and of labels (A,) and boxes (A, 4) of each image over all levels.

    A label is -1 for ignored, 0..K-1, or K for background.
    """
    labels = torch.stack(gt_labels)
    labels = torch.where(labels == classes, 0, torch.where(labels < 0, -1, labels + 1))
    extra = of_batch(loss, lambda: objects_of_boxes(torch.stack(gt_boxes), labels))
    value: Tensor = loss(logits, list(torch.split(labels, [level.shape[1] for level in logits], dim=1)), **extra)
    return value


class DRRetinaNet(RetinaNet):  # type: ignore[misc]
    """RetinaNet with a loss of drloss."""

    drloss: ImageLoss

    def losses(
        self, anchors: Any, pred_logits: list[Tensor], gt_labels: list[Tensor], *args: Any
    ) -> dict[str, Tensor]:
        """The host's losses, with ``loss_cls`` replaced."""
        silent = [level.detach() for level in pred_logits]
        own: dict[str, Tensor] = super().losses(anchors, silent, gt_labels, *args)
        return {**own, "loss_cls": _loss(self.drloss, pred_logits, gt_labels, args[1], self.num_classes)}


class DRFCOS(FCOS):  # type: ignore[misc]
    """FCOS with a loss of drloss."""

    drloss: ImageLoss

    def losses(
        self, anchors: Any, pred_logits: list[Tensor], gt_labels: list[Tensor], *args: Any
    ) -> dict[str, Tensor]:
        """The host's losses, with ``loss_fcos_cls`` replaced."""
        silent = [level.detach() for level in pred_logits]
        own: dict[str, Tensor] = super().losses(anchors, silent, gt_labels, *args)
        return {**own, "loss_fcos_cls": _loss(self.drloss, pred_logits, gt_labels, args[1], self.num_classes)}
