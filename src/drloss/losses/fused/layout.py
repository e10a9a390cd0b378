"""Where the candidates of N images lie in memory, so that each is read in place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drloss.losses.derivatives import transformed


@dataclass(frozen=True)
class Level:
    """One pyramid level.

    Attributes:
        number: its place in the list of levels.
        logits: (N, A_l, K) contiguous, or the classifier's maps (N, B·K, H, W), contiguous or channels_last.
        first: index of its first anchor among the anchors of all levels.
        places: H · W, or A_l where the logits are no maps.
        per_place: B; anchor s · B + b of the level is shape b at place s.
        planes: whether the values of a place lie apart, as in contiguous maps: class k of anchor s · B + b at
            (b · K + k) · H · W + s. Otherwise they lie in rows: class k of anchor a at a · K + k.
    """

    number: int
    logits: Tensor
    first: int
    places: int
    per_place: int
    planes: bool

    @property
    def anchors(self) -> int:
        """A_l."""
        return self.places * self.per_place

    def seen(self, values: Tensor, image: int) -> Tensor:
        """A view (places, B, K) of one image of a tensor that lies as the logits do."""
        of_image = values[image]
        if self.planes:
            return of_image.view(self.per_place, -1, self.places).permute(2, 0, 1)
        if of_image.ndim == 3:
            of_image = of_image.permute(1, 2, 0)
        return of_image.reshape(self.places, self.per_place, -1)


@dataclass(frozen=True)
class Problem:
    """N images whose candidates are to be added up.

    Attributes:
        levels: the pyramid levels.
        labels: (N, A) int64 contiguous, over all levels: 0 background, 1..K; any other number is an ignored anchor.
        dense: (N, A, K) uint8 contiguous or None; if given it counts in place of the labels: 0 negative, 1 positive,
            any other neither.
        weights: prior of positives and negatives, (N, A, K) float32, strided; None is uniform.
        extremes: (N, 2, 4) float32 of positives and negatives, or None. Score and easiness at the shift c of the
            exponent, 0 and 1 for no shift; then the least y that has a prior and the share of it that those have
            which are just there, -inf and 1 without mining.
        rates: 1/λ₊ and 1/λ₋ of the DR loss, γ of the focal loss.
        classes: K.
        kind: ``"dr"`` or ``"focal"``.
    """

    levels: list[Level]
    labels: Tensor
    dense: Tensor | None
    weights: tuple[Tensor | None, Tensor | None]
    extremes: Tensor | None
    rates: tuple[float, float]
    classes: int
    kind: str

    @property
    def images(self) -> int:
        """N."""
        return self.labels.shape[0]

    def each_level(self) -> Iterator[tuple[int, Level]]:
        """Pairs of image and level."""
        for n in range(self.images):
            for level in self.levels:
                yield n, level


def in_place(logits: Tensor) -> Tensor:
    """The logits if the kernels can read them as they lie, else a contiguous copy."""
    if transformed(logits):  # which cannot be asked how it lies
        return logits.contiguous()
    channels_last = logits.ndim == 4 and logits.is_contiguous(memory_format=torch.channels_last)
    return logits if channels_last or logits.is_contiguous() else logits.contiguous()


def describe(
    logits: Sequence[Tensor],
    labels: Tensor,
    dense: Tensor | None,
    pos_weights: Tensor | None,
    neg_weights: Tensor | None,
    extremes: Tensor | None,
    rates: Sequence[float],
    classes: int,
    kind: str,
) -> Problem:
    """The problem that a list of levels and the labels of all their anchors make."""
    levels, first = [], 0
    # A map of 1 x 1 lies either way: it goes with the others.
    rows = all(x.is_contiguous(memory_format=torch.channels_last) for x in logits if x.ndim == 4)
    for number, x in enumerate(logits):
        if x.ndim == 4:
            planes = x.is_contiguous() and not rows
            level = Level(number, x, first, x.shape[2] * x.shape[3], x.shape[1] // classes, planes)
        else:
            level = Level(number, x, first, x.shape[1], 1, planes=False)
        levels.append(level)
        first += level.anchors
    if labels.shape[1] != first or any(x.shape[0] != labels.shape[0] for x in logits):
        raise ValueError(f"labels must have one entry for each of {first} anchors, got {tuple(labels.shape)}")
    return Problem(levels, labels, dense, (pos_weights, neg_weights), extremes, (rates[0], rates[1]), classes, kind)
