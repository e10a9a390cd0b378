"""YOLO detection models of ``ultralytics`` with a loss of drloss, through the model's public ``init_criterion``.

ultralytics is under the AGPL-3.0. Nothing of it is copied here, and drloss does not depend on it: only this module
imports it, and only for a model of ultralytics.

Its trainer builds a model of its own, so adapt it there::

    class DRTrainer(DetectionTrainer):
        def get_model(self, *args, **kwargs):
            return adapt(super().get_model(*args, **kwargs))

    YOLO("yolo11n.pt").train(data="coco8.yaml", trainer=DRTrainer)

The soft targets of the assigner say how well a box fits. Here a candidate whose target is above 0 is a positive.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from drloss.adapters.classifier import as_loss, become, is_untrained, of_batch, start_from
from drloss.losses import ImageLoss

try:
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils.loss import E2ELoss, v8DetectionLoss
except ImportError as error:
    raise ImportError("drloss.adapters.ultralytics needs ultralytics (AGPL-3.0): pip install ultralytics") from error


def adapt(model: nn.Module, loss: str | ImageLoss = "dr", *, reset: bool | None = None) -> nn.Module:
    """Replace the classification loss of a YOLO detection model.

    Args:
        model: a ``DetectionModel`` of YOLOv8 or later; it is changed in place.
        loss: a loss module or its name.
        reset: whether to reset the classifier to the loss's prior; by default only if it was never trained.
    Returns:
        The model.
    Raises:
        TypeError: if the model has any other class.
        ValueError: if the loss does not fit.
    """
    chosen = as_loss(loss)
    become(model, DetectionModel, DRDetectionModel)
    adapted: Any = model
    adapted.criterion = None  # an earlier criterion would stay in use
    adapted.drloss = chosen
    heads = [adapted.model[-1].cv3, getattr(adapted.model[-1], "one2one_cv3", None)]
    layers = [level[-1] for head in heads if head is not None for level in head]
    head = adapted.model[-1]
    # The host's prior is 5 objects in an image of 640 pixels.
    starts = [math.log(5 / head.nc / (640 / float(stride)) ** 2) for stride in head.stride]
    if is_untrained(layers, starts=starts) if reset is None else reset:
        start_from(layers, chosen.prior_probability, classes=head.nc)
    return model


def step(model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Losses of a training step on a batch of ultralytics' data loader."""
    losses, _ = model(batch)
    return dict(zip(("box", "cls", "dfl"), losses / len(batch["img"]), strict=True))


class DRDetectionModel(DetectionModel):  # type: ignore[misc]
    """A detection model whose criterion has a loss of drloss for the classes."""

    drloss: ImageLoss

    @property
    def drloss_calls(self) -> int:
        """Number of candidate sets: a model without NMS has a second head, which has one positive for each box."""
        return 1 if getattr(self.model[-1], "one2one_cv3", None) is None else 2

    @property
    def drloss_shares(self) -> tuple[float, ...] | None:
        """Weights of the candidate sets, which change during training."""
        return (self.criterion.o2m, self.criterion.o2o) if isinstance(self.criterion, E2ELoss) else None

    def init_criterion(self) -> Any:
        """The host's criterion with the loss of drloss.

        Raises:
            ValueError: if the model has class weights (the setting ``cls_pw``).
        """
        if getattr(self, "class_weights", None) is not None:
            raise ValueError("cls_pw must be 0: a loss of drloss has no use for weights of the classes")
        criterion = super().init_criterion()
        for part in (criterion.one2many, criterion.one2one) if isinstance(criterion, E2ELoss) else (criterion,):
            become(part, v8DetectionLoss, DRv8DetectionLoss)
            part.drloss = self.drloss
        return criterion


class DRv8DetectionLoss(v8DetectionLoss):  # type: ignore[misc]
    """The host's detection loss with a loss of drloss for the classes; boxes and assignment are the host's."""

    drloss: ImageLoss
    bce: Any

    def get_assigned_targets_and_loss(
        self, preds: dict[str, Tensor], batch: dict[str, Any], **options: Any
    ) -> tuple[Any, Tensor, dict[str, Tensor]]:
        """Losses (box, cls, dfl) of a batch; the host multiplies all three by the number of images."""
        seen: list[Tensor] = []
        own, self.bce = self.bce, _Seen(seen)
        try:
            assigned, loss, items = super().get_assigned_targets_and_loss(preds, batch, **options)
        finally:
            self.bce = own
        positive = seen[0] > 0
        extra = of_batch(self.drloss, assigned[1].long)
        # Objects go with integer labels; the host assigns an anchor to one object, so that they say the same.
        labels = torch.where(positive.any(dim=2), seen[0].argmax(dim=2) + 1, 0) if extra else positive.to(seen[0])
        cls = self.drloss(preds["scores"].transpose(1, 2), labels, **extra)
        return assigned, torch.stack([loss[0], cls, loss[2]]), {**items, "cls_loss": cls.detach()}


class _Seen:
    """Replaces the host's binary cross-entropy, and keeps the targets of its call."""

    def __init__(self, seen: list[Tensor]) -> None:
        self.seen = seen

    def __call__(self, scores: Tensor, targets: Tensor) -> Tensor:
        self.seen.append(targets)
        return torch.zeros_like(scores)
