"""The paper's equations as literal loops over Python floats (float64): what every test of a loss compares with.

Images are nested lists: logits [A][K], labels [A]; weights over candidates, where given, [A][K]. A set is a list of
(anchor, class, score) triples with a list of prior weights.
"""

import math

POS_LAMBDA, NEG_LAMBDA = 1.0, 0.1 / math.log(3.5)


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def candidates(logits, labels):
    """Scores of one image: positive and negative."""
    positive, negative = [], []
    for row, label in zip(logits, labels, strict=True):
        for k, x in enumerate(row, start=1):
            if label == k:
                positive.append(sigmoid(x))
            elif label >= 0:
                negative.append(sigmoid(x))
    return positive, negative


# ---------------------------------------------------------------------------- surrogates


def hinge(z):
    return z if z > 0 else 0.0


def equation_7(z, rho):
    if z >= rho:
        return z
    return (z + rho) ** 2 / (4 * rho) if z > -rho else 0.0


def equation_8(z, smoothness):
    lz = smoothness * z
    return (max(lz, 0) + math.log1p(math.exp(-abs(lz)))) / smoothness


def surrogate(name, z, smoothness, rho):
    """Value and slope."""
    if name == "hinge":
        return hinge(z), 1.0 if z > 0 else 0.0
    if name == "quadratic":
        return equation_7(z, rho), 1.0 if z >= rho else (z + rho) / (2 * rho) if z > -rho else 0.0
    return equation_8(z, smoothness), sigmoid(smoothness * z)


# ---------------------------------------------------------------------------- derived distributions


def proposition_1(scores, lam, prior=None):
    """q_j = o_j exp(p_j / λ) / Z, uniform prior by default."""
    prior = prior or [1.0] * len(scores)
    top = max(p for p, o in zip(scores, prior, strict=True) if o > 0)
    terms = [o * math.exp((p - top) / lam) if o > 0 else 0.0 for p, o in zip(scores, prior, strict=True)]
    total = math.fsum(terms)
    return [t / total for t in terms]


def proposition_2(scores, lam, prior=None):
    """q_j = o_j exp(-p_j / λ) / Z, uniform prior by default."""
    return proposition_1([-p for p in scores], lam, prior)


def kl(q, o):
    return math.fsum(a * math.log(a / b) for a, b in zip(q, o, strict=True) if a > 0)


def chi2(values, lam, o):
    """argmax Σ q v - λ/2 Σ (q - o)²/o: q = o (v - t)₊ / λ, with t by bisection."""
    low, high = min(values) - lam - 1, max(values)
    for _ in range(200):
        middle = (low + high) / 2
        if math.fsum(b * max(v - middle, 0) for v, b in zip(values, o, strict=True)) > lam:
            low = middle
        else:
            high = middle
    return [b * max(v - low, 0) / lam for v, b in zip(values, o, strict=True)]


def cvar(values, alpha, o):
    """argmax Σ q v with q <= o/α: fill from the largest v; equal values share."""
    q, left = [0.0] * len(values), alpha
    for value in sorted(set(values), reverse=True):
        same = [j for j, v in enumerate(values) if v == value]
        mass = math.fsum(o[j] for j in same)
        share = min(1.0, left / mass) if mass > 0 else 0.0
        for j in same:
            q[j] = share * o[j] / alpha
        left -= share * mass
    return q


def lambda_of_radius(values, radius, o):
    """λ with KL(q_λ ‖ o) = ε by bisection in log λ; tiny where even the hardest alone is inside."""
    low, high = math.log(1e-7), math.log(1e9)
    for _ in range(200):
        middle = (low + high) / 2
        if kl(proposition_1(values, math.exp(middle), o), o) > radius:
            low = middle
        else:
            high = middle
    return math.exp(high)


def equation_6(scores, weights):
    return math.fsum(q * p for q, p in zip(weights, scores, strict=True))


def expectation(values, prior, *, regularizer, lam, radius, alpha, weights_grad):
    """What is ranked, max-form (v = p of negatives, -p of positives): value and slope by v."""
    mass = math.fsum(prior)
    o = [w / mass for w in prior]
    if regularizer == "cvar":
        q = cvar(values, alpha, o)
        return equation_6(values, q), q
    if radius is not None:
        q = proposition_1(values, lambda_of_radius(values, radius, o), o)
        return equation_6(values, q), q
    q = chi2(values, lam, o) if regularizer == "chi2" else proposition_1(values, lam, o)
    value = equation_6(values, q)
    if weights_grad == "dual":
        if regularizer == "chi2":
            omega = math.fsum((a - b) ** 2 / b for a, b in zip(q, o, strict=True) if b > 0) / 2
        else:
            omega = kl(q, o)
        return value - lam * omega, q
    if weights_grad == "detached":
        return value, q
    if regularizer == "chi2":
        kept = [b if a > 0 else 0.0 for a, b in zip(q, o, strict=True)]
        mean = equation_6(values, kept) / math.fsum(kept)
        return value, [a + b * (v - mean) / lam for a, b, v in zip(q, kept, values, strict=True)]
    return value, [a * (1 + (v - value) / lam) for a, v in zip(q, values, strict=True)]  # Appendix A


