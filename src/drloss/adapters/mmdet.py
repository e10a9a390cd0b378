"""Dense heads of mmdetection 3 with a loss of drloss: RetinaNet, ATSS and FCOS.

    runner = Runner.from_cfg(config)
    adapt(runner.model)
    runner.train()

``loss_cls`` of the configuration is the wrong place: it is called once for each pyramid level, with an average
factor, on rows that no longer say which image they belong to.
"""

from typing import Any

import torch
from torch import Tensor, nn

from drloss.adapters.classifier import as_loss, become, is_untrained, start_from
from drloss.losses import ImageLoss

try:
    from mmdet.models.dense_heads import ATSSHead, FCOSHead, RetinaHead
except ImportError as error:
    raise ImportError(
        "drloss.adapters.mmdet needs mmdetection 3: pip install mmdet mmengine, and an mmcv built for your torch"
    ) from error


def adapt(model: nn.Module, loss: str | ImageLoss = "dr", *, reset: bool | None = None) -> nn.Module:
    """Replace the classification loss of a detector's head.

    Args:
        model: a detector whose ``bbox_head`` is a ``RetinaHead``, an ``ATSSHead`` or an ``FCOSHead``, or such a head;
            it is changed in place.
        loss: a loss module or its name.
        reset: whether to reset the classifier to the loss's prior; by default only if it was never trained.
            ``init_weights``, which a runner calls before it loads weights, resets it as well.
    Returns:
        The model.
    Raises:
        TypeError: if the head has any other class.
        ValueError: if the head has no sigmoid for each class or weights its positives, or the loss does not fit.
    """
    chosen = as_loss(loss, inplace=False, gives=())
    head: Any = getattr(model, "bbox_head", model)
    kinds = {RetinaHead: DRRetinaHead, ATSSHead: DRATSSHead, FCOSHead: DRFCOSHead}
    own = next((kind for kind, ours in kinds.items() if type(head) in (kind, ours)), None)
    if own is None:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"adapt knows {names} of mmdet, not {type(head).__name__}, which may differ")
    if not head.use_sigmoid_cls:
        raise ValueError("loss_cls.use_sigmoid must be True in the configuration: a softmax has a background")
    weight = (head.train_cfg or {}).get("pos_weight", -1)
    if weight > 0:
        raise ValueError(f"train_cfg.pos_weight must be -1, got {weight}: a loss of drloss has no use for it")
    become(head, own, kinds[own])
    head.loss_cls = Slot(chosen)
    if is_untrained([head.classifier]) if reset is None else reset:
        head.start()
    return model


def step(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Losses of a detector's training step on a batch of mmdetection's data loader."""
    losses: dict[str, Any] = model(**model.data_preprocessor(batch, training=True), mode="loss")
    return losses


class Slot(nn.Module):
    """Replaces a head's ``loss_cls`` and keeps the arguments of its calls, one call a level."""

    def __init__(self, loss: ImageLoss) -> None:
        super().__init__()
        self.drloss = loss
        self.given: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(self, scores: Tensor, labels: Tensor, weight: Tensor | None = None, **options: Any) -> Tensor:
        """Keep logits (rows, K), labels (rows,), 0..K-1 or K for background, and weights (rows,), 0 for ignored."""
        self.given.append((scores, labels, weight))
        return scores.new_zeros(())

    def loss(self, levels: list[Tensor], classes: int) -> Tensor:
        """The loss of the kept logits and labels.

        Args:
            levels: the head's maps, each (N, A·K, H, W).
            classes: K.
        """
        given = self.given
        scores = torch.cat([s for s, _, _ in given])
        labels = torch.cat([y for _, y, _ in given])
        labels = torch.where(labels == classes, 0, labels + 1)
        for_sure = [torch.ones_like(y, dtype=torch.bool) if w is None else w.reshape(-1) > 0 for _, y, w in given]
        labels = torch.where(torch.cat(for_sure), labels, -1)
        # The rows are ordered by level, then by image.
        rows = [level.numel() // classes for level in levels]
        images = len(levels[0])
        loss: Tensor = self.drloss(
            [part.reshape(images, -1, classes) for part in torch.split(scores, rows)],
            [part.reshape(images, -1) for part in torch.split(labels, rows)],
        )
        return loss


class _Head:
    """What the adapted heads share; this class precedes the host's head among the bases."""

    classifier_name: str

    @property
    def classifier(self) -> Any:
        return getattr(self, self.classifier_name)

    def start(self) -> None:
        """Let the classifier start from the loss's prior."""
        own: Any = self
        start_from([self.classifier], own.loss_cls.drloss.prior_probability, classes=own.num_classes)

    def init_weights(self) -> None:
        """Initialise as the host does, then set the classifier to the loss's own prior instead of a score of 0.01."""
        host: Any = super()
        host.init_weights()
        if is_untrained([self.classifier]):
            self.start()

    def loss_by_feat(self, cls_scores: list[Tensor], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The host's losses, with one ``loss_cls`` of all levels and images."""
        own: Any = self
        host: Any = super()
        try:
            losses: dict[str, Any] = host.loss_by_feat(cls_scores, *args, **kwargs)
            return {**losses, "loss_cls": own.loss_cls.loss(cls_scores, own.num_classes)}
        finally:
            own.loss_cls.given.clear()


class DRRetinaHead(_Head, RetinaHead):  # type: ignore[misc]
    """RetinaNet's head."""

    classifier_name = "retina_cls"


class DRATSSHead(_Head, ATSSHead):  # type: ignore[misc]
    """ATSS's head."""

    classifier_name = "atss_cls"


class DRFCOSHead(_Head, FCOSHead):  # type: ignore[misc]
    """FCOS's head."""

    classifier_name = "conv_cls"
