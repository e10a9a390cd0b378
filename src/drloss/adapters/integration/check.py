"""``drloss.check``: runs one training step of a detector and reports whether the DR loss is called right."""

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
"""Part of the key of a classification loss; ``ce`` is a word of its own, not as in ``centerness``."""
NOT_CALLED = "the step never called drloss.dr_loss or DRLoss: put it where the classification loss is computed"
OWN_STEP = "raised as drloss.check called the model with the batch; step=lambda model, batch: ... says how else"
TrainingStep = Callable[[nn.Module, Any], Any]
"""A function that returns the losses of a model on a batch."""
_ALONE = RLock()
"""Held during a check: the recorded calls and the random numbers are those of the whole process."""


@dataclass(frozen=True)
class CheckReport:
    """The result of :func:`check`; print it.

    Attributes:
        findings: the findings, in the order in which to mend them.
    """

    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether no finding is wrong."""
        return all(finding.ok is not False for finding in self.findings)

    def __str__(self) -> str:
        marks = {True: "ok   ", False: "WRONG", None: "?    "}
        return "\n".join(f"{marks[f.ok]}  {f.name}: {f.words}" for f in self.findings)


def check(
    model: nn.Module,
    batch: Any,
    *,
    num_classes: int | None = None,
    step: TrainingStep | None = None,
    classification: str | None = None,
) -> CheckReport:
    """Run one training step of a detector and report whether its DR loss is called right.

    Weights, buffers, gradients, attributes and random numbers are restored afterwards, except for changes that a step
    makes inside lists, dicts and other objects that attributes refer to. Print the report. The check sees how the
    loss is called, and how much the loss of each image counts in the total loss. If the batch has the images as
    floating-point tensors, a second step shows whether each image has logits of its own. One batch is checked: a
    factor that is 1 only in this step is not noticed. Nor is it noticed whether each label belongs to its logits: a
    ``reshape`` in place of a ``permute``, or the labels of another image.

    Args:
        model: a detector whose training step calls :func:`drloss.dr_loss` or :class:`drloss.DRLoss`.
        batch: at least two images with objects, best with different numbers of objects.
        num_classes: K, the number of object classes without a background; it helps to find a background channel.
        step: ``step(model, batch)`` returns the losses, a tensor or a mapping. By default it is the host's own step
            if the batches of its data loader are not arguments of the model (mmdetection, detectron2, ultralytics);
            else ``model(**batch)`` for a mapping, ``model(batch)`` for a tensor or if the model has one argument, and
            ``model(*batch)`` for any other batch.
        classification: key of the classification loss, if the losses are a mapping; by default the one key that names
            classes. If the step returns a tensor, it is the sum of all losses. If an output has a ``loss_dict``, as
            in transformers, the losses are in it, and those of every decoder layer count.
    Returns:
        The report.
    Raises:
        ValueError: if it is not clear which loss is the classification loss, or if the step runs the backward pass or
            changes weights itself.
    """
    run = step or _own_step(model, batch)
    images = _image_tensors(batch)
    with _ALONE, _restored(model):
        with _matcher_recorded(model) as undecided:
            try:
                calls, losses = _run(run, model, batch)
            except Exception as error:
                if step is None:
                    error.add_note(OWN_STEP)
                raise
        if not calls:
            others = [
                type(m).__name__ for m in model.modules() if isinstance(m, ImageLoss) and not isinstance(m, DRLoss)
            ]
            has = f"the model has {others[0]}, and check looks at the DR loss alone" if others else ""
            host = None if is_adapted(model) else host_of(unwrapped(model))
            known = f"; drloss.adapt(model) does that in the detectors of {host} that it knows" if host else ""
            words = f"{NOT_CALLED}{known}"
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
        # This comes last: a second step may change buffers that the graph of the first one needs.
        apart = next((k for k, f in enumerate(found) if f.name == "per image" and f.ok), None)
        if apart is not None and not is_adapted(model):
            found[apart] = mixed(_mixed_image(run, model, batch, images), found[apart])
        return CheckReport(found)


def _run(run: TrainingStep, model: nn.Module, batch: Any) -> tuple[list[Call], Any]:
    """The calls of the loss in a step, without those that have no gradient if others have one, and the losses."""
    weights = [(p, p._version) for p in model.parameters() if p.requires_grad and not p.is_inference()]
    # A compiled function has no graph between its logits and its loss.
    with record_calls() as calls, torch.compiler.set_stance("force_eager"):
        losses = run(model, batch)
    if any(p.grad is not None or p._version != version for p, version in weights):
        raise ValueError("step must return the losses, and leave going back through them and the optimiser to others")
    if any(call.value.requires_grad for call in calls):
        calls = [call for call in calls if call.value.requires_grad]
    return calls, losses


@contextmanager
def _matcher_recorded(model: nn.Module) -> Iterator[list[bool] | None]:
    """For each call of the model's matcher, whether it left anchors undecided; None without one like torchvision's.

    A host may check the type of its matcher, so the object is not replaced: until the context ends, its class has a
    ``__call__`` that also records the results of this one object.
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
    except TypeError:  # a class in C cannot be changed
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
    """Whether a matcher's result has an index: a tensor or, as in MONAI, several."""
    parts = matched if isinstance(matched, (list, tuple)) else [matched]
    return any(
        bool((part == index).any()) for part in parts if isinstance(part, Tensor) and not part.is_floating_point()
    )


