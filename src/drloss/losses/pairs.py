r"""All pairs of positives and negatives, Eqs. (3) and (4), without forming the pairs.

With the easiness $u$ of both sets, the violation of a pair is $z = p_- - p_+ + \gamma = (1 + \gamma) - u_- - u_+$,
which is symmetric in both. The task is to compute $\sum_{j_+} \sum_{j_-} o_{j_+} o_{j_-} \ell(z)$ and its derivatives
for 1,000 positives and 16 million negatives:

- hinge and quadratic are polynomials of degree 1 and 2 between their kinks. One set is sorted; prefix sums of
  $o$, $o u$ and $o u^2$ then give the sum over it for any $z$ of the other set: $O(n \log n)$.
- the logistic surrogate is not a polynomial but close to one, because its nearest singularity is π/L away from the
  real axis. On the unit square of scores it is replaced by its Chebyshev interpolant, whose error falls
  geometrically. The
  double sum is then a bilinear form of the Chebyshev moments of the two sets: $O(n L)$, and exact to 1e-10.
"""

from math import asinh, ceil, log, pi

import torch
from torch import Tensor

from drloss.losses.candidates import CandidateSet
from drloss.losses.derivatives import with_slopes
from drloss.losses.summation import block_length, total, wide
from drloss.losses.surrogates import logistic

_CHUNK = 10 * block_length(1)  # candidates computed at a time, in float64
_ERROR = 1e-10  # of the Chebyshev interpolant
MOST_SMOOTHNESS = 1000.0  # largest L: beyond, the interpolant has more than 3,700 nodes