# ---------------------------------------------------------------------------- the family


def mine(scores, count, hardest_first):
    """o of hard mining: 1 at the n̂ hardest, what is left shared by those tied for the last place."""
    order = sorted(set(scores), reverse=hardest_first)
    weights, left = [0.0] * len(scores), min(count, len(scores))
    for score in order:
        same = [j for j, s in enumerate(scores) if s == score]
        share = min(1.0, left / len(same))
        for j in same:
            weights[j] = share
        left -= share * len(same)
    return weights


def sets(images, labels, prior, positive):
    """Places (image, anchor, class), logits and prior weights of one set of one or several images."""
    places, logits, weights = [], [], []
    for i, (image, image_labels) in enumerate(zip(images, labels, strict=True)):
        for a, (row, label) in enumerate(zip(image, image_labels, strict=True)):
            for k, x in enumerate(row, start=1):
                if (label == k) if positive else (label >= 0 and label != k):
                    places.append((i, a, k - 1))
                    logits.append(x)
                    weights.append(1.0 if prior is None or isinstance(prior, int) else prior[i][a][k - 1])
    if isinstance(prior, int) and places:
        weights = mine(logits, prior, hardest_first=not positive)
    if not places or sum(weights) == 0:
        return [None], [1.0 if positive else 0.0], [1.0]  # one positive of score 1, one negative of score 0
    return places, [sigmoid(x) for x in logits], weights


def family(
    images,
    labels,
    *,
    pairing="dr",
    surrogate_name="logistic",
    smoothness=6.0,
    rho=0.5,
    margin=0.5,
    regularizer="kl",
    pos_lambda=POS_LAMBDA,
    neg_lambda=NEG_LAMBDA,
    pos_radius=None,
    neg_radius=None,
    pos_alpha=None,
    neg_alpha=None,
    pos_prior=None,
    neg_prior=None,
    weights_grad="exact",
):
    """Loss of one distribution over the given images, its gradient [N][A][K], and its violations z."""
    pos_places, p, o = sets(images, labels, pos_prior, True)
    neg_places, n, r = sets(images, labels, neg_prior, False)
    gradient = [[[0.0] * len(row) for row in image] for image in images]
    common = {"regularizer": regularizer, "weights_grad": weights_grad}
    move_pos = {"lam": pos_lambda, "radius": pos_radius, "alpha": pos_alpha, **common}
    move_neg = {"lam": neg_lambda, "radius": neg_radius, "alpha": neg_alpha, **common}

    def loss(z):
        return surrogate(surrogate_name, z, smoothness, rho)

    mass_o, mass_r = math.fsum(o), math.fsum(r)
    o_share, r_share = [w / mass_o for w in o], [w / mass_r for w in r]
    if pairing == "dr":
        expected_neg, neg_slope = expectation(n, r, **move_neg)
        minus_expected_pos, pos_slope = expectation([-s for s in p], o, **move_pos)
        pairs = [(expected_neg + minus_expected_pos + margin, 1.0, pos_slope, neg_slope)]
    elif pairing == "neg_only":
        expected_neg, neg_slope = expectation(n, r, **move_neg)
        pairs = [
            (expected_neg - s + margin, w, {i: 1.0}, neg_slope)
            for i, (s, w) in enumerate(zip(p, o_share, strict=True))
        ]
    elif pairing == "worst_case":
        top = max(s for s, w in zip(n, r, strict=True) if w > 0)
        bottom = min(s for s, w in zip(p, o, strict=True) if w > 0)
        tops = [j for j, (s, w) in enumerate(zip(n, r, strict=True)) if s == top and w > 0]
        bottoms = [j for j, (s, w) in enumerate(zip(p, o, strict=True)) if s == bottom and w > 0]
        pairs = [
            (
                top - bottom + margin,
                1.0,
                {j: 1 / len(bottoms) for j in bottoms},
                {j: 1 / len(tops) for j in tops},
            )
        ]
    else:
        pairs = [
            (b - a + margin, w * v, {i: 1.0}, {j: 1.0})
            for i, (a, w) in enumerate(zip(p, o_share, strict=True))
            for j, (b, v) in enumerate(zip(n, r_share, strict=True))
            if w * v > 0
        ]
    values, slopes_p, slopes_n = [], [0.0] * len(p), [0.0] * len(n)
    for z, weight, by_pos, by_neg in pairs:
        value, slope = loss(z)
        values.append(weight * value)
        for i, s in by_pos.items() if isinstance(by_pos, dict) else enumerate(by_pos):
            slopes_p[i] += weight * slope * s
        for j, s in by_neg.items() if isinstance(by_neg, dict) else enumerate(by_neg):
            slopes_n[j] += weight * slope * s
    # z falls with a positive's score (v = -p) and rises with a negative's.
    for places, scores, slopes, sign in ((pos_places, p, slopes_p, -1), (neg_places, n, slopes_n, 1)):
        for place, score, slope in zip(places, scores, slopes, strict=True):
            if place is not None:
                i, a, k = place
                x = images[i][a][k]
                gradient[i][a][k] += sign * slope * score * sigmoid(-x)
    return math.fsum(values), gradient, [z for z, weight, *_ in pairs if weight > 0]


