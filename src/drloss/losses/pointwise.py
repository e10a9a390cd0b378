r"""Losses that look at one candidate at a time: cross-entropy (Eq. 2) and the focal loss.

They are here as the rivals of the DR loss, with its signature, so that a study swaps one word. Both are sums over
the candidates of an image, divided by its number of positive anchors (at least 1) as a RetinaNet does. Hosts
differ on whether that count is taken per image or per batch; here it is per image, so that the loss of a batch is
the mean over its images on any number of devices.
"""

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional

from drloss.losses.candidates import Candidates, reduce_images, require_positive, split_candidates


def cross_entropy_loss(
    logits: Tensor | Sequence[Tensor],
    labels: Tensor | Sequence[Tensor],
    *,
    ignore: Tensor | Sequence[Tensor] | None = None,
    normalizer: str = "positives",
    reduction: str = "mean",
) -> Tensor:
    r"""Binary cross-entropy over all candidates, $\sum_{j_+} -\log p_{j_+} + \sum_{j_-} -\log(1 - p_{j_-})$.

    Paper: Eq. (2), the loss whose imbalance the paper sets out from.

    Args:
        logits, labels, ignore, reduction: see :func:`drloss.dr_loss`.
        normalizer: ``"positives"`` divides each image's sum by max(1, its positives); ``"none"`` is Eq. (2).
    Returns:
        float32 (float64 for float64 logits), a scalar, or (N,) for ``"none"``.
    Raises:
        ValueError, TypeError: as :func:`drloss.dr_loss`.

    >>> import torch
    >>> labels = torch.tensor([[1, 0, -1]])
    >>> cross_entropy_loss(torch.zeros(1, 3, 2), labels)  # 4 candidates of log 2 each, 1 positive
    tensor(2.7726)
    """
    candidates = split_candidates(logits, labels, ignore)
    return _sum_candidates(
        -functional.logsigmoid(candidates.positive),
        -functional.logsigmoid(candidates.negative),
        candidates,
        normalizer,
        reduction,
    )


def focal_loss(
    logits: Tensor | Sequence[Tensor],
    labels: Tensor | Sequence[Tensor],
    *,
    ignore: Tensor | Sequence[Tensor] | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
    normalizer: str = "positives",
    reduction: str = "mean",
) -> Tensor:
    r"""Focal loss, $-\alpha_t (1 - p_t)^\gamma \log p_t$ summed over the candidates of each image.

    Source: Lin et al., ICCV 2017 ([17] of the paper), Eq. (5); α = 0.25 and γ = 2 are its best. Here $p_t$ is the
    easiness: p of a positive, 1 - p of a negative.

    Args:
        logits, labels, ignore, reduction: see :func:`drloss.dr_loss`.
        alpha: α in [0, 1], the weight of positives; negatives get 1 - α.
        gamma: γ >= 0.
        normalizer: ``"positives"`` divides each image's sum by max(1, its positives); ``"none"`` does not.
    Returns:
        float32 (float64 for float64 logits), a scalar, or (N,) for ``"none"``.
    Raises:
        ValueError, TypeError: as :func:`drloss.dr_loss`.

    >>> import torch
    >>> labels = torch.tensor([[1, 0, -1]])
    >>> focal_loss(torch.zeros(1, 3, 2), labels)  # (0.25 + 3 · 0.75) · 0.25 · log 2
    tensor(0.4332)
    """
    _check_focal(alpha, gamma)
    candidates = split_candidates(logits, labels, ignore)

    def focal(signed: Tensor) -> Tensor:
        return -(torch.sigmoid(-signed) ** gamma) * functional.logsigmoid(signed)

    return _sum_candidates(
        alpha * focal(candidates.positive),
        (1 - alpha) * focal(candidates.negative),
        candidates,
        normalizer,
        reduction,
    )


