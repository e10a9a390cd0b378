"""Triton's quick path: programs that see the background alone give what the others would."""

import pytest
import torch

from drloss import cross_entropy_loss, dr_loss, focal_loss
from losses.cases import TRITON, device_of, error_of

LOSSES = {
    "dr": (dr_loss, {}),
    "class prior": (dr_loss, {"pos_prior": "class"}),
    "dual": (dr_loss, {"weights_grad": "dual", "pos_lambda": 0.5}),
    "focal": (focal_loss, {}),
    "cross-entropy": (cross_entropy_loss, {"normalizer": "none"}),
}
QUICK = ("dr", "focal")
"""Those that are tried with every run of the tests: the interpreter takes a second a case."""
ERROR = error_of("triton", 2e-6)


def mostly_background(classes, planes, dtype=torch.float32):
    """Maps of two levels, their rows in float64, and labels: a few anchors of the first image have objects."""
    generator = torch.Generator().manual_seed(classes)
    maps = [3 * torch.randn(2, 2 * classes, side, side + 2, generator=generator) for side in (13, 6)]
    maps = [x.to(device_of("triton"), dtype) for x in maps]
    if planes is False:
        maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    anchors = sum(x.shape[2] * x.shape[3] * 2 for x in maps)
    labels = torch.zeros(2, anchors, dtype=torch.int64, device=maps[0].device)
    labels[0, 3:7], labels[0, 200:204], labels[0, 300] = 1, classes, -1
    return maps, labels


def rows(maps, classes):
    return torch.cat([x.permute(0, 2, 3, 1).reshape(2, -1, classes) for x in maps], dim=1)


@pytest.mark.parametrize("backend", [TRITON])
@pytest.mark.parametrize("loss", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in LOSSES])
@pytest.mark.parametrize("planes", [True, False], ids=["planes", "rows"])
@pytest.mark.parametrize("classes", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_most_programs_see_the_background_alone(backend, loss, planes, classes):
    function, options = LOSSES[loss]
    maps, labels = mostly_background(classes, planes)
    leaves = [x.clone().requires_grad_() for x in maps]
    values = function(leaves, labels, reduction="none", backend=backend, **options)
    values.sum().backward()
    exact = rows(maps, classes).double().requires_grad_()
    wanted = function(exact, labels, reduction="none", backend="torch", **options)
    wanted.sum().backward()
    torch.testing.assert_close(values.detach().double(), wanted.detach(), rtol=ERROR, atol=1e-7)
    found = rows([x.grad for x in leaves], classes).double()
    torch.testing.assert_close(found, exact.grad, rtol=1e-4, atol=float(exact.grad.abs().max()) * ERROR)


@pytest.mark.parametrize("backend", [TRITON])
@pytest.mark.parametrize("loss", ["dr", "focal"])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_an_infinite_logit_of_the_background_makes_the_loss_of_its_image_nan(backend, loss, value):
    function, options = LOSSES[loss]
    maps, labels = mostly_background(5, planes=False)
    maps[0][1, 2, 6, 6] = value
    found = function(rows(maps, 5), labels, reduction="none", backend=backend, **options)
    assert found.isnan().tolist() == [False, True]


@pytest.mark.parametrize("backend", [TRITON])
@pytest.mark.parametrize("loss", QUICK)
def test_a_masked_class_of_the_background_changes_nothing_else(backend, loss):
    function, options = LOSSES[loss]
    maps, labels = mostly_background(5, planes=False)
    x = rows(maps, 5)
    x[:, :, 2] = -torch.inf
    leaf = x.clone().requires_grad_()
    values = function(leaf, labels, reduction="none", backend=backend, **options)
    values.sum().backward()
    wanted = function(x.double(), labels, reduction="none", backend="torch", **options)
    torch.testing.assert_close(values.detach().double(), wanted, rtol=ERROR, atol=1e-7)
    assert (leaf.grad[:, :, 2] == 0).all()
    assert leaf.grad.isfinite().all()
