"""ResNet and ResNeXt backbones with a feature pyramid (FPN), from torchvision's parts."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from drloss.detector.config import DetectorConfig
from drloss.errors import UserError


def _resnet10(**options: Callable[..., nn.Module]) -> ResNet:
    """ResNet-18 with one basic block per stage instead of two, for CPUs and small images."""
    return ResNet(BasicBlock, [1, 1, 1, 1], **options)


BACKBONES: dict[str, Callable[..., ResNet]] = {
    "resnet10": _resnet10,
    "resnet18": models.resnet18,
    "resnet34": models.resnet34,
    "resnet50": models.resnet50,
    "resnet101": models.resnet101,
    "resnext101_32x8d": models.resnext101_32x8d,
}
"""Constructors by name; all but ``resnet10`` have ImageNet weights in torchvision."""

NORMS: dict[Literal["auto", "frozen", "group"], Callable[[int], nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "group": partial(nn.GroupNorm, 32),
}
"""Norm layers by name, each made from a number of channels; ``"auto"`` is resolved before."""


class ResNetFPN(nn.Module):
    """Backbone C3-C5 and pyramid P3-P5 or P3-P7, randomly initialised.

    Paper: §4.1 and [16, 17]: lateral and output convolutions Kaiming-uniform (a = 1), nearest upsampling, P6 a 3×3
    stride-2 convolution on C5 and P7 one on ReLU(P6). With frozen norms the stem and the first stage are frozen, too.

    Args:
        config: structure; its ``norm`` must be resolved (not ``"auto"``).
    Raises:
        UserError: if the configuration names an unknown backbone, norm or top level.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        for field, allowed in (("backbone", tuple(BACKBONES)), ("norm", tuple(NORMS)), ("top_level", (5, 7))):
            if getattr(config, field) not in allowed:
                raise UserError(
                    f"{field} must be one of {', '.join(map(str, allowed))}, got {getattr(config, field)}"
                )
        self.body = BACKBONES[config.backbone](norm_layer=NORMS[config.norm])
        c5 = self.body.fc.in_features
        del self.body.fc, self.body.avgpool
        if config.norm == "frozen":
            self.body.conv1.requires_grad_(False)
            self.body.layer1.requires_grad_(False)
        top = None
        if config.top_level == 7:
            top = LastLevelP6P7(c5, config.fpn_channels)
            top.use_P5 = False  # P6 comes from C5 even where the channel counts happen to agree
        self.fpn = FeaturePyramidNetwork([c5 // 4, c5 // 2, c5], config.fpn_channels, extra_blocks=top)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) to one (N, C, H / stride, W / stride) per level."""
        body = self.body
        c2 = body.layer1(body.maxpool(body.relu(body.bn1(body.conv1(images)))))
        c3 = body.layer2(c2)
        c4 = body.layer3(c3)
        c5 = body.layer4(c4)
        return list(self.fpn(OrderedDict(p3=c3, p4=c4, p5=c5)).values())
