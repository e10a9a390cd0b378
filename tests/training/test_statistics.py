"""The statistics of a logged step: those of ``dr_statistics``, in the memory of one image."""

from dataclasses import fields

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from drloss import dr_statistics
from drloss.losses.diagnostics import DRExpectations, dr_expectations
from drloss.losses.inputs import maps_to_rows

OPTIONS = [
    {},
    {"neg_prior": 7},
    {"pos_prior": "object"},
    {"regularizer": "chi2"},
    {"pos_radius": 0.1, "neg_radius": 0.5},
    {"scope": "pooled"},
    {"scope": "per_class"},
    {"margin": 0.3, "pairing": "worst_case", "reduction": "sum", "backend": "chunked"},
]


def maps_and_labels(images, dtype=torch.float32):
    """Two levels of maps with 3 classes and 2 anchors at a place; one image has no positive, one is ignored."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(images, 6, side, side + 1, generator=generator).to(dtype) for side in (5, 3)]
    anchors = sum(2 * m.shape[2] * m.shape[3] for m in maps)
    labels = torch.randint(-1, 4, (images, anchors), generator=generator)
    labels[0] = labels[0].clamp(max=0)
    labels[1] = -1
    objects = torch.where(labels > 0, torch.arange(anchors) % 3, -1)
    return maps, labels, objects


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_they_are_those_of_the_definition(options, dtype):
    maps, labels, objects = maps_and_labels(4, dtype)
    given = {"objects": objects} if "pos_prior" in options else {}
    found = dr_expectations(maps, labels, **given, **options)
    wanted = dr_statistics([maps_to_rows(m, 3) for m in maps], labels, **given, **options)
    for field in fields(DRExpectations):
        a, b = getattr(found, field.name), getattr(wanted, field.name)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # of their shape and dtype, too
        assert not a.requires_grad
    torch.testing.assert_close(found.margin, wanted.margin, rtol=1e-6, atol=1e-6)


class Largest(TorchDispatchMode):
    """The largest tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


def test_their_memory_does_not_grow_with_the_batch():
    sizes = []
    for images in (2, 8):
        maps, labels, _ = maps_and_labels(images)
        with Largest() as largest:
            dr_expectations(maps, labels)
        sizes.append(largest.numbers)
    assert sizes[0] == sizes[1]


def test_an_option_that_the_loss_lacks_is_refused():
    maps, labels, _ = maps_and_labels(2)
    with pytest.raises(TypeError, match="has no option temperature"):
        dr_expectations(maps, labels, temperature=2)
