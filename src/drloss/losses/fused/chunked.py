"""The sums in plain torch, a chunk of anchors at a time: for any device and dtype, without a compiler."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from drloss.losses.fused.layout import Level, Problem
from drloss.losses.summation import block_length, padded_length, total, wide

CHUNK = 5 * block_length(1)
"""Candidates worked on at a time on a CPU: what fits in the processor's cache. Elsewhere a level of an image is."""

_LARGE = 1e30  # in place of ∞, which times 0 is NaN


@dataclass(frozen=True)
class Part:
    """The candidates of one sign in a chunk of C anchors.

    Attributes:
        y: (P,) signed hardness, x of a negative and -x of a positive, float32 or float64; 0 where the prior is, so
            that a NaN at an ignored anchor reaches nothing. P is C·K or, for one class of each anchor, C, padded:
            see :mod:`drloss.losses.summation`.
        prior: (P,) o, of the dtype of y, or None where it is 1 for all.
        own: (C, 1) int64, the class that is meant, or None for all.
    """

    y: Tensor
    prior: Tensor | None
    own: Tensor | None

    def y_where_prior(self, other: float) -> Tensor:
        """y, and another number where the prior is 0."""
        return self.y if self.prior is None else torch.where(self.prior != 0, self.y, other)


def hardest(problem: Problem) -> Tensor:
    """(N, 2) float64, the largest y of each image's positives and negatives; -inf where there is none."""
    found = wide(torch.full((problem.images, 2), -torch.inf, device=problem.labels.device))
    for chunk in _chunks(problem):
        for sign in range(2):
            largest = _part(problem, chunk, sign).y_where_prior(-torch.inf).amax()
            found[chunk.image, sign] = torch.maximum(found[chunk.image, sign], wide(largest))
    return found


def mined(problem: Problem, counts: Sequence[int], pooled: bool) -> Tensor:
    """(N, 2, 2) float32: least y and share of the counts[0] hardest positives and counts[1] hardest negatives.

    Paper: "Hard negative mining" in §3.2. A count of 0 stands for all candidates. Candidates tied for the last place
    share it; see :func:`drloss.losses.candidates.keep_hardest`.
    """
    found = problem.labels.new_tensor([-torch.inf, 1.0], dtype=torch.float32).repeat(problem.images, 2, 1)
    for sign, count in enumerate(counts):
        for images in [range(problem.images)] if pooled else [range(n, n + 1) for n in range(problem.images)]:
            if count and len(images):
                found[images.start : images.stop, sign] = _mined(problem, images, sign, count)
    return found


def _mined(problem: Problem, images: range, sign: int, count: int) -> Tensor:
    """Least y and share, (2,) float32, of the hardest candidates of one sign of some images together."""
    kept = torch.empty(0, device=problem.labels.device)
    chunks = []
    for chunk in _chunks(problem, images):
        most = _bound(problem, chunk, sign)
        chunks.append((chunk, most))
        if len(kept) < count or not most <= kept[-1]:
            y = _part(problem, chunk, sign).y_where_prior(-torch.inf)
            if len(kept) == count and y.device.type == "cpu":
                y = y[~(y <= kept[-1])]
            y = torch.cat([kept, y])
            kept = y.topk(min(count, len(y))).values
    if not len(kept):
        return torch.tensor([-torch.inf, 1.0])
    least = kept[-1]
    tied = torch.zeros_like(least)
    for chunk, most in chunks:
        if not most < least:
            tied += (_part(problem, chunk, sign).y_where_prior(torch.nan) == least).sum()
    return torch.stack([least, ((kept == least).sum() / tied.clamp(min=1)).clamp(max=1)])


def _bound(problem: Problem, chunk: "_Chunk", sign: int) -> Tensor:
    """No candidate of that sign in a chunk is harder: ∞ off the CPU, where looking at a number has to wait for it."""
    x = chunk.level.seen(chunk.level.logits, chunk.image)[chunk.first : chunk.last]
    if x.device.type != "cpu":
        return torch.tensor(torch.inf)
    return (x.amax() if sign else -x.amin()).float()


def sums(problem: Problem) -> Tensor:
    """(N, 2, 3) float64: Z, S and M of each image's positives and negatives; see :mod:`drloss.losses.fused.op`."""
    found = wide(torch.zeros(problem.images, 2, 3, device=problem.labels.device))
    for chunk in _chunks(problem):
        for sign in range(2):
            part = _part(problem, chunk, sign)
            terms, _, distance = _terms(problem, chunk.image, sign, part)
            z = terms * functional.softplus(part.y) if problem.kind == "focal" else terms
            mass = z.new_tensor([[len(z)]]) if part.prior is None else total(part.prior.unsqueeze(0))
            of_part = [total(z.unsqueeze(0)), total(distance.mul_(terms).unsqueeze(0)), wide(mass)]
            found[chunk.image, sign] += torch.cat(of_part, dim=1).squeeze(0)
    return found


