import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

import oracle
from drloss import dr_loss, lambda_from_log_base
from drloss.losses.candidates import split_candidates
from drloss.losses.distribution import (
    chi2_weights,
    cvar_weights,
    drifted_weights,
    effective_number,
    expected_easiness,
    find_lambda,
    kl_divergence,
)
from losses.cases import gradient_of, random_case


def scores(seed=0, n=9):
    return torch.rand(2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


EVERY = torch.ones(2, 9, dtype=torch.bool)


@pytest.mark.parametrize("lam", [1e-3, 0.08, 1.0, 50.0])
def test_weights_are_propositions_1_and_2(lam):
    p = scores()
    negative, positive = drifted_weights(1 - p, EVERY, lam=lam), drifted_weights(p, EVERY, lam=lam)
    for i in range(2):
        assert negative[i].tolist() == pytest.approx(oracle.proposition_1(p[i].tolist(), lam), rel=1e-9, abs=1e-300)
        assert positive[i].tolist() == pytest.approx(oracle.proposition_2(p[i].tolist(), lam), rel=1e-9, abs=1e-300)


def test_no_point_of_the_simplex_beats_the_closed_form():
    p, lam = scores(1)[0], 0.3

    def value(q):
        return (q * p).sum(-1) - lam * (torch.special.xlogy(q, q * len(p))).sum(-1)

    best = value(drifted_weights(1 - p[None], EVERY[:1], lam=lam)[0])
    others = torch.distributions.Dirichlet(torch.full((9,), 0.7, dtype=torch.float64))
    torch.manual_seed(1)
    assert (value(others.sample((2000,))) <= best + 1e-12).all()
    assert value(torch.full((9,), 1 / 9, dtype=torch.float64)) < best


def test_a_harder_candidate_weighs_more_and_the_others_of_its_image_matter():
    # Remark 1
    p = torch.tensor([[0.1, 0.5, 0.9], [0.1, 0.5, 0.5]], dtype=torch.float64)
    q = drifted_weights(1 - p, torch.ones(2, 3, dtype=torch.bool), lam=0.3)
    assert q[0, 0] < q[0, 1] < q[0, 2]
    assert q[1, 1] > q[0, 1]


def best_by_solver(u, o, divergence, lam):
    """argmin Σ q u + λ Ω(q ‖ o) on the simplex by a general solver, SLSQP from several starts."""
    starts = [o, *torch.distributions.Dirichlet(torch.ones(len(o), dtype=torch.float64)).sample((3,)).tolist()]
    found = [
        optimize.minimize(
            lambda q: sum(a * b for a, b in zip(q, u, strict=True)) + lam * divergence(q, o),
            start,
            method="SLSQP",
            bounds=[(0, 1)] * len(o),
            constraints=[{"type": "eq", "fun": lambda q: sum(q) - 1}],
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        for start in starts
    ]
    return min(found, key=lambda result: result.fun)


def chi2_divergence(q, o):
    return sum((a - b) ** 2 / b for a, b in zip(q, o, strict=True)) / 2


def kl_of(q, o):
    return sum(a * math.log(a / b) for a, b in zip(q, o, strict=True) if a > 1e-300)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("solve", "divergence"), [(chi2_weights, chi2_divergence), (drifted_weights, kl_of)], ids=["chi2", "kl"]
)
def test_weights_are_what_a_convex_solver_finds(solve, divergence, seed):
    torch.manual_seed(seed)
    u, prior = torch.rand(1, 6, dtype=torch.float64), torch.rand(1, 6, dtype=torch.float64) + 0.05
    o = (prior / prior.sum()).squeeze(0)
    for lam in (0.05, 0.3, 2.0):
        q = solve(u, prior, lam=lam).squeeze(0)
        assert q.sum().item() == pytest.approx(1, abs=1e-12)
        value = float((q * u).sum()) + lam * divergence(q.tolist(), o.tolist())
        best = best_by_solver(u.squeeze(0).tolist(), o.tolist(), divergence, lam)
        assert value <= best.fun + 1e-12  # at least as good as the solver's
        assert q.tolist() == pytest.approx(list(best.x), abs=2e-4)


@pytest.mark.parametrize("seed", range(8))
def test_cvar_weights_are_what_a_linear_program_finds(seed):
    torch.manual_seed(seed)
    u, prior = torch.rand(1, 7, dtype=torch.float64), torch.rand(1, 7, dtype=torch.float64) + 0.05
    o = (prior / prior.sum()).squeeze(0)
    for alpha in (0.05, 0.3, 0.77, 1.0):
        q = cvar_weights(u, prior, alpha=alpha).squeeze(0)
        best = optimize.linprog(
            u.squeeze(0).tolist(), A_eq=[[1.0] * 7], b_eq=[1.0], bounds=[(0, w / alpha) for w in o.tolist()]
        )
        assert q.tolist() == pytest.approx(list(best.x), abs=1e-9)


def test_chi2_weights_of_a_uniform_prior_are_the_projection_onto_the_simplex():
    # argmin |q - (o - u n⁻¹/λ)|²: with o uniform, χ²/2 is n/2 |q - o|².
    u, lam, n = scores(3)[:1], 0.05, 9
    point = (1 / n - u / (lam * n)).squeeze(0)
    ordered, sums = point.sort(descending=True).values, 0.0
    for k in range(1, n + 1):
        sums += ordered[k - 1].item()
        if ordered[k - 1].item() - (sums - 1) / k > 0:
            shift = (sums - 1) / k
    q = chi2_weights(u, EVERY[:1], lam=lam).squeeze(0)
    torch.testing.assert_close(q, (point - shift).clamp(min=0), rtol=0, atol=1e-12)
    assert (q == 0).any()  # sparse


def test_chi2_agrees_with_kl_to_second_order():
    u = scores(4)
    for lam in (10.0, 100.0):
        gap = (chi2_weights(u, EVERY, lam=lam) - drifted_weights(u, EVERY, lam=lam)).abs().max()
        assert gap <= 0.1 / lam**2


@pytest.mark.parametrize("solve", [drifted_weights, chi2_weights])
def test_a_large_lambda_gives_the_prior_and_a_small_one_the_hardest(solve):
    u, prior = scores(5), scores(6) + 0.1
    o = prior / prior.sum(dim=1, keepdim=True)
    torch.testing.assert_close(solve(u, prior, lam=1e8), o, rtol=1e-6, atol=0)
    hardest = torch.nn.functional.one_hot(u.argmin(dim=1), 9).double()
    torch.testing.assert_close(solve(u, prior, lam=1e-6), hardest, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "solve",
    [
        lambda u, o: drifted_weights(u, o, lam=0.1),
        lambda u, o: chi2_weights(u, o, lam=0.1),
        lambda u, o: cvar_weights(u, o, alpha=0.4),
    ],
)
def test_candidates_without_prior_have_no_weight_and_rows_sum_to_one(solve):
    prior = EVERY.clone()
    prior[0, ::2] = False
    prior[1, 1:] = False
    q = solve(scores(), prior)
    assert (q[~prior] == 0).all()
    torch.testing.assert_close(q.sum(dim=1), torch.ones(2, dtype=torch.float64))
    assert expected_easiness(scores(), q)[1].item() == pytest.approx(scores()[1, 0].item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 10**6), radius=st.floats(1e-3, 3.0), n=st.sampled_from([40, 500]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_radius_is_met_to_one_millionth(seed, radius, n, dtype):
    logits, labels = random_case(seed, n=1, a=n, k=3, dtype=dtype, values=(0,))
    seen = {}

    def spy(easiness, prior, **options):
        q = drifted_weights(easiness, prior, **options)
        seen["q"], seen["o"] = q, prior
        return q

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drloss.losses.distribution.drifted_weights", spy)
        dr_loss(logits, labels, neg_radius=radius)
    q = seen["q"].to(dtype).double()
    o = seen["o"].double() / seen["o"].sum()
    assert torch.special.xlogy(q, q / o.clamp(min=1e-30)).sum().item() == pytest.approx(radius, abs=1e-6)


def test_a_radius_beyond_the_hardest_candidate_gives_the_worst_case():
    logits, labels = random_case(1, n=1)
    worst = dr_loss(logits, labels, pairing="worst_case")
    assert dr_loss(logits, labels, pos_radius=50.0, neg_radius=50.0).item() == pytest.approx(worst.item(), abs=1e-6)


def test_a_small_radius_gives_the_mean():
    logits, labels = random_case(1, n=1)
    mean = dr_loss(logits, labels, pos_lambda=1e6, neg_lambda=1e6)
    assert dr_loss(logits, labels, pos_radius=1e-12, neg_radius=1e-12).item() == pytest.approx(mean.item(), rel=1e-4)


def test_lambda_and_radius_are_two_names_of_one_distribution():
    logits, labels = random_case(2, n=1)
    part = split_candidates(logits, labels).negative
    q = drifted_weights(part.easiness, part.prior, lam=0.07)
    radius = kl_divergence(q, part.prior).item()
    assert find_lambda(part.easiness, part.prior, radius=radius).item() == pytest.approx(0.07, rel=1e-6)


def test_equal_candidates_have_no_lambda_and_still_a_value():
    found = dr_loss(torch.zeros(1, 5, 2), torch.tensor([[1, 0, 0, 0, 2]]), pos_radius=0.5, neg_radius=0.5)
    assert found.item() == pytest.approx(math.log(1 + math.exp(3)) / 6)


def test_the_gradient_under_a_radius_is_that_of_the_value():
    # Envelope theorem: q alone, although λ moves with the scores. Against central differences of the value.
    logits, labels = random_case(3, n=1, a=8)
    options = {"pos_radius": 0.2, "neg_radius": 0.4}
    gradient = gradient_of(logits, labels, **options)
    for j in range(8):
        step = torch.zeros_like(logits)
        step[0, j, 0] = 1e-5
        up, down = dr_loss(logits + step, labels, **options), dr_loss(logits - step, labels, **options)
        assert gradient[0, j, 0].item() == pytest.approx((up - down).item() / 2e-5, abs=1e-7)


def test_effective_number_of_one_and_of_many():
    weights = torch.tensor([[1.0, 0, 0, 0], [0.25] * 4])
    torch.testing.assert_close(effective_number(weights), torch.tensor([[1.0], [4.0]], dtype=torch.float64))


def test_kl_divergence_is_zero_at_the_prior_and_log_n_at_one_candidate():
    prior = torch.ones(2, 4, dtype=torch.bool)
    weights = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0]])
    torch.testing.assert_close(
        kl_divergence(weights, prior), torch.tensor([[0.0], [math.log(4)]], dtype=torch.float64)
    )


