"""``drloss.check``: one step of a detector, and in words whether the DR loss is plugged in right."""

import inspect
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from drloss.adapters import host_of, unwrapped
from drloss.adapters.integration.findings import Finding, Step, findings_of, is_adapted, mixed
from drloss.adapters.integration.observed_sets import labels_given, observed_sets, rows_of
from drloss.losses.call_log import Call, record_calls
from drloss.losses.dr import DRLoss
from drloss.losses.module import ImageLoss

CLASS_KEY = re.compile(r"cls|class|vfl|(?<![a-z])ce(?![a-z])")
"""What a key of a classification loss has in it: ``ce`` as a word of its own, not as in ``centerness``."""
Run = Callable[[nn.Module, Any], Any]
"""A training step: the losses of a model on a batch."""
_ALONE = RLock()
"""Held while a step is watched: what is watched, and the random numbers, are those of the whole process."""


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
    step: Run | None = None,
    classification: str | None = None,
) -> CheckReport:
    """Run one training step of a detector and say whether its DR loss is plugged in right.

    The weights, buffers, gradients, attributes and random numbers are afterwards as they were, but for what a step
    puts into lists, dicts and other objects that attributes hold. Print the report. It sees how the loss is called,
    by how much each image's loss counts in what is differentiated, and, where the batch has the images as
    floating-point tensors, in a second step whether each image has logits of its own. It looks at one batch: a factor
    that is 1 in this step alone goes unnoticed. So does whether each label belongs to its logits: a ``reshape`` in
    the place of a ``permute``, or labels of another image.

    Args:
        model: whose training step calls :func:`drloss.dr_loss` or :class:`drloss.DRLoss`.
        batch: of at least two images with objects, best with different numbers of them.
        num_classes: K, the object classes alone, to find a background channel by.
        step: ``step(model, batch)`` returns the losses, a tensor or a mapping. By default the host's own step where
            its data loader's batches are no arguments (mmdetection, detectron2, ultralytics), else ``model(*batch)``,
            or ``model(**batch)`` for a mapping; ``model(batch)`` for a tensor, and where the model takes but that.
        classification: key of the classification loss, where the losses are a mapping; by default the one key that
            speaks of classes. A tensor is taken for the sum of all losses. Of an output with a
            ``loss_dict``, as transformers has it, the losses are those, and each decoder layer's counts.
    Returns:
        The report.
    Raises:
        ValueError: if the classification loss cannot be told from the others, or the step goes back through the
            losses or changes weights itself.
    """
    run = step or _own_step(model, batch)
    images = _image_tensors(batch)
    with _ALONE, _as_it_was(model):
        with _matcher_recorded(model) as undecided:
            calls, losses = _run(run, model, batch)
        if not calls:
            others = [
                type(m).__name__ for m in model.modules() if isinstance(m, ImageLoss) and not isinstance(m, DRLoss)
            ]
            has = f"the model has {others[0]}, and check looks at the DR loss alone" if others else ""
            words = "the step never called drloss.dr_loss or DRLoss: put it where the classification loss is computed"
            return CheckReport([Finding("called", None if others else False, has or words)])
        value = _classification_loss(losses, classification)
        total = losses.get("loss") if isinstance(losses, Mapping) else None
        total = total.sum() if isinstance(total, Tensor) and total.requires_grad else value
        sets = observed_sets(calls, total, _count(images))
        seen = Step(
            model=model,
            calls=calls,
            sets=sets,
            value=value,
            total=total,
            images=_count(images),
            given=labels_given(batch, sets[0].logits.shape[1]),
            undecided=None if undecided is None else any(undecided),
        )
        found = findings_of(seen, num_classes)
        # The last: it may change what the first step left, such as buffers that its graph holds.
        apart = next((k for k, f in enumerate(found) if f.name == "per image" and f.ok), None)
        if apart is not None and not is_adapted(model):
            found[apart] = mixed(_mixed_image(run, model, batch, images), found[apart])
        return CheckReport(found)


