r"""The distributional ranking (DR) loss, Eq. (9) of the paper, per image.

For each image the scores of its positive and of its negative candidates, over all anchors, classes and pyramid
levels, are two distributions. Each is moved towards the decision boundary (Propositions 1 and 2), and the
expectations of the moved distributions (Eq. 6) are ranked with a margin (Eqs. 8 and 9):

$$\ell_{\mathrm{DR}} = \tfrac{1}{L}\log\bigl(1 + \exp(L(\hat P_- - \hat P_+ + \gamma))\bigr)$$

The number of positives does not enter: dividing this loss by it, as one divides a focal loss, switches it off.
Two more things differ from a focal loss. The classifier starts at probability 0.5 (bias 0) and not at 0.01; and an
image without objects has a loss of its own, that of a perfect positive.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, log

import torch
from torch import Tensor, nn

from drloss.losses.candidates import Candidates, reduce_images, require_positive, split_candidates
from drloss.losses.distribution import drifted_weights, effective_number, expected_easiness
from drloss.losses.surrogates import logistic

POS_LAMBDA = 1.0
"""λ₊ = 1/log h₊ at h₊ = e, the best of Table 1."""
NEG_LAMBDA = 0.1 / log(3.5)
"""λ₋ = 0.1/log h₋ at h₋ = 3.5, the best of Table 1: 0.0798."""
SMOOTHNESS = 6.0
"""L, the best of Table 2."""
MARGIN = 0.5
"""γ of Corollary 1."""
CLS_WEIGHT = 4.0
"""τ of §3.3, the weight of the classification loss beside RetinaNet's box loss."""


def dr_loss(
    logits: Tensor | Sequence[Tensor],
    labels: Tensor | Sequence[Tensor],
    *,
    ignore: Tensor | Sequence[Tensor] | None = None,
    pos_lambda: float = POS_LAMBDA,
    neg_lambda: float = NEG_LAMBDA,
    smoothness: float = SMOOTHNESS,
    margin: float = MARGIN,
    reduction: str = "mean",
) -> Tensor:
    r"""DR loss of each image, $\ell_{\mathrm{DR}} = \ell_{\mathrm{logistic}}(\hat P_- - \hat P_+ + \gamma)$.

    Paper: Eq. (9), with Eqs. (6) and (8) and Propositions 1 and 2. The weight τ is not in it: see :class:`DRLoss`.

    Args:
        logits: (N, A, K) classification logits of any floating dtype: N images, A anchors (or points, or queries)
            over all pyramid levels, K object classes and no background channel. Or a list or tuple of per-level
            logits (N, A_l, K).
        labels: (N, A) integer: -1 ignored, 0 background, 1..K the class. Or dense targets (N, A, K), float or
            bool, 1 where positive. Or a list or tuple of either, one part per level.
        ignore: (N, A) bool, with dense targets only: True where an anchor counts in neither set.
        pos_lambda: λ₊ > 0, in score units; the smaller, the more weight on the hardest positives.
        neg_lambda: λ₋ > 0, in score units; the smaller, the more weight on the hardest negatives.
        smoothness: L > 0, in 1/score units.
        margin: γ, in score units.
        reduction: over images, ``"mean"``, ``"sum"`` or ``"none"``.
    Returns:
        float32 (float64 for float64 logits), a scalar, or (N,) for ``"none"``. An image without positives has
        $\hat P_+ = 1$, one without negatives $\hat P_- = 0$; the graph is kept in every case, and the mean over
        no images is 0.
    Raises:
        ValueError: if a parameter, a shape or (on the CPU) a label is out of range.
        TypeError: if a dtype does not fit.

    Half-precision logits are widened before the sigmoid, so that autocast changes nothing but their rounding.

    >>> import torch
    >>> labels = torch.tensor([[1, 0, 0, -1], [0, 2, 2, 0]])
    >>> dr_loss(torch.zeros(2, 4, 3), labels, reduction="none")
    tensor([0.5081, 0.5081])
    >>> dr_loss(torch.zeros(2, 4, 3), torch.zeros(2, 4, dtype=torch.int64))  # no positive: z = 0.5 - 1 + 0.5
    tensor(0.1155)
    """
    if not isfinite(margin):
        raise ValueError(f"margin must be finite, got {margin}")
    require_positive(pos_lambda=pos_lambda, neg_lambda=neg_lambda, smoothness=smoothness)
    ranking = _rank(split_candidates(logits, labels, ignore), pos_lambda, neg_lambda)
    losses = logistic(ranking.violation(margin), smoothness=smoothness)
    return reduce_images(losses, reduction)


@dataclass(frozen=True)
class _Ranking:
    """The two derived distributions of each image and their expected easiness."""

    positive_weights: Tensor
    negative_weights: Tensor
    positive_easiness: Tensor
    negative_easiness: Tensor

    def violation(self, margin: float) -> Tensor:
        r"""$z = \hat P_- - \hat P_+ + \gamma$, with $\hat P_- = 1 - U_-$ and $\hat P_+ = U_+$."""
        return 1 - self.negative_easiness - self.positive_easiness + margin


