r"""The derived distributions of §3.2 and their expectations.

The paper moves the distribution of scores towards the decision boundary, as far as a regulariser Ω allows. The result
is the *derived* distribution q̂:

$$\hat q = \arg\max_{q \in \Delta} \sum_j q_j v_j - \lambda\,\Omega(q \| o)$$

with $v = p$ for negatives and $v = -p$ for positives, and $o$ the original distribution (the prior). With the
easiness $u = 1 - p$ of a negative and $u = p$ of a positive, both are one problem,

$$\hat q = \arg\min_{q \in \Delta} \sum_j q_j u_j + \lambda\,\Omega(q \| o),$$

because $v$ and $-u$ differ by a constant. The larger λ, the closer q is to o. There are three regularisers:

- ``kl``: $\mathrm{KL}(q\|o)$, the paper's, with the closed form of Propositions 1 and 2, :func:`drifted_weights`;
- ``chi2``: half of $\chi^2(q\|o) = \sum_j (q_j - o_j)^2 / o_j$, :func:`chi2_weights`. For a uniform prior it is the
  L2 distance, $\tfrac{n}{2}\|q - o\|^2$, and q is the projection of a vector onto the simplex, with many exact zeros.
  The half makes it agree with KL to second order, so that λ has about the same effect;
- ``cvar``: the bound $q \leq o/\alpha$, that is $D_\infty(q\|o) \leq \log(1/\alpha)$ for Rényi's divergence of
  infinite order, :func:`cvar_weights`. The expectation is that of the hardest share α (the conditional value at
  risk).

In place of λ a radius ε may be given: the constraint $\mathrm{KL}(q\|o) \leq \epsilon$, with which §3.2 begins.
:func:`find_lambda` computes the λ of each image from it.
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from drloss.losses.candidates import CandidateSet, keep_hardest
from drloss.losses.derivatives import with_slopes
from drloss.losses.inputs import values_can_be_checked
from drloss.losses.parameters import require_choice, require_positive, require_share
from drloss.losses.summation import spread, total, wide

REGULARIZERS = ("kl", "chi2", "cvar")
WEIGHTS_GRADS = ("exact", "detached", "dual")

LEAST_LAMBDA = 1e-30
"""Smaller λ are raised to this: differences of scores divided by it are finite in float32."""
_LEAST_SEARCHED, _MOST_SEARCHED = 1e-7, 1e9
"""Ends of the search for λ: at one all weight is on the hardest candidate, at the other it is the prior."""


def lambda_from_log_base(log_base: float, *, scale: float) -> float:
    """λ from the base h of the logarithm in the KL divergence: scale / log h.

    Paper: §4.3, λ₊ = 1/log h₊ and λ₋ = 0.1/log h₋; Table 1 varies h₊ and h₋.

    Args:
        log_base: h > 1.
        scale: 1 for positives, 0.1 for negatives.
    Raises:
        ValueError: if ``log_base`` is not above 1 and finite, or ``scale`` not positive and finite.

    >>> round(lambda_from_log_base(3.5, scale=0.1), 4)
    0.0798
    """
    require_positive(log_base=log_base, scale=scale)
    if log_base <= 1:
        raise ValueError(f"log_base must be above 1, got {log_base!r}")
    return scale / log(log_base)


def drifted_weights(easiness: Tensor, prior: Tensor, *, lam: float | Tensor) -> Tensor:
    r"""Derived distribution for the KL divergence, $q_j = \frac{1}{Z} o_j \exp(-u_j/\lambda)$.

    Paper: Proposition 1 (negatives, $u = 1 - p$) and Proposition 2 (positives, $u = p$), §3.2. The harder a
    candidate, the larger its weight, which depends on the other candidates of the image (Remark 1). As λ → 0 all
    weight goes to the hardest candidate (Eq. 5); as λ → ∞ the weights become the prior.

    Args:
        easiness: (N, M) float32 or float64, $u \in [0, 1]$.
        prior: (N, M) bool (uniform over True) or weights, which need not sum to 1; not all 0 in a row.
        lam: λ > 0, in score units: a number for all rows, or (N, 1).
    Returns:
        (N, M) weights; each row sums to 1.
    Raises:
        ValueError: if a number ``lam`` is not positive and finite.
    """
    terms = _terms(easiness, prior, lam)
    return terms / spread(total(terms), like=easiness)


def chi2_weights(easiness: Tensor, prior: Tensor, *, lam: float) -> Tensor:
    r"""Derived distribution for half the χ² divergence, $q_j = \frac{o_j}{\lambda} [\theta - u_j]_+$.

    Paper: §3.2 names "$L_p$ distance" among the choices of Ω. θ makes the weights sum to 1; candidates easier
    than θ have weight 0.

    Args, Returns, Raises: as :func:`drifted_weights`, with one λ.

    Sorting finds the support exactly; given the support, θ is a quotient of two sums and differentiable.
    """
    require_positive(lam=lam)
    hardest = easiness.detach().amin(dim=1, keepdim=True)
    above = easiness - hardest
    with torch.no_grad():
        order = above.argsort(dim=1)
        sorted_above, o = wide(above.gather(1, order)), wide(_normalised(prior, above).gather(1, order))
        theta = (lam + (o * sorted_above).cumsum(dim=1)) / o.cumsum(dim=1)
        size = (sorted_above < theta).sum(dim=1, keepdim=True).clamp(min=1)  # it is 0 only for NaN
        threshold = sorted_above.gather(1, size - 1).to(above.dtype)
    kept = _normalised(prior, above) * (above <= threshold)
    theta = (lam + total(kept * above)) / total(kept)
    return kept * (spread(theta, like=above) - above).relu() / lam


def cvar_weights(easiness: Tensor, prior: Tensor, *, alpha: float) -> Tensor:
    r"""Derived distribution under the bound $q_j \leq o_j/\alpha$: all weight on the hardest share α of the prior.

    Paper: §3.2 names "Rényi entropy" among the choices of Ω; this is its infinite order.

    Args:
        easiness, prior: see :func:`drifted_weights`.
        alpha: α in (0, 1]; 1 gives the prior, and α → 0 the worst case.
    Returns:
        (N, M) weights without a graph: they change with the scores only where candidates change places.
    Raises:
        ValueError: if ``alpha`` is not in (0, 1].
    """
    require_share(alpha=alpha)
    easiness = easiness.detach()
    o = _normalised(prior, easiness)
    values, order = easiness.sort(dim=1)
    before = (wide(o).gather(1, order).cumsum(dim=1) < alpha * (1 - 1e-9)).sum(dim=1, keepdim=True)
    last = before.clamp(max=values.shape[1] - 1)
    mass = torch.full_like(wide(easiness[:, :1]), alpha)
    return keep_hardest(easiness, o, values.gather(1, last), mass) / alpha


def find_lambda(easiness: Tensor, prior: Tensor, *, radius: float) -> Tensor:
    r"""λ of each image that puts the derived distribution on the border of the ball, $\mathrm{KL}(q\|o) = \epsilon$.

    Paper: §3.2, "According to the dual theory, given ε₋, we can find the parameter λ₋". The divergence of
    :func:`drifted_weights` falls monotonically in λ. Newton's method in log λ, inside a shrinking interval, solves
    for λ to 1e-7. If all weight on the hardest candidate is still inside the ball, λ is nearly 0.

    Args:
        easiness, prior: see :func:`drifted_weights`.
        radius: ε > 0, in nats.
    Returns:
        (N, 1) float64 λ, without a graph.
    Raises:
        ValueError: if ``radius`` is not positive and finite.

    On a CPU the search ends when every image has converged. Elsewhere it takes a fixed number of steps, and does not
    synchronise with the device.
    """
    require_positive(radius=radius)
    with torch.no_grad():
        above = easiness - easiness.amin(dim=1, keepdim=True)
        mass = total(prior)
        low = torch.full_like(mass, log(1 / _MOST_SEARCHED))  # of b = log(1/λ)
        high = torch.full_like(mass, log(1 / _LEAST_SEARCHED))
        b = torch.zeros_like(mass)
        for step in range(90):
            rate = b.exp()
            terms = torch.exp(-above * spread(rate, like=above)) * prior
            z = total(terms)
            mean = total(terms * above) / z
            variance = total(terms * (above - spread(mean, like=above)) ** 2) / z
            kl = -rate * mean - torch.log(z / mass)
            if values_can_be_checked(easiness) and bool(((kl - radius).abs() <= 1e-9).all()):
                break
            low, high = torch.where(kl < radius, b, low), torch.where(kl < radius, high, b)
            kl = kl.clamp(min=1e-30)
            newton = b + (log(radius) - kl.log()) * kl / (rate**2 * variance)
            # A divergence near rounding has no usable slope; and every third step halves the interval anyway.
            inside = (newton > low) & (newton < high) & (kl > 1e-12) & (step % 3 != 2)
            b = torch.where(inside, newton, (low + high) / 2)
        return torch.exp(-b)


def expected_easiness(easiness: Tensor, weights: Tensor) -> Tensor:
    r"""Expectation $U = \sum_j q_j u_j$ of each image.

    Paper: Eq. (6): $\hat P_+ = U_+$ over the positives and $\hat P_- = 1 - U_-$ over the negatives. For a set without
    candidates U = 1, hence $\hat P_+ = 1$ or $\hat P_- = 0$. With KL, :meth:`Drift.expectation` computes the same
    as a distance from the hardest candidate.

    Args:
        easiness: (N, M) float32 or float64, $u \in [0, 1]$.
        weights: (N, M), rows that sum to 1.
    Returns:
        (N, 1) float64, in score units.
    """
    return total(weights * easiness)


def kl_divergence(weights: Tensor, prior: Tensor) -> Tensor:
    r"""$\mathrm{KL}(q\|o) = \sum_j q_j \log(q_j / o_j)$ of each image in nats, (N, 1) float64: Ω of §3.2."""
    o = _normalised(prior, weights)
    return total(torch.xlogy(weights, weights / torch.where(o > 0, o, 1.0)))


def effective_number(weights: Tensor) -> Tensor:
    r"""Effective number of candidates $\exp(H(q))$, $H(q) = -\sum_j q_j \log q_j$.

    It is 1 if all weight is on one candidate, and n if it is spread evenly over n.

    Args:
        weights: (N, M) distributions, rows that sum to 1.
    Returns:
        (N, 1) float64.
    """
    return total(torch.special.entr(weights)).exp()


@dataclass(frozen=True)
class Drift:
    """How the derived distribution of one set follows from its prior, and how gradients pass its weights.

    Attributes:
        regularizer: ``"kl"``, ``"chi2"`` or ``"cvar"``.
        lam: λ of ``kl`` and ``chi2``, in score units.
        radius: ε of ``kl`` in nats, which replaces λ; None for λ.
        alpha: α of ``cvar``, else None.
        weights_grad: ``"exact"``, ``"detached"`` or ``"dual"``; see :func:`drloss.dr_loss`.
    """

    regularizer: str
    lam: float
    radius: float | None
    alpha: float | None
    weights_grad: str

    def check(self, sign: str) -> None:
        """Raise ValueError for a parameter out of range; ``sign``, ``"pos"`` or ``"neg"``, is part of its name."""
        require_choice("regularizer", self.regularizer, REGULARIZERS)
        require_choice("weights_grad", self.weights_grad, WEIGHTS_GRADS)
        require_positive(**{f"{sign}_lambda": self.lam})
        if self.radius is not None:
            require_positive(**{f"{sign}_radius": self.radius})
            if self.regularizer != "kl":
                raise ValueError(
                    f"{sign}_radius must be None unless regularizer is 'kl', got {self.radius!r} with "
                    f"{self.regularizer!r}"
                )
        if self.alpha is not None:
            require_share(**{f"{sign}_alpha": self.alpha})
        if (self.alpha is None) == (self.regularizer == "cvar"):
            raise ValueError(
                f"{sign}_alpha must be a number in (0, 1] with regularizer 'cvar' and None with the others, got "
                f"{self.alpha!r} with {self.regularizer!r}"
            )

    def weights(self, easiness: Tensor, prior: Tensor) -> Tensor:
        """Derived distribution (N, M) of each image."""
        if self.regularizer == "chi2":
            return chi2_weights(easiness, prior, lam=self.lam)
        if self.alpha is not None:
            return cvar_weights(easiness, prior, alpha=self.alpha)
        if self.radius is None:
            return drifted_weights(easiness, prior, lam=self.lam)
        # In float64, because rounding λ alone to float32 moves the divergence by up to 1e-6.
        exact = wide(easiness)
        lam = find_lambda(exact, prior, radius=self.radius)
        return drifted_weights(exact, prior, lam=lam).to(easiness.dtype)

    def expectation(self, candidates: CandidateSet) -> Tensor:
        r"""The value to rank, (N, 1) float64: the expected easiness U; with ``"dual"`` $U + \lambda\Omega(q\|o)$."""
        easiness, prior = candidates.easiness, candidates.prior
        if self.radius is not None:
            q: Tensor = self.weights(easiness.detach(), prior)
            # At the optimum under a constraint the gradient is q itself (envelope theorem), however λ changes.
            return with_slopes(total(q * easiness.detach()), [q], [easiness], "a radius")
        if self.weights_grad == "detached" or self.regularizer == "cvar":
            return expected_easiness(easiness, self.weights(easiness.detach(), prior))
        if self.regularizer == "chi2":
            easiness = wide(easiness)  # rounding θ to float32 alone moves the sum of q by 1e-7/λ
            q = self.weights(easiness, prior)
            expectation = expected_easiness(easiness, q)
            if self.weights_grad == "dual":
                o = _normalised(prior, easiness)
                chi2 = total(q * (q / torch.where(o > 0, o, 1.0))) - 1
                expectation = expectation + self.lam * chi2 / 2
            return expectation
        terms = _terms(easiness, prior, self.lam)
        if self.weights_grad == "dual":
            hardest = wide(easiness.detach().amin(dim=1, keepdim=True))
            return hardest - self.lam * torch.log(total(terms) / total(prior))
        # Subtract the smallest u first; otherwise float rounding is amplified by 1/λ.
        hardest = easiness.detach().amin(dim=1, keepdim=True)
        return wide(hardest) + total(terms * (easiness - hardest)) / total(terms)


def _terms(easiness: Tensor, prior: Tensor, lam: float | Tensor) -> Tensor:
    """o exp((min u - u) / λ): the hardest candidate is subtracted, so that no λ overflows."""
    hardest = easiness.detach().amin(dim=1, keepdim=True)
    if isinstance(lam, Tensor):
        return torch.exp((hardest - easiness) / lam.to(easiness.dtype)) * prior
    require_positive(lam=lam)
    return torch.exp((hardest - easiness) / max(lam, LEAST_LAMBDA)) * prior


def _normalised(prior: Tensor, like: Tensor) -> Tensor:
    return prior / total(prior).to(like.dtype)
