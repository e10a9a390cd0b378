"""Priors of the positives in which each object, or each class, has the same mass."""

import pytest
import torch

from drloss import DRLoss, dr_loss, dr_statistics, make_loss
from drloss.losses.inputs import MOST_OBJECTS
from losses.cases import BACKENDS, error_of, gradient_of, random_case


def case(seed=0, **kwargs):
    logits, labels = random_case(seed, **kwargs)
    objects = torch.randint(0, 4, labels.shape, generator=torch.Generator().manual_seed(seed))
    return logits, labels, objects.to(labels.device)


def masses(labels, groups):
    """1 over the number of positive anchors of the same group in the same image, by loops."""
    weights = torch.zeros(labels.shape, dtype=torch.float64)
    for n, (row, own) in enumerate(zip(labels.tolist(), groups.tolist(), strict=True)):
        for a, (y, group) in enumerate(zip(row, own, strict=True)):
            if y > 0:
                weights[n, a] = 1 / sum(1 for z, other in zip(row, own, strict=True) if z > 0 and other == group)
    return weights


@pytest.mark.parametrize("scope", ["per_image", "pooled", "per_class", "pooled_per_class"])
def test_each_object_has_the_same_mass(scope):
    logits, labels, objects = case()
    found = dr_loss(logits, labels, objects=objects, pos_prior="object", scope=scope, reduction="none")
    wanted = dr_loss(logits, labels, pos_prior=masses(labels, objects), scope=scope, reduction="none")
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=0)  # no weight is rounded to float32


def test_each_class_has_the_same_mass():
    logits, labels, _ = case(1)
    found = dr_loss(logits, labels, pos_prior="class", reduction="none")
    torch.testing.assert_close(found, dr_loss(logits, labels, pos_prior=masses(labels, labels), reduction="none"))
    joined = labels.flatten().unsqueeze(0)
    pooled = masses(joined, joined).view(labels.shape)
    found = dr_loss(logits, labels, pos_prior="class", scope="pooled")
    torch.testing.assert_close(found, dr_loss(logits, labels, pos_prior=pooled, scope="pooled"))


def test_repeating_an_object_s_anchor_changes_nothing():
    logits, labels, objects = case(2, values=(0, 0, 0, 1, 2))
    labels[:, 0], objects[:, 0] = 1, 9
    wanted = dr_loss(logits, labels, objects=objects, pos_prior="object", reduction="none")
    repeated = [torch.cat([x, x[:, :1].expand(-1, 7, *x.shape[2:])], dim=1) for x in (logits, labels, objects)]
    negatives = torch.ones_like(repeated[0])
    negatives[:, labels.shape[1] :] = 0  # the copies are negatives of the other classes, too
    more = dr_loss(*repeated[:2], objects=repeated[2], pos_prior="object", neg_prior=negatives, reduction="none")
    torch.testing.assert_close(more, wanted)
    assert (dr_loss(*repeated[:2], neg_prior=negatives, reduction="none") != wanted).all()


def test_as_lambda_grows_the_score_is_the_mean_over_objects_of_the_mean_over_anchors():
    logits = torch.tensor([[[2.0], [1.0], [-1.0], [0.0]]], dtype=torch.float64)
    labels, objects = torch.tensor([[1, 1, 1, 0]]), torch.tensor([[0, 0, 5, -1]])
    options = {"pos_lambda": 1e9, "neg_lambda": 1e9, "surrogate": "hinge", "margin": 1.0}
    p = logits.sigmoid().flatten()
    wanted = p[3] - ((p[0] + p[1]) / 2 + p[2]) / 2 + 1
    found = dr_loss(logits, labels, objects=objects, pos_prior="object", **options)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prior", ["object", "class"])
def test_fused_backends(backend, prior):
    logits, labels, objects = case(3, dtype=torch.float32, backend=backend)
    options = {"objects": objects, "pos_prior": prior}
    found = gradient_of(logits, labels, backend=backend, **options)
    wanted = gradient_of(logits.double(), labels, **options)
    assert (found - wanted).norm() <= error_of(backend, 2e-6) * wanted.norm()


def test_levels_of_objects_are_joined():
    logits, labels, objects = case(4)
    parts = [list(x.split([10, 20], dim=1)) for x in (logits, labels, objects)]
    found = dr_loss(*parts[:2], objects=parts[2], pos_prior="object")
    torch.testing.assert_close(found, dr_loss(logits, labels, objects=objects, pos_prior="object"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"objects": None}, r"objects \(N, A\) must be given"),
        ({"objects": torch.zeros(2, 30)}, "must be integers, got torch.float32"),
        ({"objects": torch.zeros(2, 29, dtype=torch.int64)}, r"shape \(N, A\) = \(2, 30\), got \(2, 29\)"),
        ({"objects": torch.full((2, 30), -1)}, "0..9999 at the positive anchors, got values from -1 to -1"),
        ({"objects": torch.full((2, 30), MOST_OBJECTS)}, "got values from 10000 to 10000"),
        ({"pos_prior": "objects"}, "weights or one of 'object', 'class', got 'objects'"),
        ({"neg_prior": "object"}, "neg_prior must be None, a count or weights, got 'object'"),
    ],
)
def test_what_does_not_fit_is_refused(change, told):
    logits, labels, objects = case(5)
    with pytest.raises(ValueError, match=told):
        dr_loss(logits, labels, **{"objects": objects, "pos_prior": "object"} | change)


def test_dense_targets_have_no_objects():
    logits, _, objects = case(6)
    with pytest.raises(ValueError, match="'class' goes with integer labels"):
        dr_loss(logits, torch.zeros_like(logits), objects=objects, pos_prior="class")


def test_objects_of_other_anchors_do_not_matter():
    logits, labels, objects = case(7)
    other = torch.where(labels > 0, objects, 10**12)
    options = {"pos_prior": "object", "reduction": "none"}
    found = dr_loss(logits, labels, objects=other, **options)
    torch.testing.assert_close(found, dr_loss(logits, labels, objects=objects, **options))


def test_modules_say_what_they_need():
    assert DRLoss().needs == DRLoss(pos_prior="class").needs == ()
    loss = make_loss("dr+")
    assert loss.needs == make_loss("dr:pos_prior=object").needs == ("objects",)
    assert repr(loss) == repr(make_loss("dr:pos_prior=object"))
    logits, labels, objects = case(8)
    wanted = 4 * dr_loss(logits, labels, objects=objects, pos_prior="object")
    torch.testing.assert_close(loss(logits, labels, objects=objects), wanted)


def test_statistics_take_objects():
    logits, labels, objects = case(9)
    found = dr_statistics(logits, labels, objects=objects, pos_prior="object")
    wanted = dr_statistics(logits, labels, pos_prior=masses(labels, objects))
    torch.testing.assert_close(found.expected_pos, wanted.expected_pos)
