r"""AP-loss: average precision as a ranking loss, with an update in place of a gradient.

The paper calls this work ([3]) the closest to its own. For positives i and negatives j with logits s, and the ramp
$H(x) = \min(\max(\frac{x}{2\delta} + \frac12, 0), 1)$,

$$L_{ij} = \frac{H(s_j - s_i)}{1 + \sum_{k \neq i} H(s_k - s_i) + \sum_{j'} H(s_{j'} - s_i)}, \qquad
\ell = \frac{1}{n_+} \sum_i \sum_j L_{ij},$$

where k runs over the positives and j' over the negatives. It is 1 minus the average precision, up to the ramp. Its
derivative does not help training, so it is replaced by the update that would bring each $L_{ij}$ to 0:
$-\sum_j L_{ij}/n_+$ for a positive and $\sum_i L_{ij}/n_+$ for a negative. Precision is interpolated: that of a
positive is the largest among the positives that score no higher, and its $L_{ij}$ are scaled to match.

Every sum over a ramp is a sum of linear pieces, so sorting and prefix sums (:class:`drloss.losses.pairs.SortedSums`)
replace the loop over positives and give the same numbers.
"""

from typing import TypedDict, Unpack

import torch
from torch import Tensor

from drloss.losses.candidates import REDUCTIONS, CandidateSet, reduce_images, split_candidates
from drloss.losses.derivatives import with_slopes
from drloss.losses.inputs import SCOPES, Levels
from drloss.losses.module import ImageLoss
from drloss.losses.pairs import SortedSums
from drloss.losses.parameters import require_choice, require_positive
from drloss.losses.summation import wide

_FARTHEST = 1e4  # logits are clamped to ± this, so that sums stay finite


def ap_loss(
    logits: Levels,
    labels: Levels,
    *,
    ignore: Levels | None = None,
    delta: float = 1.0,
    interpolate: bool = True,
    scope: str = "pooled",
    reduction: str = "mean",
) -> Tensor:
    r"""AP-loss, $1 - \frac{1}{n_+}\sum_i \mathrm{precision}_i$, with its error-driven update as the gradient.

    Source: Chen et al., CVPR 2019 ([3] of the paper), Eqs. (2), (4) and (7), interpolated AP of §3.4 and mini-batch
    training of §3.4, which ranks the candidates of all images together, because scores of different images must be
    comparable. That is the default here, too.

    Args:
        logits, labels, ignore, reduction: see :func:`drloss.dr_loss`.
        delta: δ of at least 1e-9, half the width of the ramp, in logits.
        interpolate: whether precision is interpolated.
        scope: ``"pooled"`` or ``"per_image"``.
    Returns:
        float32 (float64 for float64 logits): a scalar; for ``"none"`` (1,) pooled or (N,) per image. It is 0 without
        positives. It can be differentiated once, and the gradient is the update.
    Raises:
        ValueError, TypeError: as :func:`drloss.dr_loss`.

    >>> import torch
    >>> ap_loss(torch.tensor([[[5.0], [3.0], [1.0]]]), torch.tensor([[1, 0, 1]]))  # precisions 1 and 2/3
    tensor(0.1667)
    """
    _check_options(delta, interpolate, scope, reduction)
    candidates = split_candidates(logits, labels, ignore, scope=scope)
    positive, negative = candidates.positive, candidates.negative
    signed = [positive.signed, negative.signed]
    with torch.no_grad():
        pos_signed, neg_signed = (x.detach() for x in signed)
        value, *updates = _average_precision(
            pos_signed, neg_signed, _present(positive), _present(negative), delta, interpolate
        )
    losses = with_slopes(value, updates, signed, "AP-loss")
    return reduce_images(losses.squeeze(1).to(positive.signed.dtype), reduction)


def _check_options(delta: float, interpolate: bool, scope: str, reduction: str) -> None:
    require_positive(delta=delta)
    if delta < 1e-9:
        raise ValueError(f"delta must be at least 1e-9, what logits can be told apart by, got {delta!r}")
    if not isinstance(interpolate, bool):
        raise ValueError(f"interpolate must be True or False, got {interpolate!r}")
    require_choice("scope", scope, SCOPES)
    require_choice("reduction", reduction, REDUCTIONS)


def _present(candidates: CandidateSet) -> Tensor:
    """(N, M) float64: 1 at a candidate, 0 elsewhere."""
    return wide(candidates.prior & ~candidates.empty)


def _average_precision(
    positive: Tensor, negative: Tensor, pos_there: Tensor, neg_there: Tensor, delta: float, interpolate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (N, 1) float64, and the updates of the signed logits of both sets, (N, M) each."""
    s, order = wide(positive).clamp(-_FARTHEST, _FARTHEST).sort(dim=1)  # ascending; empty places last
    there = pos_there.gather(1, order)
    against = wide(negative).clamp(-_FARTHEST, _FARTHEST)  # -s_j: small is hard
    rank = 0.5 + _ramps(SortedSums(-s.flip(1), there.flip(1), sort=False), -s, delta)  # H(0) = 1/2 is i itself
    false = _ramps(SortedSums(against, neg_there), -s, delta)
    precision = rank / (rank + false)
    best = precision.cummax(dim=1).values if interpolate else precision
    scale = torch.where(best > precision, (1 - best) / (1 - precision), 1.0)
    count = there.sum(dim=1, keepdim=True).clamp(min=1)
    to_positive = -(1 - best) * there / count
    to_negative = _ramps(SortedSums(s, there * scale / (rank + false) / count, sort=False), -against, delta)
    # The signed logit of a negative is -s_j.
    return (
        ((1 - best) * there).sum(dim=1, keepdim=True) / count,
        torch.zeros_like(s).scatter(1, order, to_positive).to(positive.dtype),
        (-to_negative * neg_there).to(negative.dtype),
    )


def _ramps(sources: SortedSums, s: Tensor, delta: float) -> Tensor:
    """Sum of w H(s - a): the slope of the quadratic surrogate is the ramp."""
    return sources.quadratic(s, delta)[1]


class APOptions(TypedDict, total=False):
    """Options of :class:`APLoss`."""

    delta: float
    interpolate: bool
    scope: str
    reduction: str


class APLoss(ImageLoss):
    """``cls_weight`` · :func:`ap_loss` as a module."""

    function = staticmethod(ap_loss)
    check_options = staticmethod(_check_options)
    prior_probability = 0.01

    def __init__(self, cls_weight: float = 1.0, **options: Unpack[APOptions]) -> None:
        super().__init__(cls_weight, **options)