def _run(run: Run, model: nn.Module, batch: Any) -> tuple[list[Call], Any]:
    """The calls of the loss in a step, but for those that only look, and the losses."""
    weights = [(p, p._version) for p in model.parameters() if p.requires_grad and not p.is_inference()]
    # Of a compiled function, logits and loss come out together, and nothing says how the one depends on the other.
    with record_calls() as calls, torch.compiler.set_stance("force_eager"):
        losses = run(model, batch)
    if any(p.grad is not None or p._version != version for p, version in weights):
        raise ValueError("step must return the losses, and leave going back through them and the optimiser to others")
    if any(call.value.requires_grad for call in calls):
        calls = [call for call in calls if call.value.requires_grad]
    return calls, losses


@contextmanager
def _matcher_recorded(model: nn.Module) -> Iterator[list[bool] | None]:
    """Whether each call of the model's matcher left anchors undecided; None where there is none like torchvision's.

    A host may ask for its matcher's type, so nothing stands in its place: until the context ends, the class has a
    ``__call__`` that also looks at what this one object returns.
    """
    owned = [(m.__dict__ | dict(m.named_children())).get("proposal_matcher") for m in model.modules()]
    found = list({id(matcher): matcher for matcher in owned if matcher is not None}.values())
    if len(found) != 1 or not hasattr(found[0], "BETWEEN_THRESHOLDS") or not callable(found[0]):
        yield None
        return
    kind: Any = type(found[0])
    undecided: list[bool] = []
    call, own = inspect.getattr_static(kind, "__call__"), vars(kind).get("__call__")

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        matched = getattr(call, "__get__", lambda *_: call)(self, kind)(*args, **kwargs)
        if self is found[0]:
            undecided.append(_has(matched, self.BETWEEN_THRESHOLDS))
        return matched

    try:
        kind.__call__ = recorded
    except TypeError:  # of a class in C
        yield None
        return
    try:
        yield undecided
    finally:
        if own is None:
            del kind.__call__
        else:
            kind.__call__ = own


def _has(matched: Any, index: int) -> bool:
    """Whether an index is among those that a matcher returns, alone or, as MONAI's, beside other tensors."""
    parts = matched if isinstance(matched, (list, tuple)) else [matched]
    return any(
        bool((part == index).any()) for part in parts if isinstance(part, Tensor) and not part.is_floating_point()
    )


def _mixed_image(run: Run, model: nn.Module, batch: Any, given: Tensor | list[Tensor] | None) -> int | None:
    """An image whose logits depend on other images, seen in a second step; -1 for none, None where it cannot be told.

    Batch norm, by which all images depend on each other, takes its running statistics in it.
    """
    images = [given] if isinstance(given, Tensor) else given
    if not images or not all(x.is_floating_point() and not x.requires_grad for x in images):
        return None
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    try:
        for x in images:
            x.requires_grad_()
        calls, _ = _run(run, model, batch)
        parts = [rows_of(call) for call in calls]
        rows = torch.cat(parts) if parts and len(parts[0]) == 1 else parts[0]
        if len(rows) != _count(given) or not rows.requires_grad:
            return None
        for index in sorted({0, len(rows) - 1}):
            reached = _reached(rows[index].sum(), images, len(rows))
            if not any(reached):
                return None
            if sum(reached) > 1 or not reached[index]:
                # Rows of other images depend on one image each; where the model itself mixes images, they do not.
                ends = [_reached(rows[index, anchor].sum(), images, len(rows)) for anchor in (0, -1)]
                return index if all(sum(end) == 1 for end in ends) else None
    except Exception:  # of a step that writes into the images, for one; the first step went well
        return None
    finally:
        for x in images:
            x.requires_grad_(False)
    return -1


def _reached(value: Tensor, images: list[Tensor], count: int) -> list[bool]:
    """Which images a value depends on; none where a gradient is not finite."""
    found = torch.autograd.grad(value, images, allow_unused=True, retain_graph=True)
    slopes = found if len(found) == count else found[0]  # of a list, or of one tensor
    if slopes is None or not all(slope is None or bool(slope.isfinite().all()) for slope in found):
        return [False] * count
    return [slope is not None and bool(slope.any()) for slope in slopes]


