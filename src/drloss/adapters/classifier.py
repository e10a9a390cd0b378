"""Helpers of the adapters: the loss, the start of a host's classifier, its background channel, its labels."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from drloss.losses import ImageLoss, make_loss

SILENT = -20.0
"""Logit of a background channel that no loss trains: its score is 2e-9."""


def as_loss(loss: str | ImageLoss, *, inplace: bool = True, gives: tuple[str, ...] = ("objects",)) -> ImageLoss:
    """The loss module of that name, or the module itself.

    Args:
        loss: the module or its name.
        inplace: whether the loss may overwrite the logits, because nothing else in the host's step reads them.
        gives: what the adapter gives the loss with each batch beside the labels.
    Raises:
        TypeError: if it is neither a loss module nor a name.
        ValueError: if the name is unknown, or a parameter is out of range.
    """
    chosen: Any = make_loss(loss) if isinstance(loss, str) else loss
    if not isinstance(chosen, ImageLoss):
        name = getattr(loss, "__name__", type(loss).__name__)
        raise TypeError(f"loss must be a loss module, such as DRLoss(), or its name, such as 'dr', got {name}")
    if not inplace and getattr(chosen, "inplace", False):
        raise ValueError("inplace must be False for this model: other parts of its step read the logits, too")
    if unknown := set(chosen.needs) - set(gives):
        raise ValueError(
            f"loss must not need {', '.join(sorted(unknown))} with each batch, which the adapter of this model does "
            f"not know, got {chosen}"
        )
    module: ImageLoss = chosen
    return module


def of_batch(loss: ImageLoss, objects: Callable[[], Tensor]) -> dict[str, Tensor]:
    """What the loss needs with each batch beside the labels.

    Args:
        loss: that of :func:`as_loss`.
        objects: computes the index (N, A) of each positive anchor's object in its image.
    """
    return {"objects": objects()} if "objects" in loss.needs else {}


def objects_of_boxes(boxes: Tensor, labels: Tensor, tolerance: float = 0.0) -> Tensor:
    """Index (N, A) int64 of each positive anchor's object in its image, told by the box that the anchor is to find.

    Args:
        boxes: (N, A, 4).
        labels: (N, A), positive where above 0.
        tolerance: most by which the coordinates of one object's boxes differ.
    """
    objects = torch.full_like(labels, -1)
    for of_image, row, classes in zip(objects, boxes, labels, strict=True):
        positive = classes > 0
        told = torch.cat([classes.unsqueeze(1).to(row), row], dim=1)[positive]
        if tolerance and len(told):  # an object is known by the first of its anchors
            of_image[positive] = (torch.cdist(told, told, p=torch.inf) <= tolerance).int().argmax(dim=1)
        else:
            of_image[positive] = torch.unique(told, dim=0, return_inverse=True)[1]
    return objects


def become(module: Any, own: type, adapted: type) -> None:
    """Change the class of a host's object to the adapted one; an adapted object stays as it is.

    Raises:
        TypeError: if it has any other class, a subclass included.
    """
    if type(module) not in (own, adapted):
        raise TypeError(
            f"adapt knows {own.__name__} of {own.__module__.partition('.')[0]}, not {type(module).__name__}, "
            "which may differ"
        )
    module.__class__ = adapted


def bias_of(probability: float) -> float:
    """Logit of a probability in (0, 1): 0 for 0.5, -4.6 for 0.01."""
    return math.log(probability / (1 - probability))


def is_untrained(
    layers: Iterable[nn.Conv2d | nn.Linear],
    *,
    starts: Iterable[float] = (),
    classes: int = 1,
    background: int | None = None,
) -> bool:
    """Whether the biases of each layer are still as initialised.

    Several biases are then all the same number, which they are not after training. A single bias must be one that
    classifiers start from: that of a score of 0.5 or 0.01, or one of the host's.

    Args:
        layers: last layers of the classifiers.
        starts: biases that the host's classifiers start from.
        classes, background: as for :func:`start_from`; the biases of a background channel do not count.
    """
    known = [0.0, bias_of(0.01), *starts]
    for layer in layers:
        if layer.bias is None:
            continue
        bias = layer.bias.detach().float().reshape(-1, classes)
        if background is not None:
            bias = bias[:, torch.arange(classes) != background]
        if bool((bias != bias.flatten()[0]).any()):
            return False
        if bias.numel() == 1 and all(abs(float(bias) - start) > 0.02 for start in known):
            return False
    return True


@torch.no_grad()
def start_from(
    layers: Iterable[nn.Conv2d | nn.Linear], probability: float, *, classes: int, background: int | None = None
) -> None:
    """Set biases so that classifiers start from a score.

    Args:
        layers: last layers of the classifier; their channels are anchors × classes, the classes innermost.
        probability: the score of every candidate, but for the contribution of the weights.
        classes: K of the layers, with a background channel.
        background: index of a background channel, whose score is set to nearly 0; None if there is none.
    """
    for layer in layers:
        bias = layer.bias
        if bias is None:
            raise ValueError("the classifier's last layer has no bias to start from a probability with")
        bias.fill_(bias_of(probability))
        if background is not None:
            layer.weight[background::classes] = 0
            bias[background::classes] = SILENT


def labels_of(matched: Tensor, classes: Tensor, *, ignored: int | None = None) -> Tensor:
    """Labels of one image's anchors from a host's matching.

    Args:
        matched: (A,) index of the box of each anchor, negative if it has none.
        classes: (B,) of the boxes, 1..K.
        ignored: value of ``matched`` for an ignored anchor; None if the host has no such value.
    Returns:
        (A,) int64: -1 ignored, 0 background, 1..K.
    """
    labels = matched.new_zeros(matched.shape, dtype=torch.int64)
    found = matched >= 0
    labels[found] = classes.to(torch.int64)[matched[found]]
    if ignored is not None:
        labels[matched == ignored] = -1
    return labels
