r"""The derived distributions of §3.2: Propositions 1 and 2, and the expectations of Eq. (6).

The paper moves the distribution of scores towards the decision boundary, as far as a KL term allows:

$$\hat q = \arg\max_{q \in \Delta} \sum_j q_j v_j - \lambda\,\mathrm{KL}(q \| o)
\quad\Longrightarrow\quad q_j = \tfrac{1}{Z}\, o_j \exp(v_j / \lambda)$$

with $v = p$ for negatives (Proposition 1) and $v = -p$ for positives (Proposition 2). With the easiness
$u = 1 - p$ of a negative and $u = p$ of a positive, both read $q_j \propto o_j \exp(-u_j/\lambda)$: the constant
$\exp(1/\lambda)$ between $v = p$ and $v = -(1 - p)$ cancels in $Z$. The prior $o$ is uniform, as in the paper's
experiments.
"""

import torch
from torch import Tensor

from drloss.losses.candidates import require_positive


def drifted_weights(easiness: Tensor, mask: Tensor, *, lam: float) -> Tensor:
    r"""Derived distribution $q_j = \exp(-u_j/\lambda) / Z$ over the candidates of each image.

    Paper: Proposition 1 (negatives, $u = 1 - p$) and Proposition 2 (positives, $u = p$), §3.2, with a uniform prior.
    As λ → 0 all weight goes to the hardest candidate (Eq. 5); as λ → ∞ it becomes uniform.

    Args:
        easiness: (N, M) float32 or float64, $u \in [0, 1]$.
        mask: (N, M) bool, the candidates that exist.
        lam: λ > 0, in score units.
    Returns:
        (N, M) weights, 0 outside the mask; each row sums to 1, or to 0 where the mask is empty.
    Raises:
        ValueError: if ``lam`` is not positive and finite.

    The hardest candidate is subtracted in the exponent, so that no λ overflows: the largest term of Z is 1.
    """
    require_positive(lam=lam)
    if easiness.shape[1] == 0:
        return easiness
    hardest = torch.where(mask, easiness, 1.0).amin(dim=1, keepdim=True).detach()
    terms = torch.where(mask, torch.exp((hardest - easiness) / lam), 0.0)
    total = terms.sum(dim=1, keepdim=True)
    return terms / torch.where(total == 0, 1.0, total)


def expected_easiness(easiness: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    r"""Expectation $\sum_j q_j u_j$ of each image, 1 where it has no candidate.

    Paper: Eq. (6): $\hat P_+$ is the expectation over positives and $\hat P_-$ is 1 minus the one over negatives.
    "If there is no positive examples in an image, we will let $\hat P_+ = 1$" (§3.2); the paper is silent on an
    image without negatives, where the same rule gives $\hat P_- = 0$.

    Args:
        easiness: (N, M) float32 or float64, $u \in [0, 1]$.
        weights: (N, M), from :func:`drifted_weights`.
        mask: (N, M) bool.
    Returns:
        (N,) in score units. The graph is kept where the mask is empty, with gradient 0.
    """
    expectation = (weights * easiness).sum(dim=1)
    return torch.where(mask.any(dim=1), expectation, expectation + 1)


def effective_number(weights: Tensor) -> Tensor:
    r"""Effective number of candidates $\exp(H(q))$, $H(q) = -\sum_j q_j \log q_j$.

    1 where all weight lies on one candidate, n where it is spread evenly over n, 0 where there is none.

    Args:
        weights: (N, M) distributions, rows that sum to 1 (or to 0).
    Returns:
        (N,).
    """
    number = torch.special.entr(weights).sum(dim=1).exp()
    return torch.where((weights > 0).any(dim=1), number, 0.0)
