# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The Triton kernels: a pass over the logits, and the step from its sums to losses and coefficients.

Formulas: :mod:`drloss.losses.fused.rules` for the DR loss, ``kernels.c`` for the focal loss. The four numbers of each
sign that ``first_pass`` points to are those of :class:`drloss.losses.fused.layout.FirstPass`.
"""

import triton
import triton.language as tl

LEVELS = 8
"""Levels of one launch. A detector has five; more than eight take several launches."""
LOG2_E = tl.constexpr(1.4426950408889634)


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


@triton.jit
def _background_sums(y, rate, FOCAL: tl.constexpr):
    """A block's terms of Z and of S, of negatives that all have the prior 1; logits of -inf give 1 and 0."""
    y = tl.where(y == float("inf"), float("nan"), y)
    if FOCAL:
        t = tl.exp2(tl.abs(y) * -LOG2_E)
        log = _log_one_plus(t)
        term = tl.exp2((tl.maximum(tl.minimum(y, 0.0), -1e30) - log) * (rate * LOG2_E))
        return term * (tl.maximum(y, 0.0) + log), term
    v = 1.0 / (1.0 + tl.exp2(y * -LOG2_E))
    e = tl.exp2(v * (rate * LOG2_E))
    return e, e * v


@triton.jit
def _background_slope(y, rate, alpha, beta, FOCAL: tl.constexpr):
    """A block's gradient, of negatives that all have the prior 1."""
    y = tl.where(y == float("inf"), float("nan"), y)
    t = tl.exp2(tl.abs(y) * -LOG2_E)
    large = 1.0 / (1.0 + t)
    v = tl.where(y < 0.0, t * large, large)
    if FOCAL:
        log = _log_one_plus(t)
        term = tl.exp2((tl.maximum(tl.minimum(y, 0.0), -1e30) - log) * (rate * LOG2_E))
        w = tl.where(y < 0.0, large, t * large)
        return alpha * term * (rate * w * tl.minimum(tl.maximum(y, 0.0) + log, 1e30) + v)
    return tl.exp2(v * (rate * LOG2_E)) * (t * large * large) * (alpha + beta * v)


