"""From a detector's logits and labels to the paper's two sets of candidates.

A candidate (the paper's $j$) is one (anchor, class) entry of one image, over all pyramid levels together. It is

- positive, where the anchor is matched to an object and the class is the object's;
- negative, at every other class of that anchor and at every class of a background anchor;
- in neither set, at every class of an ignored anchor.

Everything downstream works on *signed* logits: $x$ at a positive candidate and $-x$ at a negative one, so that
a large value always means "easy". Their sigmoid, the easiness $u$, is $p$ for a positive and $1 - p$ for a
negative; computed from the signed logit it keeps its precision where $1 - p$ rounds to 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """Signed logits of the two sets, float32 or wider, with the masks of what counts.

    Attributes:
        positive: (N, P) logits x of the positive candidates; 0 where ``positive_mask`` is False.
        positive_mask: (N, P) bool.
        negative: (N, M) negated logits -x of the negative candidates; 0 where ``negative_mask`` is False.
        negative_mask: (N, M) bool.
    """

    positive: Tensor
    positive_mask: Tensor
    negative: Tensor
    negative_mask: Tensor


def split_candidates(
    logits: Tensor | Sequence[Tensor],
    labels: Tensor | Sequence[Tensor],
    ignore: Tensor | Sequence[Tensor] | None = None,
) -> Candidates:
    """Sort the (anchor, class) entries of each image into positive and negative candidates.

    Args:
        logits: (N, A, K) of any floating dtype, or a list or tuple of per-level logits (N, A_l, K).
        labels: (N, A) integer, -1 ignored, 0 background, 1..K the class; or dense targets (N, A, K), float or
            bool, 1 where positive and 0 elsewhere. A list or tuple of per-level parts is joined likewise.
        ignore: (N, A) bool, only with dense targets: True where an anchor is in neither set.
    Returns:
        Candidates: P = A for integer labels and A * K for dense targets; M = A * K.
    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if shapes disagree or, on the CPU, if a value is out of range. On an accelerator values are
            not looked at, because that would stop and wait for the device.
    """
    logits = _join("logits", logits)
    labels = _join("labels", labels)
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if logits.ndim != 3 or logits.shape[2] == 0:
        raise ValueError(f"logits must have shape (N, A, K) with K >= 1, got {tuple(logits.shape)}")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if labels.ndim == 3:
        return _from_dense_targets(logits, labels, None if ignore is None else _join("ignore", ignore))
    if ignore is not None:
        raise ValueError("ignore goes with dense targets (N, A, K); integer labels mark ignored anchors by -1")
    return _from_labels(logits, labels)


def _from_labels(logits: Tensor, labels: Tensor) -> Candidates:
    num_classes = logits.shape[2]
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels (N, A) must be integers, got {labels.dtype}")
    if labels.shape != logits.shape[:2]:
        raise ValueError(
            f"labels must have shape (N, A) = {tuple(logits.shape[:2])} to fit the logits, or (N, A, K) as dense "
            f"targets, got {tuple(labels.shape)}"
        )
    labels = labels.to(torch.int64)
    if _values_can_be_checked(labels) and (labels.min() < -1 or labels.max() > num_classes):
        raise ValueError(
            f"labels must be -1 (ignored), 0 (background) or 1..{num_classes} (class), "
            f"got values from {int(labels.min())} to {int(labels.max())}"
        )
    labels = labels.to(logits.device)
    classes = torch.arange(1, num_classes + 1, device=logits.device)
    negative_mask = (labels.unsqueeze(2) != classes) & (labels >= 0).unsqueeze(2)
    positive_mask = labels > 0
    positive = logits.gather(2, (labels - 1).clamp(min=0).unsqueeze(2)).squeeze(2)
    return _masked(positive, positive_mask, logits.flatten(1), negative_mask.flatten(1))


def _from_dense_targets(logits: Tensor, targets: Tensor, ignore: Tensor | None) -> Candidates:
    if not (targets.is_floating_point() or targets.dtype == torch.bool):
        raise TypeError(f"dense targets (N, A, K) must be floating point or bool, got {targets.dtype}")
    if targets.shape != logits.shape:
        raise ValueError(
            f"dense targets must have the logits' shape {tuple(logits.shape)}, got {tuple(targets.shape)}"
        )
    if _values_can_be_checked(targets) and not bool(((targets == 0) | (targets == 1)).all()):
        raise ValueError(
            "dense targets must be 1 (positive) or 0, got other values; soft targets have no positive set"
        )
    targets = targets.to(logits.device)
    positive_mask = targets if targets.dtype == torch.bool else targets > 0
    negative_mask = ~positive_mask
    if ignore is not None:
        if ignore.dtype != torch.bool:
            raise TypeError(f"ignore must be bool, got {ignore.dtype}")
        if ignore.shape != logits.shape[:2]:
            raise ValueError(f"ignore must have shape (N, A) = {tuple(logits.shape[:2])}, got {tuple(ignore.shape)}")
        counted = ~ignore.to(logits.device).unsqueeze(2)
        positive_mask, negative_mask = positive_mask & counted, negative_mask & counted
    flat = logits.flatten(1)
    return _masked(flat, positive_mask.flatten(1), flat, negative_mask.flatten(1))


def _masked(positive: Tensor, positive_mask: Tensor, negative: Tensor, negative_mask: Tensor) -> Candidates:
    # Masked before any arithmetic: a NaN at an ignored anchor must reach neither the loss nor the gradient.
    zero = positive.new_zeros(())
    return Candidates(
        positive=torch.where(positive_mask, positive, zero),
        positive_mask=positive_mask,
        negative=torch.where(negative_mask, -negative, zero),
        negative_mask=negative_mask,
    )


def _join(name: str, parts: Tensor | Sequence[Tensor]) -> Tensor:
    """One tensor over all pyramid levels: one distribution per image needs the anchors of every level."""
    if isinstance(parts, Tensor):
        return parts
    if not isinstance(parts, (list, tuple)) or not parts or not all(isinstance(p, Tensor) for p in parts):
        raise TypeError(
            f"{name} must be a tensor or a non-empty list or tuple of tensors, got {type(parts).__name__}"
        )
    shapes = [tuple(p.shape) for p in parts]
    if any(p.ndim < 2 or p.shape[:1] + p.shape[2:] != parts[0].shape[:1] + parts[0].shape[2:] for p in parts):
        raise ValueError(f"the levels of {name} must agree in every dimension but the second, got {shapes}")
    return torch.cat(list(parts), dim=1)


def _values_can_be_checked(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.numel() > 0 and not torch.compiler.is_compiling()


def reduce_images(losses: Tensor, reduction: str) -> Tensor:
    """Reduce losses per image (N,): ``"mean"``, ``"sum"`` or ``"none"``; the mean over no image is 0.

    Raises:
        ValueError: if ``reduction`` is none of the three.
    """
    if reduction == "mean":
        return losses.sum() / max(losses.shape[0], 1)
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses
    raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')


def require_positive(**parameters: float) -> None:
    """Raise ValueError for the first parameter that is not a positive, finite number."""
    for name, value in parameters.items():
        if not (isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
