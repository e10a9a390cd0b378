"""torchvision's RetinaNet, FCOS, SSD and SSDlite with a loss of drloss.

torchvision counts the background as class 0: a model for K classes is built with ``num_classes=K + 1`` and labels are
1..K. RetinaNet and FCOS have a background channel that never holds an object; it is left out of the loss, and its
score is set to nearly 0 in detections. SSD's softmax needs the channel: the logit of a class is the log odds of its
softmax probability, so that the loss and the detections have the same scores.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetClassificationHead
from torchvision.models.detection.ssd import SSD

from drloss.adapters.classifier import SILENT, as_loss, become, is_untrained, labels_of, of_batch, start_from
from drloss.losses import ImageLoss

Targets = list[dict[str, Tensor]]


def adapt(
    model: nn.Module, loss: str | ImageLoss = "dr", *, background: bool = True, reset: bool | None = None
) -> nn.Module:
    """Replace the classification loss of a RetinaNet, an FCOS or an SSD.

    Args:
        model: a model of torchvision with torchvision's own head; it is changed in place.
        loss: a loss module or its name.
        background: whether class 0 is the background, as in torchvision. Use False for a RetinaNet or FCOS whose
            labels are 0..K-1.
        reset: whether to reset the classifier to the loss's prior; by default only if it was never trained. An SSD
            has no such prior: the scores of its softmax start at 1/(K + 1).
    Returns:
        The model.
    Raises:
        TypeError: if the model has any other class, or its head is not torchvision's own.
        ValueError: if the loss does not fit.
    """
    chosen = as_loss(loss)
    adapted: nn.Module = model
    if isinstance(model, SSD):
        if not background:
            raise ValueError("background must be True for an SSD: its softmax needs the channel")
        if reset:
            raise ValueError("reset must not be given for an SSD: the scores of its softmax start at 1/(K + 1)")
        _require_objects(model.head.classification_head.num_columns)
        become(model, SSD, DRSSD)
        model.add_module("drloss", chosen)
        return adapted
    if not isinstance(model, (RetinaNet, FCOS)):
        raise TypeError(f"model must be a RetinaNet, FCOS or SSD of torchvision, got {type(model).__name__}")
    head: Any = model.head
    classifier = head.classification_head
    classes, silent = int(classifier.num_classes), 0 if background else None
    if background:
        _require_objects(classes)
    if isinstance(model, FCOS):
        become(head, FCOSHead, DRFCOSHead)
        holder = head
    else:
        become(classifier, RetinaNetClassificationHead, DRRetinaNetHead)
        holder = classifier
    holder.add_module("drloss", chosen)
    holder.background = background
    layer = classifier.cls_logits
    if is_untrained([layer], classes=classes, background=silent) if reset is None else reset:
        start_from([layer], chosen.prior_probability, classes=classes, background=silent)
    return adapted


def _require_objects(classes: int) -> None:
    if classes < 2:
        raise ValueError(
            f"the model has num_classes={classes}, and class 0 is the background in torchvision: build it with one "
            "more than there are classes (or, for a RetinaNet or FCOS, say adapt(model, background=False))"
        )


def _object_classes(logits: Tensor, targets: Targets, background: bool) -> tuple[Tensor, list[Tensor]]:
    """Logits without a background channel, and each image's classes as 1..K."""
    classes = [target["labels"] for target in targets]
    if not background:
        return logits, [c + 1 for c in classes]
    _require_classes_from_one(targets, ", or say adapt(model, background=False)")
    return logits[..., 1:], classes


def _require_classes_from_one(targets: Targets, or_else: str = "") -> None:
    labels = [target["labels"] for target in targets]
    if labels and bool((torch.cat(labels) == 0).any()):  # read at once: each look waits for the device
        raise ValueError(
            f"targets have label 0, which is the background in torchvision: count the classes from 1{or_else}"
        )


