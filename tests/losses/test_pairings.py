"""Eqs. (3)-(5), NegOnly, Theorem 2 and Corollary 1."""

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from drloss import dr_loss
from losses.cases import gradient_of, random_case

PAIRINGS = ["dr", "neg_only", "all_pairs", "worst_case"]
SURROGATES = ["logistic", "quadratic", "hinge"]


def test_all_pairs_is_the_mean_of_equation_3_over_the_pairs():
    logits, labels = random_case(0, n=1)
    positive, negative = oracle.candidates(logits[0].tolist(), labels[0].tolist())
    equation_3 = sum(oracle.hinge(n - p + 0.5) for p in positive for n in negative)
    found = dr_loss(logits, labels, pairing="all_pairs", surrogate="hinge").item()
    assert found * len(positive) * len(negative) == pytest.approx(equation_3)


def test_all_pairs_is_the_expected_loss_of_a_random_pair():
    # Equation (4)
    logits, labels = random_case(1, n=1)
    positive, negative = oracle.candidates(logits[0].tolist(), labels[0].tolist())
    torch.manual_seed(0)
    pairs = 200_000
    p = torch.tensor(positive)[torch.randint(len(positive), (pairs,))]
    n = torch.tensor(negative)[torch.randint(len(negative), (pairs,))]
    sampled = (n - p + 0.5).clamp(min=0)
    error = 5 * sampled.std().item() / math.sqrt(pairs)
    found = dr_loss(logits, labels, pairing="all_pairs", surrogate="hinge").item()
    assert found == pytest.approx(sampled.mean().item(), abs=error)


def test_worst_case_is_equation_5():
    logits, labels = random_case(2, n=1)
    positive, negative = oracle.candidates(logits[0].tolist(), labels[0].tolist())
    wanted = oracle.equation_8(max(negative) - min(positive) + 0.5, 6.0)
    assert dr_loss(logits, labels, pairing="worst_case").item() == pytest.approx(wanted)


def test_the_worst_case_is_the_limit_of_dr_and_the_largest_loss_of_a_pair():
    logits, labels = random_case(3)
    worst = dr_loss(logits, labels, pairing="worst_case", reduction="none")
    sharp = dr_loss(logits, labels, pos_lambda=1e-6, neg_lambda=1e-6, reduction="none")
    torch.testing.assert_close(sharp, worst, rtol=1e-6, atol=0)
    for pairing in PAIRINGS:
        assert (dr_loss(logits, labels, pairing=pairing, reduction="none") <= worst + 1e-12).all()


def test_neg_only_is_the_papers_mean_over_positives():
    logits, labels = random_case(4, n=1)
    positive, negative = oracle.candidates(logits[0].tolist(), labels[0].tolist())
    expected = oracle.equation_6(negative, oracle.proposition_1(negative, oracle.NEG_LAMBDA))
    wanted = sum(oracle.equation_8(expected - p + 0.5, 6.0) for p in positive) / len(positive)
    assert dr_loss(logits, labels, pairing="neg_only").item() == pytest.approx(wanted)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_neg_only_with_one_positive_is_dr(surrogate):
    logits, _ = random_case(5)
    labels = torch.zeros(2, 30, dtype=torch.int64)
    labels[:, 7] = 2
    dr, neg_only = (dr_loss(logits, labels, pairing=p, surrogate=surrogate) for p in ("dr", "neg_only"))
    torch.testing.assert_close(dr, neg_only)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_all_pairings_agree_on_one_pair(surrogate):
    logits = torch.tensor([[[0.7], [-0.4]]], dtype=torch.float64)
    values = [dr_loss(logits, torch.tensor([[1, 0]]), pairing=p, surrogate=surrogate) for p in PAIRINGS]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0])


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("scope", ["per_image", "pooled"])
def test_one_rule_for_empty_sets_in_every_pairing(pairing, surrogate, scope):
    options = {"pairing": pairing, "surrogate": surrogate, "scope": scope}
    logits = torch.tensor([[[1.0], [-0.5], [0.3]]], dtype=torch.float64)

    def loss(labels, logits=logits):
        return dr_loss(logits, torch.tensor([labels]), **options)

    perfect = torch.tensor([[[1.0], [-0.5], [0.3], [800.0]]], dtype=torch.float64)
    torch.testing.assert_close(loss([0, 0, 0]), loss([0, 0, 0, 1], perfect))
    torch.testing.assert_close(loss([1, 1, 1]), loss([1, 1, 1, 0], perfect * torch.tensor([1.0, 1, 1, -1])[:, None]))
    leaf = logits.clone().requires_grad_()
    nothing = loss([-1, -1, -1], leaf)
    nothing.backward()
    assert (leaf.grad == 0).all()
    value, _ = oracle.surrogate(surrogate, -0.5, 6.0, 0.5)
    assert nothing.item() == pytest.approx(value)
    none = torch.zeros(1, 0, 1, requires_grad=True)
    dr_loss(none, torch.zeros(1, 0, dtype=torch.int64), **options).backward()
    assert none.grad.shape == (1, 0, 1)


