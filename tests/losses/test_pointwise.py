"""The rivals: cross-entropy, focal loss, hard-example mining, quality focal loss and AP-loss."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import sigmoid_focal_loss

import oracle
from drloss import (
    LOSSES,
    APLoss,
    CrossEntropyLoss,
    FocalLoss,
    ap_loss,
    cross_entropy_loss,
    focal_loss,
    ohem_loss,
    quality_focal_loss,
)
from losses.cases import gradient_of

POINTWISE = [cross_entropy_loss, focal_loss, ohem_loss, quality_focal_loss]
REFERENCES = {
    cross_entropy_loss: oracle.cross_entropy,
    focal_loss: oracle.focal,
    ohem_loss: oracle.ohem,
    quality_focal_loss: oracle.quality_focal,
}
RIVALS = [*POINTWISE, ap_loss]


def case(seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 20, 4, generator=generator, dtype=torch.float64) * scale
    labels = torch.randint(-1, 5, (3, 20), generator=generator)
    labels[2] = labels[2].clamp(max=0)  # an image without positives
    return logits, labels


def rows(logits, labels):
    return zip(logits.tolist(), labels.tolist(), strict=True)


def positives(labels):
    return (labels > 0).sum(dim=1).clamp(min=1)


@pytest.mark.parametrize("loss", POINTWISE)
@pytest.mark.parametrize("scale", [0.5, 3.0, 60.0])
def test_equals_the_literal_sum(loss, scale):
    logits, labels = case(scale=scale)
    wanted = torch.tensor([REFERENCES[loss](x, y) for x, y in rows(logits, labels)], dtype=torch.float64)
    torch.testing.assert_close(loss(logits, labels, normalizer="none", reduction="none"), wanted)
    torch.testing.assert_close(loss(logits, labels, reduction="none"), wanted / positives(labels))
    torch.testing.assert_close(loss(logits, labels), (wanted / positives(labels)).mean())
    pooled = wanted.sum() / (labels > 0).sum()
    if loss is not ohem_loss:  # mining over the pool picks others
        torch.testing.assert_close(loss(logits, labels, scope="pooled", reduction="none"), pooled.view(1))


@pytest.mark.parametrize("loss", [focal_loss, cross_entropy_loss])
def test_parameters_reach_the_sum(loss):
    logits, labels = case(7)
    if loss is focal_loss:
        wanted = [oracle.focal(x, y, alpha=0.6, gamma=0.7) for x, y in rows(logits, labels)]
        found = focal_loss(logits, labels, alpha=0.6, gamma=0.7, normalizer="none", reduction="sum")
    else:
        wanted = [oracle.quality_focal(x, y, beta=1.3) for x, y in rows(logits, labels)]
        found = quality_focal_loss(logits, labels, beta=1.3, normalizer="none", reduction="sum")
    assert found.item() == pytest.approx(sum(wanted))


def test_focal_equals_torchvisions():
    logits, labels = case(1)
    targets = torch.nn.functional.one_hot(labels.clamp(min=0), 5)[..., 1:].double()
    each = sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0)
    wanted = (each * (labels >= 0).unsqueeze(2)).sum(dim=(1, 2))
    torch.testing.assert_close(focal_loss(logits, labels, normalizer="none", reduction="none"), wanted)


def test_focal_with_gamma_zero_is_half_of_cross_entropy():
    logits, labels = case(2)
    torch.testing.assert_close(
        focal_loss(logits, labels, alpha=0.5, gamma=0.0), cross_entropy_loss(logits, labels) / 2
    )


@pytest.mark.parametrize("loss", RIVALS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_are_finite_in_every_dtype(loss, dtype):
    logits, labels = case(3, scale=50)
    logits = logits.to(dtype).requires_grad_()
    value = loss(logits, labels)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", POINTWISE)
def test_gradcheck_of_first_and_second_order(loss):
    logits, labels = case(4, scale=1)
    logits = logits[:, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, labels[:, :4]), logits)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, labels[:, :4]), logits)


@pytest.mark.parametrize("loss", RIVALS)
def test_ignored_anchors_and_empty_images_contribute_nothing(loss):
    logits, labels = case(5)
    logits = logits.requires_grad_()
    loss(logits, torch.full_like(labels, -1)).backward()
    assert (logits.grad == 0).all()
    assert loss(logits[:, :0], labels[:, :0]).item() == 0
    assert loss(logits[:0], labels[:0]).item() == 0
    assert loss(logits[:0], labels[:0], scope="per_image", reduction="none").shape == (0,)


@pytest.mark.parametrize("loss", RIVALS)
def test_an_ignored_anchor_may_hold_nan_and_dense_targets_agree(loss):
    logits, labels = case(8)
    wanted = loss(logits, labels)
    targets = torch.nn.functional.one_hot(labels.clamp(min=0), 5)[..., 1:].bool()
    torch.testing.assert_close(loss(logits, targets, ignore=labels < 0), wanted)
    logits[labels < 0] = math.nan
    assert loss(logits, labels) == wanted
    assert loss(list(logits.split([12, 8], dim=1)), labels) == wanted


# ---------------------------------------------------------------------------- online hard-example mining


def test_mining_keeps_three_negatives_to_a_positive():
    logits, labels = torch.zeros(1, 40, 1, dtype=torch.float64), torch.zeros(1, 40, dtype=torch.int64)
    labels[0, :2] = 1
    logits[0, 2:] = torch.linspace(-4, 3, 38).double()[:, None]
    gradient = gradient_of(logits, labels, loss=ohem_loss).flatten()
    assert (gradient[-6:] > 0).all()
    assert (gradient[2:-6] == 0).all()
    assert (gradient[:2] < 0).all()


def test_mining_rounds_down_and_stops_at_the_negatives_there_are():
    logits, labels = case(6)
    found = ohem_loss(logits, labels, ratio=0.3, normalizer="none", reduction="none")
    wanted = [oracle.ohem(x, y, ratio=0.3) for x, y in rows(logits, labels)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))
    everything = ohem_loss(logits[:2], labels[:2], ratio=1e6)
    torch.testing.assert_close(everything, cross_entropy_loss(logits[:2], labels[:2]))


def test_an_image_without_positives_has_no_loss_under_mining():
    logits, labels = case(6)
    assert ohem_loss(logits, labels, reduction="none")[2] == 0
    assert (gradient_of(logits, labels, loss=ohem_loss)[2] == 0).all()


# ---------------------------------------------------------------------------- quality focal loss


def test_quality_is_the_target_of_the_positives():
    logits, labels = case(9)
    quality = torch.rand(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = [oracle.quality_focal(x, y, q) for (x, y), q in zip(rows(logits, labels), quality.tolist(), strict=True)]
    found = quality_focal_loss(logits, labels, quality=quality, normalizer="none", reduction="none")
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))
    levels = quality_focal_loss(
        logits, list(labels.split([12, 8], dim=1)), quality=list(quality.split([12, 8], dim=1)), normalizer="none"
    )
    assert levels.item() == pytest.approx(sum(wanted) / 3)
    pooled = quality_focal_loss(logits, labels, quality=quality, normalizer="none", scope="pooled")
    assert pooled.item() == pytest.approx(sum(wanted))


def test_quality_of_many_anchors_is_padded_without_a_trace():
    logits, labels = torch.zeros(1, 40_000, 1), torch.zeros(1, 40_000, dtype=torch.int64)
    labels[0, :7] = 1
    found = quality_focal_loss(logits, labels, quality=torch.full((1, 40_000), 0.5), normalizer="none")
    assert found.item() == pytest.approx(39_993 * 0.25 * math.log(2), rel=1e-6)  # |0.5 - 0.5| = 0 at the positives


def test_a_positive_is_pulled_to_its_quality():
    logits = torch.tensor([[[0.0]]], requires_grad=True)
    for quality, sign in ((0.9, -1), (0.5, 0), (0.1, 1)):
        (gradient,) = torch.autograd.grad(
            quality_focal_loss(logits, torch.tensor([[1]]), quality=torch.tensor([[quality]])), logits
        )
        assert gradient.sign().item() == sign


# ---------------------------------------------------------------------------- AP-loss


@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.3, 3.0, 20.0]),
    delta=st.sampled_from([0.1, 1.0, 4.0]),
    interpolate=st.booleans(),
    scope=st.sampled_from(["per_image", "pooled"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_ap_loss_is_the_loop_over_positives(seed, scale, delta, interpolate, scope, dtype):
    logits, labels = case(seed, scale)
    logits = logits.to(dtype)
    images, rows = logits.double().tolist(), labels.tolist()
    options = {"delta": delta, "interpolate": interpolate}
    groups = [(images, rows)] if scope == "pooled" else [([x], [y]) for x, y in zip(images, rows, strict=True)]
    found = [oracle.average_precision(*group, **options) for group in groups]
    value = ap_loss(logits, labels, scope=scope, reduction="none", **options)
    assert value.tolist() == pytest.approx([loss for loss, _ in found], rel=1e-6, abs=1e-6)
    update = gradient_of(logits, labels, loss=ap_loss, scope=scope, **options)
    wanted = torch.tensor([image for _, u in found for image in u], dtype=torch.float64)
    rounding = 6e-3 if dtype == torch.bfloat16 else 1e-6
    assert (update.double() - wanted).norm() <= rounding * wanted.norm() + 1e-9


def test_ap_loss_is_one_minus_average_precision_where_scores_are_apart():
    # Ranked + - + - -: precisions 1 and 2/3.
    logits = torch.tensor([[[9.0], [6.0], [3.0], [0.0], [-3.0]]])
    labels = torch.tensor([[1, 0, 1, 0, 0]])
    assert ap_loss(logits, labels).item() == pytest.approx(1 - (1 + 2 / 3) / 2)
    gradient = gradient_of(logits, labels, loss=ap_loss).flatten()
    torch.testing.assert_close(gradient, torch.tensor([0.0, 1 / 6, -1 / 6, 0.0, 0.0]))


def test_the_update_of_ap_loss_sums_to_zero():
    logits, labels = case(10)
    for interpolate in (True, False):
        gradient = gradient_of(logits, labels, loss=ap_loss, interpolate=interpolate)
        assert gradient.sum().item() == pytest.approx(0, abs=1e-12)


def test_ap_loss_ranks_the_whole_batch_by_default():
    logits, labels = case(11)
    assert ap_loss(logits, labels) == ap_loss(logits.reshape(1, 60, 4), labels.reshape(1, 60))
    assert ap_loss(logits, labels) != ap_loss(logits, labels, scope="per_image")


def test_masked_classes_and_huge_logits_are_ranked_too():
    logits = torch.tensor([[[1e38], [-100.0], [0.0], [-math.inf]]], requires_grad=True)
    loss = ap_loss(logits, torch.tensor([[0, 1, 0, 0]]))
    loss.backward()
    assert loss.item() == pytest.approx(2 / 3)
    assert logits.grad.isfinite().all()


# ---------------------------------------------------------------------------- modules


@pytest.mark.parametrize("name", LOSSES)
def test_modules_are_weight_times_function(name):
    logits, labels = case(6)
    module = LOSSES[name](2.5, reduction="sum")
    torch.testing.assert_close(module(logits, labels), 2.5 * module.function(logits, labels, reduction="sum"))
    assert 0 < module.prior_probability < 1
    assert "cls_weight=2.5" in repr(module)
    assert "reduction='sum'" in repr(module)
    assert not list(module.parameters())
    assert not module.state_dict()


def test_modules_take_options_and_what_comes_with_a_batch():
    logits, labels = case(6)
    torch.testing.assert_close(FocalLoss(2.0, alpha=0.3)(logits, labels), 2 * focal_loss(logits, labels, alpha=0.3))
    torch.testing.assert_close(APLoss(delta=0.5)(logits, labels), ap_loss(logits, labels, delta=0.5))
    quality = torch.full((3, 20), 0.7, dtype=torch.float64)
    torch.testing.assert_close(
        LOSSES["qfl"]()(logits, labels, quality=quality), quality_focal_loss(logits, labels, quality=quality)
    )
    targets = torch.nn.functional.one_hot(labels.clamp(min=0), 5)[..., 1:].bool()
    torch.testing.assert_close(
        CrossEntropyLoss()(logits, targets, ignore=labels < 0), cross_entropy_loss(logits, labels)
    )
    assert CrossEntropyLoss().cls_weight == 1
    assert "alpha=0.3" in repr(FocalLoss(alpha=0.3))
