r"""From the two sets of candidates to one ranking loss for each image: Eqs. (3)-(5) and (9), and NegOnly of §4.3.

In every pairing a set without candidates counts as one positive of score 1, or one negative of score 0; see
:mod:`drloss.losses.candidates`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from drloss.losses.candidates import Candidates
from drloss.losses.distribution import Drift
from drloss.losses.pairs import MOST_SMOOTHNESS, all_pairs_loss
from drloss.losses.parameters import require_choice, require_finite
from drloss.losses.summation import spread, total, wide
from drloss.losses.surrogates import choose_surrogate

PAIRINGS = ("dr", "neg_only", "all_pairs", "worst_case")


@dataclass(frozen=True)
class RankingLoss:
    """Which scores are ranked against which, and the loss of a violation.

    A violation is z = negative score - positive score + margin: above 0, the pair of scores breaks the margin.

    Attributes:
        pairing, surrogate, smoothness, rho, margin: see :func:`drloss.dr_loss`.
        positive, negative: how the distribution of each set is derived from its prior.
    """

    pairing: str
    surrogate: str
    smoothness: float
    rho: float
    margin: float
    positive: Drift
    negative: Drift

    def __post_init__(self) -> None:
        require_choice("pairing", self.pairing, PAIRINGS)
        require_finite(margin=self.margin)
        choose_surrogate(self.surrogate, smoothness=self.smoothness, rho=self.rho)
        self.positive.check("pos")
        self.negative.check("neg")
        if self.pairing == "all_pairs" and self.surrogate == "logistic" and self.smoothness > MOST_SMOOTHNESS:
            raise ValueError(
                f"smoothness must be at most {MOST_SMOOTHNESS:g} with pairing 'all_pairs', got {self.smoothness!r}; "
                "surrogate 'hinge' is its limit"
            )

    @staticmethod
    def of(
        *,
        regularizer: str,
        pos_lambda: float,
        neg_lambda: float,
        pos_radius: float | None,
        neg_radius: float | None,
        pos_alpha: float | None,
        neg_alpha: float | None,
        weights_grad: str,
        **rest: Any,
    ) -> "RankingLoss":
        """The ranking loss with these options of :func:`drloss.dr_loss`.

        Raises:
            ValueError: if one of them is out of range.
        """
        positive = Drift(regularizer, pos_lambda, pos_radius, pos_alpha, weights_grad)
        negative = Drift(regularizer, neg_lambda, neg_radius, neg_alpha, weights_grad)
        return RankingLoss(positive=positive, negative=negative, **rest)

    @property
    def least_lambda(self) -> float:
        """The smaller of λ₊ and λ₋."""
        return min(self.positive.lam, self.negative.lam)

    def losses(self, candidates: Candidates) -> Tensor:
        """Loss of each image, (N,) of the dtype of the signed logits."""
        if self.pairing == "all_pairs":
            losses = all_pairs_loss(
                candidates.positive,
                candidates.negative,
                surrogate=self.surrogate,
                margin=self.margin,
                smoothness=self.smoothness,
                rho=self.rho,
            )
        else:
            surrogate = choose_surrogate(self.surrogate, smoothness=self.smoothness, rho=self.rho)
            if self.pairing == "worst_case":
                losses = worst_case_loss(candidates, surrogate, self.margin)
            elif self.pairing == "neg_only":
                losses = neg_only_loss(candidates, surrogate, self.margin, self.negative)
            else:
                losses = distributional_loss(candidates, surrogate, self.margin, self.positive, self.negative)
        return losses.squeeze(1).to(candidates.negative.signed.dtype)


_known_ranking = lru_cache(maxsize=256, typed=True)(RankingLoss.of)


def ranking_of(**options: Any) -> RankingLoss:
    """As :meth:`RankingLoss.of`, which is costly for a small batch: what was made once is kept."""
    # The compiler does not look at what is kept; what else may be equal to a number is checked at each call.
    if torch.compiler.is_compiling() or not all(type(v) in (float, int, str, NoneType) for v in options.values()):
        return RankingLoss.of(**options)
    return _known_ranking(**options)


def distributional_loss(
    candidates: Candidates, surrogate: Callable[[Tensor], Tensor], margin: float, positive: Drift, negative: Drift
) -> Tensor:
    r"""$\ell(\hat P_- - \hat P_+ + \gamma)$, (N, 1) float64, with $\hat P_- = 1 - U_-$ and $\hat P_+ = U_+$.

    Paper: Eq. (9), with Eq. (6) for the expectations.
    """
    expected_neg = 1 - negative.expectation(candidates.negative)
    return surrogate(expected_neg - positive.expectation(candidates.positive) + margin)


def neg_only_loss(
    candidates: Candidates, surrogate: Callable[[Tensor], Tensor], margin: float, negative: Drift
) -> Tensor:
    r"""$\frac{1}{n_+}\sum_{j_+} \ell(\hat P_- - p_{j_+} + \gamma)$, (N, 1) float64.

    Paper: the objective of "NegOnly" in §4.3 and Table 3. Only the negatives have a derived distribution. A prior
    over the positives replaces $1/n_+$.
    """
    expected_neg = 1 - negative.expectation(candidates.negative)
    scores, prior = candidates.positive.easiness, candidates.positive.prior
    violations = spread(expected_neg + margin, like=scores) - scores
    return total(surrogate(violations) * prior) / total(prior)


def worst_case_loss(candidates: Candidates, surrogate: Callable[[Tensor], Tensor], margin: float) -> Tensor:
    r"""$\ell(\max_{j_-} p_{j_-} - \min_{j_+} p_{j_+} + \gamma)$, (N, 1) float64: the hardest pair of each image.

    Paper: Eq. (5), §3.2, which "fails to obtain the meaningful result" in training (§4.3). If several candidates
    are equally hard, they share the gradient equally.
    """
    hardest_pos = wide(candidates.positive.signed.amin(dim=1, keepdim=True)).sigmoid()
    hardest_neg = wide(candidates.negative.signed.amin(dim=1, keepdim=True)).sigmoid()
    return surrogate((1 - hardest_neg) - hardest_pos + margin)
