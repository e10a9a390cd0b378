"""Precision at the size of an image, and the same bits on any number of threads."""

import hashlib

import pytest
import torch

from benchmarks.authors import authors_dr_loss
from drloss import (
    DRLoss,
    ap_loss,
    cross_entropy_loss,
    dr_loss,
    dr_statistics,
    focal_loss,
    ohem_loss,
    quality_focal_loss,
)
from drloss.losses.fused import cpu
from drloss.losses.summation import padded_length, spread, total
from losses.cases import gradient_of

VARIANTS = {
    "dr": {},
    "detached": {"weights_grad": "detached"},
    "dual": {"weights_grad": "dual"},
    "quadratic": {"surrogate": "quadratic"},
    "neg_only": {"pairing": "neg_only"},
    "all_pairs": {"pairing": "all_pairs"},
    "all_pairs-hinge": {"pairing": "all_pairs", "surrogate": "hinge"},
    "worst_case": {"pairing": "worst_case"},
    "chi2": {"regularizer": "chi2"},
    "cvar": {"regularizer": "cvar", "pos_alpha": 0.5, "neg_alpha": 0.01},
    "radius": {"pos_radius": 0.1, "neg_radius": 1.0},
    "mined": {"neg_prior": 500},
    "weights": {"neg_prior": torch.rand(7, generator=torch.Generator().manual_seed(0))},
    "pooled": {"scope": "pooled"},
}
FUSED = {
    f"{backend}-{name}": VARIANTS[name] | {"backend": backend}
    for backend in ("cpu", "chunked")
    for name in ("dr", "dual", "mined", "weights", "pooled")
    if backend != "cpu" or cpu.available()
}
LOSSES = [(dr_loss, o | {"backend": "torch"}) for o in VARIANTS.values()] + [(dr_loss, o) for o in FUSED.values()]
LOSSES += [(loss, {"backend": b}) for loss in (cross_entropy_loss, focal_loss) for b in ("torch", "auto", "chunked")]
LOSSES += [(loss, {}) for loss in (ohem_loss, quality_focal_loss, ap_loss)]


def image(anchors, classes, n=1, positives=40):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, anchors, classes, generator=generator) * 1.5 - 4
    labels = torch.zeros(n, anchors, dtype=torch.int64)
    labels[:, :positives] = torch.randint(1, classes + 1, (n, positives), generator=generator)
    logits[:, :positives] += 5
    labels[:, positives : 2 * positives] = -1
    return logits, labels


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("loss", "options"), LOSSES)
@pytest.mark.parametrize(("n", "anchors"), [pytest.param(1, 40_001, marks=pytest.mark.slow), (3, 12_347)])
def test_the_same_bits_on_any_number_of_threads_and_every_time(loss, options, n, anchors, threads):
    logits, labels = image(anchors, 3, n)
    options = {k: v[:3] if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    seen = set()
    for count in (1, 2, 3, 4, 4, 1):
        threads(count)
        value, gradient = loss(logits, labels, **options), gradient_of(logits, labels, loss=loss, **options)
        seen.add(hashlib.sha256(value.numpy().tobytes() + gradient.numpy().tobytes()).hexdigest())
    assert len(seen) == 1


def test_statistics_have_the_same_bits_on_any_number_of_threads(threads):
    logits, labels = image(40_001, 3)
    seen = set()
    for count in (1, 2, 3, 4):
        threads(count)
        seen.add(tuple(value.item() for value in vars(dr_statistics(logits, labels)).values()))
    assert len(seen) == 1


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 16, 64, 1000])
def test_rows_are_padded_to_whole_vectors_for_up_to_eight_threads(rows):
    for length in (1, 100, 32_768, 33_333):
        padded = padded_length(rows, length)
        assert length <= padded
        if rows * length < 32_768:
            assert padded == length
        else:
            for threads in range(1, 9):
                assert rows * padded % (threads * 32) == 0
            assert padded % 32 == 0
    assert padded_length(rows, 0) == 1


