# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The sums on a CUDA device, by Triton: each pass over the logits is one kernel over all images and levels.

Every program adds up a block of candidates in float32 and writes the sums into slots of its own; a second, small
kernel adds up the slots of an image in float64, in order, and goes on to the loss. So there is no atomic addition,
two runs are equal to the bit, and nothing is read back to the host. The gradient is one kernel more.

Formulas: :mod:`drloss.losses.fused.op` for the DR loss, ``kernels.c`` for the focal loss.
"""

from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from drloss.losses.fused.layout import Level, Problem

if TYPE_CHECKING:
    from drloss.losses.fused.op import Rule

BLOCK = 1024
"""Candidates that a program works on at a time."""
STEPS = 16
"""Times that it does so."""
LEVELS = 8
"""Levels of one launch. A detector has five; of more, there are several launches."""

TOP, SUMS, SLOPE = 0, 1, 2  # what a pass over the logits is for
SURROGATES = {"hinge": 0, "quadratic": 1, "logistic": 2, "none": 0, "positives": 1}
WEIGHTS_GRADS = {"exact": 0, "detached": 1, "dual": 2, "": 0}


@triton.jit
def _log_one_plus(t):
    """log(1 + t) for 0 <= t <= 1 to full relative precision: 2 artanh(t / (2 + t))."""
    s = t / (2.0 + t)
    q = s * s
    p = q * (1.0 / 15) + 1.0 / 13
    p = p * q + 1.0 / 11
    p = p * q + 1.0 / 9
    p = p * q + 1.0 / 7
    p = p * q + 1.0 / 5
    p = p * q + 1.0 / 3
    return 2.0 * (s + s * q * p)


# Sizes differ from batch to batch: a kernel for each would be compiled again and again.
_SIZES = [f"{name}{i}" for name in "bpf" for i in range(LEVELS)][1:]
_SIZES += [f"{sign}_by_{what}" for sign in ("pos", "neg") for what in ("image", "anchor", "class")]
_SIZES += ["anchors", "programs", "first_program", "factor_stride", "row_stride"]


@triton.jit(do_not_specialize=_SIZES)
def pass_over_logits(
    # One entry for each level: logits, gradients, first program, places, first anchor.
    x0, x1, x2, x3, x4, x5, x6, x7,
    g0, g1, g2, g3, g4, g5, g6, g7,
    b1, b2, b3, b4, b5, b6, b7,
    p0, p1, p2, p3, p4, p5, p6, p7,
    f0, f1, f2, f3, f4, f5, f6, f7,
    labels, dense, pos_weights, neg_weights, extremes, slots, factors, coefficients,
    pos_by_image, pos_by_anchor, pos_by_class, neg_by_image, neg_by_anchor, neg_by_class,
    anchors, programs, first_program, factor_stride, row_stride,
    pos_rate, neg_rate,
    K: tl.constexpr, PER_PLACE: tl.constexpr, PLANES: tl.constexpr, DENSE: tl.constexpr,
    POS_WEIGHTS: tl.constexpr, NEG_WEIGHTS: tl.constexpr, EXTREMES: tl.constexpr, FOCAL: tl.constexpr,
    TASK: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    pid, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    x, g, begin, places, first = x0, g0, 0, p0, f0
    if LEVELS > 1:
        if pid >= b1:
            x, g, begin, places, first = x1, g1, b1, p1, f1
    if LEVELS > 2:
        if pid >= b2:
            x, g, begin, places, first = x2, g2, b2, p2, f2
    if LEVELS > 3:
        if pid >= b3:
            x, g, begin, places, first = x3, g3, b3, p3, f3
    if LEVELS > 4:
        if pid >= b4:
            x, g, begin, places, first = x4, g4, b4, p4, f4
    if LEVELS > 5:
        if pid >= b5:
            x, g, begin, places, first = x5, g5, b5, p5, f5
    if LEVELS > 6:
        if pid >= b6:
            x, g, begin, places, first = x6, g6, b6, p6, f6
    if LEVELS > 7:
        if pid >= b7:
            x, g, begin, places, first = x7, g7, b7, p7, f7
    size = places.to(tl.int64) * (PER_PLACE * K)
    x += image * size
    g += image * size
    before = image * anchors + first  # anchors before this level's
    block = pid - begin
    lane = tl.arange(0, BLOCK)
    if PLANES:  # a run of places of one anchor shape, STEPS classes of them
        parts, chunks = tl.cdiv(places, BLOCK), tl.cdiv(K, STEPS)
        shape = block // (parts * chunks)
        first_class = (block // parts) % chunks * STEPS
        place = (block % parts) * BLOCK + lane
        present = place < places
        anchor = place.to(tl.int64) * PER_PLACE + shape
        if not DENSE:
            label = tl.load(labels + before + anchor, mask=present, other=-1)

    pos_v0, pos_w0, pos_least, pos_share = 0.0, 1.0, float("-inf"), 1.0
    neg_v0, neg_w0, neg_least, neg_share = 0.0, 1.0, float("-inf"), 1.0
    if EXTREMES:
        extremes += image * 8
        pos_v0, pos_w0 = tl.load(extremes), tl.load(extremes + 1)
        pos_least, pos_share = tl.load(extremes + 2), tl.load(extremes + 3)
        neg_v0, neg_w0 = tl.load(extremes + 4), tl.load(extremes + 5)
        neg_least, neg_share = tl.load(extremes + 6), tl.load(extremes + 7)
    if TASK == 2:
        factor = tl.load(factors + image * factor_stride)
        coefficients += image * row_stride
        pos_alpha, pos_beta = tl.load(coefficients) * factor, tl.load(coefficients + 1) * factor
        neg_alpha, neg_beta = tl.load(coefficients + 2) * factor, tl.load(coefficients + 3) * factor

    pos_z, neg_z = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    if TASK == 0:
        pos_z, neg_z = pos_z - float("inf"), neg_z - float("inf")
    pos_s, neg_s = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    pos_m, neg_m = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for step in range(STEPS):
        if PLANES:
            k = first_class + step
            there = place < tl.where(k < K, places, 0)
            at = (shape * K + k).to(tl.int64) * places + place
        else:
            start = (block.to(tl.int64) * STEPS + step) * BLOCK
            first_anchor = start // K
            within = (start - first_anchor * K).to(tl.int32) + lane
            anchor = first_anchor + within // K
            k = within % K
            at = start + lane
            there = at < size
            if not DENSE:
                label = tl.load(labels + before + anchor, mask=there, other=-1)
        y = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        if DENSE:
            code = tl.load(dense + (before + anchor) * K + k, mask=there, other=2)
            positive, negative = code == 1, code == 0
        else:
            positive = there & (label == k + 1)
            negative = there & (label >= 0) & (label <= K) & (label != k + 1)
        o = (positive | negative).to(tl.float32)
        if POS_WEIGHTS:
            entry = image * pos_by_image + (first + anchor) * pos_by_anchor + k * pos_by_class
            o = tl.where(positive, tl.load(pos_weights + entry, mask=positive, other=0.0), o)
        if NEG_WEIGHTS:
            entry = image * neg_by_image + (first + anchor) * neg_by_anchor + k * neg_by_class
            o = tl.where(negative, tl.load(neg_weights + entry, mask=negative, other=0.0), o)
        y = tl.where(positive, -y, y)
        # An infinite logit that is no masked class counts as NaN.
        y = tl.where((y == float("inf")) | (positive & (y == float("-inf"))), float("nan"), y)
        if EXTREMES:
            least = tl.where(positive, pos_least, neg_least)
            share = tl.where(positive, pos_share, neg_share)
            o = tl.where(y < least, 0.0, tl.where(y == least, o * share, o))
        there_with_prior = o != 0.0
        y = tl.where(there_with_prior, y, 0.0)  # a NaN without prior reaches nothing
        if TASK == 0:
            pos_z = tl.maximum(pos_z, tl.where(positive & there_with_prior, y, float("-inf")))
            neg_z = tl.maximum(neg_z, tl.where(negative & there_with_prior, y, float("-inf")))
        else:
            t = tl.exp(-tl.abs(y))
            large = 1.0 / (1.0 + t)
            v = tl.where(y < 0.0, t * large, large)
            w = tl.where(y < 0.0, large, t * large)
            rate = tl.where(positive, pos_rate, neg_rate)
            if FOCAL:
                log = _log_one_plus(t)
                softplus = tl.maximum(y, 0.0) + log
                term = o * tl.exp(rate * (tl.maximum(tl.minimum(y, 0.0), -1e30) - log))
            else:
                distance = v
                if EXTREMES:
                    v0, w0 = tl.where(positive, pos_v0, neg_v0), tl.where(positive, pos_w0, neg_w0)
                    distance = tl.where(v0 > 0.5, w0 - w, v - v0)
                    distance = tl.where(there_with_prior, distance, 0.0)  # or e may overflow, and o e be NaN
                term = o * tl.exp(rate * distance)
            if TASK == 1:
                if FOCAL:
                    term = term * softplus
                pos_z += tl.where(positive, term, 0.0)
                neg_z += tl.where(negative, term, 0.0)
                if not FOCAL:
                    pos_s += tl.where(positive, term * distance, 0.0)
                    neg_s += tl.where(negative, term * distance, 0.0)
                pos_m += tl.where(positive, o, 0.0)
                neg_m += tl.where(negative, o, 0.0)
            else:
                alpha, beta = tl.where(positive, pos_alpha, neg_alpha), tl.where(positive, pos_beta, neg_beta)
                if FOCAL:
                    slope = alpha * term * (rate * w * tl.minimum(softplus, 1e30) + v)
                else:
                    slope = term * v * w * (alpha + beta * distance)
                slope = tl.where(there_with_prior, tl.where(positive, -slope, slope), 0.0)
                tl.store(g + at, slope.to(g.dtype.element_ty), mask=there)
    if TASK != 2:
        slots += (image * programs + first_program + pid) * 6
        if TASK == 0:
            tl.store(slots, tl.max(pos_z, axis=0))
            tl.store(slots + 3, tl.max(neg_z, axis=0))
        else:
            tl.store(slots, tl.sum(pos_z, axis=0))
            tl.store(slots + 1, tl.sum(pos_s, axis=0))
            tl.store(slots + 2, tl.sum(pos_m, axis=0))
            tl.store(slots + 3, tl.sum(neg_z, axis=0))
            tl.store(slots + 4, tl.sum(neg_s, axis=0))
            tl.store(slots + 5, tl.sum(neg_m, axis=0))


@triton.jit
def _shift(at):
    """c in float64, exact near 1, too."""
    score, easiness = tl.load(at).to(tl.float64), tl.load(at + 1).to(tl.float64)
    return tl.where(score > 0.5, 1.0 - easiness, score)


@triton.jit
def _expected(z_sum, s_sum, mass, rate, shift, WEIGHTS_GRAD: tl.constexpr):
    """Value, α and β of one sign for an outer slope of 1; all 0 where there is no candidate."""
    there = mass > 0.0
    z_sum = tl.where(there, z_sum, 1.0)
    above = s_sum / z_sum
    value = shift + above
    alpha, beta = 1.0 / z_sum, value * 0.0
    if WEIGHTS_GRAD == 0:
        alpha, beta = (1.0 - above * rate) / z_sum, rate / z_sum
    if WEIGHTS_GRAD == 2:
        value = shift + tl.log(z_sum / tl.where(there, mass, 1.0)) / rate
    return tl.where(there, value, 0.0), tl.where(there, alpha, 0.0), tl.where(there, beta, 0.0)


@triton.jit(do_not_specialize=["count"])
def finish(
    slots, extremes, losses, coefficients, count, pos_rate, neg_rate, first_number, second_number,
    SURROGATE: tl.constexpr, WEIGHTS_GRAD: tl.constexpr, EXTREMES: tl.constexpr, FOCAL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds up the slots of an image, or of all, and goes on to its loss and its α and β."""
    row = tl.program_id(0).to(tl.int64)
    slots += row * count * 6
    pos_z, pos_s, pos_m = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    neg_z, neg_s, neg_m = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    for begin in range(0, count, BLOCK):
        slot = begin + tl.arange(0, BLOCK)
        at, there = slots + slot.to(tl.int64) * 6, slot < count
        pos_z += tl.load(at, mask=there, other=0.0).to(tl.float64)
        pos_s += tl.load(at + 1, mask=there, other=0.0).to(tl.float64)
        pos_m += tl.load(at + 2, mask=there, other=0.0).to(tl.float64)
        neg_z += tl.load(at + 3, mask=there, other=0.0).to(tl.float64)
        neg_s += tl.load(at + 4, mask=there, other=0.0).to(tl.float64)
        neg_m += tl.load(at + 5, mask=there, other=0.0).to(tl.float64)
    pz, ps, pm = tl.sum(pos_z, axis=0), tl.sum(pos_s, axis=0), tl.sum(pos_m, axis=0)
    nz, ns, nm = tl.sum(neg_z, axis=0), tl.sum(neg_s, axis=0), tl.sum(neg_m, axis=0)
    if FOCAL:
        divisor = pm * 0.0 + 1.0
        if SURROGATE == 1:
            divisor = tl.where(pm > 1.0, pm, 1.0)
        pos_alpha, neg_alpha = first_number / divisor, second_number / divisor
        pos_beta, neg_beta = pm * 0.0, pm * 0.0
        loss = pz * pos_alpha + nz * neg_alpha
    else:
        pos_shift, neg_shift = 0.0, 0.0
        if EXTREMES:
            pos_shift, neg_shift = _shift(extremes + row * 8), _shift(extremes + row * 8 + 4)
        pos_value, pos_alpha, pos_beta = _expected(pz, ps, pm, pos_rate, pos_shift, WEIGHTS_GRAD)
        neg_value, neg_alpha, neg_beta = _expected(nz, ns, nm, neg_rate, neg_shift, WEIGHTS_GRAD)
        z = neg_value + pos_value - 1.0 + first_number
        if SURROGATE == 0:
            loss, outer = tl.where(z > 0.0, z, z * 0.0), tl.where(z > 0.0, 1.0, 0.0)
        elif SURROGATE == 1:
            inside = tl.where(
                z < -second_number, 0.0, tl.where(z > second_number, 2.0 * second_number, z + second_number)
            )
            outer = inside / (2.0 * second_number)
            loss = tl.where(z >= second_number, z, inside * outer * 0.5)
        else:
            t = tl.exp(-tl.abs(second_number * z))
            one_more = 1.0 + t
            log = tl.where(one_more > 1.0, tl.log(one_more) * (t / tl.where(one_more > 1.0, one_more - 1.0, 1.0)), t)
            loss = (tl.where(z > 0.0, second_number * z, 0.0) + log) / second_number
            outer = tl.where(z > 0.0, 1.0, t) / one_more
        pos_alpha, pos_beta = pos_alpha * outer, pos_beta * outer
        neg_alpha, neg_beta = neg_alpha * outer, neg_beta * outer
    tl.store(losses + row, loss.to(tl.float32))
    coefficients += row * 4
    tl.store(coefficients, pos_alpha.to(tl.float32))
    tl.store(coefficients + 1, pos_beta.to(tl.float32))
    tl.store(coefficients + 2, neg_alpha.to(tl.float32))
    tl.store(coefficients + 3, neg_beta.to(tl.float32))


