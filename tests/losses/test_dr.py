import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import drloss
import oracle
from drloss import DRLoss, dr_loss, dr_statistics
from drloss.losses.dr import NEG_LAMBDA
from losses.cases import gradient_of, random_case, with_masked_classes

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def oracle_losses(logits, labels, **parameters):
    rows = logits.double().tolist()
    return [oracle.equation_9(x, y, **parameters) for x, y in zip(rows, labels.tolist(), strict=True)]


def oracle_gradient(logits, labels, **parameters):
    rows = logits.double().tolist()
    return torch.tensor(
        [oracle.appendix_a(x, y, **parameters) for x, y in zip(rows, labels.tolist(), strict=True)],
        dtype=torch.float64,
    )


@given(
    seed=st.integers(0, 10**6),
    k=st.sampled_from([1, 3, 20]),
    scale=st.floats(0.1, 12),
    pos_lambda=st.floats(0.02, 10),
    neg_lambda=st.floats(0.02, 10),
    smoothness=st.floats(1, 30),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_loss_and_gradient_equal_the_papers_loops(seed, k, scale, dtype, **parameters):
    logits, labels = random_case(seed, a=12, k=k, scale=scale, dtype=dtype)
    losses = dr_loss(logits, labels, reduction="none", **parameters)
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        losses.double(), torch.tensor(oracle_losses(logits, labels, **parameters)).double(), rtol=1e-5, atol=1e-9
    )
    gradient, wanted = gradient_of(logits, labels, **parameters), oracle_gradient(logits, labels, **parameters)
    assert gradient.dtype == dtype
    rounding = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 6e-3, torch.float16: 2e-3}[dtype]
    # float16 has no numbers below 6e-8: what falls there is lost to the dtype, not to the loss.
    flushed = logits.numel() * 6e-8 if dtype == torch.float16 else 0
    assert (gradient.double() - wanted).norm() <= rounding * wanted.norm() + flushed + 1e-12


@given(
    seed=st.integers(0, 10**6),
    pos_lambda=st.floats(1e-4, 10),
    neg_lambda=st.floats(1e-4, 10),
    smoothness=st.floats(0.1, 316),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_extreme_parameters_and_masked_classes_stay_finite(seed, pos_lambda, neg_lambda, smoothness, dtype):
    logits, labels = random_case(seed, a=12, scale=75, dtype=dtype)
    logits = with_masked_classes(logits, labels)
    parameters = {"pos_lambda": pos_lambda, "neg_lambda": neg_lambda, "smoothness": smoothness}
    losses = dr_loss(logits, labels, reduction="none", **parameters)
    wanted = oracle_losses(logits.double().clamp(-700, 700), labels, **parameters)
    torch.testing.assert_close(losses.double(), torch.tensor(wanted).double(), rtol=2e-5, atol=1e-7)
    assert gradient_of(logits, labels, **parameters).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("positives", "negatives", "ignored"), list(itertools.product((0, 1, 7), repeat=3)))
@pytest.mark.parametrize("k", [1, 80])
def test_every_mix_of_sets_is_finite_keeps_the_graph_and_equals_the_oracle(positives, negatives, ignored, k, dtype):
    labels = torch.tensor([[1] * positives + [0] * negatives + [-1] * ignored], dtype=torch.int64)
    logits = torch.randn(1, labels.shape[1], k, generator=torch.Generator().manual_seed(0)).to(dtype)
    leaf = logits.clone().requires_grad_()
    loss = dr_loss(leaf, labels)
    loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.shape == leaf.shape
    assert leaf.grad.isfinite().all()
    assert (leaf.grad[:, positives + negatives :] == 0).all()
    torch.testing.assert_close(loss.item(), oracle_losses(logits, labels)[0], rtol=1e-5, atol=1e-9)


def test_no_image_gives_zero_with_the_graph_alive():
    logits = torch.zeros(0, 5, 3, requires_grad=True)
    loss = dr_loss(logits, torch.zeros(0, 5, dtype=torch.int64))
    assert loss.item() == 0
    loss.backward()
    assert logits.grad.shape == (0, 5, 3)
    assert dr_loss(logits, torch.zeros(0, 5, dtype=torch.int64), reduction="none").shape == (0,)


def test_first_loss_at_prior_one_half_is_the_theorys():
    labels = torch.randint(0, 4, (2, 50), generator=torch.Generator().manual_seed(0))
    assert DRLoss()(torch.zeros(2, 50, 3), labels).item() == pytest.approx(
        4 * math.log(1 + math.exp(3)) / 6, rel=1e-6
    )
    assert DRLoss()(torch.zeros(2, 50, 3), labels).item() == pytest.approx(2.0324, abs=1e-4)


