"""The backbone with its feature pyramid (FPN): a ResNet of torchvision, which is the paper's, or a model of timm."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from drloss.detector import timm_backbones
from drloss.detector.config import DetectorConfig
from drloss.detector.folding import fold_norms
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


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of ImageNet's RGB values in [0, 1], which torchvision's weights were trained with."""
_STAGES = {2: "maxpool", 4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}
"""Last module of each stride of a ResNet."""


def with_image_statistics(config: DetectorConfig) -> DetectorConfig:
    """Fill in the mean and deviation of the image where the configuration leaves them to the backbone."""
    if config.image_mean and config.image_std:
        return config
    mean, std = IMAGENET if config.backbone in BACKBONES else timm_backbones.image_statistics(config.backbone)
    return replace(config, image_mean=config.image_mean or mean, image_std=config.image_std or std)


class BackboneFPN(nn.Module):
    """Backbone C3-C5 and pyramid P3-P5 or P3-P7, randomly initialised.

    Paper: §4.1 and [16, 17]: lateral and output convolutions Kaiming-uniform (a = 1), nearest upsampling, P6 a 3×3
    stride-2 convolution on C5 and P7 one on ReLU(P6). With frozen norms the backbone's first stages are frozen, too
    (``frozen_stride``).

    Args:
        config: structure; its ``norm`` must be resolved (not ``"auto"``).
    Raises:
        UserError: if the configuration names an unknown backbone, norm or top level.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        for field, allowed in (("norm", tuple(NORMS)), ("top_level", (5, 7))):
            if getattr(config, field) not in allowed:
                raise UserError(
                    f"{field} must be one of {', '.join(map(str, allowed))}, got {getattr(config, field)}"
                )
        self.is_resnet = config.backbone in BACKBONES
        if self.is_resnet:
            self.body: nn.Module = BACKBONES[config.backbone](norm_layer=NORMS[config.norm])
            c5 = self.body.fc.in_features
            del self.body.fc, self.body.avgpool
            channels, stages = [c5 // 4, c5 // 2, c5], _STAGES
        else:
            self.body = timm_backbones.build_body(config.backbone, config.norm)
            channels, stages = timm_backbones.channels(self.body), timm_backbones.stages(self.body)
        if config.norm == "frozen":
            fold_norms(self.body, self._features)
            _freeze(self.body, stages, config.frozen_stride)
        top = None
        if config.top_level == 7:
            top = LastLevelP6P7(channels[-1], config.fpn_channels)
            top.use_P5 = False  # P6 comes from C5 even where the channel counts happen to agree
        self.fpn = FeaturePyramidNetwork(channels, config.fpn_channels, extra_blocks=top)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) to one (N, C, H / stride, W / stride) per level."""
        c3, c4, c5 = self._features(images)
        return list(self.fpn(OrderedDict(p3=c3, p4=c4, p5=c5)).values())

    def _features(self, images: Tensor) -> Sequence[Tensor]:
        """C3, C4 and C5."""
        body = self.body
        if not self.is_resnet:
            features: Sequence[Tensor] = body(images)
            return features
        c2 = body.layer1(body.maxpool(body.relu(body.bn1(body.conv1(images)))))  # type: ignore[operator]
        c3 = body.layer2(c2)  # type: ignore[operator]
        c4 = body.layer3(c3)  # type: ignore[operator]
        return c3, c4, body.layer4(c4)  # type: ignore[operator]


def _freeze(body: nn.Module, stages: dict[int, str], stride: int) -> None:
    """Freeze the weights of all stages up to a stride, from the input on."""
    if not any(own <= stride for own in stages):
        return
    last = stages[max(own for own in stages if own <= stride)]
    modules = dict(body.named_modules())
    own = [i for i, name in enumerate(modules) if name == last or name.startswith(f"{last}.")]
    if not own:
        raise UserError(f"frozen_stride {stride}: this backbone has no module {last!r} to freeze up to; use 0")
    end = max(own)
    for module in list(modules.values())[: end + 1]:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
