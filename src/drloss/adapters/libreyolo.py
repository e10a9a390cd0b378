"""YOLO9 of LibreYOLO with a loss of drloss.

    model = adapt(LibreYOLO9Model(config="t", nb_classes=20))  # or the .model of a LibreYOLO9

LibreYOLO's own loss of the classes is a binary cross-entropy with soft targets, summed over the batch, divided by the
sum of the targets and weighted by 0.5. An anchor that is assigned to an object, however softly, is a positive here.
Boxes and assignment are the host's.
"""

from typing import Any

import torch
from torch import Tensor, nn

from drloss.adapters.classifier import as_loss, become, is_untrained, objects_of_boxes, of_batch, start_from
from drloss.losses import ImageLoss

try:
    from libreyolo.models.yolo9.loss import YOLO9Loss
    from libreyolo.models.yolo9.nn import DDetect, LibreYOLO9Model
except ImportError as error:
    raise ImportError("drloss.adapters.libreyolo needs libreyolo: pip install libreyolo") from error

OWN_START = -10.0
"""Bias that the host's classifier starts from."""


def adapt(model: nn.Module, loss: str | ImageLoss = "dr", *, reset: bool | None = None) -> nn.Module:
    """Replace the classification loss of a YOLO9, and of its auxiliary head if there is one.

    Args:
        model: a ``LibreYOLO9Model``; it is changed in place.
        loss: a loss module or its name.
        reset: whether to reset the classifiers to the loss's prior; by default only if they were never trained.
    Returns:
        The model.
    Raises:
        TypeError: if the model or its head has any other class.
        ValueError: if the loss does not fit.
    """
    chosen = as_loss(loss)
    become(model, LibreYOLO9Model, DRLibreYOLO9Model)
    adapted: Any = model
    heads = [head for head in (adapted.head, adapted.aux_head) if head is not None]
    for head in heads:
        become(head, DDetect, DRDDetect)
        head._loss_fn = None  # an earlier criterion would stay in use
        head.drloss = chosen
    layers = [tower[-1] for head in heads for tower in head.cv3]
    if is_untrained(layers, starts=[OWN_START]) if reset is None else reset:
        start_from(layers, chosen.prior_probability, classes=adapted.nc)
    return model


def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Losses of a training step on images and targets as LibreYOLO's trainer hands them to the model."""
    images, targets = batch
    losses = model(images, targets)
    return {name: losses[f"{name}_loss"] for name in ("box", "dfl", "cls")}


class DRLibreYOLO9Model(LibreYOLO9Model):  # type: ignore[misc]
    """A YOLO9 whose heads have a loss of drloss."""

    @property
    def drloss_calls(self) -> int:
        """Number of candidate sets: the auxiliary head has one of its own."""
        return 1 if self.aux_head is None or self.aux_weight <= 0 else 2

    @property
    def drloss_shares(self) -> tuple[float, ...] | None:
        """Weights of the candidate sets."""
        return None if self.drloss_calls == 1 else (1.0, self.aux_weight)


class DRDDetect(DDetect):  # type: ignore[misc]
    """A head whose criterion has a loss of drloss for the classes."""

    drloss: ImageLoss

    def _get_loss_fn(self, device: Any) -> Any:
        criterion = super()._get_loss_fn(device)
        if type(criterion) is YOLO9Loss:
            become(criterion, YOLO9Loss, DRYOLO9Loss)
            criterion.drloss, criterion.cls_loss, criterion.cls_weight = self.drloss, criterion.of_classes, 1.0
        return criterion


class DRYOLO9Loss(YOLO9Loss):  # type: ignore[misc]
    """The host's criterion with a loss of drloss for the classes."""

    drloss: ImageLoss
    matcher: Any
    _assigned: Tensor

    def __call__(self, predictions: list[Tensor], targets: Tensor) -> dict[str, Any]:
        """Losses of a batch; see the host's."""
        own, self.matcher = self.matcher, self._match
        self._own_matcher = own
        try:
            losses: dict[str, Any] = super().__call__(predictions, targets)
            return losses
        finally:
            self.matcher = own
            del self._own_matcher, self._assigned

    def _match(self, *args: Any) -> Any:
        found = self._own_matcher(*args)
        self._assigned = found[0]
        return found

    def of_classes(self, logits: Tensor, targets: Tensor, _: Tensor) -> Tensor:
        """Loss of logits (N, A, K) and soft targets (N, A, K); the host's normaliser is not used."""
        labels = torch.where((targets > 0).any(dim=2), targets.argmax(dim=2) + 1, 0)
        boxes = self._assigned[..., targets.shape[2] :]
        loss: Tensor = self.drloss(logits, labels, **of_batch(self.drloss, lambda: objects_of_boxes(boxes, labels)))
        return loss