def _mixed_image(run: TrainingStep, model: nn.Module, batch: Any, given: Tensor | list[Tensor] | None) -> int | None:
    """Index of an image whose logits depend on other images; -1 if there is none, None if it is not clear.

    A second step shows it, in which batch norm uses its running statistics, or all images would depend on each other.
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
                # If rows were mixed up, each depends on one image; if the model itself mixes images, it does not.
                ends = [_reached(rows[index, anchor].sum(), images, len(rows)) for anchor in (0, -1)]
                return index if all(sum(end) == 1 for end in ends) else None
    except Exception:  # such as a step that writes into the images; the first step was without error
        return None
    finally:
        for x in images:
            x.requires_grad_(False)
    return -1


def _reached(value: Tensor, images: list[Tensor], count: int) -> list[bool]:
    """Which images a value depends on; none if a gradient is not finite."""
    found = torch.autograd.grad(value, images, allow_unused=True, retain_graph=True)
    slopes = found if len(found) == count else found[0]  # for a list of images, or for one tensor
    if slopes is None or not all(slope is None or bool(slope.isfinite().all()) for slope in found):
        return [False] * count
    return [slope is not None and bool(slope.any()) for slope in slopes]


def _own_step(model: nn.Module, batch: Any) -> Callable[[nn.Module, Any], Any]:
    """The training step for batches of the data loader of the model's library, or :func:`_forward`."""
    host = host_of(unwrapped(model))
    if host and (isinstance(batch, Mapping) or (isinstance(batch, list) and batch and isinstance(batch[0], Mapping))):
        with suppress(ImportError):
            own = getattr(import_module(f"drloss.adapters.{host}"), "step", None)
            if own is not None:
                return lambda m, b: own(unwrapped(m), b)
    return _forward


def _forward(model: nn.Module, batch: Any) -> Any:
    """The model's output; the parts of the batch are the arguments, or the batch is, if only that fits."""
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
def _restored(model: nn.Module) -> Iterator[None]:
    """Training mode inside; afterwards mode, attributes, buffers, gradients and random numbers are restored."""
    parts = ("_parameters", "_buffers", "_modules")
    modes = [(m, m.training) for m in model.modules()]
    # A module of TorchScript has no Python attributes, and its parameters and buffers cannot be replaced.
    own = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    modules = [(m, dict(m.__dict__), {name: dict(getattr(m, name)) for name in parts}) for m in own]
    values = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
    numpy = sys.modules.get("numpy")  # a step that draws from it has imported it
    drawn = random.getstate(), numpy.random.get_state() if numpy else None
    gradients = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    # A training step needs gradients, even if the caller has switched them off.
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
    """The images of a batch, as one tensor of four dimensions or as a list; None if there are none."""
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
    """The image of an item: the item itself, or in a mapping (as in detectron2) or a tuple; None if there is none."""
    if isinstance(item, (Mapping, tuple)):
        values = item.values() if isinstance(item, Mapping) else item
        found = [v for v in values if isinstance(v, Tensor) and v.ndim == 3]
        return found[0] if found and (len(found) == 1 or isinstance(item, Mapping)) else None
    return item if isinstance(item, Tensor) and item.ndim == 3 else None


def _count(images: Tensor | list[Tensor] | None) -> int | None:
    return None if images is None else len(images)
