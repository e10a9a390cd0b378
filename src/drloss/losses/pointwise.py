r"""Losses of single candidates, which the DR loss is compared with; they have its signature.

Each is a sum over the candidates of an image, divided by its number of positive candidates (at least 1), as in
RetinaNet. Libraries differ on whether they count per image or per batch. Here the count is per image, so that the
loss of a batch is the mean over its images on any number of devices; ``scope="pooled"`` takes sum and count over the
batch.
"""

from typing import TypedDict, Unpack

import torch
from torch import Tensor
from torch.nn import functional

from drloss.losses.candidates import (
    REDUCTIONS,
    Candidates,
    CandidateSet,
    candidates_of,
    keep_hardest,
    reduce_images,
    split_candidates,
)
from drloss.losses.fused.backends import check_backend, choose_backend
from drloss.losses.fused.loss import fused_loss
from drloss.losses.fused.rules import PointwiseRule
from drloss.losses.inputs import SCOPES, Inputs, Levels, check_inputs, values_can_be_checked
from drloss.losses.module import ImageLoss
from drloss.losses.parameters import require_choice, require_not_negative, require_positive
from drloss.losses.summation import total, wide

NORMALIZERS = ("positives", "none")


def cross_entropy_loss(
    logits: Levels,
    labels: Levels,
    *,
    ignore: Levels | None = None,
    normalizer: str = "positives",
    scope: str = "per_image",
    reduction: str = "mean",
    backend: str = "auto",
    inplace: bool = False,
) -> Tensor:
    r"""Binary cross-entropy over all candidates, $\sum_{j_+} -\log p_{j_+} + \sum_{j_-} -\log(1 - p_{j_-})$.

    Paper: Eq. (2), the loss whose imbalance is the paper's starting point (and Eq. (1), before the sum is split).

    Args:
        logits, labels, ignore, scope, reduction, backend, inplace: see :func:`drloss.dr_loss`.
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
    _check_options(normalizer=normalizer, scope=scope, reduction=reduction)
    inputs = check_inputs(logits, labels, ignore, None, None, scope)
    chosen = choose_backend(backend, inputs, inplace=inplace)
    if chosen != "torch":
        rule = PointwiseRule(0.0, 1.0, 1.0, normalizer, scope == "pooled")
        return fused_loss(inputs, rule, (0, 0), chosen, inplace, reduction)
    candidates = candidates_of(inputs, None, None, scope)
    losses = total(_cross_entropy(candidates.positive.signed)) + total(_cross_entropy(candidates.negative.signed))
    return _reduce(losses, candidates, normalizer, reduction)


def focal_loss(
    logits: Levels,
    labels: Levels,
    *,
    ignore: Levels | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
    normalizer: str = "positives",
    scope: str = "per_image",
    reduction: str = "mean",
    backend: str = "auto",
    inplace: bool = False,
) -> Tensor:
    r"""Focal loss, $-\alpha_t (1 - p_t)^\gamma \log p_t$ summed over the candidates of each image.

    Source: Lin et al., ICCV 2017 ([17] of the paper), Eq. (5); α = 0.25 and γ = 2 are its best. Here $p_t$ is the
    easiness: p of a positive, 1 - p of a negative.

    Args:
        logits, labels, ignore, scope, reduction, backend, inplace: see :func:`drloss.dr_loss`.
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
    _check_options(normalizer=normalizer, scope=scope, reduction=reduction, alpha=alpha, gamma=gamma)
    inputs = check_inputs(logits, labels, ignore, None, None, scope)
    chosen = choose_backend(backend, inputs, inplace=inplace)
    if chosen != "torch":
        rule = PointwiseRule(gamma, alpha, 1 - alpha, normalizer, scope == "pooled")
        return fused_loss(inputs, rule, (0, 0), chosen, inplace, reduction)
    candidates = candidates_of(inputs, None, None, scope)

    def focal(part: CandidateSet) -> Tensor:
        return total(_power_of_hardness(part.signed, gamma) * _cross_entropy(part.signed))

    losses = alpha * focal(candidates.positive) + (1 - alpha) * focal(candidates.negative)
    return _reduce(losses, candidates, normalizer, reduction)


