"""Dr. Retina: RetinaNet with K sigmoid outputs per anchor and no background channel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import log

import torch
import torch.export
from torch import Tensor, nn
from torch.nn import functional

from drloss.detector.anchors import anchor_shapes, level_anchors
from drloss.detector.backbone import ResNetFPN
from drloss.detector.config import DetectorConfig
from drloss.losses.inputs import maps_to_rows

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's RGB values in [0, 1], which torchvision's weights were trained with."""
NOTHING = -1e4
"""Logit where a batch has no image: its score is 0."""


@dataclass(frozen=True)
class HeadOutputs:
    """What the heads say about a batch, level by level.

    Attributes:
        maps: one (N, B·K, H, W) per level, the classification logits as the last convolution leaves them: the losses
            read them in place.
        deltas: one (N, A_l, 4) per level, box deltas weighted (10, 10, 5, 5).
        anchors: one (A_l, 4) per level, xyxy in pixels of the padded images.
        num_classes: K.
        inside: (N, A) bool, the anchors of all levels that are the image's own, where images of several sizes share a
            batch; None if all are. Of the others the logits are :data:`NOTHING` and the deltas 0.
    """

    maps: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]
    num_classes: int
    inside: Tensor | None = None

    @cached_property
    def logits(self) -> list[Tensor]:
        """One (N, A_l, K) per level, a copy in the order of the anchors."""
        return [maps_to_rows(m, self.num_classes) for m in self.maps]


torch.export.register_dataclass(HeadOutputs, serialized_type_name="drloss.detector.model.HeadOutputs")


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

    It runs in the dtype of its parameters, but for what is exact in no half precision: the normalisation of the image
    and the anchors are float32.

    Args:
        config: structure; the norm ``"auto"`` is group norm here, because the new weights are random.
        num_classes: K object classes.
        prior_probability: score that every candidate starts from: 0.5 for DR (§4.2), 0.01 for focal loss.
    """

    mean: Tensor
    std: Tensor
    shapes: Tensor

    def __init__(self, config: DetectorConfig, num_classes: int, prior_probability: float) -> None:
        super().__init__()
        if config.norm == "auto":
            config = replace(config, norm="group")
        self.config = config
        self.num_classes = num_classes
        self.backbone = ResNetFPN(config)
        bias = -log((1 - prior_probability) / prior_probability)
        self.cls_head = Head(config, num_classes, bias)
        self.box_head = Head(config, 4)
        for name, value in self._constants().items():
            self.register_buffer(name, value, persistent=False)

    def _constants(self, device: torch.device | None = None) -> dict[str, Tensor]:
        colours = {"mean": IMAGE_MEAN, "std": IMAGE_STD}
        tensors = {name: torch.tensor(v, dtype=torch.float32, device=device) for name, v in colours.items()}
        shaped = {name: t.reshape(3, 1, 1) for name, t in tensors.items()}
        return {**shaped, "shapes": anchor_shapes(self.config, device)}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RetinaNet":
        """What ``.to``, ``.half`` and ``.to_empty`` do: the constants follow to a device, and never to a dtype.

        They are no part of a state dict, so that nothing else would fill them after ``.to_empty``.
        """
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in self._constants(self.mean.device).items():
            setattr(self, name, value)
        return self

    def forward(self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> HeadOutputs:
        """Logits and deltas of every anchor.

        What is said of an image does not depend on the others of its batch, to float rounding: those of one size run
        together, and none sees the padding that only a larger neighbour needs.

        Args:
            images: (N, 3, H, W), RGB values 0..255 of any dtype, usually uint8; H and W multiples of 32 (see
                :func:`drloss.data.transforms.pad`).
            sizes: height and width of each image's own part of ``images``, at the top left; multiples of 32, too.
                None if each has all of it.
        """
        whole = (images.shape[2], images.shape[3])
        if sizes is None or all(size == whole for size in sizes):
            maps, deltas = self._maps(images)
            grids = [(m.shape[2], m.shape[3]) for m in maps]
            inside = None
        else:
            grids = [(-(-whole[0] // stride), -(-whole[1] // stride)) for stride in self.config.strides]
            maps, deltas = self._maps_by_size(images, sizes, grids)
            inside = torch.stack([self._inside(size, grids) for size in sizes])
        return HeadOutputs(
            maps=maps,
            deltas=[maps_to_rows(m, 4) for m in deltas],
            anchors=level_anchors(self.config, self.shapes, grids),
            num_classes=self.num_classes,
            inside=inside,
        )

    def _maps(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of images that fill their batch, each level's maps of logits and deltas."""
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        normalised = (wide / 255 - self.mean) / self.std
        features = self.backbone(normalised.to(self.backbone.body.conv1.weight.dtype))
        return self.cls_head(features), self.box_head(features)

    def _maps_by_size(
        self, images: Tensor, sizes: Sequence[tuple[int, int]], grids: list[tuple[int, int]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The same of images of several sizes, each size run by itself and its maps laid into those of the batch."""
        found: dict[int, list[Tensor]] = {}
        for size in dict.fromkeys(sizes):
            members = [i for i, s in enumerate(sizes) if s == size]
            maps, deltas = self._maps(torch.stack([images[i, :, : size[0], : size[1]] for i in members]))
            laid = [_lay(m, grid, NOTHING) for m, grid in zip(maps, grids, strict=True)]
            laid += [_lay(m, grid, 0.0) for m, grid in zip(deltas, grids, strict=True)]
            found |= {i: [m[row] for m in laid] for row, i in enumerate(members)}
        levels = [torch.stack([found[i][level] for i in range(len(sizes))]) for level in range(2 * len(grids))]
        return levels[: len(grids)], levels[len(grids) :]

    def _inside(self, size: tuple[int, int], grids: list[tuple[int, int]]) -> Tensor:
        """(A,) bool, the anchors on the cells of an image of this size."""
        device, parts = self.shapes.device, []
        for stride, (height, width) in zip(self.config.strides, grids, strict=True):
            rows = torch.arange(height, device=device) < -(-size[0] // stride)
            columns = torch.arange(width, device=device) < -(-size[1] // stride)
            cells = (rows[:, None] & columns[None]).reshape(-1, 1)
            parts.append(cells.expand(-1, self.config.anchors_per_location).reshape(-1))
        return torch.cat(parts)


def _lay(maps: Tensor, grid: tuple[int, int], value: float) -> Tensor:
    """(N, C, h, w) into the top left of (N, C, *grid)."""
    return functional.pad(maps, (0, grid[1] - maps.shape[3], 0, grid[0] - maps.shape[2]), value=value)
