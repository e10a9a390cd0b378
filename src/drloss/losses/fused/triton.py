"""The sums on a CUDA device, by Triton: each pass over the logits is one kernel over all images and levels.

Every program adds up a block of candidates in float32 and writes the sums into slots of its own. A second, small
kernel adds up the slots of an image in float64, in order, and computes the loss. So there is no atomic addition, two
runs give the same bits, and nothing is copied to the host. The gradient is a third kernel. By class each class has
slots of its own, and torch adds them up and computes the loss.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from itertools import groupby
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drloss.losses.fused.layout import Batch
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


class Launch(NamedTuple):
    """One launch of a pass over the logits: some levels of one layout, :data:`LEVELS` at most.

    Attributes:
        levels: their numbers.
        programs: of all of them, for each image.
        sizes: the integers that the kernel takes of the levels, padded: first programs, places, first anchors.
        first_slot: index of their first program among those of the image.
        constants: what the kernel is compiled for.
    """

    levels: tuple[int, ...]
    programs: int
    sizes: tuple[int, ...]
    first_slot: int
    constants: dict[str, int | bool]


@lru_cache(maxsize=256)
def plan(
    geometry: tuple[tuple[int, int, bool, int], ...], classes: int, by_class: bool
) -> tuple[tuple[Launch, ...], int]:
    """The launches of a pass over the logits, and the number of its slots for each image, or for each class of it.

    ``geometry`` is that of a batch. Planes that vectors can read are apart from others.
    """
    width = 1 << (classes - 1).bit_length()  # lanes of an anchor where each lane keeps to one class
    of_rows = max(BLOCK, width) if by_class else BLOCK
    of_planes = ceil(classes / ceil(classes / CLASSES))  # classes of a program where each is a plane, in equal parts

    def programs(level: int, *, of_class: bool) -> int:
        places, per_place, planes, _ = geometry[level]
        if planes:
            return ceil(places / BLOCK) * (1 if of_class else ceil(classes / of_planes)) * per_place
        if by_class:
            return ceil(places * per_place / (of_rows // width * STEPS))
        return ceil(places * per_place * classes / (BLOCK * STEPS))

    def layout(level: int) -> tuple[bool, bool, int, int]:
        places, per_place, planes, pitch = geometry[level]
        return planes, planes and places % _VECTOR == 0, per_place, pitch

    anchors = [places * per_place for places, per_place, *_ in geometry]
    first_slot, found = 0, []
    for (planes, aligned, per_place, pitch), group in groupby((i for i, n in enumerate(anchors) if n), key=layout):
        same = list(group)
        for levels in (same[i : i + LEVELS] for i in range(0, len(same), LEVELS)):
            each, absent = [programs(level, of_class=False) for level in levels], [0] * (LEVELS - len(levels))
            begins = [sum(each[:i]) for i in range(1, len(levels))]
            places = [geometry[level][0] for level in levels]
            firsts = [sum(anchors[:level]) for level in levels]
            sizes = (*begins, *absent, *places, *absent, *firsts, *absent)
            constants = {
                "K": classes, "PER_PLACE": per_place, "PLANES": planes, "ALIGNED": aligned, "PITCH": pitch,
                "BY_CLASS": by_class, "WIDTH": width, "ANCHORS": 1 << (BLOCK * STEPS // classes + 1).bit_length(),
                "LEVELS": len(levels), "BLOCK": BLOCK if planes else of_rows, "STEPS": of_planes if planes else STEPS,
            }  # fmt: skip
            found.append(Launch(tuple(levels), sum(each), sizes, first_slot, constants))
            first_slot += sum(programs(level, of_class=by_class) for level in levels)
    return tuple(found), first_slot


def _plan(batch: Batch) -> tuple[tuple[Launch, ...], int]:
    return plan(batch.geometry, batch.classes, batch.by_class)


def _slots(batch: Batch) -> Tensor:
    """(N, programs, 6), or (N, K, programs of a class, 6) by class."""
    sets = (batch.classes,) if batch.by_class else ()
    return torch.empty(batch.images, *sets, _plan(batch)[1], 6, dtype=torch.float32, device=batch.labels.device)


def _background(batch: Batch, task: int) -> bool:
    """Whether blocks of the background alone are quicker: all negatives have the same prior, and no first pass."""
    special = batch.by_class or batch.dense is not None or batch.first_pass is not None
    return not (special or task == TOP or batch.weights[1] is not None)


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
    if not batch.images:
        return
    unused, weights = batch.labels, batch.weights
    tensors = (batch.dense, *weights, batch.first_pass, slots, factors, coefficients)
    strides = [number for w in weights for number in ((0, 0, 0) if w is None else w.stride())]
    constants = {
        "DENSE": batch.dense is not None,
        "POS_WEIGHTS": weights[0] is not None,
        "NEG_WEIGHTS": weights[1] is not None,
        "FIRST_PASS": batch.first_pass is not None,
        "FOCAL": batch.kind == "focal",
        "BACKGROUND": _background(batch, task),
        "TASK": task,
        "num_warps": 4,
    }
    with _on(batch.labels):
        for launch in _plan(batch)[0]:
            x = [batch.levels[level].logits for level in launch.levels]
            g = x if into is None else [into[level] for level in launch.levels]
            absent = LEVELS - len(x)
            pass_over_logits[(launch.programs, batch.images)](
                *x,
                *x[:1] * absent,
                *g,
                *g[:1] * absent,
                *launch.sizes,
                batch.labels,
                *[unused if t is None else t for t in tensors],
                *strides,
                batch.labels.shape[1],
                0 if slots is None else slots.shape[-2],
                launch.first_slot,
                factor_stride,
                row_stride,
                *batch.rates,
                **launch.constants,
                **constants,
            )