def gradient(problem: Problem, factors: Tensor, coefficients: Tensor, into: list[Tensor]) -> None:
    """Write the levels' gradient into tensors that lie as the logits do, or are them.

    Args:
        factors: (R,), of each loss; R is N or 1.
        coefficients: (R, 2, 2), α and β of positives and negatives for a factor of 1.
    """
    coefficients = (factors.view(-1, 1, 1) * coefficients).expand(problem.images, 2, 2)
    for chunk in _chunks(problem):
        slopes = []
        positive, negative = _part(problem, chunk, 0), _part(problem, chunk, 1)
        for sign, part in enumerate((positive, negative)):
            alpha, beta = coefficients[chunk.image, sign].to(part.y.dtype)
            terms, v, distance = _terms(problem, chunk.image, sign, part)
            if problem.kind == "focal":
                w, loss = (-part.y).sigmoid_(), functional.softplus(part.y).clamp_(max=_LARGE)
                slopes.append(terms.mul_(w.mul_(loss).mul_(problem.rates[sign]).add_(v)).mul_(alpha))
            else:
                terms = terms.mul_(v).mul_((-part.y).sigmoid_())
                slopes.append(terms.mul_(distance.mul_(beta).add_(alpha)))
        seen = chunk.level.seen(into[chunk.level.number], chunk.image)[chunk.first : chunk.last]
        slope = slopes[1][: seen.numel()]
        if positive.own is None:
            slope -= slopes[0][: len(slope)]
        else:
            slope.view(-1, problem.classes).scatter_add_(1, positive.own, -slopes[0][: len(positive.own), None])
        seen.copy_(slope.view(seen.shape))


def _terms(problem: Problem, image: int, sign: int, part: Part) -> tuple[Tensor, Tensor, Tensor]:
    """o e of the DR loss, o v^γ of the focal loss; v; and v - c. All may be written to."""
    v, rate = part.y.sigmoid(), problem.rates[sign]
    distance = v
    if problem.kind == "focal":
        terms = v**rate
    elif problem.extremes is None:
        terms = (v * rate).exp_()
    else:
        score, easiness = problem.extremes[image, sign, :2].to(v.dtype)
        # v - c where it is precise: as a difference of easinesses where c is near 1.
        distance = torch.where(score > 0.5, easiness - (-part.y).sigmoid(), v - score)
        if part.prior is not None:
            distance = torch.where(part.prior != 0, distance, 0.0)  # or e may overflow, and o e be NaN
        terms = (distance * rate).exp_()
    return terms if part.prior is None else terms.mul_(part.prior), v, distance


@dataclass(frozen=True)
class _Chunk:
    image: int
    level: Level
    first: int
    last: int


def _chunks(problem: Problem, images: range | None = None) -> Iterator[_Chunk]:
    for n in range(problem.images) if images is None else images:
        for level in problem.levels:
            step = max(CHUNK // (problem.classes * level.per_place), 1)
            if level.logits.device.type != "cpu":
                step = max(level.places, 1)
            for a in range(0, level.places, step):
                yield _Chunk(n, level, a, min(a + step, level.places))


def _part(problem: Problem, chunk: _Chunk, sign: int) -> Part:
    """The positives (sign 0) or the negatives (sign 1) of a chunk."""
    x = chunk.level.seen(chunk.level.logits, chunk.image)[chunk.first : chunk.last].reshape(-1, problem.classes)
    first = chunk.level.first + chunk.first * chunk.level.per_place
    here = slice(first, first + len(x))
    own: Tensor | None = None
    if problem.dense is not None:
        there = problem.dense[chunk.image, here] == 1 - sign
    else:
        labels = problem.labels[chunk.image, here].unsqueeze(1)
        if sign and _uniform(problem, labels, x):
            return Part(x.flatten().float(), None, None)
        if sign:
            there = (labels != torch.arange(1, problem.classes + 1, device=labels.device)) & (labels >= 0)
        else:
            own = (labels - 1).clamp(min=0)
            there, x = labels > 0, x.gather(1, own)
    x = x if x.dtype == torch.float64 else x.float()
    y = x if sign else -x
    weights = problem.weights[sign]
    prior = there.to(x.dtype)
    if weights is not None:
        weights = weights[chunk.image, here]
        prior = torch.where(there, weights if own is None else weights.gather(1, own), 0.0).to(x.dtype)
    if problem.extremes is not None:
        least, share = problem.extremes[chunk.image, sign, 2:]
        prior = torch.where(y < least, 0.0, torch.where(y == least, prior * share, prior))
    return Part(_padded(torch.where(prior != 0, y, 0.0)), _padded(prior), own)


def _uniform(problem: Problem, labels: Tensor, x: Tensor) -> bool:
    """Whether all of a chunk are negatives of prior 1: nearly all are, and on a CPU it costs nothing to look."""
    if problem.weights[1] is not None or problem.extremes is not None or x.dtype == torch.float64:
        return False
    return x.device.type == "cpu" and x.numel() == padded_length(1, x.numel()) and not bool(labels.any())


def _padded(x: Tensor) -> Tensor:
    more = padded_length(1, x.numel()) - x.numel()
    return functional.pad(x.flatten(), (0, more)) if more else x.flatten()