def test_range_of_the_weighted_loss():
    labels = torch.tensor([[1, 0]])
    perfect = torch.tensor([[[200.0], [-200.0]]])
    assert DRLoss()(perfect, labels).item() == pytest.approx(0.0324, abs=1e-4)
    assert DRLoss()(-perfect, labels).item() == pytest.approx(6.0001, abs=1e-4)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_batch_loss_is_the_mean_of_its_images(seed):
    logits, labels = random_case(seed, n=4, dtype=torch.float32)
    each = torch.stack([dr_loss(x[None], y[None]) for x, y in zip(logits, labels, strict=True)])
    torch.testing.assert_close(dr_loss(logits, labels), each.mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(dr_loss(logits, labels, reduction="sum"), each.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(dr_loss(logits, labels, reduction="none"), each, rtol=1e-6, atol=0)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_order_of_anchors_and_classes_does_not_matter(seed):
    logits, labels = random_case(seed)
    generator = torch.Generator().manual_seed(seed)
    anchors, classes = torch.randperm(30, generator=generator), torch.randperm(3, generator=generator)
    renamed = torch.cat([torch.tensor([-1, 0]), torch.argsort(classes) + 1])[labels + 1]
    loss = dr_loss(logits, labels)
    torch.testing.assert_close(dr_loss(logits[:, anchors], labels[:, anchors]), loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(dr_loss(logits[:, :, classes], renamed), loss, rtol=1e-12, atol=0)


def test_replicating_every_candidate_changes_nothing():
    logits, labels = random_case(0)
    twice = dr_loss(torch.cat([logits] * 2, dim=1), torch.cat([labels] * 2, dim=1))
    torch.testing.assert_close(twice, dr_loss(logits, labels), rtol=1e-12, atol=0)


def test_doubling_the_positives_does_not_halve_the_loss():
    logits, labels = torch.zeros(1, 40, 2), torch.zeros(1, 40, dtype=torch.int64)
    labels[0, 0] = 1
    one = dr_loss(logits, labels)
    labels[0, :20] = 1
    torch.testing.assert_close(dr_loss(logits, labels), one, rtol=1e-6, atol=0)


@pytest.mark.parametrize("container", [list, tuple])
def test_levels_are_one_distribution(container):
    logits, labels = random_case(1)
    wanted = dr_loss(logits, labels)
    levels = container(logits.split([20, 7, 3], dim=1))
    assert dr_loss(levels, labels) == wanted
    assert dr_loss(levels, container(labels.split([20, 7, 3], dim=1))) == wanted


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float16])
def test_dense_targets_and_labels_agree(dtype):
    logits, labels = random_case(2)
    ignore = labels < 0
    targets = torch.nn.functional.one_hot(labels.clamp(min=0), 4)[..., 1:].to(dtype)
    torch.testing.assert_close(dr_loss(logits, targets, ignore=ignore), dr_loss(logits, labels), rtol=1e-12, atol=0)


def test_dense_targets_may_have_several_classes_per_anchor():
    logits = torch.tensor([[[2.0, -1.0], [0.5, -3.0]]], dtype=torch.float64)
    targets = torch.tensor([[[True, True], [False, False]]])
    as_one_class = dr_loss(logits.reshape(1, 4, 1), torch.tensor([[1, 1, 0, 0]]))
    torch.testing.assert_close(dr_loss(logits, targets), as_one_class)


def test_an_ignored_anchor_may_hold_nan():
    logits, labels = random_case(3)
    wanted, gradient = dr_loss(logits, labels), gradient_of(logits, labels)
    logits[labels < 0] = math.nan
    assert dr_loss(logits, labels) == wanted
    torch.testing.assert_close(gradient_of(logits, labels), gradient)


def test_a_nan_shows_in_its_own_image_only():
    logits, labels = random_case(4)
    labels[1, 0] = 0
    logits[1, 0, 0] = math.nan
    losses = dr_loss(logits, labels, reduction="none")
    assert losses[0].isfinite()
    assert losses[1].isnan()


@pytest.mark.parametrize("values", [(0, 1), (0, 0), (1, 2), (-1, 0, 1), (-1, -1)])
@pytest.mark.parametrize("k", [2, 3])
def test_gradcheck_of_first_and_second_order(values, k):
    logits, labels = random_case(5, n=1, a=4, k=k, scale=1.5, values=values)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dr_loss(x, labels), logits)
    assert torch.autograd.gradgradcheck(lambda x: dr_loss(x, labels), logits)


def test_saturated_negatives_still_have_a_gradient():
    # 1 - sigmoid(20) is 2e-9 and rounds to 0 in float32 unless it is computed as sigmoid(-20).
    logits = torch.tensor([[[20.0], [20.0]]])
    labels = torch.tensor([[0, 0]])
    gradient = gradient_of(logits, labels)
    torch.testing.assert_close(gradient.double(), oracle_gradient(logits, labels), rtol=1e-4, atol=0)
    assert (gradient > 0).all()


