r"""From the sums of an image to its loss, and to the coefficients of its gradient: one rule for each kind of loss.

**The DR loss.** Take the candidates of one sign, with hardness $v$ (the score of a negative, 1 minus the score of a
positive), prior $o$ and $e = \exp((v - c)/\lambda)$. Eq. (9) needs three sums of them, $Z = \sum o e$,
$S = \sum o e (v - c)$ and $M = \sum o$:

- $V = c + S/Z$ is $\hat P_-$ for the negatives and $1 - \hat P_+$ for the positives (Eq. 6);
- $c + \lambda \log(Z/M)$ is the dual value, whose gradient is q;
- so $z = V_- + V_+ - 1 + \gamma$, and the loss is $\ell(z)$ (Eq. 9).

The gradient is computed from the logits and two coefficients: it is $o e (\alpha + \beta (v - c)) v (1 - v)$ with
$\alpha = (1 - (V - c)/\lambda)\,\ell'(z)/Z$ and $\beta = \ell'(z)/(\lambda Z)$, which is Appendix A. With the weights
held fixed, $\alpha = \ell'(z)/Z$ and $\beta = 0$.

The shift c is 0 while 1/λ is at most 16: scores lie in (0, 1), so that e^16 · 16 million does not overflow, and their
rounding divided by λ stays below 1e-6. For a smaller λ a first pass finds the hardest candidate, whose v is c.

**By class** (ours) each class has its sums, and one more ranking has those of all absent classes together. The loss
is the mean over the rankings, and each class has the coefficients of its ranking.

**Pointwise losses**, the focal loss and the cross-entropy: ``kernels.c`` has the formulas. Z is the sum of the losses
of one sign, M counts its candidates, S is not used, and α is the weight of the sign.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from drloss.losses.fused.layout import FirstPass, pair
from drloss.losses.surrogates import choose_surrogate, surrogate_slope

MOST_RATE = 16.0
"""Largest 1/λ that needs no shift."""
MOST_RATE_BY_CLASS = 64.0
"""Largest 1/λ by class: all classes of an image share a shift, and e^-64 of a class that is easy is not 0 yet."""


@dataclass(frozen=True)
class DRRule:
    """Eq. (9).

    Attributes:
        pos_rate, neg_rate: 1/λ₊ and 1/λ₋.
        margin: γ.
        surrogate: its name.
        surrogate_parameter: ρ of the quadratic surrogate, L of the others.
        weights_grad: see :func:`drloss.dr_loss`.
        pooled: whether the candidates of all images are one set.
        by_class: whether each class is ranked by itself.
    """

    kind: ClassVar[str] = "dr"
    pos_rate: float
    neg_rate: float
    margin: float
    surrogate: str
    surrogate_parameter: float
    weights_grad: str
    pooled: bool
    by_class: bool

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """The rates, γ and the surrogate's parameter."""
        return self.pos_rate, self.neg_rate, self.margin, self.surrogate_parameter

    @property
    def choices(self) -> tuple[str, str]:
        """The surrogate, and how gradients pass the weights."""
        return self.surrogate, self.weights_grad

    @property
    def shifted(self) -> list[bool]:
        """Whether the exponent of positives and of negatives needs a shift."""
        return [self.pos_rate > MOST_RATE, self.neg_rate > MOST_RATE]

    def finish(self, sums: Tensor, first_pass: Tensor | None) -> tuple[Tensor, Tensor]:
        """Losses (R,), and α and β of positives and negatives (R, 2, 2), from sums (R, 2, 3), all float64.

        R is N, or 1 if the images are pooled; ``first_pass`` is that of a :class:`drloss.losses.fused.layout.Batch`.
        By class the sums are (R, K, 2, 3) and the coefficients (R, K, 2, 2).
        """
        if self.by_class:
            return self._finish_by_class(sums, first_pass)
        return self._finish(sums, first_pass)

    def _finish_by_class(self, sums: Tensor, first_pass: Tensor | None) -> tuple[Tensor, Tensor]:
        rows, classes = sums.shape[:2]
        present = sums[:, :, 0, 2] > 0
        rest = torch.where(present[:, :, None, None], 0.0, sums).sum(dim=1)
        if first_pass is not None:
            first_pass = torch.cat([first_pass[:rows].repeat_interleave(classes, dim=0), first_pass[:rows]])
        losses, coefficients = self._finish(torch.cat([sums.flatten(0, 1), rest]), first_pass)
        absent = ~present.all(dim=1)
        count = present.sum(dim=1) + absent
        of_classes = torch.where(present, losses[: rows * classes].view(rows, classes), 0.0).sum(dim=1)
        of_rest = torch.where(absent, losses[rows * classes :], 0.0)
        own = coefficients[: rows * classes].view(rows, classes, 2, 2)
        chosen = torch.where(present[:, :, None, None], own, coefficients[rows * classes :].unsqueeze(1))
        return (of_classes + of_rest) / count, chosen / count[:, None, None, None]

    def _finish(self, sums: Tensor, first_pass: Tensor | None) -> tuple[Tensor, Tensor]:
        z_sum, s_sum, mass = sums.unbind(2)
        there = mass > 0
        z_sum = torch.where(there, z_sum, 1.0)
        lam = 1 / pair(sums, self.pos_rate, self.neg_rate)
        above = torch.where(there, s_sum / z_sum, 0.0)
        shift: Tensor | float = 0.0
        if first_pass is not None:
            found = FirstPass(*first_pass[: len(sums)].to(sums.dtype).unbind(2))
            shift = torch.where(found.score > 0.5, 1 - found.easiness, found.score)
            shift = torch.where(there, shift, 0.0)
        value = shift + above
        if self.weights_grad == "dual":
            value = torch.where(there, shift + lam * (z_sum / torch.where(there, mass, 1.0)).log(), 0.0)
        violation = value.sum(dim=1) - 1 + self.margin
        parameters = {"smoothness": self.surrogate_parameter, "rho": self.surrogate_parameter}
        slope = surrogate_slope(self.surrogate, **parameters)(violation)
        alpha, beta = 1 / z_sum, torch.zeros_like(z_sum)
        if self.weights_grad == "exact":
            alpha, beta = (1 - above / lam) / z_sum, 1 / (lam * z_sum)
        coefficients = torch.stack([alpha, beta], dim=2) * (there * slope.unsqueeze(1)).unsqueeze(2)
        return choose_surrogate(self.surrogate, **parameters)(violation), coefficients


