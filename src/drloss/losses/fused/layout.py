"""The layout of the candidates of N images in memory, so that the backends read them without a copy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from drloss.losses.derivatives import transformed

Entry = TypeVar("Entry", float, Tensor)


class FirstPass(NamedTuple, Generic[Entry]):
    """What a pass over the logits before the sums finds of one sign of one image.

    The operators and kernels take it as a tensor (N, 2, 4), of positives and negatives, with these four columns.

    Attributes:
        score: v of the hardest candidate, which is the shift c of the exponent; 0 for no shift.
        easiness: 1 - v of that candidate, which is precise where v is close to 1; 1 for no shift.
        threshold: least y that hard mining keeps; -inf without mining.
        share: factor on the prior of the candidates whose y is the threshold; 1 without mining.
    """

    score: Entry
    easiness: Entry
    threshold: Entry
    share: Entry


NO_FIRST_PASS = FirstPass(0.0, 1.0, -inf, 1.0)
"""Neither a shift nor mining."""


def pair(like: Tensor, first: float, second: float) -> Tensor:
    """Two numbers as a tensor (2,) of the dtype and device of another, without a copy that waits for the device."""
    return torch.stack([like.new_full((), first), like.new_full((), second)])


class Level(NamedTuple):
    """One pyramid level.

    Attributes:
        number: index in the list of levels.
        logits: (N, A_l, K), or the classifier's maps (N, B·K, H, W), contiguous or channels_last.
        first: index of its first anchor among the anchors of all levels.
        places: H · W, or A_l where the logits are no maps.
        per_place: B; anchor s · B + b of the level is shape b at place s.
        planes: whether each channel is a plane, as in contiguous maps: class k of anchor s · B + b is at
            (b · K + k) · H · W + s. Otherwise each anchor is a row: class k of anchor a is at a · P + k.
        pitch: P, which is K but where the rows are a part of wider ones, such as those with a background column.
    """

    number: int
    logits: Tensor
    first: int
    places: int
    per_place: int
    planes: bool
    pitch: int

    @property
    def anchors(self) -> int:
        """A_l."""
        return self.places * self.per_place

    def view_of(self, values: Tensor, image: int) -> Tensor:
        """A view (places, B, K) of one image of a tensor with the layout of the logits."""
        of_image = values[image]
        if self.planes:
            return of_image.view(self.per_place, -1, self.places).permute(2, 0, 1)
        if of_image.ndim == 3:
            of_image = of_image.permute(1, 2, 0)
        return of_image.reshape(self.places, self.per_place, -1)


@dataclass(frozen=True)
class Batch:
    """What a backend is given: logits, labels and priors of N images, and the numbers of the loss's terms.

    Attributes:
        levels: the pyramid levels.
        labels: (N, A) int64 contiguous, over all levels: 0 background, 1..K the class, any other number ignored.
        dense: (N, A, K) uint8 contiguous, or None; if given, it replaces the labels: 0 negative, 1 positive, any
            other number ignored.
        weights: priors of positives and of negatives, (N, A, K) float32, strided; None is uniform.
        first_pass: (N, 2, 4) float32 with the columns of :class:`FirstPass`, or None for neither shift nor mining.
        rates: 1/λ₊ and 1/λ₋ of the DR loss, γ of the focal loss.
        classes: K.
        kind: ``"dr"`` or ``"focal"``.
        by_class: whether each class has sums and coefficients of its own.
    """

    levels: list[Level]
    labels: Tensor
    dense: Tensor | None
    weights: tuple[Tensor | None, Tensor | None]
    first_pass: Tensor | None
    rates: tuple[float, float]
    classes: int
    kind: str
    by_class: bool

    @property
    def sums_shape(self) -> tuple[int, ...]:
        """Shape of the sums Z, S and M of each image's positives and negatives, by class if so."""
        return (self.images, self.classes, 2, 3) if self.by_class else (self.images, 2, 3)

    def spread_coefficients(self, factors: Tensor, coefficients: Tensor) -> Tensor:
        """α and β of each image (N, 2, 2), or (N, K, 2, 2) by class, times the incoming gradient of its loss."""
        scaled = factors.view(-1, *[1] * (coefficients.ndim - 1)) * coefficients
        return scaled.expand(self.images, *coefficients.shape[1:])

    @property
    def geometry(self) -> tuple[tuple[int, int, bool, int], ...]:
        """Of each level the places, the anchors a place, whether each channel is a plane, and the pitch."""
        return tuple(level[3:] for level in self.levels)

    @property
    def images(self) -> int:
        """N."""
        return self.labels.shape[0]

    def each_level(self) -> Iterator[tuple[int, Level]]:
        """Every image with every level."""
        for n in range(self.images):
            for level in self.levels:
                yield n, level


def readable(logits: Tensor) -> Tensor:
    """The logits if the kernels can read their layout, else a contiguous copy.

    Rows that are parts of wider ones can be read, but not written.
    """
    if transformed(logits):  # whose layout is not known
        return logits.contiguous()
    if logits.ndim == 4:
        kept = logits.is_contiguous(memory_format=torch.channels_last) or logits.is_contiguous()
    else:
        anchors, pitch = logits.shape[1], logits.stride(1)
        part = pitch >= logits.shape[2] and logits.stride() == (anchors * pitch, pitch, 1)
        kept = part or logits.is_contiguous()
    return logits if kept else logits.contiguous()


def make_batch(
    logits: Sequence[Tensor],
    labels: Tensor,
    dense: Tensor | None,
    pos_weights: Tensor | None,
    neg_weights: Tensor | None,
    first_pass: Tensor | None,
    rates: Sequence[float],
    classes: int,
    kind: str,
    *,
    by_class: bool = False,
) -> Batch:
    """The batch of these logits, one tensor a level, and of the labels of all their anchors."""
    levels, first, images = [], 0, labels.shape[0]
    shapes = [x.shape for x in logits]
    # A map of 1 x 1 is contiguous in both formats: it is read as the others are.
    rows = all(x.is_contiguous(memory_format=torch.channels_last) for x in logits if x.ndim == 4)
    for number, (x, shape) in enumerate(zip(logits, shapes, strict=True)):
        if len(shape) == 4:
            places, per_place = shape[2] * shape[3], shape[1] // classes
            levels.append(Level(number, x, first, places, per_place, x.is_contiguous() and not rows, classes))
        else:
            places, per_place = shape[1], 1
            pitch = classes if x.is_contiguous() else x.stride(1)
            levels.append(Level(number, x, first, places, per_place, planes=False, pitch=pitch))
        first += places * per_place
    if labels.shape[1] != first or any(shape[0] != images for shape in shapes):
        raise ValueError(f"labels must have one entry for each of {first} anchors, got {tuple(labels.shape)}")
    weights = (pos_weights, neg_weights)
    return Batch(levels, labels, dense, weights, first_pass, (rates[0], rates[1]), classes, kind, by_class)
