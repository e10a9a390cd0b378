"""How a fused loss is called: without torch's dispatcher where nothing looks at operators, and without copies."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from drloss import dr_loss, focal_loss
from drloss.losses.fused.layout import readable
from losses.cases import BACKENDS, TRITON, device_of

FUSED = [backend for backend in BACKENDS if backend != "torch"]
LOSSES = {
    "dr": (dr_loss, {}),
    "dense prior": (dr_loss, {"pos_prior": "class"}),
    "shifted": (dr_loss, {"neg_lambda": 0.05}),
    "mined": (dr_loss, {"neg_prior": 7}),
    "by class": (dr_loss, {"scope": "per_class"}),
    "focal": (focal_loss, {}),
}


class Names(TorchDispatchMode):
    """Notes the names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def case(backend, classes=5):
    generator = torch.Generator().manual_seed(3)
    wide = 3 * torch.randn(2, 70, classes + 1, generator=generator)
    labels = torch.randint(-1, classes + 1, (2, 70), generator=generator)
    labels[1, 30:] = 0
    return wide.to(device_of(backend)), labels.to(device_of(backend))


def value_and_gradient(function, x, labels, **options):
    x = x.clone().requires_grad_()
    value = function(x, labels, **options)
    value.sum().backward()
    return value.detach(), x.grad


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_operators_and_functions_give_the_same_bits(backend, reduction):
    x, labels = case(backend)
    options = {"backend": backend, "reduction": reduction}
    plain = value_and_gradient(dr_loss, x, labels, **options)
    with Names() as names:
        watched = value_and_gradient(dr_loss, x, labels, **options)
    assert any("drloss.losses" in name for name in names.seen)
    assert any("drloss.gradients" in name for name in names.seen)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize(
    "name", [k if k in ("dr", "focal") else pytest.param(k, marks=pytest.mark.slow) for k in LOSSES]
)
def test_rows_of_wider_ones_are_read_where_they_are(backend, name):
    function, options = LOSSES[name]
    wide, labels = case(backend)
    whole = wide.requires_grad_()
    part = whole[..., 1:]
    assert readable(part) is part  # no copy
    value = function(part, labels, backend=backend, **options)
    value.backward()
    copied = value_and_gradient(function, wide[..., 1:].detach().contiguous(), labels, backend=backend, **options)
    assert torch.equal(value.detach(), copied[0])
    assert torch.equal(whole.grad[..., 1:], copied[1])
    assert not whole.grad[..., 0].any()


@pytest.mark.slow  # two programs, of which one sees the background alone
@pytest.mark.parametrize("backend", [TRITON])
def test_most_of_the_background_is_read_where_it_is(backend):
    generator = torch.Generator().manual_seed(0)
    wide, labels = torch.randn(1, 2800, 8, generator=generator), torch.zeros(1, 2800, dtype=torch.int64)
    labels[0, 5] = 3
    wide, labels = wide.to(device_of(backend)), labels.to(device_of(backend))
    found = value_and_gradient(dr_loss, wide[..., 2:], labels, backend=backend)
    copied = value_and_gradient(dr_loss, wide[..., 2:].contiguous(), labels, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(found, copied, strict=True))


@pytest.mark.parametrize("backend", FUSED)
def test_in_place_the_gradient_is_not_written_into_rows_of_wider_ones(backend):
    wide, labels = case(backend)
    x = wide.clone().requires_grad_()
    part = (x * 1)[..., 1:]
    dr_loss(part, labels, backend=backend, inplace=True).backward()
    _, gradient = value_and_gradient(dr_loss, wide[..., 1:], labels, backend=backend)
    assert torch.equal(x.grad[..., 1:], gradient)


@pytest.mark.parametrize("backend", ["cpu", "chunked", "auto"])
@pytest.mark.parametrize("options", [{}, {"neg_lambda": 0.05}])
def test_the_default_device_of_torch_is_not_where_the_loss_is(backend, options):
    wide, labels = case("cpu")
    wanted = value_and_gradient(dr_loss, wide, labels, backend=backend, **options)
    with torch.device("meta"):
        found = value_and_gradient(dr_loss, wide, labels, backend=backend, **options)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
