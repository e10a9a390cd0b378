"""``drloss.check``: one step of a detector, and in words whether the DR loss is plugged in right."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from drloss.losses.dr import CLS_WEIGHT, DRLoss
from drloss.losses.inputs import maps_to_rows
from drloss.losses.watch import Call, watch

SPREAD = 0.5
"""Standard deviation of the logits below which a classifier is taken for untrained."""
CLOSE = 0.02
"""Relative difference up to which two losses are the same."""
CLASS_KEY = re.compile(r"cls|class|vfl|(?<![a-z])ce(?![a-z])")
"""What a key of a classification loss has in it: ``ce`` as a word of its own, not as in ``centerness``."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: in a word or two.
        ok: whether it is right; None where it cannot be told.
        words: what was seen, and what to do where it is wrong.
    """

    name: str
    ok: bool | None
    words: str


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check` found.

    Attributes:
        findings: in the order in which to mend them.
    """

    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.ok is not False for finding in self.findings)

    def __str__(self) -> str:
        marks = {True: "ok   ", False: "WRONG", None: "?    "}
        return "\n".join(f"{marks[f.ok]}  {f.name}: {f.words}" for f in self.findings)


def check(
    model: nn.Module,
    batch: Any,
    *,
    num_classes: int | None = None,
    step: Callable[[nn.Module, Any], Any] | None = None,
    classification: str | None = None,
) -> CheckReport:
    """Run one training step of a detector and say whether its DR loss is plugged in right.

    The weights, buffers, gradients and random numbers are afterwards as they were. Print the report.

    Args:
        model: whose training step calls :func:`drloss.dr_loss` or :class:`drloss.DRLoss`.
        batch: of at least two images with objects, best with different numbers of them.
        num_classes: K, the object classes alone, to find a background channel by.
        step: ``step(model, batch)`` returns the losses, a tensor or a mapping. By default ``model(*batch)``, or
            ``model(**batch)`` for a mapping.
        classification: key of the classification loss, where the losses are a mapping; by default the one key that
            speaks of classes. A tensor is taken for the classification loss itself. Of an output with a
            ``loss_dict``, as transformers has it, the losses are those, and each decoder layer's counts.
    Returns:
        The report.
    Raises:
        ValueError: if the classification loss cannot be told from the others, or has no gradient to follow.
    """
    run = step or (lambda m, b: m(**b) if isinstance(b, Mapping) else m(*b))
    with _as_it_was(model):
        with watch() as calls:
            losses = run(model, batch)
        if not calls:
            words = "the step never called drloss.dr_loss or DRLoss: put it where the classification loss is computed"
            return CheckReport([Finding("called", False, words)])
        value = _classification_loss(losses, classification)
        gradients = _gradients(model, value, calls)
        return CheckReport(_findings(calls, value, gradients, model, batch, num_classes))


def _classification_loss(losses: Any, key: str | None) -> Tensor:
    if isinstance(losses, Mapping):
        layers = losses.get("loss_dict")
        if isinstance(layers, Mapping):
            losses = layers
        if key is None:
            found = [k for k in losses if CLASS_KEY.search(str(k).lower())]
            if len(found) != 1 and not (found and losses is layers):
                raise ValueError(
                    f"classification must name the classification loss, one of {', '.join(map(str, losses))}"
                )
        else:
            found = [k for k in losses if k == key or (losses is layers and str(k).startswith(f"{key}_"))]
            if not found:
                raise ValueError(f"classification must be one of {', '.join(map(str, losses))}, got {key!r}")
        losses = losses[found[0]] if len(found) == 1 else [losses[k] for k in found]
    if isinstance(losses, Sequence):
        losses = torch.stack([torch.as_tensor(part) for part in losses]).sum()
    if not isinstance(losses, Tensor):
        raise ValueError(f"the step must return a tensor or a mapping of tensors, got {type(losses).__name__}")
    return losses.sum()


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Training mode inside; outside mode, buffers, gradients and random numbers as before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            model.train()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for parameter, gradient in gradients:
                parameter.grad = gradient


