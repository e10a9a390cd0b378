"""Statistics of the DR loss for logs, and a check of the first loss of a training run."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any

import torch
from torch import Tensor

from drloss.losses.candidates import REDUCTIONS, Candidates, CandidateSet, split_candidates
from drloss.losses.distribution import Drift, effective_number, expected_easiness, kl_divergence
from drloss.losses.dr import ALL_SCOPES, DRLoss
from drloss.losses.inputs import POOLED_SCOPES, Levels, join
from drloss.losses.parameters import require_choice
from drloss.losses.ranking import RankingLoss
from drloss.losses.summation import total

HARD_SHARE = 0.01
"""Share of the negatives that count as the hardest."""


@dataclass(frozen=True)
class DRExpectations:
    r"""What the loss sees in each image; every attribute is (N,), or (1,) if pooled, without a graph.

    With a scope by class they are those of ``"per_image"`` or ``"pooled"``: the scores of all classes together.

    Attributes:
        expected_pos: $\hat P_+$, in score units.
        expected_neg: $\hat P_-$, in score units.
        violation: $z = \hat P_- - \hat P_+ + \gamma$, in score units.
        effective_pos: $\exp(H(q_+))$, the effective number of positives in the loss; 0 if there is none.
        effective_neg: $\exp(H(q_-))$, the effective number of negatives in the loss; 0 if there is none.
        kl_pos: $\mathrm{KL}(q_+\|o_+)$ in nats.
        kl_neg: $\mathrm{KL}(q_-\|o_-)$ in nats.
    """

    expected_pos: Tensor
    expected_neg: Tensor
    violation: Tensor
    effective_pos: Tensor
    effective_neg: Tensor
    kl_pos: Tensor
    kl_neg: Tensor

    @property
    def margin(self) -> Tensor:
        r"""Margin that is reached, $\hat P_+ - \hat P_-$; the loss asks for γ."""
        return self.expected_pos - self.expected_neg


@dataclass(frozen=True)
class DRStatistics(DRExpectations):
    """Statistics of the loss in each image: :class:`DRExpectations`, and shares of the gradient.

    Attributes:
        flipped: share of the negatives whose score the gradient pushes up, in [0, 1].
        hard_mass: share of the hardest 1 % of the negatives in the gradient of all negatives (the sum of its absolute
            values with respect to the logits), in [0, 1].
    """

    flipped: Tensor
    hard_mass: Tensor


def dr_expectations(
    logits: Sequence[Tensor], labels: Tensor, *, objects: Tensor | None = None, **options: Any
) -> DRExpectations:
    """The part of :func:`dr_statistics` that needs no gradient, image by image unless they are pooled.

    So it takes the memory of one image, and waits for no device: for logs during training.

    Args:
        logits: one tensor for each level.
        labels: (N, A) integers.
        objects: (N, A) integers, or None.
        options: as in :func:`dr_statistics`; priors are numbers or names.
    Raises:
        ValueError, TypeError: as :func:`drloss.dr_loss`.
    """
    ranking, split = _settings(options)
    images = [slice(None)] if split["scope"] == "pooled" else [slice(n, n + 1) for n in range(len(labels))]
    parts = []
    with torch.no_grad():
        for image in images:
            own = None if objects is None else objects[image]
            candidates = split_candidates([x[image] for x in logits], labels[image], objects=own, **split)
            parts.append(_expectations(candidates, ranking))
        dtype = torch.promote_types(logits[0].dtype, torch.float32)
        return DRExpectations(**{name: torch.cat([p[name] for p in parts]).squeeze(1).to(dtype) for name in parts[0]})


def dr_statistics(
    logits: Levels,
    labels: Levels,
    *,
    ignore: Levels | None = None,
    objects: Levels | None = None,
    **options: Any,
) -> DRStatistics:
    r"""Expected scores of Eq. (6), effective numbers of candidates and shares of the gradient, per image.

    Args:
        logits, labels, ignore, objects: see :func:`drloss.dr_loss`.
        options: the other options of :func:`drloss.dr_loss`; ``reduction``, ``backend`` and ``inplace`` have no
            effect. The expectations are those of the derived distributions for any pairing; the gradient is that of
            the loss with these options.
    Raises:
        ValueError, TypeError: as :func:`drloss.dr_loss`.

    The logits may come from a detector that was trained with another loss: two losses can be compared this way.
    """
    ranking, split = _settings(options)
    with torch.inference_mode(False), torch.enable_grad():
        candidates = _leaves(split_candidates(logits, labels, ignore, objects=objects, **split))
        gradient = torch.autograd.grad(ranking.losses(candidates).sum(), candidates.negative.signed)[0]
    with torch.no_grad():
        figures = _expectations(candidates, ranking) | {
            # The signed logit of a negative is -x: where the loss rises with it, it falls with x.
            "flipped": total((gradient > 0).to(gradient.dtype)) / candidates.negative.count.clamp(min=1),
            "hard_mass": _hard_mass(candidates.negative, gradient.abs()),
        }
        dtype = candidates.negative.signed.dtype
        return DRStatistics(**{name: figure.squeeze(1).to(dtype) for name, figure in figures.items()})


def _settings(options: dict[str, Any]) -> tuple[RankingLoss, dict[str, Any]]:
    """The ranking of these options of the loss, and the arguments of :func:`split_candidates` among them."""
    settings = DRLoss.defaults | options
    if unknown := set(settings) - set(DRLoss.defaults):
        raise TypeError(f"dr_statistics has no option {', '.join(sorted(unknown))}")
    require_choice("reduction", settings.pop("reduction"), REDUCTIONS)
    for name in ("backend", "inplace"):
        del settings[name]
    split = {name: settings.pop(name) for name in ("pos_prior", "neg_prior", "scope")}
    require_choice("scope", split["scope"], ALL_SCOPES)
    split["scope"] = "pooled" if split["scope"] in POOLED_SCOPES else "per_image"
    return RankingLoss.of(**settings), split


def _expectations(candidates: Candidates, ranking: RankingLoss) -> dict[str, Tensor]:
    """Values (N, 1) of the fields of :class:`DRExpectations`."""
    parts = [
        _distribution(part, drift)
        for part, drift in ((candidates.positive, ranking.positive), (candidates.negative, ranking.negative))
    ]
    (easy_pos, effective_pos, kl_pos), (easy_neg, effective_neg, kl_neg) = parts
    return {
        "expected_pos": easy_pos,
        "expected_neg": 1 - easy_neg,
        "violation": 1 - easy_neg - easy_pos + ranking.margin,
        "effective_pos": effective_pos,
        "effective_neg": effective_neg,
        "kl_pos": kl_pos,
        "kl_neg": kl_neg,
    }


def _leaves(candidates: Candidates) -> Candidates:
    return Candidates(
        **{
            name: CandidateSet(part.signed.detach().requires_grad_(), part.prior, part.empty)
            for name, part in (("positive", candidates.positive), ("negative", candidates.negative))
        }
    )


def _distribution(part: CandidateSet, drift: Drift) -> tuple[Tensor, Tensor, Tensor]:
    """Expected easiness, effective number and divergence from the prior, each (N, 1)."""
    easiness = part.easiness
    q = drift.weights(easiness, part.prior)
    effective = torch.where(part.empty, 0.0, effective_number(q))
    return expected_easiness(easiness, q), effective, kl_divergence(q, part.prior)


def _hard_mass(negative: CandidateSet, size: Tensor) -> Tensor:
    count = negative.count
    most = ceil(negative.signed.shape[1] * HARD_SHARE)
    hardest = negative.signed.topk(most, dim=1, largest=False).indices
    among = torch.arange(most, device=count.device) < (count * HARD_SHARE).ceil()
    whole = total(size)
    return total(size.gather(1, hardest) * among) / torch.where(whole > 0, whole, 1.0)


def first_loss_problem(value: float, loss: DRLoss, labels: Levels, num_classes: int, **of_batch: Any) -> str | None:
    r"""A sentence that says what is wrong with the first loss of a training run; None if it is as expected.

    Paper: §4.2. With every score at 0.5, where the classifier starts, each image with both kinds of candidates has
    the loss τ · ℓ(γ), which is cls_weight · softplus(L/2)/L = 2.0324 at the defaults. A value far below this usually
    means that a framework divides the loss by the number of positives, which switches the DR loss off. A factor of 2
    is allowed, because a network with random weights spreads the first scores around 0.5.

    Args:
        value: classification loss of the first step with its weight, as a term of the sum that is differentiated.
        loss: the module that the training loop calls.
        labels: those of the batch, (N, A) integers or dense targets, or their levels; see :func:`drloss.dr_loss`.
        num_classes: K.
        of_batch: what else the loss was called with, such as ``objects``.
    Raises:
        TypeError: if ``loss`` is no DRLoss.
        ValueError: if ``labels`` do not fit.
    """
    if not isinstance(loss, DRLoss):
        raise TypeError(f"loss must be a DRLoss, whose first value the theory knows, got {type(loss).__name__}")
    labels = join("labels", labels)
    with torch.no_grad():
        expected = float(
            loss(torch.zeros(*labels.shape[:2], num_classes, device=labels.device), labels, **of_batch).mean()
        )
    if expected / 2 <= value <= expected * 2:
        return None
    hint = "is it a mean over images, and does the classifier start from scores of 0.5 (bias 0)?"
    if not isfinite(value):
        hint = "are the logits finite?"
    elif 0 < value < expected:
        positives = int((labels > 0).sum())
        hint = (
            f"it is {expected / value:.3g} times too small, and the batch has {positives} positives, "
            f"{positives / max(labels.shape[0], 1):.3g} an image: the DR loss must not be divided by their number"
        )
    return f"the first classification loss is {value:.4g}, where scores of 0.5 give {expected:.4g}; {hint}"


def check_first_loss(value: float, loss: DRLoss, labels: Levels, num_classes: int, **of_batch: Any) -> bool:
    """Call this once in a training loop: it warns if :func:`first_loss_problem` finds something.

    Returns:
        True where there is no problem.
    """
    problem = first_loss_problem(value, loss, labels, num_classes, **of_batch)
    if problem:
        warnings.warn(problem, stacklevel=2)
    return problem is None