def test_lambda_of_the_base_is_table_1s():
    # §4.3: λ₊ = 1/log h₊, λ₋ = 0.1/log h₋; another base of the logarithm is another factor before KL.
    assert lambda_from_log_base(math.e, scale=1.0) == pytest.approx(1.0)
    for h in (1.5, 3.5, 5.5, 20.0):
        assert lambda_from_log_base(h, scale=0.1) == pytest.approx(0.1 / math.log(h))
    p, h = scores(7)[:1], 5.5

    def value(q):
        return (q * p).sum() - 0.1 * (q * torch.log(q * 9)).sum() / math.log(h)

    best = value(drifted_weights(1 - p, EVERY[:1], lam=lambda_from_log_base(h, scale=0.1)))
    for seed in range(50):
        torch.manual_seed(seed)
        assert value(torch.distributions.Dirichlet(torch.ones(9, dtype=torch.float64)).sample()[None]) <= best


def test_a_zero_weight_takes_a_candidate_out_and_all_zero_empties_the_set():
    logits, labels = random_case(8, n=1)
    weights = torch.ones(1, 30)
    weights[0, 10:] = 0
    negatives_cut = dr_loss(logits, labels, neg_prior=weights)
    assert not torch.allclose(negatives_cut, dr_loss(logits, labels))
    no_negatives = dr_loss(logits, labels, neg_prior=torch.zeros(1, 30))
    without = torch.where(labels == 0, -1, labels)
    dense = torch.nn.functional.one_hot(without.clamp(min=0), 4)[..., 1:].bool()
    positives = logits[dense]
    q = oracle.proposition_2([oracle.sigmoid(x) for x in positives.tolist()], 1.0)
    expected_pos = oracle.equation_6([oracle.sigmoid(x) for x in positives.tolist()], q)
    assert no_negatives.item() == pytest.approx(oracle.equation_8(0.0 - expected_pos + 0.5, 6.0))
    assert (gradient_of(logits, labels, neg_prior=torch.zeros(1, 30))[~dense] == 0).all()


