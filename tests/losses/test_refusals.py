"""Every bad parameter, label or shape is a ValueError that names the argument, the value and what is allowed."""

import math

import pytest
import torch

from drloss import DRLoss, ap_loss, dr_gradient, dr_loss, dr_statistics, focal_loss, lambda_from_log_base
from drloss.losses import LOSSES, check_first_loss, cross_entropy_loss, ohem_loss, quality_focal_loss
from drloss.losses.distribution import chi2_weights, cvar_weights, drifted_weights, find_lambda
from drloss.losses.surrogates import logistic, quadratic

X, Y = torch.zeros(2, 4, 3), torch.zeros(2, 4, dtype=torch.int64)
T = torch.zeros(2, 4, 3)
CVAR = {"regularizer": "cvar", "pos_alpha": 0.5, "neg_alpha": 0.5}
POSITIVE = ("must be positive and finite",)

# (options of dr_loss and DRLoss, the argument that is named, the value as it is shown, what is allowed)
OPTIONS = [
    *[
        ({name: value}, name, repr(value), "positive and finite")
        for name in ("pos_lambda", "neg_lambda", "pos_radius", "neg_radius", "smoothness", "rho")
        for value in (0.0, -1.0, math.nan, math.inf)
    ],
    ({"neg_lambda": "small"}, "neg_lambda", "'small'", "positive and finite"),
    ({"smoothness": True}, "smoothness", "True", "positive and finite"),
    ({"pos_lambda": None}, "pos_lambda", "None", "positive and finite"),
    ({"margin": math.nan}, "margin", "nan", "finite"),
    ({"margin": -math.inf}, "margin", "-inf", "finite"),
    ({"margin": "wide"}, "margin", "'wide'", "finite"),
    ({**CVAR, "pos_alpha": 0.0}, "pos_alpha", "0.0", r"\(0, 1\]"),
    ({**CVAR, "neg_alpha": 1.5}, "neg_alpha", "1.5", r"\(0, 1\]"),
    ({**CVAR, "neg_alpha": math.nan}, "neg_alpha", "nan", r"\(0, 1\]"),
    ({**CVAR, "neg_alpha": None}, "neg_alpha", "None", "with regularizer 'cvar'"),
    ({"pos_alpha": 0.5}, "pos_alpha", "0.5", "None with the others"),
    ({"regularizer": "chi2", "neg_radius": 0.1}, "neg_radius", "0.1", "regularizer is 'kl'"),
    ({"regularizer": "entropy"}, "regularizer", "'entropy'", "'kl', 'chi2', 'cvar'"),
    ({"pairing": "pairs"}, "pairing", "'pairs'", "'dr', 'neg_only', 'all_pairs', 'worst_case'"),
    ({"surrogate": "square"}, "surrogate", "'square'", "'logistic', 'quadratic', 'hinge'"),
    ({"surrogate": 2}, "surrogate", "2", "'logistic'"),
    ({"weights_grad": "none"}, "weights_grad", "'none'", "'exact', 'detached', 'dual'"),
    ({"scope": "batch"}, "scope", "'batch'", "'per_image', 'pooled', 'per_class', 'pooled_per_class'"),
    ({"reduction": "average"}, "reduction", "'average'", "'mean', 'sum', 'none'"),
    ({"reduction": None}, "reduction", "None", "'mean'"),
    ({"pairing": "all_pairs", "smoothness": 2000.0}, "smoothness", "2000.0", "at most 1000"),
    ({"neg_prior": 0}, "neg_prior", "0", "integer of at least 1"),
    ({"neg_prior": 2.5}, "neg_prior", "2.5", "integer of at least 1"),
    ({"pos_prior": True}, "pos_prior", "True", "integer of at least 1"),
    ({"pos_prior": "uniform"}, "pos_prior", "'uniform'", "integer of at least 1"),
]


@pytest.mark.parametrize(("options", "name", "value", "allowed"), OPTIONS)
@pytest.mark.parametrize("how", [lambda **o: dr_loss(X, Y, **o), DRLoss], ids=["function", "module"])
def test_a_bad_option_is_named_with_its_value_and_what_is_allowed(how, options, name, value, allowed):
    with pytest.raises(ValueError, match=rf"^{name}.*{allowed}") as error:
        how(**options)
    assert f"got {value}" in str(error.value)


