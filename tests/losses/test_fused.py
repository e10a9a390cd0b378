"""The fused backends: however the logits lie, whatever surrounds the loss, they give the definition's numbers."""

import hashlib

import pytest
import torch
from torch import library, nn
from torch.utils.checkpoint import checkpoint

from drloss import DRLoss, FocalLoss, cross_entropy_loss, dr_loss, focal_loss
from losses.cases import BACKENDS, CPU, TRITON, device_of, error_of, gradient_of, random_case

ERROR = 2e-6
LOSSES = {
    "dr": (dr_loss, {}),
    "dual": (dr_loss, {"weights_grad": "dual", "neg_lambda": 0.01, "pos_lambda": 0.02}),
    "mined": (dr_loss, {"neg_prior": 7, "pos_prior": 2}),
    "weights": (dr_loss, {"neg_prior": "weights", "pos_prior": "weights"}),
    "pooled": (dr_loss, {"scope": "pooled", "neg_prior": 9}),
    "class": (dr_loss, {"scope": "per_class", "pos_prior": "weights"}),
    "pooled-class": (dr_loss, {"scope": "pooled_per_class", "weights_grad": "dual"}),
    "focal": (focal_loss, {"gamma": 1.5}),
    "focal-pooled": (focal_loss, {"scope": "pooled"}),
    "cross-entropy": (cross_entropy_loss, {"normalizer": "none"}),
}


# Triton's interpreter takes a second a case: it has the variants of its kernels that differ in more than a number,
# and all but one of them are slow.
EVERY_LOSS = [
    pytest.param(
        *backend.values,
        *loss,
        marks=[
            *backend.marks,
            *([pytest.mark.slow] if backend is TRITON and name not in ("weights", "class") else []),
        ],
        id=f"{backend.values[0]}-{name}",
    )
    for backend in (CPU, TRITON, pytest.param("chunked"))
    for name, loss in LOSSES.items()
    if backend is not TRITON or name in ("weights", "pooled", "class", "focal")
]


def close(found, wanted, error=ERROR):
    found, wanted = found.double(), wanted.double()
    assert found.isfinite().all()
    assert (found - wanted).norm() <= error * wanted.norm() + 1e-12, (found, wanted)


def compare(loss, options, logits, labels, backend, *, joined=None, **more):
    """Value and gradient of levels against the definition on float64; what the gradient is scaled by is seen, too.

    All tensors are on the backend's device.
    """
    levels = logits if isinstance(logits, list) else [logits]
    if "weights" in options.values():
        weights = torch.rand(joined.shape, generator=torch.Generator().manual_seed(1))
        options = {k: weights.clone().to(joined.device) if v == "weights" else v for k, v in options.items()}
    leaves = [x.detach().requires_grad_() for x in levels]
    before = [x.detach().clone() for x in leaves]
    given = leaves if isinstance(logits, list) else leaves[0]
    found = loss(given, labels, backend=backend, reduction="none", **options, **more)
    factors = torch.arange(
        1, len(found) + 1, device=found.device
    )  # each image has its own, and none is 1 but the first
    (found * factors).sum().backward()
    exact = joined.double().requires_grad_()
    wanted = loss(exact, labels, backend="torch", reduction="none", **options, **more)
    (wanted * factors).sum().backward()
    close(found.detach(), wanted.detach(), error_of(backend, ERROR))
    assert all(torch.equal(x, b) for x, b in zip(leaves, before, strict=True))
    return [x.grad for x in leaves], exact.grad


@pytest.mark.parametrize(("backend", "loss", "options"), EVERY_LOSS)
@pytest.mark.parametrize(
    ("memory", "k"),
    [
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("contiguous", 1), ("channels_last", 3))),
        ("contiguous", 3),
        ("mixed", 1),
        ("sliced", 3),
    ],
)
def test_maps_are_read_as_the_head_leaves_them(backend, loss, options, memory, k):
    # Five ragged levels, the last of 1 x 1; two anchors a place; an image without positives, ignored anchors.
    generator = torch.Generator().manual_seed(k)
    grids, shapes = [(5, 7), (3, 4), (2, 2), (1, 2), (1, 1)], 2
    maps = [(torch.randn(2, shapes * k, h, w, generator=generator) * 3).to(device_of(backend)) for h, w in grids]
    if memory in ("channels_last", "mixed"):
        maps = [
            x.contiguous(memory_format=torch.channels_last) if memory == "channels_last" or i % 2 else x
            for i, x in enumerate(maps)
        ]
    if memory == "sliced":
        maps = [torch.cat([x, x], dim=3)[..., : x.shape[3]] for x in maps]
        assert not maps[0].is_contiguous()
    rows = [x.permute(0, 2, 3, 1).reshape(2, -1, k) for x in maps]
    joined = torch.cat(rows, dim=1)
    labels = torch.randint(-1, k + 1, joined.shape[:2], generator=generator)
    labels[:, 10:] *= torch.rand(labels[:, 10:].shape, generator=generator) < 0.1
    labels[1] = labels[1].clamp(max=0)
    labels = labels.to(device_of(backend))
    gradients, wanted = compare(loss, options, maps, labels, backend, joined=joined)
    found = torch.cat([g.permute(0, 2, 3, 1).reshape(2, -1, k) for g in gradients], dim=1)
    close(found, wanted, error_of(backend, ERROR))
    assert all(g.stride() == x.stride() for g, x in zip(gradients, maps, strict=True) if memory != "sliced")