class DRRetinaNetHead(RetinaNetClassificationHead):  # type: ignore[misc]
    """The classification head of a RetinaNet with a loss of drloss."""

    drloss: ImageLoss
    background: bool

    def forward(self, x: list[Tensor]) -> Tensor:
        """(N, A, K) logits of feature maps; in detection the background, which is not trained, scores nearly 0."""
        logits: Tensor = super().forward(x)
        if self.background and not self.training:
            logits[..., 0] = SILENT
        return logits

    def compute_loss(self, targets: Targets, head_outputs: dict[str, Tensor], matched_idxs: list[Tensor]) -> Tensor:
        """Loss of a batch; anchors between the matcher's thresholds are ignored."""
        logits, classes = _object_classes(head_outputs["cls_logits"], targets, self.background)
        labels = [
            labels_of(m, c, ignored=self.BETWEEN_THRESHOLDS) for m, c in zip(matched_idxs, classes, strict=True)
        ]
        extra = of_batch(self.drloss, lambda: torch.stack(matched_idxs))
        loss: Tensor = self.drloss(logits, torch.stack(labels), **extra)
        return loss


class DRFCOSHead(FCOSHead):  # type: ignore[misc]
    """The head of an FCOS with a loss of drloss for the classes; boxes and centreness are torchvision's."""

    drloss: ImageLoss
    background: bool

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        """Outputs for feature maps; in detection the background, which is not trained, scores nearly 0."""
        outputs: dict[str, Tensor] = super().forward(x)
        if self.background and not self.training:
            outputs["cls_logits"][..., 0] = SILENT
        return outputs

    def compute_loss(
        self,
        targets: Targets,
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Losses of a batch."""
        logits, classes = _object_classes(head_outputs["cls_logits"], targets, self.background)
        labels = [labels_of(m, c) for m, c in zip(matched_idxs, classes, strict=True)]
        one_class = [{**target, "labels": torch.zeros_like(target["labels"])} for target in targets]
        outputs = {**head_outputs, "cls_logits": logits.new_zeros(*logits.shape[:2], 1)}
        losses: dict[str, Tensor] = super().compute_loss(one_class, outputs, anchors, matched_idxs)
        extra = of_batch(self.drloss, lambda: torch.stack(matched_idxs))
        return {**losses, "classification": self.drloss(logits, torch.stack(labels), **extra)}


class DRSSD(SSD):  # type: ignore[misc]
    """An SSD with a loss of drloss on the log odds of its softmax."""

    drloss: ImageLoss

    @property
    def drloss_start(self) -> float:
        """Score that a classifier with random weights starts from."""
        return 1 / float(self.head.classification_head.num_columns)

    def compute_loss(
        self,
        targets: Targets,
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Losses of a batch."""
        _require_classes_from_one(targets)
        logits = log_odds(head_outputs["cls_logits"])[..., 1:]
        labels = [labels_of(m, t["labels"]) for m, t in zip(matched_idxs, targets, strict=True)]
        outputs = {**head_outputs, "cls_logits": logits.new_zeros(*logits.shape[:2], 2)}
        one_class = [{**target, "labels": torch.ones_like(target["labels"])} for target in targets]
        losses: dict[str, Tensor] = super().compute_loss(one_class, outputs, anchors, matched_idxs)
        extra = of_batch(self.drloss, lambda: torch.stack(matched_idxs))
        return {**losses, "classification": self.drloss(logits, torch.stack(labels), **extra)}


def log_odds(logits: Tensor) -> Tensor:
    r"""Logits whose sigmoid is the softmax of others: $\log p - \log(1 - p)$ for each class.

    Args:
        logits: (..., K), any floating dtype.
    Returns:
        (..., K) float32, float64 for float64.
    """
    logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    # A probability that rounds to 1 has infinite log odds: they are clamped to those of 1 - eps.
    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    return logp - torch.log(-torch.expm1(logp))