@pytest.mark.parametrize(
    ("logits", "labels", "options", "words"),
    [
        (X, Y + 4, {}, r"^labels must be .*1\.\.3.* from 4 to 4"),
        (X, Y - 2, {}, r"^labels must be -1 .* from -2"),
        (X, Y[:1], {}, r"^labels must have shape .*\(2, 4\).* got \(1, 4\)"),
        (X, Y[0], {}, r"^labels must have shape .*got \(4,\)"),
        (X, Y.float(), {}, r"^labels .* integers, got torch.float32"),
        (X, Y.bool(), {}, r"^labels .* integers, got torch.bool"),
        (X, Y.to(torch.complex64), {}, r"^labels .* integers, got torch.complex64"),
        (X.long(), Y, {}, r"^logits must be floating point, got torch.int64"),
        (X[0], Y, {}, r"^logits must have shape \(N, A, K\).* got \(4, 3\)"),
        (X[..., :0], Y, {}, r"K >= 1, .*got \(2, 4, 0\)"),
        (X, T[:, :2], {}, r"^labels as dense targets must have the logits' shape \(2, 4, 3\), got \(2, 2, 3\)"),
        (X, T + 0.5, {}, r"^labels as dense targets must be 1 .* between 0.5 and 0.5"),
        (X, T.long(), {}, r"^labels .* as dense targets must be floating point or bool, got torch.int64"),
        (X, Y, {"ignore": Y.bool()}, "^ignore goes with dense targets"),
        (X, T, {"ignore": Y}, "^ignore must be bool, got torch.int64"),
        (X, T, {"ignore": Y[:1].bool()}, r"^ignore must have shape \(N, A\) = \(2, 4\), got \(1, 4\)"),
        ([X, X[:1]], Y, {}, r"levels of logits must agree .*\(1, 4, 3\)"),
        ([X, X[..., :2]], Y, {}, r"levels of logits must agree .*\(2, 4, 2\)"),
        (X, [Y, Y[:1]], {}, "levels of labels must agree"),
        (X, Y, {"neg_prior": torch.ones(4)}, r"^neg_prior as weights .*\(K,\) = \(3,\).*got \(4,\)"),
        (X, Y, {"pos_prior": torch.ones(2, 3)}, r"^pos_prior as weights .*\(N, A\) = \(2, 4\).*got \(2, 3\)"),
        (X, Y, {"pos_prior": torch.ones(1, 4, 3)}, r"^pos_prior as weights .*got \(1, 4, 3\)"),
        (X, Y, {"neg_prior": -torch.ones(3)}, "^neg_prior as weights must be finite and not negative.* from -1"),
        (X, Y, {"neg_prior": torch.tensor([1, math.nan, 1])}, "^neg_prior as weights must be finite"),
        (X, Y, {"neg_prior": torch.tensor([1, math.inf, 1])}, "^neg_prior as weights must be finite.* to inf"),
        (
            X,
            Y,
            {"neg_prior": torch.ones(3, dtype=torch.bool)},
            "^neg_prior as weights must be numbers, got torch.bool",
        ),
    ],
)
def test_bad_input_is_refused_in_words(logits, labels, options, words):
    with pytest.raises(ValueError, match=words):
        dr_loss(logits, labels, **options)


@pytest.mark.parametrize("loss", [dr_loss, focal_loss, cross_entropy_loss, ohem_loss, quality_focal_loss, ap_loss])
def test_every_loss_checks_its_labels_scope_and_reduction(loss):
    for labels, options, name in (
        (Y + 4, {}, "labels"),
        (Y, {"scope": "gpu"}, "scope"),
        (Y, {"reduction": 1}, "red"),
    ):
        with pytest.raises(ValueError, match=f"^{name}"):
            loss(X, labels, **options)


