import math

import pytest
import torch

import oracle
from drloss.losses.distribution import drifted_weights, effective_number, expected_easiness
from drloss.losses.surrogates import logistic


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
    p, lam, generator = scores(1)[0], 0.3, torch.Generator().manual_seed(1)

    def value(q):
        return (q * p).sum(-1) - lam * (torch.special.xlogy(q, q * len(p))).sum(-1)

    best = value(drifted_weights(1 - p[None], EVERY[:1], lam=lam)[0])
    others = torch.distributions.Dirichlet(torch.full((9,), 0.7, dtype=torch.float64))
    torch.manual_seed(generator.initial_seed())
    assert (value(others.sample((2000,))) <= best + 1e-12).all()
    assert value(torch.full((9,), 1 / 9, dtype=torch.float64)) < best


def test_masked_candidates_have_no_weight_and_rows_sum_to_one():
    mask = EVERY.clone()
    mask[0, ::2] = False
    mask[1] = False
    q = drifted_weights(scores(), mask, lam=0.1)
    assert (q[~mask] == 0).all()
    torch.testing.assert_close(q.sum(dim=1), torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert expected_easiness(scores(), q, mask)[1] == 1


def test_effective_number_of_one_many_and_none():
    weights = torch.tensor([[1.0, 0, 0, 0], [0.25] * 4, [0.0] * 4])
    torch.testing.assert_close(effective_number(weights), torch.tensor([1.0, 4.0, 0.0]))


@pytest.mark.parametrize("smoothness", [0.5, 6.0, 100.0])
def test_logistic_lies_between_the_hinge_and_log_two_over_l_above(smoothness):
    z = torch.linspace(-2, 2, 401, dtype=torch.float64)
    gap = logistic(z, smoothness=smoothness) - z.clamp(min=0)
    assert (gap >= -1e-15).all()
    assert (gap <= math.log(2) / smoothness + 1e-12).all()
    assert gap.argmax() == 200


def test_logistic_is_equation_8():
    for z in (-1.5, -0.5, 0.0, 0.3, 1.5):
        found = logistic(torch.tensor(z, dtype=torch.float64), smoothness=6.0).item()
        assert found == pytest.approx(math.log(1 + math.exp(6 * z)) / 6, rel=1e-12)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_bad_parameters_are_named(bad):
    with pytest.raises(ValueError, match="smoothness"):
        logistic(torch.zeros(1), smoothness=bad)
    with pytest.raises(ValueError, match="lam"):
        drifted_weights(scores(), EVERY, lam=bad)
