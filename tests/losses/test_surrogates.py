import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracle
from drloss import dr_loss
from drloss.losses.surrogates import hinge, logistic, quadratic

GRID = torch.linspace(-2, 2, 401, dtype=torch.float64)


@given(z=st.floats(-3, 3), rho=st.floats(0.01, 2), smoothness=st.floats(0.1, 100))
def test_surrogates_are_the_papers_formulas(z, rho, smoothness):
    at = torch.tensor(z, dtype=torch.float64)
    assert hinge(at).item() == oracle.hinge(z)
    assert quadratic(at, rho=rho).item() == pytest.approx(oracle.equation_7(z, rho), rel=1e-9, abs=1e-12)
    assert logistic(at, smoothness=smoothness).item() == pytest.approx(oracle.equation_8(z, smoothness), rel=1e-9)


def test_logistic_is_equation_8_as_printed():
    for z in (-1.5, -0.5, 0.0, 0.3, 1.5):
        found = logistic(torch.tensor(z, dtype=torch.float64), smoothness=6.0).item()
        assert found == pytest.approx(math.log(1 + math.exp(6 * z)) / 6, rel=1e-12)


@pytest.mark.parametrize("smoothness", [0.5, 6.0, 100.0])
def test_logistic_lies_between_the_hinge_and_log_two_over_l_above(smoothness):
    gap = logistic(GRID, smoothness=smoothness) - hinge(GRID)
    assert (gap >= -1e-15).all()
    assert (gap <= math.log(2) / smoothness + 1e-12).all()
    assert gap.argmax() == 200


@pytest.mark.parametrize("rho", [0.2, 0.5, 1.3])
def test_quadratic_lies_between_the_hinge_and_a_quarter_rho_above(rho):
    gap = quadratic(GRID, rho=rho) - hinge(GRID)
    assert (gap >= -1e-15).all()
    assert gap.max().item() == pytest.approx(rho / 4)
    assert gap.argmax() == 200
    assert (gap[GRID.abs() >= rho] <= 1e-15).all()


@pytest.mark.parametrize("rho", [0.2, 0.5])
def test_the_slope_of_the_quadratic_is_continuous(rho):
    for kink, slope in ((-rho, 0.0), (rho, 1.0)):
        for z in (kink - 1e-9, kink, kink + 1e-9):
            leaf = torch.tensor(z, dtype=torch.float64, requires_grad=True)
            quadratic(leaf, rho=rho).backward()
            assert leaf.grad.item() == pytest.approx(slope, abs=1e-8)


def test_the_hinge_has_no_slope_at_its_kink():
    leaf = torch.zeros((), requires_grad=True)
    hinge(leaf).backward()
    assert leaf.grad == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "surrogate",
    [
        hinge,
        lambda z: quadratic(z, rho=0.5),
        lambda z: logistic(z, smoothness=6.0),
        lambda z: logistic(z, smoothness=80),
    ],
)
def test_half_precision_is_finite_and_right_to_its_rounding(surrogate, dtype):
    z = torch.linspace(-1.5, 1.5, 61).to(dtype)
    found, wanted = surrogate(z), surrogate(z.double())
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert (found.double() - wanted).abs().max() <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("pairing", ["dr", "neg_only", "all_pairs", "worst_case"])
def test_all_surrogates_meet_where_they_are_sharp(pairing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 20, 3, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, 4, (2, 20), generator=generator)
    sharp = dr_loss(logits, labels, pairing=pairing, surrogate="hinge")
    smooth = dr_loss(logits, labels, pairing=pairing, smoothness=300.0)
    bent = dr_loss(logits, labels, pairing=pairing, surrogate="quadratic", rho=1e-3)
    assert sharp - 1e-12 <= smooth <= sharp + math.log(2) / 300 + 1e-12
    assert sharp - 1e-12 <= bent <= sharp + 1e-3 / 4 + 1e-12