@triton.jit
def _by_lane(x, WIDTH: tl.constexpr):
    """Sums of the lanes that are the same modulo WIDTH."""
    return tl.sum(tl.reshape(x, [x.shape[0] // WIDTH, WIDTH]), axis=0)


@triton.jit
def _store_sums(to, pos_z, pos_s, pos_m, neg_z, neg_s, neg_m):
    """Writes the sums of a block's lanes into six places."""
    tl.store(to, tl.sum(pos_z, axis=0))
    tl.store(to + 1, tl.sum(pos_s, axis=0))
    tl.store(to + 2, tl.sum(pos_m, axis=0))
    tl.store(to + 3, tl.sum(neg_z, axis=0))
    tl.store(to + 4, tl.sum(neg_s, axis=0))
    tl.store(to + 5, tl.sum(neg_m, axis=0))


# Sizes differ from batch to batch: specialised to each, a kernel would be compiled again and again.
_SIZES = [f"{name}{i}" for name in "bpf" for i in range(LEVELS)][1:]
_SIZES += [f"{sign}_by_{what}" for sign in ("pos", "neg") for what in ("image", "anchor", "class")]
_SIZES += ["anchors", "programs", "first_slot", "factor_stride", "row_stride"]


@triton.jit(do_not_specialize=_SIZES)
def pass_over_logits(
    # One argument for each level: logits, gradients, first program, places, first anchor.
    x0, x1, x2, x3, x4, x5, x6, x7,
    g0, g1, g2, g3, g4, g5, g6, g7,
    b1, b2, b3, b4, b5, b6, b7,
    p0, p1, p2, p3, p4, p5, p6, p7,
    f0, f1, f2, f3, f4, f5, f6, f7,
    labels, dense, pos_weights, neg_weights, first_pass, slots, factors, coefficients,
    pos_by_image, pos_by_anchor, pos_by_class, neg_by_image, neg_by_anchor, neg_by_class,
    anchors, programs, first_slot, factor_stride, row_stride,
    pos_rate, neg_rate,
    K: tl.constexpr, PITCH: tl.constexpr, PER_PLACE: tl.constexpr, PLANES: tl.constexpr, ALIGNED: tl.constexpr,
    DENSE: tl.constexpr, POS_WEIGHTS: tl.constexpr, NEG_WEIGHTS: tl.constexpr, FIRST_PASS: tl.constexpr,
    FOCAL: tl.constexpr, BY_CLASS: tl.constexpr, WIDTH: tl.constexpr, BACKGROUND: tl.constexpr,
    ANCHORS: tl.constexpr, TASK: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
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
    if ALIGNED:
        places = places // 8 * 8  # what the compiler does not know, and needs to read vectors
    size = places.to(tl.int64) * (PER_PLACE * K)
    x += image * places.to(tl.int64) * (PER_PLACE * PITCH)  # PITCH is K for planes
    g += image * size
    before = image * anchors + first  # anchors before those of this level
    block = pid - begin
    lane = tl.arange(0, BLOCK)
    if PLANES:  # BLOCK places of one anchor shape, and STEPS classes of them
        parts, chunks = tl.cdiv(places, BLOCK), tl.cdiv(K, STEPS)
        shape = block // (parts * chunks)
        first_class = (block // parts) % chunks * STEPS
        place = (block % parts) * BLOCK + lane
        present = place < places
        anchor = place.to(tl.int64) * PER_PLACE + shape
        if not DENSE:
            label = tl.load(labels + before + anchor, mask=present, other=-1)

    # Most programs see the background alone, and then need neither labels nor sums of positives.
    busy = True
    if BACKGROUND:
        if PLANES:
            busy = tl.max((present & (label != 0)).to(tl.int32), axis=0) > 0
        else:
            start = block.to(tl.int64) * (STEPS * BLOCK)
            few = start // K + tl.arange(0, ANCHORS)
            last = tl.minimum(start + STEPS * BLOCK, size)
            own = tl.load(labels + before + few, mask=few * K < last, other=0)
            busy = tl.max((own != 0).to(tl.int32), axis=0) > 0

    pos_v0, pos_w0, pos_least, pos_share = 0.0, 1.0, float("-inf"), 1.0
    neg_v0, neg_w0, neg_least, neg_share = 0.0, 1.0, float("-inf"), 1.0
    if FIRST_PASS:
        first_pass += image * 8
        pos_v0, pos_w0 = tl.load(first_pass), tl.load(first_pass + 1)
        pos_least, pos_share = tl.load(first_pass + 2), tl.load(first_pass + 3)
        neg_v0, neg_w0 = tl.load(first_pass + 4), tl.load(first_pass + 5)
        neg_least, neg_share = tl.load(first_pass + 6), tl.load(first_pass + 7)
    if TASK == 2:
        factor = tl.load(factors + image * factor_stride)
        coefficients += image * row_stride
    if TASK == 2 and not BY_CLASS:
        pos_alpha, pos_beta = tl.load(coefficients) * factor, tl.load(coefficients + 1) * factor
        neg_alpha, neg_beta = tl.load(coefficients + 2) * factor, tl.load(coefficients + 3) * factor

    nothing = tl.zeros([BLOCK], tl.float32)
    pos_z, neg_z = nothing, nothing
    if TASK == 0:
        pos_z, neg_z = pos_z - float("inf"), neg_z - float("inf")
    pos_s, neg_s = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    pos_m, neg_m = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    if BACKGROUND:
        if not busy:
            for step in range(STEPS):
                if PLANES:
                    k = first_class + step
                    there = place < tl.where(k < K, places, 0)
                    at = (shape * K + k).to(tl.int64) * places + place
                else:
                    at = start + step * BLOCK + lane
                    there = at < size
                read = at
                if PITCH != K:
                    read += at // K * (PITCH - K)
                y = tl.load(x + read, mask=there, other=float("-inf")).to(tl.float32)
                if TASK == 1:
                    z, s = _background_sums(y, neg_rate, FOCAL)
                    neg_z += z
                    neg_s += s
                else:
                    slope = _background_slope(y, neg_rate, neg_alpha, neg_beta, FOCAL)
                    tl.store(g + at, slope.to(g.dtype.element_ty), mask=there)
            if TASK == 1:
                if PLANES:
                    steps = tl.where(present, tl.minimum(K - first_class, STEPS), 0)
                else:
                    steps = tl.minimum(tl.maximum(tl.cdiv(size - start - lane, BLOCK), 0), STEPS)
                neg_m += steps.to(tl.float32)
                if not FOCAL:
                    neg_z -= STEPS - neg_m  # what is not there gave 1
    if busy:
        for step in range(STEPS):
            if PLANES:
                k = first_class + step
                there = place < tl.where(k < K, places, 0)
                at = (shape * K + k).to(tl.int64) * places + place
            elif BY_CLASS:  # WIDTH lanes an anchor, so that each lane keeps to one class
                anchor = (block.to(tl.int64) * STEPS + step) * (BLOCK // WIDTH) + lane // WIDTH
                k = lane % WIDTH
                at = anchor * K + k
                there = (k < K) & (at < size)
                if not DENSE:
                    label = tl.load(labels + before + anchor, mask=there, other=-1)
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
            read = at
            if PITCH != K:
                read = anchor * PITCH + k
            y = tl.load(x + read, mask=there, other=0.0).to(tl.float32)
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
            # An infinite logit counts as NaN, unless it is a masked class.
            y = tl.where((y == float("inf")) | (positive & (y == float("-inf"))), float("nan"), y)
            if FIRST_PASS:
                least = tl.where(positive, pos_least, neg_least)
                share = tl.where(positive, pos_share, neg_share)
                o = tl.where(y < least, 0.0, tl.where(y == least, o * share, o))
            there_with_prior = o != 0.0
            y = tl.where(there_with_prior, y, 0.0)  # a NaN without prior changes nothing
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
                    if FIRST_PASS:
                        v0, w0 = tl.where(positive, pos_v0, neg_v0), tl.where(positive, pos_w0, neg_w0)
                        distance = tl.where(v0 > 0.5, w0 - w, v - v0)
                        distance = tl.where(there_with_prior, distance, 0.0)  # else e may overflow, and o e be NaN
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
                    if BY_CLASS and PLANES:
                        if k < K:
                            slot = first_slot + begin // chunks + shape * parts + block % parts
                            to = slots + ((image * K + k) * programs + slot) * 6
                            _store_sums(to, pos_z, pos_s, pos_m, neg_z, neg_s, neg_m)
                        pos_z, pos_s, pos_m = nothing, nothing, nothing
                        neg_z, neg_s, neg_m = nothing, nothing, nothing
                else:
                    if BY_CLASS:
                        own = coefficients + tl.minimum(k, K - 1) * 4
                        pos_alpha, pos_beta = tl.load(own) * factor, tl.load(own + 1) * factor
                        neg_alpha, neg_beta = tl.load(own + 2) * factor, tl.load(own + 3) * factor
                    alpha, beta = tl.where(positive, pos_alpha, neg_alpha), tl.where(positive, pos_beta, neg_beta)
                    if FOCAL:
                        slope = alpha * term * (rate * w * tl.minimum(softplus, 1e30) + v)
                    else:
                        slope = term * v * w * (alpha + beta * distance)
                    slope = tl.where(there_with_prior, tl.where(positive, -slope, slope), 0.0)
                    tl.store(g + at, slope.to(g.dtype.element_ty), mask=there)
    if BY_CLASS and TASK == 1 and not PLANES:
        column = tl.arange(0, WIDTH)
        to = slots + ((image * K + column) * programs + first_slot + pid) * 6
        tl.store(to, _by_lane(pos_z, WIDTH), mask=column < K)
        tl.store(to + 1, _by_lane(pos_s, WIDTH), mask=column < K)
        tl.store(to + 2, _by_lane(pos_m, WIDTH), mask=column < K)
        tl.store(to + 3, _by_lane(neg_z, WIDTH), mask=column < K)
        tl.store(to + 4, _by_lane(neg_s, WIDTH), mask=column < K)
        tl.store(to + 5, _by_lane(neg_m, WIDTH), mask=column < K)
    if TASK != 2 and not BY_CLASS:
        slots += (image * programs + first_slot + pid) * 6
        if TASK == 0:
            tl.store(slots, tl.max(pos_z, axis=0))
            tl.store(slots + 3, tl.max(neg_z, axis=0))
        else:
            _store_sums(slots, pos_z, pos_s, pos_m, neg_z, neg_s, neg_m)


@triton.jit
def _shift(at):
    """c in float64, precise near 1, too."""
    score, easiness = tl.load(at).to(tl.float64), tl.load(at + 1).to(tl.float64)
    return tl.where(score > 0.5, 1.0 - easiness, score)


@triton.jit
def _expected(z_sum, s_sum, mass, rate, shift, WEIGHTS_GRAD: tl.constexpr):
    """Value, α and β of one sign for an outer slope of 1; all 0 if there is no candidate."""
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
    slots, first_pass, losses, coefficients, count, pos_rate, neg_rate, first_number, second_number,
    CHOICE: tl.constexpr, WEIGHTS_GRAD: tl.constexpr, FIRST_PASS: tl.constexpr, FOCAL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds up the slots of an image, or of all images, and computes its loss and its α and β.

    CHOICE is the surrogate of the DR loss; of a pointwise loss, whether it is divided by the number of positives.
    """
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
        if CHOICE == 1:
            divisor = tl.where(pm > 1.0, pm, 1.0)
        pos_alpha, neg_alpha = first_number / divisor, second_number / divisor
        pos_beta, neg_beta = pm * 0.0, pm * 0.0
        loss = pz * pos_alpha + nz * neg_alpha
    else:
        pos_shift, neg_shift = 0.0, 0.0
        if FIRST_PASS:
            pos_shift, neg_shift = _shift(first_pass + row * 8), _shift(first_pass + row * 8 + 4)
        pos_value, pos_alpha, pos_beta = _expected(pz, ps, pm, pos_rate, pos_shift, WEIGHTS_GRAD)
        neg_value, neg_alpha, neg_beta = _expected(nz, ns, nm, neg_rate, neg_shift, WEIGHTS_GRAD)
        z = neg_value + pos_value - 1.0 + first_number
        if CHOICE == 0:
            loss, outer = tl.where(z > 0.0, z, z * 0.0), tl.where(z > 0.0, 1.0, 0.0)
        elif CHOICE == 1:
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
