"""What the losses are compared with: the authors' published DR loss, and torchvision's focal loss."""

from math import log

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss


def authors_dr_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The formula of ``sigmoid_dr_loss.py`` in idstcv/DR_loss, weight τ = 4 included.

    All candidates that it is given are one distribution, gathered by masks; the softmax is in the logits' dtype.

    Args:
        logits: (..., A, K).
        labels: (..., A) integer, -1 ignored, 0 background, 1..K.
    Returns:
        Scalar of the logits' dtype.
    """
    classes = torch.arange(1, logits.shape[-1] + 1, device=logits.device)
    label = labels.unsqueeze(-1)
    positive = logits[label == classes].sigmoid()
    negative = logits[(label != classes) & (label >= 0)].sigmoid()
    expected_neg = (torch.softmax(negative / (0.1 / log(3.5)), dim=0) * negative).sum()
    expected_pos = (torch.softmax(-positive, dim=0) * positive).sum() if positive.numel() else 1.0
    return 4 * torch.log(1 + torch.exp(6 * (expected_neg - expected_pos + 0.5))) / 6


def torchvision_focal(logits: Tensor, labels: Tensor) -> Tensor:
    """One-hot targets, the sum divided by the positives."""
    targets = torch.nn.functional.one_hot(labels.clamp(min=0), logits.shape[2] + 1)[..., 1:].to(logits.dtype)
    counted = labels >= 0
    return sigmoid_focal_loss(logits[counted], targets[counted], reduction="sum") / (labels > 0).sum().clamp(min=1)
