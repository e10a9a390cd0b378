"""The paper's equations as literal loops over Python floats (float64): what every test of a loss compares with."""

import math

NEG_LAMBDA = 0.1 / math.log(3.5)


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def candidates(logits, labels):
    """Scores of one image: nested list logits [A][K], labels [A] -> positive and negative scores."""
    positive, negative = [], []
    for row, label in zip(logits, labels, strict=True):
        for k, x in enumerate(row, start=1):
            if label == k:
                positive.append(sigmoid(x))
            elif label >= 0:
                negative.append(sigmoid(x))
    return positive, negative


def proposition_1(scores, lam):
    """q_j = exp(p_j / λ) / Z with a uniform prior."""
    top = max(scores)
    terms = [math.exp((p - top) / lam) for p in scores]
    total = math.fsum(terms)
    return [t / total for t in terms]


def proposition_2(scores, lam):
    """q_j = exp(-p_j / λ) / Z with a uniform prior."""
    return proposition_1([-p for p in scores], lam)


def equation_6(scores, weights):
    return math.fsum(q * p for q, p in zip(weights, scores, strict=True))


def equation_8(z, smoothness):
    lz = smoothness * z
    return (max(lz, 0) + math.log1p(math.exp(-abs(lz)))) / smoothness


def equation_9(logits, labels, *, pos_lambda=1.0, neg_lambda=NEG_LAMBDA, smoothness=6.0, margin=0.5):
    """ℓ_DR of one image, with P̂₊ = 1 without positives and P̂₋ = 0 without negatives."""
    positive, negative = candidates(logits, labels)
    expected_pos = equation_6(positive, proposition_2(positive, pos_lambda)) if positive else 1.0
    expected_neg = equation_6(negative, proposition_1(negative, neg_lambda)) if negative else 0.0
    return equation_8(expected_neg - expected_pos + margin, smoothness)


def appendix_a(logits, labels, *, pos_lambda=1.0, neg_lambda=NEG_LAMBDA, smoothness=6.0, margin=0.5):
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


def cross_entropy(logits, labels):
    """Equation (2) of one image."""
    positive, negative = candidates(logits, labels)
    return math.fsum(-math.log(p) for p in positive) + math.fsum(-math.log1p(-p) for p in negative)


def focal(logits, labels, alpha=0.25, gamma=2.0):
    positive, negative = candidates(logits, labels)
    return math.fsum(-alpha * (1 - p) ** gamma * math.log(p) for p in positive) + math.fsum(
        -(1 - alpha) * p**gamma * math.log1p(-p) for p in negative
    )
