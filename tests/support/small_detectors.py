"""Small detectors of torchvision, and images for them."""

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD

CLASSES = 4
"""The background included, as torchvision counts."""
OWN = {"min_size": 64, "max_size": 64}


class Backbone(nn.Sequential):
    """Stride 8, 32 channels."""

    out_channels = 32

    def __init__(self):
        layers = []
        for first, second in ((3, 8), (8, 16), (16, 32)):
            layers += [nn.Conv2d(first, second, 3, stride=2, padding=1), nn.ReLU()]
        super().__init__(*layers)


def retinanet():
    anchors = AnchorGenerator(sizes=((16, 24),), aspect_ratios=((0.5, 1.0, 2.0),))
    return RetinaNet(Backbone(), CLASSES, anchor_generator=anchors, **OWN)


def fcos():
    return FCOS(Backbone(), CLASSES, anchor_generator=AnchorGenerator(((8,),), ((1.0,),)), **OWN)


def ssd():
    backbone = Backbone()
    backbone.out_channels = [32]
    return SSD(backbone, DefaultBoxGenerator([[2]], scales=[0.25, 0.4]), (64, 64), CLASSES)


MODELS = {"retinanet": retinanet, "fcos": fcos, "ssd": ssd}


def make(name, seed=0):
    """A detector with random weights, in training mode."""
    torch.manual_seed(seed)
    return MODELS[name]().train()


def batch(count=3, *, seed=0):
    """Images of 64 × 64 pixels with two objects each, the last without any."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, 64, 64, generator=generator) for _ in range(count)]
    targets = []
    for index in range(count):
        corners = torch.randint(0, 30, (2, 2), generator=generator).float()
        sides = torch.randint(14, 30, (2, 2), generator=generator).float()
        targets.append(
            {
                "boxes": torch.cat([corners, corners + sides], dim=1),
                "labels": torch.tensor([1 + index % 3, 3]),
            }
        )
    targets[-1] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return images, targets
