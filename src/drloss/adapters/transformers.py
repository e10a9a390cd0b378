"""Detection transformers of Hugging Face ``transformers`` with a loss of drloss.

    model = adapt(RTDetrForObjectDetection.from_pretrained(checkpoint, num_labels=20, ignore_mismatched_sizes=True))

Known are the models with a sigmoid a class: RT-DETR (v1, v2), Deformable DETR, Conditional DETR and DAB-DETR. An
image's candidates are its queries: those matched to a box are positive, all others negative. Each decoder layer that
has a loss of its own is a set of candidates of its own, and so are the encoder's proposals and RT-DETR's denoising
queries. DETR itself has a softmax with a no-object class, and is not taken.
"""

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from drloss.adapters.classifier import as_loss, is_untrained, start_from
from drloss.losses import ImageLoss

try:
    from transformers.loss.loss_deformable_detr import DeformableDetrImageLoss
    from transformers.loss.loss_rt_detr import RTDetrLoss
    from transformers.modeling_utils import PreTrainedModel
except ImportError as error:
    raise ImportError(
        "drloss.adapters.transformers needs transformers 5 and scipy: pip install transformers scipy"
    ) from error

CLASSIFIERS = ("class_embed", "enc_score_head", "class_labels_classifier")
"""Names of the modules with a classifier's last layers, in all models that are known."""
Matches = list[tuple[Tensor, Tensor]]
Outputs = dict[str, Tensor]
Targets = list[dict[str, Tensor]]


def adapt(model: nn.Module, loss: str | ImageLoss = "dr", *, reset: bool | None = None) -> nn.Module:
    """Put a loss in the place of the classification loss of a detection transformer.

    Args:
        model: for object detection; it is changed in place.
        loss: a loss module or its name.
        reset: whether the classifiers start anew from the loss's prior; by default where they were never trained.
    Returns:
        The model.
    Raises:
        TypeError: if the model is another.
        ValueError: if the loss does not fit.
    """
    chosen = as_loss(loss)
    adapted: Any = model
    function = adapted.loss_function if isinstance(model, PreTrainedModel) else None
    if isinstance(function, Criterion):
        function.drloss = chosen
    else:
        # By the property itself: assigning a module would register it and leave the property as it is.
        PreTrainedModel.loss_function.fset(model, Criterion(_known(model, function), chosen))
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(part in CLASSIFIERS for part in name.split("."))
    ]
    if is_untrained(layers) if reset is None else reset:
        start_from(layers, chosen.prior_probability, classes=layers[0].out_features)
    return model


def _known(model: nn.Module, function: Any) -> Callable[..., Any]:
    if isinstance(function, FunctionType) and any(name in function.__code__.co_names for name in CRITERIA):
        return function
    raise TypeError(f"adapt knows the losses of {', '.join(CRITERIA)}, which {type(model).__name__} does not have")


class Criterion(nn.Module):
    """The host's loss function, with a loss of drloss for the classes in the criterion that it makes.

    Args:
        function: of ``transformers.loss``; it is left as it is, a copy of it uses another criterion.
        loss: a loss module.
    """

    drloss_sets = "set of queries: decoder layers, the encoder's proposals, denoising"

    def __init__(self, function: Callable[..., Any], loss: ImageLoss) -> None:
        super().__init__()
        self.function = function
        self.drloss = loss

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the host's function returns."""
        function: Any = self.function
        own = {name: partial(criterion, drloss=self.drloss) for name, criterion in CRITERIA.items()}
        with_ours = FunctionType(
            function.__code__,
            {**function.__globals__, **own},
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        with_ours.__kwdefaults__ = function.__kwdefaults__
        return with_ours(*args, **kwargs)


def _labels(outputs: Outputs, targets: Targets, indices: Matches) -> Tensor:
    """(N, queries) of 0 and 1..K."""
    logits = outputs["logits"]
    labels = torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device)
    for row, target, (queries, boxes) in zip(labels, targets, indices, strict=True):
        row[queries.to(row.device)] = target["class_labels"].to(row.device)[boxes.to(row.device)] + 1
    return labels


class DRRTDetrLoss(RTDetrLoss):  # type: ignore[misc]
    """RT-DETR's criterion with a loss of drloss."""

    def __init__(self, config: Any, drloss: ImageLoss) -> None:
        super().__init__(config)
        self.drloss = drloss

    def loss_labels_vfl(
        self, outputs: Outputs, targets: Targets, indices: Matches, num_boxes: float, log: bool = True
    ) -> dict[str, Tensor]:
        """Loss of one set of queries; the number of boxes divides nothing."""
        return {"loss_vfl": self.drloss(outputs["logits"], _labels(outputs, targets, indices))}


class DRDeformableDetrLoss(DeformableDetrImageLoss):  # type: ignore[misc]
    """Deformable DETR's criterion with a loss of drloss."""

    def __init__(self, *args: Any, drloss: ImageLoss, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drloss = drloss

    def loss_labels(
        self, outputs: Outputs, targets: Targets, indices: Matches, num_boxes: float
    ) -> dict[str, Tensor]:
        """Loss of one set of queries; the number of boxes divides nothing."""
        return {"loss_ce": self.drloss(outputs["logits"], _labels(outputs, targets, indices))}


CRITERIA: dict[str, type[nn.Module]] = {
    "RTDetrLoss": DRRTDetrLoss,
    "DeformableDetrImageLoss": DRDeformableDetrLoss,
}
"""The host's criteria, and ours in their place."""
