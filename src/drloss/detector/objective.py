r"""The training objective of §3.3 as a mean over images: $\tau\,\ell_{\mathrm{DR}} + \ell_{\mathrm{Reg}}$."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from drloss.detector.boxes import area, decode
from drloss.detector.config import DetectorConfig
from drloss.detector.model import HeadOutputs
from drloss.detector.targets import Targets, assign_targets
from drloss.losses import ImageLoss
from drloss.structures import Objects, PaddedObjects

SMOOTH_L1_BETA = 0.11
"""Weighted delta at which RetinaNet's box loss changes from quadratic to linear."""


@dataclass(frozen=True)
class LossTerms:
    """The two terms of the objective, each a mean over the images of the batch, and the labels.

    Attributes:
        cls: scalar, the weighted classification loss (τ · ℓ_DR for DR).
        box: scalar, ℓ_Reg.
        labels: (N, A) int64, -1 ignored, 0 background, 1..K.
        of_batch: what else the classification loss was given with this batch, by the name of its option.
    """

    cls: Tensor
    box: Tensor
    labels: Tensor
    of_batch: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """The scalar that training differentiates: ``cls``, already weighted, plus ``box``."""
        return self.cls + self.box


def box_loss(deltas: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """RetinaNet's box loss of each image: smooth L1 summed over its positive anchors, divided by 4 × their number.

    Paper: ℓ_Reg of §3.3, "the original regression loss in RetinaNet". The number is counted per image and is at least
    1, so that the objective is a sum over images on any number of devices.

    Args:
        deltas: (N, A, 4) predictions, any floating dtype.
        targets: (N, A, 4) float32.
        labels: (N, A) int64; the anchors with labels > 0 count.
    Returns:
        (N,) float32, 0 with the graph kept where an image has no positive anchor.
    """
    positive = labels > 0
    error = functional.smooth_l1_loss(deltas.float(), targets, beta=SMOOTH_L1_BETA, reduction="none").sum(dim=2)
    return torch.where(positive, error, 0.0).sum(dim=1) / (4 * positive.sum(dim=1).clamp(min=1))


@torch.no_grad()
def box_quality(deltas: Tensor, targets: Tensor, labels: Tensor, anchors: Tensor) -> Tensor:
    """IoU of each positive anchor's predicted box with its object, for losses that use it.

    Args:
        deltas: (N, A, 4) predictions, any floating dtype.
        targets: (N, A, 4) float32.
        labels: (N, A) int64; the anchors with labels > 0 count.
        anchors: (A, 4) float32 xyxy.
    Returns:
        (N, A) float32 in [0, 1], 0 where an anchor is not positive.
    """
    found, wanted = decode(deltas.float(), anchors), decode(targets, anchors)
    sides = torch.minimum(found[..., 2:], wanted[..., 2:]) - torch.maximum(found[..., :2], wanted[..., :2])
    overlap = sides.clamp(min=0).prod(dim=2)
    union = area(found) + area(wanted) - overlap
    return torch.where(labels > 0, (overlap / union).clamp(0, 1), 0.0)


def assign_batch(outputs: HeadOutputs, objects: PaddedObjects | Sequence[Objects], config: DetectorConfig) -> Targets:
    """Targets of N images over all levels; see :func:`drloss.detector.targets.assign_targets`.

    Anchors in the padding of an image match nothing and are ignored.

    Args:
        outputs: of the N images.
        objects: of the N images, on the device of the outputs; padded ones spare the device small copies.
        config: thresholds.
    """
    padded = objects if isinstance(objects, PaddedObjects) else PaddedObjects.of(objects)
    return assign_targets(torch.cat(outputs.anchors), padded, config, outputs.inside)


def options_of_batch(loss: nn.Module, targets: Targets, deltas: Tensor, anchors: Tensor) -> dict[str, Tensor]:
    """What a loss needs to know of a batch beside its labels: see :attr:`drloss.losses.module.ImageLoss.needs`.

    Args:
        loss: any module; only an ImageLoss needs anything.
        targets: of N images.
        deltas: (N, A, 4) predictions, any floating dtype.
        anchors: (A, 4) float32 xyxy.
    """
    needs = loss.needs if isinstance(loss, ImageLoss) else ()
    found = {"objects": targets.objects} if "objects" in needs else {}
    if "quality" in needs:
        found["quality"] = box_quality(deltas, targets.deltas, targets.labels, anchors)
    return found


class Objective(nn.Module):
    """Classification loss plus box loss of a batch.

    Args:
        loss: a module of :data:`drloss.losses.LOSSES` (mean over images), or another one with the same signature.
        config: matching thresholds.
    """

    def __init__(self, loss: nn.Module, config: DetectorConfig) -> None:
        super().__init__()
        self.loss = loss
        self.config = config

    def forward(self, outputs: HeadOutputs, objects: PaddedObjects | Sequence[Objects]) -> LossTerms:
        """Loss terms of N images.

        Args:
            outputs: result of :class:`drloss.detector.model.RetinaNet` for the N images.
            objects: the annotated objects of the N images, on the device of the outputs.
        """
        targets = assign_batch(outputs, objects, self.config)
        deltas = torch.cat(outputs.deltas, dim=1)
        of_batch = options_of_batch(self.loss, targets, deltas, torch.cat(outputs.anchors))
        cls = self.loss(outputs.maps, targets.labels, **of_batch)
        box = box_loss(deltas, targets.deltas, targets.labels)
        return LossTerms(cls, box.mean(), targets.labels, of_batch)
