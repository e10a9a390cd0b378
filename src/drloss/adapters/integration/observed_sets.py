"""The sets of candidates that a training step gave to the loss, and how much the loss of each image counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drloss.losses.call_log import Call
from drloss.losses.inputs import POOLED_SCOPES, maps_to_rows


@dataclass(frozen=True)
class ObservedSet:
    """The candidates that one call of the loss ranks; the calls for each image of a batch are joined to one set.

    Attributes:
        logits: (N, A, K).
        positives: (N, A, K) bool.
        ignored: (N, A) bool.
        slopes: (N,) derivative of the total loss with respect to the loss of each image, times N; None if there is
            none.
        weight: ``cls_weight`` of the loss module; None for the plain function.
        reduction, scope: options of the call.
    """

    logits: Tensor
    positives: Tensor
    ignored: Tensor
    slopes: Tensor | None
    weight: float | None
    reduction: str
    scope: str


def observed_sets(calls: list[Call], total: Tensor, images: int | None) -> list[ObservedSet]:
    """The set of each call; ``total`` is differentiated, and ``images`` is the number of images or None."""
    values = [call.value for call in calls]
    found: Sequence[Tensor | None] = [None] * len(calls)
    if total.requires_grad and all(value.requires_grad for value in values):
        found = torch.autograd.grad(total, values, allow_unused=True, retain_graph=True)
    sets = [_set_of(call, slope) for call, slope in zip(calls, found, strict=True)]
    one_by_one = 1 < len(sets) == images and all(len(s.logits) == 1 for s in sets)
    if not one_by_one or len({s.logits.shape for s in sets}) != 1:
        return sets
    slopes = [s.slopes for s in sets if s.slopes is not None]
    first = sets[0]
    return [
        ObservedSet(
            logits=torch.cat([s.logits for s in sets]),
            positives=torch.cat([s.positives for s in sets]),
            ignored=torch.cat([s.ignored for s in sets]),
            slopes=torch.cat(slopes) * len(sets) if len(slopes) == len(sets) else None,
            weight=first.weight,
            reduction="none",
            scope=first.scope,
        )
    ]


def _set_of(call: Call, slope: Tensor | None) -> ObservedSet:
    logits = rows_of(call)
    n = len(logits)
    if slope is not None:
        slope = slope.detach().double().reshape(-1)
        one_value = call.options["reduction"] == "mean" or call.options["scope"] in POOLED_SCOPES
        slope = slope if one_value else slope * n
        slope = slope.expand(n) if len(slope) == 1 else slope
    marks, ignored = _labels(call, logits.shape[2])
    marks = marks & ~ignored.unsqueeze(2)
    return ObservedSet(logits, marks, ignored, slope, call.weight, call.options["reduction"], call.options["scope"])


def parts_of(value: Any) -> list[Tensor]:
    """The levels of an argument of the loss."""
    return [value] if isinstance(value, Tensor) else list(value)


def rows_of(call: Call) -> Tensor:
    """The logits of a call over all its levels, (N, A, K)."""
    parts = parts_of(call.logits)
    classes = parts[0].shape[-1]
    if any(part.ndim == 4 for part in parts):
        # K does not follow from maps (N, B·K, H, W), but from the number of anchors in labels or targets.
        labels = parts_of(call.labels)
        if labels[0].ndim == 3:
            classes = labels[0].shape[-1]
        else:
            anchors = sum(part.shape[1] for part in labels)
            classes = sum(part[0].numel() for part in parts) // max(anchors, 1)
    return torch.cat([p if p.ndim == 3 else maps_to_rows(p, classes) for p in parts], dim=1)


def _labels(call: Call, classes: int) -> tuple[Tensor, Tensor]:
    """The positives (N, A, K) and the ignored anchors (N, A) of a call, bool."""
    labels = torch.cat(parts_of(call.labels), dim=1)
    if labels.ndim == 3:
        ignore = call.options.get("ignore")
        ignored = torch.zeros(labels.shape[:2], dtype=torch.bool, device=labels.device)
        return labels > 0, ignored if ignore is None else torch.cat(parts_of(ignore), dim=1)
    numbers = torch.arange(1, classes + 1, device=labels.device)
    return labels.unsqueeze(2) == numbers, labels < 0


def labels_given(batch: Any, anchors: int) -> list[list[int]]:
    """Labels of the objects of each image, if the targets of a batch are dicts with ``labels``.

    ``class_labels`` are not read: they begin at 0. Neither are ``labels`` with one entry for each anchor.
    """
    if isinstance(batch, Mapping):
        own, boxes = batch.get("labels"), batch.get("boxes")
        if isinstance(own, Tensor):
            of_objects = own.ndim == 1 and len(own) != anchors and (boxes is None or len(boxes) == len(own))
            return [own.tolist()] if of_objects else []
        batch = batch.values()
    elif not isinstance(batch, (list, tuple)):
        return []
    return [found for item in batch for found in labels_given(item, anchors)]
