"""The whole family against the oracle: value and gradient of every variant, at usual and at wide parameters."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from drloss import dr_loss
from losses.cases import (
    BACKENDS,
    CPU,
    TRITON,
    device_of,
    error_of,
    gradient_of,
    random_case,
    reference,
    with_masked_classes,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
GRADIENT_ROUNDING = {torch.float64: 0.0, torch.float32: 0.0, torch.bfloat16: 6e-3, torch.float16: 2e-3}
KINKS = {"hinge": lambda rho: [0.0], "quadratic": lambda rho: [-rho, rho], "logistic": lambda rho: []}


@st.composite
def variants(draw, *, wide, fused=False):
    """Options of ``dr_loss``, those of the fused backends if wanted, with the seed of a case to use them on."""
    lambdas = st.floats(math.log(1e-4 if wide else 0.02), math.log(10)).map(math.exp)
    smoothness = st.floats(math.log(0.1 if wide else 1), math.log(316 if wide else 30)).map(math.exp)
    options = {
        "pairing": "dr" if fused else draw(st.sampled_from(["dr", "dr", "neg_only", "all_pairs", "worst_case"])),
        "surrogate": draw(st.sampled_from(["logistic", "quadratic", "hinge"])),
        "smoothness": draw(smoothness),
        "rho": draw(st.floats(0.05, 1)),
        "margin": draw(st.sampled_from([0.5, 0.0, 0.8])),
        "regularizer": "kl" if fused else draw(st.sampled_from(["kl", "kl", "kl", "chi2", "cvar"])),
        "weights_grad": draw(st.sampled_from(["exact", "detached", "dual"])),
        "scope": draw(st.sampled_from(["per_image", "pooled", "per_class", "pooled_per_class"])),
        "pos_lambda": draw(lambdas),
        "neg_lambda": draw(lambdas),
        "backend": "auto" if fused else "torch",
    }
    by_class = options["scope"].endswith("per_class")
    if fused and by_class:
        options |= {name: max(options[name], 1 / 64) for name in ("pos_lambda", "neg_lambda")}
    if options["regularizer"] == "cvar":
        options |= {"pos_alpha": draw(st.floats(0.05, 1)), "neg_alpha": draw(st.floats(0.01, 1))}
    if not fused and options["regularizer"] == "kl" and draw(st.integers(0, 4)) == 0:
        radius = st.floats(math.log(0.01), math.log(2)).map(math.exp)
        options |= {"pos_radius": draw(radius), "neg_radius": draw(radius)}
    seed = draw(st.integers(0, 10**6))
    k = draw(st.sampled_from([1, 3, 8]))
    for name in ("pos_prior", "neg_prior"):
        kind = draw(st.sampled_from(["uniform", "uniform", "mined", "candidate", "anchor", "class"]))
        kind = "uniform" if kind == "mined" and fused and by_class else kind
        weights = torch.rand(2, 12, k, generator=torch.Generator().manual_seed(seed + 1)).double()
        weights[weights < 0.2] = 0
        options[name] = {
            "uniform": None,
            "mined": draw(st.integers(1, 12)),
            "candidate": weights,
            "anchor": weights[:, :, 0],
            "class": weights[0, 0],
        }[kind]
    return seed, k, draw(st.floats(0.1, 12)), draw(st.sampled_from(DTYPES[1:] if fused else DTYPES)), options


def expanded(prior, shape):
    """A prior of any accepted shape as weights (N, A, K)."""
    if not isinstance(prior, torch.Tensor):
        return prior
    return (prior.unsqueeze(2) if prior.ndim == 2 else prior).expand(shape)


def check(case, *, logits_scale, value_error, gradient_error):
    seed, k, scale, dtype, options = case
    logits, labels = random_case(seed, a=12, k=k, scale=logits_scale or scale, dtype=dtype)
    if logits_scale:
        logits = with_masked_classes(logits, labels)
    priors = {name: expanded(options[name], logits.shape) for name in ("pos_prior", "neg_prior")}
    told = {name: value for name, value in (options | priors).items() if name != "backend"}
    wanted, wanted_gradient, violations = reference(logits, labels, **told)
    kinks = KINKS[options["surrogate"]](options["rho"])
    assume(all(abs(z - kink) > 1e-5 for z in violations for kink in kinks))
    device = device_of(options["backend"])
    logits, labels = logits.to(device), labels.to(device)
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    losses = dr_loss(logits, labels, reduction="none", **options).cpu()
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Where a surrogate is flat or cut off, the error is one of z, in score units; 0.05 is small for a loss.
    scale_of_loss = wanted if options["surrogate"] == "logistic" else wanted.clamp(min=0.05)
    denormal = 1e-38  # where float32 has fewer digits
    assert ((losses.double() - wanted).abs() <= value_error * scale_of_loss + denormal).all(), (losses, wanted)
    gradient = gradient_of(logits, labels, **options).cpu()
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()
    # float16 has no numbers below 6e-8: what falls there is lost to the dtype, not to the loss.
    flushed = logits.numel() * 6e-8 if dtype == torch.float16 else 1e-9
    allowed = (gradient_error + GRADIENT_ROUNDING[dtype]) * wanted_gradient.norm() + flushed
    assert (gradient.double() - wanted_gradient).norm() <= allowed, (gradient, wanted_gradient)


def check_fused(case, backend, **errors):
    seed, k, scale, dtype, options = case
    assume(backend != "cpu" or dtype != torch.float16)
    for name in ("value_error", "gradient_error"):
        errors[name] = error_of(backend, errors[name])
    check((seed, k, scale, dtype, options | {"backend": backend}), **errors)


USUAL = {"logits_scale": None, "value_error": 1e-5, "gradient_error": 2e-5}
WIDE = {"logits_scale": 75.0, "value_error": 2e-5, "gradient_error": 2e-3}


@given(variants(wide=False))
@settings(max_examples=120, deadline=None, derandomize=True)
def test_value_and_gradient_equal_the_loops_of_the_paper(case):
    check(case, **USUAL)


@given(variants(wide=True))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_wide_parameters_and_masked_classes(case):
    check(case, **WIDE)


@pytest.mark.parametrize("backend", [CPU, "chunked"])
@given(variants(wide=False, fused=True))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_fused_value_and_gradient_equal_the_loops_of_the_paper(backend, case):
    check_fused(case, backend, **USUAL)


@pytest.mark.parametrize("backend", [CPU, "chunked"])
@given(variants(wide=True, fused=True))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_fused_wide_parameters_and_masked_classes(backend, case):
    check_fused(case, backend, **WIDE)


@pytest.mark.parametrize("backend", [TRITON])
@given(variants(wide=False, fused=True), variants(wide=True, fused=True))
@settings(max_examples=8, deadline=None, derandomize=True)
@pytest.mark.slow
def test_kernels_of_triton_equal_the_loops_of_the_paper(backend, usual, wide):  # its interpreter takes 0.3 s a case
    check_fused(usual, backend, **USUAL)
    check_fused(wide, backend, **WIDE)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@given(variants(wide=False, fused=True))
@settings(max_examples=10_000, deadline=None, derandomize=True)
def test_fused_value_and_gradient_equal_the_loops_of_the_paper_10_000_times(backend, case):
    check_fused(case, backend, **USUAL)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@given(variants(wide=True, fused=True))
@settings(max_examples=10_000, deadline=None, derandomize=True)
def test_fused_wide_parameters_and_masked_classes_10_000_times(backend, case):
    check_fused(case, backend, **WIDE)


@pytest.mark.slow
@given(variants(wide=False))
@settings(max_examples=10_000, deadline=None, derandomize=True)
def test_value_and_gradient_equal_the_loops_of_the_paper_10_000_times(case):
    check(case, **USUAL)


@pytest.mark.slow
@given(variants(wide=True))
@settings(max_examples=10_000, deadline=None, derandomize=True)
def test_wide_parameters_and_masked_classes_10_000_times(case):
    check(case, **WIDE)
