"""MONAI's RetinaNet detector, in two and in three dimensions, with a loss of drloss.

    detector = adapt(RetinaNetDetector(network, anchor_generator))

MONAI samples candidates of all images into rows and takes the mean of a loss over them, the binary cross-entropy by
default. It counts the classes from 0 and has no background channel. Its matcher marks an anchor -1 for background and
-2 for neither. The sampler for the box loss stays as it is.
"""

from typing import Any

import torch
from torch import Tensor, nn

from drloss.adapters.classifier import as_loss, become, is_untrained, labels_of, of_batch, start_from
from drloss.losses import ImageLoss

try:
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
    from monai.apps.detection.networks.retinanet_network import RetinaNetClassificationHead
except ImportError as error:
    raise ImportError("drloss.adapters.monai needs MONAI: pip install monai") from error

NEITHER = -2
"""What MONAI's matcher gives an anchor whose overlap is between the thresholds."""


def adapt(model: nn.Module, loss: str | ImageLoss = "dr", *, reset: bool | None = None) -> nn.Module:
    """Replace the classification loss of a RetinaNet detector.

    Args:
        model: a ``RetinaNetDetector``; it is changed in place.
        loss: a loss module or its name.
        reset: whether to reset the classifier to the loss's prior; by default only if it was never trained.
    Returns:
        The model.
    Raises:
        TypeError: if the model has any other class.
        ValueError: if the loss does not fit, or the classifier is no head of MONAI's and ``reset`` is not False.
    """
    chosen = as_loss(loss)
    adapted: Any = model
    head: Any = getattr(getattr(model, "network", None), "classification_head", None)
    own_head = isinstance(head, RetinaNetClassificationHead)
    if isinstance(model, RetinaNetDetector) and reset is not False and not own_head:
        raise ValueError(
            "model.network has no classification_head of MONAI's: set the bias of its last layer so that scores "
            f"start at {chosen.prior_probability:g}, and say adapt(model, reset=False)"
        )
    become(model, RetinaNetDetector, DRRetinaNetDetector)
    adapted.drloss = chosen
    if own_head and reset is not False:
        layer: Any = head.cls_logits
        if reset or is_untrained([layer]):
            start_from([layer], chosen.prior_probability, classes=adapted.num_classes)
    return model


class DRRetinaNetDetector(RetinaNetDetector):  # type: ignore[misc]
    """The detector with a loss of drloss for the classes."""

    drloss: ImageLoss

    def compute_cls_loss(
        self, cls_logits: Tensor, targets: list[dict[str, Tensor]], matched_idxs: list[Tensor]
    ) -> Tensor:
        """Loss of logits (N, A, K); anchors between the matcher's thresholds are ignored."""
        classes = [target[self.target_label_key].to(torch.int64) + 1 for target in targets]
        labels = [labels_of(m, c, ignored=NEITHER) for m, c in zip(matched_idxs, classes, strict=True)]
        extra = of_batch(self.drloss, lambda: torch.stack(matched_idxs))
        loss: Tensor = self.drloss(cls_logits, torch.stack(labels), **extra)
        return loss