def hardest(problem: Problem) -> Tensor:
    """As :func:`drloss.losses.fused.chunked.hardest`."""
    slots = _slots(problem)
    _launch(problem, TOP, slots=slots)
    return (
        slots[:, :, ::3].amax(dim=1).double() if slots.shape[1] else slots.new_full((problem.images, 2), -torch.inf)
    )


def losses(problem: Problem, rule: "Rule") -> tuple[Tensor, Tensor]:
    """As :func:`drloss.losses.fused.op.finish` on the sums of a problem: losses (R,) and coefficients (R, 2, 2)."""
    slots = _slots(problem)
    _launch(problem, SUMS, slots=slots)
    rows = min(problem.images, 1) if rule.pooled else problem.images
    found, coefficients = slots.new_empty(rows), slots.new_empty(rows, 2, 2)
    if rows:
        with _on(slots):
            finish[(rows,)](
                slots,
                slots if problem.extremes is None else problem.extremes,
                found,
                coefficients,
                slots.shape[1] * (problem.images if rule.pooled else 1),
                *rule.rates,
                *rule.numbers,
                SURROGATE=SURROGATES[rule.surrogate],
                WEIGHTS_GRAD=WEIGHTS_GRADS[rule.weights_grad],
                EXTREMES=problem.extremes is not None,
                FOCAL=rule.kind == "focal",
                BLOCK=256,
            )
    return found, coefficients


