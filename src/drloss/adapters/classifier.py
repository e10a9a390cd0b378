"""What the adapters do to a host's classifier: starting probability and background channel."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from drloss.losses import ImageLoss, make_loss

SILENT = -20.0
"""Bias of a background channel that no loss reaches: its score is 2e-9."""


def as_loss(loss: str | ImageLoss) -> ImageLoss:
    """A loss module, from itself or from its name.

    Raises:
        ValueError: if the name is unknown or a parameter does not fit.
    """
    return make_loss(loss) if isinstance(loss, str) else loss


def become(module: Any, own: type, adapted: type) -> None:
    """Make an object of a host's class one of ours; one that is ours already stays.

    Raises:
        TypeError: if it is of any other class.
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


def is_untrained(layers: Iterable[nn.Conv2d | nn.Linear]) -> bool:
    """Whether all biases of each layer are the same number, as initialisation leaves them and training does not."""
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return all(bool((bias == bias[0]).all()) for bias in biases)


@torch.no_grad()
def start_from(
    layers: Iterable[nn.Conv2d | nn.Linear], probability: float, *, classes: int, background: int | None = None
) -> None:
    """Let classifiers start from a probability.

    Args:
        layers: last layers of the classifier; their channels are anchors × classes, the classes innermost.
        probability: score that every candidate starts from, up to what the weights add.
        classes: K of the layers, a background channel included.
        background: index of a background channel, which is silenced; None where there is none.
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
        matched: (A,) index of the box of each anchor, negative for none.
        classes: (B,) of the boxes, 1..K.
        ignored: value of ``matched`` that means neither; None where the host has none.
    Returns:
        (A,) int64: -1 ignored, 0 background, 1..K.
    """
    labels = matched.new_zeros(matched.shape, dtype=torch.int64)
    found = matched >= 0
    labels[found] = classes.to(torch.int64)[matched[found]]
    if ignored is not None:
        labels[matched == ignored] = -1
    return labels