@pytest.mark.parametrize(("backend", "loss", "options"), EVERY_LOSS)
@pytest.mark.parametrize(
    ("n", "anchors", "k"),
    [(1, [1], 1), (2, [3, 0, 5], 2), (1, [2, 1], 1203), (3, [17, 4, 1, 1, 1, 1, 1, 1, 1, 2], 3), (2, [70], 31)],
)
def test_odd_shapes(backend, loss, options, n, anchors, k):
    sizes = {"n": n, "a": sum(anchors), "k": k}
    joined, labels = random_case(3, **sizes, dtype=torch.float32, values=(-1, 0, 0, 1, k), backend=backend)
    levels = list(joined.split(anchors, dim=1))
    gradients, wanted = compare(loss, options, levels, labels, backend, joined=joined)
    close(torch.cat(gradients, dim=1), wanted, error_of(backend, ERROR))


@pytest.mark.parametrize(("backend", "loss", "options"), EVERY_LOSS)
@pytest.mark.parametrize("values", [(0,), (1,), (-1,), (-1, 1)])
def test_empty_sets(backend, loss, options, values):
    k = 1 if values == (1,) else 2
    logits, labels = random_case(4, a=9, k=k, dtype=torch.float32, values=values, backend=backend)
    (gradient,), wanted = compare(loss, options, logits, labels, backend, joined=logits)
    close(gradient, wanted, error_of(backend, ERROR))
    if values == (-1,):
        assert gradient.count_nonzero() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_images_and_no_anchors(backend):
    for shape in [(0, 4, 2), (2, 0, 2), (0, 0, 2)]:
        device = device_of(backend)
        logits = torch.zeros(shape, device=device, requires_grad=True)
        labels = torch.zeros(shape[:2], dtype=torch.int64, device=device)
        for loss in (dr_loss, focal_loss):
            found = loss(logits, labels, backend=backend, reduction="none")
            assert torch.equal(found, loss(logits, labels, backend="torch", reduction="none"))
            loss(logits, labels, backend=backend).backward()
            assert logits.grad.shape == shape


@pytest.mark.parametrize(("backend", "loss", "options"), EVERY_LOSS)
def test_dense_targets(backend, loss, options):
    logits, _ = random_case(5, a=40, k=3, dtype=torch.float32, backend=backend)
    targets = torch.rand(logits.shape, generator=torch.Generator().manual_seed(2)).to(logits.device) < 0.1
    ignore = torch.rand(logits.shape[:2], generator=torch.Generator().manual_seed(3)).to(logits.device) < 0.2
    (gradient,), wanted = compare(loss, options, logits, targets, backend, joined=logits, ignore=ignore)
    close(gradient, wanted, error_of(backend, ERROR))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("loss", "options"), [LOSSES["dr"], LOSSES["focal"], LOSSES["mined"]])
def test_half_precision_is_no_worse_than_the_definition_in_it(backend, dtype, loss, options):
    if backend == "cpu" and dtype == torch.float16:
        pytest.skip("the compiled kernels read float32 and bfloat16")
    logits, labels = random_case(6, a=200, k=4, dtype=dtype, backend=backend)
    factors = torch.arange(1.0, 3.0, device=logits.device)

    def gradient(x, backend):
        leaf = x.clone().requires_grad_()
        (loss(leaf, labels, backend=backend, reduction="none", **options) * factors).sum().backward()
        assert leaf.grad.dtype == x.dtype
        return leaf.grad.double()

    exact = gradient(logits.double(), "torch")
    limit = (gradient(logits, "torch") - exact).norm() + 1e-6 * exact.norm()
    if backend == "triton" and not torch.cuda.is_available() and dtype == torch.bfloat16:
        limit = 2**-7 * exact.norm()  # the interpreter cuts bfloat16 off, where a device rounds
    assert (gradient(logits, backend) - exact).norm() <= limit * 1.05


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_reaches_the_loss_of_its_image_alone_and_none_from_ignored_anchors(backend):
    logits, labels = random_case(7, a=20, k=2, dtype=torch.float32, backend=backend)
    labels[:, 3], labels[:, 4] = -1, 0
    logits[0, 4, 1] = torch.nan
    logits[1, 3] = torch.nan
    for options in ({}, {"neg_lambda": 1e-3}, {"neg_prior": 4}):
        found = dr_loss(logits, labels, backend=backend, reduction="none", **options)
        assert found.isnan().tolist() == [True, False]
        assert gradient_of(logits, labels, backend=backend, **options)[1].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_reductions(backend):
    logits, labels = random_case(8, dtype=torch.float32, backend=backend)
    each = dr_loss(logits, labels, backend=backend, reduction="none")
    torch.testing.assert_close(dr_loss(logits, labels, backend=backend), each.mean())
    torch.testing.assert_close(dr_loss(logits, labels, backend=backend, reduction="sum"), each.sum())


