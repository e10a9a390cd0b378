"""``drloss.check``: one step of a detector, and in words whether the DR loss is plugged in right."""

import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from drloss.adapters import host_of, unwrapped
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

    The weights, buffers, gradients, attributes and random numbers are afterwards as they were. Print the report. It
    sees how the loss is called and what becomes of its value. It cannot see whether each label belongs to its logits:
    a ``reshape`` in the place of a ``permute``, or labels of another image, go unnoticed.

    Args:
        model: whose training step calls :func:`drloss.dr_loss` or :class:`drloss.DRLoss`.
        batch: of at least two images with objects, best with different numbers of them.
        num_classes: K, the object classes alone, to find a background channel by.
        step: ``step(model, batch)`` returns the losses, a tensor or a mapping. By default the host's own step where
            its data loader's batches are no arguments (mmdetection, detectron2, ultralytics), else ``model(*batch)``,
            or ``model(**batch)`` for a mapping.
        classification: key of the classification loss, where the losses are a mapping; by default the one key that
            speaks of classes. A tensor is taken for the classification loss itself. Of an output with a
            ``loss_dict``, as transformers has it, the losses are those, and each decoder layer's counts.
    Returns:
        The report.
    Raises:
        ValueError: if the classification loss cannot be told from the others, or has no gradient to follow.
    """
    run = step or _own_step(model, batch)
    with _as_it_was(model):
        with watch() as calls:
            losses = run(model, batch)
        if not calls:
            words = "the step never called drloss.dr_loss or DRLoss: put it where the classification loss is computed"
            return CheckReport([Finding("called", False, words)])
        value, total = _classification_loss(losses, classification), _total(losses)
        images = _images(batch)
        # What reads the logits comes before the gradients, whose memory may be theirs.
        findings = [_calls(calls, model), _per_image(calls, images), _logits(calls)]
        if findings[-1].ok is not False:
            findings += [
                _value(calls, value, model),
                _prior(calls, model),
                _background(calls, batch, num_classes, model),
                _ignored(calls, model),
                _reached(_gradients(model, value, calls), total, calls),
            ]
        return CheckReport(findings)


def _own_step(model: nn.Module, batch: Any) -> Callable[[nn.Module, Any], Any]:
    """A training step on what a data loader of the model's library gives."""
    host = host_of(unwrapped(model))
    if host and (isinstance(batch, Mapping) or (isinstance(batch, list) and isinstance(batch[0], Mapping))):
        with suppress(ImportError):
            own = getattr(import_module(f"drloss.adapters.{host}"), "step", None)
            if own is not None:
                return lambda m, b: own(unwrapped(m), b)
    return lambda m, b: m(**b) if isinstance(b, Mapping) else m(*b)