@pytest.mark.parametrize("pooled", ["per_image", "pooled"])
def test_weights_go_with_dense_targets_too(pooled):
    logits, labels = random_case(9)
    generator = torch.Generator().manual_seed(0)
    options = {n: torch.rand(2, 30, 3, generator=generator) for n in ("pos_prior", "neg_prior")} | {"scope": pooled}
    targets = torch.nn.functional.one_hot(labels.clamp(min=0), 4)[..., 1:]
    wanted = dr_loss(logits, labels, **options)
    for dense in (targets.bool(), targets.float()):
        torch.testing.assert_close(dr_loss(logits, dense, ignore=labels < 0, **options), wanted)


def test_weights_are_normalised_per_image():
    logits, labels = random_case(9)
    weights = torch.rand(2, 30, 3, generator=torch.Generator().manual_seed(0))
    scaled = weights * torch.tensor([3.0, 1000.0]).view(2, 1, 1)
    torch.testing.assert_close(
        dr_loss(logits, labels, neg_prior=scaled, reduction="none"),
        dr_loss(logits, labels, neg_prior=weights, reduction="none"),
    )


def test_a_whole_weight_is_a_number_of_copies():
    logits, labels = random_case(10, n=1, a=6)
    copies = torch.tensor([[3, 1, 2, 1, 1, 4]])
    repeated = torch.repeat_interleave(torch.arange(6), copies[0])
    for pairing in ("dr", "neg_only", "all_pairs", "worst_case"):
        weighted = dr_loss(logits, labels, pairing=pairing, pos_prior=copies.float(), neg_prior=copies.float())
        wanted = dr_loss(logits[:, repeated], labels[:, repeated], pairing=pairing)
        torch.testing.assert_close(weighted, wanted)


