"""The sums on a CUDA device, by Triton: each pass over the logits is one kernel over all images and levels.

Every program adds up a block of candidates in float32 and writes the sums into slots of its own. A second, small
kernel adds up the slots of an image in float64, in order, and computes the loss. So there is no atomic addition, two
runs give the same bits, and nothing is copied to the host. The gradient is a third kernel. By class each class has
slots of its own, and torch adds them up and computes the loss.
"""

from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from math import ceil
from typing import Any

import torch
from torch import Tensor

from drloss.losses.fused.layout import Batch, Level
from drloss.losses.fused.rules import DRRule, Rule
from drloss.losses.fused.triton_kernels import LEVELS, finish, pass_over_logits

BLOCK = 1024
"""Candidates that a program reads at a time."""
STEPS = 16
"""Times that it does so, where anchors are rows."""
CLASSES = 40
"""Largest number of classes that a program reads, one by one, where each is a plane: its labels are read once."""

_VECTOR = 8
"""Values of 16 bits that are read at once: planes whose places are a multiple of it begin where a vector may."""

TOP, SUMS, SLOPE = 0, 1, 2  # what a pass over the logits computes
SURROGATES = {"hinge": 0, "quadratic": 1, "logistic": 2}
NORMALIZERS = {"none": 0, "positives": 1}
WEIGHTS_GRADS = {"exact": 0, "detached": 1, "dual": 2}


def hardest(batch: Batch) -> Tensor:
    """As :func:`drloss.losses.fused.chunked.hardest`."""
    slots = _slots(batch)
    _launch(batch, TOP, slots=slots)
    return slots[:, :, ::3].amax(dim=1).double() if slots.shape[1] else slots.new_full((batch.images, 2), -torch.inf)


def losses(batch: Batch, rule: Rule) -> tuple[Tensor, Tensor]:
    """As ``rule.finish`` of the sums of a batch: losses (R,) and coefficients (R, 2, 2), float32."""
    slots = _slots(batch)
    _launch(batch, SUMS, slots=slots)
    if rule.by_class:
        sums = slots.double().sum(dim=2).view(batch.sums_shape)
        found, coefficients = rule.finish(
            sums.sum(dim=0, keepdim=True) if rule.pooled and batch.images else sums, batch.first_pass
        )
        return found.float(), coefficients.float()
    rows = min(batch.images, 1) if rule.pooled else batch.images
    found, coefficients = slots.new_empty(rows), slots.new_empty(rows, 2, 2)
    if rows:
        with _on(slots):
            finish[(rows,)](
                slots,
                slots if batch.first_pass is None else batch.first_pass,
                found,
                coefficients,
                slots.shape[1] * (batch.images if rule.pooled else 1),
                *rule.numbers,
                CHOICE=SURROGATES[rule.surrogate] if isinstance(rule, DRRule) else NORMALIZERS[rule.normalizer],
                WEIGHTS_GRAD=WEIGHTS_GRADS[rule.weights_grad] if isinstance(rule, DRRule) else 0,
                FIRST_PASS=batch.first_pass is not None,
                FOCAL=not isinstance(rule, DRRule),
                BLOCK=256,
            )
    return found, coefficients


def gradient(batch: Batch, factors: Tensor, coefficients: Tensor, into: list[Tensor]) -> None:
    """As :func:`drloss.losses.fused.chunked.gradient`."""
    pooled = len(coefficients) < batch.images
    _launch(
        batch,
        SLOPE,
        into=into,
        factors=factors,
        coefficients=coefficients,
        factor_stride=0 if pooled else factors.stride(0),
        row_stride=0 if pooled else coefficients[0].numel(),
    )


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Makes the device of a tensor the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _slots(batch: Batch) -> Tensor:
    """(N, programs, 6), or (N, K, programs of a class, 6) by class."""
    sets = (batch.classes,) if batch.by_class else ()
    programs = sum(_programs(batch, level, of_class=batch.by_class) for level in batch.levels)
    return batch.labels.new_empty(batch.images, *sets, programs, 6, dtype=torch.float32)