def equation_9(logits, labels, *, pos_lambda=POS_LAMBDA, neg_lambda=NEG_LAMBDA, smoothness=6.0, margin=0.5):
    """ℓ_DR of one image, with P̂₊ = 1 without positives and P̂₋ = 0 without negatives."""
    positive, negative = candidates(logits, labels)
    expected_pos = equation_6(positive, proposition_2(positive, pos_lambda)) if positive else 1.0
    expected_neg = equation_6(negative, proposition_1(negative, neg_lambda)) if negative else 0.0
    return equation_8(expected_neg - expected_pos + margin, smoothness)


def appendix_a(logits, labels, *, pos_lambda=POS_LAMBDA, neg_lambda=NEG_LAMBDA, smoothness=6.0, margin=0.5):
    """∂ℓ_DR/∂logit of one image, [A][K]: Appendix A times dp/dx = p (1 - p)."""
    positive, negative = candidates(logits, labels)
    q_pos = proposition_2(positive, pos_lambda) if positive else []
    q_neg = proposition_1(negative, neg_lambda) if negative else []
    expected_pos = equation_6(positive, q_pos) if positive else 1.0
    expected_neg = equation_6(negative, q_neg) if negative else 0.0
    outer = sigmoid(smoothness * (expected_neg - expected_pos + margin))
    next_pos, next_neg = iter(q_pos), iter(q_neg)
    gradient = []
    for row, label in zip(logits, labels, strict=True):
        gradient.append([])
        for k, x in enumerate(row, start=1):
            p = sigmoid(x)
            if label == k:
                slope = next(next_pos) * (-1 + (p - expected_pos) / pos_lambda)
            elif label >= 0:
                slope = next(next_neg) * (1 + (p - expected_neg) / neg_lambda)
            else:
                slope = 0.0
            gradient[-1].append(outer * slope * p * (1 - p))
    return gradient


# ---------------------------------------------------------------------------- the rivals


def softplus(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def signed(logits, labels):
    """Logits x of the positives and -x of the negatives of one image."""
    positive, negative = [], []
    for row, label in zip(logits, labels, strict=True):
        for k, x in enumerate(row, start=1):
            if label == k:
                positive.append(x)
            elif label >= 0:
                negative.append(-x)
    return positive, negative


def cross_entropy(logits, labels):
    """Equation (2) of one image."""
    positive, negative = signed(logits, labels)
    return math.fsum(softplus(-x) for x in positive + negative)


def focal(logits, labels, alpha=0.25, gamma=2.0):
    positive, negative = signed(logits, labels)
    return math.fsum(alpha * sigmoid(-x) ** gamma * softplus(-x) for x in positive) + math.fsum(
        (1 - alpha) * sigmoid(-x) ** gamma * softplus(-x) for x in negative
    )


def ohem(logits, labels, ratio=3.0):
    positive, negative = signed(logits, labels)
    kept = sorted(negative)[: math.floor(ratio * len(positive))]
    return math.fsum(softplus(-x) for x in positive + kept)


def quality_focal(logits, labels, quality=None, beta=2.0):
    total = 0.0
    for a, (row, label) in enumerate(zip(logits, labels, strict=True)):
        for k, x in enumerate(row, start=1):
            if label >= 0:
                y = (1.0 if quality is None else quality[a]) if label == k else 0.0
                total += abs(y - sigmoid(x)) ** beta * (y * softplus(-x) + (1 - y) * softplus(x))
    return total


def average_precision(images, labels, delta=1.0, interpolate=True):
    """AP-loss over the candidates of the given images, as a loop over positives: value and update [N][A][K]."""
    positive, negative = [], []
    for i, (image, image_labels) in enumerate(zip(images, labels, strict=True)):
        for a, (row, label) in enumerate(zip(image, image_labels, strict=True)):
            for k, x in enumerate(row, start=1):
                if label == k:
                    positive.append((x, (i, a, k - 1)))
                elif label >= 0:
                    negative.append((x, (i, a, k - 1)))
    update = [[[0.0] * len(row) for row in image] for image in images]
    if not positive:
        return 0.0, update

    def ramp(x):
        return min(max(x / (2 * delta) + 0.5, 0.0), 1.0)

    best, loss, n = 0.0, 0.0, len(positive)
    for index in sorted(range(n), key=lambda i: positive[i][0]):
        s, (i, a, k) = positive[index]
        rank = 1 + math.fsum(ramp(t - s) for j, (t, _) in enumerate(positive) if j != index)
        errors = [ramp(t - s) for t, _ in negative]
        precision = rank / (rank + math.fsum(errors))
        best = max(best, precision) if interpolate else precision
        scale = (1 - best) / (1 - precision) if best > precision else 1.0
        loss += (1 - best) / n
        update[i][a][k] -= (1 - best) / n
        for error, (_, (ni, na, nk)) in zip(errors, negative, strict=True):
            update[ni][na][nk] += error / (rank + math.fsum(errors)) * scale / n
    return loss, update