def _check_focal(alpha: float, gamma: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    if not (isfinite(gamma) and gamma >= 0):
        raise ValueError(f"gamma must be finite and not negative, got {gamma}")


def _check_normalizer(normalizer: str) -> None:
    if normalizer not in ("positives", "none"):
        raise ValueError(f'normalizer must be "positives" or "none", got {normalizer!r}')


def _sum_candidates(
    positive: Tensor, negative: Tensor, candidates: Candidates, normalizer: str, reduction: str
) -> Tensor:
    _check_normalizer(normalizer)
    losses = torch.where(candidates.positive_mask, positive, 0.0).sum(dim=1)
    losses = losses + torch.where(candidates.negative_mask, negative, 0.0).sum(dim=1)
    if normalizer == "positives":
        losses = losses / candidates.positive_mask.sum(dim=1).clamp(min=1)
    return reduce_images(losses, reduction)


class CrossEntropyLoss(nn.Module):
    """``cls_weight`` · :func:`cross_entropy_loss` as a module.

    Args:
        cls_weight: weight beside the box loss.
        normalizer, reduction: see :func:`cross_entropy_loss`.
    Raises:
        ValueError: if a parameter is out of range.
    """

    prior_probability = 0.01
    """Score that the classifier starts from, as [17] found necessary for a sum over all candidates."""

    def __init__(self, cls_weight: float = 1.0, *, normalizer: str = "positives", reduction: str = "mean") -> None:
        super().__init__()
        require_positive(cls_weight=cls_weight)
        _check_normalizer(normalizer)
        reduce_images(torch.zeros(0), reduction)
        self.cls_weight = cls_weight
        self.normalizer = normalizer
        self.reduction = reduction

    def forward(
        self,
        logits: Tensor | Sequence[Tensor],
        labels: Tensor | Sequence[Tensor],
        *,
        ignore: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Weighted loss; arguments and result as in :func:`cross_entropy_loss`."""
        loss = cross_entropy_loss(logits, labels, ignore=ignore, normalizer=self.normalizer, reduction=self.reduction)
        return self.cls_weight * loss

    def extra_repr(self) -> str:
        """Parameters as they are shown by ``print(module)``."""
        return f"cls_weight={self.cls_weight}, normalizer={self.normalizer!r}, reduction={self.reduction!r}"


class FocalLoss(nn.Module):
    """``cls_weight`` · :func:`focal_loss` as a module.

    Args:
        cls_weight: weight beside the box loss.
        alpha, gamma, normalizer, reduction: see :func:`focal_loss`.
    Raises:
        ValueError: if a parameter is out of range.
    """

    prior_probability = 0.01
    """Score that the classifier starts from ([17], §3.3): bias -log(99)."""

    def __init__(
        self,
        cls_weight: float = 1.0,
        *,
        alpha: float = 0.25,
        gamma: float = 2.0,
        normalizer: str = "positives",
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        require_positive(cls_weight=cls_weight)
        _check_focal(alpha, gamma)
        _check_normalizer(normalizer)
        reduce_images(torch.zeros(0), reduction)
        self.cls_weight = cls_weight
        self.alpha = alpha
        self.gamma = gamma
        self.normalizer = normalizer
        self.reduction = reduction

    def forward(
        self,
        logits: Tensor | Sequence[Tensor],
        labels: Tensor | Sequence[Tensor],
        *,
        ignore: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Weighted loss; arguments and result as in :func:`focal_loss`."""
        loss = focal_loss(
            logits,
            labels,
            ignore=ignore,
            alpha=self.alpha,
            gamma=self.gamma,
            normalizer=self.normalizer,
            reduction=self.reduction,
        )
        return self.cls_weight * loss

    def extra_repr(self) -> str:
        """Parameters as they are shown by ``print(module)``."""
        return (
            f"cls_weight={self.cls_weight}, alpha={self.alpha}, gamma={self.gamma}, "
            f"normalizer={self.normalizer!r}, reduction={self.reduction!r}"
        )