def _total(losses: Any) -> Tensor | None:
    """The sum that is differentiated, where a step returns it beside its parts."""
    total = losses.get("loss") if isinstance(losses, Mapping) else None
    return total if isinstance(total, Tensor) and total.requires_grad else None


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
    if isinstance(losses, Sequence) and losses and all(isinstance(part, Tensor) for part in losses):
        losses = torch.stack([part.sum() for part in losses])
    if not isinstance(losses, Tensor):
        raise ValueError(
            f"the step must return a tensor or a mapping of tensors, got {type(losses).__name__}: "
            "check(..., step=lambda model, batch: ...) says how to get the losses"
        )
    return losses.sum()


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Training mode inside; outside mode, attributes, buffers, gradients and random numbers as before."""
    modules: list[tuple[nn.Module, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
        (m, dict(m.__dict__), dict(m._buffers), dict(m._modules)) for m in model.modules()
    ]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    numpy = sys.modules.get("numpy")  # whoever draws from it has imported it
    drawn = random.getstate(), numpy.random.get_state() if numpy else None
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            model.train()
            yield
        finally:
            for module, attributes, own, parts in modules:
                for name in module.__dict__.keys() - attributes:
                    del module.__dict__[name]
                module.__dict__.update(attributes)
                for kept, held in ((own, module._buffers), (parts, module._modules)):
                    held.clear()
                    held.update(kept)
            random.setstate(drawn[0])
            if numpy:
                numpy.random.set_state(drawn[1])
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


def _declared(model: nn.Module, name: str) -> Any:
    """What an adapter says of its model: ``drloss_calls``, ``drloss_shares`` or ``drloss_start``; else None.

    The first is the number of candidate sets of an image, where that is more than one, each of which has its call;
    the second is the weight of each; the third is the score that a classifier starts from, where it is not 0.5.
    """
    return next((getattr(m, name) for m in model.modules() if getattr(m, name, None) is not None), None)


def _adapted(model: nn.Module) -> bool:
    """Whether an adapter put the loss where it is."""
    return any(type(m).__module__.startswith("drloss.adapters.") for m in model.modules())


def _calls(calls: list[Call], model: nn.Module) -> Finding:
    """Whether each candidate set is one call: an image is one, in a DETR each of its decoder layers."""
    name = "called once"
    wanted = _declared(model, "drloss_calls") or 1
    if len(calls) == wanted:
        several = f"for each of {wanted} candidate sets, as the model has it"
        return Finding(name, True, "all pyramid levels are ranked together" if wanted == 1 else several)
    sizes = ", ".join(str(_rows(call).shape[1]) for call in calls)
    seen = f"the loss was called {len(calls)} times in one step, with {sizes} anchors"
    if wanted > 1 and not any(bool(_labels(call)[0].any()) for call in calls):
        return Finding(name, None, f"{seen}, and none has a positive: give check a batch with objects")
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
    if images == 1:
        return Finding(name, None, "a batch of one image does not tell: give check two or more")
    if seen == images:
        return Finding(name, True, f"{seen} images, each a distribution of its own")
    return Finding(
        name,
        False,
        f"the loss saw {seen} image(s) where the batch has {images}: do not flatten the batch; logits are (N, A, K)",
    )


VIEWS = re.compile(r"View|Reshape|Permute|Transpose|Cat|Slice|Select|Clone|Alias|Copy|Expand|Split|Unbind|squeeze")
"""Names of the functions in an autograd graph that move values and leave them as they are."""


def _logits(calls: list[Call]) -> Finding:
    """Whether the loss is given logits: finite numbers, and no scores."""
    name = "logits"
    parts = [part for call in calls for part in _parts(call.logits)]
    if not all(bool(torch.isfinite(part).all()) for part in parts):
        return Finding(name, False, "they are not finite: look for the first step in which they were, and its loss")
    for part in parts:
        node = part.grad_fn
        while node is not None and VIEWS.search(node.name()) and node.next_functions:
            node = node.next_functions[0][0]
        made = re.search(r"Sigmoid|Softmax", node.name() if node is not None else "")
        if made:
            return Finding(name, False, f"they come out of a {made[0].lower()}: give the loss what goes into it")
    return Finding(name, True, "they are finite, and no scores")


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
    divisor = _divisor(calls, seen, weights, images)
    if any(_same(ratio, weight) for weight in weights):
        if divisor and not _adapted(model):
            words = f"divided by the number of {divisor}, this loss would be the same: give check other images"
            return Finding(name, None, words)
        if any(call.options["reduction"] == "sum" for call in calls):
            return Finding(name, None, f"a sum over {images} images: is the learning rate meant for that?")
        return Finding(name, True, f"the loss is {seen:.4g}, {ratio:.3g} times the mean over images")
    if divisor:
        words = f"it was divided by the number of {divisor}; divide it by nothing"
        return Finding(name, False, f"the loss is {seen:.3g}: {words}")
    if ratio < min(weights):
        words = f"the loss is {seen:.3g}, {min(weights) / ratio:.3g} times too small: something divides it"
        return Finding(name, False, f"{words}, such as a running mean of the number of positives; take that out")
    words = f"the loss is {seen:.4g}, {ratio:.3g} times the mean over images: is that a weight of yours?"
    return Finding(name, None, words)


def _divisor(calls: list[Call], seen: float, weights: list[float], images: int) -> str | None:
    """The number of positives, in words, by which a loss of this value has been divided."""
    # Each call by its own positives: a DETR's denoising queries have more of them than the others.
    counts = [max(float(_labels(call)[0].sum()), 1.0) for call in calls]
    divided = sum(float(call.value.detach().double().mean()) / n for call, n in zip(calls, counts, strict=True))
    for parts, what in ((1, "positives"), (images, "positives of an image")):
        if any(_same(seen / (divided * parts), weight) for weight in weights):
            return f"{what}, {' to '.join(f'{n / parts:.3g}' for n in sorted({min(counts), max(counts)}))}"
    return None


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


def _background(calls: list[Call], batch: Any, num_classes: int | None, model: nn.Module) -> Finding:
    name = "background channel"
    classes = _rows(calls[0]).shape[2]
    if num_classes not in (None, classes):
        return Finding(
            name,
            False,
            f"the logits have {classes} channels for {num_classes} classes: leave a background channel out, "
            "it would be a negative everywhere",
        )
    given, columns = _label_sets(batch), _columns(calls)
    known = _adapted(model)
    if not known and len(given) == len(columns) and any(columns):
        if num_classes is None and 0 not in set().union(*given) and columns == given:
            return Finding(
                name,
                False,
                "channel 0 holds no class, as the labels of the targets begin at 1: it is a background channel; "
                "leave it out (or give num_classes, if the labels do begin at 0)",
            )
        if 0 in set().union(*given) and columns == [{label - 1 for label in own if label} for own in given]:
            return Finding(
                name,
                False,
                "objects with label 0 count as background: the loss takes 0 for background and 1..K for the classes, "
                "so add 1 to labels that begin at 0",
            )
    if num_classes is not None:
        return Finding(name, True, f"{classes} channels for {num_classes} classes")
    told = known or (given and any(columns))
    return Finding(name, True if told else None, f"{classes} channels" + ("" if told else "; num_classes would tell"))


def _columns(calls: list[Call]) -> list[set[int]]:
    """Of each image the channels that have a positive, over all calls."""
    positives = [_labels(call)[0].any(dim=1) for call in calls]
    if len({len(part) for part in positives}) != 1:
        return []
    return [set(row.nonzero().flatten().tolist()) for row in torch.stack(positives).any(dim=0)]


def _label_sets(batch: Any) -> list[set[int]]:
    """Labels of each image, where a batch's targets are dicts with ``labels``; ``class_labels`` begin at 0 anyway."""
    if isinstance(batch, Mapping):
        own = batch.get("labels")
        if isinstance(own, Tensor):
            return [set(own.flatten().tolist())]
        batch = batch.values()
    elif not isinstance(batch, (list, tuple)):
        return []
    return [found for item in batch for found in _label_sets(item)]


