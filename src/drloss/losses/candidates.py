"""From a detector's logits and labels to the paper's two sets of candidates.

A candidate (the paper's $j$) is one (anchor, class) entry of one image, from any pyramid level. It is

- positive, if the anchor is matched to an object and the class is the object's;
- negative, if it is another class of such an anchor, or any class of a background anchor;
- in neither set, if the anchor is ignored.

The losses work on *signed* logits: $x$ at a positive candidate and $-x$ at a negative one, so that
a large value always means "easy". Their sigmoid, the easiness $u$, is $p$ for a positive and $1 - p$ for a
negative; computed from the signed logit it keeps its precision where $1 - p$ rounds to 0.

A place without a candidate has the signed logit +∞, hence easiness 1 and gradient 0. A set without candidates is one
such place with all of the prior. So an image without positives has one positive of score 1 ("If there is no positive
examples in an image, we will let $\\hat P_+ = 1$", §3.2), and an image without negatives, of which the paper says
nothing, has one negative of score 0. The rule is the same in every loss, and the graph is kept.
"""

from dataclasses import dataclass
from math import inf, nan

import torch
from torch import Tensor
from torch.nn import functional

from drloss.losses.inputs import POOLED_SCOPES, Inputs, Levels, Prior, check_inputs
from drloss.losses.parameters import require_choice
from drloss.losses.summation import padded_length, total

REDUCTIONS = ("mean", "sum", "none")


@dataclass(frozen=True)
class CandidateSet:
    """The positive or the negative candidates of each image (or, pooled, of all images).

    Attributes:
        signed: (N, M) float32 or float64 logits, $x$ of a positive and $-x$ of a negative; +∞ at the places
            without a candidate. Rows are padded: see :mod:`drloss.losses.summation`.
        prior: (N, M) the original distribution $o$ of §3.2, not normalised: bool where it is uniform, else weights
            of the dtype of ``signed``. Its sum is positive in every row.
        empty: (N, 1) bool, True where the set has no candidate (or none with a positive weight).
    """

    signed: Tensor
    prior: Tensor
    empty: Tensor

    @property
    def easiness(self) -> Tensor:
        """(N, M) score of a positive, 1 minus the score of a negative."""
        # As the sigmoid of the negative one of x and -x: torch's slope, y (1 - y), is 0 in float32 from x = 17 on.
        below = self.signed < 0
        smaller = torch.where(below, self.signed, -self.signed).sigmoid()
        return torch.where(below, smaller, 1 - smaller)

    @property
    def count(self) -> Tensor:
        """(N, 1) int64, number of candidates with a positive prior."""
        return (self.prior > 0).sum(dim=1, keepdim=True) - self.empty.long()


@dataclass(frozen=True)
class Candidates:
    """The positive and the negative candidates of each image."""

    positive: CandidateSet
    negative: CandidateSet


@dataclass(frozen=True)
class ClassCandidates:
    """The candidates of each class of R images, for one ranking a class (ours; the paper ranks all classes together).

    Attributes:
        own: R · K rows, the positives and the negatives of class k of image r in row r · K + k.
        rest: R rows, no positive and the negatives of all classes of the image that have no positive.
        present: (R, K) bool, whether a class has a positive.
    """

    own: Candidates
    rest: Candidates
    present: Tensor

    def mean(self, own: Tensor, rest: Tensor) -> Tensor:
        """Mean over the rankings of each image: one a present class, and one for all absent classes if there are any.

        Args:
            own: (R · K,) losses of the rows of :attr:`own`.
            rest: (R,) losses of the rows of :attr:`rest`.
        Returns:
            (R,) losses.
        """
        absent = ~self.present.all(dim=1)
        of_classes = torch.where(self.present, own.view_as(self.present), 0.0).sum(dim=1)
        return (of_classes + torch.where(absent, rest, 0.0)) / (self.present.sum(dim=1) + absent)


