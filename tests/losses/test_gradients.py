"""Derivatives of every variant and mode: first order against central differences, second order where there is one."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import oracle
from drloss import ap_loss, dr_gradient, dr_loss
from losses.cases import gradient_of, random_case

MODES = ["exact", "dual"]
REGULARIZERS = {
    "kl": {},
    "chi2": {"regularizer": "chi2", "pos_lambda": 0.3, "neg_lambda": 0.1},
    "cvar": {"regularizer": "cvar", "pos_alpha": 0.6, "neg_alpha": 0.3},
    "radius": {"pos_radius": 0.1, "neg_radius": 0.3},
}
SURROGATES = ["logistic", "quadratic", "hinge"]
SETS = [(0, 1), (0, 0), (1, 2), (-1, 0, 1), (-1, -1)]


def case(values=(-1, 0, 0, 1, 2), seed=5, n=2):
    logits, labels = random_case(seed, n=n, a=4, k=2, scale=1.5, values=values)
    return logits.requires_grad_(), labels


@pytest.mark.parametrize("values", SETS)
@pytest.mark.parametrize("k", [2, 3])
def test_the_default_loss(values, k):
    logits, labels = random_case(5, n=1, a=4, k=k, scale=1.5, values=values)
    logits.requires_grad_()
    assert gradcheck(lambda x: dr_loss(x, labels), logits)
    assert gradgradcheck(lambda x: dr_loss(x, labels), logits)


@pytest.mark.parametrize(
    ("pairing", "surrogate", "regularizer", "mode", "scope"),
    [
        *itertools.product(["dr", "neg_only"], SURROGATES, REGULARIZERS, MODES, ["per_image", "pooled", "per_class"]),
        *itertools.product(["all_pairs", "worst_case"], SURROGATES, ["kl"], ["exact"], ["per_image", "pooled"]),
    ],
)
@pytest.mark.parametrize(
    "priors", [pytest.param({}, marks=pytest.mark.slow), {"pos_prior": 2, "neg_prior": torch.tensor([1.0, 0.3])}]
)
def test_every_variant(pairing, surrogate, regularizer, mode, scope, priors):
    logits, labels = case()
    options = {"pairing": pairing, "surrogate": surrogate, "weights_grad": mode, "scope": scope, **priors}

    def loss(x):
        return dr_loss(x, labels, reduction="none", **options, **REGULARIZERS[regularizer])

    if regularizer == "radius":
        # λ is searched to 1e-10, which central differences of 1e-6 see as 1e-4; the search is slow, so that the
        # derivative is taken in one direction drawn at random.
        assert gradcheck(loss, logits, eps=1e-4, atol=1e-5, rtol=1e-3, fast_mode=True)
    else:
        assert gradcheck(loss, logits, atol=1e-5, rtol=1e-3)
    if pairing == "all_pairs" or regularizer == "radius":
        with pytest.raises(RuntimeError, match="can be differentiated once, not twice") as error:
            torch.autograd.grad(loss(logits).sum(), logits, create_graph=True)[0].sum().backward()
        assert str(error.value).startswith("pairing 'all_pairs'" if pairing == "all_pairs" else "a radius")
    else:
        assert gradgradcheck(loss, logits, atol=1e-5, rtol=1e-3, fast_mode=True)


@pytest.mark.parametrize("regularizer", ["kl", "chi2"])
@pytest.mark.parametrize("pairing", ["dr", "neg_only"])
def test_detached_weights_are_constants_of_the_gradient(pairing, regularizer):
    # The gradient is that of the expectation under the weights as they are here, held fixed.
    logits, labels = case()
    options = {"pairing": pairing, **REGULARIZERS[regularizer]}
    found = gradient_of(logits, labels, weights_grad="detached", **options)
    exact = gradient_of(logits, labels, **options)
    assert not torch.allclose(found, exact)
    dual = gradient_of(logits, labels, weights_grad="dual", surrogate="hinge", margin=3.0, **options)
    # Above the hinge's kink the outer slope is 1 in both, and both have q as the inner one.
    held = gradient_of(logits, labels, weights_grad="detached", surrogate="hinge", margin=3.0, **options)
    torch.testing.assert_close(held, dual)


def test_modes_have_one_value_but_for_dual():
    logits, labels = case()
    exact, detached, dual = (
        dr_loss(logits, labels, weights_grad=m, pos_lambda=0.2) for m in ("exact", "detached", "dual")
    )
    assert exact == detached
    assert dual < exact


def test_only_the_exact_mode_pushes_easy_negatives_up():
    logits = torch.tensor([[[1.0], [-4.0], [3.0]]], dtype=torch.float64)
    labels = torch.tensor([[0, 0, 1]])
    assert gradient_of(logits, labels)[0, 1] < 0
    for mode in ("detached", "dual"):
        assert (gradient_of(logits, labels, weights_grad=mode)[0, :2] >= 0).all()


@pytest.mark.parametrize("values", SETS)
@pytest.mark.parametrize("options", [{}, {"pos_lambda": 0.1, "neg_lambda": 0.4, "smoothness": 3.0, "margin": 0.2}])
def test_appendix_a_is_autograds_gradient_and_the_loops(values, options):
    logits, labels = random_case(6, values=values)
    found = dr_gradient(logits, labels, **options)
    torch.testing.assert_close(found, gradient_of(logits, labels, **options), rtol=1e-10, atol=1e-15)
    wanted = [oracle.appendix_a(x, y, **options) for x, y in zip(logits.tolist(), labels.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-15)
    assert not found.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_appendix_a_of_other_dtypes_is_float32(dtype):
    logits, labels = random_case(7, dtype=dtype)
    found = dr_gradient(logits, labels)
    assert found.dtype == torch.float32
    wanted = dr_gradient(logits.double(), labels)
    assert (found - wanted).norm() <= 2e-6 * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (dr_loss, {}),
        (dr_loss, REGULARIZERS["radius"]),
        (dr_loss, {"pairing": "all_pairs"}),
        (dr_loss, {"pairing": "all_pairs", "surrogate": "hinge"}),
        (ap_loss, {"scope": "per_image"}),
    ],
)
def test_each_images_gradient_scales_with_what_comes_in(loss, options, dtype):
    logits, labels = random_case(8, dtype=dtype)
    leaf = logits.clone().requires_grad_()
    once = gradient_of(logits, labels, loss=loss, **options)
    factors = torch.tensor([3.0, 0.25])
    (loss(leaf, labels, reduction="none", **options) * factors).sum().backward()
    assert leaf.grad.dtype == dtype
    torch.testing.assert_close(
        leaf.grad.double(),
        once.double() * factors.view(2, 1, 1),
        rtol=1e-2 if dtype == torch.bfloat16 else 1e-5,
        atol=1e-12,
    )


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # which the compiler did before torch 2.14
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (dr_loss, {"pairing": "all_pairs"}),
        pytest.param(dr_loss, REGULARIZERS["radius"], marks=pytest.mark.slow),  # the compiler unrolls the search
        (dr_loss, {}),
        (ap_loss, {}),
    ],
)
@pytest.mark.slow
def test_functional_transforms_and_the_compiler_see_an_ordinary_function(loss, options):
    logits, labels = random_case(9, dtype=torch.float32)
    wanted = gradient_of(logits, labels, loss=loss, **options)
    found = torch.func.grad(lambda x: loss(x, labels, reduction="sum", **options))(logits)
    torch.testing.assert_close(found, wanted)
    torch.compiler.reset()
    compiled = torch.compile(lambda x, y, **o: loss(x, y, **o, **options), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradient_of(logits, labels, loss=compiled), wanted)


def test_ap_loss_says_that_it_has_no_second_derivative():
    logits, labels = case()
    with pytest.raises(RuntimeError, match="AP-loss can be differentiated once"):
        torch.autograd.grad(ap_loss(logits, labels), logits, create_graph=True)[0].sum().backward()
