"""Detectors of the DETR family in Hugging Face transformers with a loss of drloss.

These are the models with a sigmoid for each object class and no background class: RT-DETR and RT-DETR v2, Deformable
DETR, Conditional DETR and DAB-DETR. Their anchors are the queries. A query that the host's Hungarian matching assigns
to an object is a positive of the object's class; all others are negatives. Each decoder layer has queries of its own,
and so it is a candidate set of its own, with one call of the loss over all images.
"""

from typing import Any

import torch
from torch import Tensor, nn

from drloss.adapters.classifier import as_loss, bias_of, is_untrained, of_batch, start_from
from drloss.losses import ImageLoss

try:
    from transformers import (
        ConditionalDetrForObjectDetection,
        DabDetrForObjectDetection,
        DeformableDetrForObjectDetection,
        RTDetrForObjectDetection,
        RTDetrV2ForObjectDetection,
    )
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss
    from transformers.loss.loss_rt_detr import RTDetrLoss
    from transformers.loss.loss_utils import LOSS_MAPPING
except ImportError as error:
    raise ImportError(
        "drloss.adapters.transformers needs transformers: pip install 'transformers>=5.23' scipy pillow"
    ) from error

RT_DETR = (RTDetrForObjectDetection, RTDetrV2ForObjectDetection)
DEFORMABLE_DETR = (
    DeformableDetrForObjectDetection,
    ConditionalDetrForObjectDetection,
    DabDetrForObjectDetection,
)
Targets = list[dict[str, Tensor]]
Assignment = list[tuple[Tensor, Tensor]]
"""Of each image the queries that have an object, and these objects."""


def adapt(model: nn.Module, loss: str | ImageLoss = "dr", *, reset: bool | None = None) -> nn.Module:
    """Replace the classification loss of a detector of the DETR family.

    Args:
        model: a model of :data:`RT_DETR` or :data:`DEFORMABLE_DETR`; only this instance is changed.
        loss: a loss module or its name.
        reset: whether to reset the classifiers of all decoder layers, and that of RT-DETR's encoder, to the loss's
            prior; by default only if they were never trained.
    Returns:
        The model.
    Raises:
        TypeError: if the model has any other class, or a loss function that is not that of its class.
        ValueError: if the loss does not fit.
    """
    host: Any = model
    known = (*RT_DETR, *DEFORMABLE_DETR)
    if type(model) not in known:
        names = ", ".join(kind.__name__ for kind in known)
        raise TypeError(
            f"adapt knows {names} of transformers, not {type(model).__name__}: other detectors rank no sigmoids over "
            "object classes alone, or divide their queries in another way"
        )
    adapted = isinstance(getattr(host, "drloss", None), Criterion)
    if not adapted and host.loss_function is not LOSS_MAPPING[type(model).__name__]:
        raise TypeError(f"model has a loss function of its own beside that of {type(model).__name__}: take it out")
    rt_detr = type(model) in RT_DETR
    chosen = as_loss(loss, inplace=rt_detr)
    criterion = Criterion(chosen, host.config, rt_detr=rt_detr)
    host.add_module("drloss", criterion)
    host.loss_function = criterion.step  # a function of this instance; transformers accepts no module here
    layers = classifiers(host)
    prior = getattr(host.config, "initializer_bias_prior_prob", None) or 1 / (host.config.num_labels + 1)
    if is_untrained(layers, starts=[bias_of(prior)]) if reset is None else reset:
        start_from(layers, chosen.prior_probability, classes=host.config.num_labels)
    return model


def classifiers(model: Any) -> list[Any]:
    """The classifiers of all decoder layers, shared or not, and of RT-DETR's encoder."""
    if type(model) in RT_DETR:
        return [*model.model.decoder.class_embed, model.model.enc_score_head]
    heads = getattr(model, "class_labels_classifier", None) or model.class_embed
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