def gradient(problem: Problem, factors: Tensor, coefficients: Tensor, into: list[Tensor]) -> None:
    """As :func:`drloss.losses.fused.chunked.gradient`."""
    pooled = len(coefficients) < problem.images
    _launch(
        problem,
        SLOPE,
        into=into,
        factors=factors,
        coefficients=coefficients,
        factor_stride=0 if pooled else factors.stride(0),
        row_stride=0 if pooled else 4,
    )


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which may be another."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _slots(problem: Problem) -> Tensor:
    programs = sum(_programs(problem, level) for level in problem.levels)
    return problem.labels.new_empty(problem.images, programs, 6, dtype=torch.float32)


def _programs(problem: Problem, level: Level) -> int:
    if level.planes:
        return ceil(level.places / BLOCK) * ceil(problem.classes / STEPS) * level.per_place
    return ceil(level.anchors * problem.classes / (BLOCK * STEPS))


def _launch(
    problem: Problem,
    task: int,
    *,
    slots: Tensor | None = None,
    into: list[Tensor] | None = None,
    factors: Tensor | None = None,
    coefficients: Tensor | None = None,
    factor_stride: int = 0,
    row_stride: int = 0,
) -> None:
    unused = problem.labels
    weights = problem.weights
    strides = [(0, 0, 0) if w is None else w.stride() for w in weights]
    first_program = 0
    for planes, per_place, levels in _launches(problem):
        programs = [_programs(problem, level) for level in levels]
        begins = [sum(programs[:i]) for i in range(1, len(levels))]
        absent = LEVELS - len(levels)
        x = [level.logits for level in levels]
        g = x if into is None else [into[level.number] for level in levels]
        with _on(x[0]):
            pass_over_logits[(sum(programs), problem.images)](
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
                problem.labels,
                unused if problem.dense is None else problem.dense,
                *[unused if w is None else w for w in weights],
                unused if problem.extremes is None else problem.extremes,
                unused if slots is None else slots,
                unused if factors is None else factors,
                unused if coefficients is None else coefficients,
                *strides[0],
                *strides[1],
                problem.labels.shape[1],
                0 if slots is None else slots.shape[1],
                first_program,
                factor_stride,
                row_stride,
                *problem.rates,
                K=problem.classes,
                PER_PLACE=per_place,
                PLANES=planes,
                DENSE=problem.dense is not None,
                POS_WEIGHTS=weights[0] is not None,
                NEG_WEIGHTS=weights[1] is not None,
                EXTREMES=problem.extremes is not None,
                FOCAL=problem.kind == "focal",
                TASK=task,
                LEVELS=len(levels),
                BLOCK=BLOCK,
                STEPS=STEPS,
                num_warps=4,
            )
        first_program += sum(programs)


def _launches(problem: Problem) -> list[tuple[bool, int, list[Level]]]:
    """Levels that go into one launch: those that lie alike, eight at most."""
    some = [level for level in problem.levels if problem.images and level.anchors]
    found = []
    for (planes, per_place), group in groupby(some, key=lambda level: (level.planes, level.per_place)):
        levels = list(group)
        found += [(planes, per_place, levels[i : i + LEVELS]) for i in range(0, len(levels), LEVELS)]
    return found