def _images(batch: Any) -> int | None:
    """Number of images of a batch: of what looks like images in it, or else the length of its first entry."""
    parts = list(batch.values()) if isinstance(batch, Mapping) else list(batch)
    for part in [batch, *parts]:
        if isinstance(part, Tensor) and part.ndim == 4:
            return len(part)
        if isinstance(part, (list, tuple)) and part and all(_is_image(item) for item in part):
            return len(part)
    first = next(iter(parts), None)
    return len(first) if isinstance(first, (Tensor, list, tuple)) else None


def _is_image(item: Any) -> bool:
    if isinstance(item, Mapping):  # of detectron2's list
        return any(_is_image(value) for value in item.values())
    return isinstance(item, Tensor) and item.ndim == 3


def _ignored(calls: list[Call], model: nn.Module) -> Finding:
    name = "ignored anchors"
    count = sum(int(_labels(call)[1].sum()) for call in calls)
    if count:
        return Finding(name, True, f"{count} anchors count as neither")
    matcher = _declared(model, "proposal_matcher")
    low, high = (getattr(matcher, f"{side}_threshold", None) for side in ("low", "high"))
    if low is not None and high is not None and low < high:
        return Finding(
            name,
            False,
            f"no anchor is ignored, but the model's matcher leaves those between IoU {low:g} and {high:g} undecided: "
            "their label is -1, not 0",
        )
    return Finding(name, None, "none in this batch; right for a detector that decides on every anchor")


def _reached(gradients: tuple[list[Tensor | None], bool], total: Tensor | None, calls: list[Call]) -> Finding:
    of_logits, reached = gradients
    name = "gradient"
    if any(g is None for g in of_logits) or not reached:
        return Finding(name, False, "none arrives at the classifier: are the logits detached, or under no_grad?")
    if total is not None and total.requires_grad:
        known = [part for call in calls for part in _parts(call.value)]
        through = torch.autograd.grad(total, known, allow_unused=True, retain_graph=True)
        if any(g is None for g in through):
            return Finding(name, False, "the sum that is differentiated, 'loss', leaves the classification loss out")
    finite = all(bool(torch.isfinite(g).all()) for g in of_logits if g is not None)
    if not finite:
        return Finding(name, False, "it is not finite")
    return Finding(name, True, "it arrives at the classifier and is finite")