@pytest.mark.parametrize("backend", [CPU, "chunked"])
def test_a_hundred_runs_are_equal_to_the_bit(backend):
    logits, labels = random_case(9, a=5000, k=8, dtype=torch.float32)
    seen = {
        hashlib.sha256(gradient_of(logits, labels, backend=backend).numpy().tobytes()).hexdigest() for _ in range(100)
    }
    assert len(seen) == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["rows", "maps"])
def test_in_place_the_gradient_takes_the_memory_of_the_logits(backend, kind):
    leaf, labels = random_case(10, a=24, k=3, dtype=torch.float32, backend=backend)
    leaf.requires_grad_()
    wanted = torch.autograd.grad(dr_loss(leaf, labels, backend=backend), leaf)[0]
    shape = (2, 4, 6, 3)  # 24 anchors as 4 x 6 places of one anchor

    def logits():
        return leaf * 1.0 if kind == "rows" else (leaf * 1.0).view(shape).permute(0, 3, 1, 2).contiguous()

    x = logits()
    address = x.data_ptr()
    x.register_hook(lambda g: seen.append(g.data_ptr()))
    seen = []
    loss = dr_loss(x, labels, backend=backend, inplace=True)
    loss.backward(retain_graph=True)
    assert seen == [address]
    torch.testing.assert_close(leaf.grad, wanted)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
        loss.backward()
    x = logits()
    other = nn.functional.softplus(x).sum()  # which keeps x for its own gradient
    loss = dr_loss(x, labels, backend=backend, inplace=True)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
        (loss + other).backward()


def test_in_place_is_refused_where_it_would_be_wrong():
    logits, labels = random_case(11, a=8, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"^inplace must be False for logits that are leaves"):
        dr_loss(logits.requires_grad_(), labels, inplace=True)
    x = logits * 1
    with pytest.raises(ValueError, match=r"^inplace must be False for levels that share their memory"):
        dr_loss([x, x], torch.cat([labels, labels], dim=1), inplace=True)
    with pytest.raises(ValueError, match=r"^inplace must be False with backend 'torch'"):
        dr_loss(x, labels, inplace=True, backend="torch")
    with pytest.raises(ValueError, match=r"^inplace must be True or False, got 1"):
        dr_loss(x, labels, inplace=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pairing": "all_pairs"}, "pairing 'all_pairs'"),
        ({"regularizer": "chi2"}, "regularizer 'chi2'"),
        ({"neg_radius": 0.1, "pos_radius": 0.1}, "a radius"),
    ],
)
@pytest.mark.parametrize("backend", ["cpu", "chunked", "triton"])
def test_what_is_not_fused_is_the_definition_or_an_error(options, words, backend):
    logits, labels = random_case(12, dtype=torch.float32)
    found = dr_loss(logits, labels, backend="auto", **options)
    assert torch.equal(found, dr_loss(logits, labels, backend="torch", **options))
    with pytest.raises(ValueError, match=f"^backend must be 'auto' or 'torch' for {words}, got '{backend}'"):
        dr_loss(logits, labels, backend=backend, **options)
    with pytest.raises(ValueError, match=f"^backend must be 'auto' or 'torch' for {words}"):
        DRLoss(backend=backend, **options)


def test_backends_that_do_not_exist_or_do_not_fit():
    logits, labels = random_case(13)
    assert torch.equal(dr_loss(logits, labels), dr_loss(logits, labels, backend="torch"))
    with pytest.raises(ValueError, match=r"^backend must be 'auto' or 'torch' for torch.float64 logits, got 'cpu'"):
        dr_loss(logits, labels, backend="cpu")
    with pytest.raises(ValueError, match=r"^backend must be .* for torch.float16 logits on cpu, got 'cpu'"):
        dr_loss(logits.half(), labels, backend="cpu")
    with pytest.raises(ValueError, match=r"^backend must be one of 'auto', 'torch', .*got 'cuda'"):
        focal_loss(logits, labels, backend="cuda")
    levels = [logits[:, :10].float(), logits[:, 10:].bfloat16()]
    assert torch.equal(dr_loss(levels, labels), dr_loss(levels, labels, backend="torch"))
    with pytest.raises(ValueError, match=r"levels of several dtypes or devices"):
        dr_loss(levels, labels, backend="chunked")
    for name in ("cpu", "triton", "chunked"):  # nothing is asked of the machine before there are logits
        assert DRLoss(backend=name).backend == name


