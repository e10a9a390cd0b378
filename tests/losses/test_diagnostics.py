import math
import warnings

import pytest
import torch

import oracle
from drloss import DRLoss, FocalLoss, check_first_loss, dr_loss, dr_statistics
from drloss.losses import first_loss_problem
from losses.cases import gradient_of, random_case

VARIANTS = [
    {},
    {"weights_grad": "detached"},
    {"pairing": "all_pairs", "surrogate": "hinge"},
    {"neg_prior": 7},
    {"regularizer": "chi2"},
    {"pos_radius": 0.1, "neg_radius": 0.5},
    {"scope": "pooled"},
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_statistics_are_the_papers_expectations(dtype):
    logits, labels = random_case(13, dtype=dtype)
    found = dr_statistics(logits, labels, margin=0.4)
    close = {"rel": 1e-9 if dtype == torch.float64 else 1e-5}
    for i in range(2):
        positive, negative = oracle.candidates(logits[i].tolist(), labels[i].tolist())
        q_pos, q_neg = oracle.proposition_2(positive, 1.0), oracle.proposition_1(negative, oracle.NEG_LAMBDA)
        expected_pos, expected_neg = oracle.equation_6(positive, q_pos), oracle.equation_6(negative, q_neg)
        assert found.expected_pos[i].item() == pytest.approx(expected_pos, **close)
        assert found.expected_neg[i].item() == pytest.approx(expected_neg, **close)
        assert found.violation[i].item() == pytest.approx(expected_neg - expected_pos + 0.4, abs=1e-6)
        for q, effective, kl in (
            (q_pos, found.effective_pos, found.kl_pos),
            (q_neg, found.effective_neg, found.kl_neg),
        ):
            assert effective[i].item() == pytest.approx(math.exp(-sum(a * math.log(a) for a in q)), **close)
            assert kl[i].item() == pytest.approx(oracle.kl(q, [1 / len(q)] * len(q)), rel=1e-5)
    torch.testing.assert_close(found.margin, found.expected_pos - found.expected_neg)
    assert all(value.dtype == dtype and value.shape == (2,) for value in vars(found).values())
    assert not any(value.requires_grad for value in vars(found).values())


@pytest.mark.parametrize("options", VARIANTS)
def test_the_gradients_shares_are_those_of_the_loss(options):
    logits, labels = random_case(14, n=1, a=60)
    found = dr_statistics(logits, labels, **options)
    gradient = gradient_of(logits, labels, **options)
    positive = torch.nn.functional.one_hot(labels.clamp(min=0), 4)[..., 1:].bool()
    negative = ((labels >= 0).unsqueeze(2) & ~positive).flatten()
    scores, slopes = logits.flatten()[negative], gradient.flatten()[negative]
    if "neg_prior" in options:
        chosen = scores.topk(7).indices
        scores, slopes = scores[chosen], slopes[chosen]
    assert found.flipped.item() == pytest.approx((slopes < 0).double().mean().item())
    hardest = scores.topk(math.ceil(0.01 * len(scores))).indices
    share = slopes[hardest].abs().sum() / slopes.abs().sum()
    assert found.hard_mass.item() == pytest.approx(share.item())


def test_only_exact_gradients_flip():
    logits, labels = random_case(15, scale=2)
    assert (dr_statistics(logits, labels).flipped > 0.2).all()
    for mode in ("detached", "dual"):
        assert (dr_statistics(logits, labels, weights_grad=mode).flipped == 0).all()


def test_empty_sets_count_nothing():
    found = dr_statistics(
        torch.zeros(3, 5, 4), torch.tensor([[1, 1, 0, 0, -1], [0, 0, 0, 0, 0], [-1, -1, -1, -1, -1]])
    )
    torch.testing.assert_close(found.effective_pos, torch.tensor([2.0, 0.0, 0.0]))
    torch.testing.assert_close(found.effective_neg, torch.tensor([14.0, 20.0, 0.0]))
    torch.testing.assert_close(found.expected_pos, torch.tensor([0.5, 1.0, 1.0]))
    torch.testing.assert_close(found.expected_neg, torch.tensor([0.5, 0.5, 0.0]))
    assert (found.kl_pos == 0).all()
    assert found.flipped[2] == 0
    assert found.hard_mass[2] == 0


def test_statistics_of_dense_targets_leave_ignored_anchors_out():
    logits, labels = random_case(17)
    targets = torch.nn.functional.one_hot(labels.clamp(min=0), 4)[..., 1:].bool()
    found, wanted = dr_statistics(logits, targets, ignore=labels < 0), dr_statistics(logits, labels)
    for a, b in zip(vars(found).values(), vars(wanted).values(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_flipped_share_of_one_negative():
    logits = torch.tensor([[[1.0, -6.0], [2.0, 0.0]]])
    found = dr_statistics(logits, torch.tensor([[0, 1]]), neg_prior=torch.tensor([1.0, 0.0]))
    assert found.flipped == 0
    assert found.hard_mass == 1


def test_statistics_work_without_gradients_and_for_levels():
    logits, labels = random_case(16)
    with torch.no_grad():
        inside = dr_statistics(list(logits.split([20, 10], dim=1)), labels)
    for a, b in zip(vars(inside).values(), vars(dr_statistics(logits, labels)).values(), strict=True):
        torch.testing.assert_close(a, b)


# ---------------------------------------------------------------------------- the first loss

LABELS = torch.randint(0, 4, (2, 50), generator=torch.Generator().manual_seed(0))


def test_first_loss_at_prior_one_half_is_the_theorys():
    value = DRLoss()(torch.zeros(2, 50, 3), LABELS).item()
    assert value == pytest.approx(4 * math.log(1 + math.exp(3)) / 6, rel=1e-6)
    assert value == pytest.approx(2.0324, abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"pairing": "all_pairs"}, {"smoothness": 4.0}, {"surrogate": "hinge"}])
def test_a_right_first_loss_passes_in_silence(options):
    loss = DRLoss(**options)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = loss(torch.randn(2, 50, 3) * 0.2, LABELS).item()
        assert check_first_loss(value, loss, LABELS, 3)


@pytest.mark.parametrize(("factor", "right"), [(0.5, True), (0.499, False), (2.0, True), (2.001, False), (1.0, True)])
def test_a_factor_of_two_is_allowed(factor, right):
    expected = DRLoss()(torch.zeros(2, 50, 3), LABELS).item()
    assert (first_loss_problem(factor * expected, DRLoss(), LABELS, 3) is None) is right


def test_the_words_for_one_image():
    labels = torch.tensor([[1, 1, 2, 0, 0]])
    assert first_loss_problem(0.5, DRLoss(), labels, 2) == (
        "the first classification loss is 0.5, where scores of 0.5 give 2.032; it is 4.06 times too small, and the "
        "batch has 3 positives, 3 an image: the DR loss must not be divided by their number"
    )
    assert first_loss_problem(9.0, DRLoss(), labels, 2) == (
        "the first classification loss is 9, where scores of 0.5 give 2.032; is it a mean over images, and does the "
        "classifier start from scores of 0.5 (bias 0)?"
    )


def test_labels_by_level_and_dense_targets_are_read_as_the_loss_reads_them():
    dense = torch.nn.functional.one_hot(LABELS.clamp(min=0), 4)[..., 1:].float()
    for labels in (list(LABELS.split([30, 20], dim=1)), dense, list(dense.split([30, 20], dim=1))):
        assert first_loss_problem(2.03, DRLoss(), labels, 3) is None
        assert "too small, and the batch has" in first_loss_problem(0.2, DRLoss(), labels, 3)
    with pytest.raises(TypeError, match="loss must be a DRLoss, whose first value the theory knows, got FocalLoss"):
        first_loss_problem(2.03, FocalLoss(), LABELS, 3)


def test_the_warning_points_at_the_caller():
    with pytest.warns(UserWarning, match="times too small") as caught:
        check_first_loss(0.01, DRLoss(), LABELS, 3)
    assert caught[0].filename == __file__


def test_images_without_objects_lower_the_theorys_first_loss():
    labels = torch.stack([LABELS[0], torch.zeros(50, dtype=torch.int64)])
    value = DRLoss()(torch.zeros(2, 50, 3), labels).item()
    assert value == pytest.approx((2.0324 + 4 * math.log(2) / 6) / 2, abs=1e-3)
    assert check_first_loss(value, DRLoss(), labels, 3)


def test_a_loss_divided_by_its_positives_is_warned_of():
    n = (LABELS > 0).sum().item()
    words = rf"0\.0\d+, where scores of 0.5 give 2.032; it is {n} times too small, and the batch has {n} positives"
    with pytest.warns(UserWarning, match=words):
        assert not check_first_loss(2.0324 / n, DRLoss(), LABELS, 3)


@pytest.mark.parametrize("value", [8.0, 0.0, -1.0, math.nan, math.inf])
def test_any_other_first_loss_is_warned_of(value):
    words = "a mean over images, and does the classifier start from scores of 0.5"
    words = words if math.isfinite(value) else "are the logits finite?"
    with pytest.warns(UserWarning, match=words):
        assert not check_first_loss(value, DRLoss(), LABELS, 3)


def test_per_image_losses_are_checked_by_their_mean():
    loss = DRLoss(reduction="none")
    assert check_first_loss(2.03, loss, LABELS, 3)
    assert dr_loss(torch.zeros(2, 50, 3), LABELS).item() * 4 == pytest.approx(2.0324, abs=1e-4)
