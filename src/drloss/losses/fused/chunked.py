"""The sums in plain torch, a chunk of anchors at a time: for every device and dtype, without a compiler."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from drloss.losses.fused.layout import Batch, FirstPass, Level, pair
from drloss.losses.summation import block_length, padded_length, total, wide

CHUNK = 5 * block_length(1)
"""Candidates in a chunk on a CPU, which fit into its cache. On another device a chunk is a level of an image."""

_LARGE = 1e30  # in place of ∞, which times 0 is NaN


@dataclass(frozen=True)
class Part:
    """The candidates of one sign in a chunk of C anchors.

    Attributes:
        y: (P,) signed hardness, x of a negative and -x of a positive, float32 or float64. It is 0 where the prior is
            0, so that a NaN at an ignored anchor changes nothing. P is C·K or, for one class of each anchor, C,
            padded: see :mod:`drloss.losses.summation`.
        prior: (P,) o, of the dtype of y, or None where it is 1 for all.
        own: (C, 1) int64, index of the one class of each anchor; None for all classes.
    """

    y: Tensor
    prior: Tensor | None
    own: Tensor | None

    def of_class(self, values: Tensor) -> Tensor:
        """(P, ...) the value of each candidate's class, of values (K, ...); any value at the padding."""
        if self.own is not None:
            return values[functional.pad(self.own.squeeze(1), (0, len(self.y) - len(self.own)))]
        return values.repeat(-(-len(self.y) // len(values)), *[1] * (values.ndim - 1))[: len(self.y)]

    def y_where_prior(self, other: float) -> Tensor:
        """y, with ``other`` where the prior is 0."""
        return self.y if self.prior is None else torch.where(self.prior != 0, self.y, other)


def hardest(batch: Batch) -> Tensor:
    """(N, 2) float64, the largest y of each image's positives and negatives; -inf where there is none."""
    found = wide(torch.full((batch.images, 2), -torch.inf, device=batch.labels.device))
    for chunk in _chunks(batch):
        for sign in range(2):
            largest = _part(batch, chunk, sign).y_where_prior(-torch.inf).amax()
            found[chunk.image, sign] = torch.maximum(found[chunk.image, sign], wide(largest))
    return found


def mined(batch: Batch, counts: Sequence[int], pooled: bool) -> Tensor:
    """Threshold and share (see ``FirstPass``) of the hardest positives and negatives, (N, 2, 2) float32.

    Paper: "Hard negative mining" in §3.2. ``counts`` are the numbers n̂ of positives and of negatives, 0 for all.
    Candidates tied for the last place share it; see :func:`drloss.losses.candidates.keep_hardest`.
    """
    found = pair(batch.labels.new_empty(0, dtype=torch.float32), -torch.inf, 1.0).repeat(batch.images, 2, 1)
    for sign, count in enumerate(counts):
        for images in [range(batch.images)] if pooled else [range(n, n + 1) for n in range(batch.images)]:
            if count and len(images):
                found[images.start : images.stop, sign] = _mined(batch, images, sign, count)
    return found


def _mined(batch: Batch, images: range, sign: int, count: int) -> Tensor:
    """Threshold and share, (2,) float32, of the hardest candidates of one sign over some images together."""
    kept = torch.empty(0, device=batch.labels.device)
    chunks = []
    for chunk in _chunks(batch, images):
        most = _bound(batch, chunk, sign)
        chunks.append((chunk, most))
        if len(kept) < count or most is None or not most <= kept[-1]:
            y = _part(batch, chunk, sign).y_where_prior(-torch.inf)
            if len(kept) == count and y.device.type == "cpu":
                y = y[~(y <= kept[-1])]
            y = torch.cat([kept, y])
            kept = y.topk(min(count, len(y))).values
    if not len(kept):
        return pair(kept, -torch.inf, 1.0)
    least = kept[-1]
    tied = torch.zeros_like(least)
    for chunk, most in chunks:
        if most is None or not most < least:
            tied += (_part(batch, chunk, sign).y_where_prior(torch.nan) == least).sum()
    return torch.stack([least, ((kept == least).sum() / tied.clamp(min=1)).clamp(max=1)])


def _bound(batch: Batch, chunk: "_Chunk", sign: int) -> Tensor | None:
    """Upper bound on y of one sign in a chunk; None on a device, where to read a number is to wait for it."""
    x = chunk.level.view_of(chunk.level.logits, chunk.image)[chunk.first : chunk.last]
    if x.device.type != "cpu":
        return None
    return (x.amax() if sign else -x.amin()).float()


def sums(batch: Batch) -> Tensor:
    """(N, 2, 3) float64: Z, S and M of each image's positives and negatives; see :mod:`drloss.losses.fused.rules`."""
    found = wide(torch.zeros(batch.sums_shape, device=batch.labels.device))
    for chunk in _chunks(batch):
        for sign in range(2):
            part = _part(batch, chunk, sign)
            terms, _, distance = _terms(batch, chunk.image, sign, part)
            if batch.by_class:
                found[chunk.image, :, sign] += _sums_by_class(part, terms, distance, batch.classes)
                continue
            z = terms * functional.softplus(part.y) if batch.kind == "focal" else terms
            mass = z.new_full((1, 1), len(z)) if part.prior is None else total(part.prior.unsqueeze(0))
            of_part = [total(z.unsqueeze(0)), total(distance.mul_(terms).unsqueeze(0)), wide(mass)]
            found[chunk.image, sign] += torch.cat(of_part, dim=1).squeeze(0)
    return found


def gradient(batch: Batch, factors: Tensor, coefficients: Tensor, into: list[Tensor]) -> None:
    """Write the gradient of the levels into tensors with the layout of the logits, or over the logits.

    Args:
        factors: (R,) incoming gradient of each loss; R is N or 1.
        coefficients: (R, 2, 2), α and β of positives and negatives for a factor of 1; (R, K, 2, 2) by class.
    """
    coefficients = batch.spread_coefficients(factors, coefficients)
    for chunk in _chunks(batch):
        slopes = []
        positive, negative = _part(batch, chunk, 0), _part(batch, chunk, 1)
        for sign, part in enumerate((positive, negative)):
            of_sign = coefficients[chunk.image, ..., sign, :].to(part.y.dtype)
            alpha, beta = (part.of_class(of_sign) if batch.by_class else of_sign).unbind(-1)
            terms, v, distance = _terms(batch, chunk.image, sign, part)
            if batch.kind == "focal":
                w, loss = (-part.y).sigmoid_(), functional.softplus(part.y).clamp_(max=_LARGE)
                slopes.append(terms.mul_(w.mul_(loss).mul_(batch.rates[sign]).add_(v)).mul_(alpha))
            else:
                terms = terms.mul_(v).mul_((-part.y).sigmoid_())
                slopes.append(terms.mul_(distance.mul_(beta).add_(alpha)))
        seen = chunk.level.view_of(into[chunk.level.number], chunk.image)[chunk.first : chunk.last]
        slope = slopes[1][: seen.numel()]
        if positive.own is None:
            slope -= slopes[0][: len(slope)]
        else:
            slope.view(-1, batch.classes).scatter_add_(1, positive.own, -slopes[0][: len(positive.own), None])
        seen.copy_(slope.view(seen.shape))


def _sums_by_class(part: Part, terms: Tensor, distance: Tensor, classes: int) -> Tensor:
    """(K, 3) float64: Z, S and M of each class of a chunk."""
    mass = torch.ones_like(terms) if part.prior is None else part.prior
    columns = torch.stack([terms, terms * distance, mass], dim=1)
    if part.own is not None:
        found = wide(columns.new_zeros(classes, 3))
        return found.index_add(0, part.own.squeeze(1), wide(columns[: len(part.own)]))
    return wide(columns[: len(columns) // classes * classes]).view(-1, classes, 3).sum(dim=0)


def _terms(batch: Batch, image: int, sign: int, part: Part) -> tuple[Tensor, Tensor, Tensor]:
    """Terms (o e of the DR loss, o v^γ of the focal loss), v, and v - c, in tensors that may be overwritten."""
    v, rate = part.y.sigmoid(), batch.rates[sign]
    distance = v
    if batch.kind == "focal":
        terms = v**rate
    elif batch.first_pass is None:
        terms = (v * rate).exp_()
    else:
        shift = FirstPass(*batch.first_pass[image, sign].to(v.dtype))
        # v - c where it is precise: as a difference of easinesses where c is near 1.
        distance = torch.where(shift.score > 0.5, shift.easiness - (-part.y).sigmoid(), v - shift.score)
        if part.prior is not None:
            distance = torch.where(part.prior != 0, distance, 0.0)  # else e may overflow, and o e be NaN
        terms = (distance * rate).exp_()
    return terms if part.prior is None else terms.mul_(part.prior), v, distance


@dataclass(frozen=True)
class _Chunk:
    image: int
    level: Level
    first: int
    last: int


def _chunks(batch: Batch, images: range | None = None) -> Iterator[_Chunk]:
    for n in range(batch.images) if images is None else images:
        for level in batch.levels:
            step = max(CHUNK // (batch.classes * level.per_place), 1)
            if level.logits.device.type != "cpu":
                step = max(level.places, 1)
            for a in range(0, level.places, step):
                yield _Chunk(n, level, a, min(a + step, level.places))


def _part(batch: Batch, chunk: _Chunk, sign: int) -> Part:
    """The positives (sign 0) or the negatives (sign 1) of a chunk."""
    x = chunk.level.view_of(chunk.level.logits, chunk.image)[chunk.first : chunk.last].reshape(-1, batch.classes)
    first = chunk.level.first + chunk.first * chunk.level.per_place
    here = slice(first, first + len(x))
    own: Tensor | None = None
    if batch.dense is not None:
        there = batch.dense[chunk.image, here] == 1 - sign
    else:
        labels = batch.labels[chunk.image, here].unsqueeze(1)
        if sign and _uniform(batch, labels, x):
            return Part(x.flatten().float(), None, None)
        if sign:
            counted = (labels >= 0) & (labels <= batch.classes)
            there = (labels != torch.arange(1, batch.classes + 1, device=labels.device)) & counted
        else:
            own = (labels - 1).clamp(0, batch.classes - 1)
            there, x = (labels > 0) & (labels <= batch.classes), x.gather(1, own)
    x = x if x.dtype == torch.float64 else x.float()
    y = x if sign else -x
    y = torch.where(y == torch.inf if sign else y.isinf(), torch.nan, y)  # a masked class stays infinite
    weights = batch.weights[sign]
    prior = there.to(x.dtype)
    if weights is not None:
        weights = weights[chunk.image, here]
        prior = torch.where(there, weights if own is None else weights.gather(1, own), 0.0).to(x.dtype)
    if batch.first_pass is not None:
        kept = FirstPass(*batch.first_pass[chunk.image, sign])
        prior = torch.where(y < kept.threshold, 0.0, torch.where(y == kept.threshold, prior * kept.share, prior))
    return Part(_padded(torch.where(prior != 0, y, 0.0)), _padded(prior), own)


def _uniform(batch: Batch, labels: Tensor, x: Tensor) -> bool:
    """Whether a chunk holds only negatives with prior 1 and no +∞: most do, and on a CPU it is quick to find out."""
    if batch.weights[1] is not None or batch.first_pass is not None or x.dtype == torch.float64:
        return False
    if x.device.type != "cpu" or x.numel() != padded_length(1, x.numel()):
        return False
    return not bool(labels.any()) and bool(x.amax() < torch.inf)


def _padded(x: Tensor) -> Tensor:
    more = padded_length(1, x.numel()) - x.numel()
    return functional.pad(x.flatten(), (0, more)) if more else x.flatten()