def split_candidates(
    logits: Levels,
    labels: Levels,
    ignore: Levels | None = None,
    *,
    pos_prior: Prior = None,
    neg_prior: Prior = None,
    scope: str = "per_image",
    objects: Levels | None = None,
) -> Candidates:
    """Sort the (anchor, class) entries of each image into positive and negative candidates.

    Paper: §3.2, where an image without positives counts as one with a positive of score 1.

    Args:
        logits: (N, A, K) of any floating dtype, or a list or tuple of per-level logits (N, A_l, K) or of the
            classifier's maps (N, B·K, H, W), whose anchors are counted by row, column and shape.
        labels: (N, A) integer, -1 ignored, 0 background, 1..K the class; or dense targets (N, A, K), float or
            bool, 1 where positive and 0 elsewhere. A list or tuple of per-level parts is joined likewise.
        ignore: (N, A) bool, only with dense targets: True where an anchor is in neither set.
        pos_prior, neg_prior: None, the number n̂ of hardest candidates, or weights of shape (K,) per class, (N, A) per
            anchor or (N, A, K) per candidate, not negative; ``pos_prior`` may be a name of
            :data:`~drloss.losses.inputs.POS_PRIORS`.
        scope: ``"per_image"``, or ``"pooled"``: the candidates of all images in one set.
        objects: (N, A) integer, with the prior ``"object"`` of the positives; see :func:`drloss.dr_loss`.
    Returns:
        Candidates: M >= A positives for integer labels and >= A * K for dense targets; M >= A * K negatives.
    Raises:
        ValueError: if a dtype or a shape does not fit or, on the CPU, if a value is out of range. On an accelerator,
            in compiled code and within torch.func values are not checked; :func:`drloss.dr_loss` says how bad ones
            count.
        TypeError: if logits, labels or weights are no tensors.
    """
    return candidates_of(
        check_inputs(logits, labels, ignore, pos_prior, neg_prior, scope, objects=objects),
        pos_prior,
        neg_prior,
        scope,
    )


def candidates_of(inputs: Inputs, pos_prior: Prior, neg_prior: Prior, scope: str) -> Candidates:
    """The candidates of inputs that :func:`~drloss.losses.inputs.check_inputs` has checked."""
    rows = inputs.rows
    logits = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if inputs.labels is not None:
        positive, negative = _from_labels(logits, inputs.labels, *inputs.weights)
    else:
        assert inputs.targets is not None
        positive, negative = _from_dense_targets(logits, inputs.targets, inputs.ignore, *inputs.weights)
    return Candidates(
        positive=_candidate_set(_without(positive[0].isinf(), positive[0]), *positive[1:], pos_prior, scope),
        negative=_candidate_set(_without(negative[0] == -inf, negative[0]), *negative[1:], neg_prior, scope),
    )


def class_candidates_of(inputs: Inputs, pos_prior: Prior, neg_prior: Prior, scope: str) -> ClassCandidates:
    """As :func:`candidates_of`, for a scope of :data:`~drloss.losses.inputs.CLASS_SCOPES` (ours)."""
    logits = torch.cat(inputs.rows, dim=1)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if inputs.labels is not None:
        known = (inputs.labels >= 0) & (inputs.labels <= inputs.classes)
        positive = inputs.labels.unsqueeze(2) == torch.arange(1, inputs.classes + 1, device=logits.device)
    else:
        assert inputs.targets is not None
        known = torch.ones_like(inputs.targets[:, :, 0]) if inputs.ignore is None else ~inputs.ignore
        positive = inputs.targets
    pooled = scope in POOLED_SCOPES and len(logits) > 0

    def by_class(x: Tensor) -> Tensor:
        """(N, A, K) to (R, K, M)."""
        return (x.permute(2, 0, 1).flatten(1).unsqueeze(0) if pooled else x.transpose(1, 2)).contiguous()

    x = by_class(logits)
    masks = by_class(positive & known.unsqueeze(2)), by_class(~positive & known.unsqueeze(2))
    signs = _without(x.isinf(), x), _without(x == inf, -x)
    weights = [None if w is None else by_class(w) for w in inputs.weights]

    def split(masks: tuple[Tensor, Tensor], first: int, last: int) -> Candidates:
        """Sets whose rows are the dimensions ``first`` to ``last``, flattened."""
        sets = []
        for signed, mask, w, prior in zip(signs, masks, weights, (pos_prior, neg_prior), strict=True):
            flat = None if w is None else w.flatten(first, last)
            sets.append(
                _candidate_set(signed.flatten(first, last), mask.flatten(first, last), flat, prior, "per_image")
            )
        return Candidates(*sets)

    own = split(masks, 0, 1)
    present = ~own.positive.empty.view(x.shape[:2])
    absent = masks[1] & ~present.unsqueeze(2)
    return ClassCandidates(own, split((torch.zeros_like(absent), absent), 1, 2), present)


_Part = tuple[Tensor, Tensor, Tensor | None]  # signed logits, mask, weights of one set, each (N, M)


def _from_labels(
    logits: Tensor, labels: Tensor, pos_weights: Tensor | None, neg_weights: Tensor | None
) -> tuple[_Part, _Part]:
    classes = torch.arange(1, logits.shape[2] + 1, device=logits.device)
    known = labels <= logits.shape[2]  # labels on an accelerator are not checked
    negative_mask = (labels.unsqueeze(2) != classes) & ((labels >= 0) & known).unsqueeze(2)
    own_class = (labels - 1).clamp(0, logits.shape[2] - 1).unsqueeze(2)
    positive = logits.gather(2, own_class).squeeze(2)
    if pos_weights is not None:
        pos_weights = pos_weights.gather(2, own_class).squeeze(2)
    return (positive, (labels > 0) & known, pos_weights), (
        -logits.flatten(1),
        negative_mask.flatten(1),
        _flat(neg_weights),
    )