def _parts(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def _rows(call: Call) -> Tensor:
    """(N, A, K) of a call's logits, over all its levels."""
    parts = _parts(call.logits)
    classes = parts[0].shape[-1]
    if any(part.ndim == 4 for part in parts):
        # Maps (N, B·K, H, W) say nothing of K: labels or targets do, through the number of anchors.
        labels = _parts(call.labels)
        if labels[0].ndim == 3:
            classes = labels[0].shape[-1]
        else:
            anchors = sum(part.shape[1] for part in labels)
            classes = sum(part[0].numel() for part in parts) // max(anchors, 1)
    return torch.cat([p if p.ndim == 3 else maps_to_rows(p, classes) for p in parts], dim=1)


def _labels(call: Call) -> tuple[Tensor, Tensor]:
    """(N, A, K) bool positives and (N, A) bool ignored of a call."""
    classes = _rows(call).shape[2]
    labels = torch.cat(_parts(call.labels), dim=1)
    if labels.ndim == 3:
        ignore = call.options.get("ignore")
        ignored = torch.zeros(labels.shape[:2], dtype=torch.bool, device=labels.device)
        return labels > 0, ignored if ignore is None else torch.cat(_parts(ignore), dim=1)
    numbers = torch.arange(1, classes + 1, device=labels.device)
    return labels.unsqueeze(2) == numbers, labels < 0


def _gradients(model: nn.Module, value: Tensor, calls: list[Call]) -> tuple[list[Tensor | None], bool]:
    """Gradients of the calls' logits, and whether any parameter has one that is not zero."""
    if not value.requires_grad:
        return [None for call in calls for _ in _parts(call.logits)], False
    parameters = [p for p in model.parameters() if p.requires_grad]
    inputs = [part for call in calls for part in _parts(call.logits)]
    known = [part for part in inputs if part.requires_grad]
    found = torch.autograd.grad(value, [*known, *parameters], allow_unused=True, retain_graph=True)
    by_id = {id(part): gradient for part, gradient in zip(known, found, strict=False)}
    reached = any(g is not None and bool(g.any()) for g in found[len(known) :])
    return [by_id.get(id(part)) for part in inputs], reached


def _findings(
    calls: list[Call],
    value: Tensor,
    gradients: tuple[list[Tensor | None], bool],
    model: nn.Module,
    batch: Any,
    num_classes: int | None,
) -> list[Finding]:
    images = _images(batch)
    return [
        _calls(calls, model),
        _per_image(calls, images),
        _value(calls, value, model),
        _prior(calls, model),
        _background(calls, batch, num_classes),
        _ignored(calls, model),
        _reached(gradients),
    ]


def _declared(model: nn.Module, name: str) -> Any:
    """What an adapter says of its model: ``drloss_calls``, ``drloss_shares`` or ``drloss_start``; else None.

    The first is the number of candidate sets of an image, where that is more than one, each of which has its call;
    the second is the weight of each; the third is the score that a classifier starts from, where it is not 0.5.
    """
    return next((getattr(m, name) for m in model.modules() if getattr(m, name, None) is not None), None)


def _calls(calls: list[Call], model: nn.Module) -> Finding:
    """Whether each candidate set is one call: an image is one, in a DETR each of its decoder layers."""
    name = "called once"
    wanted = _declared(model, "drloss_calls") or 1
    if len(calls) == wanted:
        several = f"for each of {wanted} candidate sets, as the model has it"
        return Finding(name, True, "all pyramid levels are ranked together" if wanted == 1 else several)
    sizes = ", ".join(str(_rows(call).shape[1]) for call in calls)
    seen = f"the loss was called {len(calls)} times in one step, with {sizes} anchors"
    if wanted > 1:
        words = f"{seen}: the model has {wanted} candidate sets; hand each over in one call, with all images"
        return Finding(name, False, words)
    return Finding(
        name,
        False,
        f"{seen}: an image is one distribution over all pyramid levels; hand them over in one call, as a list (a "
        "model whose decoder layers are candidate sets of their own says how many in an attribute drloss_calls)",
    )


def _per_image(calls: list[Call], images: int | None) -> Finding:
    name = "per image"
    if any(call.options["scope"] == "pooled" for call in calls):
        return Finding(name, False, 'scope="pooled" ranks all images in one distribution: leave it at "per_image"')
    seen = next((n for n in (_rows(call).shape[0] for call in calls) if n != images), images)
    if images is None:
        return Finding(name, None, f"the loss saw {seen} image(s); the batch does not say how many it has")
    if seen == images:
        return Finding(name, True, f"{seen} images, each a distribution of its own")
    return Finding(
        name,
        False,
        f"the loss saw {seen} image(s) where the batch has {images}: do not flatten the batch; logits are (N, A, K)",
    )


def _value(calls: list[Call], value: Tensor, model: nn.Module) -> Finding:
    """Whether the loss that is differentiated is τ times the mean over images."""
    name = "normaliser"
    seen = float(value.detach())
    shares = _declared(model, "drloss_shares")
    if shares is None or len(shares) != len(calls):
        shares = [1.0] * len(calls)
    called = sum(s * float(call.value.detach().double().mean()) for s, call in zip(shares, calls, strict=True))
    if called == 0:
        return Finding(name, None, "the loss is 0: the batch has nothing to learn from")
    own = [m.cls_weight for m in model.modules() if isinstance(m, DRLoss)]
    weights = own or [CLS_WEIGHT, 1.0]
    ratio, images = seen / called, _rows(calls[0]).shape[0]
    if any(_same(ratio, weight) for weight in weights):
        if any(call.options["reduction"] == "sum" for call in calls):
            return Finding(name, None, f"a sum over {images} images: is the learning rate meant for that?")
        return Finding(name, True, f"the loss is {seen:.4g}, {ratio:.3g} times the mean over images")
    # Each call by its own positives: a DETR's denoising queries have more of them than the others.
    counts = [max(float(_labels(call)[0].sum()), 1.0) for call in calls]
    divided = sum(float(call.value.detach().double().mean()) / n for call, n in zip(calls, counts, strict=True))
    for parts, what in ((1, "positives"), (images, "positives of an image")):
        if any(_same(seen / (divided * parts), weight) for weight in weights):
            number = " to ".join(f"{n / parts:.3g}" for n in sorted({min(counts), max(counts)}))
            words = f"it was divided by the number of {what}, {number}"
            return Finding(name, False, f"the loss is {seen:.3g}: {words}; divide it by nothing")
    if ratio < min(weights):
        words = f"the loss is {seen:.3g}, {min(weights) / ratio:.3g} times too small: something divides it"
        return Finding(name, False, f"{words}, such as a running mean of the number of positives; take that out")
    words = f"the loss is {seen:.4g}, {ratio:.3g} times the mean over images: is that a weight of yours?"
    return Finding(name, None, words)


def _same(one: float, other: float) -> bool:
    return abs(one / other - 1) < CLOSE


def _prior(calls: list[Call], model: nn.Module) -> Finding:
    name = "starting score"
    logits = torch.cat([_rows(call).detach().float().flatten() for call in calls])
    score, spread = float(logits.sigmoid().mean()), float(logits.std())
    wanted = _declared(model, "drloss_start") or 0.5
    if wanted / 2 <= score <= (1 + wanted) / 2:
        return Finding(name, True, f"the mean score is {score:.2g}")
    if spread > SPREAD and _lowest_start(model, _rows(calls[0]).shape[2]) >= wanted / 2:
        return Finding(name, None, f"the mean score is {score:.2g}, of a classifier that seems to be trained already")
    return Finding(
        name,
        False,
        f"the classifier starts from a score of {score:.2g}: set its bias to 0, for 0.5 (a focal loss wants 0.01)",
    )


def _lowest_start(model: nn.Module, classes: int) -> float:
    """Lowest score that a layer with a channel for each class starts from; 1 where all of them seem to be trained."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    shared = [b[0] for b in biases if len(b) > 1 and len(b) % classes == 0 and torch.equal(b, b[:1].expand_as(b))]
    return min((float(bias.sigmoid()) for bias in shared), default=1.0)


def _background(calls: list[Call], batch: Any, num_classes: int | None) -> Finding:
    name = "background channel"
    classes = _rows(calls[0]).shape[2]
    if num_classes is not None:
        if classes == num_classes:
            return Finding(name, True, f"{classes} channels for {num_classes} classes")
        return Finding(
            name,
            False,
            f"the logits have {classes} channels for {num_classes} classes: leave a background channel out, "
            "it would be a negative everywhere",
        )
    columns = set().union(*(_labels(call)[0].any(dim=(0, 1)).nonzero().flatten().tolist() for call in calls))
    given = _label_set(batch)
    if given and columns and min(given) >= 1 and columns == given:
        return Finding(
            name,
            False,
            "channel 0 holds no class, as the labels of the targets begin at 1: it is a background channel; leave it "
            "out (or give num_classes, if the labels do begin at 0)",
        )
    return Finding(
        name, True if given else None, f"{classes} channels" + ("" if given else "; num_classes would tell")
    )


def _label_set(batch: Any) -> set[int]:
    """Labels in a batch's targets, where there are dicts with labels in it; ``class_labels`` count from 0 anyway."""
    found: set[int] = set()
    stack = [batch]
    while stack:
        item = stack.pop()
        if isinstance(item, Mapping):
            for key, value in item.items():
                if key == "labels" and isinstance(value, Tensor):
                    found |= set(value.flatten().tolist())
                elif not isinstance(value, Tensor):
                    stack.append(value)
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
    return found


def _images(batch: Any) -> int | None:
    """Number of images of a batch: the length of its first entry."""
    first = next(iter(batch.values() if isinstance(batch, Mapping) else batch), None)
    return len(first) if isinstance(first, (Tensor, list, tuple)) else None


def _ignored(calls: list[Call], model: nn.Module) -> Finding:
    name = "ignored anchors"
    count = sum(int(_labels(call)[1].sum()) for call in calls)
    if count:
        return Finding(name, True, f"{count} anchors count as neither")
    matcher = getattr(model, "proposal_matcher", None)
    low, high = (getattr(matcher, f"{side}_threshold", None) for side in ("low", "high"))
    if low is not None and high is not None and low < high:
        return Finding(
            name,
            False,
            f"no anchor is ignored, but the model's matcher leaves those between IoU {low:g} and {high:g} undecided: "
            "their label is -1, not 0",
        )
    return Finding(name, None, "none in this batch; right for a detector that decides on every anchor")


def _reached(gradients: tuple[list[Tensor | None], bool]) -> Finding:
    of_logits, reached = gradients
    name = "gradient"
    if any(g is None for g in of_logits) or not reached:
        return Finding(name, False, "none arrives at the classifier: are the logits detached, or under no_grad?")
    finite = all(bool(torch.isfinite(g).all()) for g in of_logits if g is not None)
    if not finite:
        return Finding(name, False, "it is not finite")
    return Finding(name, True, "it arrives at the classifier and is finite")