@pytest.mark.parametrize("count", [1, 5, 20])
def test_hard_mining_is_the_loss_on_the_hardest_candidates_alone(count):
    logits, labels = random_case(11, n=1, values=(-1, 0, 0, 0, 0, 1))
    negatives = torch.where((labels == 0).unsqueeze(2), logits, -torch.inf).flatten()
    chosen = torch.zeros(90, dtype=torch.bool)
    chosen[negatives.topk(count).indices] = True
    positive = torch.nn.functional.one_hot(labels.clamp(min=0), 4)[..., 1:].bool()
    only = torch.where(positive.flatten() | chosen, positive.flatten().long(), -1).reshape(1, 90)
    # an anchor's other classes are negatives too: leave them out by taking one class at a time
    wanted = dr_loss(logits.reshape(1, 90, 1), only)
    background = torch.where(positive, 1.0, (labels == 0).double().unsqueeze(2).expand_as(logits))
    mined = dr_loss(
        logits.reshape(1, 90, 1), torch.where(background > 0, positive.long(), -1).reshape(1, 90), neg_prior=count
    )
    torch.testing.assert_close(mined, wanted)


def test_mining_more_than_there_are_is_the_uniform_prior():
    logits, labels = random_case(12)
    found = dr_loss(logits, labels, pos_prior=10**6, neg_prior=10**6)
    torch.testing.assert_close(found, dr_loss(logits, labels))


def test_candidates_tied_for_the_last_place_share_it():
    logits = torch.tensor([[[3.0], [1.0], [1.0], [1.0], [0.0], [2.0]]], dtype=torch.float64)
    labels = torch.tensor([[0, 0, 0, 0, 0, 1]])
    gradient = gradient_of(logits, labels, neg_prior=2, weights_grad="detached").flatten()
    assert gradient[1] == gradient[2] == gradient[3] != 0
    assert gradient[4] == 0
    any_two = dr_loss(logits[:, [0, 1, 5]], labels[:, [0, 1, 5]])
    torch.testing.assert_close(dr_loss(logits, labels, neg_prior=2), any_two)


def test_dual_lies_below_the_expectation_by_the_divergence_and_has_q_for_a_gradient():
    part = split_candidates(*random_case(13)).negative
    u = part.easiness.detach().requires_grad_()
    from drloss.losses.distribution import Drift

    for regularizer in ("kl", "chi2"):
        drift = Drift(regularizer, 0.1, None, None, "dual")
        q = drift.weights(u, part.prior)
        leaf = part.signed.clone().requires_grad_()
        dual = drift.expectation(type(part)(leaf, part.prior, part.empty))
        o = part.prior / part.prior.sum(dim=1, keepdim=True)
        omega = kl_divergence(q, part.prior) if regularizer == "kl" else ((q - o) ** 2 / o).nansum(1, True) / 2
        torch.testing.assert_close(dual, expected_easiness(u, q) + 0.1 * omega)
        (gradient,) = torch.autograd.grad(dual.sum(), leaf)
        torch.testing.assert_close(gradient, q * u * (1 - u))


@pytest.mark.parametrize("weight", [1e-15, 1e-16, 1e-17])
def test_the_search_for_lambda_is_not_stopped_by_a_divergence_of_rounding_size(weight):
    easiness = torch.tensor([[0.9, 0.1]], dtype=torch.float64)
    prior = torch.tensor([[1.0, weight]], dtype=torch.float64)
    lam = find_lambda(easiness, prior, radius=0.5)
    divergence = kl_divergence(drifted_weights(easiness, prior, lam=lam), prior)
    assert divergence.item() == pytest.approx(0.5, abs=1e-6)