def _from_dense_targets(
    logits: Tensor, targets: Tensor, ignore: Tensor | None, pos_weights: Tensor | None, neg_weights: Tensor | None
) -> tuple[_Part, _Part]:
    positive_mask, negative_mask = targets, ~targets
    if ignore is not None:
        counted = ~ignore.unsqueeze(2)
        positive_mask, negative_mask = positive_mask & counted, negative_mask & counted
    flat = logits.flatten(1)
    return (
        (flat, positive_mask.flatten(1), _flat(pos_weights)),
        (-flat, negative_mask.flatten(1), _flat(neg_weights)),
    )


def _without(overflown: Tensor, signed: Tensor) -> Tensor:
    """NaN, in the gradient too, in place of infinite logits; a masked class is not among them."""
    return signed + torch.where(overflown, nan, 0.0)


def _flat(weights: Tensor | None) -> Tensor | None:
    return None if weights is None else weights.flatten(1)


def _candidate_set(signed: Tensor, mask: Tensor, weights: Tensor | None, prior: Prior, scope: str) -> CandidateSet:
    if weights is not None:
        mask = mask & (weights > 0)
    if scope == "pooled" and signed.shape[0] > 0:
        signed, mask = signed.reshape(1, -1), mask.reshape(1, -1)
        weights = None if weights is None else weights.reshape(1, -1)
    rows, length = signed.shape
    more = padded_length(max(rows, 1), length) - length
    # Replaced before any arithmetic: a NaN at an ignored anchor must change neither the loss nor the gradient.
    signed = functional.pad(torch.where(mask, signed, inf), (0, more), value=inf)
    padded = functional.pad(mask, (0, more))
    empty = ~mask.any(dim=1, keepdim=True)
    first = torch.arange(padded.shape[1], device=mask.device) == 0
    if weights is None:
        found = CandidateSet(signed, padded | (empty & first), empty)
    else:
        weights = functional.pad(torch.where(mask, weights, 0.0), (0, more))
        found = CandidateSet(signed, torch.where(empty & first, 1.0, weights), empty)
    return found if not isinstance(prior, int) else hardest_only(found, prior)


def hardest_only(found: CandidateSet, count: int) -> CandidateSet:
    r"""The set with the prior of hard mining: $o_j \in \{0, 1/\hat n\}$, non-zero at the n̂ hardest candidates.

    Paper: "Hard negative mining" in §3.2. Candidates tied for the last place share it; see :func:`keep_hardest`.

    Args:
        found: a set with a uniform prior.
        count: n̂ >= 1; a set with fewer candidates keeps all.
    """
    k = min(count, found.signed.shape[1])
    threshold = found.signed.detach().topk(k, dim=1, largest=False).values[:, -1:]
    mass = found.prior.sum(dim=1, keepdim=True).clamp(max=count)
    return CandidateSet(found.signed, keep_hardest(found.signed, found.prior, threshold, mass), found.empty)


@torch.no_grad()
def keep_hardest(keys: Tensor, prior: Tensor, threshold: Tensor, mass: Tensor) -> Tensor:
    """Cut a prior down to its hardest candidates, which are those with the smallest keys.

    Candidates whose key equals the threshold share the remaining mass equally. That is the mean over all ways to
    break the tie, has the same expectation as each of them, and does not depend on the order of the candidates.

    Args:
        keys: (N, M); a small key is a hard candidate.
        prior: (N, M) bool or weights.
        threshold: (N, 1), key of the last candidate that is kept.
        mass: (N, 1), sum of the prior that is kept.
    Returns:
        (N, M) weights of the dtype of ``keys``; they sum to ``mass``.
    """
    prior = prior.to(keys.dtype)
    harder, tied = (keys < threshold) * prior, (keys == threshold) * prior
    at_threshold = total(tied)
    share = ((mass - total(harder)) / torch.where(at_threshold > 0, at_threshold, 1.0)).clamp(0, 1)
    return harder + tied * share.to(keys.dtype)


def reduce_images(losses: Tensor, reduction: str) -> Tensor:
    """Reduce the losses of images (N,) by ``"mean"``, ``"sum"`` or ``"none"``; the mean over no image is 0.

    Raises:
        ValueError: if ``reduction`` is none of the three.
    """
    require_choice("reduction", reduction, REDUCTIONS)
    if reduction == "mean":
        return losses.sum() / max(losses.shape[0], 1)
    return losses.sum() if reduction == "sum" else losses