class Criterion(nn.Module):
    """The losses of a training step, with a loss of drloss for the classes.

    Attributes:
        drloss: the loss.
        config: the detector's configuration, which transformers reads in each step.
        rt_detr: whether the detector is an RT-DETR.
    """

    def __init__(self, loss: ImageLoss, config: Any, *, rt_detr: bool) -> None:
        super().__init__()
        self.drloss = loss
        self.config = config
        self.rt_detr = rt_detr

    @property
    def drloss_calls(self) -> int:
        """Number of candidate sets in a training step with objects; each is one call of the loss."""
        layers = int(self.config.decoder_layers)
        if not self.config.auxiliary_loss:
            return 1
        if not self.rt_detr:
            return layers
        return layers + 1 + (layers if self.config.num_denoising > 0 else 0)

    def step(
        self,
        logits: Tensor,
        labels: Targets,
        device: Any,
        pred_boxes: Tensor,
        config: Any,
        outputs_class: Tensor | None = None,
        outputs_coord: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, dict[str, Tensor], list[dict[str, Tensor]] | None]:
        """The ``loss_function`` of a model, with the arguments that transformers gives it.

        Args:
            logits: (N, Q, K) of the last decoder layer; the denoising queries of an RT-DETR come first.
            labels: for each image a dict with ``class_labels`` (B,), 0..K-1, and ``boxes`` (B, 4).
            device: not used.
            pred_boxes: (N, Q, 4).
            config: the detector's configuration.
            outputs_class, outputs_coord: outputs of all layers, (N, L, Q, K) for an RT-DETR, else (L, N, Q, K); None
                without auxiliary losses.
            others: for an RT-DETR, the proposals of its encoder and the places of its denoising queries.
        Returns:
            The loss, its parts by the names of transformers, and the outputs of the auxiliary layers.
        """
        if self.rt_detr:
            return self._rt_detr(logits, labels, pred_boxes, config, outputs_class, outputs_coord, **others)
        outputs: dict[str, Any] = {"logits": logits, "pred_boxes": pred_boxes}
        if config.auxiliary_loss and outputs_class is not None and outputs_coord is not None:
            outputs["auxiliary_outputs"] = _layers(outputs_class[:-1], outputs_coord[:-1])
        parts = DeformableDetrClassLoss(config, self.drloss)(outputs, labels)
        weights = {
            "loss_ce": 1.0,
            "loss_bbox": config.bbox_loss_coefficient,
            "loss_giou": config.giou_loss_coefficient,
        }
        weighted = [weights.get(key.rstrip("_0123456789"), 0) * value for key, value in parts.items()]
        return torch.stack(weighted).sum(), parts, outputs.get("auxiliary_outputs")

    def _rt_detr(
        self,
        logits: Tensor,
        labels: Targets,
        pred_boxes: Tensor,
        config: Any,
        outputs_class: Any,
        outputs_coord: Any,
        enc_topk_logits: Any = None,
        enc_topk_bboxes: Any = None,
        denoising_meta_values: dict[str, Any] | None = None,
        **others: Any,
    ) -> tuple[Tensor, dict[str, Tensor], list[dict[str, Tensor]] | None]:
        noised = denoising_meta_values["dn_num_split"][0] if denoising_meta_values else 0
        outputs: dict[str, Any] = {"logits": logits[:, noised:], "pred_boxes": pred_boxes[:, noised:]}
        if config.auxiliary_loss:
            classes, boxes = outputs_class.transpose(0, 1), outputs_coord.transpose(0, 1)
            outputs["auxiliary_outputs"] = [
                *_layers(classes[:-1, :, noised:], boxes[:-1, :, noised:]),
                *_layers([enc_topk_logits], [enc_topk_bboxes]),
            ]
            if denoising_meta_values:
                outputs["denoising_meta_values"] = denoising_meta_values
                padding = denoising_padding(denoising_meta_values, labels)
                outputs["dn_auxiliary_outputs"] = [
                    {**layer, "padding": padding} for layer in _layers(classes[:, :, :noised], boxes[:, :, :noised])
                ]
        parts = RTDetrClassLoss(config, self.drloss)(outputs, labels)
        return torch.stack(list(parts.values())).sum(), parts, outputs.get("auxiliary_outputs")


def _layers(logits: Any, boxes: Any) -> list[dict[str, Tensor]]:
    return [{"logits": a, "pred_boxes": b} for a, b in zip(logits, boxes, strict=True)]


def denoising_padding(meta: dict[str, Any], labels: Targets) -> Tensor:
    """Denoising queries that are padding.

    A group has a near and a far query for each object of the image with the most objects; in other images some of
    them belong to no object.

    Args:
        meta: RT-DETR's ``denoising_meta_values``.
        labels: the targets of each image.
    Returns:
        (N, Q) bool, True for padding.
    """
    queries = meta["dn_num_split"][0]
    counts = [len(target["class_labels"]) for target in labels]
    slots = torch.arange(queries, device=labels[0]["class_labels"].device) % (queries // (2 * meta["dn_num_group"]))
    padding: Tensor = slots >= torch.tensor(counts, device=slots.device).unsqueeze(1)
    return padding


class _ClassLoss:
    """What the two criteria share: the loss of one candidate set."""

    drloss: ImageLoss

    def of_set(self, outputs: dict[str, Tensor], targets: Targets, indices: Assignment) -> Tensor:
        """Loss of all images' queries of one layer.

        Args:
            outputs: ``logits`` (N, Q, K), and ``padding`` (N, Q) bool if some queries are ignored.
            targets: the targets of each image.
            indices: the matched queries of each image, and their objects.
        """
        logits = outputs["logits"]
        labels = torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device)
        own = torch.full_like(labels, -1)
        for row, of_row, target, (queries, objects) in zip(labels, own, targets, indices, strict=True):
            row[queries] = target["class_labels"][objects].to(row) + 1
            of_row[queries] = objects.to(of_row)
        if "padding" in outputs:
            labels[outputs["padding"]] = -1
        loss: Tensor = self.drloss(logits, labels, **of_batch(self.drloss, lambda: own))
        return loss


class RTDetrClassLoss(_ClassLoss, RTDetrLoss):  # type: ignore[misc]
    """The criterion of an RT-DETR with a loss of drloss, whose weight is ``cls_weight``."""

    def __init__(self, config: Any, loss: ImageLoss) -> None:
        super().__init__(config)
        self.drloss = loss
        self.weight_dict["loss_vfl"] = 1.0

    def loss_labels_vfl(self, outputs: Any, targets: Any, indices: Any, num_boxes: Any) -> dict[str, Tensor]:
        """The classification loss of one layer; ``num_boxes`` divides only the box losses."""
        return {"loss_vfl": self.of_set(outputs, targets, indices)}


class DeformableDetrClassLoss(_ClassLoss, DeformableDetrImageLoss):  # type: ignore[misc]
    """The criterion of a Deformable, Conditional or DAB-DETR with a loss of drloss."""

    def __init__(self, config: Any, loss: ImageLoss) -> None:
        matcher = DeformableDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
        super().__init__(matcher, config.num_labels, config.focal_alpha, ["labels", "boxes", "cardinality"])
        self.drloss = loss

    def loss_labels(self, outputs: Any, targets: Any, indices: Any, num_boxes: Any) -> dict[str, Tensor]:
        """The classification loss of one layer; ``num_boxes`` divides only the box losses."""
        return {"loss_ce": self.of_set(outputs, targets, indices)}