def _own_step(model: nn.Module, batch: Any) -> Callable[[nn.Module, Any], Any]:
    """A training step on what a data loader of the model's library gives."""
    host = host_of(unwrapped(model))
    if host and (isinstance(batch, Mapping) or (isinstance(batch, list) and batch and isinstance(batch[0], Mapping))):
        with suppress(ImportError):
            own = getattr(import_module(f"drloss.adapters.{host}"), "step", None)
            if own is not None:
                return lambda m, b: own(unwrapped(m), b)
    return _forward


def _forward(model: nn.Module, batch: Any) -> Any:
    """What a model makes of a batch: its parts are the arguments, or it is the one argument where that alone fits."""
    if isinstance(batch, Tensor):
        return model(batch)
    named = batch if isinstance(batch, Mapping) else {}
    parts = () if named is batch else tuple(batch) if isinstance(batch, Iterable) else (batch,)
    takes = inspect.signature(unwrapped(model).forward)
    if not _fits(takes, *parts, **named) and _fits(takes, batch):
        return model(batch)
    return model(*parts, **named)


def _fits(takes: inspect.Signature, *args: Any, **kwargs: Any) -> bool:
    try:
        takes.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _classification_loss(losses: Any, key: str | None) -> Tensor:
    if isinstance(losses, Mapping):
        layers = losses.get("loss_dict")
        if isinstance(layers, Mapping):
            losses = layers
        if key is None:
            found = [k for k in losses if CLASS_KEY.search(str(k).lower())] or list(losses) * (len(losses) == 1)
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
    parts = ("_parameters", "_buffers", "_modules")
    modes = [(m, m.training) for m in model.modules()]
    # A module of TorchScript has no attributes of Python, and its parameters and buffers cannot be replaced.
    own = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    modules = [(m, dict(m.__dict__), {name: dict(getattr(m, name)) for name in parts}) for m in own]
    values = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
    numpy = sys.modules.get("numpy")  # whoever draws from it has imported it
    drawn = random.getstate(), numpy.random.get_state() if numpy else None
    gradients = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    # A training step, whatever the caller is in.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=devices):
        try:
            for parameter, _, _ in gradients:
                parameter.grad = None
            if not model.training:
                model.train()
            yield
        finally:
            for parameter, gradient, wanted in gradients:
                parameter.grad = gradient
                if parameter.requires_grad != wanted:
                    parameter.requires_grad_(wanted)
            with torch.no_grad():
                for tensor, value in values:
                    if not torch.equal(tensor, value):
                        tensor.copy_(value)
            for module, mode in modes:
                module.training = mode
            for module, attributes, members in modules:
                for name in module.__dict__.keys() - attributes:
                    del module.__dict__[name]
                module.__dict__.update(attributes)
                for name, held in members.items():
                    getattr(module, name).clear()
                    getattr(module, name).update(held)
            random.setstate(drawn[0])
            if numpy:
                numpy.random.set_state(drawn[1])


def _image_tensors(batch: Any) -> Tensor | list[Tensor] | None:
    """The images of a batch, as one tensor of four dimensions or in a list, wherever they are; None if nowhere."""
    if isinstance(batch, Tensor):
        return batch if batch.ndim == 4 else None
    parts = list(batch.values()) if isinstance(batch, Mapping) else batch
    if not isinstance(parts, (list, tuple)):
        return None
    for part in [parts, *parts]:
        if isinstance(part, Tensor) and part.ndim == 4:
            return part
        if isinstance(part, (list, tuple)) and part:
            found = [_image_of(item) for item in part]
            if all(image is not None for image in found):
                return [image for image in found if image is not None]
    return None


def _image_of(item: Any) -> Tensor | None:
    """The one image of an item: itself, or in a mapping or tuple, as a list of detectron2 or of pairs has it."""
    if isinstance(item, (Mapping, tuple)):
        values = item.values() if isinstance(item, Mapping) else item
        found = [v for v in values if isinstance(v, Tensor) and v.ndim == 3]
        return found[0] if found and (len(found) == 1 or isinstance(item, Mapping)) else None
    return item if isinstance(item, Tensor) and item.ndim == 3 else None


def _count(images: Tensor | list[Tensor] | None) -> int | None:
    return None if images is None else len(images)
