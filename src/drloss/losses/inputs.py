"""The arguments of every loss (logits, labels, priors), checked in one place for all losses and backends."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from drloss.losses.derivatives import transformed
from drloss.losses.parameters import require_choice, require_count

SCOPES = ("per_image", "pooled")
CLASS_SCOPES = ("per_class", "pooled_per_class")
"""Scopes with one ranking for each class, of the DR loss only."""
POOLED_SCOPES = ("pooled", "pooled_per_class")
"""Scopes that take all images of a batch together, and give one loss for them."""

Levels = Tensor | Sequence[Tensor]
"""One tensor, or its parts by pyramid level."""
Prior = Tensor | Sequence[Tensor] | int | str | None
"""Original distribution: None is uniform, an integer n̂ keeps the n̂ hardest candidates, a tensor holds weights, and a
name is one of :data:`POS_PRIORS`."""
POS_PRIORS = ("object", "class")
"""Priors of the positives (ours) in which each object, or each class, has the same mass."""
MOST_OBJECTS = 10_000
"""Objects that an image may have, if it has no more anchors than that."""


@dataclass(frozen=True)
class Inputs:
    """Checked logits, labels and priors of N images.

    Attributes:
        logits: of each level (N, A_l, K), or the classifier's maps (N, B·K, H, W).
        labels: (N, A) int64; None if targets are dense.
        targets: (N, A, K) bool dense targets, or None.
        ignore: (N, A) bool, with dense targets only, or None.
        weights: priors of positives and of negatives, (N, A, K) of the logits' dtype or float32, whichever is wider,
            possibly with strides of 0; None if the prior is no tensor.
        classes: K.
    """

    logits: list[Tensor]
    labels: Tensor | None
    targets: Tensor | None
    ignore: Tensor | None
    weights: tuple[Tensor | None, Tensor | None]
    classes: int

    @property
    def rows(self) -> list[Tensor]:
        """The levels as (N, A_l, K), anchors ordered by row, column and shape."""
        return [x if x.ndim == 3 else maps_to_rows(x, self.classes) for x in self.logits]


def maps_to_rows(maps: Tensor, classes: int) -> Tensor:
    """(N, B·K, H, W) to (N, H·W·B, K)."""
    n, channels, h, w = maps.shape
    per_place = channels // classes
    return maps.reshape(n, per_place, classes, h, w).permute(0, 3, 4, 1, 2).reshape(n, h * w * per_place, classes)


def check_inputs(
    logits: Levels,
    labels: Levels,
    ignore: Levels | None,
    pos_prior: Prior,
    neg_prior: Prior,
    scope: str,
    scopes: tuple[str, ...] = SCOPES,
    objects: Levels | None = None,
) -> Inputs:
    """Check the arguments that all losses share; :func:`drloss.losses.candidates.split_candidates` describes them.

    Raises:
        ValueError: if a dtype or a shape does not fit or, on the CPU, if a value is out of range. On an accelerator,
            in compiled code and within torch.func values are not checked; :func:`drloss.dr_loss` says how bad ones
            count.
        TypeError: if logits, labels or weights are no tensors.
    """
    check_split(pos_prior, neg_prior, scope, scopes)
    levels = _parts("logits", logits)
    labels = join("labels", labels)
    if not all(level.is_floating_point() for level in levels):
        raise ValueError(f"logits must be floating point, got {', '.join(str(x.dtype) for x in levels)}")
    shape = _shape(levels, labels)
    dtype = torch.float64 if levels[0].dtype == torch.float64 else torch.float32
    integers = None if labels.ndim == 3 else _check_labels(labels, shape).to(levels[0].device)
    if isinstance(pos_prior, str):
        pos_prior = equal_masses(pos_prior, integers, objects, scope, shape, dtype)
    weights = (
        _prior_weights("pos_prior", pos_prior, shape, levels[0].device, dtype, scope),
        _prior_weights("neg_prior", neg_prior, shape, levels[0].device, dtype, scope),
    )
    if integers is None:
        targets = _check_targets(labels, shape).to(levels[0].device)
        ignore = None if ignore is None else _check_ignore(join("ignore", ignore), shape).to(levels[0].device)
        return Inputs(levels, None, targets, ignore, weights, shape[2])
    if ignore is not None:
        raise ValueError(
            "ignore goes with dense targets (N, A, K), got it with integer labels, which mark ignored anchors by -1"
        )
    return Inputs(levels, integers, None, None, weights, shape[2])


def check_split(pos_prior: Prior, neg_prior: Prior, scope: str, scopes: tuple[str, ...] = SCOPES) -> None:
    """Check the options that say how candidates are split into sets, as far as they do not depend on the inputs.

    Raises:
        ValueError: if the scope is unknown, or a prior is a number that is no count.
        TypeError: if a prior is a list of anything but tensors.
    """
    require_choice("scope", scope, scopes)
    for name, prior in (("pos_prior", pos_prior), ("neg_prior", neg_prior)):
        if isinstance(prior, (Tensor, list, tuple)):
            if not _parts(name, prior)[0].ndim:
                raise ValueError(f"{name} as weights must have shape (K,), (N, A) or (N, A, K), got ()")
        elif isinstance(prior, str):
            if name == "neg_prior":
                raise ValueError(f"neg_prior must be None, a count or weights, got {prior!r}: it has no objects")
            if prior not in POS_PRIORS:
                raise ValueError(
                    f"{name} must be None, an integer of at least 1, weights or one of 'object', 'class', got "
                    f"{prior!r}"
                )
        elif prior is not None:
            require_count(**{name: prior})


def _shape(levels: list[Tensor], labels: Tensor) -> tuple[int, int, int]:
    """(N, A, K)."""
    shapes = [tuple(x.shape) for x in levels]
    first = shapes[0]
    if len(first) == 3 and first[2] > 0:
        if any(len(s) != 3 or s[0] != first[0] or s[2] != first[2] for s in shapes):
            raise ValueError(f"the levels of logits must agree in every dimension but the second, got {shapes}")
        return first[0], sum(s[1] for s in shapes), first[2]
    if len(first) != 4:
        raise ValueError(f"logits must have shape (N, A, K) with K >= 1, or be maps (N, B·K, H, W), got {first}")
    if any(len(s) != 4 or s[:2] != first[:2] for s in shapes):
        raise ValueError(f"the levels of logits as maps (N, B·K, H, W) must agree in N and B·K, got {shapes}")
    places = sum(s[2] * s[3] for s in shapes)
    anchors = labels.shape[1] if labels.ndim > 1 else 0
    per_place = anchors // places if places else 0
    if not per_place or per_place * places != anchors or first[1] % per_place:
        raise ValueError(
            f"labels must have shape (N, A) with A = B · {places} to fit the logits' maps {shapes}, where B divides "
            f"{first[1]}, got {tuple(labels.shape)}"
        )
    return first[0], anchors, first[1] // per_place


def _check_labels(labels: Tensor, shape: tuple[int, int, int]) -> Tensor:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels (N, A) must be integers, got {labels.dtype}")
    if labels.shape != shape[:2]:
        raise ValueError(
            f"labels must have shape (N, A) = {shape[:2]} to fit the logits, or (N, A, K) as dense targets, got "
            f"{tuple(labels.shape)}"
        )
    labels = labels.to(torch.int64)
    if values_can_be_checked(labels) and (labels.min() < -1 or labels.max() > shape[2]):
        raise ValueError(
            f"labels must be -1 (ignored), 0 (background) or 1..{shape[2]} (class), "
            f"got values from {int(labels.min())} to {int(labels.max())}"
        )
    return labels


def _check_targets(targets: Tensor, shape: tuple[int, int, int]) -> Tensor:
    if not (targets.is_floating_point() or targets.dtype == torch.bool):
        raise ValueError(f"labels (N, A, K) as dense targets must be floating point or bool, got {targets.dtype}")
    if targets.shape != shape:
        raise ValueError(f"labels as dense targets must have the logits' shape {shape}, got {tuple(targets.shape)}")
    if (
        targets.dtype != torch.bool
        and values_can_be_checked(targets)
        and not bool(((targets == 0) | (targets == 1)).all())
    ):
        raise ValueError(
            "labels as dense targets must be 1 (positive) or 0, got other values, between "
            f"{float(targets.min()):g} and {float(targets.max()):g}; soft targets have no positive set"
        )
    return targets if targets.dtype == torch.bool else targets > 0


def _check_ignore(ignore: Tensor, shape: tuple[int, int, int]) -> Tensor:
    if ignore.dtype != torch.bool:
        raise ValueError(f"ignore must be bool, got {ignore.dtype}")
    if ignore.shape != shape[:2]:
        raise ValueError(f"ignore must have shape (N, A) = {shape[:2]}, got {tuple(ignore.shape)}")
    return ignore


def _prior_weights(
    name: str, prior: Prior, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype, scope: str
) -> Tensor | None:
    """Weights (N, A, K) of a prior that is a tensor, the largest of each distribution scaled to 1; else None."""
    if prior is None or isinstance(prior, (int, str)):
        return None
    prior = join(name, prior).detach()
    n, a, k = shape
    views = {(k,): (1, 1, k), (n, a): (n, a, 1), (n, a, k): (n, a, k)}
    if tuple(prior.shape) not in views:
        raise ValueError(
            f"{name} as weights must have shape (K,) = {(k,)}, (N, A) = {(n, a)} or (N, A, K) = {(n, a, k)}, "
            f"got {tuple(prior.shape)}"
        )
    if prior.is_complex() or prior.dtype == torch.bool:
        raise ValueError(f"{name} as weights must be numbers, got {prior.dtype}")
    counted = (prior >= 0) & (prior < inf)
    if not values_can_be_checked(prior):
        prior = torch.where(counted, prior, 0)
    elif not bool(counted.all()):
        raise ValueError(
            f"{name} as weights must be finite and not negative, got values from {float(prior.min()):g} "
            f"to {float(prior.max()):g}"
        )
    prior = prior.to(device).reshape(views[tuple(prior.shape)])
    prior = prior if prior.dtype == torch.float64 else prior.to(dtype)
    if prior.numel():  # only ratios of weights count, and 1e-50 or 1e50 would be 0 or infinite in float32
        # By class, too: the absent classes are one distribution, in which the weights of classes are compared.
        largest = prior.amax() if scope in POOLED_SCOPES else prior.amax(dim=(1, 2), keepdim=True)
        prior = prior / torch.where(largest > 0, largest, 1.0)
    return prior.to(dtype).expand(n, a, k)


def equal_masses(
    prior: str,
    labels: Tensor | None,
    objects: Levels | None,
    scope: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
) -> Tensor:
    """Weights of a prior of :data:`POS_PRIORS` (ours): 1 over the positive anchors of an object, or of a class.

    Args:
        prior: ``"object"`` or ``"class"``.
        labels: (N, A) int64, or None if targets are dense.
        objects: (N, A) integer, or None; see :func:`drloss.dr_loss`.
        scope: with a pooled one, a class is counted over all images.
        shape: (N, A, K).
        dtype: of the result.
    Returns:
        (N, A) weights, 0 where an anchor is not positive.
    Raises:
        ValueError: if targets are dense, or the objects are missing or do not fit.
    """
    if labels is None:
        raise ValueError(f"pos_prior {prior!r} goes with integer labels (N, A), got dense targets")
    positive = (labels > 0) & (labels <= shape[2])
    if prior == "class":
        groups, count = labels.clamp(0, shape[2]), shape[2] + 1
        if scope in POOLED_SCOPES:
            groups, positive = groups.reshape(1, -1), positive.reshape(1, -1)
    else:
        groups, count = _check_objects(objects, positive) + 1, max(shape[1], MOST_OBJECTS) + 1
    found = positive.to(dtype)
    # The others are counted each at a place of its own: on a GPU, additions to one place wait for one another.
    places = count + torch.arange(groups.shape[1], device=groups.device)
    groups = torch.where(positive, groups, places)
    number = found.new_zeros(groups.shape[0], count + groups.shape[1]).scatter_add(1, groups, found)
    return (found / number.gather(1, groups).clamp(min=1)).view(labels.shape)


def _check_objects(objects: Levels | None, positive: Tensor) -> Tensor:
    """Index of each anchor's object (N, A) int64, -1 where an anchor is not positive."""
    if objects is None:
        raise ValueError("objects (N, A) must be given with pos_prior 'object': the index of each anchor's object")
    objects = join("objects", objects)
    if objects.is_floating_point() or objects.is_complex() or objects.dtype == torch.bool:
        raise ValueError(f"objects (N, A) must be integers, got {objects.dtype}")
    if objects.shape != positive.shape:
        raise ValueError(f"objects must have shape (N, A) = {tuple(positive.shape)}, got {tuple(objects.shape)}")
    objects = torch.where(positive, objects.to(positive.device, torch.int64), -1)
    most = max(positive.shape[1], MOST_OBJECTS) - 1
    if values_can_be_checked(objects):
        of_positives = objects[positive]
        if len(of_positives) and (of_positives.min() < 0 or of_positives.max() > most):
            raise ValueError(
                f"objects must be 0..{most} at the positive anchors, got values from {int(of_positives.min())} to "
                f"{int(of_positives.max())}"
            )
    return objects.clamp(-1, most)