@pytest.mark.parametrize(
    ("loss", "options", "words"),
    [
        ("focal", {"gamma": 10**400}, "^gamma must be finite"),
        ("focal", {"alpha": -0.1}, "^alpha .*got -0.1"),
        ("focal", {"alpha": 1.1}, r"^alpha must lie in \[0, 1\], got 1.1"),
        ("focal", {"alpha": math.nan}, "^alpha .*got nan"),
        ("focal", {"gamma": -1.0}, "^gamma .*not negative, got -1.0"),
        ("focal", {"gamma": math.inf}, "^gamma must be finite .*got inf"),
        ("focal", {"normalizer": "anchors"}, "^normalizer must be one of 'positives', 'none', got 'anchors'"),
        ("ce", {"normalizer": None}, "^normalizer .*got None"),
        ("ohem", {"ratio": 0}, "^ratio must be positive .*got 0"),
        ("ohem", {"ratio": math.nan}, "^ratio .*got nan"),
        ("qfl", {"beta": -2.0}, "^beta must be .*not negative, got -2.0"),
        ("ap", {"delta": 0.0}, "^delta must be positive .*got 0.0"),
        ("ap", {"interpolate": 1}, "^interpolate must be True or False, got 1"),
        *[(name, {"cls_weight": 0.0}, "^cls_weight must be positive .*got 0.0") for name in LOSSES],
    ],
)
def test_modules_of_the_rivals_refuse_in_words(loss, options, words):
    with pytest.raises(ValueError, match=words):
        LOSSES[loss](**options)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lambda_from_log_base(1.0, scale=1.0), "^log_base must be above 1, got 1.0"),
        (lambda: lambda_from_log_base(math.nan, scale=1.0), "^log_base .*got nan"),
        (lambda: lambda_from_log_base(3.5, scale=0.0), "^scale .*got 0.0"),
        (lambda: logistic(X, smoothness=-1.0), "^smoothness .*got -1.0"),
        (lambda: quadratic(X, rho=0), "^rho .*got 0"),
        (lambda: drifted_weights(X[0], X[0] == 0, lam=0.0), "^lam .*got 0.0"),
        (lambda: chi2_weights(X[0], X[0] == 0, lam=math.inf), "^lam .*got inf"),
        (lambda: cvar_weights(X[0], X[0] == 0, alpha=2.0), "^alpha .*got 2.0"),
        (lambda: find_lambda(X[0], X[0] == 0, radius=0.0), "^radius .*got 0.0"),
        (lambda: dr_gradient(X, Y + 4), "^labels"),
        (lambda: dr_gradient(X, Y, smoothness=0.0), "^smoothness"),
        (lambda: dr_statistics(X, Y, neg_lambda=0.0), "^neg_lambda"),
        (lambda: check_first_loss(2.0, DRLoss(), Y + 4, 3), "^labels"),
        (lambda: quality_focal_loss(X, Y, quality=torch.ones(2, 3)), r"^quality .*got torch.float32 \(2, 3\)"),
        (lambda: quality_focal_loss(X, Y, quality=Y), "^quality must be floating point"),
        (lambda: quality_focal_loss(X, T, quality=torch.ones(2, 4)), r"^quality .* with labels \(2, 4, 3\)"),
    ],
)
def test_functions_refuse_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("logits", [[], "logits", None, [1.0], X.numpy()])
def test_what_is_no_tensor_is_a_type_error(logits):
    with pytest.raises(TypeError, match=r"^logits must be a tensor or a non-empty list or tuple of tensors, got"):
        dr_loss(logits, Y)


def test_an_unknown_option_is_named_with_those_there_are():
    with pytest.raises(TypeError, match=r"DRLoss has no option 'lam'; it has cls_weight, pairing"):
        DRLoss(lam=1.0)
    with pytest.raises(TypeError, match="dr_statistics has no option lam"):
        dr_statistics(X, Y, lam=1.0)


def test_the_table_is_long_enough():
    assert len(OPTIONS) >= 40


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: quality_focal_loss(X, Y, beta=0.5), "^beta must be 0 or at least 1, got 0.5"),
        (lambda: quality_focal_loss(X, Y + 1, quality=torch.full((2, 4), 2.0)), r"^quality must lie in \[0, 1\]"),
        (lambda: ap_loss(X, Y, delta=1e-16), "^delta must be at least 1e-9"),
        (lambda: dr_statistics(X, Y, reduction="most"), "^reduction must be one of"),
        (lambda: dr_loss(X, Y, neg_lambda=1e-6, backend="chunked"), "for a λ below 0.0001"),
    ],
)
def test_what_a_review_found_to_be_accepted_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_quality_counts_at_positive_anchors_alone():
    labels, x = torch.tensor([[1, 0, -1]]), torch.zeros(1, 3, 2)
    quality = torch.tensor([[0.7, math.nan, 5.0]])
    wanted = quality_focal_loss(x, labels, quality=torch.full((1, 3), 0.7))
    assert quality_focal_loss(x, labels, quality=quality) == wanted


def test_appendix_a_wants_tensors():
    with pytest.raises(TypeError, match=r"^labels must be a tensor, got list"):
        dr_gradient(X, [[1, 0]])


@pytest.mark.filterwarnings("ignore")  # of nested tensors, and of layouts that are in beta
@pytest.mark.parametrize("loss", [dr_loss, focal_loss, cross_entropy_loss, ohem_loss, quality_focal_loss, ap_loss])
def test_tensors_that_are_not_dense_are_refused_in_words(loss):
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor([X[0], X[1][:2]], layout=layout)
        with pytest.raises(TypeError, match=r"^logits must be dense \(padded anchors are labelled -1\), got a nes"):
            loss(nested, Y)
    with pytest.raises(TypeError, match=r"^logits must be dense .*, got a tensor of layout torch.sparse_coo"):
        loss(X.to_sparse(), Y)
    with pytest.raises(TypeError, match=r"^labels must be dense .*, got a tensor of layout torch.sparse_coo"):
        loss(X, Y.to_sparse())
