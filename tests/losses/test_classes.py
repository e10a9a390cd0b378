"""Ranking each class by itself: scopes ``per_class`` and ``pooled_per_class``."""

import pytest
import torch

from drloss import DRLoss, dr_loss, dr_statistics
from losses.cases import BACKENDS, error_of, random_case

CLASS_SCOPES = {"per_class": "per_image", "pooled_per_class": "pooled"}


@pytest.mark.parametrize("scope", CLASS_SCOPES)
@pytest.mark.parametrize("options", [{}, {"weights_grad": "dual"}, {"pairing": "all_pairs"}, {"neg_prior": 4}])
def test_with_one_class_it_is_the_paper_s_ranking(scope, options):
    logits, labels = random_case(0, k=1)
    wanted = dr_loss(logits, labels, scope=CLASS_SCOPES[scope], reduction="none", **options)
    torch.testing.assert_close(dr_loss(logits, labels, scope=scope, reduction="none", **options), wanted)


@pytest.mark.parametrize("scope", CLASS_SCOPES)
def test_without_positives_it_is_the_paper_s_ranking(scope):
    logits, labels = random_case(1, values=(-1, 0, 0, 0))
    wanted = dr_loss(logits, labels, scope=CLASS_SCOPES[scope], reduction="none")
    torch.testing.assert_close(dr_loss(logits, labels, scope=scope, reduction="none"), wanted)


def test_a_class_is_ranked_against_its_own_negatives_alone():
    logits = torch.zeros(1, 3, 3, dtype=torch.float64)
    labels = torch.tensor([[1, 2, 0]])
    logits[0, 2, 0] = 4.0  # a hard negative of class 1
    logits.requires_grad_()
    loss = dr_loss(logits, labels, scope="per_class")
    # Classes 1 and 2 have a ranking each, and class 3, which is absent, the third.
    alone = [
        dr_loss(logits[:, :, k : k + 1], labels.eq(k + 1).long() if k < 2 else torch.zeros_like(labels))
        for k in range(3)
    ]
    torch.testing.assert_close(loss, torch.stack(alone).mean())
    (slope,) = torch.autograd.grad(alone[1], logits, retain_graph=True)
    (found,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(found[0, :, 1], slope[0, :, 1] / 3)


def test_absent_classes_are_one_ranking_however_many_there_are():
    logits, labels = random_case(2, k=3, values=(0, 0, 0, 1, 2))
    more = torch.cat([logits, logits[:, :, 2:].expand(-1, -1, 40)], dim=2)  # 41 absent classes of the same scores
    wanted = dr_loss(logits, labels, scope="per_class", reduction="none")
    torch.testing.assert_close(dr_loss(more, labels, scope="per_class", reduction="none"), wanted)


def test_a_class_whose_positives_weigh_nothing_is_absent():
    logits, labels = random_case(3, k=2, values=(0, 0, 1, 2))
    wanted = dr_loss(logits, labels.where(labels != 2, -1), scope="per_class", reduction="none")
    prior = torch.tensor([1.0, 0.0])
    negatives = torch.ones_like(logits)
    negatives[labels == 2] = 0  # they are negatives of class 1 otherwise
    found = dr_loss(logits, labels, scope="per_class", pos_prior=prior, neg_prior=negatives, reduction="none")
    torch.testing.assert_close(found, wanted)


def test_pooled_images_share_their_classes():
    logits, labels = random_case(4)
    joined = dr_loss(logits.flatten(0, 1).unsqueeze(0), labels.flatten().unsqueeze(0), scope="per_class")
    torch.testing.assert_close(dr_loss(logits, labels, scope="pooled_per_class"), joined)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scope", CLASS_SCOPES)
def test_small_lambda_is_exact(backend, scope):
    # One class is easy and the others are hard: all share the shift of the exponent.
    logits, labels = random_case(5, a=50, dtype=torch.float32, backend=backend)
    logits[:, :, 0] = -logits[:, :, 0].abs() - 4
    options = {"scope": scope, "neg_lambda": 1 / 64, "reduction": "none"}
    found = dr_loss(logits, labels, backend=backend, **options)
    wanted = dr_loss(logits.double(), labels, backend="torch", **options)
    torch.testing.assert_close(found.double(), wanted, rtol=error_of(backend, 2e-6), atol=0)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"neg_prior": 3}, "hard mining in each class"), ({"neg_lambda": 0.01}, "a λ below 1/64 in each class")],
)
def test_what_the_fused_backends_lack_is_told(options, told):
    logits, labels = random_case(6, dtype=torch.float32)
    with pytest.raises(ValueError, match=told):
        dr_loss(logits, labels, scope="per_class", backend="chunked", **options)
    found = dr_loss(logits, labels, scope="per_class", **options)
    torch.testing.assert_close(found, dr_loss(logits, labels, scope="per_class", backend="torch", **options))


def test_a_backend_that_cannot_is_refused_with_the_module():
    with pytest.raises(ValueError, match="hard mining in each class"):
        DRLoss(scope="per_class", neg_prior=3, backend="chunked")


def test_weights_of_absent_classes_are_compared_with_each_other():
    logits, labels = random_case(10, k=3, values=(0, 0, 1))  # classes 2 and 3 are absent
    weights = torch.tensor([1.0, 1.0, 1e-9], dtype=torch.float64)
    found = dr_loss(logits, labels, scope="per_class", neg_prior=weights, reduction="none")
    wanted = dr_loss(logits[:, :, :2], labels, scope="per_class", reduction="none")
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_other_losses_have_no_scope_by_class():
    from drloss import focal_loss

    with pytest.raises(ValueError, match="'per_image', 'pooled', got 'per_class'"):
        focal_loss(*random_case(7), scope="per_class")


def test_statistics_are_those_of_all_classes_together():
    logits, labels = random_case(8)
    found = dr_statistics(logits, labels, scope="per_class")
    torch.testing.assert_close(found.violation, dr_statistics(logits, labels).violation)
    assert dr_statistics(logits, labels, scope="pooled_per_class").violation.shape == (1,)


def test_the_module_takes_it():
    logits, labels = random_case(9)
    loss = DRLoss(scope="pooled_per_class")
    torch.testing.assert_close(loss(logits, labels), 4 * dr_loss(logits, labels, scope="pooled_per_class"))
