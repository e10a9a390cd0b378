"""Transforms of torch.func, forward mode, outer factors, the compiler; labels and logits that are none."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad

from drloss import DRLoss, ap_loss, cross_entropy_loss, dr_gradient, dr_loss, focal_loss
from drloss.losses import LOSSES, ohem_loss, quality_focal_loss
from drloss.losses.fused import cpu
from losses.cases import BACKENDS, CPU, device_of, gradient_of, random_case

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute"),
]
NAN = torch.tensor(-1, dtype=torch.int32).view(torch.float32)  # with a payload
FUSED = [
    pytest.param(loss, options | {"backend": b.values[0]}, marks=b.marks)
    for b in (CPU, pytest.param("chunked"), pytest.param("torch"))
    for loss, options in (
        (dr_loss, {}),
        (dr_loss, {"scope": "pooled"}),
        (dr_loss, {"scope": "per_class"}),
        (dr_loss, {"neg_prior": 4, "neg_lambda": 0.01}),
        (focal_loss, {}),
        (cross_entropy_loss, {}),
    )
]
CASES = [
    *FUSED,
    (ohem_loss, {}),
    (quality_focal_loss, {}),
    (ap_loss, {}),
    (dr_loss, {"pairing": "all_pairs"}),
    (dr_loss, {"pairing": "all_pairs", "surrogate": "hinge"}),
    (dr_loss, {"pos_radius": 0.1, "neg_radius": 0.3}),
    (dr_loss, {"regularizer": "chi2"}),
    (dr_loss, {"pairing": "worst_case"}),
]


def near(found, wanted):
    torch.testing.assert_close(found.detach().float(), wanted.detach().float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("loss", "options"), CASES)
def test_first_derivatives_of_every_kind(loss, options):
    x, y = random_case(1, a=12, dtype=torch.float32)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))

    def of(z, labels=y):
        return loss(z, labels, **options)

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(of(leaf), leaf)
    near(torch.func.jvp(of, (x,), (v,))[1], (gradient * v).sum())
    near(torch.func.jacfwd(of)(x), gradient)
    near(torch.func.jacrev(of)(x), gradient)
    with forward_ad.dual_level():
        near(forward_ad.unpack_dual(of(forward_ad.make_dual(x, v))).tangent, (gradient * v).sum())
    factor = torch.tensor(1.5, requires_grad=True)
    (scaled,) = torch.autograd.grad(factor * of(leaf), leaf, create_graph=True)
    near(torch.autograd.grad(scaled.norm(), factor)[0], gradient.norm())
    many, labels = torch.stack([x, -x]), torch.stack([y, y.flip(1)])
    near(torch.vmap(of)(many, labels), torch.stack([of(a, b) for a, b in zip(many, labels, strict=True)]))
    each = [torch.func.grad(of)(a, b) for a, b in zip(many, labels, strict=True)]
    near(torch.vmap(torch.func.grad(of))(many, labels), torch.stack(each))


@pytest.mark.parametrize(("loss", "options"), CASES)
def test_second_derivatives_are_right_or_an_error(loss, options):
    x, y = random_case(1, n=1, a=4, dtype=torch.float32)

    def of(z):
        return loss(z, y, **options)

    wanted = None
    if options.get("backend", "torch") == "torch" and loss is not ap_loss and "all_pairs" not in options.values():
        wanted = None if "pos_radius" in options else torch.autograd.functional.hessian(of, x)
    for transform in (torch.func.hessian, lambda f: torch.func.jacfwd(torch.func.jacfwd(f))):
        if wanted is None:
            with pytest.raises(RuntimeError, match="can be differentiated once, not twice"):
                transform(of)(x)
        else:
            near(transform(of)(x), wanted)


def test_in_place_is_refused_within_a_transform():
    x, y = random_case(2, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"^inplace must be False within a transform"):
        torch.func.grad(lambda z: dr_loss(z * 1, y, inplace=True))(x)


def step(loss, x, y):
    leaf = x.clone().requires_grad_()
    value = loss(leaf, y)
    value.sum().backward()
    return value.detach(), leaf.grad


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"scope": "pooled", "reduction": "none"}, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "name", [name if name in ("dr", "focal") else pytest.param(name, marks=pytest.mark.slow) for name in LOSSES]
)
def test_the_compiler_takes_every_loss_in_any_shape(name, options):
    torch.compiler.reset()
    module = LOSSES[name](**options)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for n, a, k in ((2, 12, 3), (3, 20, 4)):
        x, y = random_case(3, n=n, a=a, k=k, dtype=torch.float32)
        for found, wanted in zip(step(compiled, x, y), step(module, x, y), strict=True):
            near(found, wanted)


@pytest.mark.parametrize("name", ["margin", "neg_lambda"])
def test_the_compiler_takes_parameters_that_change(name):
    if name == "neg_lambda" and torch.__version__.startswith("2.6."):
        pytest.skip("torch 2.6 compiles anew for each λ")
    torch.compiler.reset()
    module = DRLoss()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x, y = random_case(4, dtype=torch.float32)
    for value in torch.linspace(0.1, 0.5, 11).tolist():  # more than the compiler would compile one by one
        setattr(module, name, value)
        for found, wanted in zip(step(compiled, x, y), step(module, x, y), strict=True):
            near(found, wanted)


@pytest.mark.parametrize(
    "loss", [dr_loss, focal_loss, *(pytest.param(loss, marks=pytest.mark.slow) for loss in (ohem_loss, ap_loss))]
)
def test_a_label_that_is_no_class_counts_as_ignored_where_it_is_not_looked_at(loss):
    x, y = random_case(5, a=40, dtype=torch.float32)
    wrong = y.clone()
    wrong[:, ::3] = torch.tensor([255, 10**6, -7, 2**62, -(2**63), 4, 10**12]).repeat(2)
    ignored = torch.where((wrong < -1) | (wrong > 3), -1, wrong)
    torch.compiler.reset()
    names = ["cpu", "chunked", "torch"] if loss in (dr_loss, focal_loss) else [None]
    for name in names:
        options = {} if name is None else {"backend": name}
        compiled = torch.compile(lambda a, b, o=options: loss(a, b, **o), backend="aot_eager", fullgraph=True)
        for found, wanted in zip(
            step(compiled, x, wrong), step(lambda a, b, o=options: loss(a, b, **o), x, ignored), strict=True
        ):
            near(found, wanted)
        near(torch.vmap(lambda a, b, o=options: loss(a, b, **o))(x[None], wrong[None]), loss(x, ignored)[None])
    with pytest.raises(ValueError, match=r"^labels must be -1"):
        loss(x, wrong)


@pytest.mark.parametrize("backend", [*BACKENDS, "torch"])
@pytest.mark.parametrize("loss", [dr_loss, focal_loss])
def test_an_infinite_logit_is_seen_unless_it_is_a_masked_class(backend, loss):
    for value, anchor, k in ((torch.inf, 0, 0), (-torch.inf, 0, 0), (torch.inf, 1, 1), (NAN, 1, 1)):
        x = torch.zeros(2, 3, 2, device=device_of(backend))
        y = torch.tensor([[1, 0, -1], [1, 0, -1]], device=x.device)
        x[1, 2] = torch.inf  # ignored
        x[:, 1, 0] = -torch.inf  # masked
        x[0, anchor, k] = value
        assert loss(x, y, reduction="none", backend=backend).isfinite().tolist() == [False, True]
        gradient = gradient_of(x, y, loss=loss, backend=backend)
        assert gradient[0].isnan().any()
        assert gradient[1].isfinite().all()
        assert gradient[1, 1, 0].abs() < 1e-37


def test_appendix_a_of_a_compiled_label_stays_within_bounds():
    torch.compiler.reset()
    x, y = random_case(6, dtype=torch.float32)
    found = torch.compile(dr_gradient, backend="aot_eager")(x, torch.where(y > 1, 255, y))
    near(found, dr_gradient(x, torch.where(y > 1, -1, y)))


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("gcc") and cpu.available()), reason="there is no gcc")
def test_no_input_makes_the_c_file_leave_its_arrays(tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nexec gcc -g -fsanitize=address,undefined -fno-sanitize-recover=all "$@"\n')
    compiler.chmod(0o755)
    libraries = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = os.environ | {
        "CC": str(compiler),
        "XDG_CACHE_HOME": str(tmp_path),
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [sys.executable, "-m", "losses.fuzz_kernels", "300"]
    done = subprocess.run(command, env=environment, cwd="tests", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("done\n")
