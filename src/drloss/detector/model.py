"""Dr. Retina: RetinaNet with K sigmoid outputs per anchor and no background channel."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import log

import torch
import torch.export
from torch import Tensor, nn
from torch.nn import functional

from drloss.detector.anchors import anchor_shapes, level_anchors
from drloss.detector.backbone import BackboneFPN, with_image_statistics
from drloss.detector.config import DetectorConfig
from drloss.losses.inputs import maps_to_rows

NOTHING = -1e4
"""Logit in the padding of a batch: its score is 0."""


@dataclass(frozen=True)
class HeadOutputs:
    """Outputs of the heads for a batch, level by level.

    Attributes:
        maps: one (N, B·K, H, W) per level, the classification logits in the layout of the last convolution, which the
            losses read without a copy.
        deltas: one (N, A_l, 4) per level, box deltas weighted (10, 10, 5, 5).
        anchors: one (A_l, 4) per level, xyxy in pixels of the padded images.
        num_classes: K.
        inside: (N, A) bool, whether an anchor lies on the image and not on its padding; None if no image of the batch
            has padding. In the padding the logits are :data:`NOTHING` and the deltas 0.
    """

    maps: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]
    num_classes: int
    inside: Tensor | None = None

    @cached_property
    def logits(self) -> list[Tensor]:
        """One (N, A_l, K) per level: the classification logits in the order of the anchors, a copy of ``maps``."""
        return [maps_to_rows(m, self.num_classes) for m in self.maps]


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # torch 2.6 warns of a call of its own
    torch.export.register_dataclass(HeadOutputs, serialized_type_name="drloss.detector.model.HeadOutputs")


class Head(nn.Module):
    """3×3 convolutions with ReLU, and a last one with ``outputs`` values per anchor; shared by all levels.

    As in [17], the weights start from N(0, 0.01) and the biases from 0, except for the last bias.
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
    """RetinaNet on a backbone with a feature pyramid.

    Paper: §4.1, [17]. The heads are RetinaNet's for every loss; only ``prior_probability`` depends on the loss.

    It computes in the dtype of its parameters, except for the normalisation of the image and the anchors, which are
    float32 because half precision is not exact enough for them.

    Args:
        config: structure; the norm ``"auto"`` means group norm here, because the new weights are random.
        num_classes: K object classes.
        prior_probability: initial score of every candidate: 0.5 for DR (§4.2), 0.01 for focal loss.
    """

    mean: Tensor
    std: Tensor
    shapes: Tensor

    def __init__(self, config: DetectorConfig, num_classes: int, prior_probability: float) -> None:
        super().__init__()
        if config.norm == "auto":
            config = replace(config, norm="group")
        self.config = config = with_image_statistics(config)
        self.num_classes = num_classes
        self.backbone = BackboneFPN(config)
        bias = -log((1 - prior_probability) / prior_probability)
        self.cls_head = Head(config, num_classes, bias)
        self.box_head = Head(config, 4)
        for name, value in self._constants().items():
            self.register_buffer(name, value, persistent=False)

    def _constants(self, device: torch.device | None = None) -> dict[str, Tensor]:
        colours = {"mean": self.config.image_mean, "std": self.config.image_std}
        tensors = {name: torch.tensor(v, dtype=torch.float32, device=device) for name, v in colours.items()}
        shaped = {name: t.reshape(3, 1, 1) for name, t in tensors.items()}
        return {**shaped, "shapes": anchor_shapes(self.config, device)}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RetinaNet":
        """Part of ``.to``, ``.half`` and ``.to_empty``: the constants move to a new device, but keep their dtype.

        They are computed anew, because they are not in the state dict that fills the rest after ``.to_empty``.
        """
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in self._constants(self.mean.device).items():
            setattr(self, name, value)
        return self

    def forward(self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> HeadOutputs:
        """Logits and deltas of every anchor.

        The outputs for an image do not depend on the other images of its batch, up to float rounding: images of
        equal size run as one batch; padding added for a larger neighbour is cut off first.

        Args:
            images: (N, 3, H, W), RGB values 0..255 of any dtype, usually uint8; H and W multiples of 32 (see
                :func:`drloss.data.transforms.pad`).
            sizes: height and width of each image inside ``images``, at the top left; multiples of 32, too. None if
                each image fills its place.
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
        """Maps of logits and of deltas, one per level, for images without padding."""
        floats = images.to(torch.promote_types(images.dtype, torch.float32))
        normalised = (floats / 255 - self.mean) / self.std
        features = self.backbone(normalised.to(self.cls_head.predict.weight.dtype))
        return self.cls_head(features), self.box_head(features)

    def _maps_by_size(
        self, images: Tensor, sizes: Sequence[tuple[int, int]], grids: list[tuple[int, int]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Maps of logits and of deltas for images of several sizes: each size runs alone, and its maps are padded."""
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
        """(A,) bool, whether an anchor lies on an image of this size."""
        device, parts = self.shapes.device, []
        for stride, (height, width) in zip(self.config.strides, grids, strict=True):
            rows = torch.arange(height, device=device) < -(-size[0] // stride)
            columns = torch.arange(width, device=device) < -(-size[1] // stride)
            cells = (rows[:, None] & columns[None]).reshape(-1, 1)
            parts.append(cells.expand(-1, self.config.anchors_per_location).reshape(-1))
        return torch.cat(parts)


def _lay(maps: Tensor, grid: tuple[int, int], value: float) -> Tensor:
    """Pad (N, C, h, w) at the right and bottom to (N, C, *grid)."""
    return functional.pad(maps, (0, grid[1] - maps.shape[3], 0, grid[0] - maps.shape[2]), value=value)