class SortedSums:
    """Sums of piecewise polynomials of $z = s - a$ over weighted points $a$, for many $s$ at once.

    Args:
        points: (N, M) float64, finite.
        weights: (N, M) float64.
        sort: False where the points are already in ascending order.
    """

    def __init__(self, points: Tensor, weights: Tensor, sort: bool = True) -> None:
        if sort:
            points, order = points.sort(dim=1)
            weights = weights.gather(1, order)
        self.points = points
        self.sums = [_prefix(weights * power) for power in (torch.ones_like(points), points, points**2)]

    def hinge(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of $w [z]_+$, and of its slope."""
        w, wa, _ = self._below(s, right=False)
        return s * w - wa, w

    def quadratic(self, s: Tensor, rho: float) -> tuple[Tensor, Tensor]:
        """Sum of w times the quadratic surrogate (Eq. 7), and of its slope, a ramp from 0 to 1 over [-ρ, ρ]."""
        linear = self._below(s - rho, right=True)
        bent = [b - a for b, a in zip(self._below(s + rho, right=False), linear, strict=True)]
        r = s + rho
        value = s * linear[0] - linear[1] + (r * r * bent[0] - 2 * r * bent[1] + bent[2]) / (4 * rho)
        return value, linear[0] + (r * bent[0] - bent[1]) / (2 * rho)

    def _below(self, s: Tensor, right: bool) -> list[Tensor]:
        """Sums of w, w a and w a² over the points below s, or with ``right`` over those that are at most s."""
        place = torch.searchsorted(self.points, s.contiguous(), right=right)
        return [sums.gather(1, place) for sums in self.sums]


def _prefix(values: Tensor) -> Tensor:
    """Sums of the first 0, 1, ..., M values of each row."""
    return torch.nn.functional.pad(values.cumsum(dim=1), (1, 0))


def all_pairs_loss(
    positive: CandidateSet, negative: CandidateSet, *, surrogate: str, margin: float, smoothness: float, rho: float
) -> Tensor:
    r"""Expected loss of a random pair, $E_{j_+, j_-}[\ell(p_{j_-} - p_{j_+} + \gamma)]$, drawn from the priors.

    Paper: Eq. (4), §3.1, "All" in Table 3. Eq. (3), the sum over all pairs, is $n_+ n_-$ times this for uniform
    priors, so that both have the same minimisers in an image.

    Args:
        positive, negative: the candidates.
        surrogate, margin, smoothness, rho: see :func:`drloss.dr_loss`.
    Returns:
        (N, 1) float64. It can be differentiated once.
    """
    of_pairs = (
        _LogisticPairs(smoothness, margin) if surrogate == "logistic" else _PiecewisePairs(surrogate, rho, margin)
    )
    easiness = [s.easiness for s in (positive, negative)]
    shares = [_share(positive), _share(negative)]
    with torch.no_grad():
        value, slopes = of_pairs(*[wide(u.detach()) for u in easiness], *shares)
        # z falls by as much as u rises
        by_easiness = [-(o * s).to(u.dtype) for o, s, u in zip(shares, slopes, easiness, strict=True)]
    return with_slopes(value, by_easiness, easiness, "pairing 'all_pairs'")


def _share(candidates: CandidateSet) -> Tensor:
    return wide(candidates.prior) / total(candidates.prior)


class _PiecewisePairs:
    def __init__(self, surrogate: str, rho: float, margin: float) -> None:
        self.surrogate, self.rho, self.top = surrogate, rho, 1 + margin

    def __call__(
        self, positive: Tensor, negative: Tensor, pos_share: Tensor, neg_share: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Value (N, 1) and, for each candidate, the mean slope over its pairs."""
        values, neg_slope = self._sums(SortedSums(positive, pos_share), negative)
        _, pos_slope = self._sums(SortedSums(negative, neg_share), positive)
        return total(values * neg_share), (pos_slope, neg_slope)

    def _sums(self, sources: SortedSums, easiness: Tensor) -> tuple[Tensor, Tensor]:
        parts = [
            sources.hinge(self.top - u) if self.surrogate == "hinge" else sources.quadratic(self.top - u, self.rho)
            for u in torch.split(easiness, _CHUNK, dim=1)
        ]
        return torch.cat([v for v, _ in parts], dim=1), torch.cat([s for _, s in parts], dim=1)


class _LogisticPairs:
    """Chebyshev series of ℓ(1 + γ - x - y) on the unit square, as a matrix of coefficients."""

    def __init__(self, smoothness: float, margin: float) -> None:
        # The singularity at z = iπ/L is 2π/L half-widths of [0, 1] away: Bernstein's ellipse has log ρ = asinh(2π/L).
        self.nodes = max(8, ceil(log(1 / _ERROR) / asinh(2 * pi / smoothness)) + 4)
        self.smoothness, self.margin = smoothness, margin

    def __call__(
        self, positive: Tensor, negative: Tensor, pos_share: Tensor, neg_share: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Value (N, 1) and, for each candidate, the mean slope over its pairs."""
        series = self._series(positive)
        pos_moments, neg_moments = self._moments(positive, pos_share), self._moments(negative, neg_share)
        over_negatives, over_positives = neg_moments @ series, pos_moments @ series
        value = (pos_moments * over_negatives).sum(dim=1, keepdim=True)
        # dz/du = -1: the slope in z is minus the derivative in u.
        return value, (-_derivative(over_negatives, positive), -_derivative(over_positives, negative))

    def _series(self, like: Tensor) -> Tensor:
        n = self.nodes
        angles = (torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) * (pi / n)
        x = (angles.cos() + 1) / 2
        values = logistic(1 + self.margin - x.unsqueeze(1) - x, smoothness=self.smoothness)
        orders = torch.arange(n, device=like.device, dtype=like.dtype)
        transform = (orders.unsqueeze(1) * angles).cos() * (2 / n)
        transform[0] /= 2
        return transform @ values @ transform.T

    def _moments(self, easiness: Tensor, share: Tensor) -> Tensor:
        """(N, n) means of the Chebyshev polynomials $T_k(2u - 1)$."""
        moments = [torch.zeros_like(easiness[:, :1])] * self.nodes
        for u, o in zip(torch.split(easiness, _CHUNK, dim=1), torch.split(share, _CHUNK, dim=1), strict=True):
            y = 2 * u - 1
            before, now = o, o * y
            for k in range(self.nodes):
                moments[k] = moments[k] + total(before)
                before, now = now, 2 * y * now - before
        return torch.cat(moments, dim=1)


def _derivative(coefficients: Tensor, easiness: Tensor) -> Tensor:
    """Derivative in u of the Chebyshev series (N, n) at (N, M) points."""
    slopes = torch.zeros_like(coefficients)  # the series of the derivative in y = 2u - 1
    last = coefficients.shape[1] - 1
    for k in range(last, 0, -1):
        slopes[:, k - 1] = 2 * k * coefficients[:, k] + (slopes[:, k + 1] if k < last else 0)
    slopes[:, 0] /= 2
    parts = []
    for u in torch.split(easiness, _CHUNK, dim=1):
        y = 2 * u - 1
        one, two = torch.zeros_like(y), torch.zeros_like(y)
        for k in range(last, 0, -1):  # Clenshaw's recurrence
            one, two = slopes[:, k : k + 1] + 2 * y * one - two, one
        parts.append(2 * (slopes[:, :1] + y * one - two))
    return torch.cat(parts, dim=1)