def _parts(name: str, parts: Levels) -> list[Tensor]:
    found = [parts] if isinstance(parts, Tensor) else parts
    if not isinstance(found, (list, tuple)) or not found or not all(isinstance(p, Tensor) for p in found):
        raise TypeError(
            f"{name} must be a tensor or a non-empty list or tuple of tensors, got {type(parts).__name__}"
        )
    for part in found:
        if part.is_nested or part.layout != torch.strided:
            kind = "nested tensor" if part.is_nested else f"tensor of layout {part.layout}"
            raise TypeError(f"{name} must be dense (padded anchors are labelled -1), got a {kind}")
    return list(found)


def join(name: str, parts: Levels) -> Tensor:
    """One tensor of all pyramid levels: the distribution of an image covers the anchors of every level."""
    levels = _parts(name, parts)
    if len(levels) == 1:
        return levels[0]
    shapes = [tuple(p.shape) for p in levels]
    if any(p.ndim < 2 or p.shape[:1] + p.shape[2:] != levels[0].shape[:1] + levels[0].shape[2:] for p in levels):
        raise ValueError(f"the levels of {name} must agree in every dimension but the second, got {shapes}")
    return torch.cat(levels, dim=1)


def values_can_be_checked(values: Tensor) -> bool:
    """Whether values can be read: outside of the compiler and torch.func, without synchronising with a device."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or transformed(values):
        return False
    return values.device.type == "cpu" and values.numel() > 0