@dataclass(frozen=True)
class PointwiseRule:
    """A sum of losses of single candidates: the focal loss, or for γ = 0 the cross-entropy.

    Attributes:
        gamma: γ.
        pos_weight, neg_weight: weights of a positive and of a negative.
        normalizer: ``"positives"`` divides the sum by the number of positives, at least 1; ``"none"`` does not.
        pooled: whether the candidates of all images are one set.
    """

    kind: ClassVar[str] = "focal"
    by_class: ClassVar[bool] = False
    shifted: ClassVar[list[bool]] = [False, False]
    gamma: float
    pos_weight: float
    neg_weight: float
    normalizer: str
    pooled: bool

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """γ of each sign, and the weights."""
        return self.gamma, self.gamma, self.pos_weight, self.neg_weight

    @property
    def choices(self) -> tuple[str, str]:
        """The normaliser; there is no second choice."""
        return self.normalizer, ""

    def finish(self, sums: Tensor, first_pass: Tensor | None) -> tuple[Tensor, Tensor]:
        """As :meth:`DRRule.finish`; β is 0, and there is no first pass."""
        z_sum, _, mass = sums.unbind(2)
        weights = pair(sums, self.pos_weight, self.neg_weight).expand(len(sums), 2)
        if self.normalizer == "positives":
            weights = weights / mass[:, :1].clamp(min=1)
        return (z_sum * weights).sum(dim=1), torch.stack([weights, torch.zeros_like(weights)], dim=2)


Rule = DRRule | PointwiseRule


def read_rule(kind: str, numbers: list[float], choices: tuple[str, str], *, pooled: bool, by_class: bool) -> Rule:
    """The rule of that kind with these ``numbers`` and ``choices``, which are what an operator is given of it."""
    pos_rate, neg_rate, first, second = numbers
    if kind == "focal":
        return PointwiseRule(pos_rate, first, second, choices[0], pooled)
    return DRRule(pos_rate, neg_rate, first, choices[0], second, choices[1], pooled, by_class)
