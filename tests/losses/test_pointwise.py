import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

import oracle
from drloss import CrossEntropyLoss, FocalLoss, cross_entropy_loss, focal_loss


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


@pytest.mark.parametrize(
    ("loss", "reference"), [(cross_entropy_loss, oracle.cross_entropy), (focal_loss, oracle.focal)]
)
def test_equals_the_literal_sum(loss, reference):
    logits, labels = case()
    wanted = torch.tensor([reference(x, y) for x, y in rows(logits, labels)], dtype=torch.float64)
    torch.testing.assert_close(loss(logits, labels, normalizer="none", reduction="none"), wanted)
    torch.testing.assert_close(loss(logits, labels, reduction="none"), wanted / positives(labels))
    torch.testing.assert_close(loss(logits, labels), (wanted / positives(labels)).mean())


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


@pytest.mark.parametrize("loss", [cross_entropy_loss, focal_loss])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_are_finite_in_every_dtype(loss, dtype):
    logits, labels = case(3, scale=50)
    logits = logits.to(dtype).requires_grad_()
    value = loss(logits, labels)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [cross_entropy_loss, focal_loss])
def test_gradcheck(loss):
    logits, labels = case(4, scale=1)
    logits = logits[:, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, labels[:, :4]), logits)


@pytest.mark.parametrize("loss", [cross_entropy_loss, focal_loss])
def test_ignored_anchors_and_empty_images_contribute_nothing(loss):
    logits, labels = case(5)
    logits = logits.requires_grad_()
    loss(logits, torch.full_like(labels, -1)).backward()
    assert (logits.grad == 0).all()
    assert loss(logits[:, :0], labels[:, :0]).item() == 0
    assert loss(logits[:0], labels[:0]).item() == 0


def test_modules_are_weight_times_function():
    logits, labels = case(6)
    torch.testing.assert_close(FocalLoss(2.0, alpha=0.3)(logits, labels), 2 * focal_loss(logits, labels, alpha=0.3))
    torch.testing.assert_close(CrossEntropyLoss(3.0)(logits, labels), 3 * cross_entropy_loss(logits, labels))


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": 1.1}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"gamma": -1.0}, "gamma"),
        ({"gamma": math.inf}, "gamma"),
        ({"normalizer": "anchors"}, "normalizer"),
        ({"reduction": "average"}, "reduction"),
    ],
)
def test_bad_parameters_are_named(parameters, word):
    logits, labels = case()
    with pytest.raises(ValueError, match=word):
        focal_loss(logits, labels, **parameters)
    with pytest.raises(ValueError, match=word):
        FocalLoss(**parameters)


def test_cross_entropy_refuses_bad_parameters():
    with pytest.raises(ValueError, match="cls_weight"):
        CrossEntropyLoss(-1.0)
    with pytest.raises(ValueError, match="normalizer"):
        CrossEntropyLoss(normalizer="anchors")