def test_the_fused_losses_can_be_differentiated_once():
    logits, labels = random_case(14, dtype=torch.float32)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(dr_loss(logits, labels), logits, create_graph=True)
    with pytest.raises(RuntimeError, match=r"backend 'torch'.* can be differentiated once, not twice"):
        gradient.square().sum().backward()
    (gradient,) = torch.autograd.grad(dr_loss(logits, labels, backend="torch"), logits, create_graph=True)
    gradient.square().sum().backward()


class Head(nn.Module):
    def __init__(self, device):
        super().__init__()
        torch.manual_seed(0)
        self.tower, self.predict = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.device = device
        self.to(device)

    def forward(self, features):
        return [self.predict(self.tower(f).relu()) for f in features]


def training_step(head, wrap=lambda f: f, loss=None, **options):
    """Gradient of a head's parameters on two levels, the loss computed by ``wrap`` of it."""
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(2, 4, s, s, generator=generator).to(head.device) for s in (8, 4)]
    labels = torch.randint(-1, 4, (2, 2 * 80), generator=generator).to(head.device)
    loss = loss or (lambda maps, labels: dr_loss(maps, labels, **options))
    head.zero_grad()
    wrap(lambda: loss(head(features), labels))().backward()
    return torch.cat([p.grad.flatten() for p in head.parameters()])


@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpointing_autocast_and_in_place_in_a_head(backend):
    head = Head(device_of(backend))
    wanted = training_step(head, backend="torch")
    close(training_step(head, backend=backend), wanted, 1e-5)
    close(training_step(head, backend=backend, inplace=True), wanted, 1e-5)
    again = training_step(head, lambda f: lambda: checkpoint(f, use_reentrant=False), backend=backend)
    close(again, wanted, 1e-5)

    def autocast(f):
        def run():
            with torch.autocast(head.device, dtype=torch.bfloat16):
                return f()

        return run

    close(training_step(head, autocast, backend=backend), training_step(head, autocast, backend="torch"), 2e-2)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which the compiler looks at
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # which the compiler did before torch 2.14
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"neg_prior": 5, "neg_lambda": 0.01}, marks=pytest.mark.slow),
        pytest.param({"scope": "pooled"}, marks=pytest.mark.slow),
    ],
)
def test_the_compiler_sees_an_ordinary_operator(backend, options):
    torch._dynamo.reset()  # it gives up on a function that it has compiled for eight sets of options
    head = Head(device_of(backend))
    loss = torch.compile(lambda maps, labels: dr_loss(maps, labels, backend=backend, **options), fullgraph=True,
                         backend="aot_eager")  # fmt: skip
    close(training_step(head, loss=loss), training_step(head, backend="torch", **options), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_functional_gradients(backend):
    logits, labels = random_case(15, dtype=torch.float32, backend=backend)
    found = torch.func.grad(lambda x: dr_loss(x, labels, backend=backend, reduction="sum"))(logits)
    close(found, gradient_of(logits.double(), labels), error_of(backend, ERROR))


def test_operators_are_registered_as_torch_asks():
    logits, labels = random_case(16, dtype=torch.float32)
    for first_pass in (None, torch.tensor([0.0, 1.0, -1.0, 0.5]).repeat(2, 2, 1)):
        arguments = ([logits, logits[:, :0].contiguous()], labels, None, None, None, first_pass)
        numbers = torch.tensor([1.0, 2.0, 0.5, 6.0], dtype=torch.float64)
        rest = (numbers, 3, "dr", "chunked", "logistic", "exact", False, False)
        library.opcheck(torch.ops.drloss.losses.default, (*arguments, *rest))
        backward = (torch.ones(2), torch.ones(2, 2, 2), *arguments, *rest[:4])
        library.opcheck(torch.ops.drloss.gradients.default, backward)
        library.opcheck(torch.ops.drloss.gradients_in_place.default, backward)
        few = (*arguments[:5], 3, [2, 0], [False, True], False, "chunked")
        library.opcheck(torch.ops.drloss.first_pass.default, few)


def test_modules_take_the_backend():
    logits, labels = random_case(17, dtype=torch.float32)
    for module in (DRLoss, FocalLoss):
        close(module(backend="chunked")(logits, labels), module(backend="torch")(logits, labels))