def _rank(candidates: Candidates, pos_lambda: float, neg_lambda: float) -> _Ranking:
    positive, negative = candidates.positive.sigmoid(), candidates.negative.sigmoid()
    positive_weights = drifted_weights(positive, candidates.positive_mask, lam=pos_lambda)
    negative_weights = drifted_weights(negative, candidates.negative_mask, lam=neg_lambda)
    return _Ranking(
        positive_weights=positive_weights,
        negative_weights=negative_weights,
        positive_easiness=expected_easiness(positive, positive_weights, candidates.positive_mask),
        negative_easiness=expected_easiness(negative, negative_weights, candidates.negative_mask),
    )


@dataclass(frozen=True)
class DRStatistics:
    r"""What the loss is doing in each image; every attribute is (N,), detached.

    Attributes:
        expected_pos: $\hat P_+$, in score units.
        expected_neg: $\hat P_-$, in score units.
        effective_pos: $\exp(H(q_+))$, the number of positives that the loss is looking at.
        effective_neg: $\exp(H(q_-))$, the number of negatives that the loss is looking at.
    """

    expected_pos: Tensor
    expected_neg: Tensor
    effective_pos: Tensor
    effective_neg: Tensor

    @property
    def margin(self) -> Tensor:
        r"""Margin reached, $\hat P_+ - \hat P_-$; the loss asks for γ."""
        return self.expected_pos - self.expected_neg


@torch.no_grad()
def dr_statistics(
    logits: Tensor | Sequence[Tensor],
    labels: Tensor | Sequence[Tensor],
    *,
    ignore: Tensor | Sequence[Tensor] | None = None,
    pos_lambda: float = POS_LAMBDA,
    neg_lambda: float = NEG_LAMBDA,
) -> DRStatistics:
    r"""Expected scores of Eq. (6) and effective numbers of candidates, per image, for logs and figures.

    Arguments as in :func:`dr_loss`. Reading them for another loss than DR is fine and is how two are compared.
    """
    ranking = _rank(split_candidates(logits, labels, ignore), pos_lambda, neg_lambda)
    return DRStatistics(
        expected_pos=ranking.positive_easiness,
        expected_neg=1 - ranking.negative_easiness,
        effective_pos=effective_number(ranking.positive_weights),
        effective_neg=effective_number(ranking.negative_weights),
    )


class DRLoss(nn.Module):
    r"""τ · :func:`dr_loss` as a module: the classification term of the paper's objective.

    Paper: §3.3, $\min \sum_i \tau\,\ell_{\mathrm{DR}}^i + \ell_{\mathrm{Reg}}^i$ with τ = 4.

    Args:
        cls_weight: τ > 0. It balances against RetinaNet's own box loss (smooth L1 summed over positives and divided
            by 4 × positives); another box loss needs another τ.
        pos_lambda, neg_lambda, smoothness, margin, reduction: see :func:`dr_loss`.
    Raises:
        ValueError: if a parameter is out of range.

    >>> import torch
    >>> DRLoss()(torch.zeros(2, 50, 3), torch.arange(100).reshape(2, 50) % 4)  # 4 · softplus(6 · 0.5) / 6
    tensor(2.0324)
    """

    prior_probability = 0.5
    """Score that the classifier starts from (§4.2): bias 0."""

    def __init__(
        self,
        cls_weight: float = CLS_WEIGHT,
        *,
        pos_lambda: float = POS_LAMBDA,
        neg_lambda: float = NEG_LAMBDA,
        smoothness: float = SMOOTHNESS,
        margin: float = MARGIN,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        require_positive(cls_weight=cls_weight, pos_lambda=pos_lambda, neg_lambda=neg_lambda, smoothness=smoothness)
        if not isfinite(margin):
            raise ValueError(f"margin must be finite, got {margin}")
        reduce_images(torch.zeros(0), reduction)
        self.cls_weight = cls_weight
        self.pos_lambda = pos_lambda
        self.neg_lambda = neg_lambda
        self.smoothness = smoothness
        self.margin = margin
        self.reduction = reduction

    def forward(
        self,
        logits: Tensor | Sequence[Tensor],
        labels: Tensor | Sequence[Tensor],
        *,
        ignore: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Weighted loss; arguments and result as in :func:`dr_loss`."""
        loss = dr_loss(
            logits,
            labels,
            ignore=ignore,
            pos_lambda=self.pos_lambda,
            neg_lambda=self.neg_lambda,
            smoothness=self.smoothness,
            margin=self.margin,
            reduction=self.reduction,
        )
        return self.cls_weight * loss

    def extra_repr(self) -> str:
        """Parameters as they are shown by ``print(module)``."""
        return (
            f"cls_weight={self.cls_weight}, pos_lambda={self.pos_lambda}, neg_lambda={self.neg_lambda:.6g}, "
            f"smoothness={self.smoothness}, margin={self.margin}, reduction={self.reduction!r}"
        )
