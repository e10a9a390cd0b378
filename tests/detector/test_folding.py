"""Frozen norms within the convolutions before them: the same outputs, gradients and names."""

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from drloss.detector import backbone
from drloss.detector.backbone import BackboneFPN
from drloss.detector.config import DetectorConfig
from drloss.detector.folding import AppliedNorm, FoldedConv2d, fold_norms
from drloss.detector.model import RetinaNet


def filled(module):
    """The module with random numbers in its buffers."""
    generator = torch.Generator().manual_seed(0)
    for buffer in module.buffers():
        buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return module.eval()


@pytest.mark.parametrize(
    "name",
    ["resnet10", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tf_efficientnet_lite0", "resnet50"))],
)
def test_outputs_and_gradients_are_those_of_the_layers_apart(name, monkeypatch):
    if not name.startswith("resnet"):
        pytest.importorskip("timm", reason="timm is not installed")
    config = DetectorConfig(backbone=name, norm="frozen", fpn_channels=16)
    folded = filled(BackboneFPN(config).double())
    monkeypatch.setattr(backbone, "fold_norms", lambda *args: None)
    apart = filled(BackboneFPN(config).double())
    assert apart.load_state_dict(folded.state_dict()).missing_keys == []
    assert sum(isinstance(m, AppliedNorm) for m in folded.modules()) > 5
    assert not any(isinstance(m, FoldedConv2d) for m in apart.modules())
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)).double()
    for a, b in zip(folded(images), apart(images), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * b.abs().max().item())
        a.square().mean().backward(retain_graph=True)
        b.square().mean().backward(retain_graph=True)
    for (key, a), (_, b) in zip(folded.named_parameters(), apart.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), key
        if a.grad is not None:
            assert (a.grad - b.grad).norm() <= 1e-8 * b.grad.norm(), key


@pytest.mark.parametrize("name", ["resnet10", "tf_efficientnet_lite0"])
def test_no_activation_is_single_precision_under_autocast(name):
    if not name.startswith("resnet"):
        pytest.importorskip("timm", reason="timm is not installed")
    model = RetinaNet(DetectorConfig(backbone=name, norm="frozen", fpn_channels=16, head_channels=16), 3, 0.5)
    assert sum(isinstance(m, FoldedConv2d) for m in model.modules()) > 5
    made = {}
    for place, module in model.named_modules():
        module.register_forward_hook(lambda _, inputs, output, place=place: made.update({place: output}))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    layers = {place: output for place, output in made.items() if isinstance(output, torch.Tensor)}
    assert len(layers) > 40
    assert {place for place, output in layers.items() if output.dtype != torch.bfloat16} == set()
    sum(m.float().sum() for m in outputs.maps + outputs.deltas).backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


def test_a_copy_is_its_own():
    body = filled(BackboneFPN(DetectorConfig(backbone="resnet10", norm="frozen", fpn_channels=16)))
    other, images = copy.deepcopy(body), torch.rand(1, 3, 64, 64)
    before = other(images)[0]
    body.body.bn1.running_var.mul_(9)
    with torch.no_grad():
        body.body.conv1.weight.zero_()
    assert torch.equal(other(images)[0], before)
    assert other.body.conv1.norm[0] is other.body.bn1


class Twice(nn.Module):
    """A convolution whose output is read by its norm and by the sum behind it."""

    def __init__(self, read_again):
        super().__init__()
        self.conv, self.norm, self.read_again = nn.Conv2d(3, 4, 3, bias=False), FrozenBatchNorm2d(4), read_again

    def forward(self, x):
        y = self.conv(x)
        return [self.norm(y) + y if self.read_again else self.norm(y)]


@pytest.mark.parametrize("read_again", [True, False])
def test_an_output_that_others_read_too_is_left_alone(read_again):
    body = Twice(read_again)
    kept = {n: t.clone() for n, t in body.state_dict().items()}
    fold_norms(body, body)
    assert isinstance(body.conv, FoldedConv2d) != read_again
    assert isinstance(body.norm, AppliedNorm) != read_again
    assert all(torch.equal(t, kept[n]) for n, t in body.state_dict().items())