@pytest.mark.parametrize("shape", [(1, 53_760), (2, 100), (3, 26_880), (0, 5)])
def test_a_total_is_the_sum_in_float64_and_spread_its_adjoint(shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    assert total(x).dtype == torch.float64
    torch.testing.assert_close(total(x), x.double().sum(dim=1, keepdim=True), rtol=1e-7, atol=0)
    row = torch.rand(shape[0], 1, dtype=torch.float64, requires_grad=True)
    assert torch.equal(spread(row, like=x), row.float().expand(shape))
    spread(row, like=x).mul(x).sum().backward()
    torch.testing.assert_close(row.grad, x.double().sum(dim=1, keepdim=True), rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_images_of_many_candidates_in_float32(options):
    logits, labels = image(10_011, 7, n=2)
    loss, wanted = dr_loss(logits, labels, **options), dr_loss(logits.double(), labels, **options)
    gradient, exact = gradient_of(logits, labels, **options), gradient_of(logits.double(), labels, **options)
    assert abs(loss.item() - wanted.item()) <= 1e-6 * wanted.item()
    assert (gradient - exact).norm() <= 2e-6 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_half_precision_differs_by_its_rounding_alone(options, dtype):
    logits, labels = image(500, 7)
    logits = logits.to(dtype)
    found, wanted = dr_loss(logits, labels, **options), dr_loss(logits.double(), labels, **options)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dr_loss(logits, labels, **options) == found


@pytest.mark.slow
@pytest.mark.parametrize("spread_of_logits", [0.3, 1.5])
@pytest.mark.parametrize("options", [{}, {"weights_grad": "dual"}, {"pairing": "neg_only"}])
def test_sixteen_million_negatives_in_float32(options, spread_of_logits):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 201_600, 80, generator=generator) * spread_of_logits - 10 * (spread_of_logits - 0.3)
    labels = torch.zeros(1, 201_600, dtype=torch.int64)
    labels[0, :100] = torch.randint(1, 81, (100,), generator=generator)
    loss, wanted = dr_loss(logits, labels, **options), dr_loss(logits.double(), labels, **options)
    assert abs(loss.item() - wanted.item()) <= 1e-6 * wanted.item()
    gradient = gradient_of(logits, labels, **options)
    exact = gradient_of(logits.double(), labels, **options)
    assert (gradient - exact).norm() <= 2e-6 * exact.norm()


@pytest.mark.parametrize(("n", "without_positives"), [(1, False), (3, False), (2, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pooled_is_the_authors_loss(n, without_positives, dtype):
    logits, labels = image(300, 5, n)
    logits = logits.to(dtype)
    labels = labels.clamp(max=0) if without_positives else labels
    leaf = logits.clone().requires_grad_()
    wanted = authors_dr_loss(leaf, labels)
    wanted.backward()
    pooled = DRLoss(scope="pooled")
    rounding = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(pooled(logits, labels), wanted.detach(), rtol=rounding, atol=0)
    found = gradient_of(logits, labels, loss=lambda x, y, reduction: pooled(x, y))
    assert (found - leaf.grad).norm() <= rounding * leaf.grad.norm()
    joined = DRLoss()(logits.reshape(1, n * 300, 5), labels.reshape(1, n * 300))
    torch.testing.assert_close(pooled(logits, labels), joined, rtol=1e-6, atol=0)
    if n == 1:
        assert DRLoss()(logits, labels) == pooled(logits, labels)
    elif not without_positives:
        assert DRLoss()(logits, labels) != pooled(logits, labels)


@pytest.mark.parametrize("loss", [dr_loss, cross_entropy_loss, focal_loss, ohem_loss, quality_focal_loss, ap_loss])
@pytest.mark.parametrize("anchors", [5, 32_768, 60_000])
def test_no_images_of_any_size_have_the_mean_0(loss, anchors):
    logits = torch.zeros(0, anchors, 1, requires_grad=True)
    value = loss(logits, torch.zeros(0, anchors, dtype=torch.int64))
    value.backward()
    assert value == 0
    assert dr_statistics(logits.detach(), torch.zeros(0, anchors, dtype=torch.int64)).expected_pos.shape == (0,)


@pytest.mark.parametrize("lam", [1e-4, 1e-6, 1e-8, 1e-20, 1e-46])
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_small_lambda_is_the_worst_case_in_its_gradient_too(lam, backend):
    logits, labels = torch.tensor([[[0.3], [2.0], [-1.0], [0.5]]]), torch.tensor([[1, 1, 0, 0]])
    found = gradient_of(logits, labels, pos_lambda=lam, neg_lambda=lam, backend=backend)
    wanted = gradient_of(logits, labels, pairing="worst_case")
    torch.testing.assert_close(found, wanted, rtol=1e-3 if lam == 1e-4 else 1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-50, 1e-40, 1e39, 1e300])
@pytest.mark.parametrize("backend", ["torch", "chunked", "auto"])
def test_only_the_ratios_of_prior_weights_count(scale, backend):
    logits, labels = image(100, 3)
    weights = torch.rand(1, 100, generator=torch.Generator().manual_seed(1)).double() + 0.1
    options = {"backend": backend}
    found = gradient_of(logits, labels, pos_prior=weights * scale, neg_prior=weights * scale, **options)
    torch.testing.assert_close(found, gradient_of(logits, labels, pos_prior=weights, neg_prior=weights, **options))


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("backend", ["torch", "chunked", "auto"])
def test_the_focal_gradient_is_finite_for_every_exponent(gamma, backend):
    logits = torch.tensor([[[-90.0], [1.0], [float("-inf")], [90.0]]])
    labels = torch.tensor([[0, 1, 0, 1]])
    found = gradient_of(logits, labels, loss=focal_loss, gamma=gamma, backend=backend)
    wanted = gradient_of(logits.double().clamp(min=-700), labels, loss=focal_loss, gamma=gamma, backend="torch")
    assert found.isfinite().all()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-8)


def test_extreme_parameters_are_their_limits():
    logits, labels = image(100, 3)
    all_kept = ohem_loss(logits, labels, ratio=1e19)
    assert torch.equal(all_kept, ohem_loss(logits, labels, ratio=1e6))
    huge = dr_loss(logits, labels, surrogate="quadratic", rho=1e20, pairing="neg_only")
    torch.testing.assert_close(huge, torch.tensor(1e20 / 4))
    steep = dr_loss(logits, labels, smoothness=1e39, pairing="neg_only")
    torch.testing.assert_close(steep, dr_loss(logits, labels, surrogate="hinge", pairing="neg_only"))


def test_statistics_under_inference_mode():
    logits, labels = image(100, 3)
    with torch.inference_mode():
        found = dr_statistics(logits * 1, labels)
    assert found.expected_pos == dr_statistics(logits, labels).expected_pos
