"""Dr. Retina: RetinaNet with K sigmoid outputs per anchor and no background channel."""

from dataclasses import dataclass
from functools import cached_property
from math import log

import torch
from torch import Tensor, nn

from drloss.detector.anchors import level_anchors
from drloss.detector.backbone import ResNetFPN
from drloss.detector.config import DetectorConfig
from drloss.losses.inputs import maps_to_rows

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's RGB values in [0, 1], which torchvision's weights were trained with."""


@dataclass(frozen=True)
class HeadOutputs:
    """What the heads say about a batch, level by level.

    Attributes:
        maps: one (N, B·K, H, W) per level, the classification logits as the last convolution leaves them: the losses
            read them in place.
        deltas: one (N, A_l, 4) per level, box deltas weighted (10, 10, 5, 5).
        anchors: one (A_l, 4) per level, xyxy in pixels of the padded images.
        num_classes: K.
    """

    maps: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]
    num_classes: int

    @cached_property
    def logits(self) -> list[Tensor]:
        """One (N, A_l, K) per level, a copy in the order of the anchors."""
        return [maps_to_rows(m, self.num_classes) for m in self.maps]


class Head(nn.Module):
    """Tower of 3×3 convolutions with ReLU and a last one with ``outputs`` values per anchor; shared over levels.

    Recipe of [17]: all convolutions N(0, 0.01), biases 0 but for the last one's.
    """

    def __init__(self, config: DetectorConfig, outputs: int, bias: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = config.fpn_channels
        for _ in range(config.head_depth):
            layers += [nn.Conv2d(channels, config.head_channels, 3, padding=1), nn.ReLU()]
            channels = config.head_channels
        self.tower = nn.Sequential(*layers)
        self.predict = nn.Conv2d(channels, config.anchors_per_location * outputs, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        assert self.predict.bias is not None
        nn.init.constant_(self.predict.bias, bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Per level, features (N, C, H, W) to maps (N, B * outputs, H, W)."""
        return [self.predict(self.tower(f)) for f in features]


class RetinaNet(nn.Module):
    """RetinaNet on a ResNet-FPN.

    Paper: §4.1, [17]. The heads are RetinaNet's; what a loss asks of them is ``prior_probability`` alone.

    Args:
        config: structure.
        num_classes: K object classes.
        prior_probability: score that every candidate starts from: 0.5 for DR (§4.2), 0.01 for focal loss.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: DetectorConfig, num_classes: int, prior_probability: float) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.backbone = ResNetFPN(config)
        bias = -log((1 - prior_probability) / prior_probability)
        self.cls_head = Head(config, num_classes, bias)
        self.box_head = Head(config, 4)
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD).reshape(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> HeadOutputs:
        """Logits and deltas of every anchor.

        Args:
            images: (N, 3, H, W) uint8, RGB, H and W multiples of 32 (see :func:`drloss.data.transforms.pad`).
        """
        features = self.backbone((images / 255 - self.mean) / self.std)
        grids = tuple((f.shape[2], f.shape[3]) for f in features)
        return HeadOutputs(
            maps=self.cls_head(features),
            deltas=[maps_to_rows(m, 4) for m in self.box_head(features)],
            anchors=level_anchors(self.config, grids, images.device),
            num_classes=self.num_classes,
        )