def test_easy_negatives_are_pushed_up_as_appendix_a_says():
    # ∂ℓ/∂p has the factor 1 + (p - P̂₋)/λ₋, negative below P̂₋ - λ₋: a property of the paper's loss, not a fault.
    logits = torch.tensor([[[1.0], [-4.0], [3.0]]], dtype=torch.float64)
    labels = torch.tensor([[0, 0, 1]])
    gradient = gradient_of(logits, labels)
    assert gradient[0, 0] > 0
    assert gradient[0, 1] < 0


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
        lambda x: torch.stack([x, x], dim=-1)[..., 0],
        lambda x: x.flip(1).flip(1),
    ],
)
def test_memory_layout_does_not_matter(change):
    logits, labels = random_case(6, dtype=torch.float32)
    assert dr_loss(change(logits), labels) == dr_loss(logits, labels)


def test_expanded_logits_are_accepted():
    row, labels = torch.zeros(1, 1, 3), random_case(7)[1]
    assert dr_loss(row.expand(2, 30, 3), labels) == dr_loss(torch.zeros(2, 30, 3), labels)


def test_autocast_changes_nothing():
    logits, labels = random_case(8, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = dr_loss(logits, labels)
    assert inside == dr_loss(logits, labels)
    assert inside.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integer_labels_do(dtype):
    logits, labels = random_case(9, values=(0, 1, 2, 3))
    assert dr_loss(logits, labels.to(dtype)) == dr_loss(logits, labels)


def test_the_callers_tensors_are_not_changed():
    logits, labels = random_case(10)
    before = logits.clone(), labels.clone()
    gradient_of(logits, labels)
    assert torch.equal(logits, before[0])
    assert torch.equal(labels, before[1])


def test_module_is_weight_times_function():
    logits, labels = random_case(11)
    parameters = {"pos_lambda": 0.5, "neg_lambda": 0.2, "smoothness": 4.0, "margin": 0.4}
    module = DRLoss(2.5, reduction="none", **parameters)
    torch.testing.assert_close(module(logits, labels), 2.5 * dr_loss(logits, labels, reduction="none", **parameters))
    assert "pos_lambda=0.5" in repr(module)
    assert not list(module.parameters())


def test_small_lambda_is_the_worst_case_and_large_lambda_the_mean():
    logits, labels = random_case(12)
    positive, negative = oracle.candidates(logits[0].tolist(), labels[0].tolist())
    worst = oracle.equation_8(max(negative) - min(positive) + 0.5, 6.0)
    mean = oracle.equation_8(sum(negative) / len(negative) - sum(positive) / len(positive) + 0.5, 6.0)
    x, y = logits[:1], labels[:1]
    assert dr_loss(x, y, pos_lambda=1e-6, neg_lambda=1e-6).item() == pytest.approx(worst, rel=1e-6)
    assert dr_loss(x, y, pos_lambda=1e6, neg_lambda=1e6).item() == pytest.approx(mean, rel=1e-5)


def test_statistics_are_the_papers_expectations():
    logits, labels = random_case(13)
    found = dr_statistics(logits, labels)
    for i in range(2):
        positive, negative = oracle.candidates(logits[i].tolist(), labels[i].tolist())
        q_pos, q_neg = oracle.proposition_2(positive, 1.0), oracle.proposition_1(negative, NEG_LAMBDA)
        assert found.expected_pos[i].item() == pytest.approx(oracle.equation_6(positive, q_pos), rel=1e-12)
        assert found.expected_neg[i].item() == pytest.approx(oracle.equation_6(negative, q_neg), rel=1e-12)
        entropy = -sum(q * math.log(q) for q in q_neg)
        assert found.effective_neg[i].item() == pytest.approx(math.exp(entropy), rel=1e-9)
    torch.testing.assert_close(found.margin, found.expected_pos - found.expected_neg)


def test_effective_number_counts_equal_candidates():
    found = dr_statistics(torch.zeros(2, 5, 4), torch.tensor([[1, 1, 0, 0, -1], [0, 0, 0, 0, 0]]))
    torch.testing.assert_close(found.effective_pos, torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(found.effective_neg, torch.tensor([14.0, 20.0]))


def test_compiled_loss_is_the_same():
    logits, labels = random_case(14, dtype=torch.float32)
    compiled = torch.compile(dr_loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, labels), dr_loss(logits, labels))


def test_public_names():
    assert {"dr_loss", "DRLoss", "FocalLoss", "CrossEntropyLoss"} <= set(drloss.__all__)