@given(seed=st.integers(0, 10**6), margin=st.floats(0.0, 0.9), n=st.integers(1, 6), m=st.integers(1, 6))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_scores_that_keep_the_margin_obey_theorem_2_and_corollary_1(seed, margin, n, m):
    torch.manual_seed(seed)
    # Negatives below a cut and positives above it by the margin; scores lie in (0, 1).
    cut = torch.rand(()).double() * (1 - margin)
    negative = cut * torch.rand(m).double().clamp(1e-6)
    positive = negative.max() + margin + (1 - margin - negative.max()) * torch.rand(n).double().clamp(1e-6, 1 - 1e-6)
    scores = torch.cat([positive, negative])
    labels = torch.tensor([[1] * n + [0] * m])
    loss = dr_loss(scores.logit().view(1, -1, 1), labels, pairing="all_pairs", surrogate="hinge", margin=margin)
    assert loss.item() <= 1e-9  # every pair keeps the margin
    assert (positive > margin).all()
    assert (negative <= 1 - margin).all()
    if margin >= 0.5:  # Corollary 1: 0.5 tells them apart
        assert (positive > 0.5).all()
        assert (negative <= 0.5).all()


@given(seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_scores_that_break_the_bounds_of_theorem_2_have_a_loss(seed):
    # The other way round: a negative above 1 - γ cannot be γ below any score.
    torch.manual_seed(seed)
    scores = torch.rand(6).double()
    scores[3] = 0.5 + 0.5 * torch.rand(()).double().clamp(1e-3, 1 - 1e-3)
    labels = torch.tensor([[1, 1, 1, 0, 0, 0]])
    assert dr_loss(scores.logit().view(1, -1, 1), labels, pairing="all_pairs", surrogate="hinge") > 0


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_candidates_in_chunks_are_the_same_sum(surrogate, monkeypatch):
    logits, labels = random_case(6, a=60)
    options = {"pairing": "all_pairs", "surrogate": surrogate}
    wanted, gradient = dr_loss(logits, labels, **options), gradient_of(logits, labels, **options)
    monkeypatch.setattr("drloss.losses.pairs._CHUNK", 7)
    torch.testing.assert_close(dr_loss(logits, labels, **options), wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient_of(logits, labels, **options), gradient, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("smoothness", [0.1, 1.0, 6.0, 30.0, 300.0, pytest.param(1000.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("margin", [-1.0, 0.5, 3.0])
def test_the_chebyshev_series_is_exact_to_one_part_in_a_billion(smoothness, margin):
    logits, labels = random_case(7, n=1)
    positive, negative = oracle.candidates(logits[0].tolist(), labels[0].tolist())
    pairs = [oracle.equation_8(n - p + margin, smoothness) for p in positive for n in negative]
    found = dr_loss(logits, labels, pairing="all_pairs", smoothness=smoothness, margin=margin).item()
    assert found == pytest.approx(sum(pairs) / len(pairs), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_sixteen_million_negatives_and_a_thousand_positives(surrogate):
    torch.manual_seed(0)
    logits = torch.randn(1, 201_600, 80) - 4
    labels = torch.zeros(1, 201_600, dtype=torch.int64)
    labels[0, :1000] = 1
    logits[0, :1000, 0] += 5
    began = time.perf_counter()
    found = gradient_of(logits, labels, pairing="all_pairs", surrogate=surrogate)
    assert time.perf_counter() - began < 120  # not minutes: the product has 16 billion pairs
    negatives = torch.cat([logits[0, :1000, 1:].flatten(), logits[0, 1000:].flatten()]).sigmoid().double()
    slopes = []
    for p in logits[0, :5, 0].sigmoid().double():
        z = negatives - p + 0.5
        slopes.append(
            {
                "logistic": (6 * z).sigmoid(),
                "quadratic": ((z + 0.5) / 1).clamp(0, 1),
                "hinge": (z > 0).double(),
            }[surrogate].mean()
        )
    p = logits[0, :5, 0].sigmoid().double()
    torch.testing.assert_close(
        found[0, :5, 0].double(), -torch.stack(slopes) * p * (1 - p) / 1000, rtol=1e-5, atol=1e-12
    )