def ohem_loss(
    logits: Levels,
    labels: Levels,
    *,
    ignore: Levels | None = None,
    ratio: float = 3.0,
    normalizer: str = "positives",
    scope: str = "per_image",
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy with online hard-example mining: the positives and the ``ratio`` · $n_+$ hardest negatives.

    Source: hard negative mining of SSD (Liu et al., ECCV 2016, [19] of the paper, §2.2), with at most 3 negatives for
    each positive. SSD ranks anchors by a softmax loss; here candidates are ranked by their sigmoid scores.

    Args:
        logits, labels, ignore, scope, reduction: see :func:`drloss.dr_loss`.
        ratio: negatives kept for each positive, > 0; their number is rounded down.
        normalizer: ``"positives"`` divides each image's sum by max(1, its positives); ``"none"`` does not.
    Returns:
        float32 (float64 for float64 logits), a scalar, or (N,) for ``"none"``. An image without positives keeps no
        negatives: its loss and gradient are 0, as in SSD.
    Raises:
        ValueError, TypeError: as :func:`drloss.dr_loss`.

    >>> import torch
    >>> labels = torch.tensor([[1, 0, 0, 0, 0]])
    >>> ohem_loss(torch.zeros(1, 5, 1), labels)  # 1 positive and 3 of 4 negatives, log 2 each
    tensor(2.7726)
    """
    _check_options(normalizer=normalizer, scope=scope, reduction=reduction, ratio=ratio)
    candidates = split_candidates(logits, labels, ignore, scope=scope)
    positive, negative = candidates.positive, candidates.negative
    wanted = torch.minimum((ratio * wide(positive.count)).floor().clamp(max=2.0**62).long(), negative.count)
    kept = _hardest(negative, wanted) * (wanted > 0)
    losses = total(_cross_entropy(positive.signed)) + total(kept * _cross_entropy(negative.signed))
    return _reduce(losses, candidates, normalizer, reduction)


def quality_focal_loss(
    logits: Levels,
    labels: Levels,
    *,
    ignore: Levels | None = None,
    quality: Levels | None = None,
    beta: float = 2.0,
    normalizer: str = "positives",
    scope: str = "per_image",
    reduction: str = "mean",
) -> Tensor:
    r"""Quality focal loss: $|y - p|^\beta$ times the cross-entropy between p and a soft target y.

    Source: Li et al., "Generalized Focal Loss", NeurIPS 2020, Eq. (3); β = 2 is its best. y is the quality at a
    positive candidate, and 0 at a negative one.

    Args:
        logits, labels, ignore, scope, reduction: see :func:`drloss.dr_loss`.
        quality: (N, A) in [0, 1], y of the positive anchors, the overlap of their predicted box with its object;
            1 for all where it is None. It is a constant of the gradient.
        beta: β, 0 or at least 1: in between, the slope at y = p is infinite.
        normalizer: ``"positives"`` divides each image's sum by max(1, its positives); ``"none"`` does not.
    Returns:
        float32 (float64 for float64 logits), a scalar, or (N,) for ``"none"``.
    Raises:
        ValueError, TypeError: as :func:`drloss.dr_loss`; ValueError if ``quality`` does not go with the labels.

    >>> import torch
    >>> labels = torch.tensor([[1, 0, -1]])
    >>> quality_focal_loss(torch.zeros(1, 3, 2), labels)  # 4 candidates of 0.25 · log 2
    tensor(0.6931)
    """
    _check_options(normalizer=normalizer, scope=scope, reduction=reduction, beta=beta)
    inputs = check_inputs(logits, labels, ignore, None, None, scope)
    candidates = candidates_of(inputs, None, None, scope)
    x = candidates.positive.signed
    y = _quality(quality, inputs, like=x)
    # x is +∞ where there is no positive; y is 1 there, so that both factors are 0.
    soft = y * _cross_entropy(x) + torch.where(y < 1, (1 - y) * functional.softplus(x), 0.0)
    losses = total((y - x.sigmoid()).abs() ** beta * torch.where(x == torch.inf, 0.0, soft))
    negative = candidates.negative.signed
    losses = losses + total(_power_of_hardness(negative, beta) * _cross_entropy(negative))
    return _reduce(losses, candidates, normalizer, reduction)


def _cross_entropy(signed: Tensor) -> Tensor:
    """-log of the easiness."""
    return -functional.logsigmoid(signed)


def _power_of_hardness(signed: Tensor, exponent: float) -> Tensor:
    """(1 - easiness) to a power; its slope is finite for every exponent of at least 0."""
    return (exponent * functional.logsigmoid(-signed).clamp(min=-1e30)).exp()


def _hardest(negative: CandidateSet, count: Tensor) -> Tensor:
    """Weights (N, M): 1 for the ``count`` (N, 1) hardest candidates of each row, less for ties at the last place."""
    length = negative.signed.shape[1]
    # If the number cannot be read, all candidates are sorted.
    most = max(int(count.max()), 1) if values_can_be_checked(count) else length
    hardest = negative.signed.detach().topk(most, dim=1, largest=False).values
    threshold = hardest.gather(1, (count - 1).clamp(min=0))
    return keep_hardest(negative.signed, negative.prior, threshold, count)


def _quality(quality: Levels | None, inputs: Inputs, like: Tensor) -> Tensor:
    """Quality (N, M) of the positive candidates; 1 where none is given."""
    if quality is None:
        return torch.ones_like(like)
    if not isinstance(quality, Tensor):
        quality = torch.cat(list(quality), dim=1)
    labels = inputs.targets if inputs.labels is None else inputs.labels
    assert labels is not None
    shape = labels.shape
    if len(shape) != 2 or quality.shape != shape or not quality.is_floating_point():
        raise ValueError(
            f"quality must be floating point of shape (N, A) and go with integer labels (N, A), got {quality.dtype} "
            f"{tuple(quality.shape)} with labels {tuple(shape)}"
        )
    positive = ((labels > 0) & (labels <= inputs.classes)).to(quality.device)
    of_positives = torch.where(positive, quality.detach(), 1.0)
    if values_can_be_checked(quality) and not bool(((of_positives >= 0) & (of_positives <= 1)).all()):
        raise ValueError(
            f"quality must lie in [0, 1] at the positive anchors, got values from {float(of_positives.min()):g} to "
            f"{float(of_positives.max()):g}"
        )
    quality = of_positives.to(like.device, like.dtype)
    quality = quality.reshape(like.shape[0], quality.numel() // max(like.shape[0], 1))
    return functional.pad(quality, (0, like.shape[1] - quality.shape[1]), value=1.0)


def _check_options(
    *,
    normalizer: str,
    scope: str,
    reduction: str,
    backend: str = "auto",
    inplace: bool = False,
    alpha: float = 0.0,
    gamma: float = 0.0,
    ratio: float = 1.0,
    beta: float = 0.0,
) -> None:
    """Raise ValueError for an option of a pointwise loss that is out of range; each loss has some of them."""
    require_not_negative(alpha=alpha, gamma=gamma, beta=beta)
    require_positive(ratio=ratio)
    if alpha > 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha!r}")
    if 0 < beta < 1:
        raise ValueError(f"beta must be 0 or at least 1, got {beta!r}")
    require_choice("normalizer", normalizer, NORMALIZERS)
    require_choice("scope", scope, SCOPES)
    require_choice("reduction", reduction, REDUCTIONS)
    check_backend(backend, inplace=inplace)


def _reduce(losses: Tensor, candidates: Candidates, normalizer: str, reduction: str) -> Tensor:
    if normalizer == "positives":
        losses = losses / candidates.positive.count.clamp(min=1)
    return reduce_images(losses.squeeze(1).to(candidates.positive.signed.dtype), reduction)


class PointwiseOptions(TypedDict, total=False):
    """Options of every pointwise loss."""

    normalizer: str
    scope: str
    reduction: str


class FusedOptions(PointwiseOptions, total=False):
    """Options of :class:`CrossEntropyLoss`, and of every pointwise loss that has fused backends."""

    backend: str
    inplace: bool


class FocalOptions(FusedOptions, total=False):
    """Options of :class:`FocalLoss`."""

    alpha: float
    gamma: float


class OHEMOptions(PointwiseOptions, total=False):
    """Options of :class:`OHEMLoss`."""

    ratio: float


class QualityFocalOptions(PointwiseOptions, total=False):
    """Options of :class:`QualityFocalLoss`."""

    beta: float


class CrossEntropyLoss(ImageLoss):
    """``cls_weight`` · :func:`cross_entropy_loss` as a module."""

    function = staticmethod(cross_entropy_loss)
    check_options = staticmethod(_check_options)
    prior_probability = 0.01  # [17] found it necessary for a sum over all candidates

    def __init__(self, cls_weight: float = 1.0, **options: Unpack[FusedOptions]) -> None:
        super().__init__(cls_weight, **options)


class FocalLoss(ImageLoss):
    """``cls_weight`` · :func:`focal_loss` as a module."""

    function = staticmethod(focal_loss)
    check_options = staticmethod(_check_options)
    prior_probability = 0.01  # [17], §3.3: bias -log(99)

    def __init__(self, cls_weight: float = 1.0, **options: Unpack[FocalOptions]) -> None:
        super().__init__(cls_weight, **options)


class OHEMLoss(ImageLoss):
    """``cls_weight`` · :func:`ohem_loss` as a module."""

    function = staticmethod(ohem_loss)
    check_options = staticmethod(_check_options)
    prior_probability = 0.01

    def __init__(self, cls_weight: float = 1.0, **options: Unpack[OHEMOptions]) -> None:
        super().__init__(cls_weight, **options)


class QualityFocalLoss(ImageLoss):
    """``cls_weight`` · :func:`quality_focal_loss` as a module; the quality is an argument of each call."""

    function = staticmethod(quality_focal_loss)
    check_options = staticmethod(_check_options)
    prior_probability = 0.01
    needs = ("quality",)

    def __init__(self, cls_weight: float = 1.0, **options: Unpack[QualityFocalOptions]) -> None:
        super().__init__(cls_weight, **options)