def _programs(batch: Batch, level: Level, *, of_class: bool = False) -> int:
    """Programs of a level for each image, or those of them that see one class."""
    if level.planes:
        chunks = 1 if of_class else ceil(batch.classes / _classes(batch))
        return ceil(level.places / BLOCK) * chunks * level.per_place
    if batch.by_class:
        return ceil(level.anchors / (_block(batch) // _width(batch) * STEPS))
    return ceil(level.anchors * batch.classes / (BLOCK * STEPS))


def _classes(batch: Batch) -> int:
    """Classes of a program where each is a plane: all, or equal parts of them."""
    return ceil(batch.classes / ceil(batch.classes / CLASSES))


def _width(batch: Batch) -> int:
    """Lanes of one anchor where each lane keeps to one class: K, rounded up to a power of 2."""
    return 1 << (batch.classes - 1).bit_length()


def _background(batch: Batch, task: int) -> bool:
    """Whether blocks of the background alone are quicker: all negatives have the same prior, and no first pass."""
    special = batch.by_class or batch.dense is not None or batch.first_pass is not None
    return not (special or task == TOP or batch.weights[1] is not None)


def _block(batch: Batch) -> int:
    """Candidates that a program reads at a time where anchors are rows."""
    return max(BLOCK, _width(batch)) if batch.by_class else BLOCK


def _launch(
    batch: Batch,
    task: int,
    *,
    slots: Tensor | None = None,
    into: list[Tensor] | None = None,
    factors: Tensor | None = None,
    coefficients: Tensor | None = None,
    factor_stride: int = 0,
    row_stride: int = 0,
) -> None:
    unused = batch.labels
    weights = batch.weights
    strides = [(0, 0, 0) if w is None else w.stride() for w in weights]
    first_slot = 0
    for planes, aligned, per_place, levels in _launches(batch):
        programs = [_programs(batch, level) for level in levels]
        begins = [sum(programs[:i]) for i in range(1, len(levels))]
        absent = LEVELS - len(levels)
        x = [level.logits for level in levels]
        g = x if into is None else [into[level.number] for level in levels]
        with _on(x[0]):
            pass_over_logits[(sum(programs), batch.images)](
                *x,
                *[x[0]] * absent,
                *g,
                *[g[0]] * absent,
                *begins,
                *[0] * absent,
                *[level.places for level in levels],
                *[0] * absent,
                *[level.first for level in levels],
                *[0] * absent,
                batch.labels,
                unused if batch.dense is None else batch.dense,
                *[unused if w is None else w for w in weights],
                unused if batch.first_pass is None else batch.first_pass,
                unused if slots is None else slots,
                unused if factors is None else factors,
                unused if coefficients is None else coefficients,
                *strides[0],
                *strides[1],
                batch.labels.shape[1],
                0 if slots is None else slots.shape[-2],
                first_slot,
                factor_stride,
                row_stride,
                *batch.rates,
                K=batch.classes,
                PER_PLACE=per_place,
                PLANES=planes,
                ALIGNED=aligned,
                DENSE=batch.dense is not None,
                POS_WEIGHTS=weights[0] is not None,
                NEG_WEIGHTS=weights[1] is not None,
                FIRST_PASS=batch.first_pass is not None,
                FOCAL=batch.kind == "focal",
                BY_CLASS=batch.by_class,
                WIDTH=_width(batch),
                BACKGROUND=_background(batch, task),
                ANCHORS=1 << (BLOCK * STEPS // batch.classes + 1).bit_length(),
                TASK=task,
                LEVELS=len(levels),
                BLOCK=BLOCK if planes else _block(batch),
                STEPS=_classes(batch) if planes else STEPS,
                num_warps=4,
            )
        first_slot += sum(_programs(batch, level, of_class=batch.by_class) for level in levels)


def _launches(batch: Batch) -> list[tuple[bool, bool, int, list[Level]]]:
    """Levels of each launch: eight at most, of one layout; planes that vectors can read are apart from others."""
    some = [level for level in batch.levels if batch.images and level.anchors]
    found = []
    for (planes, aligned, per_place), group in groupby(some, key=_layout):
        levels = list(group)
        found += [(planes, aligned, per_place, levels[i : i + LEVELS]) for i in range(0, len(levels), LEVELS)]
    return found


def _layout(level: Level) -> tuple[bool, bool, int]:
    return level.planes, level.planes and level.places % _VECTOR == 0, level.per_place
